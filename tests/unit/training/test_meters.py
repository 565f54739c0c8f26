"""Meters say what was measured and counted, over the last steps, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from tests.unit.estimate.test_shapes import LLAMA_8B, shape
from transformers import LlamaConfig, MambaConfig

from latticeforge_trainer.contract import Method, PhaseTimes, Progress, StepKind, TrainMeters
from latticeforge_trainer.estimate.flops import training_flops
from latticeforge_trainer.progress import Reporter
from latticeforge_trainer.training.meters import (
    WINDOW,
    ProgressMeter,
    Yardstick,
    document_lengths,
    stage_result,
)
from latticeforge_trainer.training.state import StepRecord

CPU = Yardstick(shape(LLAMA_8B), Method.LORA, processes=2, device=torch.device("cpu"))


@pytest.fixture
def h100(monkeypatch: pytest.MonkeyPatch) -> Yardstick:
    """Two H100 as torch shows them, the first with 60 bytes in tensors and 64 reserved."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 60)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda _: 64)
    return Yardstick(shape(LLAMA_8B), Method.LORA, processes=2, device=torch.device("cuda", 0))


def record(step: int, **fields: Any) -> StepRecord:
    values = {"loss": 0.5, "learning_rate": 1e-4, "grad_norm": 1.0, "tokens": 100, "seconds": 2.0}
    return StepRecord(step=step, **(values | fields))


class Sink:
    def __init__(self) -> None:
        self.sent: list[Progress] = []

    def send(self, progress: Progress) -> None:
        self.sent.append(progress)


def last_report(records: Sequence[StepRecord], yardstick: Yardstick, total: int = 400) -> Progress:
    sink = Sink()
    meter = ProgressMeter(Reporter(StepKind.TRAIN, "d" * 64, sink, interval=0), total, yardstick)
    for one in records:
        meter.step_done(one, 7)
    return sink.sent[-1]


def gauges(records: Sequence[StepRecord], yardstick: Yardstick) -> TrainMeters:
    meters = last_report(records, yardstick).train
    assert meters is not None
    return meters


def test_throughput_is_that_of_the_last_steps() -> None:
    slow = [record(step, seconds=50) for step in range(1, 6)]
    fast = [record(step) for step in range(6, 6 + WINDOW)]
    assert gauges(slow + fast, CPU).tokens_per_second == 50
    assert gauges([*slow, *fast[:-5]], CPU).tokens_per_second == pytest.approx(2000 / 280)


def test_a_checkpoint_delays_the_end_but_does_not_slow_training() -> None:
    phases = PhaseTimes(forward=0.5, backward=1, checkpoint=6)
    records = [record(1), record(2, seconds_by_phase=phases)]
    report = last_report(records, CPU, total=12)
    assert report.train is not None
    assert report.train.tokens_per_second == 50
    assert report.eta_seconds == 10 * (2 + 2 + 6) / 2
    assert report.train.phases == PhaseTimes(forward=0.05, backward=0.1, checkpoint=0.6)


def test_mfu_is_a_share_of_all_gpus(h100: Yardstick) -> None:
    peak = 2 * 989e12
    meters = gauges([record(1, flops=peak), record(2, flops=peak / 2)], h100)
    assert meters.model_flops_per_second == pytest.approx(0.375 * peak)
    assert meters.mfu == pytest.approx(0.375)
    assert meters.peak_memory_allocated_bytes == 60
    assert meters.peak_memory_reserved_bytes == 64


def test_steps_whose_work_is_not_known_do_not_count_as_idle(h100: Yardstick) -> None:
    meters = gauges([record(1), record(2, flops=989e12)], h100)
    assert meters.mfu == pytest.approx(0.25)


def test_what_is_not_known_is_left_out(h100: Yardstick, monkeypatch: pytest.MonkeyPatch) -> None:
    at_once = gauges([record(1, seconds=0, flops=5)], CPU).to_json()
    assert at_once.keys() == {
        *("step", "totalSteps", "loss", "learningRate", "gradNorm", "checkpointStep")
    }
    assert gauges([record(1, flops=8)], CPU).model_flops_per_second == 4
    assert gauges([record(1, flops=8)], CPU).mfu is None
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA Z1")
    unknown = gauges([record(1, flops=8)], h100)
    assert (unknown.mfu, unknown.peak_memory_reserved_bytes) == (None, 64)


def test_a_stages_result_is_of_all_its_steps(h100: Yardstick) -> None:
    history = [
        record(1, loss=2, flops=989e12, seconds_by_phase=PhaseTimes(forward=0.5, data=0.25)),
        record(2, loss=1, flops=989e12, seconds_by_phase=PhaseTimes(forward=1, checkpoint=3)),
        record(3),
    ]
    result = stage_result(history, h100)
    assert (result.steps, result.tokens, result.seconds) == (3, 300, 6)
    assert (result.first_loss, result.final_loss, result.tokens_per_second) == (2, 0.5, 50)
    assert result.mfu == pytest.approx(0.25)
    assert result.seconds_by_phase == PhaseTimes(data=0.25, forward=1.5, checkpoint=3)
    assert (result.gpu, result.processes) == ("NVIDIA H100 80GB HBM3", 2)
    assert result.peak_memory_reserved_bytes == 64


class Rows:
    """Three packed sequences; the last three tokens of the second are padding."""

    lengths = np.array([6, 3, 6], np.int32)

    def __len__(self) -> int:
        return 3

    def batch(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        rows = [[0, 1, 2, 0, 0, 1], [0, 1, 2, 0, 1, 2], [0, 1, 2, 3, 4, 5]]
        return {"position_ids": torch.tensor(rows)[list(indices)]}


def test_documents_are_told_apart_by_where_their_positions_begin() -> None:
    assert document_lengths(Rows(), [0, 1, 2]) == [3, 1, 2, 3, 6]
    assert document_lengths(Rows(), [2, 1]) == [6, 3]


def test_work_is_counted_for_the_documents_and_not_for_their_padding() -> None:
    model = shape(LLAMA_8B)
    assert CPU.flops(Rows(), [0, 1]) == training_flops(model, Method.LORA, [3, 1, 2, 3])
    config = LlamaConfig(**{k: v for k, v in LLAMA_8B.items() if k != "model_type"})
    made = Yardstick.of(config, Method.FULL, 1, torch.device("cpu"))
    assert made.flops(Rows(), [2]) == training_flops(model, Method.FULL, [6])
    unknown = Yardstick.of(MambaConfig(), Method.FULL, 1, torch.device("cpu"))
    assert unknown.flops(Rows(), [0]) is None


def test_the_last_measured_held_out_loss_stays_in_sight() -> None:
    before, measured, after = record(1), record(2, validation_loss=0.7), record(3)

    assert gauges([before], CPU).validation_loss is None
    assert gauges([before, measured, after], CPU).validation_loss == 0.7
    assert stage_result([before, measured], CPU).validation_loss == 0.7
    assert stage_result([before], CPU).validation_loss is None


def test_validation_is_no_part_of_speed_but_of_the_time_left() -> None:
    times = PhaseTimes(forward=2.0, validation=6.0)
    report = last_report([record(1, seconds_by_phase=times)], CPU, total=2)

    assert report.eta_seconds == 8.0
    assert report.train is not None
    assert report.train.tokens_per_second == 50
    assert report.train.phases == PhaseTimes(forward=0.25, validation=0.75)
