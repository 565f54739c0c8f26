"""A GPU's memory: against what was measured, and as properties of any run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tests.unit.estimate.known import MODELS, run

from latticeforge_trainer.contract import Offload, Recompute
from latticeforge_trainer.estimate.activations import layer_memory
from latticeforge_trainer.estimate.chips import CHIPS, chip
from latticeforge_trainer.estimate.constants import FITTED, WORKSPACES
from latticeforge_trainer.estimate.errors import EstimateError
from latticeforge_trainer.estimate.memory import Memory, gpu_memory
from latticeforge_trainer.estimate.terms import GIB, total
from latticeforge_trainer.estimate.training import Run, conflict
from latticeforge_trainer.estimate.weights import DEQUANTIZED
from latticeforge_trainer.training.batches import BatchPlan, equal_steps

NAMED = [mode for mode in Recompute if mode is not Recompute.AUTO]
INT8 = {"states": "int8"}
H100 = {"accelerator": "H100"}

MEASURED: list[tuple[str, str, int, dict[str, Any], float, float]] = [
    # On one H200: docs/data/trainer.json, and runs before it; what docs/data/planner.jsonl holds is
    # compared by tests/unit/benchmarks.
    ("Qwen2.5-72B", "FP8", 1, {"recompute": "elementwise"}, 131.2, 131.6),
    ("Qwen2.5-7B", "Full", 6, INT8, 128.6, 132.4),
    ("Qwen2.5-7B", "LoRA", 4, {}, 85.8, 86.0),
    ("Qwen2.5-7B", "FP8", 4, {"recompute": "elementwise"}, 57.0, 58.1),
]


@pytest.mark.parametrize(("of", "allocated", "reserved"), [(m[:4], *m[4:]) for m in MEASURED])
def test_what_was_measured_was_predicted(
    of: tuple[str, str, int, dict[str, Any]], allocated: float, reserved: float
) -> None:
    model, method, size, how = of
    memory = gpu_memory(run(model, method, size, **how))
    assert memory.fits
    assert memory.allocated / GIB == pytest.approx(allocated, rel=0.007)
    assert memory.reserved / GIB == pytest.approx(reserved, rel=0.025)


def test_plain_adamw_of_72b_does_not_train_on_eight_h200s() -> None:
    memory = gpu_memory(run("Qwen2.5-72B", "Full", zero_stage=3, processes=8))
    # 16 bytes for each parameter (two gradients' worth of masters, moments, gradients, weights).
    states = 16 * MODELS_72B / 8 / GIB
    assert memory.allocated / GIB > states == pytest.approx(135.4, abs=0.1)
    assert not memory.fits
    assert memory.free < 0


MODELS_72B = 72_706_203_648


@pytest.mark.parametrize(
    "how",
    [
        {"states": "int8", "processes": 8},
        {"processes": 8, "offload": "optimizer"},
        {"processes": 8, "nodes": 2},
    ],
    ids=["8-bit moments", "offloaded states", "two nodes"],
)
def test_72b_trains_with_less_exact_states_or_more_memory(how: dict[str, Any]) -> None:
    assert gpu_memory(run("Qwen2.5-72B", "Full", zero_stage=3, **how)).fits


def test_nf4_layers_are_kept_dequantized_where_memory_is_spare() -> None:
    names = named(run("Qwen2.5-72B", "QLoRA"))
    assert 28 * GIB < names["dequantized layers"] < 36 * GIB
    assert "dequantized layers" not in named(run("Qwen2.5-72B", "QLoRA", recompute="elementwise"))


def test_experts_stay_in_16_bits_whatever_the_method() -> None:
    for method in ("LoRA", "QLoRA", "FP8"):
        terms = gpu_memory(run("Mixtral-8x7B", method)).terms
        experts = next(term.bytes for term in terms if term.name == "experts and routers")
        assert experts == 2 * 32 * (8 * 3 * 4096 * 14_336 + 8 * 4096)


SEVEN, TABLE = 7_615_616_512, 152_064 * 3584


@pytest.mark.parametrize(
    ("how", "each", "more"),
    [
        # Weights, masters, moments and gradients; and what the update takes beside them.
        ({}, 2 + 4 + 8 + 2, 4 * TABLE),
        # Gradients of the first micro-batch stand while the head's are scaled in the second.
        ({"accumulation": 2}, 2 + 4 + 8 + 4, 8 * TABLE),
        ({"processes": 2}, 2 + 4 + 8 + 4, 4 * TABLE),
        ({"states": "int8"}, 2 + 4.125 + 2, 0),
        ({"states": "int8", "accumulation": 2}, 2 + 4.125 + 4, 8 * TABLE),
        ({"zero_stage": 1, "processes": 8}, 2 + 4 / 8 + 8 / 8 + 4 + 2, 0),
        ({"zero_stage": 1, "processes": 8, "accumulation": 2}, 2 + 4 / 8 + 8 / 8 + 4 + 2, 0),
        ({"zero_stage": 2, "processes": 8, "accumulation": 2}, 2 + 4 / 8 + 8 / 8 + 8 / 8, 0),
        ({"zero_stage": 1, "processes": 8, "offload": "optimizer"}, 2 + 4, 0),
    ],
)
def test_a_full_fine_tune_of_few_tokens_is_bytes_for_each_parameter(
    how: dict[str, Any], each: float, more: int
) -> None:
    memory = gpu_memory(run("Qwen2.5-7B", "Full", sequence=1, recompute="layers", **how))
    assert memory.allocated == pytest.approx(each * SEVEN + more + WORKSPACES, rel=1e-5)


def test_a_tied_embeddings_gradient_is_added_to_the_heads() -> None:
    how: dict[str, Any] = {"sequence": 1, "states": "int8", "recompute": "layers"}
    memory = gpu_memory(run("Qwen2.5-0.5B", "Full", **how))
    expected = 8.125 * 494_032_768 + 2 * 151_936 * 896 + WORKSPACES
    assert memory.allocated == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("tables", "accumulation", "more"),
    [
        # Masters, moments, gradients in 16 bits, and one of them in 32 as well for the update.
        (["embed_tokens", "lm_head"], 1, 2 * (4 + 8 + 2) + 4),
        # Gradients of the first micro-batch; those of the second in 32 bits and twice in 16.
        (["lm_head"], 2, 4 + 8 + 4 + 8),
        (["embed_tokens"], 2, 4 + 8 + 4 + 6),
    ],
)
def test_tables_beside_an_adapter_have_states_of_their_own(
    tables: list[str], accumulation: int, more: int
) -> None:
    how: dict[str, Any] = {"sequence": 1, "recompute": "layers", "accumulation": accumulation}
    alone, both = (
        gpu_memory(run("Qwen2.5-7B", "LoRA", lora=lora, **how))
        for lora in (None, {"modules_to_save": tables})
    )
    assert both.allocated - alone.allocated == pytest.approx(more * TABLE, rel=1e-2)
    terms = {term.name: term for term in both.terms}
    assert terms["32-bit weights"].bytes == 4 * len(tables) * TABLE
    assert "of embedding and head" in terms["32-bit weights"].why
    adapters = next(term for term in alone.terms if term.name == "adapters")
    assert terms["adapters"] == adapters


def test_what_is_kept_dequantized_leaves_room_for_the_update() -> None:
    lora = {"modules_to_save": ["embed_tokens"]}
    how: dict[str, Any] = {"accelerator": "H100", "processes": 2, "accumulation": 2}
    memory = gpu_memory(run("Qwen2.5-72B", "QLoRA", sequence=64, lora=lora, **how))
    assert {"dequantized layers", "update"} <= {term.name for term in memory.terms}
    assert memory.allocated <= memory.capacity


def test_tied_tables_are_one_by_either_name() -> None:
    tied = [
        gpu_memory(run("Qwen2.5-0.5B", "LoRA", lora={"modules_to_save": tables}))
        for tables in (["embed_tokens"], ["lm_head"], ["embed_tokens", "lm_head"])
    ]
    assert tied[0] == tied[1] == tied[2]
    terms = {term.name: term.bytes for term in tied[0].terms}
    assert terms["32-bit weights"] == 4 * 151_936 * 896


def test_zero_3_holds_a_part_of_everything_and_gathers_the_rest() -> None:
    terms = named(run("Qwen2.5-7B", "Full", zero_stage=3, processes=8))
    own = SEVEN // 8
    assert terms["32-bit weights"] == terms["gradients"] == 4 * own
    assert terms["moments"] == 8 * own
    assert terms["embedding and head"] == 2 * 2 * TABLE // 8
    # The head, a billion weights that are soon used again, and the next 100 million.
    assert terms["gathered weights"] == 2 * (TABLE + 10**9 + 10**8)


def named(of: Run) -> dict[str, int]:
    return {term.name: term.bytes for term in gpu_memory(of).terms}


@pytest.mark.parametrize("mode", ["layers", "offload"])
def test_a_layer_that_is_computed_again_is_there_whole_once(mode: str) -> None:
    terms = named(run("Qwen2.5-72B", "QLoRA", sequence=32_768, recompute=mode))
    # What it keeps without recomputation, but for its input, which is there or is brought back.
    kept = layer_memory(run("Qwen2.5-72B", "QLoRA").model.shape)
    again = kept.elementwise - (kept.input if mode == "layers" else 0)
    assert terms["recomputed layer"] == 32_768 * again
    assert terms.get("activations", 0) == (80 * 32_768 * kept.input if mode == "layers" else 0)


def test_gradients_come_as_activations_go() -> None:
    few, many = (named(run("Qwen2.5-7B", "Full", 1, states="int8", sequence=s)) for s in (64, 8192))
    assert few["gradients"] > 0.9 * 2 * SEVEN
    assert "update" not in few
    # Nothing but the head's has come when all layers still keep what they do.
    assert many.get("gradients", 0) <= 2 * TABLE


def test_whole_layers_peak_at_the_first_where_all_other_gradients_have_come() -> None:
    terms = named(run("Qwen2.5-7B", "Full", states="int8", sequence=8192, recompute="layers"))
    passed = TABLE + 27 / 28 * (SEVEN - 2 * TABLE)
    assert terms["gradients"] == pytest.approx(2 * passed, rel=1e-6)
    assert terms["activations"] == 8192 * 3584 * 2  # one layer's input


# --- properties ---------------------------------------------------------------------------------

STAGES = st.sampled_from([0, 1, 2, 3])
DENSE = [n for n in sorted(MODELS) if MODELS[n]["model_type"] in {"qwen2", "llama", "mistral"}]


TABLES = [None, ["embed_tokens"], ["lm_head"], ["embed_tokens", "lm_head"]]


@st.composite
def runs(
    draw: st.DrawFn,
    modes: Sequence[Recompute] = tuple(Recompute),
    methods: Sequence[str] = ("Full", "LoRA", "QLoRA", "FP8"),
    models: Sequence[str] = tuple(sorted(MODELS)),
    precisions: Sequence[str] = ("bf16", "fp32"),
) -> dict[str, Any]:
    """The arguments of `run`, of any run that is not refused."""
    method = draw(st.sampled_from(methods))
    arguments = {
        "model": draw(st.sampled_from(models)),
        "method": method,
        "micro_batch": draw(st.integers(1, 8)),
        "sequence": draw(st.integers(1, 32_768)),
        "accelerator": draw(st.sampled_from(sorted(CHIPS))),
        "states": draw(st.sampled_from(["fp32", "int8"])) if method == "Full" else "fp32",
        "accumulation": draw(st.integers(1, 3)),
        "recompute": draw(st.sampled_from(modes)),
        "zero_stage": draw(STAGES),
        "offload": draw(st.sampled_from(Offload)),
        "processes": draw(st.integers(1, 8)),
        "nodes": draw(st.integers(1, 3)),
        "precision": draw(st.sampled_from(precisions)),
    }
    if method != "Full":
        targets = [None, ["q_proj", "v_proj"], ["nothing"]]
        rank = draw(st.integers(1, 256))
        arguments["lora"] = {
            "rank": rank,
            "target_modules": draw(st.sampled_from(targets)),
            "modules_to_save": draw(st.sampled_from(TABLES)),
        }
    made = run(**arguments)
    assume(conflict(made.payload, made.strategy.zero_stage, made.strategy.offload) is None)
    return arguments


def of(arguments: dict[str, Any], **changes: Any) -> Memory:
    return gpu_memory(run(**(arguments | changes)))


@given(runs())
def test_terms_add_up_and_the_same_run_gives_the_same(arguments: dict[str, Any]) -> None:
    memory = of(arguments)
    assert total(memory.terms) == memory.allocated <= memory.reserved
    assert all(term.bytes > 0 and term.why for term in memory.terms)
    assert len(memory.modes) == run(**arguments).model.shape.layers
    assert memory.free == memory.capacity - memory.reserved
    assert memory.fits == (memory.free >= 0)
    assert of(arguments) == memory


@given(runs(NAMED), st.integers(1, 4096))
def test_a_longer_sequence_never_needs_less(arguments: dict[str, Any], more: int) -> None:
    longer = of(arguments, sequence=arguments["sequence"] + more)
    assert longer.reserved >= of(arguments).reserved


@given(runs(NAMED), st.integers(1, 8))
def test_a_larger_micro_batch_never_needs_less(arguments: dict[str, Any], more: int) -> None:
    larger = of(arguments, micro_batch=arguments["micro_batch"] + more)
    assert larger.reserved >= of(arguments).reserved


@given(runs(NAMED), st.integers(1, 8))
def test_more_gpus_never_need_more_each(arguments: dict[str, Any], more: int) -> None:
    # Two processes add gradients in 32 bits where one need not.
    assume(arguments["processes"] * arguments["nodes"] > 1)
    wider = of(arguments, processes=arguments["processes"] + more)
    assert wider.reserved <= of(arguments).reserved


@given(runs(NAMED, ["LoRA", "QLoRA", "FP8"]), st.sampled_from(["embed_tokens", "lm_head"]))
def test_one_more_table_never_needs_less(arguments: dict[str, Any], table: str) -> None:
    fewer = [name for name in arguments["lora"]["modules_to_save"] or [] if name != table]
    less, more = (
        of(arguments, lora=arguments["lora"] | {"modules_to_save": tables or None})
        for tables in (fewer, [*fewer, table])
    )
    assert less.reserved <= more.reserved


@given(runs(NAMED))
def test_less_recomputation_never_needs_less(arguments: dict[str, Any]) -> None:
    nothing, elementwise = (
        of(arguments, recompute=mode).allocated
        for mode in (Recompute.NOTHING, Recompute.ELEMENTWISE)
    )
    assert nothing >= elementwise


@given(runs([Recompute.AUTO], ["LoRA", "QLoRA", "FP8"], DENSE, ["bf16"]))
def test_what_auto_chooses_fits_unless_everything_is_given_up(arguments: dict[str, Any]) -> None:
    memory = gpu_memory(run(**arguments))
    given_up = set(memory.modes) <= {Recompute.LAYERS, Recompute.OFFLOAD}
    # In the update, what is computed again is not there, and only what is kept dequantized counts.
    chosen = {term.name for term in memory.terms} & {"activations", DEQUANTIZED}
    assert memory.allocated <= memory.capacity or given_up or not chosen


@given(st.integers(1, 500), st.integers(1, 64), st.integers(1, 16))
def test_micro_batches_are_counted_as_the_trainer_cuts_them(
    per_step: int, micro_batch: int, world: int
) -> None:
    made = run("Qwen2.5-7B", "LoRA", micro_batch, processes=world)
    tokens = {"global_batch_tokens": per_step * made.payload.sequence_length}
    payload = made.payload.model_copy(update=tokens)
    cut = BatchPlan(equal_steps(1000, per_step), micro_batch, world=world)
    assert Run(made.model, payload, made.strategy, made.chip).micro_batches == cut.accumulation


def test_the_context_is_in_neither_figure_but_counts() -> None:
    alone = gpu_memory(run("Qwen2.5-7B", "LoRA"))
    together = gpu_memory(run("Qwen2.5-7B", "LoRA", processes=2))
    assert alone.context == FITTED.context < together.context
    assert alone.capacity - together.capacity == together.context - alone.context


def test_a_gpu_that_is_not_known_is_refused() -> None:
    assert chip("H200").memory_bytes > chip("H100").memory_bytes
    with pytest.raises(EstimateError, match="accelerator CPU is not known, only H200, H100"):
        chip("CPU")
