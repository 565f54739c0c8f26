"""Loads what `loading` does not stream: transformers' own loader, slower and with larger peaks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from transformers.utils import logging as transformers_logging

from latticeforge_trainer.errors import UserError
from latticeforge_trainer.estimate.base_model import NF4
from latticeforge_trainer.models.placing import linear_layers, to_fp8


def load_with_transformers(
    folder: Path,
    *,
    dtype: torch.dtype,
    stored: str | None,
    quantize: str | None,
    device: torch.device,
    partition: dict[str, Any] | None,
) -> Any:
    """What `load_weights` promises, for one whose layout only transformers knows.

    Args:
        folder: As for `load_weights`, like all others.
        dtype: See there.
        stored: The quantization that the weights are stored in.
        quantize: See there.
        device: See there.
        partition: See there.

    Raises:
        OSError: A file cannot be read.
        ValueError: Transformers cannot load it.
        UserError: Weights are missing.
    """
    quantized = stored is not None or quantize == NF4
    options: dict[str, Any] = {"device_map": {"": device}} if quantized else {}
    if stored is None and quantize == NF4:
        options["quantization_config"] = nf4_config(dtype)
    quiet: Any = transformers_logging  # untyped, like all of transformers' functions
    quiet.disable_progress_bar()
    with nullcontext() if partition is None else _partitioned_loading(partition):
        # With its report, which the declared return type knows nothing of.
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            **options,
        )
    model, info = loaded
    if info["missing_keys"]:  # transformers would train on random numbers in their place
        raise UserError(f"model {folder}: weights are missing: {min(info['missing_keys'])}")
    if not (quantized or partition):
        model = model.to(device)
    if quantize == "fp8":
        for name in [name for name, _ in linear_layers(model)]:
            to_fp8(model, name)
    return model


@contextmanager
def _partitioned_loading(ds_config: dict[str, Any]) -> Iterator[None]:
    """In the block, transformers hands every weight it loads to ZeRO-3 in partitions."""
    from transformers.integrations.deepspeed import HfDeepSpeedConfig  # noqa: PLC0415  (ZeRO-3)

    configure: Any = HfDeepSpeedConfig  # untyped
    alive = configure(ds_config)  # transformers finds it through a weak reference
    yield
    del alive


def nf4_config(dtype: torch.dtype) -> Any:
    """QLoRA's quantization: NF4 with double quantization, computing in `dtype`."""
    make: Any = BitsAndBytesConfig
    return make(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
