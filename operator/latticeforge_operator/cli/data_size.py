"""How many tokens a stage's data has, before anything has counted them.

What the user says goes first. Else local JSON lines are sized: a sample's tokens are taken for a
quarter of its bytes, and samples are mixed as `prepare` mixes them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from latticeforge_operator.api import StackedTrainingSpec, Stage
from latticeforge_operator.api.training import Data
from latticeforge_operator.cli.errors import CommandError
from latticeforge_operator.core.planning import StageData
from latticeforge_trainer.artifacts import Store
from latticeforge_trainer.errors import UserError

BYTES_PER_TOKEN = 4
"""Of English, source code and JSON; other languages have fewer."""

_LINES = (".jsonl", ".ndjson")
_UNITS = {"": 1, "k": 10**3, "M": 10**6, "B": 10**9}
_CHUNK = 2**20


def stage_data(
    spec: StackedTrainingSpec, given: Sequence[str], volume: Path
) -> dict[str, StageData]:
    """What is known of each stage's data.

    Args:
        spec: The stack.
        given: Tokens of one epoch as the user wrote them: `12M`, or `cic=12M` for one stage.
        volume: Where relative paths of the spec start.

    Raises:
        CommandError: What is given is no number, or names no stage.
    """
    counts = _given(given, [stage.name for stage in spec.stages])
    return {stage.name: _data_of(stage, counts.get(stage.name), volume) for stage in spec.stages}


def _given(texts: Iterable[str], stages: list[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for text in texts:
        name, separator, number = text.rpartition("=")
        if separator and name not in stages:
            raise CommandError(f"--tokens {text}: no stage {name}; there are {', '.join(stages)}")
        match = re.fullmatch(r"([0-9][0-9_]*(?:\.[0-9]+)?)([kMB]?)", number)
        count = int(float(match[1]) * _UNITS[match[2]]) if match else 0
        if count <= 0:
            raise CommandError(f"--tokens {text}: write a number such as 12M, or STAGE=12M")
        counts |= dict.fromkeys([name] if separator else stages, count)
    return counts


def _data_of(stage: Stage, tokens: int | None, volume: Path) -> StageData:
    epochs = stage.hyperparameters.epochs
    if tokens is not None:
        return StageData(tokens=tokens * epochs, exact=True)
    sizes = [_size(data, volume) for data in stage.data]
    known = [size for size in sizes if size is not None]
    if len(known) < len(sizes):
        return StageData()
    main = max(range(len(sizes)), key=lambda index: stage.data[index].weight)
    per_weight = known[main][0] / stage.data[main].weight
    size = sum(
        per_weight * data.weight * length
        for data, (_, length) in zip(stage.data, known, strict=True)
    )
    return StageData(tokens=max(1, round(size * epochs / BYTES_PER_TOKEN)))


def _size(data: Data, volume: Path) -> tuple[int, float] | None:
    """Samples of a local source, and the mean of their bytes; None: it is not such a file."""
    try:
        path = Store(volume).resolve(data.source)
    except UserError as error:
        raise CommandError(f"{data.source}: {error}") from error
    if path is None or path.suffix not in _LINES or not path.is_file():
        return None
    with path.open("rb") as file:
        lines = sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(_CHUNK), b""))
    size = path.stat().st_size
    return (lines, size / lines) if lines else None
