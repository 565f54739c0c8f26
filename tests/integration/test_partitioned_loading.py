"""Under ZeRO-3 every process reads its own part of the weights, and the parts make the model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.fixtures.partitioned_loading import load_in_parts
from tests.fixtures.tiny_model import make_model

from latticeforge_trainer.models.loading import load_weights

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("tied", [False, True])
def test_each_process_reads_its_part(tmp_path: Path, tied: bool) -> None:
    # An odd vocabulary and an odd width: two processes divide neither, so the last part is padded.
    model = make_model(tmp_path / "model", vocab_size=289, tie_word_embeddings=tied)
    plain = load_weights(model)

    figures = load_in_parts(model, tmp_path / "whole.pt", processes=2)

    parameters, buffers = torch.load(tmp_path / "whole.pt")
    expected = dict(plain.named_parameters())
    assert parameters.keys() == expected.keys()
    for name, parameter in expected.items():
        assert torch.equal(parameters[name], parameter), name
    assert buffers.keys() == dict(plain.named_buffers()).keys()
    for name, buffer in plain.named_buffers():
        assert torch.equal(buffers[name], buffer), name
    size = sum(p.numel() * 4 for p in plain.parameters())  # the file holds fp32
    for figure in figures:
        done, total = figure["read"]
        assert done == total == pytest.approx(size / 2, rel=0.01)
        assert figure["sent"] == []
        assert figure["gathered"] > 0  # so collectives are seen
    assert sum(figure["read"][1] for figure in figures) == size
