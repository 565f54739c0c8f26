"""The file that `run` and `plan` get: one StackedTraining, and GPUPools if it brings its own.

Everything that the API models refuse is refused here, before anything is started, with one sentence
per fault: file, line, field, and what to write instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from latticeforge_operator.api import (
    API_VERSION,
    GPUPoolSpec,
    StackedTraining,
    StackedTrainingSpec,
)
from latticeforge_operator.api.crds import schema_of
from latticeforge_operator.api.training import MAX_NAME, NAME_TOO_LONG
from latticeforge_operator.cli.errors import CommandError
from latticeforge_operator.cli.sentences import dotted, sentences
from latticeforge_operator.cli.yaml_lines import Document, MalformedYAMLError, read_documents

_SPECS: dict[str, type[BaseModel]] = {
    "StackedTraining": StackedTrainingSpec,
    "GPUPool": GPUPoolSpec,
}


@dataclass(frozen=True)
class StackFile:
    """A file whose objects are valid."""

    training: StackedTraining
    manifest: dict[str, Any]
    """The StackedTraining as it was written."""
    pools: list[dict[str, Any]]
    """The GPUPools as they were written."""


def load_stack(path: Path, namespace: str | None) -> StackFile:
    """Read a file for `latticeforge run` or `plan`.

    Args:
        path: The YAML file; it may hold several documents.
        namespace: Overrules the namespace in the file.

    Raises:
        CommandError: It is not valid; the message has one line per fault.
    """
    documents = _valid(path)
    trainings = [d.value for d in documents if d.value["kind"] == "StackedTraining"]
    if len(trainings) != 1:
        raise CommandError(f"{path}: holds {len(trainings)} StackedTrainings, expected one")
    manifest = trainings[0]
    manifest["metadata"]["namespace"] = (
        namespace or manifest["metadata"].get("namespace") or "default"
    )
    return StackFile(
        training=StackedTraining.from_object(manifest),
        manifest=manifest,
        pools=[d.value for d in documents if d.value["kind"] == "GPUPool"],
    )


def load_pools(path: Path) -> list[dict[str, Any]]:
    """The GPUPools in a file, as they were written; what else it holds is left out.

    Raises:
        CommandError: It is not valid; the message has one line per fault.
    """
    pools = [d.value for d in _valid(path) if d.value["kind"] == "GPUPool"]
    if not pools:
        raise CommandError(f"{path}: holds no GPUPool")
    return pools


def _valid(path: Path) -> list[Document]:
    """A file's documents, each of them a valid object of ours."""
    try:
        documents = read_documents(path.read_text())
    except (OSError, UnicodeDecodeError, MalformedYAMLError) as error:
        raise CommandError(f"{path}: {error}") from error
    faults = [f"{path}:{fault}" for document in documents for fault in _faults(document)]
    if faults:
        raise CommandError("\n".join(faults))
    return documents


def _faults(document: Document) -> Iterator[str]:
    """Every fault of one document, as `LINE: FIELD: SENTENCE`."""
    obj = document.value
    kind = obj.get("kind") if isinstance(obj, dict) else None
    if kind not in _SPECS:
        yield f"{document.line_of(('kind',))}: kind {kind!r}: expected {' or '.join(_SPECS)}"
        return
    if obj.get("apiVersion") != API_VERSION:
        yield f"{document.line_of(('apiVersion',))}: apiVersion must be {API_VERSION}"
        return
    if not isinstance(obj.get("metadata"), dict) or not isinstance(
        obj["metadata"].get("name"), str
    ):
        yield f"{document.line_of(('metadata',))}: metadata.name is missing"
        return
    try:
        _SPECS[kind].model_validate(obj.get("spec") or {})
    except ValidationError as error:
        for path, sentence in sentences(error, schema_of(_SPECS[kind])):
            field = ("spec", *path)
            yield f"{document.line_of(field)}: {dotted(field)}: {sentence}"
        return
    if kind == "StackedTraining" and len(obj["metadata"]["name"]) > MAX_NAME:
        yield f"{document.line_of(('metadata', 'name'))}: {NAME_TOO_LONG}"
