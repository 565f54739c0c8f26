"""Under ZeRO-3 every process reads its own part of the weights, and the parts make the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.fixtures.partitioned_loading import load_in_parts
from tests.fixtures.tiny_model import make_model
from transformers import MixtralConfig, MixtralForCausalLM

from latticeforge_trainer.models.loading import load_weights

pytestmark = pytest.mark.slow


def assert_whole(saved: Path, plain: Any) -> None:
    parameters, buffers = torch.load(saved)
    for found, expected in (
        (parameters, dict(plain.named_parameters())),
        (buffers, dict(plain.named_buffers())),
    ):
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("tied", [False, True])
def test_each_process_reads_its_part(tmp_path: Path, tied: bool) -> None:
    # An odd vocabulary and an odd width: two processes divide neither, so the last part is padded.
    model = make_model(tmp_path / "model", vocab_size=289, tie_word_embeddings=tied)
    plain = load_weights(model)

    figures = load_in_parts(model, tmp_path / "whole.pt", processes=2)

    assert_whole(tmp_path / "whole.pt", plain)
    size = sum(p.numel() * 4 for p in plain.parameters())  # the file holds fp32
    for figure in figures:
        [(done, total)] = figure["read"]
        assert done == total == pytest.approx(size / 2, rel=0.01)
        assert figure["sent"] == []
        assert figure["gathered"] > 0  # so collectives are seen
    assert sum(figure["read"][0][1] for figure in figures) == size


def test_what_transformers_must_load_is_partitioned_by_it(tmp_path: Path) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 64, "vocab_size": 64, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_local_experts": 2}
    fields: dict[str, Any] = {**sizes, **heads}
    MixtralForCausalLM(MixtralConfig(**fields)).save_pretrained(tmp_path / "model")

    load_in_parts(tmp_path / "model", tmp_path / "whole.pt", processes=2)

    assert_whole(tmp_path / "whole.pt", load_weights(tmp_path / "model"))
