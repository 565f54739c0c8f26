"""LoRA adapters: a fresh one, an earlier stage's to go on with, and PEFT's own format on disk.

Embedding and head may be trained in full beside one: PEFT puts a copy in place of each, and saves
it with the adapter. Ties stay: PEFT would untie a head from its embedding without a word, and lose
one of the two when the model is merged.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.utils.other import ModulesToSaveWrapper
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel

from latticeforge_trainer.contract import LoRASettings
from latticeforge_trainer.errors import UserError

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


def add_adapter(model: PreTrainedModel, settings: LoRASettings) -> PeftModel:
    """Freeze a model and lay a fresh adapter on it.

    Raises:
        UserError: A target module does not exist, or a table to train is quantized.
    """
    targets = settings.target_modules or "all-linear"
    if settings.layers is not None and settings.target_modules is None:
        targets = linear_names(model)  # PEFT takes numbers of layers only beside a list of names
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # PEFT declares int, and divides it
        lora_dropout=settings.dropout,
        use_rslora=settings.rank_stabilized,
        target_modules=targets,
        layers_to_transform=settings.layers,
        bias="none",
        **_saving(model, settings),
    )
    try:
        # Adapters keep the base's type here: DeepSpeed holds their fp32 master weights.
        adapted = get_peft_model(model, config, autocast_adapter_dtype=False)
    except ValueError as error:
        raise UserError(f"{_targets(settings)}: {error}") from error
    _release_originals(adapted)
    return adapted


def _saving(model: PreTrainedModel, settings: LoRASettings) -> dict[str, Any]:
    """What PEFT is told of the tables that are trained beside the adapter."""
    asked = settings.modules_to_save
    if not asked:
        return {}
    tables: dict[str, Any] = {
        "embed_tokens": model.get_input_embeddings(),
        "lm_head": model.get_output_embeddings(),  # type: ignore[no-untyped-call]  # transformers
    }
    tied = tables["embed_tokens"].weight is tables["lm_head"].weight
    names = {module: name.rpartition(".")[2] for name, module in model.named_modules()}
    wanted = ["embed_tokens"] if tied else asked  # PEFT adds what is tied to it
    for name in wanted:
        if not tables[name].weight.is_floating_point():
            raise UserError(f"lora.modulesToSave {name}: the base holds it quantized: leave it out")
    return {
        "modules_to_save": [names[tables[name]] for name in wanted],
        "ensure_weight_tying": tied,
    }


def _release_originals(model: PeftModel) -> None:
    """Free the weights that PEFT keeps beneath the trained copies, which nothing computes with."""
    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper):
            module.original_module = nn.Identity()


def linear_names(model: PreTrainedModel) -> list[str]:
    """What the linear layers but the head are called within their own modules."""
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]  # transformers
    linears = (n for n, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head)
    return sorted({name.rpartition(".")[2] for name in linears})


def _targets(settings: LoRASettings) -> str:
    """What was asked for, by the names of the fields."""
    named = "targetPattern" if isinstance(settings.target_modules, str) else "targetModules"
    layers = "" if settings.layers is None else f", lora.layers {settings.layers}"
    return f"lora.{named} {settings.target_modules}{layers}"


def continue_adapter(model: PreTrainedModel, folder: Path, settings: LoRASettings) -> PeftModel:
    """Load an earlier stage's adapter to train it further.

    Raises:
        UserError: Its rank, alpha or trained tables are not what this stage asks for.
    """
    config = json.loads((folder / ADAPTER_CONFIG).read_text())
    found = config["r"], config["lora_alpha"], bool(config.get("use_rslora"))
    asked = settings.rank, settings.alpha, settings.rank_stabilized
    if found != asked:
        kinds = {False: "", True: ", rank-stabilized"}
        raise UserError(
            f"this stage continues an adapter of rank {found[0]}, alpha {found[1]:g}"
            f"{kinds[found[2]]}, but asks for rank {asked[0]}, alpha {asked[1]:g}"
            f"{kinds[asked[2]]}: use the same, or handoff Merge"
        )
    # PEFT adds a tied table by its whole name.
    saved = {name.rpartition(".")[2] for name in config.get("modules_to_save") or []}
    saving = set(_saving(model, settings).get("modules_to_save", []))
    if saved != saving:
        raise UserError(
            f"this stage continues an adapter that was saved with {_listed(saved)}, but asks for "
            f"{_listed(saving)}: use the same lora.modulesToSave, or handoff Merge"
        )
    return lay_adapter(model, folder, is_trainable=True, autocast_adapter_dtype=False)


def lay_adapter(model: PreTrainedModel, folder: Path, **options: Any) -> PeftModel:
    """Lay an adapter in PEFT's format on a model; `options` are those of `from_pretrained`."""
    adapted = PeftModel.from_pretrained(model, folder, local_files_only=True, **options)
    _release_originals(adapted)
    return adapted


def _listed(names: set[str]) -> str:
    return " and ".join(sorted(names)) or "nothing beside it"


def save_adapter(
    model: PeftModel, weights: dict[str, torch.Tensor], folder: Path, base_name: str
) -> None:
    """Write an adapter in PEFT's format.

    Args:
        model: The model it was trained in, for its config.
        weights: Trainable parameters by their name in `model`, on the CPU.
        folder: Where to; made if missing.
        base_name: What `base_model_name_or_path` says.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = get_peft_model_state_dict(model, state_dict=weights, save_embedding_layers=False)
    save_file(
        {name: tensor.contiguous() for name, tensor in state.items()},
        folder / ADAPTER_WEIGHTS,
        metadata={"format": "pt"},
    )
    document: dict[str, Any] = model.peft_config["default"].to_dict()
    document |= {"base_model_name_or_path": base_name, "inference_mode": True}
    text = json.dumps(document, indent=1, sort_keys=True, default=sorted)  # sets become lists
    (folder / ADAPTER_CONFIG).write_text(text)
