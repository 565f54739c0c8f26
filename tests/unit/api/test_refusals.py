"""What is refused at once, by the models and by the CRD's schema alike, each with one sentence.

The schema is read by the devcluster's validation, which the conformance tests hold against a real
API server.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
from pydantic import ValidationError

from latticeforge_operator.api import GPUPool, StackedTraining
from latticeforge_operator.api.crds import gpu_pool_crd, stacked_training_crd
from latticeforge_operator.devcluster.schema import default
from latticeforge_operator.devcluster.validation import faults

SCHEMAS = {
    crd["spec"]["names"]["kind"]: crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    for crd in (stacked_training_crd(), gpu_pool_crd())
}
STAGE: dict[str, Any] = {"name": "math", "data": [{"source": "owner/math"}]}
FULL = STAGE | {"method": "Full"}
SPEC: dict[str, Any] = {
    "base": {"model": "owner/model"},
    "stages": [STAGE, STAGE | {"name": "cic"}],
    "storage": {"size": "100Gi"},
}
UNKNOWN_SUITE = "unknown suite; known are json, cic, phase, confidence, math and lm-eval:TASK"
NOT_A_NUMBER = 'must be a non-negative decimal number in quotes, such as "3.59"'
LAST_COPY = "ttlAfterFinished would remove the only copy of the model with the volume"
NOT_A_RATE = 'must be a non-negative number in quotes, such as "2e-6"'
NOT_A_DURATION = "must be a duration such as 90s, 15m or 1h30m"
NOT_A_PLACE = (
    "must be owner/name on the Hugging Face Hub, or a path: file:///folder, /folder or ./folder"
)


def stack(name: str = "demo", **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "latticeforge.dev/v1alpha1",
        "kind": "StackedTraining",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {**copy.deepcopy(SPEC), **spec},
    }


def stages(*given: dict[str, Any]) -> dict[str, Any]:
    return stack(stages=list(given))


def first_stage(**fields: Any) -> dict[str, Any]:
    return stages({**STAGE, **fields})


def gate(**fields: Any) -> dict[str, Any]:
    return first_stage(evaluate=[{"suite": "json", **fields}])


def data(**fields: Any) -> dict[str, Any]:
    return first_stage(data=[{"source": "owner/math", **fields}])


def base(**fields: Any) -> dict[str, Any]:
    return stack(base={"model": "owner/model", **fields})


def hyperparameters(**fields: Any) -> dict[str, Any]:
    return first_stage(hyperparameters=fields)


REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    # what: (object, the models' sentence, the schema's sentence)
    "no stages": (stages(), "at least 1 item", "at least 1 items"),
    "a long name of a stage": (
        first_stage(name="s" * 41),
        "at most 40 characters",
        "may not be more than 40",
    ),
    "two stages of one name": (
        stages(STAGE, STAGE),
        "two stages are named math; every stage needs its own name",
        "two stages have the same name; every stage needs its own",
    ),
    "a stage without data": (first_stage(data=[]), "at least 1 item", "at least 1 items"),
    "an adapter on a Full stage": (
        stages(FULL | {"lora": {"rank": 8}}),
        "stage math: lora belongs to method LoRA or QLoRA; a Full stage has no adapter",
        "lora belongs to method LoRA or QLoRA; a Full stage has no adapter",
    ),
    "an FP8 base of a QLoRA stage": (
        first_stage(method="QLoRA", lora={"baseDtype": "FP8"}),
        "stage math: lora.baseDtype belongs to method LoRA; a QLoRA stage's base is NF4",
        "lora.baseDtype belongs to method LoRA; a QLoRA stage's base is NF4",
    ),
    "8-bit moments of an adapter": (
        hyperparameters(optimizerStates="INT8"),
        "stage math: optimizerStates INT8 is for method Full, as an adapter's moments are small",
        "optimizerStates INT8 is for method Full, as an adapter's moments are small; leave it out",
    ),
    "a base in 8-bit integers": (
        first_stage(lora={"baseDtype": "INT8"}),
        "Input should be 'FP8'",
        '"FP8"',
    ),
    "ContinueAdapter on a Full stage": (
        stages(STAGE, FULL | {"name": "cic", "handoff": "ContinueAdapter"}),
        "stage cic: a Full stage cannot continue an adapter; use handoff Merge",
        "a Full stage cannot continue an adapter; use handoff Merge",
    ),
    "ContinueAdapter after a Full stage": (
        stages(FULL, STAGE | {"name": "cic", "handoff": "ContinueAdapter"}),
        "stage cic: ContinueAdapter after the Full stage math, which leaves no adapter",
        "ContinueAdapter after a Full stage, which leaves no adapter; use handoff Merge",
    ),
    "ContinueAdapter in the first stage": (
        first_stage(handoff="ContinueAdapter"),
        "the first stage has no adapter to continue; use handoff Merge",
        "the first stage has no adapter to continue; use handoff Merge",
    ),
    "an unknown suite": (gate(suite="yaml", minimum="0.9"), UNKNOWN_SUITE, UNKNOWN_SUITE),
    "a gate that asks nothing": (
        gate(),
        "suite json: a gate needs minimum, maximumDrop or both",
        "a gate needs minimum, maximumDrop or both",
    ),
    "a minimum above 1": (
        gate(minimum="95"),
        "suite json: minimum 95 is more than 1",
        "minimum must not be more than 1",
    ),
    "a drop above 1": (
        gate(maximumDrop="2"),
        "suite json: maximumDrop 2 is more than 1",
        "maximumDrop must not be more than 1",
    ),
    **{
        f"{field} {value}": (hyperparameters(**{field: value}), sentence, sentence)
        for field, value, sentence in (
            ("adamBeta1", "1", "adamBeta1 must be less than 1"),
            ("adamBeta2", "1.5", "adamBeta2 must be less than 1"),
            ("adamEpsilon", "0", "adamEpsilon must be more than 0"),
            ("minLearningRateRatio", "1.5", "minLearningRateRatio must not be more than 1"),
            ("validationShare", "0", "validationShare must be more than 0"),
            ("validationShare", "1", "validationShare must be less than 1"),
        )
    },
    **{
        sentence: (data(**fields), f"owner/math: {sentence}", sentence)
        for sentence, fields in (
            (
                "fields needs format, which says what the columns are for",
                {"fields": {"text": "body"}},
            ),
            (
                "fields.system belongs to format Chat or Alpaca",
                {"format": "Text", "fields": {"system": "s"}},
            ),
            (
                "fields.text belongs to format Text",
                {"format": "Chat", "fields": {"text": "body"}},
            ),
            (
                "promptTemplate belongs to format Alpaca",
                {"promptTemplate": {"withInput": "{input}", "withoutInput": "x"}},
            ),
            ("roles belongs to format Chat", {"format": "Alpaca", "roles": {"user": ["me"]}}),
            ("dropSystem belongs to format Chat", {"dropSystem": True}),
            ("trainOnEnd belongs to format Chat", {"format": "Text", "trainOnEnd": "All"}),
            (
                "trainOn does not belong to format Text, of which everything is learned",
                {"format": "Text", "trainOn": ["user"]},
            ),
            ("excessLength Split belongs to format Text", {"excessLength": "Split"}),
        )
    },
    "a format that is not known": (data(format="XML"), "Input should be 'Chat', ", '"Chat"'),
    "a role that is not known": (data(trainOn=["boss"]), "Input should be 'system'", '"system"'),
    "two chat templates": (
        base(chatTemplate={"preset": "ChatML", "jinja": "{{ messages }}"}),
        "chatTemplate needs exactly one of jinja, preset and model",
        "chatTemplate needs exactly one of jinja, preset and model",
    ),
    "no chat template": (
        base(chatTemplate={"revision": "v1"}),
        "chatTemplate needs exactly one of jinja, preset and model",
        "chatTemplate needs exactly one of jinja, preset and model",
    ),
    "a pattern and names of layers": (
        first_stage(lora={"targetPattern": "x", "layers": [1]}),
        "lora.targetPattern names layers whole: use it without targetModules and layers",
        "lora.targetPattern names layers whole: use it without targetModules and layers",
    ),
    "a negative budget": (stack(budget={"limit": "-1"}), NOT_A_NUMBER, NOT_A_NUMBER),
    "a budget that is no number": (stack(budget={"limit": "much"}), NOT_A_NUMBER, NOT_A_NUMBER),
    "a currency that is none": (
        stack(budget={"limit": "1", "currency": "usd"}),
        "must be an ISO 4217 code such as USD",
        "must be an ISO 4217 code such as USD",
    ),
    "a negative duration": (
        stack(failure={"stallTimeout": "-5m"}),
        NOT_A_DURATION,
        NOT_A_DURATION,
    ),
    "a duration that is none": (stack(ttlAfterFinished="a week"), NOT_A_DURATION, NOT_A_DURATION),
    "a volume that goes with the only copy": (
        stack(ttlAfterFinished="1h"),
        LAST_COPY,
        LAST_COPY,
    ),
    **{
        f"a volume that goes with what was published to {folder}": (
            stack(ttlAfterFinished="1h", publish={"repository": folder}),
            LAST_COPY,
            LAST_COPY,
        )
        for folder in ("./published/model", "/store/model", "file:///store/model")
    },
    "a negative learning rate": (hyperparameters(learningRate="-1e-4"), NOT_A_RATE, NOT_A_RATE),
    "a learning rate that is none": (hyperparameters(learningRate="low"), NOT_A_RATE, NOT_A_RATE),
    "a learning rate of zero": (
        hyperparameters(learningRate="0.0"),
        "learningRate must be more than 0",
        "learningRate must be more than 0",
    ),
    "nothing but warm-up": (
        hyperparameters(warmupRatio="1"),
        "warmupRatio must be less than 1",
        "warmupRatio must be less than 1",
    ),
    "clipping to nothing": (
        hyperparameters(maxGradNorm="0"),
        "maxGradNorm must be more than 0",
        "maxGradNorm must be more than 0",
    ),
    "weights where every sample counts once": (
        first_stage(mixing="Concatenate", data=[{"source": "owner/math", "weight": 4}]),
        "stage math: mixing Concatenate takes every sample once; leave the weights out",
        "mixing Concatenate takes every sample once; leave the weights out",
    ),
    "a method that is none": (first_stage(method="DPO"), "'Full', 'LoRA' or 'QLoRA'", '"QLoRA"'),
    "a repository without owner": (
        stack(publish={"repository": "model"}),
        NOT_A_PLACE,
        NOT_A_PLACE,
    ),
    "a repository with three parts": (
        stack(publish={"repository": "a/b/c"}),
        NOT_A_PLACE,
        NOT_A_PLACE,
    ),
    "a size that is none": (
        stack(storage={"size": "big"}),
        "must be a Kubernetes quantity such as 500Gi",
        "must be a Kubernetes quantity such as 500Gi",
    ),
    "storage of both kinds": (
        stack(storage={"size": "1Gi", "claimName": "store"}),
        "storage needs either size or claimName",
        "storage needs either size or claimName",
    ),
    "storage of no kind": (
        stack(storage={}),
        "storage needs either size or claimName",
        "storage needs either size or claimName",
    ),
    "a name that is too long": (
        stack(name="x" * 64),
        "metadata.name is longer than 63 characters",
        "metadata.name is longer than 63 characters",
    ),
    "a stage name in capitals": (
        first_stage(name="Math"),
        "must be lowercase letters, digits and dashes",
        "must be lowercase letters, digits and dashes",
    ),
}

OUT_OF_RANGE = {
    "epochs": 0,
    "sequenceLength": 8,
    "globalBatchTokens": 0,
    "seed": -1,
}


def by_schema(obj: dict[str, Any]) -> list[str]:
    """What the API server says to an object, after its defaults."""
    schema = SCHEMAS[obj["kind"]]
    return [fault.detail for fault in faults(schema, default(schema, obj))]


@pytest.mark.parametrize(
    ("obj", "sentence"), [(obj, own) for obj, own, _ in REFUSED.values()], ids=list(REFUSED)
)
def test_models_refuse(obj: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        StackedTraining.from_object(obj)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("obj", "sentence"), [(obj, crd) for obj, _, crd in REFUSED.values()], ids=list(REFUSED)
)
def test_api_server_refuses(obj: dict[str, Any], sentence: str) -> None:
    messages = by_schema(obj)
    assert any(sentence in message for message in messages), messages


@pytest.mark.parametrize(("field", "value"), OUT_OF_RANGE.items())
def test_both_refuse_what_is_out_of_range(field: str, value: int) -> None:
    obj = hyperparameters(**{field: value})
    with pytest.raises(ValidationError, match="greater than"):
        StackedTraining.from_object(obj)
    assert by_schema(obj)


@pytest.mark.parametrize(
    "obj",
    [
        stack(),
        stack(name="x" * 63),
        stack(storage={"claimName": "store"}),
        stack(publish={"repository": "owner/name"}),
        stack(publish={"repository": "./published/model"}),
        stack(publish={"repository": "file:///models/model"}),
        stack(budget={"limit": "0.5"}, failure={"stallTimeout": "1h30m"}),
        stack(ttlAfterFinished="168h", publish={"repository": "owner/name"}),
        stack(ttlAfterFinished="168h", storage={"claimName": "store"}),
        stack(
            ttlAfterFinished="168h",
            storage={"claimName": "store"},
            publish={"repository": "./published/model"},
        ),
        hyperparameters(learningRate="2e-6"),
        gate(minimum="0.95", maximumDrop="0", against="Base"),
        gate(suite="lm-eval:gsm8k", minimum="0.5"),
        stages(FULL, STAGE | {"name": "cic", "handoff": "Merge"}),
        stages(STAGE, STAGE | {"name": "cic", "handoff": "ContinueAdapter"}),
        stages(*(STAGE | {"name": f"s{number}"} for number in range(16))),
    ],
    ids=lambda obj: str(obj["metadata"]["name"])[:8],
)
def test_both_accept(obj: dict[str, Any]) -> None:
    StackedTraining.from_object(obj)
    assert by_schema(obj) == []


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ({"accelerator": "CPU", "pricePerGPUHour": "-1"}, NOT_A_NUMBER),
        ({"accelerator": "CPU", "gpusPerNode": -1}, "greater than or equal to 0"),
        ({"accelerator": "Abacus"}, "'H200', 'H100', 'A100', 'L40S' or 'CPU'"),
    ],
)
def test_a_pool_is_refused(spec: dict[str, Any], sentence: str) -> None:
    pool = {"kind": "GPUPool", "metadata": {"name": "p"}, "spec": spec}
    with pytest.raises(ValidationError) as caught:
        GPUPool.from_object(pool)
    assert sentence in str(caught.value)
    assert by_schema(pool)


def test_the_last_adapter_must_fit_the_public_base() -> None:
    adapter = {"repository": "owner/name", "artifact": "Adapter"}
    merged = stack(publish=adapter)
    with pytest.raises(ValueError, match="its adapter does not fit the public base"):
        StackedTraining.from_object(merged)
    full = stack(publish=adapter, stages=[FULL])
    with pytest.raises(ValueError, match="the last stage is Full and has no adapter"):
        StackedTraining.from_object(full)


def test_a_continued_adapter_keeps_its_shape() -> None:
    other = {"name": "cic", "handoff": "ContinueAdapter", "lora": {"rank": 8}}
    with pytest.raises(ValueError, match="ContinueAdapter needs the same lora as stage math"):
        StackedTraining.from_object(stages(STAGE, STAGE | other))
