"""Keys that say how a stage is trained: batch, length, schedule, optimizer, regularization."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from latticeforge_operator.axolotl.lines import Line, ignored, implied, mapped, unsupported
from latticeforge_operator.axolotl.rules import (
    Key,
    Rule,
    becomes,
    decided,
    keys,
    only,
    plain,
    refused,
    same,
    scientific,
    switches,
)
from latticeforge_operator.axolotl.settings import (
    Settings,
    counted,
    mapping,
    number,
    positive,
    text,
    whole,
)

_HYPER = "hyperparameters"
_EXACT = "32-bit moments"
_OPTIMIZERS: dict[str, tuple[str, str]] = {
    **dict.fromkeys(
        ["adamw_torch", "adamw_torch_fused", "adamw_torch_xla", "adamw_hf", "adamw_apex_fused"],
        ("FP32", "AdamW"),
    ),
    **dict.fromkeys(
        ["paged_adamw", "paged_adamw_32bit"],
        ("FP32", "AdamW; what is kept in host memory is the planner's choice"),
    ),
    **dict.fromkeys(
        ["adamw_anyprecision", "optimi_adamw"],
        ("FP32", f"AdamW with {_EXACT}, which is more exact"),
    ),
    **dict.fromkeys(
        ["adamw_bnb_8bit", "adamw_8bit", "adamw_torch_8bit", "ao_adamw_8bit", "paged_adamw_8bit"],
        ("INT8", "AdamW with 8-bit moments"),
    ),
    **dict.fromkeys(["flash_adamw", "ao_adamw_fp8"], ("INT8", "AdamW with 8-bit moments")),
    **dict.fromkeys(
        ["adamw_torch_4bit", "ao_adamw_4bit"],
        ("INT8", "AdamW with 8-bit moments, which is more exact than 4"),
    ),
}
"""Optimizers that are AdamW: how their moments are held, and what the report says."""

_SCHEDULES = {
    "cosine": "cosine",
    "cosine_with_min_lr": "cosine",
    "linear": "linear",
    "constant": "constant",
    "constant_with_warmup": "constant",
}


def sequences_per_step(settings: Settings) -> int:
    """Axolotl's batch: sequences, or samples where it does not pack, of one optimizer step."""
    micro: int = settings["micro_batch_size"]
    accumulation: int = settings["gradient_accumulation_steps"]
    if settings["batch_size"]:
        accumulation = max(1, settings["batch_size"] // micro)
    return micro * accumulation * data_parallel(settings)


def data_parallel(settings: Settings) -> int:
    """GPUs that see different data: those of one model or one sequence count once."""
    shared = (settings.first("context_parallel_size", "sequence_parallel_degree") or 1) * (
        settings["tensor_parallel_size"] or 1
    )
    return max(1, settings.gpus // shared)


def _batch(key: str, _value: Any, settings: Settings) -> Iterable[Line]:
    count = sequences_per_step(settings)
    length = settings["sequence_len"]
    factors = (
        f"batch_size {settings['batch_size']}"
        if settings["batch_size"]
        else f"micro_batch_size {settings['micro_batch_size']} × "
        f"gradient_accumulation_steps {settings['gradient_accumulation_steps']}"
    )
    gpus = data_parallel(settings)
    product = f"{factors} × {gpus} GPU{'s' if gpus > 1 else ''}"
    if settings["sample_packing"]:
        fields = {f"{_HYPER}.globalBatchTokens": count * length}
        yield mapped(key, f"{product} × {length} tokens = {count * length:,} per step", fields)
    else:
        fields = {f"{_HYPER}.globalBatchSamples": count}
        yield mapped(key, f"{product} = {count} samples per step", fields)


def _epochs(key: str, value: float, settings: Settings) -> Iterable[Line]:
    if settings["max_steps"] and settings["max_steps"] > 0:
        yield implied(key, "max_steps decides")
        return
    if value != int(value):
        yield unsupported(key, f"{value:g}: epochs are whole here")
        return
    yield same(key, f"{_HYPER}.epochs", int(value))


def _max_steps(key: str, value: float, _settings: Settings) -> Iterable[Line]:
    if value <= 0:
        yield ignored(key, "no limit")
    else:
        yield same(key, f"{_HYPER}.maxSteps", int(value))


def _optimizer(key: str, value: str, settings: Settings) -> Iterable[Line]:
    states, sentence = _OPTIMIZERS.get(value, ("", ""))
    if not states:
        yield unsupported(key, f"{value}: trained with AdamW here")
    elif states == "INT8" and settings["adapter"] is not None:
        yield implied(key, f"AdamW with {_EXACT}: more exact, and small for an adapter")
    else:
        yield mapped(key, sentence, {f"{_HYPER}.optimizerStates": states})


def _schedule(key: str, value: str, _settings: Settings) -> Iterable[Line]:
    shape = _SCHEDULES.get(value)
    if shape is None:
        yield unsupported(key, f"{value}: the schedules here are cosine, linear and constant")
        return
    fields = {f"{_HYPER}.schedule": shape}
    if value == "constant":
        fields[f"{_HYPER}.warmupRatio"] = "0"
    yield mapped(key, f"{_HYPER}.schedule {shape}", fields)


def _schedule_options(key: str, value: dict[str, Any], settings: Settings) -> Iterable[Line]:
    ratio = value.get("min_lr_rate")
    if settings["lr_scheduler"] == "cosine_with_min_lr" and set(value) == {"min_lr_rate"}:
        yield same(key, f"{_HYPER}.minLearningRateRatio", plain(positive(ratio)))
    else:
        yield unsupported(key, f"{', '.join(sorted(value))}: the schedule has no such options here")


def _warmup(key: str, value: float, settings: Settings) -> Iterable[Line]:
    if settings["lr_scheduler"] == "constant":
        yield ignored(key, "the constant schedule has no warm-up")
    elif key == "warmup_ratio" and settings["warmup_steps"] is not None:
        yield ignored(key, "warmup_steps decides")
    elif key == "warmup_steps" and value >= 1:
        steps = max(2, int(value))  # Axolotl makes two of one
        yield same(key, f"{_HYPER}.warmupSteps", steps)
    elif value >= 1:
        yield unsupported(key, f"{value:g}: a share of the steps is less than 1")
    else:
        yield same(key, f"{_HYPER}.warmupRatio", plain(value))


def _minimum_rate(key: str, value: float, settings: Settings) -> Iterable[Line]:
    if not value:
        yield ignored(key, "falls to zero, as here")
    elif settings["lr_scheduler"] != "cosine":
        yield ignored(key, f"has no effect on lr_scheduler {settings['lr_scheduler']}")
    elif value > 1:
        yield unsupported(key, f"{value:g}: the rate falls to a share of its peak, at most 1")
    else:
        yield same(key, f"{_HYPER}.minLearningRateRatio", plain(value))


def _clipping(key: str, value: float, _settings: Settings) -> Iterable[Line]:
    if value <= 0:
        yield unsupported(key, "0 clips nothing; gradients are clipped to norm 1 here")
    else:
        yield same(key, f"{_HYPER}.maxGradNorm", plain(value))


def _packing(key: str, value: bool, _settings: Settings) -> Iterable[Line]:
    if value:
        yield implied(key, "samples are packed; attention stays within each")
    else:
        yield implied(key, "a step has as many samples as there; they are packed all the same")


def _noise(key: str, value: float, _settings: Settings) -> Iterable[Line]:
    if not value:
        yield ignored(key, "off")
    else:
        yield same(key, f"{_HYPER}.neftuneNoiseAlpha", plain(value))


def _validation(key: str, value: float, _settings: Settings) -> Iterable[Line]:
    if not value:
        yield ignored(key, "nothing is held out")
    elif value >= 1:
        yield unsupported(key, f"{value:g} samples: what is held out is a share below 1 here")
    else:
        yield same(key, f"{_HYPER}.validationShare", plain(value))


def _precision(name: str) -> Rule:
    def rule(key: str, value: Any, settings: Settings) -> Iterable[Line]:
        wide = (settings["bf16"], settings["bfloat16"], settings["fp16"], settings["float16"])
        if value in (False, "false") and not any(wide) and key == "bf16":
            yield unsupported(key, "32-bit products: computed in bf16 here, over 32-bit masters")
        elif value in (False, "false"):
            yield ignored(key, "off")
        else:
            yield implied(key, name)

    return rule


_BF16 = "computed in bf16, over 32-bit master weights"
_FP16 = "computed in bf16 instead: the same size, a wider range, no loss scaling"
_AUTO = "recomputes as little in backward as memory allows, layer by layer"
_BATCH_ONLY = "the validation loss is taken at the end of each epoch, over whole batches"

TRAINING: dict[str, Key] = {
    **keys("micro_batch_size gradient_accumulation_steps", _batch, counted),
    **keys("batch_size", _batch, counted),
    **keys("sequence_len", becomes(f"{_HYPER}.sequenceLength"), counted),
    **keys("num_epochs", _epochs, positive),
    **keys("max_steps", _max_steps, number),
    **keys("learning_rate", becomes(f"{_HYPER}.learningRate", scientific), positive),
    **keys("lr_scheduler", _schedule, text),
    **keys("lr_scheduler_kwargs", _schedule_options, mapping),
    **keys("warmup_steps warmup_ratio", _warmup, number),
    **keys("cosine_min_lr_ratio", _minimum_rate, number),
    **keys("cosine_constant_lr_ratio", refused("the rate does not stay constant at the end here")),
    **keys("weight_decay", becomes(f"{_HYPER}.weightDecay", plain), number),
    **keys("max_grad_norm", _clipping, number),
    **keys("optimizer", _optimizer, text),
    **keys("adam_beta1", becomes(f"{_HYPER}.adamBeta1", plain), number),
    **keys("adam_beta2", becomes(f"{_HYPER}.adamBeta2", plain), number),
    **keys("adam_epsilon", becomes(f"{_HYPER}.adamEpsilon", scientific), positive),
    **keys("neftune_noise_alpha noisy_embedding_alpha", _noise, number),
    **keys("val_set_size", _validation, number),
    **keys("seed", becomes(f"{_HYPER}.seed"), whole),
    **switches("sample_packing", _packing),
    **keys("bf16", _precision(_BF16)),
    **switches("bfloat16", _precision(_BF16)),
    **switches("fp16 float16", _precision(_FP16)),
    **switches("float32", refused("32-bit weights and products: computed in bf16 here")),
    **switches(
        "fp8 fp8_enable_fsdp_float8_all_gather",
        refused("products in 8 bits; computed in bf16 here (lora.baseDtype FP8 is the nearest)"),
    ),
    **keys("gradient_checkpointing", decided(_AUTO)),
    **keys("gradient_checkpointing_kwargs selective_checkpointing", decided(_AUTO)),
    **keys("activation_offloading layer_offloading", decided(_AUTO)),
    **keys("eval_batch_size eval_sample_packing eval_sequence_len", decided(_BATCH_ONLY)),
    **keys("eval_steps evals_per_epoch eval_strategy evaluation_strategy", decided(_BATCH_ONLY)),
    **keys("pad_to_sequence_len pad_to_multiple_of", decided("padding is never learned from")),
    **keys(
        "sample_packing_group_size sample_packing_bin_size sample_packing_sequentially "
        "sample_packing_mp_start_method sample_packing_eff_est multipack_real_batches "
        "batch_flattening group_by_length",
        decided("samples are packed best-fit in shuffled windows, under one per cent of padding"),
    ),
    **keys("auto_find_batch_size", decided("the planner chooses the micro-batch, not the batch")),
    **switches("curriculum_sampling", refused("samples keep the file's order; shuffled here")),
    **keys(
        "loss_watchdog_threshold loss_watchdog_patience",
        decided(
            "NaN and Inf go back to the last good checkpoint; a high loss alone does not end a run"
        ),
    ),
    **keys("early_stopping_patience", refused("stops early; trained to the end here")),
    **switches("load_best_model_at_end", refused("the last weights are the result here")),
    **keys(
        "embedding_lr embedding_lr_scale lr_groups loraplus_lr_ratio",
        refused("some weights get a learning rate of their own; all have the same here"),
    ),
    **keys("lr_quadratic_warmup", refused("the warm-up is linear here")),
    **keys("lr_div_factor", refused("belongs to schedules that do not exist here")),
    **keys("optim_args", refused("options for the optimizer; adam_beta1 and the like are read")),
    **keys("optim_target_modules", refused("GaLore; all weights are trained by AdamW here")),
    **keys(
        "jagged_restart_steps jagged_restart_warmup_steps jagged_restart_anneal_steps",
        refused("the schedule does not restart here"),
    ),
    **keys("fp32_norms fp32_norm_classes", decided("norms are computed in 32 bits")),
    **keys(
        "tf32",
        only(
            (True, False, "auto"),
            "no 32-bit products are left to speed up",
            "must be true, false or auto",
        ),
    ),
}
"""Keys of this module, with their rules."""
