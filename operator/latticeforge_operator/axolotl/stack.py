"""Several configs, in order → one StackedTraining: each goes on from the one before."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from latticeforge_operator.api import API_VERSION
from latticeforge_operator.axolotl.lines import Line, ignored, mapped, unsupported
from latticeforge_operator.axolotl.settings import ConfigError, Settings

Path = tuple[str | int, ...]
"""Keys and indices from the root of the manifest to a field."""

_TOP = ("base", "publish")
"""What a line's field belongs to the spec by; all others are the stage's."""

TOKEN_SECRET = "hf-token"  # noqa: S105  (the Secret's name, not a token)


@dataclass(frozen=True)
class Config:
    """One config that has been read.

    Attributes:
        name: Of its stage.
        settings: What it sets.
        lines: What became of every key.
    """

    name: str
    settings: Settings
    lines: list[Line]


@dataclass(frozen=True)
class Options:
    """What Axolotl has no key for.

    Attributes:
        name: Of the StackedTraining; None: from the repository or the first config.
        pool: The GPUPool; None: the planner chooses.
        gpus: GPUs of the train steps; None: the planner chooses.
        storage: Size of the volume.
        budget: Most money that it may cost; None: no limit.
    """

    name: str | None = None
    pool: str | None = None
    gpus: int | None = None
    storage: str = "1Ti"
    budget: str | None = None


@dataclass(frozen=True)
class Stack:
    """A stack of configs.

    Attributes:
        manifest: The StackedTraining.
        notes: Where a field comes from, for a comment beside it.
        configs: The configs, with their lines as they are in the stack.
    """

    manifest: dict[str, Any]
    notes: Mapping[Path, str]
    configs: list[Config]


def build_stack(configs: Sequence[Config], options: Options) -> Stack:
    """Put configs together.

    Raises:
        ConfigError: Two settings contradict each other, a config does not follow the one before it,
            or no data set is left; says of which config.
    """
    builder = _Builder()
    placed = []
    for index, config in enumerate(configs):
        try:
            placed.append(_in_stack(configs, index))
            builder.add_stage(index, placed[-1])
        except ConfigError as error:
            raise ConfigError(error.key, error.sentence, config.name) from error
    _add_surroundings(builder, placed, options)
    return Stack(builder.manifest, builder.notes, placed)


def stage_names(stems: Sequence[str]) -> list[str]:
    """A name for each stage, from the names of the files: unique, and a label."""
    names: list[str] = []
    for stem in stems:
        label = _label(stem)[:36].strip("-") or "stage"
        number = sum(name == label or name.startswith(f"{label}-") for name in names)
        names.append(label if label not in names else f"{label}-{number + 1}")
    return names


def _label(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


class _Builder:
    """Fields of the manifest, each set once, and the keys that set them."""

    def __init__(self) -> None:
        self.spec: dict[str, Any] = {"base": {}, "stages": []}
        self.manifest: dict[str, Any] = {
            "apiVersion": API_VERSION,
            "kind": "StackedTraining",
            "metadata": {},
            "spec": self.spec,
        }
        self.notes: dict[Path, str] = {}

    def add_stage(self, number: int, config: Config) -> None:
        self.set(("spec", "stages", number, "name"), config.name, "")
        for line in config.lines:
            self.add(line, number)
        if "data" not in self.spec["stages"][number]:
            raise ConfigError("datasets", "none of them can be read")

    def add(self, line: Line, stage: int) -> None:
        for dotted, value in line.fields.items():
            parts: Path = tuple(int(p) if p.isdigit() else p for p in dotted.split("."))
            root: Path = ("spec",) if parts[0] in _TOP else ("spec", "stages", stage)
            note = line.key if line.given else f"{line.key}: Axolotl's default" if line.key else ""
            self.set((*root, *parts), value, note)

    def set(self, path: Path, value: Any, note: str) -> None:
        place: Any = self.manifest
        for part, following in itertools.pairwise(path):
            place = _child(place, part, [] if isinstance(following, int) else {})
        last = path[-1]
        if last in place and place[last] != value:
            others = self.notes.get(path, "another key")
            raise ConfigError(note, f"contradicts {others}; keep one of them")
        place[last] = value
        if note:
            before = self.notes.get(path)
            self.notes[path] = note if before in (None, note) else f"{before}, {note}"


def _child(place: Any, part: str | int, empty: Any) -> Any:
    if isinstance(part, int):
        while len(place) <= part:
            place.append({})
        return place[part]
    return place.setdefault(part, empty)


def _add_surroundings(builder: _Builder, configs: Sequence[Config], options: Options) -> None:
    spec = builder.spec
    for name, value in (("pool", options.pool), ("gpus", options.gpus)):
        if value is not None:
            builder.set(("spec", "compute", name), value, "")
    if options.budget is not None:
        builder.set(("spec", "budget", "limit"), options.budget, "")
    builder.set(("spec", "storage", "size"), options.storage, "models, data and checkpoints")
    repository = spec.get("publish", {}).get("repository")
    if repository is not None:
        if _publishes_adapter(spec["stages"]):
            builder.set(("spec", "publish", "artifact"), "Adapter", "Axolotl pushes the adapter")
        secret: Path = ("spec", "publish", "tokenSecret", "name")
        builder.set(secret, TOKEN_SECRET, "HF_TOKEN, for latticeforge run")
    fallback = repository.rpartition("/")[2] if isinstance(repository, str) else configs[0].name
    builder.manifest["metadata"]["name"] = options.name or _label(fallback)[:63].strip("-")


def _publishes_adapter(stages: list[dict[str, Any]]) -> bool:
    continued = all(stage.get("handoff") == "ContinueAdapter" for stage in stages[1:])
    return continued and stages[-1].get("method", "Full") != "Full"


def _in_stack(configs: Sequence[Config], index: int) -> Config:
    """A config with its lines as its place in the stack makes them."""
    config = configs[index]
    lines = list(config.lines)
    if index > 0:
        before, first = configs[index - 1], configs[0]
        _check_follows(before, config)
        lines = [_later_line(line, before, config, first) for line in lines]
    if index + 1 < len(configs):
        lines = [_unpublished(line) for line in lines]
    return replace(config, lines=lines)


def _check_follows(before: Config, config: Config) -> None:
    base = config.settings["base_model"]
    if base not in _results(before.settings) and base != before.settings["base_model"]:
        raise ConfigError(
            "base_model",
            f"{base} is neither what {before.name} leaves ({_results(before.settings)[0]}) nor its "
            "base; a stage starts from the one before it",
        )


def _results(settings: Settings) -> list[str]:
    """The names under which Axolotl leaves a config's result."""
    folder = settings["output_dir"].rstrip("/")
    names = [folder, f"{folder}/", f"{folder}/merged", f"{folder}/merged/"]
    hub = settings.first("hub_model_id", "push_to_hub_model_id")
    return [*names, hub] if hub else names


def _later_line(line: Line, before: Config, config: Config, first: Config) -> Line:
    if line.key == "base_model":
        return mapped(line.key, f"starts from the result of stage {before.name}", {})
    if line.key == "lora_model_dir":
        if config.settings["lora_model_dir"].rstrip("/") in _results(before.settings):
            return mapped(line.key, "handoff ContinueAdapter", {"handoff": "ContinueAdapter"})
        return line
    if any(path.startswith("base.") for path in line.fields):
        return _shared_line(line, first)
    return line


def _shared_line(line: Line, first: Config) -> Line:
    """A line about base or tokenizer, which all stages share."""
    shared: dict[str, Any] = {}
    for other in first.lines:
        shared |= other.fields
    if all(shared.get(path) == value for path, value in line.fields.items()):
        return mapped(line.key, f"as in stage {first.name}", {})
    return unsupported(line.key, f"is not that of stage {first.name}; a stack has one tokenizer")


def _unpublished(line: Line) -> Line:
    if "publish.repository" in line.fields:
        return ignored(line.key, "only the last stage's result is published; this one is kept")
    return line
