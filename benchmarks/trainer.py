"""The trainer beside the stack a user would pick, on one card in one run.

    python -m benchmarks.trainer                          every row that fits this card
    python -m benchmarks.trainer --rows lora-7b,full-7b   some of them
    python -m benchmarks.trainer --profile lora-7b        where one step's time goes
    python -m benchmarks.trainer --losses                 50 steps, fast path against plain

Each measurement is a process of its own (or one for each GPU). Weights and tokens are random, never
zeros; every token is real and is learned; each sequence is one document. Medians over 8 steps after
3 warm-ups; of the longest sequence, where a step takes a minute, the first one alone, which locks
host memory as well.

MFU is model FLOP/s by 989 TFLOP/s (H100 and H200, dense bf16). Model FLOPs per token: 6 for every
parameter of the linear layers and the head in a full fine-tune, 4 with an adapter, plus causal
attention, 6 x sequence x hidden x layers; what is computed again is not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from latticeforge_trainer.contract import Method
from latticeforge_trainer.estimate.flops import training_flops
from latticeforge_trainer.estimate.shapes import model_shape

PEAK_FLOPS = 989e12
WARM_UP, STEPS = 3, 8
GIB = 2**30


@dataclass(frozen=True)
class Shape:
    """A Qwen2.5 model's sizes."""

    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int = 152_064
    tied: bool = False

    def config(self) -> dict[str, Any]:
        """As `config.json` has it."""
        return {
            "model_type": "qwen2",
            "vocab_size": self.vocabulary,
            "hidden_size": self.hidden,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "max_position_embeddings": 131_072,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
            "tie_word_embeddings": self.tied,
        }


SHAPES = {
    "0.5B": Shape(896, 4864, 24, 14, 2, 151_936, tied=True),
    "1.5B": Shape(1536, 8960, 28, 12, 2, 151_936, tied=True),
    "7.6B": Shape(3584, 18944, 28, 28, 4),
    "14.8B": Shape(5120, 13824, 48, 40, 8),
    "32.8B": Shape(5120, 27648, 64, 40, 8),
    "72.7B": Shape(8192, 29568, 80, 64, 8),
}


@dataclass(frozen=True)
class Run:
    """One measurement."""

    row: str
    stack: str
    """`ours`, or what a user would pick."""
    shape: str
    method: str
    """`Full`, `LoRA`, `QLoRA`, or `FP8`: LoRA over an FP8 base."""
    micro_batch: int
    recompute: str = "auto"
    sequence: int = 4096
    processes: int = 1
    steps: int = STEPS
    warm_up: int = WARM_UP
    states: str = ""
    """AdamW's moments, `fp32` or `int8`; empty: in 8 bits for `Full`, else in 32."""
    accumulation: int = 1
    """Micro-batches of a step."""

    @property
    def optimizer_states(self) -> str:
        """How AdamW's moments are held."""
        return self.states or ("int8" if self.method == "Full" else "fp32")


def table() -> list[Run]:
    """All measurements, those of a row together."""
    rows: list[Run] = []

    def add(row: str, shape: str, method: str, ours: list[Any], theirs: list[Any]) -> None:
        rows.extend(Run(row, "ours", shape, method, *run) for run in ours)
        rows.extend(Run(row, stack, shape, method, *run) for stack, *run in theirs)

    peft = "HF + PEFT + Liger"
    add("lora-7b", "7.6B", "LoRA", [(4,)], [(peft, 4, "nothing")])
    add("fp8-7b", "7.6B", "FP8", [(4,)], [])
    add("full-7b", "7.6B", "Full", [(6,)], [("HF + Liger", 2, "nothing")])
    add("qlora-72b", "72.7B", "QLoRA", [(1,)], [(peft, 1, "layers")])
    add("fp8-72b", "72.7B", "FP8", [(1,)], [])
    add("long-72b", "72.7B", "QLoRA", [(1, "auto", 65536, 1, 1, 0)], [])
    add("gpus-7b", "7.6B", "LoRA", [(4, "auto", 4096, 1), (4, "auto", 4096, 2)], [])
    return rows


def main() -> None:
    """Measure, print the table, write the raw data."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", default="", help="comma-separated; default: all")
    parser.add_argument("--stack", default="", help="only stacks whose name starts with this")
    parser.add_argument("--output", type=Path, help="JSON of every measurement")
    parser.add_argument("--profile", metavar="ROW", help="print one step's kernels by time")
    parser.add_argument("--losses", action="store_true", help="compare loss curves")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.losses or options.one or options.profile:
        from latticeforge_trainer.training.process import (  # noqa: PLC0415  (not in the parent)
            settle_environment,
        )

        settle_environment(int(os.environ.get("LOCAL_WORLD_SIZE", "1")))  # as the trainer runs
    if options.losses:
        compare_losses()
        return
    if options.one:
        result = measure(Run(**json.loads(options.one)))
        if os.environ.get("RANK", "0") == "0":
            print(json.dumps(result))
        return
    if options.profile:
        run = next(run for run in table() if run.row == options.profile)
        print(profile(run))
        return
    wanted = set(filter(None, options.rows.split(",")))
    results = []
    for run in table():
        if (wanted and run.row not in wanted) or not run.stack.startswith(options.stack):
            continue
        result = in_a_process(run)
        print(line_of(result), flush=True)
        results.append(result)
        if options.output:
            options.output.write_text(json.dumps(results, indent=1))


def in_a_process(run: Run) -> dict[str, Any]:
    """Measure in a fresh process, so that no other run's memory is in the way."""
    torchrun = ["-m", "torch.distributed.run", f"--nproc-per-node={run.processes}"]
    command = [sys.executable, *(torchrun if run.processes > 1 else [])]
    command += ["-m", "benchmarks.trainer", "--one", json.dumps(asdict(run))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return result
    return {**asdict(run), "error": (done.stderr.strip().splitlines() or ["no output"])[-1]}


def line_of(result: dict[str, Any]) -> str:
    """One row of the table."""
    what = (
        f"{result['row']:10} {result['stack']:18} {result['shape']:>6} {result['method']:5} "
        f"{result['processes']} x mb {result['micro_batch']} x {result['sequence']:<6} "
        f"{result['recompute']:8}"
    )
    if "error" in result:
        return f"{what} {result['error'][:120]}"
    low, high = result["tokens_per_second_range"]
    speed = f"{result['tokens_per_second']:9,.0f} tokens/s [{low:,.0f}, {high:,.0f}]"
    memory = f"{result['allocated_gib']:.1f} / {result['reserved_gib']:.1f} GiB"
    product = f"{result['product_tflops']:.0f} / {result['sustained_tflops']:.0f} TFLOP/s"
    return f"{what} {speed}  MFU {result['mfu']:.1%}  {memory}  product {product}"


def measure(run: Run) -> dict[str, Any]:
    """Time steps of a stack."""
    import torch  # noqa: PLC0415  (not in the parent)

    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    if run.processes > 1:
        torch.distributed.init_process_group("nccl", device_id=device)
    figures = figures_of(run, device)
    return {
        **asdict(run),
        **figures,
        "product_tflops": product_rate(device, 20),
        "sustained_tflops": product_rate(device, 500),
    }


def figures_of(run: Run, device: Any) -> dict[str, Any]:
    """What some steps come to; leaves nothing on the device."""
    import torch  # noqa: PLC0415  (not in the parent)

    step = STACKS["ours" if run.stack == "ours" else "hf"](run, device)
    torch.cuda.reset_peak_memory_stats()
    seconds = list(timed(step, run.warm_up + run.steps))[run.warm_up :]
    peak = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    free, total = torch.cuda.mem_get_info()
    outside = total - free - torch.cuda.memory_reserved()
    tokens = run.micro_batch * run.sequence * run.accumulation * run.processes
    rates = [tokens / s for s in seconds]
    rate = tokens / statistics.median(seconds)
    del step
    torch.cuda.empty_cache()
    return {
        "tokens_per_second": rate,
        "tokens_per_second_range": [min(rates), max(rates)],
        "mfu": rate / run.processes * flops_per_token(run) / PEAK_FLOPS,
        "allocated_gib": peak[0] / GIB,
        "reserved_gib": peak[1] / GIB,
        "outside_gib": outside / GIB,
        "total_gib": total / GIB,
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
    }


def flops_per_token(run: Run) -> float:
    """Model FLOPs for one token, forward and backward."""
    shape = model_shape(SHAPES[run.shape].config())
    assert shape is not None  # noqa: S101  (Qwen2 is known)
    method = Method.FULL if run.method == "Full" else Method.LORA
    return training_flops(shape, method, [run.sequence]) / run.sequence


def timed(step: Callable[[], Any], count: int) -> Iterator[float]:
    """Seconds of each call, by the device's own clock; nothing waits in between."""
    import torch  # noqa: PLC0415  (not in the parent)

    event: Any = torch.cuda.Event  # untyped in torch
    marks = [event(enable_timing=True) for _ in range(count + 1)]
    marks[0].record()
    for mark in marks[1:]:
        step()
        mark.record()
    torch.cuda.synchronize()
    for before, after in pairwise(marks):
        yield before.elapsed_time(after) / 1e3


def product_rate(device: Any, count: int) -> float:
    """TFLOP/s of an 8192 x 8192 x 8192 bf16 matrix product on random numbers, after `count`.

    After seconds of it the chip is at its power limit, as it is in training.
    """
    import torch  # noqa: PLC0415  (not in the parent)

    a, b = (torch.randn(8192, 8192, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds = statistics.median(list(timed(lambda: a @ b, count))[-15:])
    return 2 * 8192**3 / seconds / 1e12


def profile(run: Run) -> str:
    """One step's kernels by time."""
    import torch  # noqa: PLC0415  (not in the parent)
    from torch.profiler import ProfilerActivity  # noqa: PLC0415  (not in the parent)

    step = STACKS["ours" if run.stack == "ours" else "hf"](run, torch.device("cuda"))
    for _ in range(WARM_UP):
        step()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as found:
        step()
        torch.cuda.synchronize()
    kernels = [
        e for e in found.key_averages() if e.self_device_time_total and e.device_type.name == "CUDA"
    ]
    total = sum(e.self_device_time_total for e in kernels)
    kernels.sort(key=lambda e: -e.self_device_time_total)
    lines = [f"{run.row}: kernels {total / 1e3:.1f} ms"]
    lines += [
        f"{e.self_device_time_total / 1e3:9.2f} ms {e.self_device_time_total / total:6.1%} "
        f"{e.count:6} x  {e.key[:110]}"
        for e in kernels[:30]
    ]
    return "\n".join(lines)


# --- models of random weights -------------------------------------------------------------------


def random_model(run: Run, device: Any, attention: str = "sdpa") -> Any:
    """A model of random weights on the device, quantized layer by layer as it is made."""
    import torch  # noqa: PLC0415  (not in the parent)
    from torch import nn  # noqa: PLC0415  (not in the parent)
    from transformers import Qwen2Config, Qwen2ForCausalLM  # noqa: PLC0415  (not in the parent)

    shape = SHAPES[run.shape]
    make: Any = Qwen2Config  # its fields are not typed
    config = make(**shape.config(), dtype=torch.bfloat16, attn_implementation=attention)
    with torch.device("meta"):
        model: Any = Qwen2ForCausalLM(config)
    model.to(torch.bfloat16)
    torch.manual_seed(0)
    for layer in model.model.layers:
        for parent in (layer.self_attn, layer.mlp):
            for name, child in list(parent.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(parent, name, random_linear(child, run.method, device))
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.is_meta:
                tensor = torch.empty(parameter.shape, dtype=torch.bfloat16, device=device)
                tensor.fill_(1.0) if tensor.ndim == 1 else tensor.normal_(std=0.02)
                setattr(module, name, nn.Parameter(tensor, requires_grad=True))
    if shape.tied:
        model.lm_head.weight = model.model.embed_tokens.weight
    model.model.rotary_emb = type(model.model.rotary_emb)(config=config).to(device)
    return model


def random_linear(meta: Any, method: str, device: Any) -> Any:
    """A linear layer of random weights in the method's format."""
    import torch  # noqa: PLC0415  (not in the parent)
    from torch import nn  # noqa: PLC0415  (not in the parent)

    weight = torch.empty(meta.weight.shape, dtype=torch.bfloat16, device=device).normal_(std=0.02)
    bias = None
    if meta.bias is not None:
        bias = nn.Parameter(torch.zeros(len(weight), dtype=torch.bfloat16, device=device))
    if method == "FP8":
        from latticeforge_trainer.models.fp8 import Fp8Linear  # noqa: PLC0415  (not in the parent)

        return Fp8Linear.from_weight(weight, bias)
    if method == "QLoRA":
        from bitsandbytes.nn import modules  # noqa: PLC0415  (not in the parent)

        bnb: Any = modules  # untyped
        outputs, inputs = weight.shape
        layer = bnb.Linear4bit(
            inputs, outputs, bias=bias is not None, compute_dtype=torch.bfloat16,
            quant_type="nf4", device="meta",
        )  # fmt: skip
        layer.weight = bnb.Params4bit(
            weight, requires_grad=False, quant_type="nf4", compress_statistics=True, module=layer
        ).to(device)
        layer.bias = bias
        return layer
    meta.weight = nn.Parameter(weight)
    meta.bias = bias
    return meta


def in_fp32(model: Any) -> None:
    """The same weights in fp32; those in NF4 as what they stand for."""
    from bitsandbytes.functional import dequantize_4bit  # noqa: PLC0415  (not in the parent)
    from torch import nn  # noqa: PLC0415  (not in the parent)

    for module in list(model.modules()):
        base: Any = getattr(module, "base_layer", None)
        if type(base).__name__ == "Linear4bit":
            weight = dequantize_4bit(base.weight.data, base.weight.quant_state)
            whole = nn.Linear(base.in_features, base.out_features, device="meta")
            whole.weight = nn.Parameter(weight, requires_grad=False)
            whole.bias = base.bias
            module.base_layer = whole
    model.float()


def random_tokens(run: Run, device: Any) -> Any:
    """Token ids [micro-batch, sequence]."""
    import torch  # noqa: PLC0415  (not in the parent)

    size = run.micro_batch, run.sequence
    return torch.randint(0, SHAPES[run.shape].vocabulary, size, device=device)


# --- the stacks ---------------------------------------------------------------------------------


def our_step(
    run: Run, device: Any, *, fused: bool = True, exact: bool = False, rate: float = 1e-5
) -> Callable[[], Any]:
    """A step of this trainer: its own engine, loss and choice of what is computed again.

    Args:
        run: What to measure.
        device: Where.
        fused: Whether by the fast paths; otherwise by transformers' and PEFT's own layers.
        exact: Whether in fp32, from the same weights.
        rate: The learning rate.
    """
    import torch  # noqa: PLC0415  (not in the parent)

    from latticeforge_trainer.models.adapters import add_adapter  # noqa: PLC0415  (as above)
    from latticeforge_trainer.models.documents import Boundaries  # noqa: PLC0415  (as above)
    from latticeforge_trainer.models.fused import fuse  # noqa: PLC0415  (as above)
    from latticeforge_trainer.training.batches import MicroBatch  # noqa: PLC0415  (as above)
    from latticeforge_trainer.training.loss import TargetLoss  # noqa: PLC0415  (as above)
    from latticeforge_trainer.training.plain import PlainEngine  # noqa: PLC0415  (as above)
    from latticeforge_trainer.training.recompute import (  # noqa: PLC0415  (as above)
        choose_recompute,
        unpack_spare,
    )

    config = train_config(run)
    model = random_model(run, device)
    if config.payload.lora:
        model = add_adapter(model, config.payload.lora)
    if exact:
        in_fp32(model)
    loss = TargetLoss(model)
    engine = PlainEngine(
        loss, config.payload, accumulation=run.accumulation, processes=run.processes
    )
    if fused:
        choice = choose_recompute(config, loss)
        unpack_spare(fuse(loss.model, choice.modes), choice.spare, torch.bfloat16)
    loss.train()
    tokens = random_tokens(run, device)
    sources = torch.arange(tokens.numel(), device=device)
    sources = sources[sources % run.sequence != run.sequence - 1]
    positions = torch.arange(run.sequence).repeat(run.micro_batch, 1)
    batch = MicroBatch(
        input_ids=tokens,
        position_ids=positions.to(device),
        boundaries=Boundaries.of(positions).map(lambda t: t.to(device)),
        sources=sources,
        targets=tokens.flatten()[sources + 1],
    )

    def step() -> Any:
        for number in range(run.accumulation):
            share = engine.forward(batch, run.accumulation * len(sources))
            engine.backward(share, last=number == run.accumulation - 1)
        engine.update(rate)
        return share.detach() * run.accumulation

    return step


def compare_losses() -> None:
    """Print how far 50 losses are from those of transformers' own layers, in bf16 and in fp32.

    In fp32 the same weights are trained without rounding: what both bf16 runs approximate.
    """
    import torch  # noqa: PLC0415  (not in the parent)

    for method, rate in (("Full", 1e-5), ("LoRA", 1e-4), ("QLoRA", 1e-4)):
        run = Run("losses", "ours", "0.5B", method, 4, "elementwise", 512, states="fp32")
        kinds: list[dict[str, bool]] = [{}, {"fused": False}, {"fused": False}, {"exact": True}]
        fast, plain, again, exact = (torch.tensor(losses_of(run, rate, **kind)) for kind in kinds)
        pairs = {
            "fast from plain": (fast, plain),
            "plain from itself": (again, plain),
            "fast from fp32": (fast, exact),
            "plain from fp32": (plain, exact),
        }
        found = [f"{name} {(a - b).abs().max():.1e}" for name, (a, b) in pairs.items()]
        start = f"{method:5} at {rate:.0e}: fp32 {exact[0]:.4f} -> {exact[-1]:.4f}; at most "
        print(start + ", ".join(found), flush=True)


def losses_of(run: Run, rate: float, *, fused: bool = True, exact: bool = False) -> list[float]:
    """The losses of 50 steps on one batch, from the same weights each time."""
    import torch  # noqa: PLC0415  (not in the parent)

    device = torch.device("cuda")
    step = our_step(run, device, fused=fused and not exact, exact=exact, rate=rate)
    return torch.stack([step() for _ in range(50)]).tolist()


def train_config(run: Run) -> Any:
    """The train step that a measurement is of."""
    from latticeforge_trainer.contract import (  # noqa: PLC0415  (not in the parent)
        LoRASettings,
        Strategy,
        TrainConfig,
        TrainPayload,
        TrainRuntime,
    )

    full = run.method == "Full"
    fp8 = "fp8" if run.method == "FP8" else None
    payload = TrainPayload(
        method=Method.LORA if fp8 else Method(run.method),
        learning_rate=1e-5,
        sequence_length=run.sequence,
        global_batch_tokens=run.sequence * run.micro_batch * run.accumulation * run.processes,
        lora=None if full else LoRASettings(rank=16, alpha=32, base_dtype=fp8),
        optimizer_states=run.optimizer_states,
    )
    strategy = Strategy(
        micro_batch=run.micro_batch, recompute=run.recompute, processes=run.processes
    )
    runtime = TrainRuntime(base_path="random", data="0" * 64, strategy=strategy)
    return TrainConfig(
        training="benchmarks/trainer", digest="0" * 64, payload=payload, runtime=runtime
    )


def their_step(run: Run, device: Any) -> Callable[[], Any]:
    """A step of Hugging Face's model with PEFT, fused AdamW, SDPA, Liger's kernels."""
    import torch  # noqa: PLC0415  (not in the parent)
    from liger_kernel.transformers import apply_liger_kernel_to_qwen2  # noqa: PLC0415  (as above)

    model = random_model(run, device)
    apply_liger_kernel_to_qwen2(model=model)
    if run.recompute == "layers":
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if run.method != "Full":
        from peft import LoraConfig, get_peft_model  # noqa: PLC0415  (as above)

        config = LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear")
        model = get_peft_model(model, config)
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)
    tokens = random_tokens(run, device)

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


STACKS = {"ours": our_step, "hf": their_step}

if __name__ == "__main__":
    main()
