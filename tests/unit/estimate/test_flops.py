"""The work of training, against the measured pairs of tokens/s and MFU that set the convention."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
from tests.unit.estimate.test_shapes import LLAMA_8B, QWEN_7B, QWEN_72B, shape

from latticeforge_trainer.contract import Method
from latticeforge_trainer.estimate.chips import peak_flops
from latticeforge_trainer.estimate.flops import training_flops

H200 = 989e12


@pytest.mark.parametrize(
    ("config", "method", "tokens_per_second", "percent"),
    [
        (QWEN_7B, Method.FULL, 9029, 41.0),
        (QWEN_7B, Method.FULL, 10_505, 47.7),
        (QWEN_7B, Method.FULL, 12_131, 55.1),
        (QWEN_7B, Method.LORA, 6857, 21.3),
        (QWEN_7B, Method.LORA, 10_960, 34.1),
        (QWEN_7B, Method.LORA, 16_044, 49.9),
        (QWEN_7B, Method.LORA, 16_414, 51.0),
        (QWEN_7B, Method.LORA, 20_883, 64.9),
        (QWEN_72B, Method.QLORA, 938, 28.7),
        (QWEN_72B, Method.QLORA, 985, 30.1),
        (QWEN_72B, Method.QLORA, 1260, 38.5),
        (QWEN_72B, Method.QLORA, 1734, 52.9),
    ],
)
def test_measured_throughput_gives_the_mfu_that_was_printed_with_it(
    config: dict[str, object], method: Method, tokens_per_second: float, percent: float
) -> None:
    per_token = training_flops(shape(config), method, [4096]) / 4096
    assert 100 * tokens_per_second * per_token / H200 == pytest.approx(percent, abs=0.1)


def test_half_the_length_has_half_the_attention() -> None:
    per_token = training_flops(shape(QWEN_72B), Method.LORA, [2048]) / 2048
    assert 100 * 1614 * per_token / H200 == pytest.approx(48.0, abs=0.1)


def test_attention_grows_with_the_squares_of_the_documents_lengths() -> None:
    llama = shape(LLAMA_8B)
    lengths = [100, 700, 1248]
    attention = 6 * 4096 * 32 * sum(length**2 for length in lengths)
    linear = 6 * llama.linear_parameters * 2048
    assert training_flops(llama, Method.FULL, lengths) == linear + attention
    assert training_flops(llama, Method.FULL, []) == 0


def test_attention_is_as_wide_as_its_heads_and_not_as_the_model() -> None:
    narrow, wide = shape(LLAMA_8B), replace(shape(LLAMA_8B), hidden=5120)
    work = [training_flops(s, Method.FULL, [10]) - 60 * s.linear_parameters for s in (narrow, wide)]
    assert work[0] == work[1] == 6 * 4096 * 32 * 100


def test_a_window_bounds_what_attention_costs() -> None:
    whole = replace(shape(LLAMA_8B), window=10, windowed_layers=0)
    windowed = replace(whole, windowed_layers=8)
    saved = [
        training_flops(whole, Method.FULL, [n]) - training_flops(windowed, Method.FULL, [n])
        for n in (9, 10, 12)
    ]
    assert saved == [0, 0, 6 * 4096 * 8 * 2**2]


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989),
        ("NVIDIA H200 NVL", 836),
        ("NVIDIA GH200 480GB", 989),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA B200", 2250),
        ("NVIDIA GB200", 2500),
        ("NVIDIA L40S", 362),
        ("NVIDIA A10", 125),
    ],
)
def test_known_chips_have_a_peak(name: str, tera: float) -> None:
    assert peak_flops(name) == tera * 1e12


@pytest.mark.parametrize(
    "name", ["cpu", "", "NVIDIA A10G", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "GRID A100-10C"]
)
def test_other_chips_and_parts_of_chips_have_none(name: str) -> None:
    assert peak_flops(name) is None


def test_an_estimate_loads_no_torch() -> None:
    code = (
        "import sys, latticeforge_trainer.estimate.flops, latticeforge_trainer.estimate.chips;"
        "sys.exit(bool({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
