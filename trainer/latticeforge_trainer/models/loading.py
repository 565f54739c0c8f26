"""Loads models for training and for inference: local safetensors only, no code from a repository.

model, tokenizer = load_model(folder, dtype=torch.bfloat16)                  # 16-bit
model, tokenizer = load_model(folder, quantize_nf4=True)                     # QLoRA's base
model, tokenizer = load_for_inference(ref, store)                            # a contract.ModelRef
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from latticeforge_trainer.artifacts import Store
from latticeforge_trainer.contract import ModelRef
from latticeforge_trainer.errors import UserError

MODEL_FOLDER = "model"
"""Where a train or merge artifact keeps a whole model."""

ADAPTER_FOLDER = "adapter"
"""Where a train artifact keeps an adapter."""


def source_folder(store: Store, base_path: str, artifact: str | None) -> Path:
    """The folder of a stage's starting weights: an earlier artifact's model, or the base.

    Raises:
        UserError: It does not exist.
    """
    if artifact is not None:
        return store.require(artifact, "the previous stage's model") / MODEL_FOLDER
    folder = store.resolve(base_path)
    if folder is None or not (folder / "config.json").is_file():
        raise UserError(
            f"base model {base_path}: no config.json in {folder or store.root}: "
            "was the volume replaced? Run the prepare step again"
        )
    return folder


def default_device() -> torch.device:
    """This process's GPU if there is one, else the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else CPU


CPU = torch.device("cpu")


def quantization_of(folder: Path) -> str | None:
    """`nf4` or another quantization that the model's own config declares; None for 16- and 32-bit.

    Raises:
        UserError: The folder holds no readable config.
    """
    config = _read_config(folder)
    quantization = getattr(config, "quantization_config", None)
    if quantization is None:
        return None
    if not isinstance(quantization, dict):
        quantization = quantization.to_dict()
    kind = quantization.get("bnb_4bit_quant_type") if quantization.get("load_in_4bit") else None
    return str(kind or quantization.get("quant_method", "unknown"))


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False
    )
    return tokenizer


def load_weights(
    folder: Path,
    *,
    dtype: torch.dtype = torch.bfloat16,
    quantize_nf4: bool = False,
    device: torch.device | None = None,
) -> Any:
    """Load a causal language model.

    Args:
        folder: Model folder with safetensors weights.
        dtype: Type of the weights that are not quantized.
        quantize_nf4: Quantize the linear layers to NF4; a base stored in NF4 loads as it is.
        device: Where to; None: this process's GPU, or the CPU.

    Returns:
        A `PreTrainedModel` in evaluation mode.

    Raises:
        UserError: The folder holds no model that can be loaded without running its own code.
    """
    stored = quantization_of(folder)
    quantized = stored is not None or quantize_nf4
    device = device or default_device()
    options: dict[str, Any] = {"device_map": {"": device}} if quantized else {}
    if quantize_nf4 and stored is None:
        options["quantization_config"] = nf4_config(dtype)
    quiet: Any = transformers_logging  # untyped, like all of transformers' functions
    quiet.disable_progress_bar()
    try:
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
    except (OSError, ValueError) as error:
        raise UserError(f"model {folder}: {_first_line(error)}") from error
    model, report = loaded
    if report["missing_keys"]:  # transformers would train on random numbers in their place
        raise UserError(f"model {folder}: weights are missing: {min(report['missing_keys'])}")
    return model if quantized else model.to(device)


def load_model(
    folder: Path,
    *,
    adapter: Path | None = None,
    dtype: torch.dtype = torch.bfloat16,
    quantize_nf4: bool = False,
    device: torch.device | None = None,
) -> tuple[Any, PreTrainedTokenizerBase]:
    """Load a model for inference, as `load_weights` does, and its tokenizer.

    Args:
        folder: Model folder with safetensors weights.
        adapter: Folder of a PEFT adapter to lay on top, not merged.
        dtype: Type of the weights that are not quantized.
        quantize_nf4: Quantize the linear layers to NF4.
        device: Where to; None: this process's GPU, or the CPU.

    Returns:
        A `PreTrainedModel`, or a `PeftModel` around one, in evaluation mode; and the tokenizer.

    Raises:
        UserError: The folder holds no model that can be loaded without running its own code.
    """
    model = load_weights(folder, dtype=dtype, quantize_nf4=quantize_nf4, device=device)
    if adapter is not None:
        from peft import PeftModel  # noqa: PLC0415  (two seconds that models alone need not pay)

        model = PeftModel.from_pretrained(model, adapter, local_files_only=True)
    return model.eval(), load_tokenizer(folder)


def nf4_config(dtype: torch.dtype) -> Any:
    """QLoRA's quantization: NF4 with double quantization, computing in `dtype`."""
    make: Any = BitsAndBytesConfig
    return make(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def load_for_inference(
    reference: ModelRef, store: Store, *, device: torch.device | None = None
) -> tuple[Any, PreTrainedTokenizerBase]:
    """Load the model that a `ModelRef` names, with its adapter on top if it has one.

    Raises:
        UserError: A folder or artifact is missing, or cannot be loaded.
    """
    folder = source_folder(store, reference.base_path, reference.artifact)
    adapter = None
    if reference.adapter is not None:
        adapter = store.require(reference.adapter, f"{reference.name}'s adapter") / ADAPTER_FOLDER
    return load_model(folder, adapter=adapter, device=device)


def _read_config(folder: Path) -> Any:
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(f"model {folder}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
