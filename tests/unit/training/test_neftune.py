"""Noise on embeddings: of the size that the paper says, and only in training."""

from __future__ import annotations

import torch
from torch import nn

from latticeforge_trainer.training.neftune import add_noise

TOKENS = torch.arange(64).reshape(2, 32)


def embeddings(alpha: float | None) -> nn.Embedding:
    torch.manual_seed(0)
    made = nn.Embedding(64, 50)
    if alpha is not None:
        add_noise(made, alpha)
    return made


def test_noise_is_uniform_up_to_its_bound() -> None:
    noise = embeddings(10)(TOKENS) - embeddings(None)(TOKENS)
    bound = 10 / (32 * 50) ** 0.5
    assert noise.abs().max() <= bound
    assert noise.abs().max() > 0.99 * bound
    assert abs(noise.mean()) < 0.05 * bound
    assert noise.unique().numel() > 3000


def test_without_gradients_there_is_none() -> None:
    made = embeddings(10)
    with torch.no_grad():
        assert made(TOKENS).equal(embeddings(None)(TOKENS))


def test_the_seed_draws_it() -> None:
    made = embeddings(10)
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(made(TOKENS))
    assert drawn[0].equal(drawn[1])
    assert not drawn[0].equal(drawn[2])
