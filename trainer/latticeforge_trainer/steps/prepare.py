"""The `prepare` step: everything that can be refused before GPUs are asked for, then the data.

    resolve      which commit of the base and of each source; the artifact's digest follows
    preflight    destination, config, weights, method; the base is reported, so that the operator
                 plans with it; every row of every source; chat template
    tokenize     render, mix, pack in memory
    download     the base's weights
    write        the packed arrays and, last, the manifest

The order is that of cost: nothing large moves before everything small has been found right. A
finished artifact is found by its digest after `resolve`, without a tokenizer or torch.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from latticeforge_trainer.artifacts import Store
from latticeforge_trainer.contract import (
    PrepareConfig,
    PreparePayload,
    PrepareResult,
    PublishPayload,
    Recipe,
    StepKind,
    StepResult,
    step_digest,
)
from latticeforge_trainer.data.sources import Source, locate_source
from latticeforge_trainer.errors import UserError
from latticeforge_trainer.estimate.config_fields import size_fields
from latticeforge_trainer.models.base import Base, locate_base
from latticeforge_trainer.models.changed import Changes
from latticeforge_trainer.models.facts import check_method, read_config
from latticeforge_trainer.progress import Reporter


def run(config: PrepareConfig, store: Store, reporter: Reporter) -> tuple[PrepareResult, bool]:
    """Prepare a stage's base and data, or find them prepared.

    Raises:
        UserError: Something in the spec, the base or the data cannot work; says what and where.
        NetworkError: The Hub does not answer.
    """
    reporter.update("resolving revisions")
    payload = config.payload
    base = locate_base(payload.base, store)
    changes = Changes.locate(payload.tokenizer, store)
    sources = [locate_source(spec, store) for spec in payload.data]
    digest = artifact_digest(payload, base, sources, changes)
    if config.runtime.destination:
        check_destination(config.runtime.destination, store)
    result = _finished(store, digest, base)
    if reused := result is not None:
        check_method(
            base.name,
            result.base.quantization,
            config.runtime.method,
            merges=config.runtime.merges,
        )
    else:
        from latticeforge_trainer.preparation import Preparation  # noqa: PLC0415  (heavy)

        result = Preparation(config, store, reporter, base, changes, sources, digest).run()
    return result.model_copy(update={"found": look_up(config, digest, store)}), reused


def artifact_digest(
    payload: PreparePayload, base: Base, sources: Sequence[Source], changes: Changes | None
) -> str:
    """The digest of the packed data: the payload with every revision resolved."""
    data = [source.spec.model_copy(update={"revision": source.revision}) for source in sources]
    resolved = payload.model_copy(
        update={
            "base": payload.base.model_copy(update={"revision": base.revision}),
            "tokenizer": changes and changes.resolved,
            "data": data,
        }
    )
    return step_digest(StepKind.PREPARE, resolved.to_json(), [])


def look_up(config: PrepareConfig, digest: str, store: Store) -> dict[str, StepResult]:
    """Results of later steps that are complete in the store, by digest.

    Args:
        config: Its runtime has the recipes, and the digests of prepare steps done earlier.
        digest: Of this step's artifact.
        store: Where to look.
    """
    known = {**config.runtime.known, config.runtime.step_name: digest}
    found: dict[str, StepResult] = {}
    for recipe in config.runtime.lookup:
        if any(name not in known for name in recipe.inputs):
            continue
        known[recipe.name] = recipe_digest(recipe, known)
        manifest = store.manifest(known[recipe.name])
        if manifest and manifest.result:
            found[manifest.digest] = manifest.result
    return found


def recipe_digest(recipe: Recipe, known: dict[str, str]) -> str:
    """The digest of a recipe's result, from those of its inputs."""
    return step_digest(recipe.kind, recipe.payload, [known[name] for name in recipe.inputs])


def check_destination(destination: PublishPayload, store: Store) -> None:
    """Check that the finished model can be published, without writing anything.

    Raises:
        UserError: The folder is not writable, or the token may not write to the repository.
    """
    folder = store.resolve(destination.repository)
    if folder is None:
        from latticeforge_trainer import hub  # noqa: PLC0415  (only for Hub destinations)

        hub.check_destination(destination.repository)
        return
    parent = next(path for path in (folder, *folder.parents) if path.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(f"publish.repository {destination.repository}: {parent} is not writable")


def _finished(store: Store, digest: str, base: Base) -> PrepareResult | None:
    """The result of an earlier run, if data and base are still there."""
    manifest = store.manifest(digest)
    if manifest is None or not isinstance(manifest.result, PrepareResult):
        return None
    brought: dict[str, int] = manifest.extra["base"]
    whole = all(_size(base.folder / name) == size for name, size in brought.items())
    folder = store.resolve(manifest.result.base.path)  # not the base's own if that is changed
    if not (whole and folder and (folder / "config.json").is_file()):
        return None
    return _with_config(manifest.result, base)


def _with_config(result: PrepareResult, base: Base) -> PrepareResult:
    """The result with the base's sizes, which earlier versions did not keep."""
    if result.base.config is not None:
        return result
    sizes = size_fields(read_config(base.folder, base.name))
    return result.model_copy(update={"base": result.base.model_copy(update={"config": sizes})})


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None
