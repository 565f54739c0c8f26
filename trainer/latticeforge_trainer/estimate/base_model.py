"""What a base model is, from its `config.json`: parameters by kind, and what is on disk."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from latticeforge_trainer.contract import Method
from latticeforge_trainer.estimate.errors import EstimateError
from latticeforge_trainer.estimate.shapes import (
    FAMILIES,
    SIZES,
    ModelShape,
    missing_sizes,
    model_shape,
)

NF4 = "nf4"

NF4_BYTES = 1 / 2 + 1 / 64 + 4 / (64 * 256)
"""Of a weight: 4 bits, an 8-bit scale for each 64, a 32-bit scale for each 256 of those."""

_LINEAR_BYTES: Mapping[str, float] = {
    NF4: NF4_BYTES,
    "fp4": NF4_BYTES,
    "gptq": 0.52,  # 4 bits; a 16-bit scale and a 4-bit zero for each 128
    "awq": 0.52,
    "mxfp4": 0.53125,  # 4 bits; an 8-bit scale for each 32
    "int4": 0.52,
    "int8": 1.0,
    "fp8": 1.0,
    "fbgemm_fp8": 1.0,
}
"""Bytes of a linear layer's weight on disk, by quantization."""

_DTYPE_BYTES = {"float32": 4, "float64": 8}
"""Of weights that are not quantized; others have 2."""

_QUANTIZED_COPY = re.compile(
    r"(?P<original>\w[\w.-]*/\w[\w.-]*?)([-_](gptq|awq|hqq|aqlm|bnb|nf4|int[48]|[48]bit|w\da\d+))+",
    re.IGNORECASE,
)
"""A repository as those who quantize models call it: `org/Model-GPTQ-Int4`."""


@dataclass(frozen=True)
class Parameters:
    """How many there are, by kind."""

    embedding: int
    attention: int
    """Projections of queries, keys, values and the output."""
    mlp: int
    """Gated products, experts and their routers."""
    vectors: int
    """Norms and biases."""
    head: int
    """0 where the head shares the embedding."""

    @property
    def total(self) -> int:
        """All of them."""
        return self.embedding + self.attention + self.mlp + self.vectors + self.head


@dataclass(frozen=True)
class BaseModel:
    """A model that a stage starts from."""

    shape: ModelShape
    architecture: str
    """`model_type` of the config."""
    activation: str
    capped_logits: bool
    """Whether the head's outputs are bounded, as Gemma's are."""
    quantization: str | None
    """`nf4`, `gptq`, …; None for 16- and 32-bit weights."""
    weight_bits: int
    """Of a linear layer's weight on disk."""
    stored_bytes: int
    """Of all weights on disk."""
    parameters: Parameters


def read_base_model(config: Mapping[str, Any]) -> BaseModel:
    """What a `config.json` describes.

    Raises:
        EstimateError: The architecture is not known, or a size is missing.
    """
    text = config.get("text_config", config)
    shape = _shape_of(config, text)
    quantization = quantization_of(config)
    plain = _DTYPE_BYTES.get(str(text.get("dtype") or text.get("torch_dtype")), 2)
    linear = plain if quantization is None else _bytes_per_weight(config, quantization)
    parameters = count(shape)
    linears = parameters.attention + parameters.mlp
    return BaseModel(
        shape=shape,
        architecture=str(text["model_type"]),
        activation=str(text.get("hidden_act") or text.get("hidden_activation") or "silu"),
        capped_logits=bool(text.get("final_logit_softcapping")),
        quantization=quantization,
        weight_bits=int(8 * linear),
        stored_bytes=int(linear * linears) + plain * (parameters.total - linears),
        parameters=parameters,
    )


def _shape_of(config: Mapping[str, Any], text: Mapping[str, Any]) -> ModelShape:
    for name in SIZES:
        size = text.get(name)
        if size is not None and not (isinstance(size, int) and size > 0):
            raise EstimateError(f"config.json: {name} is {size!r}, not a positive whole number")
    shape = model_shape(config)
    if shape is None:
        raise EstimateError(_why_unknown(text))
    return shape


def _why_unknown(text: Mapping[str, Any]) -> str:
    kind = text.get("model_type")
    if kind is None:
        return "config.json names no model_type, so it describes no model that can be planned for"
    if kind not in FAMILIES:
        return f"model type {kind} is not known to the planner, which knows {', '.join(FAMILIES)}"
    missing = ", ".join(missing_sizes(text))
    return f"config.json of a {kind} model lacks {missing}: give the whole file"


def count(shape: ModelShape) -> Parameters:
    """A model's parameters by kind."""
    table = shape.vocabulary * shape.hidden
    return Parameters(
        embedding=table,
        attention=shape.layers * shape.attention_parameters,
        mlp=shape.parameters
        - shape.vectors
        - shape.layers * shape.attention_parameters
        - table * (1 if shape.tied else 2),
        vectors=shape.vectors,
        head=0 if shape.tied else table,
    )


def quantization_of(config: Mapping[str, Any]) -> str | None:
    """The quantization a config declares: `nf4`, `gptq`, `awq`, …; None for 16 and 32 bit."""
    declared = config.get("quantization_config")
    if not isinstance(declared, Mapping):
        return None
    if declared.get("load_in_4bit"):
        return str(declared.get("bnb_4bit_quant_type", "fp4"))
    if declared.get("load_in_8bit"):
        return "int8"
    method, bits = declared.get("quant_method"), declared.get("bits")
    return str(method or (f"int{bits}" if bits else "unknown"))


def why_untrainable(quantization: str | None, method: Method, name: str = "") -> str | None:
    """Why a method cannot train a model whose weights are stored so, and what to use instead.

    Args:
        quantization: How its weights are stored.
        method: How they would be trained.
        name: The model's own, which may tell what it was made from.

    Returns:
        The rest of a sentence that begins with the model's name; None: it can.
    """
    if quantization is None or (quantization == NF4 and method is Method.QLORA):
        return None
    if quantization == NF4:
        return (
            f"holds NF4 weights, which method {method} cannot train: use method QLoRA, or method "
            f"{method} over the 16-bit model it was made from{_by_its_name(name)}"
        )
    return (
        f"holds {quantization} weights, which serve inference only: no gradient passes through "
        f"their rounding; train on the 16-bit model it was made from{_by_its_name(name)} (method "
        "Full, LoRA or QLoRA), or on an NF4 copy of that (method QLoRA)"
    )


def _by_its_name(name: str) -> str:
    """What a quantized copy on the Hub is usually called after, as a guess within a sentence."""
    match = _QUANTIZED_COPY.fullmatch(name)
    return f", perhaps {match['original']}" if match else ""


def why_unmergeable(quantization: str | None) -> str | None:
    """Why no adapter is merged into a model whose weights are stored so, and what to do instead.

    Returns:
        The rest of a sentence that begins with the model's name; None: it can be.
    """
    if quantization is None:
        return None
    kind = "NF4" if quantization == NF4 else quantization
    return (
        f"holds {kind} weights, and merging an adapter into 4-bit weights changes what it "
        "computes: publish the adapter (artifact: Adapter, handoff: ContinueAdapter), or use "
        "the 16-bit model as base, with method QLoRA as well"
    )


def _bytes_per_weight(config: Mapping[str, Any], quantization: str) -> float:
    bits = config["quantization_config"].get("bits")
    if isinstance(bits, int) and bits > 0:
        return bits / 8 + 0.02  # and the scales of its groups
    return _LINEAR_BYTES.get(quantization, 1.0)
