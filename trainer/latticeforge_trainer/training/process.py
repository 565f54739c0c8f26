"""Prepares a process for training, before and after torch is imported; lets it talk to others.

`settle_environment` must run first: DeepSpeed picks its accelerator, and torch its number of
threads, once and for all when they are imported.
"""

from __future__ import annotations

import ctypes
import logging
import os
import random
import signal
import warnings
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -3, -1
"""glibc's names for what `mallopt` sets."""

COLLECTIVE_TIMEOUT = timedelta(hours=2)
"""The others wait this long while the first process writes a large model; a hang is found earlier,
by whoever watches that steps are made."""


@dataclass(frozen=True)
class World:
    """This process among those that train together."""

    rank: int
    local_rank: int
    size: int
    local_size: int = 1
    """Processes on this node."""

    @classmethod
    def from_environment(cls) -> World:
        """As torchrun tells its workers; alone without it."""
        variables = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1}
        return cls(*(int(os.environ.get(name, default)) for name, default in variables.items()))

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and reports for all."""
        return self.rank == 0


ALLOCATION = (
    "expandable_segments:True,pinned_use_cuda_host_register:True,pinned_num_register_threads:8"
)
"""How torch allocates. Layers keep tensors of many sizes for different times: in fixed segments,
gigabytes of a GPU are lost between them. And while the driver allocates page-locked memory
(`cudaHostAlloc`), no kernel is launched: memory that threads have touched is locked much sooner."""


def settle_environment(processes: int) -> None:
    """Set what torch and DeepSpeed read when they are imported.

    Args:
        processes: Training processes on this machine, which share its cores.
    """
    threads = max(1, len(os.sched_getaffinity(0)) // processes)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    # Threads that spin while they wait take the core from whoever they wait for, as soon as the
    # cores are shared: with three other processes on two cores, training ran at 80 tokens/s
    # spinning and at 200 without.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Libraries deprecate what other libraries call: nothing that whoever reads the log can act on.
    warnings.simplefilter("ignore", FutureWarning)
    # bitsandbytes looks for GPU kernels on the Hub and logs an error when there is no network.
    logging.getLogger("bitsandbytes").setLevel(logging.CRITICAL)
    os.environ.setdefault("PYTORCH_ALLOC_CONF", ALLOCATION)
    keep_freed_memory()
    import torch  # noqa: PLC0415  (reads the number of threads)

    if not torch.cuda.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"


def keep_freed_memory() -> None:
    """Let glibc reuse large blocks instead of returning them to the kernel at every `free`.

    Activations and logits on the CPU are hundreds of megabytes that live for milliseconds; faulting
    their pages in afresh costs a quarter of a training step (SmolLM2-135M: 520 → 700 tokens/s).
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:  # another libc: only slower
        return
    libc.mallopt(M_MMAP_THRESHOLD, 2**30)
    libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def join_world(world: World, *, deepspeed: bool) -> torch.device:
    """Start torch's process group, and DeepSpeed's view of it.

    Args:
        world: This process among the others; alone and without DeepSpeed it needs no group.
        deepspeed: Whether DeepSpeed runs the engine.

    Returns:
        The device that this process computes on.
    """
    import torch  # noqa: PLC0415  (after settle_environment)
    from torch import distributed  # noqa: PLC0415

    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(world.local_rank)
    backend = "nccl" if cuda else "gloo"
    if world.size > 1:
        distributed.init_process_group(backend, timeout=COLLECTIVE_TIMEOUT)
    elif deepspeed:
        # One process needs no port that another one might take.
        store = distributed.HashStore()  # type: ignore[attr-defined]  # re-exported at run time
        distributed.init_process_group(backend, store=store, rank=0, world_size=1)
    if deepspeed:
        _join_deepspeed(world, backend)
    return torch.device("cuda", world.local_rank) if cuda else torch.device("cpu")


def leave_world() -> None:
    """End torch's process group, when all processes are done; a collective.

    Left to the interpreter's end, its threads may outlive what they use: one process in some 70
    that had finished ended with "terminate called" and exit code -6.
    """
    from torch import distributed  # noqa: PLC0415  (after settle_environment)

    if distributed.is_initialized():
        distributed.destroy_process_group()


def _join_deepspeed(world: World, backend: str) -> None:
    import deepspeed  # noqa: PLC0415  (which ZeRO 0 does without)

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # DeepSpeed reads these; without them it looks for MPI.
    os.environ |= {"RANK": str(world.rank), "LOCAL_RANK": str(world.local_rank)}
    os.environ |= {"WORLD_SIZE": str(world.size)}
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "0")
    # DeepSpeed would compile its shared-memory collectives: 12 s, a compiler and a writable home.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(backend, auto_mpi_discovery=False, verbose=False)


def barrier(world: World) -> None:
    """Wait for all processes; a collective."""
    gather(world, None)


def gather(world: World, mine: T) -> list[T]:
    """What every process says, by rank; a collective."""
    from torch import distributed  # noqa: PLC0415

    if world.size == 1:
        return [mine]
    said: list[Any] = [None] * world.size
    distributed.all_gather_object(said, mine)
    return said


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed every generator from the step's number.

    Dropout then depends on nothing that came before: a resumed run draws what it would have drawn.
    """
    import torch  # noqa: PLC0415

    mixed = random.Random(f"{seed}/{step}/{rank}").getrandbits(63)  # noqa: S311  (not a secret)
    torch.manual_seed(mixed)


class StopSignal:
    """Remembers SIGTERM while training runs: `with StopSignal() as stop: ... stop.raised`."""

    def __init__(self) -> None:
        self.raised = False

    def __enter__(self) -> Self:
        self._previous = signal.signal(signal.SIGTERM, self._remember)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        signal.signal(signal.SIGTERM, self._previous)

    def _remember(self, _signal: int, _frame: FrameType | None) -> None:
        self.raised = True
