"""What the operator is told by its environment."""

from __future__ import annotations

import os
from dataclasses import dataclass

from latticeforge_operator import __version__
from latticeforge_operator.api import StackedTraining

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
    pull_secrets: tuple[str, ...] = ()
    """Secrets, in a stack's namespace, with which its pods' image is pulled;
    `LATTICEFORGE_TRAINER_PULL_SECRETS`, separated by commas."""
    storage_class: str | None = None
    """Storage class of volumes made for stacks that name none; `LATTICEFORGE_STORAGE_CLASS`."""
    shared_storage_class: str | None = None
    """The same for stacks that span nodes; `LATTICEFORGE_SHARED_STORAGE_CLASS`."""
    queue: str | None = None
    """Kueue LocalQueue of stacks that name none; `LATTICEFORGE_QUEUE`."""

    namespaces: tuple[str, ...] = ()
    """Namespaces that are served; empty: all."""

    @classmethod
    def from_environment(cls, namespaces: tuple[str, ...] = ()) -> Settings:
        """Read them; the namespaces come from the command line."""
        secrets = os.environ.get("LATTICEFORGE_TRAINER_PULL_SECRETS", "").split(",")
        return cls(
            namespaces=namespaces,
            trainer_image=os.environ.get("LATTICEFORGE_TRAINER_IMAGE", DEFAULT_TRAINER_IMAGE),
            progress_interval=os.environ.get("LATTICEFORGE_PROGRESS_INTERVAL"),
            hub_endpoint=os.environ.get("HF_ENDPOINT"),
            hub_offline=os.environ.get("HF_HUB_OFFLINE", "0").lower() in {"1", "true", "yes", "on"},
            pull_secrets=tuple(name for name in secrets if name),
            storage_class=os.environ.get("LATTICEFORGE_STORAGE_CLASS"),
            shared_storage_class=os.environ.get("LATTICEFORGE_SHARED_STORAGE_CLASS"),
            queue=os.environ.get("LATTICEFORGE_QUEUE"),
        )

    def completed(self, training: StackedTraining) -> StackedTraining:
        """The stack with what the platform chooses where its author did not."""
        compute = training.spec.compute
        if self.queue is None or compute.queue is not None:
            return training
        queued = compute.model_copy(update={"queue": self.queue})
        spec = training.spec.model_copy(update={"compute": queued})
        return training.model_copy(update={"spec": spec})

    def class_for(self, *, shared: bool) -> str | None:
        """Storage class of a new volume whose stack names none; None: the cluster's default.

        Args:
            shared: Whether pods on several nodes mount it.
        """
        return (shared and self.shared_storage_class) or self.storage_class
