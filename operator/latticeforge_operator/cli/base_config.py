"""Where `latticeforge plan` finds a base model's `config.json`: named, in a folder, on the Hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from latticeforge_operator.api.training import Base
from latticeforge_operator.cli.errors import CommandError
from latticeforge_trainer.artifacts import Store
from latticeforge_trainer.errors import UserError

CONFIG = "config.json"

_PATIENCE_SECONDS = 3
"""How long the Hub may take to say that the file is there; a person is waiting."""


def find_config(base: Base, named: Path | None, volume: Path) -> dict[str, Any]:
    """The content of a base's `config.json`.

    Args:
        base: The base as its user wrote it.
        named: A file, or a model's folder; comes before everything else.
        volume: Where relative paths of the spec start.

    Raises:
        CommandError: There is none; the message says how to give one.
    """
    if named is not None:
        return _read(named / CONFIG if named.is_dir() else named)
    try:
        folder = Store(volume).resolve(base.model)
    except UserError as error:
        raise CommandError(f"spec.base.model: {error}") from error
    if folder is not None:
        return _read(folder / CONFIG)
    return _read(_from_hub(base))


def _read(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_bytes())
    except OSError as error:
        raise CommandError(
            f"{path}: {error.strerror}; pass the base's config.json, or the folder that holds it, "
            "with --config"
        ) from error
    except ValueError as error:
        raise CommandError(f"{path}: no valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise CommandError(f"{path}: not an object, so it is no model's {CONFIG}")
    return config


def _from_hub(base: Base) -> Path:
    """The file in the Hub's cache; else from the Hub, with `HF_TOKEN` if it is set."""
    advice = f"pass its {CONFIG} with --config"
    try:
        # A quarter of a second that only this way of finding it needs to pay.
        import httpx2  # noqa: PLC0415
        from huggingface_hub import (  # noqa: PLC0415
            get_hf_file_metadata,
            hf_hub_download,
            hf_hub_url,
            try_to_load_from_cache,
        )
        from huggingface_hub.errors import HfHubHTTPError  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise CommandError(
            f"{base.model}: to ask the Hub, huggingface_hub is needed; install it, or {advice}"
        ) from error
    cached = try_to_load_from_cache(base.model, CONFIG, revision=base.revision)
    if isinstance(cached, str):
        return Path(cached)
    try:
        # The download would try for half a minute to reach a Hub that cannot be reached.
        url = hf_hub_url(base.model, CONFIG, revision=base.revision)
        get_hf_file_metadata(url, timeout=_PATIENCE_SECONDS)
        return Path(
            hf_hub_download(
                base.model, CONFIG, revision=base.revision, etag_timeout=_PATIENCE_SECONDS
            )
        )
    except httpx2.TransportError as error:
        raise CommandError(
            f"{base.model}: the Hub cannot be reached ({_first_line(error)}); {advice}"
        ) from error
    except (OSError, ValueError, HfHubHTTPError) as error:
        why = _first_line(error)
        raise CommandError(
            f"{base.model}: its {CONFIG} cannot be had from the Hub ({why}); {advice}"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
