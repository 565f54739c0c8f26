"""DeepSpeed's configuration of one attempt under ZeRO 1 to 3, as a plain dictionary; torch-free.

What is left at DeepSpeed's default on purpose: `bf16.check_grad_overflow`, by which an update that
is not finite changes nothing.
"""

from __future__ import annotations

from typing import Any

from latticeforge_trainer.contract import Offload, Strategy
from latticeforge_trainer.estimate.buckets import PREFETCH_BUCKET, REDUCE_BUCKET, SUB_GROUP

PERSISTENCE = 1_000_000
"""ZeRO-3 keeps weights below this whole: norms, biases and an adapter's halves, up to 0.5 million
each, of which every gather costs its latency. The default, 0.1 million, cuts the halves up."""

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
    return {
        "train_micro_batch_size_per_gpu": strategy.micro_batch,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": max_grad_norm,
        # A gradient is added to the sums, and gone, as soon as it is there: ZeRO 1 would keep all.
        "bf16": {"enabled": strategy.precision == "bf16", "immediate_grad_update": True},
        "steps_per_print": NEVER,
        # Our AdamW is torch's own; DeepSpeed would compile its CPU Adam when a pod starts.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": _zero(strategy, cuda),
        # Adding many small bf16 gradients loses their low bits.
        "data_types": {"grad_accum_dtype": "fp32"},
    }


def _zero(strategy: Strategy, cuda: bool) -> dict[str, Any]:
    zero: dict[str, Any] = {
        "stage": strategy.zero_stage,
        "reduce_bucket_size": REDUCE_BUCKET,
        "contiguous_gradients": True,
        # Under ZeRO 2 it costs as much memory as all 16-bit gradients, which another stream may
        # still read when backward has long passed them, and time.
        "overlap_comm": cuda and strategy.zero_stage == 3,
    }
    host = {"device": "cpu", "pin_memory": True}
    if cuda and strategy.offload is not Offload.NONE:
        zero["offload_optimizer"] = host
    if strategy.zero_stage == 3:
        zero |= {
            "sub_group_size": SUB_GROUP,
            "stage3_prefetch_bucket_size": PREFETCH_BUCKET,
            "stage3_param_persistence_threshold": PERSISTENCE,
        }
        if cuda and strategy.offload is Offload.ALL:
            zero["offload_param"] = host
    return zero
