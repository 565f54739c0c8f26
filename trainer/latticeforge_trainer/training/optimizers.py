"""AdamW as this trainer runs it: over weights of any type, clipped, never waiting for the device.

fp32  MasterAdamW    exact: fp32 master weights and moments, 12 bytes a parameter
int8  EightBitAdamW  32-bit weights as 16 + 16 bits, moments in 8: 6 bytes; CUDA only
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from latticeforge_trainer.contract import TrainPayload
from latticeforge_trainer.errors import UserError
from latticeforge_trainer.estimate.buckets import UPDATE_BUCKET
from latticeforge_trainer.training.buckets import in_buckets
from latticeforge_trainer.training.engine import MASTER

WEIGHT, STEP = "weight", "step"

Named = list[tuple[str, nn.Parameter]]
State = dict[str, torch.Tensor]


class Optimizer(Protocol):
    """Updates parameters from their gradients, which it consumes."""

    def step(self, rate: float, norm: torch.Tensor) -> None:
        """Take one step at a learning rate, clipping the gradients by their norm."""
        ...

    def read(self) -> State:
        """The state as `<kind>/<parameter>`, sharing its memory."""
        ...

    def write(self, tensors: State, step: int) -> None:
        """Put back what `read` returned after a step, and the weights that follow from it."""
        ...


def make_optimizer(named: Named, payload: TrainPayload) -> Optimizer:
    """The optimizer that a payload asks for.

    Raises:
        UserError: It does not run here.
    """
    kind = EightBitAdamW if payload.optimizer_states == "int8" else MasterAdamW
    return kind(named, payload)


def make_adamw(groups: list[dict[str, Any]], payload: TrainPayload, device: torch.device) -> Any:
    """A `torch.optim.Optimizer` over groups of parameters.

    Raises:
        UserError: It does not run here, or would be of no use.
    """
    betas = (payload.adam_beta1, payload.adam_beta2)
    if payload.optimizer_states == "fp32":
        return SkippingAdamW(groups, lr=0.0, betas=betas, fused=True)
    if payload.method.is_adapter:
        raise UserError("optimizerStates INT8 is for method Full: an adapter's moments are small")
    if device.type != "cuda":
        raise UserError("optimizerStates INT8 needs a CUDA GPU: use FP32 here")
    from flashoptim import FlashAdamW  # noqa: PLC0415  (imports triton, which only GPUs have)

    exact = all(p.dtype == torch.float32 for group in groups for p in group["params"])
    bits = None if exact else 32
    return FlashAdamW(groups, lr=0.0, betas=betas, master_weight_bits=bits)


def set_learning_rate(optimizer: Any, rate: float) -> None:
    """Set the learning rate of the next step."""
    for group in optimizer.param_groups:
        group["lr"] = rate


class SkippingAdamW(torch.optim.AdamW):
    """Torch's AdamW, whose fused kernels leave everything as it is where `found_inf` is 1."""

    found_inf: torch.Tensor | None = None


@dataclass(frozen=True)
class _Entry:
    name: str
    parameter: nn.Parameter
    master: nn.Parameter
    """The parameter itself if that is fp32."""

    def follow(self) -> None:
        if self.parameter is not self.master:
            self.parameter.copy_(self.master)


class MasterAdamW:
    """AdamW on fp32 master weights; a step whose norm is not finite changes nothing.

    Args:
        named: The parameters.
        payload: AdamW's hyperparameters.
    """

    def __init__(self, named: Named, payload: TrainPayload) -> None:
        self._max_norm = payload.max_grad_norm
        self._buckets = []
        entries = [_Entry(name, p, _master_of(p)) for name, p in named]
        for bucket in in_buckets(entries, lambda e: e.master.numel(), UPDATE_BUCKET):
            groups = parameter_groups([e.master for e in bucket], payload.weight_decay)
            optimizer = make_adamw(groups, payload, bucket[0].master.device)
            self._buckets.append((bucket, optimizer))

    @torch.no_grad()
    def step(self, rate: float, norm: torch.Tensor) -> None:
        """Take one step; see `Optimizer`."""
        skip = (~norm.isfinite()).float()
        for bucket, optimizer in self._buckets:
            for entry in bucket:
                gradient, entry.parameter.grad = entry.parameter.grad, None
                entry.master.grad = None if gradient is None else gradient.float()
            nn.utils.clip_grads_with_norm_([e.master for e in bucket], self._max_norm, norm)
            optimizer.found_inf = skip
            set_learning_rate(optimizer, rate)
            optimizer.step()
            optimizer.zero_grad()
            for entry in bucket:
                entry.follow()

    def read(self) -> State:
        """Master weights and moments; see `Optimizer`."""
        tensors: State = {}
        for bucket, optimizer in self._buckets:
            for entry in bucket:
                state = {MASTER: entry.master.detach(), **optimizer.state[entry.master]}
                tensors |= _named(entry.name, state)
        return tensors

    @torch.no_grad()
    def write(self, tensors: State, step: int) -> None:
        """Put master weights and moments back; see `Optimizer`."""
        states = _by_parameter(tensors)
        for bucket, optimizer in self._buckets:
            for entry in bucket:
                device = entry.master.device
                state = {kind: t.to(device) for kind, t in states[entry.name].items()}
                entry.master.copy_(state.pop(MASTER))
                entry.follow()
                if state:  # none if it never had a gradient
                    count = torch.full((), float(step), device=device)
                    optimizer.state[entry.master] = {STEP: count, **state}


class EightBitAdamW:
    """FlashAdamW: its kernel reads and writes 32-bit weights as 16-bit ones plus a correction.

    It cannot skip a step on the device: after one that is not finite the weights are lost, so
    every norm must have been read before anything is saved.

    Args:
        named: The parameters.
        payload: AdamW's hyperparameters.

    Raises:
        UserError: There is no GPU, or only an adapter is trained.
    """

    def __init__(self, named: Named, payload: TrainPayload) -> None:
        self._named, self._max_norm = named, payload.max_grad_norm
        parameters = [p for _, p in named]
        groups = parameter_groups(parameters, payload.weight_decay)
        self._optimizer = make_adamw(groups, payload, parameters[0].device)
        names = {parameter: name for name, parameter in named}
        self._numbered = [names[p] for group in groups for p in group["params"]]

    def step(self, rate: float, norm: torch.Tensor) -> None:
        """Take one step; see `Optimizer`."""
        nn.utils.clip_grads_with_norm_([p for _, p in self._named], self._max_norm, norm)
        set_learning_rate(self._optimizer, rate)
        self._optimizer.step()
        self._optimizer.zero_grad()

    def read(self) -> State:
        """Weights, their corrections and moments; see `Optimizer`."""
        tensors = {f"{WEIGHT}/{name}": p.detach() for name, p in self._named}
        for number, state in self._optimizer.state_dict()["state"].items():
            tensors |= _named(self._numbered[number], state)
        return tensors

    @torch.no_grad()
    def write(self, tensors: State, step: int) -> None:
        """Put weights, corrections and moments back; see `Optimizer`."""
        states = _by_parameter(tensors)
        for name, parameter in self._named:
            parameter.copy_(states[name].pop(WEIGHT))
        document = self._optimizer.state_dict()
        document["state"] = {
            number: {STEP: torch.tensor(step), **states[name]}
            for number, name in enumerate(self._numbered)
        }
        self._optimizer.load_state_dict(document)


def parameter_groups(parameters: list[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Parameters with and without weight decay: norms and biases are not decayed."""
    groups = [
        {"params": [p for p in parameters if is_matrix(p)], "weight_decay": weight_decay},
        {"params": [p for p in parameters if not is_matrix(p)], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def is_matrix(parameter: nn.Parameter) -> bool:
    """Whether a parameter has rows and columns, also while ZeRO-3 holds it in partitions."""
    shape: torch.Size = getattr(parameter, "ds_shape", parameter.shape)
    return len(shape) > 1


def _master_of(parameter: nn.Parameter) -> nn.Parameter:
    if parameter.dtype == torch.float32:
        return parameter
    return nn.Parameter(parameter.detach().float())


def _named(name: str, state: State) -> State:
    # The count of steps is the loop's to know.
    return {f"{kind}/{name}": tensor for kind, tensor in state.items() if kind != STEP}


def _by_parameter(tensors: State) -> dict[str, State]:
    states: dict[str, State] = defaultdict(dict)
    for key, tensor in tensors.items():
        kind, _, name = key.partition("/")
        states[name][kind] = tensor
    return states
