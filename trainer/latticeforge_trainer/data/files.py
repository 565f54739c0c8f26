"""Which files of a data source hold the wanted subset and split.

A source is a file, or a folder or Hub repository of files. `README.md` metadata decides when it has
a `configs:` list, as on the Hub:

    configs:
    - config_name: olympiad          # the subset
      data_files:
      - {split: train, path: "olympiad/train-*.parquet"}
      - {split: test, path: ["olympiad/test.jsonl"]}

`data_files` may also be one pattern or a list of them (the train split), or a mapping from split to
patterns; `data_dir` is the folder that they are relative to. In a pattern `*` and `?` stay within a
folder and `**` crosses folders. Without metadata a subset is a folder, and a file belongs to the
split whose name, or a synonym of it, is a word of its path; a file that names no split is training
data if no other file names it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from latticeforge_trainer.errors import UserError

SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet")
README = "README.md"

_SYNONYMS = (
    {"train", "training"},
    {"validation", "valid", "val", "dev"},
    {"test", "testing", "eval", "evaluation", "heldout", "holdout"},
)
_METADATA = re.compile(r"dataset_infos?\.json|state\.json|dataset_dict\.json")


@dataclass(frozen=True)
class DataFile:
    """One file of rows.

    Attributes:
        path: Where it lies.
        name: What messages call it.
    """

    path: Path
    name: str


@dataclass(frozen=True)
class Selection:
    """What is wanted of a source.

    Attributes:
        source: The source as its user named it; opens every message.
        subset: Name of the subset; None: the default one, or everything.
        split: Name of the split.
        files: Patterns of the files, instead of subset and split.
    """

    source: str
    subset: str | None = None
    split: str = "train"
    files: Sequence[str] | None = None

    def pick(self, names: Sequence[str], readme: str | None = None) -> list[str]:
        """The data files, sorted, among the relative POSIX paths of a source.

        Args:
            names: Every file of the source.
            readme: Text of its `README.md`, if it has one.

        Raises:
            UserError: There is no such subset, split, or no data file at all.
        """
        files = sorted(name for name in names if is_data(name))
        if not files:
            raise UserError(
                f"{self.source}: no data files; known are {', '.join(SUFFIXES)}"
                + (f" (found {', '.join(sorted(names)[:3])})" if names else "")
            )
        if self.files is not None:
            return self._by_pattern(files, self.files)
        configs = _configs(self.source, readme)
        if configs:
            return self._by_metadata(files, configs)
        return self._by_name(files)

    def _by_pattern(self, files: list[str], patterns: Sequence[str]) -> list[str]:
        found: set[str] = set()
        for pattern in patterns:
            matches = [name for name in files if _pattern(pattern).fullmatch(name)]
            if not matches:
                raise UserError(
                    f"{self.source}: no data file matches {pattern}; there are "
                    f"{', '.join(files[:5])}{', …' if len(files) > 5 else ''}"
                )
            found.update(matches)
        return sorted(found)

    def _by_metadata(self, files: list[str], configs: list[dict[str, Any]]) -> list[str]:
        config = self._config(configs)
        folder = str(config.get("data_dir") or "").strip("/")
        if folder:
            files = [name for name in files if name.startswith(folder + "/")]
        if "data_files" not in config:
            return self._by_split(files)
        splits = _splits(config["data_files"])
        if self.split not in splits:
            raise self._no_split(list(splits))
        prefix = f"{folder}/" if folder else ""
        patterns = [_pattern(prefix + pattern) for pattern in splits[self.split]]
        found = [name for name in files if any(pattern.fullmatch(name) for pattern in patterns)]
        if not found:
            raise UserError(
                f"{self.source}: no data file matches {', '.join(splits[self.split])}, "
                f"which {README} names for split '{self.split}'"
            )
        return found

    def _config(self, configs: list[dict[str, Any]]) -> dict[str, Any]:
        names = [str(config.get("config_name", "default")) for config in configs]
        wanted = self.subset
        if wanted is None:
            pairs = zip(names, configs, strict=True)
            default = [name for name, c in pairs if c.get("default") or name == "default"]
            if not default and len(names) > 1:
                raise UserError(f"{self.source}: name a subset, one of {', '.join(names)}")
            wanted = (default or names)[0]
        if wanted not in names:
            raise self._no_subset(names)
        return configs[names.index(wanted)]

    def _by_name(self, files: list[str]) -> list[str]:
        if self.subset is None:
            return self._by_split(files)
        inside = [name for name in files if name.startswith(self.subset.strip("/") + "/")]
        if not inside:
            raise self._no_subset(sorted({PurePosixPath(name).parts[0] for name in files}))
        return self._by_split(inside, len(self.subset.strip("/")) + 1)

    def _by_split(self, files: list[str], skip: int = 0) -> list[str]:
        wanted = next((words for words in _SYNONYMS if self.split in words), {self.split})
        named = {name: set(re.split(r"[^a-z]+", name[skip:].lower())) for name in files}
        found = [name for name, words in named.items() if words & wanted or self.split in words]
        if not found and "train" in wanted:
            found = [n for n, words in named.items() if not any(words & s for s in _SYNONYMS)]
        if not found:
            raise self._no_split([s for s in map(_split_of, named.values()) if s])
        return found

    def _no_subset(self, known: list[str]) -> UserError:
        return UserError(
            f"{self.source}: no subset '{self.subset}'; there are {', '.join(known) or 'none'}"
        )

    def _no_split(self, known: list[str]) -> UserError:
        names = ", ".join(dict.fromkeys(known)) or "train"
        return UserError(f"{self.source}: no split '{self.split}'; there are {names}")


def is_data(name: str) -> bool:
    """Whether a relative POSIX path names a file of rows, neither hidden nor metadata."""
    path = PurePosixPath(name)
    hidden = any(part.startswith(".") for part in path.parts)
    return path.suffix in SUFFIXES and not hidden and not _METADATA.fullmatch(path.name)


def walk(folder: Path) -> Iterator[str]:
    """Relative POSIX paths of all files below a folder; links are followed, loops entered once."""
    seen: set[str] = set()
    for base, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(base)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        for name in files:
            path = Path(base, name)
            if path.is_file():
                yield path.relative_to(folder).as_posix()


def front_matter(name: str, text: str | None) -> dict[str, Any]:
    """The YAML metadata that a README opens with; empty without one.

    Raises:
        UserError: It is no valid YAML.
    """
    found = re.match(r"\s*---\s*\n(.*?)\n---\s*(\n|$)", text or "", re.DOTALL)
    if not found:
        return {}
    try:
        metadata = yaml.safe_load(found[1])
    except yaml.YAMLError as error:
        problem = str(error).splitlines()[0]
        raise UserError(f"{name}: the metadata of {README} is no valid YAML: {problem}") from error
    return metadata if isinstance(metadata, dict) else {}


def _configs(source: str, readme: str | None) -> list[dict[str, Any]]:
    configs = front_matter(source, readme).get("configs")
    if configs is None:
        return []
    if not isinstance(configs, list) or not all(isinstance(c, dict) for c in configs):
        raise UserError(f"{source}: 'configs' in {README} is not a list of subsets")
    return configs


def _splits(data_files: Any) -> dict[str, list[str]]:
    if isinstance(data_files, dict):
        return {str(split): _patterns(paths) for split, paths in data_files.items()}
    if isinstance(data_files, list) and all(isinstance(entry, dict) for entry in data_files):
        return {str(e.get("split", "train")): _patterns(e.get("path")) for e in data_files}
    return {"train": _patterns(data_files)}


def _patterns(paths: Any) -> list[str]:
    return [str(path) for path in (paths if isinstance(paths, list) else [paths])]


def _pattern(glob: str) -> re.Pattern[str]:
    wildcards = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", glob.removeprefix("./"))
    return re.compile("".join(wildcards.get(part) or re.escape(part) for part in parts))


def _split_of(words: set[str]) -> str | None:
    canonical = ("train", "validation", "test")
    return next((n for n, known in zip(canonical, _SYNONYMS, strict=True) if words & known), None)
