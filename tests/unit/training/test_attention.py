"""Attention within packed documents, against the plain formula."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import flex_attention

from latticeforge_trainer.models import attention
from latticeforge_trainer.models.attention import BACKENDS, Request, packed_attention
from latticeforge_trainer.models.documents import Boundaries, Options
from latticeforge_trainer.models.flex import attend_flex, block_mask

HEADS, KV_HEADS, DIM, SCALE = 4, 2, 16, 0.3


def boundaries_of(lengths: list[int]) -> Boundaries:
    """Documents behind one another in one row."""
    return Boundaries.of(torch.cat([torch.arange(n) for n in lengths])[None])


QKV = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def random_qkv(tokens: int, value_dim: int = DIM, *, slopes: bool = True) -> QKV:
    """Fresh q, k and v."""

    def draw(heads: int, dim: int) -> torch.Tensor:
        return torch.randn(tokens, heads, dim, requires_grad=slopes)

    return draw(HEADS, DIM), draw(KV_HEADS, DIM), draw(KV_HEADS, value_dim)


def formula(
    qkv: QKV,
    lengths: list[int],
    window: int | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """Masked softmax over all tokens, in fp64."""
    q, k, v = (part.double().transpose(0, 1) for part in qkv)
    k, v = (part.repeat_interleave(HEADS // KV_HEADS, dim=0) for part in (k, v))
    scores = q @ k.transpose(1, 2) * SCALE
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    index = torch.arange(sum(lengths))
    ago = index[:, None] - index
    seen = (ago >= 0) & (ago < (window or len(index))) & (document[:, None] == document)
    weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
    return (weights @ v).transpose(0, 1)


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=6),
    window=st.none() | st.integers(1, 14),
    softcap=st.none() | st.just(0.5),
    seed=st.integers(0, 99),
)
def test_output_and_gradients_are_those_of_the_formula(
    lengths: list[int], window: int | None, softcap: float | None, seed: int
) -> None:
    torch.manual_seed(seed)
    qkv = random_qkv(sum(lengths))

    out = packed_attention(
        *qkv, boundaries_of(lengths), scale=SCALE, window=window, softcap=softcap
    )

    wanted = formula(qkv, lengths, window, softcap)
    assert torch.allclose(out.double(), wanted, atol=1e-5)
    slope = torch.randn_like(out)
    found = torch.autograd.grad(out, qkv, slope)
    for mine, true in zip(found, torch.autograd.grad(wanted, qkv, slope.double()), strict=True):
        assert torch.allclose(mine, true, atol=1e-4)


@pytest.mark.parametrize("value_dim", [8, 24])
def test_values_may_have_another_size_than_queries(value_dim: int) -> None:
    lengths = [5, 3]
    qkv = random_qkv(8, value_dim)

    out = packed_attention(*qkv, boundaries_of(lengths), scale=SCALE)

    assert torch.allclose(out.double(), formula(qkv, lengths), atol=1e-5)


def test_documents_begin_at_position_0_and_at_each_row() -> None:
    positions = torch.tensor([[0, 1, 2, 0, 1], [3, 4, 0, 0, 1]])  # the second row's first is cut

    found = Boundaries.of(positions)

    assert found.cumulative.tolist() == [0, 3, 5, 7, 8, 10]
    assert found.cumulative.dtype == torch.int32
    assert found.lengths == (3, 2, 2, 1, 2)
    assert found.longest == 3
    assert not found.equal
    assert Boundaries.of(torch.arange(4).repeat(3, 2)).equal


@pytest.fixture
def quiet_flex(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flex attention in plain PyTorch, which it advises against."""
    monkeypatch.setattr(flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    monkeypatch.setattr(flex_attention, "_warn_once", lambda *_, **__: None)


@pytest.mark.usefixtures("quiet_flex")
@pytest.mark.parametrize("softcap", [None, 0.5])
@pytest.mark.parametrize("window", [None, 17, 150])
@pytest.mark.parametrize("lengths", [[5, 140, 111, 300], [128, 128, 256], [1] * 130])
def test_flex_attention_gets_the_right_blocks(
    lengths: list[int], window: int | None, softcap: float | None
) -> None:
    qkv = random_qkv(sum(lengths), slopes=False)
    options = Options(SCALE, window, softcap)

    out = attend_flex(*qkv, boundaries_of(lengths), options)

    assert torch.allclose(out.double(), formula(qkv, lengths, window, softcap), atol=1e-5)


def test_flex_attention_computes_no_block_between_documents() -> None:
    mask = block_mask(boundaries_of([256, 128, 384]), None)

    assert mask.kv_num_blocks.tolist() == [[[1, 2, 1, 1, 2, 3]]]
    assert block_mask(boundaries_of([768]), 128).kv_num_blocks.max() == 2


def test_equal_documents_are_a_batch() -> None:
    lengths = [7, 7, 7]
    qkv = random_qkv(21)
    options = Options(SCALE)

    out = attention.as_batch(*qkv, boundaries_of(lengths), options)

    assert torch.allclose(out.double(), formula(qkv, lengths), atol=1e-5)


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A machine that says it has an H100, and the packages that are put in the list."""
    packages: list[str] = []
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (9, 0))
    monkeypatch.setattr(attention, "_installed", packages.__contains__)
    monkeypatch.setattr(attention, "_varlen_parameters", lambda: frozenset({"window_size"}))
    attention.choose.cache_clear()
    yield packages
    attention.choose.cache_clear()


@pytest.mark.parametrize(
    ("packages", "change", "name"),
    [
        (["flash_attn_interface", "flash_attn"], {}, "FlashAttention 3"),
        (["flash_attn"], {}, "FlashAttention 2"),
        (["flash_attn"], {"softcap": True}, "FlashAttention 2"),
        ([], {}, "PyTorch varlen"),
        ([], {"window": True}, "PyTorch varlen"),
        ([], {"equal": True}, "cuDNN, equal lengths"),
        ([], {"equal": True, "window": True}, "PyTorch varlen"),
        ([], {"softcap": True}, "flex attention"),
        ([], {"dtype": torch.float32}, "plain"),
        ([], {"dim": 20}, "plain"),
        (["flash_attn"], {"device": torch.device("cpu")}, "plain"),
    ],
)
def test_the_kernel_is_the_first_that_serves(
    hopper: list[str], packages: list[str], change: dict[str, object], name: str
) -> None:
    hopper += packages
    asked: dict[str, object] = {
        "device": torch.device("cuda", 0),
        "dtype": torch.bfloat16,
        "dim": 128,
        "equal": False,
        "window": False,
        "softcap": False,
    }

    chosen = attention.choose(Request(**{**asked, **change}))  # type: ignore[arg-type]  # a table

    assert chosen.name == name


def flash_like(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *where: Any, **options: Any
) -> torch.Tensor:
    """What FlashAttention's functions compute, by their own arguments."""
    starts, same_starts, longest, same_longest = where
    assert starts is same_starts
    assert longest == same_longest
    lengths = starts.diff().tolist()
    assert longest == max(lengths)
    left, right = options["window_size"]
    assert right == 0
    assert options.get("causal") or options.get("enable_gqa")
    assert options.get("softmax_scale", options.get("scale")) == SCALE
    return formula((q, k, v), lengths, None if left < 0 else left + 1, options.get("softcap"))


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize(
    ("name", "path", "softcap"),
    [
        ("FlashAttention 3", "flash_attn_interface.flash_attn_varlen_func", 0.5),
        ("FlashAttention 2", "flash_attn.flash_attn_varlen_func", 0.5),
        ("PyTorch varlen", "torch.nn.attention.varlen.varlen_attn", None),
    ],
)
def test_kernels_for_documents_are_told_all_in_their_own_terms(
    monkeypatch: pytest.MonkeyPatch,
    window: int | None,
    name: str,
    path: str,
    softcap: float | None,
) -> None:
    module, _, function = path.rpartition(".")
    monkeypatch.setattr(attention, "_varlen_parameters", lambda: frozenset({"enable_gqa"}))
    monkeypatch.setitem(sys.modules, module, ModuleType(module))
    monkeypatch.setattr(sys.modules[module], function, flash_like, raising=False)
    (backend,) = (backend for backend in BACKENDS if backend.name == name)
    lengths = [5, 2, 9]
    qkv = random_qkv(16, slopes=False)

    out = backend.attend(*qkv, boundaries_of(lengths), Options(SCALE, window, softcap))

    assert torch.equal(out, formula(qkv, lengths, window, softcap))


def test_every_backend_is_named_once() -> None:
    assert len({backend.name for backend in BACKENDS}) == len(BACKENDS)


def test_compiled_code_is_not_compiled_again_for_other_documents() -> None:
    compiled: list[object] = []

    def count(graph: torch.fx.GraphModule, _inputs: object) -> torch.fx.GraphModule:
        compiled.append(graph)
        return graph

    @torch.compile(backend=count)
    def layer(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, b: Boundaries) -> torch.Tensor:
        out: torch.Tensor = packed_attention(q * 2, k, v, b, scale=SCALE)
        return out + 1

    q, k, v = random_qkv(24, slopes=False)
    layer(q, k, v, boundaries_of([24]))
    graphs = len(compiled)

    for lengths in ([10, 14], [3, 4, 5, 12], [1] * 24):
        layer(q, k, v, boundaries_of(lengths))

    assert len(compiled) == graphs > 0
