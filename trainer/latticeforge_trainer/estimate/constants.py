"""What the estimate's formulas leave open.

Fitted by `python -m benchmarks.planner report` to 14 of the 28 runs in docs/data/planner.jsonl (one
H200, Qwen2.5 shapes of 0.5 to 72.7 B), where nothing else is said. "Assumed" is what nobody has
measured here.
"""

from __future__ import annotations

from dataclasses import dataclass, field

CONTEXT = 767 * 2**20
"""Bytes of a GPU outside torch's allocator: CUDA's context and kernels."""

NCCL = 800 * 2**20
"""Bytes that NCCL takes besides, once processes have exchanged something. Assumed."""

WORKSPACES = 2 * 32 * 2**20
"""Bytes that cuBLAS works in, inside torch's allocator: 32 MiB on Hopper for each of two threads,
that of forward and that of backward, by PyTorch's documentation."""

SAFETY = 0.01
"""Share of a GPU's memory that a plan leaves free."""


@dataclass(frozen=True)
class Constants:
    """What is fitted to measurements: shares of what a data sheet promises, where nothing else."""

    context: int = CONTEXT
    fragments: dict[str, float] = field(
        default_factory=lambda: {"bf16": 0.057, "nf4": 0.096, "fp8": 0.32, "full": 0.183}
    )
    """Reserved beyond allocated memory in GiB, by the root of the GiB that come and go within a
    step, by what is trained over, or `full`."""
    products: float = 0.682
    """Of the dense bf16 peak, by large products once the chip is at its power limit."""
    fp8_products: float = 0.708
    """The same in FP8."""
    attention: float = 0.434
    """Of the dense bf16 peak, by attention's model FLOPs in long documents that fill a sequence."""
    packed_attention: float = 0.39
    """The same in documents of other lengths, from docs/data/attention.json."""
    attention_ramp: float = 994.0
    """Tokens of a document at which attention reaches half of that."""
    traffic: float = 0.75
    """Of the memory bandwidth, by kernels that stream: gated products, AdamW in 32 bits."""
    small_traffic: float = 0.554
    """The same by norms, rotations and copies."""
    dequantize: float = 0.588
    """The same by NF4 dequantization."""
    quantize: float = 0.393
    """The same by FP8 quantization and transposition."""
    int8_update: float = 0.304
    """The same by AdamW with 8-bit moments."""
    pending: float = 1.7
    """What the gated product costs more where it also adds adapters' products (FP8); from kernel
    times in docs/performance.md."""
    launch: float = 4.78e-3
    """Seconds in which the host launches a layer's kernels with adapters, forward and backward."""
    hooked_matrix: float = 0.96e-3
    """What ZeRO-3's hooks add to that for each matrix, an adapter's two included; this and the next
    three from docs/data/zero.json."""
    gathered_matrix: float = 0.75e-3
    """Seconds in which the GPU waits for each of the base's matrices that ZeRO-3 gathers, forward
    and backward."""
    sub_group: float = 3.6e-3
    """Seconds that ZeRO-3's update of a sub-group takes beside its bytes."""
    sharded_update: float = 20e-3
    """Seconds in which the GPU waits for the host after DeepSpeed's update has waited for it."""
    links: float = 0.75
    """Of a link's rate, by collectives. Assumed."""
    exposed: float = 0.2
    """Of collectives that overlap with computing, the share that it does not hide. Assumed."""
    host_update: float = 5.0e9
    """Parameters that a node's processors update in a second, all together. Assumed."""


FITTED = Constants()


@dataclass(frozen=True)
class Rates:
    """What is not training: bytes per second of reading, writing and moving models, and the rest.

    Assumed, but for `start`, which was measured with CPU processes.
    """

    disk_read: float = 2e9
    disk_write: float = 1e9
    hub_download: float = 200e6
    hub_upload: float = 100e6
    merge: float = 0.3e9
    """Bytes of the merged model that are made in a second, on a CPU."""
    start: float = 45.0
    """Seconds from a pod's start until it reads weights: imports, processes, kernels."""
    generation_steps: float = 25.0
    """Tokens of one sequence that evaluation generates in a second."""


RATES = Rates()
