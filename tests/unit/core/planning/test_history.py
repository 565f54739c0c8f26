"""What finished runs say of the next."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.core.planning.cases import asked

from latticeforge_operator.api import TrainingStatus
from latticeforge_operator.core.planning import History, Measured, measured_in
from latticeforge_trainer.contract import Method


def measured(ratio: float, base: str = "owner/base", pool: str = "h200") -> Measured:
    return Measured(base, Method.LORA, pool, ratio)


@pytest.mark.parametrize(
    ("runs", "value", "count"),
    [
        ([], 1.0, 0),
        ([measured(0.8)], 0.8, 1),
        ([measured(0.8), measured(0.9), measured(1.4)], 0.9, 3),
        ([measured(0.8), measured(2.0, base="owner/other")], 0.8, 1),
        ([measured(2.0, base="owner/other")], 2.0, 1),
        ([measured(2.0, pool="h100")], 1.0, 0),
    ],
    ids=["none", "one", "the median", "the same base first", "another base", "another pool"],
)
def test_the_nearest_runs_count(runs: list[Measured], value: float, count: int) -> None:
    factor = History(tuple(runs)).factor("owner/base", Method.LORA, "h200")
    assert (factor.value, factor.runs) == (value, count)


def status(result: dict[str, Any] | None, phase: str = "Done", **planned: Any) -> TrainingStatus:
    stage = {"name": "one", "tokensPerSecond": 1000.0} | planned
    step = {"name": "one/train", "digest": "d", "phase": phase, "result": result}
    plan = {"pool": "h200", "gpus": 8, "steps": [], "stages": [stage]}
    return TrainingStatus.model_validate({"steps": [step], "plan": plan})


@pytest.mark.parametrize(
    ("seen", "ratios"),
    [
        (status({"tokensPerSecond": 800.0}), [0.8]),
        (status({"tokensPerSecond": 800.0}, speedFactor=0.5), [0.4]),
        (status(None), []),
        (status({"tokensPerSecond": 800.0}, phase="Reused"), []),
        (status({"tokensPerSecond": 10.0}), []),
        (status({"tokensPerSecond": 800.0}, tokensPerSecond=None), []),
        (TrainingStatus(), []),
    ],
    ids=[
        "measured by predicted",
        "predicted by the model alone",
        "not finished",
        "reused: measured elsewhere",
        "too far off to be the model's error",
        "not planned",
        "an old status",
    ],
)
def test_ratios_are_of_the_model_alone(seen: TrainingStatus, ratios: list[float]) -> None:
    found = list(measured_in(asked(method="LoRA"), seen))
    assert [m.ratio for m in found] == pytest.approx(ratios)
    assert all((m.base, m.method, m.pool) == ("owner/base", Method.LORA, "h200") for m in found)
