"""Training of a tiny model by every method, and what its result must not depend on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from tests.fixtures.tiny_model import make_model
from tests.fixtures.training import losses, run, train_config, write_data
from transformers import AutoModelForCausalLM

from latticeforge_trainer.artifacts import Store
from latticeforge_trainer.contract import ExitCode, LoRASettings, Method, TrainConfig, TrainResult

pytestmark = pytest.mark.slow

FP8 = LoRASettings(rank=4, alpha=8, base_dtype="fp8")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def trained(config: TrainConfig, store: Store) -> list[float]:
    run(config, store)
    return losses(store, config.digest)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("method", list(Method))
def test_each_method_lowers_the_loss_and_leaves_its_artifact(
    method: Method, precision: str, store: Store, tiny_model: Path
) -> None:
    data = write_data(store, sequences=80)
    config = train_config(
        store,
        tiny_model,
        method=method,
        data=data,
        learning_rate=3e-2 if method.is_adapter else 3e-3,
        strategy={
            "precision": precision,
            "recompute": "layers" if precision == "bf16" else "nothing",
        },
    )

    history = trained(config, store)

    assert sum(history[-3:]) < sum(history[:3]) * 0.97
    manifest = store.manifest(config.digest)
    assert manifest is not None
    result = manifest.result
    assert isinstance(result, TrainResult)
    assert (result.steps, result.first_loss, result.final_loss) == (20, history[0], history[-1])
    folder, file = ("adapter", "adapter_model") if method.is_adapter else ("model", "model")
    assert f"{folder}/{file}.safetensors" in manifest.files
    assert f"{folder}/tokenizer.json" in manifest.files
    with safe_open(store.path(config.digest) / folder / f"{file}.safetensors", "pt") as weights:
        dtypes = {weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118  (no dict)
    assert dtypes == ({"F32"} if method.is_adapter and precision == "fp32" else {"BF16"})
    assert not list(store.work(config.digest).iterdir())


# transformers warns of its own deprecated property when PEFT wraps a model.
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_an_adapter_trained_over_fp8_is_one_for_the_16_bit_base(
    store: Store, tiny_model: Path
) -> None:
    options: dict[str, Any] = {
        "method": Method.LORA,
        "data": write_data(store, sequences=80),
        "learning_rate": 1e-2,
        "strategy": {"precision": "bf16"},
    }
    config = train_config(store, tiny_model, lora=FP8, **options)

    history = trained(config, store)

    exact = trained(train_config(store, tiny_model, **options), store)
    assert history[0] != exact[0]
    assert history == pytest.approx(exact, rel=0.03)
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16)
    before = counting_loss(base)
    adapted = PeftModel.from_pretrained(base, store.path(config.digest) / "adapter")
    gained = before - counting_loss(adapted)
    assert gained == pytest.approx(history[0] - history[-1], rel=0.1)


def counting_loss(model: Any) -> float:
    """Of what `write_data` teaches, over a model that PEFT or transformers runs."""
    row = (torch.arange(14) % 8)[None]
    with torch.inference_mode():
        loss: float = model(row, labels=row).loss.item()
    return loss


def test_loss_and_update_do_not_depend_on_how_the_batch_is_cut(
    store: Store, tiny_model: Path
) -> None:
    def cut(micro_batch: int) -> list[float]:
        # 23 sequences: the last step is short.
        data = write_data(store, sequences=23)
        strategy = {"micro_batch": micro_batch}
        return trained(train_config(store, tiny_model, data=data, strategy=strategy), store)

    whole = cut(4)

    assert len(whole) == 6
    assert cut(1) == pytest.approx(whole, rel=1e-5)
    assert cut(3) == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize("zero_stage", [1, 2])
def test_zero_stages_take_the_same_steps(zero_stage: int, store: Store, tiny_model: Path) -> None:
    def under(stage: int) -> list[float]:
        strategy = {"zero_stage": stage, "micro_batch": 2, "precision": "bf16"}
        return trained(train_config(store, tiny_model, strategy=strategy, weight_decay=0.1), store)

    assert under(zero_stage) == pytest.approx(under(0), rel=2e-3)


def test_bf16_keeps_master_weights_that_small_steps_add_up_in(
    store: Store, tiny_model: Path
) -> None:
    # One step of 1e-5 is below bf16's resolution of a typical weight; twenty are not.
    data = write_data(store, sequences=80)

    def learn(precision: str) -> list[float]:
        return trained(
            train_config(
                store,
                tiny_model,
                data=data,
                learning_rate=2e-5,
                schedule="constant",
                warmup_ratio=0,
                strategy={"precision": precision},
            ),
            store,
        )

    exact, mixed = learn("fp32"), learn("bf16")

    gain = exact[0] - exact[-1], mixed[0] - mixed[-1]
    assert gain[1] == pytest.approx(gain[0], rel=0.2)


def test_a_second_stage_continues_the_adapter(store: Store, tiny_model: Path) -> None:
    data = write_data(store, sequences=80)
    hot: dict[str, Any] = {"method": Method.LORA, "data": data, "learning_rate": 3e-2}
    first = train_config(store, tiny_model, **hot)
    before = trained(first, store)
    runtime = {"upstream_adapter": first.digest}
    second = train_config(store, tiny_model, runtime=runtime, continue_adapter=True, **hot)

    after = trained(second, store)

    assert after[0] < before[0] * 0.97
    other = train_config(
        store,
        tiny_model,
        runtime=runtime,
        continue_adapter=True,
        lora=LoRASettings(rank=8, alpha=16),
        **hot,
    )
    assert "rank 4" in run(other, store, expect=ExitCode.USER_ERROR)


def test_a_finished_step_is_reused(store: Store, tiny_model: Path) -> None:
    config = train_config(store, tiny_model)
    run(config, store)
    before = store.manifest(config.digest)

    assert "train is done" in run(config, store)

    assert store.manifest(config.digest) == before


def test_a_loss_that_is_not_finite_ends_training_without_a_checkpoint_of_it(
    store: Store, tiny_model: Path
) -> None:
    config = train_config(
        store,
        tiny_model,
        data=write_data(store, sequences=80),
        learning_rate=1e30,
        max_grad_norm=1e30,
        runtime={"checkpoint_every_steps": 1},
    )

    log = run(config, store, expect=ExitCode.NUMERICAL)

    assert "lower learningRate" in log
    kept = sorted(p.name for p in (store.work(config.digest) / "checkpoints").iterdir())
    lines = (store.work(config.digest) / "losses.jsonl").read_text()
    assert "nan" not in lines.lower()
    assert kept[-1] == f"step-{lines.count(chr(10)):08d}"


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ({"method": Method.LORA, "lora": LoRASettings(target_modules=["nope"])}, "targetModules"),
        ({"sequence_length": 64}, "packed into 32 tokens, not 64"),
        ({"method": Method.QLORA, "strategy": {"zero_stage": 3}}, "ZeRO 0 to 2"),
        (
            {"method": Method.LORA, "lora": FP8, "strategy": {"zero_stage": 2}},
            "lora.baseDtype FP8 runs under ZeRO 0",
        ),
        ({"method": Method.LORA, "runtime": {"upstream_adapter": "0" * 64}}, "continueAdapter"),
    ],
)
def test_what_cannot_be_trained_is_the_users_to_know(
    overrides: dict[str, Any], sentence: str, store: Store, tiny_model: Path
) -> None:
    config = train_config(store, tiny_model, **overrides)

    assert sentence in run(config, store, expect=ExitCode.USER_ERROR)


def test_tied_embeddings_stay_tied(store: Store, tmp_path: Path) -> None:
    model = make_model(tmp_path / "tied", tie_word_embeddings=True)
    config = train_config(store, model)

    history = trained(config, store)

    assert history[-1] < history[0]
    path = store.path(config.digest) / "model" / "model.safetensors"
    with safe_open(path, "pt") as weights:
        assert "lm_head.weight" not in weights.keys()  # noqa: SIM118  (no dict)
