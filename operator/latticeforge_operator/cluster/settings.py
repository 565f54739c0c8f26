"""What the operator is told by its environment."""

from __future__ import annotations

import os
from dataclasses import dataclass

from latticeforge_operator import __version__

DEFAULT_TRAINER_IMAGE = f"ghcr.io/latticeforge/trainer:{__version__}"


@dataclass(frozen=True)
class Settings:
    """The operator's settings."""

    trainer_image: str = DEFAULT_TRAINER_IMAGE
    """Image of every step; `LATTICEFORGE_TRAINER_IMAGE`."""
    progress_interval: str | None = None
    """Seconds between two reports of a step; `LATTICEFORGE_PROGRESS_INTERVAL`."""
    hub_endpoint: str | None = None
    """Another Hub than huggingface.co; `HF_ENDPOINT`."""
    hub_offline: bool = False
    """Whether the operator leaves the Hub alone; `HF_HUB_OFFLINE`."""

    namespaces: tuple[str, ...] = ()
    """Namespaces that are served; empty: all."""

    @classmethod
    def from_environment(cls, namespaces: tuple[str, ...] = ()) -> Settings:
        """Read them; the namespaces come from the command line."""
        return cls(
            namespaces=namespaces,
            trainer_image=os.environ.get("LATTICEFORGE_TRAINER_IMAGE", DEFAULT_TRAINER_IMAGE),
            progress_interval=os.environ.get("LATTICEFORGE_PROGRESS_INTERVAL"),
            hub_endpoint=os.environ.get("HF_ENDPOINT"),
            hub_offline=os.environ.get("HF_HUB_OFFLINE", "0").lower() in {"1", "true", "yes", "on"},
        )
