"""Tokens per second: against what was measured, and as properties of any run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.estimate.known import run
from tests.unit.estimate.test_memory import runs

from latticeforge_trainer.estimate.constants import FITTED
from latticeforge_trainer.estimate.memory import gpu_memory
from latticeforge_trainer.estimate.speed import speed

INT8 = {"states": "int8"}
H100 = {"accelerator": "H100"}


@pytest.mark.parametrize(
    ("model", "method", "size", "how", "tokens_per_second"),
    [
        # docs/performance.md; what docs/data/planner.jsonl holds is compared by
        # tests/unit/benchmarks.
        ("Qwen2.5-72B", "QLoRA", 1, {"sequence": 65_536}, 673),
        ("Qwen2.5-72B", "FP8", 1, {"recompute": "elementwise"}, 2_835),
        ("Qwen2.5-7B", "Full", 6, INT8, 12_592),
        ("Qwen2.5-7B", "LoRA", 4, H100, 17_541),
        ("Qwen2.5-7B", "LoRA", 4, H100 | {"processes": 2}, 34_998),
    ],
)
def test_what_was_measured_was_predicted(
    model: str, method: str, size: int, how: dict[str, Any], tokens_per_second: float
) -> None:
    predicted = speed(run(model, method, size, **how)).tokens_per_second
    assert predicted == pytest.approx(tokens_per_second, rel=0.08)


@given(runs())
def test_a_steps_parts_add_up_and_none_is_negative(arguments: dict[str, Any]) -> None:
    made = run(**arguments)
    found = speed(made)
    assert sum(part.seconds for part in found.terms) == pytest.approx(found.seconds_per_step)
    assert all(part.seconds > 0 and part.why for part in found.terms)
    tokens = made.payload.sequences_per_step * made.payload.sequence_length
    assert found.tokens_per_second == pytest.approx(tokens / found.seconds_per_step)
    assert speed(made, memory=gpu_memory(made)) == found


@given(runs(), st.integers(1, 32_768))
def test_short_documents_take_less_attention_and_no_more_of_anything_else(
    arguments: dict[str, Any], length: int
) -> None:
    made = run(**arguments)
    whole = {part.name: part.seconds for part in speed(made, 10**6).terms}
    short = {part.name: part.seconds for part in speed(made, length).terms}
    changed = {name for name in whole if whole[name] != short.get(name)}
    assert changed <= {"attention", "waiting for the host"}
    assert short["attention"] <= whole["attention"]


def test_recomputed_layers_cost_a_third_more_products_over_frozen_weights() -> None:
    kept, again = (
        {
            part.name: part.seconds
            for part in speed(run("Llama-3.1-70B", "FP8", recompute=mode)).terms
        }
        for mode in ("elementwise", "layers")
    )
    # Two more FLOPs for each weight of the layers beside four; none for the head.
    assert 1.4 < again["products"] / kept["products"] < 1.5
    assert again["attention"] / kept["attention"] == pytest.approx(9 / 7)


def test_a_small_model_waits_for_the_host() -> None:
    names = {part.name for part in speed(run("Qwen2.5-0.5B", "LoRA", 1)).terms}
    assert "waiting for the host" in names
    names = {part.name for part in speed(run("Qwen2.5-7B", "LoRA", 4)).terms}
    assert "waiting for the host" not in names


def test_fp8_products_are_faster_only_where_the_chip_has_them() -> None:
    def products(accelerator: str, method: str) -> float:
        found = speed(run("Llama-3.1-8B", method, 2, accelerator=accelerator, recompute="layers"))
        return next(part.seconds for part in found.terms if part.name == "products")

    assert products("H200", "FP8") < 0.6 * products("H200", "LoRA")
    assert products("A100", "FP8") == products("A100", "LoRA")


def test_one_node_talks_faster_than_two() -> None:
    near = speed(run("Qwen2.5-72B", "Full", zero_stage=3, processes=8, nodes=1))
    far = speed(run("Qwen2.5-72B", "Full", zero_stage=3, processes=4, nodes=2))
    assert near.tokens_per_second > 1.3 * far.tokens_per_second


def test_offloaded_states_are_updated_on_the_host() -> None:
    here, there = (
        {
            part.name: part.seconds
            for part in speed(
                run("Qwen2.5-72B", "Full", zero_stage=3, processes=8, offload=offload)
            ).terms
        }
        for offload in ("none", "optimizer")
    )
    assert there["update"] > 72.7e9 / FITTED.host_update > 50 * here["update"]


@given(runs(), st.floats(0.1, 0.9))
def test_what_reaches_less_of_its_data_sheet_is_slower(
    arguments: dict[str, Any], share: float
) -> None:
    slower = replace(FITTED, products=FITTED.products * share, attention=FITTED.attention * share)
    made = run(**arguments)
    least = speed(made).seconds_per_step * (1 - 1e-9)  # sums are rounded
    assert speed(made, constants=slower).seconds_per_step >= least
