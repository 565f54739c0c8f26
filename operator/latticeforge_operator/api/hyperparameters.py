"""How a stage is trained, and the shape of its adapter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

from latticeforge_operator.api.base import APIModel, DecimalString, FloatString, rule, rules

BOUNDS: tuple[tuple[str, str, str, Callable[[float], bool]], ...] = (
    ("learning_rate", "> 0.0", "be more than 0", lambda x: x > 0),
    ("warmup_ratio", "< 1.0", "be less than 1", lambda x: x < 1),
    ("min_learning_rate_ratio", "<= 1.0", "not be more than 1", lambda x: x <= 1),
    ("max_grad_norm", "> 0.0", "be more than 0", lambda x: x > 0),
    ("adam_beta1", "< 1.0", "be less than 1", lambda x: x < 1),
    ("adam_beta2", "< 1.0", "be less than 1", lambda x: x < 1),
    ("adam_epsilon", "> 0.0", "be more than 0", lambda x: x > 0),
    ("validation_share", "> 0.0", "be more than 0", lambda x: x > 0),
    ("validation_share", "< 1.0", "be less than 1", lambda x: x < 1),
)
"""Of numbers that are written as strings: the same bound for CEL, for people, and for Python."""

TWO_TARGETS = "lora.targetPattern names layers whole: use it without targetModules and layers"


class Hyperparameters(APIModel):
    """How a stage is trained; everything here changes the result and so the stage's digest."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            *(
                rule(
                    f"!has(self.{to_camel(name)}) || double(self.{to_camel(name)}) {comparison}",
                    f"{to_camel(name)} must {sentence}",
                )
                for name, comparison, sentence, _ in BOUNDS
            )
        )
    )

    epochs: int = Field(default=1, ge=1, le=100)
    """Passes over the data."""
    max_steps: int | None = Field(default=None, ge=1, le=10_000_000)
    """Optimizer steps, whatever `epochs` says: the data is cut, or seen again."""
    learning_rate: FloatString = "2e-5"
    """Peak learning rate, as a string."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls after the warm-up."""
    warmup_ratio: DecimalString = "0.03"
    """Share of the steps in which the learning rate rises."""
    warmup_steps: int | None = Field(default=None, ge=0, le=10_000_000)
    """Steps in which the learning rate rises; left out: `warmupRatio` decides."""
    min_learning_rate_ratio: DecimalString | None = None
    """What the schedule falls to, as a share of `learningRate`; left out: zero."""
    weight_decay: DecimalString = "0"
    """AdamW's weight decay; never applied to norms and biases."""
    max_grad_norm: DecimalString = "1"
    """Gradients are clipped to this norm."""
    adam_beta1: DecimalString = "0.9"
    """AdamW's decay of the first moment."""
    adam_beta2: DecimalString = "0.999"
    """AdamW's decay of the second moment."""
    adam_epsilon: FloatString | None = None
    """AdamW's epsilon; left out: 1e-8."""
    optimizer_states: Literal["FP32", "INT8"] = "FP32"
    """AdamW's moments: FP32 (exact), or INT8 (a quarter of the memory, lossy)."""
    sequence_length: int = Field(default=4096, ge=16, le=1_048_576)
    """Tokens of one packed sequence; what becomes of longer samples, `excessLength` says."""
    global_batch_tokens: int = Field(default=131_072, ge=16, le=1_000_000_000)
    """Tokens of one optimizer step over all GPUs, rounded down to whole sequences."""
    global_batch_samples: int | None = Field(default=None, ge=1, le=1_000_000)
    """Samples of one optimizer step over all GPUs, instead of `globalBatchTokens`; they are packed
    all the same, step by step."""
    validation_share: DecimalString | None = None
    """Share of the samples held out from training; their loss is reported after each epoch."""
    neftune_noise_alpha: DecimalString | None = None
    """Size of the noise added to embeddings in training (NEFTune); left out: none."""
    seed: int = Field(default=0, ge=0, le=2**31 - 1)
    """Seed of data order and initialisation."""

    @model_validator(mode="after")
    def _numbers(self) -> Self:
        for name, _, sentence, holds in BOUNDS:
            value = getattr(self, name)
            if value is not None and not holds(float(value)):
                raise ValueError(f"{to_camel(name)} must {sentence}")
        return self


class LoRA(APIModel):
    """The adapter of a LoRA or QLoRA stage."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "!has(self.targetPattern) || !(has(self.targetModules) || has(self.layers))",
                TWO_TARGETS,
            ),
        )
    )

    rank: int = Field(default=16, ge=1, le=1024)
    """Rank of the adapter."""
    alpha: int = Field(default=32, ge=1, le=4096)
    """Scale: the adapter's product is multiplied by alpha / rank."""
    dropout: DecimalString = "0"
    """Dropout on the adapter's input."""
    target_modules: list[str] | None = Field(default=None, min_length=1, max_length=64)
    """Names of the linear layers that get an adapter; left out: every one but the head."""
    target_pattern: str | None = Field(default=None, min_length=1, max_length=1000)
    """A regular expression of the whole names of those layers, instead of a list of names."""
    layers: list[Annotated[int, Field(ge=0, le=100_000)]] | None = Field(
        default=None, min_length=1, max_length=1000
    )
    """Numbers, from 0, of the decoder layers that get an adapter; left out: all."""
    modules_to_save: list[Literal["embed_tokens", "lm_head"]] | None = Field(
        default=None, min_length=1, max_length=2
    )
    """What is trained in full beside the adapter and saved with it, by PEFT's names: the embedding,
    the head, or both. Where the base's head is its embedding, they stay one, and either name trains
    it. Left out: both are frozen."""
    rank_stabilized: bool = False
    """Scale by alpha / sqrt(rank) instead of alpha / rank."""
    base_dtype: Literal["FP8"] | None = None
    """FP8: frozen weights and products in 8 bits (faster, lossy); left out: as the base is."""

    @model_validator(mode="after")
    def _one_way_of_naming(self) -> Self:
        if self.target_pattern is not None and (self.target_modules or self.layers):
            raise ValueError(TWO_TARGETS)
        return self
