"""DeepSpeed's configuration of one attempt, as a plain dictionary; torch-free."""

from __future__ import annotations

from typing import Any

from latticeforge_trainer.contract import Offload, Strategy

SUB_GROUP = 100_000_000
"""Parameters that ZeRO-3 steps at a time: the default of 1e9 costs gigabytes of transients."""

REDUCE_BUCKET = 100_000_000
"""Gradients reduced at a time; its buffer is held twice when communication overlaps."""

NEVER = 2**62
"""Steps between DeepSpeed's own progress lines."""


def deepspeed_config(
    strategy: Strategy, *, accumulation: int, max_grad_norm: float, cuda: bool
) -> dict[str, Any]:
    """The `config` of `deepspeed.initialize`.

    Args:
        strategy: How this attempt uses the hardware.
        accumulation: Micro-batches per optimizer step.
        max_grad_norm: Gradients are clipped to this norm.
        cuda: Whether it runs on GPUs: offload has no meaning elsewhere.
    """
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": strategy.micro_batch,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": max_grad_norm,
        "bf16": {"enabled": strategy.precision == "bf16"},
        "steps_per_print": NEVER,
        # Our AdamW is torch's own; DeepSpeed would compile its CPU Adam when a pod starts.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": _zero(strategy, cuda),
    }
    if strategy.zero_stage:
        # Adding many small bf16 gradients loses their low bits; ZeRO-0 offers no choice.
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    return config


def _zero(strategy: Strategy, cuda: bool) -> dict[str, Any]:
    zero: dict[str, Any] = {"stage": strategy.zero_stage}
    if not strategy.zero_stage:
        return zero
    zero |= {"reduce_bucket_size": REDUCE_BUCKET, "contiguous_gradients": True}
    zero |= {"overlap_comm": cuda and strategy.zero_stage > 1}
    host = {"device": "cpu", "pin_memory": True}
    if cuda and strategy.offload is not Offload.NONE:
        zero["offload_optimizer"] = host
    if strategy.zero_stage == 3:
        zero["sub_group_size"] = SUB_GROUP
        if cuda and strategy.offload is Offload.ALL:
            zero["offload_param"] = host
    return zero
