"""`train`: one stage's weights, by `Full`, `LoRA` or `QLoRA`.

    python -m latticeforge_trainer train --config step.json --store DIR

The artifact holds `model/` (Full) or `adapter/` (LoRA, QLoRA) and `losses.jsonl`. One process
trains right here; more are started by `training.launch`, whose workers come back to this module.
"""

from __future__ import annotations

from latticeforge_trainer.artifacts import Store
from latticeforge_trainer.contract import StepResult, TrainConfig
from latticeforge_trainer.progress import Reporter


def run(config: TrainConfig, store: Store, reporter: Reporter) -> tuple[StepResult, bool]:
    """Train one stage, or find it trained; see `latticeforge_trainer.steps.Step`."""
    manifest = store.manifest(config.digest)
    if manifest is not None and manifest.result is not None:
        return manifest.result, True

    from latticeforge_trainer.training import launch, process  # noqa: PLC0415  (after the look-up)

    strategy = config.runtime.strategy
    if launch.needs_workers(strategy):
        return launch.run_workers(config, store), False
    with launch.reporting_to_launcher():
        process.settle_environment(strategy.processes)
        from latticeforge_trainer.training.attempt import train  # noqa: PLC0415  (imports torch)

        return train(config, store, reporter), False
