"""The loss of packed sequences, as a module that DeepSpeed wraps.

The head runs inside the engine's forward, as ZeRO-3 needs it, and only at positions whose next
token is learned: with a vocabulary of 152k and an answer in a long prompt, that is most of a
step's memory.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from latticeforge_trainer.errors import UserError
from latticeforge_trainer.estimate.buckets import LOGITS_AT_ONCE
from latticeforge_trainer.models.documents import Boundaries
from latticeforge_trainer.models.fused import causal_of, trained_copy
from latticeforge_trainer.models.packed import use_packed_attention
from latticeforge_trainer.training.batches import MicroBatch
from latticeforge_trainer.training.head import LinearCrossEntropy

UNKNOWN_SCALES = ("logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier")
"""Config fields by which some architectures scale their logits after the head."""


class TargetLoss(nn.Module):
    """The summed cross-entropy of learned tokens.

    Args:
        model: A causal language model, or a PEFT model around one.

    Raises:
        UserError: The architecture does something to its logits, attends in a way, or keeps a
            state along the sequence, that this loss does not know.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._refuse_unknown()
        use_packed_attention(self.causal)

    @property
    def causal(self) -> Any:
        """The transformers model, whatever is wrapped around it."""
        return causal_of(self.model)

    def forward(self, batch: MicroBatch) -> torch.Tensor:
        """The sum of -log p over the batch's targets, in fp32; zero if it has none."""
        hidden = (
            self.causal.get_decoder()(
                input_ids=batch.input_ids,
                attention_mask=None,
                position_ids=batch.position_ids,
                use_cache=False,
                boundaries=batch.boundaries,
            )
            .last_hidden_state.flatten(0, 1)  # [rows * length, hidden]
            .index_select(0, batch.sources)  # [targets, hidden]
        )
        head = trained_copy(self.causal.get_output_embeddings())
        if is_plain(head) and not self._softcap:
            node: Any = LinearCrossEntropy.apply  # untyped in torch
            loss: torch.Tensor = node(hidden, head.weight, batch.targets)
            return loss
        # From the batch's shape, not its number of targets: every process must call the head
        # equally often, for ZeRO-3 gathers it each time.
        vocabulary = self.causal.config.get_text_config().vocab_size
        pieces = -(-batch.input_ids.numel() * vocabulary // LOGITS_AT_ONCE)
        if pieces == 1:
            return self._head_loss(hidden, batch.targets)
        losses = [
            checkpoint(self._head_loss, part, targets, use_reentrant=False)
            for part, targets in zip(
                hidden.tensor_split(pieces), batch.targets.tensor_split(pieces), strict=True
            )
        ]
        return torch.stack(losses).sum()

    def _head_loss(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = self.causal.get_output_embeddings()(hidden)  # [targets, vocabulary]
        if self._softcap:
            logits = torch.tanh(logits / self._softcap) * self._softcap
        apply: Any = SummedCrossEntropy.apply  # untyped in torch
        loss: torch.Tensor = apply(logits, targets)
        return loss

    @property
    def _softcap(self) -> float | None:
        """The bound of Gemma's logits."""
        cap: float | None = getattr(
            self.causal.config.get_text_config(), "final_logit_softcapping", None
        )
        return cap

    def _refuse_unknown(self) -> None:
        name = type(self.causal).__name__
        config = self.causal.config.get_text_config()
        scaled = [key for key in UNKNOWN_SCALES if getattr(config, key, None) not in (None, 1, 1.0)]
        if scaled:
            raise UserError(f"{name} scales its logits by {scaled[0]}, which training does not do")
        if self.causal.get_output_embeddings() is None:
            raise UserError(f"{name} has no language model head to train")
        if getattr(self.causal, "_is_stateful", False):
            raise UserError(
                f"{name} carries a state along the sequence, so packed samples would see one "
                "another: choose a model with attention only"
            )


def is_plain(head: nn.Module) -> bool:
    """Whether the head is one whole matrix, at hand without calling the module."""
    return type(head) is nn.Linear and head.bias is None and not hasattr(head.weight, "ds_id")


class SummedCrossEntropy(torch.autograd.Function):
    """Cross-entropy summed over rows, in fp32, keeping nothing larger than the logits themselves.

    `functional.cross_entropy` of 16-bit logits keeps an fp32 copy and their fp32 log-softmax; this
    keeps the logits and one number per row, and takes the softmax again in backward.
    """

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Sum over rows of logsumexp(logits) - logits[target]."""
        normalizer = torch.logsumexp(logits.float(), dim=-1)
        picked = logits.gather(1, targets[:, None]).squeeze(1).float()
        ctx.save_for_backward(logits, targets, normalizer)
        return (normalizer - picked).sum()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Softmax(logits) - onehot(target), times the gradient of the sum."""
        logits, targets, normalizer = ctx.saved_tensors
        slope = logits.float().sub_(normalizer[:, None]).exp_()
        slope.scatter_add_(1, targets[:, None], slope.new_full((len(targets), 1), -1.0))
        return slope.mul_(gradients[0]).to(logits.dtype), None


@torch.no_grad()
def check_packing(module: nn.Module, device: torch.device, vocabulary: int) -> None:
    """Compare a sample's loss behind another sample with its loss alone.

    Args:
        module: A `TargetLoss`, with the hooks that DeepSpeed put on it; left in training mode but
            for its dropout.
        device: Where it computes.
        vocabulary: Token ids to draw from.

    Raises:
        UserError: They differ: the architecture lets packed samples see one another.
    """
    # In evaluation mode, bitsandbytes would repack 4-bit weights for a CPU kernel without backward.
    module.train()
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.eval()
    tokens = torch.arange(20).mul(7).remainder(vocabulary)
    # Of different lengths, so that the kernel for such documents is used.
    other, sample = tokens[:12], tokens[12:]

    def loss_of(*samples: torch.Tensor) -> torch.Tensor:
        row = torch.cat(samples)
        positions = torch.cat([torch.arange(len(part)) for part in samples])[None]
        first = 0 if samples[0] is sample else len(other)
        where = torch.arange(first, first + len(sample) - 1)
        batch = MicroBatch(row[None], positions, Boundaries.of(positions), where, row[where + 1])
        loss: torch.Tensor = module(batch.to(device))
        return loss

    packed, single = loss_of(other, sample), loss_of(sample, other)
    # Equal up to the order of sums; another sample in sight moves a trained model far more.
    if not torch.isclose(packed, single, rtol=1e-2):
        raise UserError(
            "this architecture lets packed samples see one another (loss of a sample alone "
            f"{single.item():.4f}, behind another {packed.item():.4f}): choose another base model"
        )
