"""Host memory and disk: the arithmetic of their largest terms."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from tests.unit.estimate.known import MODELS, run
from tests.unit.estimate.test_memory import runs

from latticeforge_trainer.contract import TrainPayload
from latticeforge_trainer.estimate.base_model import read_base_model
from latticeforge_trainer.estimate.disk import base_disk, disk
from latticeforge_trainer.estimate.duration import (
    checkpoint_seconds,
    download_seconds,
    evaluation_seconds,
    loading_seconds,
    merge_seconds,
    upload_seconds,
    writing_seconds,
)
from latticeforge_trainer.estimate.host import host_memory, merge_host_memory
from latticeforge_trainer.estimate.terms import GIB, Term, total

BIG = "Qwen2.5-72B"
PARAMETERS = 72_706_203_648


def by_name(terms: tuple[Term, ...]) -> dict[str, int]:
    return {term.name: term.bytes for term in terms}


@given(runs())
def test_every_term_takes_something_and_says_why(arguments: dict[str, Any]) -> None:
    terms = host_memory(run(**arguments))
    assert all(term.bytes > 0 and term.why for term in terms)
    assert total(terms) >= arguments["processes"] * 4 * GIB


def test_states_that_leave_the_gpus_are_on_the_host() -> None:
    terms = by_name(host_memory(run(BIG, "Full", zero_stage=3, processes=8, offload="all")))
    own = -(-PARAMETERS // 8)
    assert terms["moments"] == 8 * 8 * own
    # 18 sub-groups of 500 million numbers, each page-locked in 2 GiB, and the rest.
    assert terms["32-bit weights"] == 8 * (18 * 2**31 + 2**29)
    # As many again, and all of them in one piece on their way: 36.4 GB in 64 GiB.
    assert terms["gradients"] == terms["32-bit weights"] + 8 * 64 * GIB
    assert terms["16-bit weights"] == 8 * 32 * GIB


def test_nothing_leaves_the_gpus_that_is_not_asked_to() -> None:
    assert by_name(host_memory(run(BIG, "QLoRA"))).keys() == {
        "processes", "reading weights", "checkpoint",
    }  # fmt: skip


def test_layers_inputs_wait_in_page_locked_memory() -> None:
    of = run(BIG, "QLoRA", sequence=10_000, recompute="offload")
    # 163.84 MB for each layer, in 256 MiB.
    assert by_name(host_memory(of))["layers' inputs"] == 80 * 2**28


@pytest.mark.parametrize(
    ("model", "method", "how", "size"),
    [
        (BIG, "QLoRA", {}, 9 * 2**28 + 2**27),  # a state of 2.53 GB, locked in pieces of 256 MiB
        ("Qwen2.5-7B", "Full", {}, 4 * GIB),  # pieces of a state of 91 GB
        (BIG, "Full", {}, 19 * 2**28),  # the embedding alone has 4.98 GB, and so has the head
        (BIG, "QLoRA", {"lora": {"modules_to_save": ["lm_head"]}}, 19 * 2**28),
        # DeepSpeed gives the first process a state of 0.63 GB whole, to be copied once more.
        (BIG, "QLoRA", {"lora": {"rank": 4}, "zero_stage": 2}, 12 * 52_633_600 + 5 * 2**27),
        ("Qwen2.5-7B", "Full", {"zero_stage": 2, "processes": 2}, 8 * GIB),  # in each process
    ],
)
def test_a_checkpoint_passes_the_host_in_pieces(
    model: str, method: str, how: dict[str, Any], size: int
) -> None:
    assert by_name(host_memory(run(model, method, **how))).get("checkpoint", 0) == size


def test_merging_needs_a_file_and_a_weight_and_reads_the_model() -> None:
    terms = by_name(merge_host_memory(read_base_model(MODELS[BIG])))
    assert terms["model"] == 2 * PARAMETERS
    assert terms["shard"] == 4 * GIB
    assert terms["weight"] == 10 * 152_064 * 8192


def payload(method: str, states: str = "fp32") -> TrainPayload:
    return run("Qwen2.5-7B", method, states=states).payload


@pytest.mark.parametrize(
    ("method", "states", "each"),
    [("Full", "fp32", 12), ("Full", "int8", 6.125), ("LoRA", "fp32", 12)],
)
def test_a_checkpoint_holds_masters_and_moments(method: str, states: str, each: float) -> None:
    model = read_base_model(MODELS["Qwen2.5-7B"])
    terms = by_name(disk(model, payload(method, states), packed_tokens=0))
    trained = 7_615_616_512 if method == "Full" else 40_370_176
    assert terms["checkpoints"] == 3 * int(each * trained)
    assert terms["trained weights"] == 2 * trained
    assert "packed data" not in terms


@pytest.mark.parametrize(
    ("how", "left", "seconds"),
    [
        ({"zero_stage": 3, "processes": 8}, None, 0),
        ({"zero_stage": 3, "processes": 8}, 1800 * GIB, 0),
        ({"zero_stage": 3, "processes": 8}, 1000 * GIB, (12 * PARAMETERS - 500 * GIB) / 1e9),
        # A state that is cut has the room of both nodes, a whole one that of the first.
        ({"zero_stage": 3, "processes": 8, "nodes": 2}, 1000 * GIB, 0),
        ({"processes": 8, "nodes": 2}, 1000 * GIB, (12 * PARAMETERS - 500 * GIB) / 1e9),
    ],
)
def test_training_waits_for_what_the_host_has_no_room_for(
    how: dict[str, Any], left: int | None, seconds: float
) -> None:
    made = run(BIG, "Full", **how)
    assert checkpoint_seconds(made, left) == pytest.approx(seconds)
    assert writing_seconds(made) == pytest.approx(12 * PARAMETERS / 1e9)


def test_what_is_merged_is_a_whole_model_more() -> None:
    model = read_base_model(MODELS["Qwen2.5-7B"])
    apart, merged = (
        total(disk(model, payload("LoRA"), packed_tokens=1000, merges=merges))
        for merges in (False, True)
    )
    assert merged - apart == 2 * 7_615_616_512
    assert base_disk(model).bytes == 2 * 7_615_616_512


def test_a_larger_model_takes_longer_at_everything() -> None:
    small, large = (read_base_model(MODELS[name]) for name in ("Qwen2.5-7B", BIG))
    assert download_seconds(small) < download_seconds(large)
    assert merge_seconds(small) < merge_seconds(large)
    assert loading_seconds(run("Qwen2.5-7B", "LoRA")) < loading_seconds(run(BIG, "LoRA"))
    assert upload_seconds(10**9) < upload_seconds(10**11)
    asked: dict[str, Any] = {"problems": 33, "tokens": 100}
    once = evaluation_seconds(small, **asked)
    assert once < evaluation_seconds(large, **asked)
    assert once < evaluation_seconds(small, **asked, models=2)
    assert once == evaluation_seconds(small, **asked | {"problems": 64})
    assert once < evaluation_seconds(small, **asked | {"problems": 65})
