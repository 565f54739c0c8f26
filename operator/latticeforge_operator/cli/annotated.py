"""YAML for people: a document with a comment beside the fields that need one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from latticeforge_operator.cli.yaml_lines import Path, read_documents


def annotated_yaml(document: dict[str, Any], notes: Mapping[Path, str], header: list[str]) -> str:
    """One YAML document.

    Args:
        document: Its keys keep their order.
        notes: Comments by the path of the field that they stand behind.
        header: Lines of comment above it.
    """
    text: str = yaml.dump(document, Dumper=_Dumper, sort_keys=False, width=100_000)
    [parsed] = read_documents(text)
    lines = text.splitlines()
    for path, note in notes.items():
        lines[parsed.lines[path] - 1] += f"  # {note}"
    return "\n".join([*(f"# {line}".rstrip() for line in header), *lines]) + "\n"


_NUMBER = re.compile(r"[-+]?[\d_]*\.?\d+([eE][-+]?\d+)?")


class _Dumper(yaml.SafeDumper):
    """Repeats what occurs twice, and writes lists of names in one line, texts in several."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002  (the base class's signature)
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
    """Quoted where another YAML reader would see a number: to PyYAML alone `2e-6` is a text."""
    style = "|" if "\n" in value.strip() else "'" if _NUMBER.fullmatch(value) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


def _list(dumper: yaml.SafeDumper, value: list[Any]) -> yaml.Node:
    scalars = all(isinstance(entry, str | int) for entry in value)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=scalars)


_Dumper.add_representer(str, _text)
_Dumper.add_representer(list, _list)
