"""Keys that say whether and how an adapter is trained, and how its base is held."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from latticeforge_operator.axolotl.lines import Line, ignored, implied, mapped, unsupported
from latticeforge_operator.axolotl.rules import (
    Key,
    Rule,
    becomes,
    decided,
    harmless,
    keys,
    only,
    plain,
    refused,
    same,
    switches,
)
from latticeforge_operator.axolotl.settings import (
    Settings,
    anything,
    counted,
    mapping,
    number,
    text,
    texts,
)


def _method(settings: Settings) -> str:
    if settings["adapter"] is None:
        return "Full"
    return "QLoRA" if settings["load_in_4bit"] else "LoRA"


def _adapter(key: str, value: str | None, settings: Settings) -> Iterable[Line]:
    if value is not None and value not in {"lora", "qlora"}:
        yield unsupported(key, f"{value}: the adapters here are lora and qlora")
    else:
        yield same(key, "method", _method(settings))


def _four_bit(key: str, value: bool, settings: Settings) -> Iterable[Line]:
    if not value:
        yield ignored(key, "off")
    else:
        yield mapped(key, "method QLoRA: the base is NF4", {"method": _method(settings)})


def _eight_bit(key: str, value: bool, _settings: Settings) -> Iterable[Line]:
    yield (
        implied(key, "the base stays in 16 bits, which is more exact")
        if value
        else ignored(key, "off")
    )


def _modules(value: Any) -> str | list[str]:
    return text(value) if isinstance(value, str) else texts(value)


_TABLES = {
    "embed_tokens": "embed_tokens",
    "embed_in": "embed_tokens",
    "wte": "embed_tokens",
    "lm_head": "lm_head",
    "embed_out": "lm_head",
}
"""Embedding and head by the names that architectures give them."""


def _targets(key: str, value: Any, settings: Settings) -> Iterable[Line]:
    if settings["adapter"] is None:
        yield ignored(key, "there is no adapter")
    elif not isinstance(value, str) and set(value) & set(_TABLES):
        yield unsupported(key, "adapters are laid on linear layers of the decoder here")
    elif settings["lora_target_linear"] or value in ("all-linear", ["all-linear"]):
        yield implied(key, "every linear layer but the head has an adapter")
    elif isinstance(value, str):
        yield same(key, "lora.targetPattern", value)
    else:
        yield same(key, "lora.targetModules", value)


def _all_linear(key: str, value: bool, _settings: Settings) -> Iterable[Line]:
    if value:
        yield implied(key, "every linear layer but the head has an adapter")
    else:
        yield ignored(key, "off")


def _of_adapter(path: str, convert: Callable[[Any], Any] = lambda value: value) -> Rule:
    def rule(key: str, value: Any, settings: Settings) -> Iterable[Line]:
        if settings["adapter"] is None:
            yield ignored(key, "there is no adapter")
        else:
            yield from becomes(path, convert)(key, value, settings)

    return rule


def _saved(key: str, value: list[str], settings: Settings) -> Iterable[Line]:
    found = [name.rpartition(".")[2] for name in value]
    others = [name for name in found if name not in _TABLES]
    if settings["adapter"] is None:
        yield ignored(key, "there is no adapter")
    elif others:
        yield unsupported(
            key, f"{', '.join(others)}: only embedding and head are trained beside an adapter here"
        )
    else:
        tables = sorted({_TABLES[name] for name in found})
        names = ", ".join(tables)
        yield mapped(
            key,
            f"lora.modulesToSave {names}; if the base's head is its embedding, they stay one",
            {"lora.modulesToSave": tables},
        )


def _previous(key: str, value: str, _settings: Settings) -> Iterable[Line]:
    yield unsupported(key, f"{value}: the first stage starts with a fresh adapter here")


_NF4 = {
    "load_in_4bit": True,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
    "bnb_4bit_compute_dtype": "bfloat16",
}


def _quantization(key: str, value: dict[str, Any], _settings: Settings) -> Iterable[Line]:
    others = [name for name, found in value.items() if _NF4.get(name) != found]
    if others:
        yield unsupported(key, f"{', '.join(others)}: QLoRA's base is NF4, quantized twice")
    else:
        yield implied(key, "NF4, its scales quantized again, products in bf16")


def _peft(key: str, value: dict[str, Any], _settings: Settings) -> Iterable[Line]:
    for name, found in value.items():
        if found:
            yield unsupported(f"{key}.{name}", "adapters start as LoRA's paper says here")
        else:
            yield ignored(f"{key}.{name}", "not set")


_FRESH = "a form of adapter that does not exist here"

ADAPTER: dict[str, Key] = {
    **keys("adapter", _adapter, text),
    **switches("load_in_4bit", _four_bit),
    **switches("load_in_8bit", _eight_bit),
    **keys("bnb_config_kwargs", _quantization, mapping),
    **keys("lora_r", _of_adapter("lora.rank"), counted),
    **keys("lora_alpha", _of_adapter("lora.alpha"), counted),
    **keys("lora_dropout", _of_adapter("lora.dropout", plain), number),
    **keys("lora_target_modules", _targets, _modules),
    **switches("lora_target_linear", _all_linear),
    **keys("peft_layers_to_transform", _of_adapter("lora.layers"), anything),
    **switches("peft_use_rslora", _of_adapter("lora.rankStabilized")),
    **keys("lora_modules_to_save", _saved, texts),
    **keys("lora_model_dir", _previous, text),
    **keys("lora_target_parameters", refused("adapters on fused experts do not exist here")),
    **keys(
        "lora_rank_pattern lora_alpha_pattern", refused("one rank and alpha for all layers here")
    ),
    **keys("peft_use_dora", refused(f"DoRA: {_FRESH}")),
    **keys("peft_layer_replication peft_trainable_token_indices", refused(_FRESH)),
    **keys(
        "peft_init_lora_weights",
        only((True, "true"), "as LoRA's paper says", "adapters start as LoRA's paper says here"),
    ),
    **keys("peft", _peft, mapping),
    **keys("lora_fan_in_fan_out", refused("belongs to layers that are stored transposed")),
    **keys(
        "peft_layers_pattern peft_ensure_weight_tying loraplus_lr_embedding",
        harmless("has no effect by itself"),
    ),
    **keys("peft_autocast_adapter_dtype", decided("adapters have 32-bit master weights")),
    **keys(
        "qlora_sharded_model_loading lora_on_cpu merge_lora merge_method",
        decided("each weight is read once, to where it is needed; merging is a step of its own"),
    ),
    **keys("gptq", refused("a GPTQ base: train over the 16-bit model, or QLoRA over NF4")),
}
"""Keys of this module, with their rules."""
