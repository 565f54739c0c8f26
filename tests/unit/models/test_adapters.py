"""Adapters that the fast paths train are PEFT's, and PEFT's are theirs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from tests.fixtures.fast_paths import in_nf4, packed_documents, quantize, relative_error
from tests.fixtures.tiny_model import VOCABULARY, make_model
from transformers import AutoModelForCausalLM

from latticeforge_trainer.contract import LoRASettings, Method, Recompute, Table, TrainPayload
from latticeforge_trainer.errors import UserError
from latticeforge_trainer.models.adapters import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    add_adapter,
    continue_adapter,
)
from latticeforge_trainer.models.documents import Boundaries
from latticeforge_trainer.models.fused import fuse
from latticeforge_trainer.training.export import export_adapter
from latticeforge_trainer.training.loss import TargetLoss
from latticeforge_trainer.training.plain import PlainEngine

TOKENS = torch.arange(20).mul(13).remainder(256)[None]


def base(folder: Path, method: str = "LoRA") -> Any:
    """The tiny model on disk, in the format of a method."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    quantize(model, method)
    return model


def fast_logits(model: Any) -> torch.Tensor:
    """The logits of `TOKENS` by a fused model."""
    boundaries = Boundaries.of(torch.arange(20)[None])
    causal = model.get_base_model()
    with torch.no_grad():
        hidden = causal.get_decoder()(input_ids=TOKENS, use_cache=False, boundaries=boundaries)
        logits: torch.Tensor = causal.lm_head(hidden.last_hidden_state)
    return logits


def peft_logits(model: Any) -> torch.Tensor:
    """The same by PEFT's and transformers' own forward."""
    with torch.no_grad():
        logits: torch.Tensor = model(TOKENS, use_cache=False).logits
    return logits


def train(model: Any, settings: LoRASettings, steps: int = 3) -> PlainEngine:
    """Some steps on the fast paths."""
    payload = TrainPayload(
        method=Method.LORA,
        lora=settings,
        learning_rate=1e-2,
        sequence_length=16,
        global_batch_tokens=32,
    )
    engine = PlainEngine(TargetLoss(model), payload, accumulation=1, processes=1)
    fuse(model, [Recompute.ELEMENTWISE, Recompute.LAYERS])
    batch, _ = packed_documents([(5, 11), (9, 7)], 256)
    for _ in range(steps):
        engine.backward(engine.forward(batch, len(batch.targets)), last=True)
        engine.update(1e-2)
    return engine


LINEARS = [f"self_attn.{part}_proj" for part in "qkvo"] + [
    f"mlp.{part}_proj" for part in ("gate", "up", "down")
]
SETTINGS = [
    LoRASettings(rank=4, alpha=8),
    LoRASettings(rank=5, alpha=3, rank_stabilized=True),
    LoRASettings(rank=4, alpha=8, target_modules=["q_proj", "down_proj"]),
    LoRASettings(rank=4, alpha=8, target_modules=["v_proj", "gate_proj"], layers=[1]),
    LoRASettings(rank=4, alpha=8, target_modules=r".*layers\.0\.(mlp\.up|self_attn\.o)_proj"),
]
IDS = ["plain", "rank-stabilized", "some modules", "one layer", "a pattern"]


@pytest.mark.parametrize("method", ["LoRA", "QLoRA", "FP8"])
@pytest.mark.parametrize("settings", SETTINGS, ids=IDS)
def test_an_adapter_trained_here_gives_peft_the_same_logits(
    settings: LoRASettings, method: str, tiny_model: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = add_adapter(base(tiny_model, method), settings)
    untrained = peft_logits(model)
    engine = train(model, settings)
    export_adapter(engine, tiny_model, tmp_path)
    found = fast_logits(model)

    loaded = PeftModel.from_pretrained(base(tiny_model, method), tmp_path).train()

    written = json.loads((tmp_path / ADAPTER_CONFIG).read_text())
    assert (written["r"], written["lora_alpha"]) == (settings.rank, settings.alpha)
    assert written["use_rslora"] is settings.rank_stabilized
    limit = 0.02 if method == "FP8" else 1e-5  # a last bit may decide how an operand is rounded
    assert relative_error(peft_logits(loaded), found) < limit
    assert relative_error(untrained, found) > 0.05


@pytest.mark.parametrize("settings", SETTINGS, ids=IDS)
def test_an_adapter_of_peft_goes_on_here_with_the_same_logits(
    settings: LoRASettings, tiny_model: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # PEFT declares int, and divides it
        use_rslora=settings.rank_stabilized,
        target_modules=settings.target_modules or "all-linear",
        layers_to_transform=settings.layers,
        init_lora_weights=False,
    )
    made = get_peft_model(base(tiny_model), config)
    made.save_pretrained(str(tmp_path))

    model = continue_adapter(base(tiny_model), tmp_path, settings)
    engine = train(model, settings, steps=0)

    assert relative_error(fast_logits(model), peft_logits(made)) < 1e-5
    trained = {name for name, p in engine.loss.model.named_parameters() if p.requires_grad}
    assert trained == {name for name, _ in made.named_parameters() if "lora_" in name}


TABLES: list[list[Table]] = [["embed_tokens"], ["lm_head"], ["embed_tokens", "lm_head"]]


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def with_head(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose head is its embedding, or is not."""
    folder = tmp_path_factory.mktemp("with-head")
    return make_model(folder, tie_word_embeddings=request.param)


def tables_of(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The weights of embedding and head that a model computes with."""
    causal = model.get_base_model()
    return causal.get_input_embeddings().weight, causal.get_output_embeddings().weight


@pytest.mark.parametrize("tables", TABLES, ids="+".join)
def test_tables_trained_here_give_peft_the_same_logits_and_go_on(
    tables: list[Table], with_head: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    settings = LoRASettings(rank=4, alpha=8, modules_to_save=tables)
    untrained = base(with_head)
    tied = untrained.config.tie_word_embeddings
    model = add_adapter(base(with_head), settings)
    export_adapter(train(model, settings), with_head, tmp_path)
    found = fast_logits(model)

    loaded = PeftModel.from_pretrained(base(with_head), tmp_path)
    again = continue_adapter(base(with_head), tmp_path, settings)

    assert relative_error(peft_logits(loaded.eval()), found) < 1e-5
    assert relative_error(peft_logits(again.eval()), found) < 1e-5
    trained = ["embed_tokens", "lm_head"] if tied else tables
    whole = {name for name in load_file(tmp_path / ADAPTER_WEIGHTS) if "lora_" not in name}
    places = {"embed_tokens": "model.embed_tokens", "lm_head": "lm_head"}
    assert whole == {f"base_model.model.{places[name]}.weight" for name in trained}
    for of in (loaded, again):
        embedding, head = tables_of(of)
        assert (embedding is head) is tied
        moved = not torch.equal(embedding, untrained.get_input_embeddings().weight)
        assert moved is ("embed_tokens" in trained)
        moved = not torch.equal(head, untrained.get_output_embeddings().weight)
        assert moved is ("lm_head" in trained)
    assert {n for n, p in again.named_parameters() if p.requires_grad} == {
        n for n, p in model.named_parameters() if p.requires_grad
    }


def test_an_adapter_without_the_table_does_not_go_on(tiny_model: Path, tmp_path: Path) -> None:
    settings = LoRASettings(rank=4, alpha=8, modules_to_save=["lm_head"])
    add_adapter(base(tiny_model), settings).save_pretrained(str(tmp_path))

    other = settings.model_copy(update={"modules_to_save": ["embed_tokens", "lm_head"]})
    with pytest.raises(UserError, match="saved with lm_head, but asks for embed_tokens and lm_hea"):
        continue_adapter(base(tiny_model), tmp_path, other)
    with pytest.raises(UserError, match="saved with lm_head, but asks for nothing beside it: use"):
        continue_adapter(base(tiny_model), tmp_path, LoRASettings(rank=4, alpha=8))


def test_the_base_has_no_second_copy_of_what_is_trained(tiny_model: Path) -> None:
    model = add_adapter(base(tiny_model), LoRASettings(modules_to_save=["embed_tokens"]))
    assert sum(p.shape == (VOCABULARY, 128) for p in model.parameters()) == 2  # and the head


def test_a_quantized_head_is_not_trained(tiny_model: Path) -> None:
    model = base(tiny_model)
    model.lm_head = in_nf4(model.lm_head)[0]
    with pytest.raises(UserError, match=r"^lora\.modulesToSave lm_head: the base holds it quantiz"):
        add_adapter(model, LoRASettings(modules_to_save=["lm_head"]))


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"rank": 8}, "asks for rank 8, alpha 8:"),
        ({"alpha": 16}, "asks for rank 4, alpha 16:"),
        ({"rank_stabilized": True}, "asks for rank 4, alpha 8, rank-stabilized:"),
    ],
)
def test_an_adapter_of_another_shape_does_not_go_on(
    change: dict[str, Any], found: str, tiny_model: Path, tmp_path: Path
) -> None:
    settings = LoRASettings(rank=4, alpha=8)
    add_adapter(base(tiny_model), settings).save_pretrained(str(tmp_path))

    with pytest.raises(UserError, match=found):
        continue_adapter(base(tiny_model), tmp_path, settings.model_copy(update=change))


@pytest.mark.parametrize(
    ("targets", "layers", "adapted"),
    [
        (["q_proj"], None, {"layers.0.self_attn.q_proj", "layers.1.self_attn.q_proj"}),
        (["q_proj", "o_proj"], [1], {"layers.1.self_attn.q_proj", "layers.1.self_attn.o_proj"}),
        (None, [0], {f"layers.0.{name}" for name in LINEARS}),
        (r".*\.0\.mlp\.(up|gate)_proj", None, {"layers.0.mlp.up_proj", "layers.0.mlp.gate_proj"}),
    ],
)
def test_exactly_what_is_asked_for_gets_an_adapter(
    targets: list[str] | str | None, layers: list[int] | None, adapted: set[str], tiny_model: Path
) -> None:
    model = add_adapter(base(tiny_model), LoRASettings(target_modules=targets, layers=layers))

    names = {name.split(".lora_")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert {name.removeprefix("base_model.model.model.") for name in names} == adapted


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (LoRASettings(target_modules=["no_proj"]), r"^lora\.targetModules \['no_proj'\]: "),
        (LoRASettings(target_modules=".*no_proj"), r"^lora\.targetPattern \.\*no_proj: "),
        (LoRASettings(target_modules=["q_proj"], layers=[7]), r"lora\.layers \[7\]: "),
    ],
)
def test_a_target_that_does_not_exist_is_named(
    settings: LoRASettings, named: str, tiny_model: Path
) -> None:
    with pytest.raises(UserError, match=named):
        add_adapter(base(tiny_model), settings)
