"""Checkpoints of which a kill at any instant leaves the previous one usable.

    <work>/checkpoints/.step-00000020.partial/    being written
    <work>/checkpoints/step-00000010/             complete: renamed into place once on the disk
        manifest.json     sizes and hashes of the files below
        state.json        training/state.py
        training-state-*.safetensors    weights and moments as whole tensors: LoRA, QLoRA, ZeRO 0
        engine/           Full under ZeRO 1 to 3: DeepSpeed's own files, one set per process

Nothing but a folder's name says that it is complete; what it says is checked against the manifest
before anything is loaded.

Whole tensors are written by a thread of the first process: training waits until they are copied,
and that only before the next update changes them. DeepSpeed's files are written while it waits: its
faster writers need a compiler for their kernels, and leave the same wait for the disk.
"""

from __future__ import annotations

import errno
import json
import logging
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from latticeforge_trainer.artifacts import (
    MANIFEST,
    FileEntry,
    sha256_of,
    sync_folder,
    write_atomically,
)
from latticeforge_trainer.errors import UserError
from latticeforge_trainer.training.engine import Engine, StateFiles
from latticeforge_trainer.training.process import World, barrier, gather
from latticeforge_trainer.training.snapshots import (
    HostBuffers,
    Shard,
    in_shards,
    read_shards,
    write_shards,
)
from latticeforge_trainer.training.state import TrainState

log = logging.getLogger(__name__)

STATE = "state.json"

PROBE = 2**20
"""Bytes of the file that tells a full disk from another failure."""


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: Where they lie; on storage that all processes share.
        keep: How many complete ones to keep.
        world: This process among the others.
        engine: What they are of.

    Attributes:
        committed: Step of the newest complete one that this run has written or started from.
    """

    def __init__(self, folder: Path, *, keep: int, world: World, engine: Engine) -> None:
        self._folder, self._keep, self._world, self._engine = folder, keep, world, engine
        self.committed: int | None = None
        self._buffers = HostBuffers(engine.device)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None
        self._copied = threading.Event()
        folder.mkdir(parents=True, exist_ok=True)
        if world.is_first:
            for leftover in folder.glob(".step-*.partial"):
                shutil.rmtree(leftover)

    def save(self, state: TrainState) -> None:
        """Begin a checkpoint, after the one before it is complete; a collective.

        Raises:
            UserError: The disk is full; earlier checkpoints are as they were.
        """
        self.finish()
        document = json.dumps(state.to_json()).encode()
        if self._engine.files is not None:
            self._write_together(self._engine.files, state.step, document)
            return
        shards = in_shards(self._engine.read_state())
        if self._world.is_first:
            self._buffers.after_current_work()
            self._copied.clear()
            self._writing = self._thread.submit(self._write_alone, shards, state.step, document)

    @property
    def failed(self) -> bool:
        """Whether this process could not write one, which `finish` will say to all."""
        writing = self._writing
        return writing is not None and writing.done() and writing.exception() is not None

    def before_update(self) -> None:
        """Wait until the weights may change."""
        if self._writing is None or self._copied.is_set():
            return
        started = time.monotonic()
        self._copied.wait()
        log.info("training waited %.2f s for the checkpoint", time.monotonic() - started)

    def finish(self) -> None:
        """Wait until no checkpoint is being written; a collective.

        Raises:
            UserError: The disk is full; earlier checkpoints are as they were.
        """
        writing, self._writing = self._writing, None
        error = writing.exception() if writing else None
        for failure in gather(self._world, error):
            if failure is not None:
                raise failure

    def close(self) -> None:
        """Let what is being written become complete, and write no more."""
        self._thread.shutdown()

    def load_latest(self, expected: TrainState) -> TrainState:
        """Put the engine where the newest intact checkpoint was; a collective.

        Args:
            expected: The state to start from if there is no checkpoint.

        Returns:
            The state to go on from.

        Raises:
            UserError: The checkpoint was written by another number of processes, and is sharded.
        """
        for folder in self._complete():
            state = self._intact(folder)
            if state is None:
                log.warning("checkpoint %s is damaged: the one before it is used", folder.name)
                continue
            self._load(folder, state, expected)
            self.committed = state.step
            return state.model_copy(
                update={"world": expected.world, "zero_stage": expected.zero_stage}
            )
        return expected

    def _write_alone(self, shards: list[Shard], step: int, document: bytes) -> None:
        """Write whole tensors, in the first process's thread."""
        started = time.monotonic()
        try:
            with self._full_disk_is_the_users(step):
                partial = self._begin(step)
                files = write_shards(shards, partial, self._buffers, self._copied.set)
                self._commit(step, document, {n: e.to_json() for n, e in files.items()})
        finally:
            self._copied.set()  # or training would wait for ever, and never see the error
        size, seconds = sum(e.size for e in files.values()), time.monotonic() - started
        log.info("checkpoint of step %d: %.2f GB in %.1f s", step, size / 1e9, seconds)

    def _write_together(self, files: StateFiles, step: int, document: bytes) -> None:
        """Write an engine's own files; a collective."""
        started = time.monotonic()
        with self._full_disk_is_the_users(step):
            if self._world.is_first:
                self._begin(step)
            barrier(self._world)
            partial = self._partial(step)
            files.save(partial)
            barrier(self._world)
            entries = self._hash(partial, sync=True)
            if self._world.is_first:
                self._commit(step, document, entries)
        barrier(self._world)
        self.committed = step
        log.info("checkpoint of step %d: training waited %.1f s", step, time.monotonic() - started)

    def _load(self, folder: Path, state: TrainState, expected: TrainState) -> None:
        files = self._engine.files
        if files is None and not (folder / "engine").exists():
            self._engine.write_state(read_shards(folder), state.step)
            return
        shape = (state.zero_stage, state.precision, state.world)
        if files is None or shape != (expected.zero_stage, expected.precision, expected.world):
            raise UserError(
                f"the checkpoint of step {state.step} holds a full fine-tune cut for "
                f"{state.world} processes, ZeRO-{state.zero_stage}, {state.precision}, and cannot "
                f"go on with {expected.world}, ZeRO-{expected.zero_stage}, {expected.precision}: "
                "set compute.gpus back, or change the stage to start it over"
            )
        files.load(folder)

    def _complete(self) -> list[Path]:
        return sorted(self._folder.glob("step-*"), reverse=True)

    def _final(self, step: int) -> Path:
        return self._folder / f"step-{step:08d}"

    def _partial(self, step: int) -> Path:
        return self._folder / f".{self._final(step).name}.partial"

    def _begin(self, step: int) -> Path:
        partial = self._partial(step)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        return partial

    def _intact(self, folder: Path) -> TrainState | None:
        """The state in a checkpoint, if its files are as its manifest says; a collective."""
        entries = self._hash(folder)
        verdict = _state_if_intact(folder, entries) if self._world.is_first else None
        return gather(self._world, verdict)[0]

    def _hash(self, folder: Path, *, sync: bool = False) -> dict[str, dict[str, Any]]:
        """Size and hash of every file, each process hashing its share; a collective."""
        paths = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
        mine = {
            path.relative_to(folder).as_posix(): FileEntry(
                size=path.stat().st_size, sha256=sha256_of(path, sync=sync)
            ).to_json()
            for path in paths[self._world.rank :: self._world.size]
        }
        shares = gather(self._world, mine)
        return {name: entry for share in shares for name, entry in share.items()}

    def _commit(self, step: int, document: bytes, entries: dict[str, dict[str, Any]]) -> None:
        partial, final = self._partial(step), self._final(step)
        write_atomically(partial / STATE, document)
        digest = sha256_of(partial / STATE)
        entries[STATE] = FileEntry(size=len(document), sha256=digest).to_json()
        for folder in {(partial / name).parent for name in entries}:
            sync_folder(folder)
        write_atomically(partial / MANIFEST, json.dumps(entries).encode())
        if final.exists():  # a damaged one of the same step
            shutil.rmtree(final)
        partial.rename(final)
        sync_folder(self._folder)
        self.committed = step
        for old in self._complete()[self._keep :]:
            shutil.rmtree(old)

    @contextmanager
    def _full_disk_is_the_users(self, step: int) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError) as error:
            full = _is_full(error) or _takes_no_more(self._folder)
            shutil.rmtree(self._partial(step), ignore_errors=True)
            if not full:
                raise
            raise UserError(
                f"no space left for a checkpoint in {self._folder}; the last one is intact: "
                "free some space, or enlarge storage.size"
            ) from error


def _state_if_intact(folder: Path, entries: dict[str, dict[str, Any]]) -> TrainState | None:
    try:
        if json.loads((folder / MANIFEST).read_text()) != entries:
            return None
        return TrainState.model_validate_json((folder / STATE).read_bytes())
    except (OSError, ValueError):  # no manifest, or one cut short
        return None


def _is_full(error: BaseException) -> bool:
    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return isinstance(error, OSError) and error.errno in full


def _takes_no_more(folder: Path) -> bool:
    """Whether a small file cannot be written: torch and safetensors hide why a large one failed."""
    probe = folder / ".probe"
    try:
        probe.write_bytes(bytes(PROBE))
    except OSError as error:
        return _is_full(error)
    finally:
        probe.unlink(missing_ok=True)
    return False
