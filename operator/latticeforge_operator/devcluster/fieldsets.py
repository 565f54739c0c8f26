"""Sets of field paths in their wire form, FieldsV1, and what server-side apply does with them.

A set is a tree: `{"f:spec": {"f:a": {}, "f:b": {".": {}, "f:c": {}}}}` holds `spec.a`, `spec.b`
and `spec.b.c`, but not `spec` itself. An empty root is the empty set; an empty node below it is a
member.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from latticeforge_operator.devcluster import structure
from latticeforge_operator.devcluster.structure import Schema

FieldSet = dict[str, Any]
_SELF = "."


class _Missing:
    """Stands for a value that one side of a comparison does not have."""


_MISSING = _Missing()


def _is_member(node: FieldSet) -> bool:
    return not node or _SELF in node


def _children(node: FieldSet) -> Iterator[tuple[str, FieldSet]]:
    return ((element, child) for element, child in node.items() if element != _SELF)


def _node(*, member: bool, children: FieldSet) -> FieldSet | None:
    if member:
        return {_SELF: {}, **children} if children else {}
    return children or None


def is_field_set(value: Any) -> bool:
    """Whether a value that a client sent has the form of a set."""
    return isinstance(value, dict) and all(
        is_field_set(below) and (element == _SELF or element[1:2] == ":")
        for element, below in value.items()
    )


def union(a: FieldSet, b: FieldSet) -> FieldSet:
    """Paths in either set."""
    return _union(a, b) if a and b else a or b


def _union(a: FieldSet, b: FieldSet) -> FieldSet:
    children = dict(_children(a))
    for element, child in _children(b):
        children[element] = _union(children[element], child) if element in children else child
    # The roots themselves hold no member: with both non-empty, neither has a "." of its own.
    return _node(member=_is_member(a) or _is_member(b), children=children) or {}


def difference(a: FieldSet, b: FieldSet) -> FieldSet:
    """Paths in `a` that are not in `b`."""
    return (_difference(a, b) or {}) if a and b else a


def _difference(a: FieldSet, b: FieldSet) -> FieldSet | None:
    children: FieldSet = {}
    for element, child in _children(a):
        rest = _difference(child, b[element]) if element in b else child
        if rest is not None:
            children[element] = rest
    return _node(member=_is_member(a) and not _is_member(b), children=children)


def intersection(a: FieldSet, b: FieldSet) -> FieldSet:
    """Paths in both sets."""
    return (_intersection(a, b) or {}) if a and b else {}


def _intersection(a: FieldSet, b: FieldSet) -> FieldSet | None:
    children: FieldSet = {}
    for element, child in _children(a):
        common = _intersection(child, b[element]) if element in b else None
        if common is not None:
            children[element] = common
    return _node(member=_is_member(a) and _is_member(b), children=children)


def paths(fields: FieldSet, prefix: str = "") -> Iterator[str]:
    """Renders the members as people read them: `.spec.containers[name="a"].image`."""
    for element, child in _children(fields):
        path = prefix + _readable(element)
        if _is_member(child):
            yield path
        yield from paths(child, path)


def _readable(element: str) -> str:
    kind, _, rest = element.partition(":")
    if kind == "f":
        return f".{rest}"
    if kind == "v":
        return f"[={rest}]"
    keys = json.loads(rest)
    return f"[{','.join(f'{key}={json.dumps(value)}' for key, value in keys.items())}]"


def of(value: Any, schema: Schema) -> FieldSet:
    """The set of fields that a configuration speaks of."""
    found: FieldSet = {}
    for element, part, below in structure.parts(schema, value):
        granular = structure.is_granular(below, part)
        node = of(part, below) if granular else {}
        declared = element.startswith("f:") and structure.is_declared(schema, element[2:])
        if granular and declared and part != {}:
            # A struct field is no member itself: only what is said below it.
            if node:
                found[element] = node
        else:
            found[element] = {_SELF: {}, **node} if node else {}
    return found


@dataclass(frozen=True, slots=True)
class Comparison:
    """What differs between two versions of a value."""

    added: FieldSet
    modified: FieldSet
    removed: FieldSet

    @property
    def written(self) -> FieldSet:
        """What the writer of the second version set."""
        return union(self.added, self.modified)

    @property
    def touched(self) -> FieldSet:
        """All that differs."""
        return union(self.written, self.removed)


def compare(old: Any, new: Any, schema: Schema) -> Comparison:
    """Compares two versions of an object, part by part as the schema divides it."""
    changes = Comparison({}, {}, {})
    if old is not new and old != new:
        _compare(old, new, schema, changes)
    return changes


def _compare(old: Any, new: Any, schema: Schema, into: Comparison) -> None:
    before = _parts(old, schema)
    after = _parts(new, schema)
    for element in {**before, **after}:
        a, below = before.get(element, (_MISSING, structure.UNTYPED))
        b, below = after.get(element, (_MISSING, below))
        if a is b or a == b:
            continue
        deeper = _compare_part(a, b, below)
        for target, node in zip((into.added, into.modified, into.removed), deeper, strict=True):
            if node is not None:
                target[element] = node


def _parts(value: Any, schema: Schema) -> dict[str, tuple[Any, Schema]]:
    if isinstance(value, _Missing) or not structure.is_granular(schema, value):
        return {}
    return {element: (part, below) for element, part, below in structure.parts(schema, value)}


def _compare_part(a: Any, b: Any, schema: Schema) -> tuple[FieldSet | None, ...]:
    """Compares one part; nodes of added, modified and removed paths, None where there are none."""
    below = Comparison({}, {}, {})
    granular = [structure.is_granular(schema, v) for v in (a, b) if v is not _MISSING]
    same_shape = isinstance(a, _Missing) or isinstance(b, _Missing) or type(a) is type(b)
    if all(granular) and same_shape:
        _compare(a, b, schema, below)
    opaque = not all(granular) or not same_shape
    both = a is not _MISSING and b is not _MISSING
    return (
        _node(member=a is _MISSING, children=below.added),
        _node(member=both and opaque, children=below.modified),
        _node(member=b is _MISSING, children=below.removed),
    )


def merge(live: Any, config: Any, schema: Schema) -> Any:
    """Lays a configuration over a live value."""
    if isinstance(live, dict) and isinstance(config, dict):
        if not structure.is_granular(schema, config):
            return config
        merged = dict(live)
        for field, value in config.items():
            below = structure.field_schema(schema, field)
            merged[field] = merge(live[field], value, below) if field in live else value
        return merged
    if isinstance(live, list) and isinstance(config, list):
        return _merge_lists(live, config, schema) if structure.is_granular(schema, live) else config
    return config


def _merge_lists(live: list[Any], config: list[Any], schema: Schema) -> list[Any]:
    """Merges by key: the configuration's order rules, live-only items stay before what they were.

    The order is that of structured-merge-diff, because it decides in which order containers start.
    """
    existing = {structure.item_element(schema, item): item for item in live}
    wanted = {structure.item_element(schema, item): item for item in config}
    shared = [element for element in wanted if element in existing]
    ahead = list(existing)
    merged: list[Any] = []
    for element, item in wanted.items():
        while ahead and ahead[0] not in shared[:1]:
            passed = ahead.pop(0)
            if passed not in wanted:
                merged.append(existing[passed])
        if element in existing:
            shared.pop(0)
            item = merge(existing[element], item, structure.item_schema(schema))  # noqa: PLW2901
        merged.append(item)
    return merged + [existing[element] for element in ahead if element not in wanted]


def remove(value: Any, schema: Schema, doomed: FieldSet, kept: FieldSet) -> Any:
    """Removes the doomed paths from a value, but nothing that is also kept.

    A struct of which nothing is kept goes with its fields: it must not stay behind as `{}`.
    """
    if not structure.is_granular(schema, value):
        return value
    left: list[tuple[str, Any]] = []
    for element, part, below in structure.parts(schema, value):
        condemned, spared = doomed.get(element), kept.get(element)
        is_struct = element.startswith("f:") and structure.is_declared(schema, element[2:])
        if condemned is not None and spared is None and (is_struct or _is_member(condemned)):
            continue
        if condemned:
            part = remove(part, below, condemned, spared or {})  # noqa: PLW2901  # its remains
        left.append((element, part))
    if isinstance(value, dict):
        return {element[2:]: part for element, part in left}
    return [part for _, part in left]


def without(fields: FieldSet, ignored: Mapping[str, Any]) -> FieldSet:
    """Drops whole subtrees: every path of `ignored` that is a leaf there, with all below it."""
    rest: FieldSet = {}
    for element, child in fields.items():
        if element not in ignored:
            rest[element] = child
        elif ignored[element] and (below := without(child, ignored[element])):
            rest[element] = below
    return rest
