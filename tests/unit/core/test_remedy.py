"""What the next attempt does differently, and when there is none."""

from __future__ import annotations

import pytest

from latticeforge_operator.api.status import Attempt
from latticeforge_operator.core.policies.remedy import avoided_nodes, hopeless, strategy_after
from latticeforge_trainer.contract import Recompute, StepKind, Strategy


def attempts(*outcomes: str, counted: bool = True) -> list[Attempt]:
    return [
        Attempt(number=i, job=f"job-{i}", outcome=outcome, reason="so it was", counted=counted)
        for i, outcome in enumerate(outcomes)
    ]


@pytest.mark.parametrize(
    ("outcomes", "micro_batch", "recompute"),
    [
        ([], 8, "auto"),
        (["Failed"], 8, "auto"),
        (["OutOfMemory"], 4, "auto"),
        (["OutOfMemory", "Preempted", "OutOfMemory"], 2, "auto"),
        (["OutOfMemory"] * 3, 1, "auto"),
        (["OutOfMemory"] * 4, 1, "layers"),
        (["OutOfMemory"] * 9, 1, "offload"),
    ],
)
def test_memory_that_ran_out_is_saved(
    outcomes: list[str], micro_batch: int, recompute: str
) -> None:
    planned = Strategy(micro_batch=8, processes=2)
    strategy = strategy_after(attempts(*outcomes), planned)
    expected = {"micro_batch": micro_batch, "recompute": Recompute(recompute)}
    assert strategy == planned.model_copy(update=expected)


def test_what_is_not_counted_any_more_needs_no_remedy() -> None:
    forgiven = attempts("OutOfMemory", "OutOfMemory", counted=False)
    assert strategy_after(forgiven, Strategy(micro_batch=8)).micro_batch == 8


@pytest.mark.parametrize(
    ("outcomes", "why"),
    [
        (["Failed"] * 4, None),
        (["UserError"], "so it was"),
        (["Numerical"], None),
        (["Numerical", "Failed", "Numerical"], "lower learningRate"),
        (["Numerical", "Numerical", "Failed"], None),
        (["OutOfMemory"] * 3, None),
        (["OutOfMemory"] * 4, None),
        (["OutOfMemory"] * 5, "ask for more GPUs"),
    ],
)
def test_it_is_given_up_when_nothing_would_change(outcomes: list[str], why: str | None) -> None:
    planned = Strategy(micro_batch=4)
    told = hopeless(StepKind.TRAIN, attempts(*outcomes), planned)
    assert (told is None) if why is None else (told is not None and why in told)


def test_an_uncounted_end_is_never_hopeless() -> None:
    assert hopeless(StepKind.TRAIN, attempts("UserError", counted=False), Strategy()) is None


def test_only_training_has_a_micro_batch_to_halve() -> None:
    spent = attempts(*["OutOfMemory"] * 3)
    assert hopeless(StepKind.EVALUATE, spent, Strategy()) is None


def test_nodes_where_it_stalled_are_avoided() -> None:
    stalled = Attempt(number=0, job="a", outcome="Stalled", nodes=["n2", "n1"])
    failed = Attempt(number=1, job="b", outcome="Failed", nodes=["n3"])
    assert avoided_nodes([stalled, failed, stalled]) == ("n1", "n2")
    assert avoided_nodes([]) == ()
