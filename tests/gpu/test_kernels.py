"""Every fast path on a GPU against plain arithmetic in fp32, on fresh random inputs.

Uninitialised memory is filled with NaN meanwhile, so an element that nobody wrote is seen.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from bitsandbytes.nn import modules
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

from latticeforge_trainer.contract import LoRASettings, Recompute
from latticeforge_trainer.kernels import cross_entropy, elementwise, fp8, nf4
from latticeforge_trainer.kernels.elementwise import Product
from latticeforge_trainer.models.adapters import add_adapter
from latticeforge_trainer.models.documents import Boundaries
from latticeforge_trainer.models.fp8 import Fp8Linear
from latticeforge_trainer.models.fused import fuse
from latticeforge_trainer.models.packed import use_packed_attention
from latticeforge_trainer.training.head import LinearCrossEntropy

bnb: Any = modules  # untyped

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no GPU: run `pytest tests/gpu` on a machine with one"
)


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    """`torch.empty` gives NaN."""
    torch.manual_seed(torch.seed() % 2**31)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    yield
    torch.use_deterministic_algorithms(False)


def random(*shape: int, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16) * scale


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative, in norm; NaN if anything is NaN."""
    expected = expected.double()
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("shape", [(128, 64), (1024, 3584), (29568, 8192), (640, 320)])
def test_nf4_is_bit_for_bit_what_bitsandbytes_gives(shape: tuple[int, int]) -> None:
    packed, state = quantize_4bit(
        random(*shape, scale=0.02), quant_type="nf4", compress_statistics=True
    )
    wide = torch.full((shape[0], shape[1] + 16), 7.0, device="cuda", dtype=torch.bfloat16)
    nf4.dequantize(packed, state, wide[:, : shape[1]])
    assert torch.equal(wide[:, : shape[1]], dequantize_4bit(packed, state))
    assert (wide[:, shape[1] :] == 7).all()


@pytest.mark.parametrize("shape", [(7, 128), (512, 3584), (333, 29568)])
def test_rows_in_fp8(shape: tuple[int, int]) -> None:
    x, factor = random(*shape), torch.rand(shape[1], device="cuda") + 0.5
    x[0] = 0
    q, scale = fp8.quantize_rows(x, factor)
    expected, expected_scale = fp8.quantize_rows(x.cpu(), factor.cpu())
    assert error(scale.cpu(), expected_scale) < 1e-6
    assert error(q.float().cpu() * scale.cpu(), expected.float() * expected_scale) < 2e-3
    assert torch.equal(fp8.transposed(q).float(), q.float().t())


def test_products_in_fp8() -> None:
    layer = Fp8Linear.from_weight(random(512, 1024, scale=0.02), None)
    x = random(256, 1024)
    exact = x.float() @ (layer.e4m3.float() * layer.weight_scale).t()
    assert error(layer(x), exact) < 0.04


@pytest.mark.parametrize("vocabulary", [300, 151_936, 152_064])
def test_cross_entropy(vocabulary: int) -> None:
    logits = random(37, vocabulary, scale=4.0)
    targets = torch.randint(0, vocabulary, (37,), device="cuda")
    exact = logits.double().requires_grad_()
    losses = nn.functional.cross_entropy(exact, targets, reduction="none")
    torch.autograd.backward(losses.sum())
    found = cross_entropy.loss_and_gradient_(logits, targets)
    assert error(found, losses) < 1e-5
    assert exact.grad is not None
    assert error(logits, exact.grad) < 4e-3


def test_the_head() -> None:
    hidden, weight = random(3000, 256), random(152_064, 256, scale=0.05)
    targets = torch.randint(0, len(weight), (3000,), device="cuda")
    grads = []
    for convert in (torch.Tensor.clone, torch.Tensor.double):
        h, w = (convert(t).requires_grad_() for t in (hidden, weight))
        if h.dtype is torch.bfloat16:
            head: Any = LinearCrossEntropy.apply  # untyped in torch
            loss = head(h, w, targets)
        else:
            loss = nn.functional.cross_entropy(h @ w.t(), targets, reduction="sum")
        torch.autograd.backward(loss * 0.01)
        grads.append((loss, h.grad, w.grad))
    for found, exact in zip(*grads, strict=True):
        assert error(found.detach(), exact.detach()) < 1e-2


@pytest.mark.parametrize("width", [128, 3584, 8192])
def test_norms(width: int) -> None:
    x, weight, dy, residual = (random(*n) for n in ((999, width), (width,), *[(999, width)] * 2))
    results = []
    for device in ("cuda", "cpu"):
        precise = torch.float32 if device == "cpu" else torch.bfloat16
        tensors = [t.to(device, precise) for t in (x, weight, dy, residual)]
        y = torch.empty(999, width + 24, device=device, dtype=precise)[:, :width]
        inverse = elementwise.rms_norm(tensors[0], tensors[1], 1e-6, y)
        dx = torch.empty(999, width + 64, device=device, dtype=precise)[:, :width]
        dweight = elementwise.rms_norm_backward(
            tensors[2], tensors[0], tensors[1], inverse, dx, residual=tensors[3], want_weight=True
        )
        assert dweight is not None
        results.append((y, dx, dweight))
    for a, b in zip(*results, strict=True):
        assert error(a.cpu(), b) < 6e-3


@pytest.mark.parametrize("rank", [0, 8, 32, 72])
def test_the_gated_product(rank: int) -> None:
    gate_up, dy = random(500, 2 * 18944), random(500, 18944)
    factors = [random(*n) for n in ((500, rank), (2 * 18944, rank), (500, rank), (rank, 18944))]
    results = []
    for device in ("cuda", "cpu"):
        precise = torch.float32 if device == "cpu" else torch.bfloat16
        inner, gradient = gate_up.to(device, precise), dy.to(device, precise)
        y = torch.empty(500, 18944 + 16, device=device, dtype=precise)[:, :18944]
        again, dinner = torch.empty_like(gradient), torch.empty_like(inner)
        low, b, back, a = (t.to(device, precise) for t in factors)
        more = (Product(low, b.t()), Product(back, a)) if rank else (None, None)
        elementwise.swiglu(inner, y, more[0])
        elementwise.swiglu_backward(
            inner, gradient, dinner, again, pending=more[0], pending_dy=more[1]
        )
        assert error(again, y) < 2e-3
        results.append((y, dinner))
    for a, b in zip(*results, strict=True):
        assert error(a.cpu(), b) < 6e-3


def test_rotation() -> None:
    rows = random(200, 32 * 128 + 8)
    q = rows[:, : 28 * 128].view(200, 28, 128)
    angle = torch.rand(100, 64, device="cuda").repeat(1, 2) * 6
    cos, sin = angle.cos().bfloat16(), angle.sin().bfloat16()
    for back in (False, True):
        exact = torch.empty(200, 28, 128)
        turned = [a.float().cpu() for a in (cos, sin)]
        elementwise.rotate(q.float().cpu(), exact, *turned, back=back)
        apart = torch.empty(200, 28, 128, device="cuda", dtype=torch.bfloat16)
        elementwise.rotate(q, apart, cos, sin, back=back)
        assert error(apart.cpu(), exact) < 6e-3
        untouched = rows[:, 28 * 128 :].clone()
        within = rows.clone()[:, : 28 * 128].view(200, 28, 128)
        elementwise.rotate(within, within, cos, sin, back=back)
        assert torch.equal(within, apart)
        assert torch.equal(rows[:, 28 * 128 :], untouched)


LIMITS = {"Full": 0.03, "LoRA": 0.03, "QLoRA": 0.03, "FP8": 0.15}
"""Largest relative error of a gradient: bf16 rounding through two layers; FP8's own is larger."""


@pytest.mark.parametrize("mode", ["nothing", "elementwise", "layers", "offload"])
@pytest.mark.parametrize("method", ["Full", "LoRA", "QLoRA", "FP8"])
def test_gradients_of_a_model(method: str, mode: str) -> None:
    """The fused model in bf16 against transformers' own in fp32, tensor by tensor."""
    fast, plain = pair_of_models(method)
    fuse(fast, [Recompute(mode)] * 2)
    tokens = torch.randint(0, 1000, (2, 256), device="cuda")
    positions = torch.arange(256).repeat(2, 1)
    positions[:, 100:] -= 100  # two documents in each row
    boundaries = Boundaries.of(positions.clone()).map(torch.Tensor.cuda)
    weights = random(2, 256, 512)
    for model in (fast, plain):
        model.train()
        extra: dict[str, Any] = {"boundaries": boundaries} if model is fast else {}
        inner = model if method == "Full" else model.get_base_model()
        hidden = inner.get_decoder()(
            input_ids=tokens, position_ids=positions.cuda(), use_cache=False, **extra
        ).last_hidden_state
        torch.autograd.backward((hidden.float() * weights.float()).sum())
    others = dict(plain.named_parameters())
    found = {
        name: error(p.grad, others[name].grad)
        for name, p in fast.named_parameters()
        if p.grad is not None and others[name].grad is not None
    }
    assert len(found) == sum(p.requires_grad for p in fast.parameters()) - (method == "Full")
    assert max(found.values()) < LIMITS[method], sorted(found.items(), key=lambda i: -i[1])[:5]


def pair_of_models(method: str) -> tuple[Any, Any]:
    """A bf16 model in the method's format, and an fp32 one of exactly the same weights."""
    make: Any = Qwen2Config  # its fields are not typed
    config = make(
        vocab_size=1000,
        hidden_size=512,
        intermediate_size=1024,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=2,
        tie_word_embeddings=False,
        attn_implementation="sdpa",
    )
    fast: Any = Qwen2ForCausalLM(config)
    fast.cuda().bfloat16()
    plain = copy.deepcopy(fast).float()
    if method in {"QLoRA", "FP8"}:
        for (_, a), (_, b) in zip(fast.named_modules(), plain.named_modules(), strict=True):
            for name, child in list(a.named_children()):
                if not isinstance(child, nn.Linear) or name == "lm_head":
                    continue
                bias = child.bias
                if method == "FP8":
                    new: Any = Fp8Linear.from_weight(child.weight.detach(), bias)
                    exact = new.e4m3.float() * new.weight_scale
                else:
                    new = bnb.Linear4bit(
                        child.in_features,
                        child.out_features,
                        bias=bias is not None,
                        compute_dtype=torch.bfloat16,
                        quant_type="nf4",
                    )
                    new.weight = bnb.Params4bit(
                        child.weight.detach(), requires_grad=False, quant_type="nf4", module=new
                    ).to("cuda")
                    new.bias = bias
                    state = new.weight.quant_state
                    exact = dequantize_4bit(new.weight.data, state).float()
                setattr(a, name, new)
                getattr(b, name).weight.data = exact
    if method != "Full":
        settings = LoRASettings(rank=8, alpha=16)
        fast, plain = add_adapter(fast, settings), add_adapter(plain, settings)
        values = dict(fast.named_parameters())
        for name, parameter in plain.named_parameters():
            if "lora_" in name:
                new_value = torch.randn_like(parameter) * 0.05
                parameter.data = new_value
                values[name].data = new_value.clone()
    return fast, plain


@pytest.mark.parametrize("kind", ["gemma", "gemma2", "gemma3_text", "mixtral", "phi3", "qwen3_moe"])
def test_other_architectures_compute_the_same_with_ligers_kernels(kind: str) -> None:
    """Layers that are not ours: adapters through our groups, norms and products through Liger."""
    plain = others(kind)
    fast = copy.deepcopy(plain)
    tokens = torch.randint(1, 300, (1, 128), device="cuda")
    positions = torch.arange(128)[None]
    boundaries = Boundaries.of(positions).map(torch.Tensor.cuda)
    weights = random(1, 128, 256)
    results = []
    for model in (plain, fast):
        if model is fast:
            fuse(fast, [Recompute.LAYERS] * 2)  # Liger puts some of its functions in modules
        model.train()
        hidden = (
            model.get_base_model()
            .get_decoder()(
                input_ids=tokens,
                position_ids=positions.cuda(),
                use_cache=False,
                boundaries=boundaries,
            )
            .last_hidden_state
        )
        torch.autograd.backward((hidden.float() * weights.float()).sum())
        results.append([hidden, *(p.grad for p in model.parameters() if p.grad is not None)])
    assert len(results[0]) == len(results[1]) > 1
    for found, exact in zip(results[1], results[0], strict=True):
        assert error(found.detach(), exact.detach()) < 0.1  # experts may change at a tie


def others(kind: str) -> Any:
    """A tiny bf16 model of an architecture that is not fused, with adapters that do something."""
    make: Any = CONFIG_MAPPING[kind]
    fields = {
        "vocab_size": 300,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "pad_token_id": 0,
    }
    experts = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2}
    if kind in {"mixtral", "qwen3_moe"}:
        fields |= {**experts, "moe_intermediate_size": 128}
    build: Any = AutoModelForCausalLM  # untyped
    model = build.from_config(make(**fields))
    model.cuda().bfloat16()
    use_packed_attention(model)
    adapted: Any = add_adapter(model, LoRASettings(rank=8, alpha=16))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.05)
    return adapted
