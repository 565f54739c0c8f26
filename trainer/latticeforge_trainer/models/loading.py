"""Loads models for training and for inference: local safetensors only, no code from a repository.

    config → skeleton on the meta device → plan → stream from the files → place → finish

model, tokenizer = load_model(folder, dtype=torch.bfloat16)                  # 16-bit
model, tokenizer = load_model(folder, quantize_nf4=True)                     # QLoRA's base
model, tokenizer = load_for_inference(ref, store)                            # a contract.ModelRef
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)
from transformers.quantizers.auto import AutoHfQuantizer

from latticeforge_trainer.artifacts import Store
from latticeforge_trainer.contract import ModelRef
from latticeforge_trainer.errors import UserError
from latticeforge_trainer.estimate.base_model import NF4
from latticeforge_trainer.estimate.base_model import quantization_of as declared_quantization
from latticeforge_trainer.models.detour import load_with_transformers, nf4_config
from latticeforge_trainer.models.facts import read_config, weight_files
from latticeforge_trainer.models.headers import locate_tensors
from latticeforge_trainer.models.placing import FP8Placement, NF4Placement, Placement
from latticeforge_trainer.models.skeleton import Skeleton
from latticeforge_trainer.models.streaming import Report, stream

log = logging.getLogger(__name__)

Quantize = Literal["nf4", "fp8"]
"""What frozen linear layers are made of as they are read."""

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
    return declared_quantization(read_config(folder, f"model {folder}"))


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False, mistral_format=False
    )
    return tokenizer


def load_weights(
    folder: Path,
    *,
    dtype: torch.dtype = torch.bfloat16,
    quantize: Quantize | None = None,
    device: torch.device | None = None,
    partition: dict[str, Any] | None = None,
    report: Report | None = None,
) -> Any:
    """Load a causal language model.

    Args:
        folder: Model folder with safetensors weights.
        dtype: Type of the weights that are not quantized.
        quantize: Make the linear layers but the head NF4 or FP8, each as it is read; a base stored
            in NF4 loads as it is.
        device: Where to; None: this process's GPU, or the CPU.
        partition: DeepSpeed's configuration when ZeRO-3 is to cut the model up: every process then
            reads only its part.
        report: Called with the bytes that are loaded, and those that will be.

    Returns:
        A `PreTrainedModel` in evaluation mode.

    Raises:
        UserError: The folder holds no model that can be loaded without running its own code.
    """
    config, stored = _read_config(folder), quantization_of(folder)
    if partition is not None and (stored or quantize):
        raise UserError("quantized weights cannot be partitioned: use ZeRO 0 to 2")
    if stored is not None and quantize == "fp8":
        raise UserError(f"{folder} holds {stored} weights, and FP8 is made of 16-bit weights")
    device = device or default_device()
    quantizer = _quantizer(config, stored, quantize, dtype)
    try:
        skeleton = Skeleton(folder, config, dtype, quantizer)
        detour = f"it holds {stored} weights" if stored not in {None, NF4} else skeleton.detour()
        if detour is not None:
            log.debug("model %s: loaded by transformers: %s", folder, detour)
            return load_with_transformers(
                folder,
                dtype=dtype,
                stored=stored,
                quantize=quantize,
                device=device,
                partition=partition,
            )
    except (OSError, ValueError) as error:
        raise UserError(f"model {folder}: {_first_line(error)}") from error
    log.debug("model %s: streamed", folder)
    return _stream(skeleton, quantize, device, partition, report)


def _stream(
    skeleton: Skeleton,
    quantize: Quantize | None,
    device: torch.device,
    partition: dict[str, Any] | None,
    report: Report | None,
) -> Any:
    folder, model = skeleton.folder, skeleton.model
    names = [path.name for path in folder.iterdir()]
    files = weight_files(folder, names, f"model {folder}")
    stored = {k: v for name in files for k, v in locate_tensors(folder / name).items()}
    groups = skeleton.plan(stored)
    placement = Placement(model)
    if partition is not None:
        from latticeforge_trainer.models.partitions import (  # noqa: PLC0415  (loads DeepSpeed)
            PartitionedPlacement,
        )

        placement = PartitionedPlacement(model, groups, partition)
        groups = placement.groups
    elif skeleton.quantizer is not None:
        placement = NF4Placement(model)
    elif quantize == "fp8":
        placement = FP8Placement(model)
    with torch.no_grad():
        for group, tensors in stream(groups, device, report):
            placement.place(group.module, tensors)
    return skeleton.finish(device)


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
    quantize: Quantize | None = "nf4" if quantize_nf4 else None
    model = load_weights(folder, dtype=dtype, quantize=quantize, device=device)
    if adapter is not None:
        # Two seconds that models alone need not pay.
        from latticeforge_trainer.models.adapters import lay_adapter  # noqa: PLC0415

        model = lay_adapter(model, adapter)
    return model.eval(), load_tokenizer(folder)


def _quantizer(
    config: Any, stored: str | None, quantize: Quantize | None, dtype: torch.dtype
) -> Any:
    """What makes layers NF4, and leaves what PEFT and `save_pretrained` look for."""
    if stored is None and quantize == NF4:
        config.quantization_config = nf4_config(dtype)
    elif stored != NF4:
        return None
    make: Any = AutoHfQuantizer.from_config
    quantizer = make(config.quantization_config, pre_quantized=stored is not None)
    config.quantization_config = quantizer.quantization_config
    return quantizer


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
