"""docs/reference/chart-values.md: the values of the chart, their comments and their schema."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml
from charts.sync import CHART
from docs.generate.markdown import code, page, sentence, table

Schema = dict[str, Any]

_INTRODUCTION = """\
Of `charts/latticeforge`; [values.yaml](../../charts/latticeforge/values.yaml) is the same with its
defaults in place. What is not in the schema is refused when it is rendered, with the value's path.
A pool's fields are those of [`GPUPool.spec`](api.md#gpupoolspec). A *name* is what Kubernetes takes
for one: lower-case letters, digits and dashes.

    helm template latticeforge charts/latticeforge --set kueue.defaultQueue=research"""


@dataclass(frozen=True)
class _Value:
    path: str
    schema: Schema
    default: Any
    comment: str


def text() -> str:
    """The page."""
    schema = json.loads((CHART / "values.schema.json").read_text())
    source = (CHART / "values.yaml").read_text()
    mapping: Any = yaml.compose(source)
    values = _values(mapping, schema, source.splitlines())
    rows = [
        (code(v.path), _type(v.schema), code(json.dumps(v.default)), sentence(v.comment))
        for v in values
    ]
    values_table = table(("value", "type", "default", "meaning"), rows)
    return page("Values of the chart", _INTRODUCTION, values_table)


def _values(
    node: yaml.MappingNode, schema: Schema, lines: list[str], path: str = "", above: str = ""
) -> Iterator[_Value]:
    """The leaves; what is said of a mapping is said of its first value."""
    for key, value in node.value:
        comment = " ".join(filter(None, (above, _comment(lines, key.start_mark.line))))
        here, known = f"{path}{key.value}", schema["properties"][key.value]
        if "properties" in known:
            yield from _values(value, known, lines, f"{here}.", comment)
        else:
            yield _Value(here, known, yaml.safe_load(yaml.serialize(value)), comment)
        above = ""


def _comment(lines: list[str], line: int) -> str:
    """The comment over a line."""
    found: list[str] = []
    while line and (match := re.match(r" *# ?(.*)", lines[line - 1])):
        found.insert(0, match[1])
        line -= 1
    return " ".join(found)


def _type(schema: Schema) -> str:
    """In words: a type, the values that there are, or what a string must look like."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "anyOf" in schema:
        return " or ".join(_type(option) for option in schema["anyOf"])
    if "const" in schema:
        return code(json.dumps(schema["const"]))
    if "enum" in schema:
        return " or ".join(code(value) for value in schema["enum"])
    bounds = [f"{schema[key]:,}" for key in ("minimum", "maximum") if key in schema]
    shape = f", matching {code(schema['pattern'])}" if "pattern" in schema else ""
    within = f", {' to '.join(bounds)}" if bounds else ""
    if "items" in schema:
        return f"list of {_type(schema['items'])}s"
    return f"{schema['type']}{within}{shape}"
