"""Write a generated data set to a JSONL file of chat samples.

Each line is ``{"task": "cic-0123456789abcdef", "messages": [{"role": "user", …}, {"role":
"assistant", …}]}``; ``task`` identifies the problem, so two files can be checked for overlap.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

from latticeforge_trainer.domain import briefings, math_problems
from latticeforge_trainer.domain.samples import Sample, Split, assistant, user

Kind = Literal["cic", "math"]


@dataclass(frozen=True)
class DatasetSummary:
    """What was written."""

    path: Path
    kind: Kind
    split: Split
    seed: int
    n: int
    sha256: str
    """Of the file; the same for the same kind, n, seed and split."""


def write_dataset(kind: Kind, n: int, seed: int, split: Split, path: Path) -> DatasetSummary:
    """Generate n different problems and put them in place all at once.

    The file is written beside ``path`` and renamed, so a reader never sees half of it.

    Raises:
        ValueError: n is not positive.
        UserError: there are not that many different problems.
        OSError: the file cannot be written.
    """
    if n <= 0:
        raise ValueError(f"n is {n}, expected at least 1")
    lines = (_line(sample) for sample in islice(_samples(kind, seed, split), n))
    content = "".join(lines).encode()
    _write_atomically(path, content)
    return DatasetSummary(path, kind, split, seed, n, hashlib.sha256(content).hexdigest())


def _samples(kind: Kind, seed: int, split: Split) -> Iterator[Sample]:
    if kind == "cic":
        return map(briefings.sample_of, briefings.briefings(seed, split))
    return map(math_problems.sample_of, math_problems.math_problems(seed, split))


def _line(sample: Sample) -> str:
    record = {"task": sample.task, "messages": [user(sample.prompt), assistant(sample.answer)]}
    return json.dumps(record, ensure_ascii=False) + "\n"


def _write_atomically(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        temporary.chmod(0o644)  # mkstemp's 0600 would hide the data from a pod of another user
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
