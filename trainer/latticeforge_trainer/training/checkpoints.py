"""Checkpoints of which a kill at any instant leaves the previous one usable.

    <work>/checkpoints/.step-00000020.partial/    being written
    <work>/checkpoints/step-00000010/             complete: renamed into place once on the disk
        manifest.json     sizes and hashes of the files below
        state.json        training/state.py
        training-state-*.safetensors    weights and moments as whole tensors: LoRA, QLoRA, ZeRO 0
        share-00000/      Full under ZeRO 1 to 3: the same of a process's partitions; see shares.py

Nothing but a folder's name says that it is complete; what it says is checked against the manifest
before anything is loaded.

A thread of each process that has something to write does so: training waits until it is copied,
and that only before the next update changes it. The first process's thread waits for the shares of
the others, and makes the checkpoint complete. Before the first checkpoint, the threads get the host
memory for it.
"""

from __future__ import annotations

import json
import logging
import shutil
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from latticeforge_trainer.artifacts import (
    MANIFEST,
    FileEntry,
    sha256_of,
    sync_folder,
    write_atomically,
)
from latticeforge_trainer.errors import UserError
from latticeforge_trainer.training import shares
from latticeforge_trainer.training.engine import Engine
from latticeforge_trainer.training.full_disk import full_disk_is_the_users
from latticeforge_trainer.training.process import World, gather
from latticeforge_trainer.training.shares import Entries
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
        self._writes = world.is_first or engine.sharded
        self._buffers = HostBuffers(engine.device, world.local_size if engine.sharded else 1)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None
        self._copied, self._given_up, self._hurry = (threading.Event() for _ in range(3))
        self._copied.set()  # there is nothing to copy yet
        folder.mkdir(parents=True, exist_ok=True)
        self._drop_partial()

    def prepare(self) -> None:
        """Begin to get host memory for the first checkpoint, once; after a step that was good.

        What comes of it is told like what comes of writing: `is_writing`, `failed`, `finish`.
        """
        if self._hurry.is_set() or self._writing is not None:
            return  # the first one is under way, or this is
        if self._writes and self._engine.reads_in_place and self._buffers.is_page_locked:
            needed = self._buffers.needed(in_shards(self._engine.read_state()))
            self._writing = self._thread.submit(self._buffers.hold, needed, self._hurry)

    def save(self, state: TrainState) -> None:
        """Begin a checkpoint, after the one before it is complete; a collective.

        Raises:
            UserError: The disk is full; earlier checkpoints are as they were.
        """
        self.finish()
        document = json.dumps(state.to_json()).encode()
        shards = in_shards(self._engine.read_state())
        if self._writes:
            self._buffers.after_current_work()
            self._copied.clear()
            self._writing = self._thread.submit(self._write, shards, state.step, document)

    @property
    def is_writing(self) -> bool:
        """Whether one is not complete yet, or the first still prepared for.

        On the first process, of any process's share.
        """
        return self._writing is not None and not self._writing.done()

    @property
    def failed(self) -> bool:
        """Whether this process could not write or prepare one, which `finish` will say to all."""
        writing = self._writing
        return writing is not None and writing.done() and writing.exception() is not None

    def before_update(self) -> float:
        """Wait until the weights may change.

        Returns:
            Seconds that it took.
        """
        if self._copied.is_set():
            return 0.0
        started = time.monotonic()
        self._copied.wait()
        waited = time.monotonic() - started
        log.info("training waited %.2f s for the checkpoint", waited)
        return waited

    def finish(self) -> None:
        """Wait until no checkpoint is being written; a collective.

        Raises:
            UserError: The disk is full; earlier checkpoints are as they were.
        """
        self._hurry.set()
        writing, self._writing = self._writing, None
        # The first process waits for shares, of which one may never come.
        failures = gather(self._world, None if self._world.is_first else _error_of(writing))
        if any(failures):
            self._given_up.set()
        said = gather(self._world, (_error_of(writing), self.committed))
        self.committed = said[0][1]
        for failure, _ in said:
            if failure is not None:
                self._drop_partial()
                raise failure

    def close(self) -> None:
        """Let what is being written become complete, and write no more.

        Shares that are not there by now will not come: other processes may have ended.
        """
        self._given_up.set()
        self._hurry.set()
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

    def _write(self, shards: list[Shard], step: int, document: bytes) -> None:
        """Write what is this process's, and make the checkpoint complete if it is the first."""
        started, own = time.monotonic(), self._own(self._partial(step))
        try:
            with full_disk_is_the_users(self._folder):
                shutil.rmtree(own, ignore_errors=True)
                own.mkdir(parents=True)
                files = write_shards(shards, own, self._buffers, self._copied.set)
                entries = self._together({n: e.to_json() for n, e in files.items()}, step)
                if entries is not None:
                    self._commit(step, document, entries)
        finally:
            self._copied.set()  # or training would wait for ever, and never see the error
        if entries is not None:
            size, seconds = sum(e["size"] for e in entries.values()), time.monotonic() - started
            log.info("checkpoint of step %d: %.2f GB in %.1f s", step, size / 1e9, seconds)

    def _together(self, entries: Entries, step: int) -> Entries | None:
        """The files of all processes, for the first; None for the others, or if one has failed."""
        if not self._engine.sharded:
            return entries
        partial = self._partial(step)
        shares.leave(self._own(partial), entries)
        if not self._world.is_first:
            return None
        return shares.collect(partial, self._world.size, self._given_up)

    def _load(self, folder: Path, state: TrainState, expected: TrainState) -> None:
        shape = (state.zero_stage, state.precision, state.world)
        needed = (expected.zero_stage, expected.precision, expected.world)
        if (self._engine.sharded or shares.has_shares(folder)) and shape != needed:
            raise UserError(
                f"the checkpoint of step {state.step} holds a full fine-tune cut for "
                f"{state.world} processes, ZeRO-{state.zero_stage}, {state.precision}, and cannot "
                f"go on with {expected.world}, ZeRO-{expected.zero_stage}, {expected.precision}: "
                "set compute.gpus back, or change the stage to start it over"
            )
        tensors = read_shards(self._own(folder))
        if not tensors:
            raise UserError(
                f"the checkpoint of step {state.step} was written by another version, which this "
                "one cannot go on from: change the stage to start it over"
            )
        self._engine.write_state(tensors, state.step)

    def _complete(self) -> list[Path]:
        return sorted(self._folder.glob("step-*"), reverse=True)

    def _final(self, step: int) -> Path:
        return self._folder / f"step-{step:08d}"

    def _partial(self, step: int) -> Path:
        return self._folder / f".{self._final(step).name}.partial"

    def _own(self, folder: Path) -> Path:
        """Where this process's files of a checkpoint lie."""
        return shares.share_of(folder, self._world.rank) if self._engine.sharded else folder

    def _drop_partial(self) -> None:
        """Remove what will never be complete."""
        if self._world.is_first:
            for leftover in self._folder.glob(".step-*.partial"):
                shutil.rmtree(leftover)

    def _intact(self, folder: Path) -> TrainState | None:
        """The state in a checkpoint, if its files are as its manifest says; a collective."""
        entries = self._hash(folder)
        verdict = _state_if_intact(folder, entries) if self._world.is_first else None
        return gather(self._world, verdict)[0]

    def _hash(self, folder: Path) -> Entries:
        """Size and hash of every file, of which each process hashes some; a collective."""
        files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
        mine = {
            path.relative_to(folder).as_posix(): FileEntry(
                size=path.stat().st_size, sha256=sha256_of(path)
            ).to_json()
            for path in shares.to_check(files, self._world)
        }
        hashed = gather(self._world, mine)
        return {name: entry for part in hashed for name, entry in part.items()}

    def _commit(self, step: int, document: bytes, entries: Entries) -> None:
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


def _error_of(writing: Future[None] | None) -> BaseException | None:
    """Why something could not be written, once that is over."""
    return writing.exception() if writing else None


def _state_if_intact(folder: Path, entries: Entries) -> TrainState | None:
    try:
        if json.loads((folder / MANIFEST).read_text()) != entries:
            return None
        return TrainState.model_validate_json((folder / STATE).read_bytes())
    except (OSError, ValueError):  # no manifest, or one cut short
        return None
