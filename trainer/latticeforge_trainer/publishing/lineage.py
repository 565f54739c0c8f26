"""Where a model comes from: what the store remembers of each stage, for the card and the record."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, TypeVar

from latticeforge_trainer.artifacts import Store
from latticeforge_trainer.contract import (
    EvaluateResult,
    ModelFacts,
    PrepareResult,
    PublishConfig,
    Score,
    StageRecord,
    TrainResult,
)

R = TypeVar("R", PrepareResult, TrainResult, EvaluateResult)

LOSSES = "losses.jsonl"
"""The file of a train artifact that holds one JSON object per optimizer step."""


@dataclass(frozen=True)
class Stage:
    """One stage, with those of its results that the store still holds."""

    record: StageRecord
    prepared: PrepareResult | None
    trained: TrainResult | None
    evaluated: EvaluateResult | None
    losses: list[tuple[int, float]]
    """(step, loss) of every optimizer step, in order."""


@dataclass(frozen=True)
class Lineage:
    """A model's whole descent.

    Attributes:
        base: The base model as its user named it.
        base_revision: The commit, or a fingerprint of a local folder.
        base_hub_id: The base's Hub repository; None for a local folder.
        base_reference: What loaders are given: the Hub repository, or the absolute folder.
        facts: What `prepare` learned of the base; None when no prepare artifact is left.
        stages: In the order they were trained.
    """

    base: str
    base_revision: str
    base_hub_id: str | None
    base_reference: str
    facts: ModelFacts | None
    stages: list[Stage]

    def scores(self) -> dict[str, dict[str, Score]]:
        """Model name → suite → score: the base first, then the stages in order.

        A model scored in several tables (the base is, at every stage) keeps its latest figure.
        """
        rows: dict[str, dict[str, Score]] = {
            name: {} for name in ("base", *(stage.record.name for stage in self.stages))
        }
        tables = [stage.evaluated.table for stage in self.stages if stage.evaluated is not None]
        for row in (row for table in tables for row in table):
            rows.setdefault(row.model, {}).update({score.suite: score for score in row.scores})
        return {name: row for name, row in rows.items() if row}

    def to_json(self) -> dict[str, Any]:
        """The machine-readable lineage that is published beside the card."""
        return {
            "base": {"model": self.base, "revision": self.base_revision},
            "stages": [
                stage.record.to_json()
                | ({"trained": stage.trained.to_json()} if stage.trained else {})
                | ({"evaluated": stage.evaluated.to_json()} if stage.evaluated else {})
                for stage in self.stages
            ],
        }


def gather(config: PublishConfig, store: Store) -> Lineage:
    """Read the lineage of the model that a publish step names.

    Results that retention has removed from the store are left out, never a reason to fail: the
    weights are what is published.
    """
    runtime = config.runtime
    stages = [_stage(record, store) for record in runtime.stages]
    base = runtime.base.model
    folder = store.resolve(base)
    return Lineage(
        base=base,
        base_revision=runtime.model.base_revision,
        base_hub_id=base if folder is None else None,
        base_reference=str(folder or base),
        facts=next((stage.prepared.base for stage in stages if stage.prepared), None),
        stages=stages,
    )


def _stage(record: StageRecord, store: Store) -> Stage:
    return Stage(
        record=record,
        prepared=_result(store, record.prepare, PrepareResult),
        trained=_result(store, record.train, TrainResult),
        evaluated=_result(store, record.evaluate, EvaluateResult),
        losses=_losses(store, record.train),
    )


def _result(store: Store, digest: str | None, kind: type[R]) -> R | None:
    manifest = store.manifest(digest) if digest else None
    return manifest.result if manifest and isinstance(manifest.result, kind) else None


def _losses(store: Store, digest: str) -> list[tuple[int, float]]:
    manifest = store.manifest(digest)
    if manifest is None or LOSSES not in manifest.files:
        return []
    lines = (store.path(digest) / LOSSES).read_text().splitlines()
    return [(entry["step"], entry["loss"]) for entry in map(json.loads, lines)]
