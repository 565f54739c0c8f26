"""The loss of packed sequences, against the plain one of whole logits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma2ForCausalLM

from latticeforge_trainer.errors import UserError
from latticeforge_trainer.models.documents import Boundaries
from latticeforge_trainer.training import loss as loss_module
from latticeforge_trainer.training.batches import MicroBatch
from latticeforge_trainer.training.loss import SummedCrossEntropy, TargetLoss, check_packing


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)


@pytest.fixture(scope="module")
def gemma() -> Any:
    torch.manual_seed(0)
    return Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            sliding_window=8,
            final_logit_softcapping=0.05,
        )
    )


def two_packed_rows() -> tuple[MicroBatch, list[torch.Tensor]]:
    """A micro-batch of 2 sequences with 2 samples each, and the samples."""
    torch.manual_seed(1)
    samples = [torch.randint(0, 60, (length,)) for length in (5, 11, 9, 7)]
    rows = torch.stack([torch.cat(samples[:2]), torch.cat(samples[2:])])
    positions = [torch.cat([torch.arange(len(s)) for s in p]) for p in (samples[:2], samples[2:])]
    firsts = [0, 5, 16, 25]
    sources = torch.tensor([i for i in range(32) if i + 1 not in {*firsts, 32}])
    return micro_batch(rows, torch.stack(positions), sources), samples


def micro_batch(rows: torch.Tensor, positions: torch.Tensor, sources: torch.Tensor) -> MicroBatch:
    """A micro-batch that learns the tokens behind `sources`."""
    targets = rows.flatten()[sources + 1]
    return MicroBatch(rows, positions, Boundaries.of(positions), sources, targets)


def plain_loss(model: Any, samples: list[torch.Tensor]) -> torch.Tensor:
    """The samples' summed cross-entropy, each alone, from whole logits of plain attention."""
    ours = model.config._attn_implementation
    model.set_attn_implementation("eager")
    losses = [
        functional.cross_entropy(model(s[None]).logits[0, :-1].float(), s[1:], reduction="sum")
        for s in samples
    ]
    model.set_attn_implementation(ours)
    return torch.stack(losses).sum()


@pytest.mark.parametrize("name", ["model", "gemma"])
def test_packed_loss_and_gradients_are_those_of_samples_alone(
    name: str, request: pytest.FixtureRequest
) -> None:
    causal = request.getfixturevalue(name)
    batch, samples = two_packed_rows()
    parameters = list(causal.parameters())

    packed, alone = TargetLoss(causal)(batch), plain_loss(causal, samples)

    assert packed.item() == pytest.approx(alone.item(), rel=1e-5)
    slopes = [torch.autograd.grad(value, parameters) for value in (packed, alone)]
    for mine, plain in zip(*slopes, strict=True):
        assert torch.allclose(mine, plain, atol=1e-4 * float(plain.abs().max() + 1))


def test_logits_in_pieces_give_the_same_loss(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    batch, _ = two_packed_rows()
    parameters = list(model.parameters())
    whole = TargetLoss(model)(batch)
    monkeypatch.setattr(loss_module, "LOGITS_AT_ONCE", 288 * 6)

    pieces = TargetLoss(model)(batch)

    assert pieces.item() == pytest.approx(whole.item(), rel=1e-6)
    slopes = [torch.autograd.grad(value, parameters) for value in (pieces, whole)]
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*slopes, strict=True))


def test_no_target_is_no_loss_but_a_gradient_for_every_weight(model: Any) -> None:
    batch, _ = two_packed_rows()
    nothing = micro_batch(batch.input_ids, batch.position_ids, batch.sources[:0])

    loss = TargetLoss(model)(nothing)

    assert loss.item() == 0
    slopes = torch.autograd.grad(loss, list(model.parameters()))
    assert all(not slope.any() for slope in slopes)


def test_cross_entropy_of_16_bit_logits_is_taken_in_32() -> None:
    torch.manual_seed(0)
    logits = (torch.randn(7, 50) * 5).bfloat16().requires_grad_()
    targets = torch.randint(0, 50, (7,))
    apply: Any = SummedCrossEntropy.apply

    loss = apply(logits, targets)

    plain = functional.cross_entropy(logits.float(), targets, reduction="sum")
    assert loss.item() == pytest.approx(plain.item(), rel=1e-6)
    mine, expected = (torch.autograd.grad(2 * value, logits)[0] for value in (loss, plain))
    assert torch.allclose(mine, expected, atol=1e-2)


def test_packing_is_checked_on_the_model_itself(model: Any) -> None:
    module = TargetLoss(model)

    check_packing(module, torch.device("cpu"), 256)

    class Leaking(TargetLoss):
        """Forgets the samples' borders."""

        def forward(self, batch: MicroBatch) -> torch.Tensor:
            whole = torch.arange(batch.input_ids.shape[1])[None]
            return super().forward(replace(batch, boundaries=Boundaries.of(whole)))

    for parameter in model.parameters():
        parameter.data.mul_(3)  # random weights hardly attend
    with pytest.raises(UserError, match="see one another"):
        check_packing(Leaking(model), torch.device("cpu"), 256)
    for parameter in model.parameters():
        parameter.data.div_(3)


@pytest.mark.parametrize(
    ("attribute", "value", "sentence"),
    [("logit_scale", 0.0625, "scales its logits by logit_scale")],
)
def test_unknown_logits_are_refused(
    model: Any, attribute: str, value: float, sentence: str
) -> None:
    setattr(model.config, attribute, value)

    with pytest.raises(UserError, match=sentence):
        TargetLoss(model)

    setattr(model.config, attribute, 1.0)
    TargetLoss(model)
