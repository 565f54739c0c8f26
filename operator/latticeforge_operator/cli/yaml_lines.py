"""YAML documents together with the line on which every field stands."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import yaml

Path = tuple[str | int, ...]
"""Keys and list indices from the root of a document to a field."""


@dataclass(frozen=True)
class Document:
    """One document of a YAML stream."""

    value: Any
    lines: dict[Path, int]
    """Line of every field, counted from 1."""

    def line_of(self, path: Path) -> int:
        """The line of a field, or of the closest parent when the field is missing."""
        while path not in self.lines:
            path = path[:-1]
        return self.lines[path]


class MalformedYAMLError(Exception):
    """The text is no YAML, or a mapping names a key twice; the message gives line and reason."""


def read_documents(text: str) -> list[Document]:
    """Parse every non-empty document of a YAML stream.

    Raises:
        MalformedYAMLError: The text is no YAML, or a mapping names a key twice.
    """
    loader = yaml.SafeLoader(text)
    documents = []
    try:
        while loader.check_node():
            node = cast("yaml.Node", loader.get_node())
            lines = dict(_walk(node, ()))
            value = loader.construct_document(node)
            if value is not None:
                documents.append(Document(value, lines))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"line {mark.line + 1}: " if mark else ""
        raise MalformedYAMLError(f"{line}{error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise MalformedYAMLError(str(error)) from error
    finally:
        loader.dispose()
    return documents


def _walk(node: yaml.Node, path: Path) -> Iterator[tuple[Path, int]]:
    yield path, node.start_mark.line + 1
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _walk(item, (*path, index))
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.value in seen:
                raise MalformedYAMLError(f"line {line}: {key.value} stands twice in the same place")
            seen.add(key.value)
            yield from _walk(value, (*path, key.value))
            yield (*path, key.value), line
