"""The order of a step's parts: handed over first, read late, saved only when known to be good."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from latticeforge_trainer.contract import Method, TrainPayload
from latticeforge_trainer.errors import Interrupted, NumericalError, UserError
from latticeforge_trainer.training.batches import BatchPlan, equal_steps
from latticeforge_trainer.training.loop import CheckpointPolicy, Training
from latticeforge_trainer.training.meters import Yardstick
from latticeforge_trainer.training.process import StopSignal, World
from latticeforge_trainer.training.state import StepRecord, TrainState

STEPS = 6


class Rows:
    """A sequence for each step, one target in each."""

    lengths = np.full(STEPS, 4, np.int32)

    def __len__(self) -> int:
        return STEPS

    def batch(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        ids = torch.tensor(indices)[:, None].expand(-1, 4)
        positions = torch.arange(4).expand_as(ids)
        return {"input_ids": ids, "position_ids": positions, "loss_mask": positions == 3}


class Stage:
    """An engine, checkpoints and a hook that write down what happens to them."""

    device = torch.device("cpu")

    def __init__(
        self,
        nan_at: int | None = None,
        stop_at: int | None = None,
        fails_at: int | None = None,
        waits: float = 0.0,
        writes_until: int = 0,
    ) -> None:
        self.log: list[str] = []
        self.loss = nn.Dropout().eval()
        self.stop = StopSignal()
        self.committed: int | None = None
        self._nan_at, self._stop_at, self._fails_at = nan_at, stop_at, fails_at
        self._updates, self._writing = 0, 0
        self._waits, self._writes_until = waits, writes_until

    def forward(self, batch: Any, denominator: int) -> torch.Tensor:
        assert (denominator, self.loss.training) == (1, True)
        loss: torch.Tensor = batch.targets[0].float()
        return loss

    def backward(self, share: torch.Tensor, *, last: bool) -> None:
        assert last
        assert not share.requires_grad

    @property
    def is_writing(self) -> bool:
        return self._updates < self._writes_until

    @property
    def failed(self) -> bool:
        return self._updates == self._fails_at

    def before_update(self) -> float:
        self.log.append("wait")
        return self._waits

    def update(self, rate: float) -> torch.Tensor:
        self._updates += 1
        self.log.append(f"update {self._updates}")
        if self._updates == self._stop_at:
            self.stop.raised = True
        return torch.tensor(float("nan") if self._updates == self._nan_at else rate)

    def prepare(self) -> None:
        self.log.append("prepare")

    def save(self, state: TrainState) -> None:
        self.log.append(f"save {state.step}")
        self._writing = state.step

    def finish(self) -> None:
        self.log.append("finish")
        if self._fails_at is not None:
            raise UserError("no space left")
        self.committed = self._writing

    def close(self) -> None:
        self.log.append("close")
        self.committed = self._writing

    def step_done(self, record: StepRecord, checkpoint_step: int | None) -> None:
        self.log.append(f"record {record.step}")
        assert record.loss == record.step - 1
        assert record.tokens == 4
        assert checkpoint_step == self.committed


def training(stage: Any, every_steps: int | None = None, **fields: Any) -> Training:
    payload = TrainPayload(
        method=Method.FULL, learning_rate=1, sequence_length=4, global_batch_tokens=4
    )
    return Training(
        engine=stage,
        data=Rows(),
        payload=payload,
        plan=BatchPlan(equal_steps(STEPS, 1), micro_batch=1),
        world=World(0, 0, 1),
        state=TrainState(world=1, zero_stage=0, precision="fp32"),
        policy=CheckpointPolicy(every_steps, fields.pop("every_seconds", 1e9)),
        checkpoints=stage,
        stop=stage.stop,
        yardstick=Yardstick(None, Method.FULL, 1, torch.device("cpu")),
        hooks=[stage],
        **fields,
    )


def happened(stage: Stage) -> str:
    return ", ".join(entry for entry in stage.log if entry not in ("wait", "prepare"))


def test_a_step_is_read_after_the_next_was_handed_over() -> None:
    stage = Stage()

    training(stage).run()

    assert happened(stage) == (
        "update 1, update 2, record 1, update 3, record 2, update 4, record 3, "
        "update 5, record 4, update 6, record 5, record 6, finish, close, close"
    )
    assert stage.log[:2] == ["wait", "update 1"]


def test_what_is_saved_was_read_before() -> None:
    stage = Stage()

    training(stage, every_steps=2).run()

    assert happened(stage).startswith(
        "update 1, update 2, record 1, record 2, save 2, update 3, update 4, record 3, record 4, "
        "save 4, update 5, update 6, record 5, record 6, finish"
    )


def test_checkpoints_are_prepared_for_once_a_step_was_good() -> None:
    stage, broken = Stage(), Stage(nan_at=1)

    training(stage).run()
    with pytest.raises(NumericalError):
        training(broken).run()

    assert stage.log[2:6] == ["wait", "update 2", "prepare", "record 1"]
    assert "prepare" not in broken.log


@pytest.mark.parametrize("bad", [3, 4])
def test_no_checkpoint_sees_what_is_not_finite(bad: int) -> None:
    stage = Stage(nan_at=bad)

    with pytest.raises(NumericalError, match=f"step {bad} of 6.*checkpoint is of step 2"):
        training(stage, every_steps=2).run()

    assert [entry for entry in stage.log if "save" in entry] == ["save 2"]
    assert "record 2" in stage.log
    assert f"record {bad}" not in stage.log


def test_a_stop_saves_the_last_step_and_waits_for_the_disk() -> None:
    stage = Stage(stop_at=3)

    with pytest.raises(Interrupted, match="stopped after step 3 of 6"):
        training(stage).run()

    assert happened(stage).endswith("update 3, record 2, record 3, save 3, finish, close, close")


def test_a_checkpoint_that_could_not_be_written_ends_training_in_step() -> None:
    stage = Stage(fails_at=2)

    with pytest.raises(UserError, match="no space left"):
        training(stage).run()

    # Every process reads of it with step 2, while step 3 computes.
    assert "update 3" in stage.log
    assert "update 4" not in stage.log


def test_a_stop_in_the_last_step_saves_it() -> None:
    stage = Stage(stop_at=STEPS)

    with pytest.raises(Interrupted, match="stopped after step 6 of 6"):
        training(stage).run()

    assert f"save {STEPS}" in stage.log


def test_a_stop_before_the_first_step_saves_nothing() -> None:
    stage = Stage()
    stage.stop.raised = True

    with pytest.raises(Interrupted, match="stopped after step 0 of 6"):
        training(stage).run()

    assert happened(stage) == "finish, close, close"


def test_a_checkpoint_is_due_by_the_clock() -> None:
    stage = Stage()

    def clock() -> float:
        return 10.0 * stage.log.count("wait")

    training(stage, every_seconds=25, clock=clock).run()

    # Step 3 found it overdue, which every process reads with step 3, while step 4 computes.
    saves = [entry for entry in stage.log if "save" in entry]
    assert saves == ["save 4"]


def test_checkpoints_that_training_waits_for_are_fewer() -> None:
    stage = Stage()

    def clock() -> float:
        steps, saves = (sum(word in entry for entry in stage.log) for word in ("wait", "save"))
        return 10.0 * steps + 4.0 * saves

    training(stage, every_seconds=5, clock=clock).run()

    # Every step is longer than five seconds, but one that took four is followed by forty without.
    saves = [entry for entry in stage.log if "save" in entry]
    assert saves == ["save 2"]


def test_what_an_update_waited_for_a_copy_counts_as_well() -> None:
    def saves(waits: float) -> list[str]:
        stage = Stage(waits=waits)

        def clock() -> float:
            return 10.0 * stage.log.count("wait")

        training(stage, every_seconds=5, clock=clock).run()
        return [entry for entry in stage.log if "save" in entry]

    assert saves(0) == ["save 2", "save 4"]
    assert saves(4) == []  # forty seconds for each four, and it never catches up


def test_none_is_due_while_the_one_before_is_being_written() -> None:
    stage = Stage(writes_until=4)

    def clock() -> float:
        return 10.0 * stage.log.count("wait")

    training(stage, every_seconds=5, clock=clock).run()

    saves = [entry for entry in stage.log if "save" in entry]
    assert saves == ["save 5"]


def test_every_step_says_where_its_time_went() -> None:
    made = training(Stage(), every_steps=4)

    made.run()

    for record in made.state.history:
        phases = record.seconds_by_phase
        assert phases is not None
        spent = [phases.data, phases.forward, phases.backward, phases.optimizer]
        assert 0 < sum(part for part in spent if part is not None) <= record.seconds
