"""A training run as the estimate sees it: which model, how, on what; the trainer sees the same."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from latticeforge_trainer.contract import Method, Offload, Recompute, Strategy, Table, TrainPayload
from latticeforge_trainer.estimate.base_model import BaseModel
from latticeforge_trainer.estimate.chips import Chip
from latticeforge_trainer.estimate.linears import (
    ALIGNMENT,
    CONCATENATED_ALIGNMENT,
    Placed,
    groups_of,
    table_parameters,
    trained_parameters,
)


@dataclass(frozen=True)
class Setup:
    """One stage's training, on any chip."""

    model: BaseModel
    payload: TrainPayload
    strategy: Strategy

    @property
    def world(self) -> int:
        """Processes that train together, each with one GPU."""
        return self.strategy.processes * self.strategy.nodes

    @property
    def tokens(self) -> int:
        """Of a micro-batch, padding included."""
        return self.strategy.micro_batch * self.payload.sequence_length

    @property
    def micro_batches(self) -> int:
        """Per process and step; what `training.batches.BatchPlan` makes of it."""
        own = math.ceil(self.payload.sequences_per_step / self.world)
        return math.ceil(own / self.strategy.micro_batch)

    @property
    def offloads(self) -> bool:
        """Whether the optimizer's states, and perhaps weights, are in host memory."""
        return self.strategy.zero_stage > 0 and self.strategy.offload is not Offload.NONE

    @property
    def is_full(self) -> bool:
        """Whether the base's own weights are trained."""
        return self.payload.method is Method.FULL

    @property
    def width(self) -> int:
        """Bytes of a number in the precision that is computed in."""
        return 2 if self.strategy.precision == "bf16" else 4

    @cached_property
    def trained(self) -> int:
        """Parameters that are trained."""
        return trained_parameters(self.model, self.payload)

    @cached_property
    def trained_tables(self) -> int:
        """Those of embedding and head."""
        parameters = self.model.parameters
        if self.is_full:
            return parameters.embedding + parameters.head
        return table_parameters(self.model, self.payload.lora)

    @property
    def trained_weights(self) -> int:
        """Those that are the base's own, and so have 32-bit masters; the others are adapters'."""
        return self.trained if self.is_full else self.trained_tables

    @property
    def trains_embedding(self) -> bool:
        """Whether the embedding is trained, perhaps as the head that it is tied to."""
        return self._trains("embed_tokens")

    @property
    def trains_head(self) -> bool:
        """Whether the head is trained, perhaps as the embedding that it is tied to."""
        return self._trains("lm_head")

    def _trains(self, table: Table) -> bool:
        saved = (self.payload.lora and self.payload.lora.modules_to_save) or []
        return self.is_full or table in saved or bool(saved and self.model.shape.tied)

    @property
    def accumulates(self) -> bool:
        """Whether gradients wait for those of other micro-batches, in 32 bits."""
        return self.micro_batches > 1

    @cached_property
    def base_format(self) -> Literal["bf16", "nf4", "fp8"]:
        """What the linear layers are made of."""
        if self.payload.method is Method.QLORA:
            return "nf4"
        return "fp8" if self.payload.lora and self.payload.lora.base_dtype else "bf16"

    @cached_property
    def is_concatenated(self) -> bool:
        """Whether adapters lie in one matrix with the weights; see `models.linears`."""
        return self.base_format != "fp8" and not self.is_full and self.strategy.zero_stage < 3

    @cached_property
    def groups(self) -> tuple[Placed, ...]:
        """The linear layers, in groups with room for adapters."""
        alignment = CONCATENATED_ALIGNMENT if self.is_concatenated else ALIGNMENT
        return tuple(
            Placed(count, group, group.columns(self.payload.lora, alignment))
            for count, group in groups_of(self.model)
        )

    @property
    def has_plain_head(self) -> bool:
        """Whether the loss is taken as `training.head` does: on a whole, uncapped head."""
        return self.strategy.zero_stage < 3 and not self.model.capped_logits

    @property
    def asked(self) -> Recompute:
        """The mode of recomputation that the strategy names."""
        return self.strategy.recompute


@dataclass(frozen=True)
class Run(Setup):
    """One stage's training on a chip."""

    chip: Chip


def conflict(payload: TrainPayload, zero_stage: int, offload: Offload = Offload.NONE) -> str | None:
    """Why a method does not run under a ZeRO stage, in a sentence; None: it does."""
    if payload.method is Method.QLORA and zero_stage == 3:
        return "QLoRA runs under ZeRO 0 to 2: 4-bit weights cannot be partitioned"
    if payload.lora and payload.lora.base_dtype is not None and zero_stage:
        return "lora.baseDtype FP8 runs under ZeRO 0: DeepSpeed would cast its weights"
    if payload.optimizer_states == "int8" and zero_stage and offload is not Offload.NONE:
        return "optimizerStates INT8 stay on the GPU: leave offload out, or use FP32"
    return None
