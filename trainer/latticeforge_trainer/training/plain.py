"""ZeRO 0: every process holds everything, gradients are summed once a step; no DeepSpeed.

Adapters are trained in fp32 beside frozen weights of any type. Trainable 16-bit weights, also an
embedding or a head beside an adapter, have fp32 masters in the optimizer.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import distributed, nn

from latticeforge_trainer.contract import TrainPayload
from latticeforge_trainer.estimate.buckets import PLAIN_REDUCE_BUCKET
from latticeforge_trainer.models.fused import TRAINED_COPY
from latticeforge_trainer.training.batches import MicroBatch
from latticeforge_trainer.training.buckets import in_buckets
from latticeforge_trainer.training.engine import trainable_parameters
from latticeforge_trainer.training.loss import TargetLoss
from latticeforge_trainer.training.optimizers import make_optimizer


class PlainEngine:
    """An engine of whole tensors; see `engine.Engine`.

    Args:
        loss: The loss module, on its device.
        payload: The step's hyperparameters.
        accumulation: Micro-batches per step.
        processes: Those that train together.

    Raises:
        UserError: The optimizer does not run here.
    """

    sharded = False
    reads_in_place = True

    def __init__(
        self, loss: TargetLoss, payload: TrainPayload, *, accumulation: int, processes: int
    ) -> None:
        self.loss, self._processes = loss, processes
        named = list(trainable_parameters(loss))
        self._parameters = [parameter for _, parameter in named]
        self.device = self._parameters[0].device
        for name, parameter in named:
            if payload.method.is_adapter and TRAINED_COPY not in name:
                parameter.data = parameter.data.float()
            if accumulation * processes > 1:
                # Adding many small bf16 gradients loses their low bits.
                parameter.grad_dtype = torch.float32
        self._optimizer = make_optimizer(named, payload)

    def forward(self, batch: MicroBatch, denominator: int) -> torch.Tensor:
        """A micro-batch's share of the step's mean loss."""
        share: torch.Tensor = self.loss(batch) / denominator
        return share

    def backward(self, share: torch.Tensor, *, last: bool) -> None:
        """Add a micro-batch's gradients to those of the step."""
        del last  # processes add theirs up in `update`
        torch.autograd.backward(share)

    @torch.no_grad()
    def update(self, rate: float) -> torch.Tensor:
        """Take the optimizer step with clipped gradients."""
        learned = [p for p in self._parameters if p.grad is not None]
        if self._processes > 1:
            for bucket in in_buckets(learned, torch.numel, PLAIN_REDUCE_BUCKET):
                _sum_gradients(bucket)
        gradients = [p.grad for p in learned if p.grad is not None]
        norms = torch._foreach_norm(gradients, 2, dtype=torch.float32)  # noqa: SLF001  (as torch.nn.utils does, but in fp32)
        norm: torch.Tensor = torch.linalg.vector_norm(torch.stack(norms))
        self._optimizer.step(rate, norm)
        return norm

    def gathered(self, parameters: list[nn.Parameter]) -> AbstractContextManager[None]:
        """Nothing to do: parameters are whole."""
        del parameters
        return nullcontext()

    def read_state(self) -> dict[str, torch.Tensor]:
        """The whole state, sharing its memory."""
        return self._optimizer.read()

    def write_state(self, tensors: dict[str, torch.Tensor], step: int) -> None:
        """Put back what `read_state` returned after a step."""
        self._optimizer.write(tensors, step)


def _sum_gradients(parameters: list[nn.Parameter]) -> None:
    """Replace gradients by their sums over all processes."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    sums = torch.split(flat, [p.numel() for p in parameters])
    for parameter, total in zip(parameters, sums, strict=True):
        parameter.grad = total.view_as(parameter)
