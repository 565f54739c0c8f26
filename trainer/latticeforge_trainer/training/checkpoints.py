"""Checkpoints of which a kill at any instant leaves the previous one usable.

    <work>/checkpoints/.step-00000020.partial/    being written
    <work>/checkpoints/step-00000010/             complete: renamed into place once on the disk
        manifest.json     sizes and hashes of the files below
        state.json        training/state.py
        adapter-state.safetensors     LoRA, QLoRA: master weights and moments, whole
        engine/           Full: DeepSpeed's own files, one set per process

Nothing but a folder's name says that it is complete; what it says is checked against the manifest
before anything is loaded.
"""

from __future__ import annotations

import errno
import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deepspeed import comm
from safetensors.torch import load_file, save_file

from latticeforge_trainer.artifacts import (
    MANIFEST,
    FileEntry,
    sha256_of,
    sync_folder,
    write_atomically,
)
from latticeforge_trainer.errors import UserError
from latticeforge_trainer.training.engine import set_step_count
from latticeforge_trainer.training.masters import read_masters, write_masters
from latticeforge_trainer.training.process import World
from latticeforge_trainer.training.state import TrainState

log = logging.getLogger(__name__)

STATE = "state.json"
ADAPTER_STATE = "adapter-state.safetensors"
ENGINE_TAG = "engine"

PROBE = 2**20
"""Bytes of the file that tells a full disk from another failure."""


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: Where they lie; on storage that all processes share.
        keep: How many complete ones to keep.
        world: This process among the others.
        adapter: Whether only an adapter is trained.
    """

    def __init__(self, folder: Path, *, keep: int, world: World, adapter: bool) -> None:
        self._folder, self._keep, self._world, self._adapter = folder, keep, world, adapter
        folder.mkdir(parents=True, exist_ok=True)
        if world.is_first:
            for leftover in folder.glob(".step-*.partial"):
                shutil.rmtree(leftover)

    def save(self, engine: Any, state: TrainState) -> None:
        """Write a checkpoint and drop the oldest; a collective.

        Raises:
            UserError: The disk is full; earlier checkpoints are as they were.
        """
        final = self._folder / f"step-{state.step:08d}"
        partial = self._folder / f".{final.name}.partial"
        with self._full_disk_is_the_users(partial):
            if self._world.is_first:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir()
            comm.barrier()
            self._write(engine, state, partial)
            comm.barrier()
            entries = self._hash(partial, sync=True)
            if self._world.is_first:
                self._commit(partial, final, entries)
        comm.barrier()

    def load_latest(self, engine: Any, expected: TrainState) -> TrainState:
        """Put the engine where the newest intact checkpoint was; a collective.

        Args:
            engine: The engine, freshly built.
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
            self._load(engine, folder, state, expected)
            return state.model_copy(
                update={"world": expected.world, "zero_stage": expected.zero_stage}
            )
        return expected

    def _write(self, engine: Any, state: TrainState, partial: Path) -> None:
        if self._adapter:
            tensors = read_masters(engine)
            if self._world.is_first:
                save_file(tensors, partial / ADAPTER_STATE)
        else:
            engine.save_checkpoint(partial, tag=ENGINE_TAG, save_latest=False)
        if self._world.is_first:
            (partial / STATE).write_text(json.dumps(state.to_json()))

    def _load(self, engine: Any, folder: Path, state: TrainState, expected: TrainState) -> None:
        if self._adapter:
            write_masters(engine, load_file(folder / ADAPTER_STATE))
            set_step_count(engine, state.step)
            return
        if (state.zero_stage, state.precision) != (expected.zero_stage, expected.precision) or (
            state.zero_stage and state.world != expected.world
        ):
            raise UserError(
                f"the checkpoint of step {state.step} holds a full fine-tune cut for "
                f"{state.world} processes, ZeRO-{state.zero_stage}, {state.precision}, and cannot "
                f"go on with {expected.world}, ZeRO-{expected.zero_stage}, {expected.precision}: "
                "set compute.gpus back, or change the stage to start it over"
            )
        engine.load_checkpoint(folder, tag=ENGINE_TAG)

    def _complete(self) -> list[Path]:
        return sorted(self._folder.glob("step-*"), reverse=True)

    def _intact(self, folder: Path) -> TrainState | None:
        """The state in a checkpoint, if its files are as its manifest says; a collective."""
        entries = self._hash(folder)
        verdict: list[Any] = [None]
        if self._world.is_first:
            verdict[0] = _state_if_intact(folder, entries)
        comm.broadcast_object_list(verdict, src=0)
        state: TrainState | None = verdict[0]
        return state

    def _hash(self, folder: Path, *, sync: bool = False) -> dict[str, dict[str, Any]]:
        """Size and hash of every file, each process hashing its share; a collective."""
        paths = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
        mine = {
            path.relative_to(folder).as_posix(): FileEntry(
                size=path.stat().st_size, sha256=sha256_of(path, sync=sync)
            ).to_json()
            for path in paths[self._world.rank :: self._world.size]
        }
        shares: list[Any] = [None] * self._world.size
        comm.all_gather_object(shares, mine)
        return {name: entry for share in shares for name, entry in share.items()}

    def _commit(self, partial: Path, final: Path, entries: dict[str, dict[str, Any]]) -> None:
        for folder in {(partial / name).parent for name in entries}:
            sync_folder(folder)
        write_atomically(partial / MANIFEST, json.dumps(entries).encode())
        if final.exists():  # a damaged one of the same step
            shutil.rmtree(final)
        partial.rename(final)
        sync_folder(self._folder)
        for old in self._complete()[self._keep :]:
            shutil.rmtree(old)

    @contextmanager
    def _full_disk_is_the_users(self, partial: Path) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError) as error:
            full = _is_full(error) or _takes_no_more(self._folder)
            shutil.rmtree(partial, ignore_errors=True)
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
