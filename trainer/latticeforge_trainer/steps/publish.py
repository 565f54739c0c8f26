"""The `publish` step: the finished model, its card and its record, to the Hub or to a folder.

    python -m latticeforge_trainer publish --config step.json --store /storage

Ends with exactly one commit however often it is killed and started again. The artifact it leaves
holds the card and the record; the weights stay in the artifact that they came from.
"""

from __future__ import annotations

import shutil
from typing import Protocol

from latticeforge_trainer.artifacts import Store
from latticeforge_trainer.contract import PublishConfig, PublishResult, StepKind
from latticeforge_trainer.progress import Reporter
from latticeforge_trainer.publishing.bundle import GENERATED, Bundle, Report, build
from latticeforge_trainer.publishing.folder import FolderDestination


class Destination(Protocol):
    """Where a model is published to.

    Attributes:
        url: Where a person finds it.
        reference: What loaders are given.
    """

    url: str
    reference: str

    def holds(self, commit: str) -> bool:
        """Whether what was published as `commit` is still there."""

    def publish(self, bundle: Bundle, digest: str, report: Report) -> tuple[str, bool]:
        """Make the destination equal to the bundle: its commit, and whether anything changed."""


def run(config: PublishConfig, store: Store, reporter: Reporter) -> tuple[PublishResult, bool]:
    """Publish, unless the destination already holds this model.

    Returns:
        Where the model is, and whether it had been there before.

    Raises:
        UserError: The destination refuses, or the model cannot be published as asked.
        NetworkError: The Hub failed for longer than our retries last.
    """
    destination = _destination(config, store)
    sealed = store.manifest(config.digest)
    if (
        sealed
        and isinstance(sealed.result, PublishResult)
        and destination.holds(sealed.result.commit)
    ):
        return sealed.result, True
    bundle = build(config, store, destination.reference, reporter.update)
    commit, changed = destination.publish(bundle, config.digest, reporter.update)
    result = PublishResult(
        url=destination.url, commit=commit, bytes=bundle.bytes, files=len(bundle.files)
    )
    with store.create(config.digest) as staging:
        for name in GENERATED & bundle.files.keys():
            shutil.copyfile(bundle.files[name].path, staging.folder / name)
        staging.seal(StepKind.PUBLISH, result)
    store.forget_work(config.digest)
    return result, not changed


def _destination(config: PublishConfig, store: Store) -> Destination:
    payload = config.payload
    if folder := store.resolve(payload.repository):
        return FolderDestination(folder)
    from latticeforge_trainer.publishing.hub import (  # noqa: PLC0415  (a folder needs no Hub client)
        HubDestination,
    )

    return HubDestination(payload.repository, config.runtime.token_env, private=payload.private)
