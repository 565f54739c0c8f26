"""AdamW over masters: exact, cut into buckets, unmoved by what is not finite."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from latticeforge_trainer.contract import LoRASettings, Method, TrainPayload
from latticeforge_trainer.errors import UserError
from latticeforge_trainer.training import optimizers
from latticeforge_trainer.training.optimizers import EightBitAdamW, MasterAdamW, make_optimizer

Named = list[tuple[str, nn.Parameter]]


def payload(**fields: Any) -> TrainPayload:
    made = {
        "method": Method.FULL,
        "learning_rate": 1,
        "sequence_length": 1,
        "global_batch_tokens": 1,
        "weight_decay": 0.1,
        "max_grad_norm": 1e9,
        **fields,
    }
    return TrainPayload(**made)


def parameters(dtype: torch.dtype = torch.float32) -> Named:
    generator = torch.Generator().manual_seed(0)
    shapes: list[tuple[int, ...]] = [(5, 3), (4,), (2, 6), (7,)]
    return [
        (f"layer.{number}.weight", nn.Parameter(torch.randn(s, generator=generator).to(dtype)))
        for number, s in enumerate(shapes)
    ]


def give_gradients(named: Named, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    for _, parameter in named:
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
    return nn.utils.get_total_norm([p.grad for _, p in named if p.grad is not None])


def take_steps(optimizer: optimizers.Optimizer, named: Named, seeds: range) -> None:
    for seed in seeds:
        optimizer.step(0.01, give_gradients(named, seed))


def values(named: Named) -> list[torch.Tensor]:
    return [parameter.detach().clone() for _, parameter in named]


def same(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("bucket", [1, 20, 10**9])
def test_steps_are_those_of_adamw_however_they_are_cut(
    bucket: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optimizers, "UPDATE_BUCKET", bucket)
    named, plain = parameters(), parameters()
    take_steps(MasterAdamW(named, payload()), named, range(5))

    matrices, vectors = ([p for _, p in plain if (p.dim() > 1) == wide] for wide in (True, False))
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0}]
    adamw = torch.optim.AdamW(groups, lr=0.01, fused=True)
    for seed in range(5):
        give_gradients(plain, seed)
        adamw.step()

    assert same(values(named), values(plain))


def test_gradients_are_clipped_by_the_norm_and_consumed() -> None:
    named = parameters()
    optimizer = MasterAdamW(named, payload(max_grad_norm=0.5, adam_beta1=0))

    optimizer.step(0.01, give_gradients(named, 0))

    assert all(parameter.grad is None for _, parameter in named)
    # Without a past, the first moment is the gradient that was taken.
    moments = [tensor for key, tensor in optimizer.read().items() if key.startswith("exp_avg/")]
    assert nn.utils.get_total_norm(moments).item() == pytest.approx(0.5, rel=1e-4)


def test_16_bit_weights_follow_masters_that_small_steps_add_up_in() -> None:
    named = parameters(torch.bfloat16)
    optimizer = MasterAdamW(named, payload(weight_decay=0))
    before = values(named)
    for _ in range(64):
        for _, parameter in named:
            parameter.grad = torch.ones_like(parameter)
        optimizer.step(1e-4, torch.ones(()))

    moved = [
        (old - new).float().mean().item() for old, new in zip(before, values(named), strict=True)
    ]

    # One step is below the resolution of most weights; all of them are 64 times as far.
    assert moved == pytest.approx([64e-4] * len(moved), rel=0.3)


@pytest.mark.parametrize("norm", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_changes_nothing(norm: float) -> None:
    named = parameters(torch.bfloat16)
    optimizer = MasterAdamW(named, payload())
    take_steps(optimizer, named, range(2))
    weights, state = values(named), {k: t.clone() for k, t in optimizer.read().items()}

    give_gradients(named, 2)
    named[0][1].grad = torch.full_like(named[0][1], norm)
    optimizer.step(0.01, torch.tensor(norm))

    assert same(values(named), weights)
    assert all(torch.equal(tensor, state[key]) for key, tensor in optimizer.read().items())
    steady = parameters(torch.bfloat16)
    undisturbed = MasterAdamW(steady, payload())
    take_steps(undisturbed, steady, range(2))
    take_steps(optimizer, named, range(3, 4))
    take_steps(undisturbed, steady, range(3, 4))
    assert same(values(named), values(steady))  # the count of steps as well


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_was_read_goes_on_exactly(dtype: torch.dtype) -> None:
    named, resumed = parameters(dtype), parameters(dtype)
    optimizer = MasterAdamW(named, payload())
    take_steps(optimizer, named, range(3))
    state = {key: tensor.clone() for key, tensor in optimizer.read().items()}
    for _, parameter in resumed:
        parameter.data.zero_()
    fresh = MasterAdamW(resumed, payload())

    fresh.write(state, 3)

    assert same(values(resumed), values(named))
    take_steps(optimizer, named, range(3, 6))
    take_steps(fresh, resumed, range(3, 6))
    assert same(values(resumed), values(named))
    kinds = {key.partition("/")[0] for key in state}
    assert kinds == {"master", "exp_avg", "exp_avg_sq"}


def test_eight_bit_state_is_kept_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def stand_in(groups: Any, payload: TrainPayload, device: torch.device) -> Any:
        del payload, device
        return torch.optim.AdamW(groups, lr=0.0)

    monkeypatch.setattr(optimizers, "make_adamw", stand_in)
    named, resumed = parameters(), parameters()
    optimizer = EightBitAdamW(named, payload())
    take_steps(optimizer, named, range(3))
    state = {key: tensor.clone() for key, tensor in optimizer.read().items()}
    assert state["exp_avg/layer.1.weight"].shape == (4,)  # vectors are numbered after matrices
    for _, parameter in resumed:
        parameter.data.zero_()
    fresh = EightBitAdamW(resumed, payload())

    fresh.write(state, 3)

    take_steps(optimizer, named, range(3, 6))
    take_steps(fresh, resumed, range(3, 6))
    assert same(values(resumed), values(named))


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({}, "needs a CUDA GPU"),
        ({"method": Method.LORA, "lora": LoRASettings()}, "for method Full"),
    ],
)
def test_eight_bits_are_refused_where_they_cannot_be(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        make_optimizer(parameters(), payload(optimizer_states="int8", **fields))
