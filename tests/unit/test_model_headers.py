"""What the headers of weight files say: parameters, not storage."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from latticeforge_trainer.errors import UserError
from latticeforge_trainer.models.headers import (
    TensorInfo,
    count_parameters,
    integer_share,
    read_header,
)


def test_headers_are_read_without_the_weights(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    tensors = {"a": torch.zeros(2, 3, dtype=torch.bfloat16), "b": torch.zeros(4, dtype=torch.int8)}
    save_file(tensors, path, metadata={"format": "pt"})
    header = read_header(path)
    assert header == {"a": TensorInfo("BF16", (2, 3)), "b": TensorInfo("I8", (4,))}
    assert header["a"].is_float
    assert not header["b"].is_float


def test_nf4_weights_count_as_what_they_stand_for() -> None:
    weight = "model.layers.0.self_attn.q_proj.weight"
    header = {
        weight: TensorInfo("U8", (64 * 64 // 2, 1)),
        f"{weight}.absmax": TensorInfo("U8", (64,)),
        f"{weight}.quant_map": TensorInfo("F32", (16,)),
        f"{weight}.nested_absmax": TensorInfo("F32", (1,)),
        f"{weight}.nested_quant_map": TensorInfo("F32", (256,)),
        f"{weight}.quant_state.bitsandbytes__nf4": TensorInfo("U8", (90,)),
        "model.norm.weight": TensorInfo("BF16", (64,)),
        "model.layers.0.self_attn.rotary_emb.inv_freq": TensorInfo("F32", (32,)),
    }
    assert count_parameters(header) == 64 * 64 + 64
    assert integer_share(header) > 0.5


def test_an_empty_header_is_no_quantization() -> None:
    assert integer_share({}) == count_parameters({}) == 0


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"1234567",
        struct.pack("<Q", 1 << 40) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 8) + b'{"a": 1}',
        struct.pack("<Q", 50) + b"{",
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match="no valid safetensors file"):
        read_header(path)
