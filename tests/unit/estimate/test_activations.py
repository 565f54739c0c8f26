"""What layers keep, against what autograd keeps; and which modes a memory holds, as properties."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from tests.fixtures.fast_paths import packed_documents, pair_of_models
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from transformers import AutoModelForCausalLM

from latticeforge_trainer.contract import Recompute
from latticeforge_trainer.estimate.activations import (
    ADAPTER_COLUMNS,
    Choice,
    LayerMemory,
    choose,
    layer_memory,
)
from latticeforge_trainer.estimate.shapes import model_shape
from latticeforge_trainer.models import attention
from latticeforge_trainer.models.attention import Backend, as_batch
from latticeforge_trainer.models.blocks import Block
from latticeforge_trainer.models.fused import decoder_layers, fuse
from latticeforge_trainer.training.loss import TargetLoss

NOTHING, ELEMENTWISE, LAYERS, OFFLOAD = (
    Recompute.NOTHING,
    Recompute.ELEMENTWISE,
    Recompute.LAYERS,
    Recompute.OFFLOAD,
)
WORK = [NOTHING, ELEMENTWISE, LAYERS, OFFLOAD]
"""From the mode that keeps the most to the one that computes and moves the most."""


@st.composite
def memories(draw: st.DrawFn) -> LayerMemory:
    """Layers that keep the more, the less is computed again."""
    sizes = st.integers(1, 10**6)
    input_ = draw(sizes)
    elementwise = input_ + draw(sizes)
    return LayerMemory(input_, elementwise, elementwise + draw(sizes), draw(st.integers(0, 10**6)))


LAYERS_ = st.integers(1, 100)
TOKENS = st.integers(1, 10**5)
BUDGETS = st.integers(-(10**9), 10**13)


def taken(memory: LayerMemory, choice: Choice, tokens: int) -> int:
    """Bytes on the device while backward runs through one layer, the others still waiting."""
    of = {
        NOTHING: memory.nothing,
        ELEMENTWISE: memory.elementwise,
        LAYERS: memory.input,
        OFFLOAD: 0,
    }
    again = memory.elementwise if {LAYERS, OFFLOAD} & {*choice.modes} else 0
    return tokens * (sum(of[mode] for mode in choice.modes) + memory.passing + again)


def work(choice: Choice) -> list[int]:
    return [WORK.index(mode) for mode in choice.modes]


@given(memories(), LAYERS_, TOKENS, BUDGETS, st.booleans())
def test_a_choice_is_for_every_layer_and_fits_unless_all_inputs_leave(
    memory: LayerMemory, layers: int, tokens: int, budget: int, most: bool
) -> None:
    choice = choose(memory, layers, tokens, budget, most=most)
    assert len(choice.modes) == layers
    assert choice.spare >= 0
    assert taken(memory, choice, tokens) + choice.spare <= budget or {*choice.modes} == {OFFLOAD}


@given(memories(), LAYERS_, TOKENS, st.tuples(BUDGETS, BUDGETS), st.booleans())
def test_more_memory_never_computes_more_in_any_layer(
    memory: LayerMemory, layers: int, tokens: int, budgets: tuple[int, int], most: bool
) -> None:
    small, large = (work(choose(memory, layers, tokens, b, most=most)) for b in sorted(budgets))
    assert all(a >= b for a, b in zip(small, large, strict=True))


@given(memories(), LAYERS_, st.tuples(TOKENS, TOKENS), BUDGETS, st.booleans())
def test_more_tokens_never_compute_less_in_any_layer(
    memory: LayerMemory, layers: int, tokens: tuple[int, int], budget: int, most: bool
) -> None:
    few, many = (work(choose(memory, layers, t, budget, most=most)) for t in sorted(tokens))
    assert all(a <= b for a, b in zip(few, many, strict=True))


@given(memories(), LAYERS_, TOKENS, BUDGETS)
def test_computing_less_in_one_layer_would_not_fit(
    memory: LayerMemory, layers: int, tokens: int, budget: int
) -> None:
    modes = choose(memory, layers, tokens, budget, most=True).modes
    worst = max(modes, key=WORK.index)
    if worst is NOTHING:
        return
    last = max(layer for layer, mode in enumerate(modes) if mode is worst)
    modes[last] = WORK[WORK.index(worst) - 1]
    assert taken(memory, Choice(modes, 0), tokens) > budget


def test_the_last_layers_keep_the_most() -> None:
    memory = LayerMemory(1, 10, 15, 5)
    budgets = 0, 16, 17, 18, 27, 34, 35, 40, 50
    found = {b: choose(memory, 3, 1, b, most=True).modes for b in budgets}
    assert found == {
        0: [OFFLOAD] * 3,
        16: [OFFLOAD, OFFLOAD, LAYERS],
        17: [OFFLOAD, LAYERS, LAYERS],
        18: [LAYERS] * 3,
        27: [LAYERS, LAYERS, ELEMENTWISE],
        34: [LAYERS, LAYERS, ELEMENTWISE],
        35: [ELEMENTWISE] * 3,
        40: [ELEMENTWISE, ELEMENTWISE, NOTHING],
        50: [NOTHING] * 3,
    }


def test_spare_memory_is_left_where_it_has_a_better_use() -> None:
    memory = LayerMemory(1, 10, 15, 5)
    assert choose(memory, 3, 1, 48, most=False) == Choice([ELEMENTWISE] * 3, 13)
    assert choose(memory, 3, 1, 48, most=True) == Choice([ELEMENTWISE, NOTHING, NOTHING], 3)


# --- what autograd keeps ----------------------------------------------------------------------

FIELDS = {
    "vocab_size": 96,
    "hidden_size": 256,
    "intermediate_size": 640,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": False,
}
LENGTH = 64


class Kept:
    """Sums the memory that autograd keeps, but for what is there anyway."""

    def __init__(self, *there: torch.Tensor) -> None:
        self._there = {self._start(tensor) for tensor in there}
        self._sizes: dict[int, int] = {}
        self._alive: list[torch.Tensor] = []  # so that no address is used twice

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        start = self._start(tensor)
        if start not in self._there:
            self._sizes[start] = tensor.untyped_storage().nbytes()
            self._alive.append(tensor)
        return tensor

    @property
    def bytes(self) -> int:
        return sum(self._sizes.values())

    @staticmethod
    def _start(tensor: torch.Tensor) -> int:
        return tensor.untyped_storage().data_ptr()


def tensors_of(model: nn.Module, blocks: list[Block]) -> list[torch.Tensor]:
    """Weights, and what groups have made of them."""
    groups = [group for block in blocks for group in block.groups]
    values = [value for group in groups for value in vars(group).values()]
    made = [value for value in values if isinstance(value, torch.Tensor)]
    return [*model.parameters(), *model.buffers(), *made]


def kept_bytes(kind: str, method: str, mode: str) -> tuple[float, LayerMemory]:
    """Bytes per token that the second layer keeps in fp32, and those that are expected."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**FIELDS)
    make: Any = AutoModelForCausalLM  # untyped
    model, _ = pair_of_models(make.from_config(config), method)
    causal = TargetLoss(model).causal
    blocks = fuse(model, [Recompute(mode)] * 2)
    batch, _ = packed_documents([(LENGTH,), (LENGTH,)], 96)
    x = torch.randn(2, LENGTH, 256, requires_grad=True)
    angles = causal.get_decoder().rotary_emb(x, batch.position_ids)
    kept = Kept(*tensors_of(model, blocks), *angles)
    layer: Any = decoder_layers(model)[1]
    with saved_tensors_hooks(kept.pack, lambda tensor: tensor):
        layer(x, position_embeddings=angles, boundaries=batch.boundaries)
    shape = model_shape(config.to_dict())
    assert shape is not None
    return kept.bytes / (2 * LENGTH), layer_memory(shape, width=4)


@pytest.fixture
def _as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU's attention copies its operands and results; kernels for equal lengths do not."""
    monkeypatch.setattr(attention, "choose", lambda _: Backend("batch", lambda _: True, as_batch))


@pytest.mark.usefixtures("_as_on_a_gpu")
@pytest.mark.parametrize(
    ("mode", "field"), [("elementwise", "elementwise"), ("nothing", "nothing"), ("layers", "input")]
)
@pytest.mark.parametrize("method", ["LoRA", "QLoRA"])
@pytest.mark.parametrize("kind", ["Llama", "Qwen2", "Qwen3", "Mistral"])
def test_a_layer_keeps_what_is_expected(kind: str, method: str, mode: str, field: str) -> None:
    found, memory = kept_bytes(kind, method, mode)
    assert found == getattr(memory, field)


@pytest.mark.usefixtures("_as_on_a_gpu")
@pytest.mark.parametrize(("method", "columns"), [("Full", 0), ("FP8", 16)])
def test_less_room_for_adapters_is_all_that_other_methods_keep_less(
    method: str, columns: int
) -> None:
    low = 4 * 4 * (ADAPTER_COLUMNS - columns)  # x Aᵀ of four groups, in fp32
    found, memory = kept_bytes("Qwen2", method, "elementwise")
    assert found == memory.elementwise - low
    behind = 4 * 3 * ADAPTER_COLUMNS  # behind two norms' outputs and the gated product
    found, memory = kept_bytes("Qwen2", method, "nothing")
    assert found == memory.nothing - low - behind
