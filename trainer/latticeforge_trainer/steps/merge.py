"""`merge`: a stage's adapter folded into the 16-bit model under it.

    python -m latticeforge_trainer merge --config step.json --store DIR

The artifact holds `model/`. It is sealed only after the merged model was compared with base plus
adapter on held-out prompts.
"""

from __future__ import annotations

from latticeforge_trainer.artifacts import Store
from latticeforge_trainer.contract import MergeConfig, MergeResult, StepKind, StepResult
from latticeforge_trainer.progress import Reporter

WRITTEN = 0.7
"""Share of the work that is done when the weights are written; the rest is the comparison."""


def run(config: MergeConfig, store: Store, reporter: Reporter) -> tuple[StepResult, bool]:
    """Merge one adapter, or find it merged; see `latticeforge_trainer.steps.Step`."""
    manifest = store.manifest(config.digest)
    if manifest is not None and manifest.result is not None:
        return manifest.result, True
    return _merge(config, store, reporter), False


def _merge(config: MergeConfig, store: Store, reporter: Reporter) -> MergeResult:
    # After the look-up: torch, transformers and PEFT take seconds to import.
    from latticeforge_trainer.models.loading import (  # noqa: PLC0415
        ADAPTER_FOLDER,
        MODEL_FOLDER,
        source_folder,
    )
    from latticeforge_trainer.models.merging import compare, merge_adapter  # noqa: PLC0415

    runtime = config.runtime
    base = source_folder(store, runtime.base_path, runtime.upstream_model)
    adapter = store.require(runtime.adapter, "the adapter to merge") / ADAPTER_FOLDER
    with store.create(config.digest) as staging:
        target = staging.folder / MODEL_FOLDER
        size = merge_adapter(
            base,
            adapter,
            target,
            lambda share: reporter.update("folding the adapter into the weights", share * WRITTEN),
        )
        reporter.update("comparing the merged model with base plus adapter", WRITTEN)
        parity = compare(base, adapter, target)
        result = MergeResult(
            bytes=size,
            max_logit_difference=parity.max_difference,
            top1_agreement=parity.top1_agreement,
        )
        staging.seal(StepKind.MERGE, result)
    return result
