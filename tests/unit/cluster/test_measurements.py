"""What stacks have measured reaches the plans of others."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.core.builders import spec, stage

from latticeforge_operator.cluster import measurements
from latticeforge_operator.cluster.measurements import Measurements
from latticeforge_trainer.contract import Method, TrainResult

KEY = ("default", "elle")


def stack(speed: float | None = 900.0, *, digest: str = "d", **step: Any) -> dict[str, Any]:
    """A stack whose one stage was planned at 1,000 tokens/s."""
    result = TrainResult(
        steps=1, tokens=1, first_loss=2, final_loss=1, seconds=1, tokens_per_second=speed or 0
    )
    train: dict[str, Any] = {"name": "one/train", "digest": digest, "phase": "Done"}
    if speed is not None:
        train["result"] = result.to_json()
    plan = {
        "pool": "h200",
        "gpus": 1,
        "steps": [],
        "stages": [{"name": "one", "tokensPerSecond": 1000.0}],
    }
    return {"spec": spec(stage("one")), "status": {"plan": plan, "steps": [train | step]}}


def factor(measured: Measurements) -> tuple[float, int]:
    found = measured.history.factor("owner/base", Method.LORA, "h200")
    return found.value, found.runs


def test_a_finished_step_counts_until_its_stack_is_gone() -> None:
    measured = Measurements()
    measured.see(KEY, stack(None))
    assert factor(measured) == (1.0, 0)
    measured.see(KEY, stack())
    measured.see(("default", "other"), stack(700.0))
    assert factor(measured) == (0.8, 2)
    measured.see(KEY, stack(800.0, digest="another"))
    assert factor(measured) == (0.75, 2)
    measured.see(KEY, None)
    assert factor(measured) == (0.7, 1)


def test_what_was_reused_was_not_measured_here() -> None:
    measured = Measurements()
    measured.see(KEY, stack(phase="Reused"))
    assert factor(measured) == (1.0, 0)


def test_what_cannot_be_read_says_nothing() -> None:
    measured = Measurements()
    measured.see(KEY, stack() | {"spec": {"stages": "none"}})
    assert measured.history.measured == ()


def test_the_newest_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measurements, "NEWEST", 2)
    measured = Measurements()
    for number, speed in enumerate((500.0, 800.0, 1000.0)):
        measured.see(("default", str(number)), stack(speed))
    assert factor(measured) == (0.9, 2)


def test_a_status_without_another_trained_step_is_not_read_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    measured = Measurements()
    measured.see(KEY, stack())
    before = measured.history
    monkeypatch.setattr(measurements, "_measured", lambda _: pytest.fail("read again"))
    measured.see(KEY, stack(message="nothing new"))
    assert measured.history is before
