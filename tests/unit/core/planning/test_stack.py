"""Whole stacks: the two of the mission, what arithmetic refuses, and what would make it fit."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from tests.unit.core.builders import pool, spec, stack, stage
from tests.unit.core.planning.cases import (
    INT4_72B,
    LARGE,
    NF4_72B,
    ROOT,
    SMALL,
    TOKENS,
    asked,
    h200,
)

from latticeforge_operator.api import GPUPool, StackedTrainingSpec
from latticeforge_operator.api.base import parse_quantity
from latticeforge_operator.cli.stackfile import load_stack
from latticeforge_operator.core.planning import (
    Plan,
    PlanError,
    StageData,
    plan_document,
    plan_stack,
    plan_status,
    survey,
    words,
)
from latticeforge_operator.core.planning.stack import gpu_counts
from latticeforge_operator.core.steps import line
from latticeforge_trainer.contract import Offload, StepKind
from latticeforge_trainer.estimate.base_model import BaseModel, read_base_model
from latticeforge_trainer.estimate.terms import GIB, total

CIC = {"cic": StageData(tokens=12_000_000, exact=True)}
NF4, INT4 = read_base_model(NF4_72B), read_base_model(INT4_72B)


def example(name: str) -> tuple[StackedTrainingSpec, list[GPUPool]]:
    file = load_stack(ROOT / "examples" / name, None)
    return file.training.spec, [GPUPool.from_object(manifest) for manifest in file.pools]


def edited(spec: StackedTrainingSpec, **fields: Any) -> StackedTrainingSpec:
    return StackedTrainingSpec.model_validate(spec.to_json() | fields)


def refusal(model: BaseModel, pools: list[GPUPool], wanted: StackedTrainingSpec) -> str:
    with pytest.raises(PlanError) as error:
        plan_stack(wanted, pools, model, data={"one": TOKENS})
    return str(error.value)


# --- the stacks of the mission


def test_the_full_stack_trains_on_its_owners_eight_gpus() -> None:
    wanted, pools = example("qwen2.5-72b-full.yaml")
    plan = plan_stack(wanted, pools, LARGE, data=CIC)
    option = plan.option
    assert (option.pool.name, option.gpus) == ("h200", 8)
    train = next(work for work in option.works if work.step == "cic/train")
    hourly = train.units * float(option.pool.spec.price_per_gpu_hour)
    assert hourly == pytest.approx(28.72)
    assert 0.5 < option.seconds.expected / 3600 < 3  # its owner's figure is 1.7 hours
    assert 10 < option.cost.expected < 60  # its owner's is about 50 dollars
    assert option.stages[0].strategy.offload is Offload.OPTIMIZER


def test_its_trade_off_is_said_with_the_arithmetic_and_the_two_ways_out() -> None:
    plan = survey(*example("qwen2.5-72b-full.yaml"), LARGE, data=CIC)
    assert "exact AdamW (16 bytes × 72.7 B ÷ 8 = 135.4 GiB alone) does not fit" in plan.tradeoff
    assert "AdamW's states in host memory" in plan.tradeoff
    changes = {other.change: other.lossy for other in plan.alternatives}
    assert changes == {
        "compute.gpus: 16 (2 nodes)": False,
        "optimizerStates: INT8 in stage cic": True,
    }


def test_what_is_lossy_is_never_chosen() -> None:
    plan = survey(*example("qwen2.5-72b-full.yaml"), LARGE, data=CIC)
    assert {s.run.payload.optimizer_states for o in plan.options for s in o.stages} == {"fp32"}


def test_plain_adamw_on_eight_gpus_is_refused_with_its_numbers() -> None:
    wanted, pools = example("qwen2.5-72b-full.yaml")
    poor = [GPUPool.from_object({"metadata": {"name": "h200"},
            "spec": pools[0].spec.to_json() | {"hostMemory": "1000Gi"}})]  # fmt: skip
    with pytest.raises(PlanError) as error:
        plan_stack(wanted, poor, LARGE, data=CIC)
    said = str(error.value)
    assert "method Full of 72.7 B parameters does not fit on 8 × H200 of pool h200" in said
    assert "16 bytes × 72.7 B ÷ 8 = 135.4 GiB before activations" in said
    assert "the share of 8 of a node's 8 GPUs is 1,000.0 GiB" in said
    assert said.endswith("what would fit: compute.gpus: 16 (2 nodes)")
    assert "\n" not in said


def test_the_budget_stack_is_data_parallel_on_its_owners_pair() -> None:
    wanted, pools = example("qwen2.5-72b-qlora.yaml")
    option = plan_stack(wanted, pools, NF4, data=CIC).option
    assert (option.pool.name, option.gpus) == ("h200-pair", 2)
    assert option.stages[0].strategy.zero_stage == 0
    assert 5 < option.cost.expected < 40  # its owner's figure is about 30 dollars


@pytest.mark.parametrize(
    ("name", "model", "gpus"), [("elle-72b-math", LARGE, 8), ("elle-72b-math-lora", NF4, 2)]
)
def test_what_their_owners_axolotl_configs_import_to_trains_there_too(
    name: str, model: BaseModel, gpus: int
) -> None:
    wanted, _ = example(f"axolotl/{name}.yaml")
    data = {wanted.stages[0].name: StageData(tokens=12_000_000, exact=True)}
    option = plan_stack(wanted, [h200()], model, data=data).option
    assert option.gpus == gpus
    assert option.cost.expected < Decimal(wanted.budget.limit if wanted.budget else 0)


def test_four_gpus_are_two_of_its_nodes() -> None:
    wanted, pools = example("qwen2.5-72b-qlora.yaml")
    wanted = edited(wanted, compute={"pool": "h200-pair", "gpus": 4})
    planned = plan_stack(wanted, pools, NF4, data=CIC).option.stages[0]
    strategy = planned.strategy
    assert (strategy.nodes, strategy.processes, strategy.zero_stage) == (2, 2, 0)
    assert words.strategy(planned).startswith("data-parallel on 2 nodes, micro-batch ")


def test_int4_weights_are_refused_with_what_to_use_instead() -> None:
    wanted, _ = example("refused/qwen2.5-72b-int4.yaml")
    with pytest.raises(PlanError) as error:
        plan_stack(wanted, [pool("h200-pair")], INT4, data=CIC)
    said = str(error.value)
    assert said.startswith("aphoticshaman/qwen-72b-math-int4 holds gptq weights")
    assert "the 16-bit model it was made from, perhaps aphoticshaman/qwen-72b-math (" in said
    assert "NF4 copy of that (method QLoRA)" in said


def test_a_stack_of_two_stages_has_one_place_and_two_strategies() -> None:
    data = dict.fromkeys(("math", "cic"), TOKENS)
    plan = plan_stack(*example("qwen2.5-72b-stacked.yaml"), LARGE, data=data)
    assert [s.stage for s in plan.option.stages] == ["math", "cic"]
    assert plan.option.seconds.expected <= 12 * 3600


def test_stages_that_are_alike_are_searched_once_and_planned_each() -> None:
    stages = [
        stage("one", hyperparameters={"learningRate": "1e-4"}),
        stage("two", hyperparameters={"learningRate": "1e-5", "seed": 7}),
        stage("three", hyperparameters={"sequenceLength": 512}),
    ]
    together = plan_of(*stages).option
    for wanted, planned in zip(stages, together.stages, strict=True):
        alone = plan_of(wanted, compute={"gpus": together.gpus}).option.stages[0]
        assert planned == alone


# --- refusals


@pytest.mark.parametrize(
    ("fields", "pools", "sentence"),
    [
        ({"method": "Full"}, [h200(hostMemory=None)], "stage one: method Full of 72.7 B"),
        (
            {"evaluate": [{"suite": "math", "minimum": "0.5"}], "method": "QLoRA"},
            [h200(accelerator="H100")],
            "evaluation loads the whole model on one GPU, 136.4 GiB, and one H100 of pool h200",
        ),
        (
            {"method": "QLoRA", "storage": {"size": "100Gi"}},
            [h200()],
            "storage.size 100Gi is too small: the stack writes",
        ),
        ({"method": "QLoRA", "budget": {"limit": "1"}}, [h200()], "more than budget.limit 1"),
        ({"compute": {"deadline": "1m"}, "method": "QLoRA"}, [h200()], "compute.deadline 1m"),
        ({"compute": {"pool": "no"}}, [h200()], "compute.pool no does not exist"),
        ({}, [], "there is no GPUPool"),
        (
            {"method": "QLoRA"},
            [h200(), pool("other", currency="EUR")],
            "the pools are priced in EUR and USD, which cannot be compared",
        ),
        ({"compute": {"gpus": 11}, "method": "QLoRA"}, [h200(gpusPerNode=5)], "gpus 11 does not"),
    ],
)
def test_a_refusal_is_one_sentence(
    fields: dict[str, Any], pools: list[GPUPool], sentence: str
) -> None:
    fields = {"compute": {"gpus": 8}} | fields
    said = refusal(LARGE, pools, asked(**fields))
    assert sentence in said
    assert "\n" not in said


def test_merging_into_a_4_bit_base_is_refused() -> None:
    wanted = asked(method="QLoRA", publish={"repository": "a/b", "artifact": "Merged"})
    assert "cannot be merged into the nf4 weights of owner/base" in refusal(NF4, [h200()], wanted)


def test_every_alternative_is_planned_and_fits() -> None:
    wanted = asked(method="Full", compute={"pool": "h200", "gpus": 8}, storage={"size": "3Ti"})
    pools = [h200(hostMemory="500Gi"), pool("big", hostMemory="4Ti")]
    plan = survey(wanted, pools, LARGE, data={"one": TOKENS})
    assert plan.chosen is None
    assert [other.option.refusal for other in plan.alternatives] == [None] * 5
    changes = [(other.change.partition(":")[0], other.lossy) for other in plan.alternatives]
    assert changes == [
        ("compute.gpus", False),
        ("hostMemory", False),
        ("compute.pool", False),
        ("method", False),
        ("optimizerStates", True),
    ]
    host = plan.alternatives[1]
    size = host.option.pool.spec.host_memory
    assert f"hostMemory: {size} or more" in host.change
    assert total(host.option.stages[0].host) <= parse_quantity(size or "")


def test_a_volume_is_advised_with_every_edit_that_needs_it() -> None:
    wanted = asked(method="Full", compute={"pool": "h200", "gpus": 8}, storage={"size": "1Ti"})
    fits = survey(wanted, [h200()], LARGE, data={"one": TOKENS})
    assert fits.alternatives[0].change.startswith("storage.size: ")
    poor = survey(wanted, [h200(hostMemory="500Gi")], LARGE, data={"one": TOKENS})
    first = poor.alternatives[0]
    assert first.change.startswith("compute.gpus: 16 (2 nodes), storage.size: ")
    assert first.option.refusal is None


# --- options


@pytest.mark.parametrize(
    ("gpus", "per_node", "nodes", "counts"),
    [
        (None, 8, None, [1, 2, 4, 8]),
        (None, 8, 3, [1, 2, 4, 8, 16, 24]),
        (None, 6, 1, [1, 2, 4, 6]),
        (5, 8, 3, [5]),
    ],
)
def test_gpu_counts(gpus: int | None, per_node: int, nodes: int | None, counts: list[int]) -> None:
    offered = h200(gpusPerNode=per_node).model_copy(update={"nodes": nodes})
    wanted = asked(compute={} if gpus is None else {"gpus": gpus})
    assert list(gpu_counts(wanted, offered)) == counts


def test_a_pool_without_fp8_is_passed_over() -> None:
    wanted = asked(lora={"baseDtype": "FP8"})
    pools = [pool("old", accelerator="A100", pricePerGPUHour="0.1"), h200()]
    assert plan_stack(wanted, pools, SMALL, data={"one": TOKENS}).option.pool.name == "h200"


def test_what_a_plan_rests_on_is_said() -> None:
    plan = survey(
        asked(), [h200(spot=True, hostMemory=None)], SMALL, data={"one": StageData(10**6)}
    )
    said = "\n".join(plan.assumptions)
    for part in ("from the size of the data (±30%)", "by the model alone (±20%)", "spot nodes",
                 "does not say how many nodes", "does not say its hostMemory"):  # fmt: skip
        assert part in said


@pytest.mark.parametrize(
    ("fields", "data", "warning"),
    [
        ({"budget": {"limit": "10"}}, {}, "tokens are unknown, so budget and deadline"),
        (
            {"hyperparameters": {"globalBatchTokens": 4096 * 10}, "compute": {"gpus": 4}},
            {"one": TOKENS},
            "one: 10 sequences per step do not divide among 4 GPUs",
        ),
    ],
)
def test_what_its_author_should_know(
    fields: dict[str, Any], data: dict[str, StageData], warning: str
) -> None:
    plan = plan_stack(asked(**fields), [h200()], SMALL, data=data)
    assert [w.startswith(warning) for w in plan.warnings] == [True]


def test_more_gpus_than_the_pool_has_are_a_warning() -> None:
    small = h200().model_copy(update={"nodes": 1})
    wanted = asked(compute={"gpus": 16})
    plan = plan_stack(wanted, [small], SMALL, data={"one": TOKENS})
    assert plan.warnings == ("16 GPUs are asked for, and pool h200 has 8 now",)
    assert plan_stack(wanted, [h200()], SMALL, data={"one": TOKENS}).warnings == ()


def test_a_budget_that_is_expected_to_be_missed_is_a_warning() -> None:
    free = plan_stack(asked(compute={"gpus": 8}), [h200()], SMALL, data={"one": TOKENS})
    limit = str(round(free.option.cost.expected * Decimal("0.95"), 2))
    tight = asked(compute={"gpus": 8}, budget={"limit": limit})
    plan = plan_stack(tight, [h200()], SMALL, data={"one": TOKENS})
    assert [w.startswith("the stack is expected to cost") for w in plan.warnings] == [True]


# --- what comes of a plan


def plan_of(*stages: dict[str, Any], **fields: Any) -> Plan:
    wanted = stack(spec(*stages, **fields)).spec
    data = dict.fromkeys([s.name for s in wanted.stages], TOKENS)
    return plan_stack(wanted, [h200()], SMALL, data=data)


def test_steps_are_placed_as_planned() -> None:
    plan = plan_of(stage("one", evaluate=[{"suite": "math", "minimum": "0.5"}]),
                   compute={"gpus": 16, "queue": "q"})  # fmt: skip
    steps = {step.kind: plan.placement(step) for step in line(plan.spec, quantized=False)}
    train = steps[StepKind.TRAIN]
    assert (train.pods, train.gpus_per_pod, train.queue) == (2, 8, "q")
    assert train.strategy == plan.option.stages[0].strategy
    assert (steps[StepKind.EVALUATE].pods, steps[StepKind.EVALUATE].gpus_per_pod) == (1, 1)
    assert steps[StepKind.PREPARE].units == 0


def test_without_a_model_only_places_are_planned() -> None:
    for wanted, pools, model in (
        (asked(compute={"gpus": 8}), [h200()], None),
        (asked(), [pool("cpu", accelerator="CPU", gpusPerNode=0)], SMALL),
    ):
        plan = plan_stack(wanted, pools, model)
        train = line(wanted, quantized=False)[1]
        assert plan.placement(train).units == (8 if model is None else 1)
        assert not plan.option.predicted
        assert plan_status(plan, []).cost is None


def test_status_says_what_runs_and_what_it_takes() -> None:
    plan = plan_of(stage("one", method="LoRA"), compute={"gpus": 2})
    status = plan_status(plan, ["one/prepare", "one/train"])
    again = type(status).model_validate(status.to_json())
    assert again == status
    planned, option = status.stages[0], plan.option
    assert planned.planned == option.stages[0].strategy
    assert planned.words == words.strategy(option.stages[0])
    assert status.cost is not None
    assert status.cost.expected == str(option.cost.expected)
    assert status.hours is not None
    assert status.hours.expected == f"{option.seconds.expected / 3600:.2f}"
    assert (planned.tokens, planned.tokens_exact) == (TOKENS.tokens, True)


def test_the_document_adds_up() -> None:
    document = plan_document(plan_of(stage("one", method="QLoRA")))
    option = document["options"][document["chosen"]]
    memory = option["stages"][0]["gpuMemory"]
    assert sum(term["bytes"] for term in memory["terms"]) == memory["allocatedBytes"]
    assert float(option["stages"][0]["memory"]) == pytest.approx(
        memory["reservedBytes"] / GIB, abs=0.06
    )
    assert sum(step["seconds"] for step in option["steps"]) == pytest.approx(
        float(option["hours"]["expected"]) * 3600, abs=20
    )


def test_merging_needs_host_memory_where_something_is_merged() -> None:
    assert (
        total(plan_of(stage("one", method="LoRA")).option.merge_host) > 2 * SMALL.parameters.total
    )
    assert plan_of(stage("one", method="Full")).option.merge_host == ()


def test_disk_is_counted_over_all_stages() -> None:
    one, two = plan_of(stage("one")), plan_of(stage("one"), stage("two"))
    base = one.option.disk[0].bytes
    assert total(two.option.disk) - base == 2 * (total(one.option.disk) - base)
