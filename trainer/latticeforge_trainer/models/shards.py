"""Writes model folders: weights in safetensors shards, one in memory at a time, and companions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

SHARD_BYTES = 4 * 2**30
"""Size at which a shard is written out; the Hub asks for files below 50 GB."""


COPIED = (
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "vocab.json",
    "merges.txt",
    "LICENSE*",
)
"""Files beside the weights that belong to a model whatever its weights are."""


def copy_companions(source: Path, target: Path) -> None:
    """Copy tokenizer, chat template and generation config from one model folder to another."""
    target.mkdir(parents=True, exist_ok=True)
    for pattern in COPIED:
        for path in source.glob(pattern):
            shutil.copyfile(path, target / path.name)


class ShardWriter:
    """Collects tensors in order and writes a shard whenever one is full.

    Args:
        folder: Where the shards go.
        shard_bytes: Size from which a shard is written out.
    """

    def __init__(self, folder: Path, shard_bytes: int = SHARD_BYTES) -> None:
        self._folder, self._limit = folder, shard_bytes
        self._pending: dict[str, torch.Tensor] = {}
        self._pending_bytes = 0
        self._total_bytes = 0
        self._shards: list[list[str]] = []

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Take one tensor over; it is written when its shard is full or at `finish`."""
        if self._pending and self._pending_bytes + tensor.nbytes > self._limit:
            self._flush()
        self._pending[name] = tensor.detach().contiguous()
        self._pending_bytes += tensor.nbytes

    def finish(self) -> int:
        """Write what is left, give the files their final names, and write the index.

        Returns:
            Bytes of all tensors.
        """
        self._flush()
        count = len(self._shards)
        index: dict[str, str] = {}
        for number, names in enumerate(self._shards, 1):
            final = f"model-{number:05d}-of-{count:05d}.safetensors"
            if count == 1:
                final = "model.safetensors"
            self._partial(number).rename(self._folder / final)
            index.update(dict.fromkeys(names, final))
        if count > 1:
            document = {"metadata": {"total_size": self._total_bytes}, "weight_map": index}
            text = json.dumps(document, indent=1)
            (self._folder / "model.safetensors.index.json").write_text(text)
        return self._total_bytes

    def _partial(self, number: int) -> Path:
        return self._folder / f"model-{number:05d}.safetensors"

    def _flush(self) -> None:
        if not self._pending:
            return
        self._shards.append(list(self._pending))
        save_file(self._pending, self._partial(len(self._shards)), metadata={"format": "pt"})
        self._total_bytes += self._pending_bytes
        self._pending, self._pending_bytes = {}, 0
