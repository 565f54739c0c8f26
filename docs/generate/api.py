"""docs/reference/api.md: every field of StackedTraining and GPUPool, as the definitions have it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from docs.generate.markdown import code, link, page, sentence, table

from latticeforge_operator.api.crds import all_crds
from latticeforge_operator.cluster.names import STEP_LABEL, TRAINING_LABEL
from latticeforge_operator.core.walk import APPROVE_ANNOTATION

Schema = dict[str, Any]

_RULES = "x-kubernetes-validations"
_FREE = "x-kubernetes-preserve-unknown-fields"

_INTRODUCTION = f"""\
What the API server takes and shows, from the same models as the definitions in `crds/`.
`kubectl explain st.spec.stages` says the same in a terminal. kubectl and `latticeforge run` refuse
unknown fields. A field without a default may be left out, unless it is required. Numbers with a
fraction are written as strings, so that they arrive as they were written.

The annotation `{APPROVE_ANNOTATION}` of a StackedTraining names stages (with commas between) that
may go on in spite of their gates. Everything that belongs to a stack has the label
`{TRAINING_LABEL}` with its name; Jobs and pods also have `{STEP_LABEL}` (`STAGE.KIND`, or
`publish`)."""


def text() -> str:
    """The page."""
    parts = [_INTRODUCTION]
    for crd in all_crds().values():
        parts += _kind(crd["spec"])
    return page("API reference", *parts)


def _kind(spec: Schema) -> Iterator[str]:
    names, version = spec["names"], spec["versions"][0]
    schema = version["schema"]["openAPIV3Schema"]
    kind = names["kind"]
    yield f"## {kind}"
    yield (
        f"{schema['description']} `apiVersion: {spec['group']}/{version['name']}`, "
        f"{'in a namespace' if spec['scope'] == 'Namespaced' else 'of the whole cluster'}; "
        f"kubectl calls it {code(names['plural'])}, {code(names['singular'])} or "
        f"{code(names['shortNames'][0])}."
    )
    yield from _rules(schema)
    yield _columns(version["additionalPrinterColumns"])
    for name in ("spec", "status"):
        yield from _object(f"{kind}.{name}", schema["properties"][name])


def _columns(columns: list[Schema]) -> str:
    rows = [
        (
            code(column["name"].upper()),
            code(column["jsonPath"]),
            "`-o wide`" if column.get("priority") else "always",
        )
        for column in columns
    ]
    return table(("column of `kubectl get`", "field", "shown"), rows)


def _object(path: str, schema: Schema) -> Iterator[str]:
    """The section of an object, then those of the objects in it."""
    fields = schema["properties"]
    required = set(schema.get("required", ()))
    yield f"### {path}"
    yield sentence(schema.get("description", ""))
    rows = [
        (
            code(name),
            _type(f"{path}.{name}", field),
            _default(field, name in required),
            _text(field),
        )
        for name, field in fields.items()
    ]
    yield table(("field", "type", "default", "meaning"), rows)
    yield from _rules(schema)
    for name, field in fields.items():
        inner, mark = _inner(field)
        if "properties" in inner:
            yield from _object(f"{path}.{name}{mark}", inner)


def _inner(field: Schema) -> tuple[Schema, str]:
    """What a list holds, with its mark in a path; of anything else itself."""
    return (field["items"], "[]") if field.get("type") == "array" else (field, "")


def _type(path: str, field: Schema) -> str:
    inner, mark = _inner(field)
    many = "list of " if mark else ""
    if "properties" in inner:
        return link(path + mark, "list of objects" if mark else "object")
    if "enum" in inner:
        return many + " or ".join(code(value) for value in inner["enum"])
    if inner.get(_FREE) or inner.get("type") == "object":
        values = inner.get("additionalProperties")
        return (
            f"{many}map of {_type('', values)}s by name" if values else f"{many}object, free-form"
        )
    plural = "s" if mark else ""
    return f"{many}{inner['type']}{plural}"


def _default(field: Schema, required: bool) -> str:
    if required:
        return "**required**"
    return code(json.dumps(field["default"])) if "default" in field else ""


def _text(field: Schema) -> str:
    """The description, then what bounds a value."""
    inner, mark = _inner(field)
    own = field if mark else {}
    said = [field.get("description", ""), *_bounds(own, inner)]
    if "properties" not in inner:
        said += [entry["message"] for entry in inner.get(_RULES, ())]
    return " ".join(sentence(part) for part in said if part)


def _bounds(many: Schema, one: Schema) -> Iterator[str]:
    each = "each " if many else ""
    yield _between(many.get("minItems"), many.get("maxItems"), "items")
    if _RULES not in one or "properties" in one:  # a rule says what its text looks like
        yield _between(one.get("minLength"), one.get("maxLength"), "characters", each)
    yield _between(one.get("minimum"), one.get("maximum"), "", each)
    if "pattern" in one:
        yield f"must match {code(one['pattern'])}"


def _between(low: Any, high: Any, unit: str, each: str = "") -> str:
    if low is None and high is None:
        return ""
    if high is None:
        return f"{each}{low:,} or more {unit}".rstrip()
    least = "at most" if low is None else f"{low:,} to"
    return f"{each}{least} {high:,} {unit}".rstrip()


def _rules(schema: Schema) -> Iterator[str]:
    found = schema.get(_RULES, ())
    if found:
        yield "Refused by the API server, with this sentence, where the rule does not hold:"
        yield table(("sentence", "rule (CEL)"), [(r["message"], code(r["rule"])) for r in found])
