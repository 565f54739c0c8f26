"""Tells a full disk, which is the user's to clear, from every other failure to write."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from latticeforge_trainer.errors import UserError

PROBE = 2**20
"""Bytes of the file that is tried."""


@contextmanager
def full_disk_is_the_users(folder: Path) -> Iterator[None]:
    """Turn the error of a checkpoint that found no space in a folder into the contract's."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if not (_is_full(error) or _takes_no_more(folder)):
            raise
        raise UserError(
            f"no space left for a checkpoint in {folder}; the last one is intact: "
            "free some space, or enlarge storage.size"
        ) from error


def _is_full(error: BaseException) -> bool:
    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return isinstance(error, OSError) and error.errno in full


def _takes_no_more(folder: Path) -> bool:
    """Whether a small file cannot be written: torch and safetensors hide why a large one failed."""
    probe = folder / ".probe"
    try:
        probe.write_bytes(bytes(PROBE))
    except OSError as error:
        return _is_full(error)
    finally:
        probe.unlink(missing_ok=True)
    return False
