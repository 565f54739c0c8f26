"""`latticeforge import axolotl`: reads the configs, prints the StackedTraining and the report."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import click
from pydantic import ValidationError

from latticeforge_operator.api import StackedTrainingSpec
from latticeforge_operator.api.crds import schema_of
from latticeforge_operator.axolotl.lines import Line, Verdict
from latticeforge_operator.axolotl.registry import lines_of, read_settings
from latticeforge_operator.axolotl.settings import ConfigError
from latticeforge_operator.axolotl.stack import Config, Options, Stack, build_stack, stage_names
from latticeforge_operator.cli.annotated import annotated_yaml
from latticeforge_operator.cli.errors import CommandError
from latticeforge_operator.cli.sentences import dotted, sentences
from latticeforge_operator.cli.yaml_lines import Document, MalformedYAMLError, read_documents

Form = Literal["table", "json"]


@dataclass(frozen=True)
class _File:
    """A config's file: its keys, and where they stand."""

    path: Path
    document: Document

    def at(self, key: str) -> str:
        """The place of a key, for a message."""
        return f"{self.path}:{self.document.line_of(_path(key))}"

    def error(self, error: ConfigError) -> CommandError:
        """What is said of a fault."""
        return CommandError(f"{self.at(error.key)}: {error}")


def import_axolotl(
    paths: Sequence[Path],
    options: Options,
    *,
    allow_unsupported: bool,
    form: Form,
    output: Path | None,
) -> None:
    """Import configs as the stages of a stack, in order.

    The report goes to standard error, so that the StackedTraining can go through a pipe.

    Raises:
        CommandError: A config is wrong, or the stack would be another training than it asks for.
    """
    _check_name(options.name)
    files = [_read(path) for path in paths]
    names = [path.name for path in paths]
    stack = _checked(files, _stack(files, options))
    click.echo(report(stack, names, form), err=True, nl=False)
    faults = [] if allow_unsupported else _unsupported(files, stack)
    if faults and form == "json":
        raise click.exceptions.Exit(1)  # the report says it, and nothing but JSON may follow
    if faults:
        advice = "the result would be another; --allow-unsupported imports the rest"
        raise CommandError("\n".join([*faults, advice]))
    _write(manifest_text(stack, names, options), output)


def _check_name(name: str | None) -> None:
    if name is not None and re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", name) is None:
        raise CommandError(
            f"--name {name}: must be lowercase letters, digits and dashes, at most 63"
        )


def _write(text: str, output: Path | None) -> None:
    if output is None:
        click.echo(text, nl=False)
        return
    try:
        output.write_text(text)
    except OSError as error:
        raise CommandError(f"{output}: {error.strerror}") from error


def manifest_text(stack: Stack, names: Sequence[str], options: Options) -> str:
    """The StackedTraining as a commented file."""
    assumed = "" if options.gpus else "; its batch is that of one GPU (--gpus says another number)"
    header = [f"Imported from {' and '.join(names)} by `latticeforge import axolotl`{assumed}."]
    if "publish" not in stack.manifest["spec"]:
        header.append("Without a hub_model_id nothing is published: the result stays in the store.")
    for config, name in zip(stack.configs, names, strict=True):
        header += [
            f"Not imported from {name}: {line.key}: {line.sentence}"
            for line in config.lines
            if line.verdict is Verdict.UNSUPPORTED
        ]
    return annotated_yaml(stack.manifest, stack.notes, header)


def report(stack: Stack, names: Sequence[str], form: Form) -> str:
    """What became of every key, file by file."""
    if form == "json":
        return json.dumps(list(_records(stack, names)), indent=1, ensure_ascii=False) + "\n"
    return "".join(_table(c, name) for c, name in zip(stack.configs, names, strict=True))


def _records(stack: Stack, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    for config, name in zip(stack.configs, names, strict=True):
        for line in _shown(config):
            yield {
                "file": name,
                "stage": config.name,
                "key": line.key,
                "given": line.given,
                "verdict": line.verdict.value,
                "sentence": line.sentence,
            }


def _table(config: Config, name: str) -> str:
    lines = _shown(config)
    given = [line for line in lines if line.given]
    counts = [f"{sum(line.verdict is v for line in given)} {v.value}" for v in Verdict]
    width = max(len(_label(line)) for line in lines)
    rows = [f"  {line.verdict:<11}  {_label(line):<{width}}  {line.sentence}" for line in lines]
    return "\n".join([f"{name}: {', '.join(counts)}", *rows]) + "\n"


def _shown(config: Config) -> list[Line]:
    return [line for line in config.lines if line.key]


def _label(line: Line) -> str:
    return line.key if line.given else f"({line.key})"


def _read(path: Path) -> _File:
    try:
        documents = read_documents(path.read_text())
    except (OSError, UnicodeDecodeError, MalformedYAMLError) as error:
        raise CommandError(f"{path}: {error}") from error
    if len(documents) != 1 or not isinstance(documents[0].value, dict):
        raise CommandError(f"{path}: an Axolotl config is one YAML mapping of keys to values")
    return _File(path, _with_templates(path, documents[0]))


def _with_templates(path: Path, document: Document) -> Document:
    """The document with chat templates that it names by file as their text."""
    config = {str(key): value for key, value in document.value.items()}
    entries = config.get("datasets")
    places = [config, *(entries if isinstance(entries, list) else [])]
    for place in places:
        value = place.get("chat_template_jinja") if isinstance(place, dict) else None
        if isinstance(value, str) and value.endswith(".jinja") and "\n" not in value:
            try:
                place["chat_template_jinja"] = (path.parent / value).read_text()
            except OSError as error:
                raise CommandError(f"{path}: chat_template_jinja: {error}") from error
    return Document(config, document.lines)


def _stack(files: Sequence[_File], options: Options) -> Stack:
    names = stage_names([file.path.stem for file in files])
    configs = [
        _config(file, name, options.gpus or 1) for file, name in zip(files, names, strict=True)
    ]
    try:
        return build_stack(configs, options)
    except ConfigError as error:
        raise files[names.index(error.config)].error(error) from error


def _config(file: _File, name: str, gpus: int) -> Config:
    try:
        settings = read_settings(file.document.value, gpus)
        return Config(name, settings, lines_of(file.document.value, settings))
    except ConfigError as error:
        raise file.error(error) from error


def _checked(files: Sequence[_File], stack: Stack) -> Stack:
    """The stack with its fields in the API's order; refused, by key, if the API would refuse it."""
    try:
        spec = StackedTrainingSpec.model_validate(stack.manifest["spec"])
    except ValidationError as error:
        faults = list(sentences(error, schema_of(StackedTrainingSpec)))
        raise CommandError("\n".join(_fault(files, stack, *fault) for fault in faults)) from error
    ordered = spec.model_dump(mode="json", by_alias=True, exclude_unset=True)
    return replace(stack, manifest={**stack.manifest, "spec": ordered})


def _fault(files: Sequence[_File], stack: Stack, path: tuple[str | int, ...], sentence: str) -> str:
    key = stack.notes.get(("spec", *path), "").partition(", ")[0]
    file = files[path[1]] if path[:1] == ("stages",) and isinstance(path[1], int) else files[0]
    if key and _path(key) in file.document.lines:
        return f"{file.at(key)}: {key}: {sentence}"
    return f"{file.path}: {dotted(('spec', *path))}: {sentence}"


def _unsupported(files: Sequence[_File], stack: Stack) -> list[str]:
    return [
        f"{file.at(line.key)}: {line.key}: {line.sentence}"
        for file, config in zip(files, stack.configs, strict=True)
        for line in config.lines
        if line.verdict is Verdict.UNSUPPORTED
    ]


def _path(key: str) -> tuple[str | int, ...]:
    """The path of a report's key: `datasets[0].type` stands at `("datasets", 0, "type")`."""
    parts = re.findall(r"\[(\d+)\]|([^.\[\]]+)", key.partition(":")[0])
    return tuple(int(index) if index else name for index, name in parts)
