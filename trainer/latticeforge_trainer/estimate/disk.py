"""What a stage leaves on the volume, term by term."""

from __future__ import annotations

from latticeforge_trainer.contract import TrainPayload
from latticeforge_trainer.estimate.base_model import BaseModel
from latticeforge_trainer.estimate.linears import table_parameters, trained_parameters
from latticeforge_trainer.estimate.states import moment_bytes
from latticeforge_trainer.estimate.terms import Term, present


def disk(
    model: BaseModel,
    payload: TrainPayload,
    *,
    packed_tokens: int,
    keep_checkpoints: int = 2,
    merges: bool = False,
) -> tuple[Term, ...]:
    """What one stage writes; the base model counts in `base_disk`.

    Args:
        model: What it starts from.
        payload: How it is trained.
        packed_tokens: Tokens of its packed data, padding included.
        keep_checkpoints: How many are kept; one more is written before the oldest goes.
        merges: Whether its adapter is merged.
    """
    trained = trained_parameters(model, payload)
    state = state_bytes(payload, trained)
    count = keep_checkpoints + 1
    # PEFT's format has a tied table under both of its names.
    written = trained + (table_parameters(model, payload.lora) if model.shape.tied else 0)
    return present(
        Term("packed data", 9 * packed_tokens, f"{packed_tokens:,} tokens x 9 B"),
        Term("checkpoints", count * state, f"{count} x {state:,} B"),
        Term("trained weights", 2 * written, f"{written:,} x 2 B"),
        Term(
            "merged model",
            2 * model.parameters.total if merges else 0,
            f"{model.parameters.total:,} x 2 B",
        ),
    )


def base_disk(model: BaseModel) -> Term:
    """The base model as it is stored; brought once for all stages."""
    return Term("base model", model.stored_bytes, f"{model.weight_bits}-bit linear layers")


def state_bytes(payload: TrainPayload, trained: int) -> int:
    """Bytes of one checkpoint: 32-bit weights, in one piece or in two, and moments."""
    return int(trained * (4 + moment_bytes(payload, masters=True)))
