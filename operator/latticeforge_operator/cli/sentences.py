"""What pydantic found wrong with an object, as one sentence per field for its author."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

Path = tuple[str | int, ...]


def sentences(error: ValidationError, schema: dict[str, Any]) -> Iterable[tuple[Path, str]]:
    """Every fault of an object: the path of the field, and what to write instead.

    Args:
        error: What pydantic found.
        schema: The object's structural schema, to name the fields that would be known.
    """
    for details in error.errors(include_url=False):
        describe = _SENTENCES.get(details["type"], _as_pydantic_says)
        yield details["loc"], describe(details, schema)


def dotted(path: Path) -> str:
    """A path as people write it: `spec.stages[1].data[0].source`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.removeprefix(".")


def _known_fields(schema: dict[str, Any], path: Path) -> list[str]:
    for part in path:
        children = schema.get("properties", {})
        schema = schema.get("items", {}) if isinstance(part, int) else children.get(part, {})
    return list(schema.get("properties", {}))


def _as_pydantic_says(details: ErrorDetails, _schema: dict[str, Any]) -> str:
    message = details["msg"]
    return f"{message[:1].lower()}{message[1:]}"


def _own_sentence(details: ErrorDetails, _schema: dict[str, Any]) -> str:
    return str(details["ctx"]["error"])


def _missing(_details: ErrorDetails, _schema: dict[str, Any]) -> str:
    return "is missing"


def _unknown(details: ErrorDetails, schema: dict[str, Any]) -> str:
    *parent, name = details["loc"]
    known = _known_fields(schema, tuple(parent))
    close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.6)
    advice = f"did you mean {close[0]}?" if close else f"known here: {', '.join(sorted(known))}"
    return f"is no field of this object; {advice}"


def _not_text(details: ErrorDetails, _schema: dict[str, Any]) -> str:
    value = details["input"]
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f'must be text; write it in quotes: "{value}"'
    return f"must be text, not {_kind(value)}"


def _not_a_choice(details: ErrorDetails, _schema: dict[str, Any]) -> str:
    expected = details["ctx"]["expected"].replace("'", "")
    return f"{details['input']!r} is unknown; write {expected}"


def _too_few(details: ErrorDetails, _schema: dict[str, Any]) -> str:
    least = details["ctx"]["min_length"]
    return f"needs at least {least} {'entry' if least == 1 else 'entries'}, has none"


def _too_many(details: ErrorDetails, _schema: dict[str, Any]) -> str:
    context = details["ctx"]
    return f"has {context['actual_length']} entries, more than the limit of {context['max_length']}"


def _too_long(details: ErrorDetails, _schema: dict[str, Any]) -> str:
    length, limit = len(details["input"]), details["ctx"]["max_length"]
    return f"has {length} characters, more than the limit of {limit}"


def _too_short(details: ErrorDetails, _schema: dict[str, Any]) -> str:
    length, least = len(details["input"]), details["ctx"]["min_length"]
    return f"has {length} characters, less than the {least} it needs"


def _wrong_kind(word: str) -> Callable[[ErrorDetails, dict[str, Any]], str]:
    return lambda details, _schema: f"must be {word}, not {_kind(details['input'])}"


def _out_of_range(bound: str, words: str) -> Callable[[ErrorDetails, dict[str, Any]], str]:
    return lambda details, _schema: (
        f"must be {words} {details['ctx'][bound]}, is {details['input']}"
    )


def _kind(value: object) -> str:
    names = {dict: "a mapping", list: "a list", str: "text", bool: "true or false"}
    return "nothing" if value is None else names.get(type(value), repr(value))


_SENTENCES: dict[str, Callable[[ErrorDetails, dict[str, Any]], str]] = {
    "value_error": _own_sentence,
    "missing": _missing,
    "extra_forbidden": _unknown,
    "string_type": _not_text,
    "enum": _not_a_choice,
    "literal_error": _not_a_choice,
    "too_short": _too_few,
    "too_long": _too_many,
    "string_too_long": _too_long,
    "string_too_short": _too_short,
    "int_type": _wrong_kind("a whole number"),
    "int_parsing": _wrong_kind("a whole number"),
    "int_from_float": _wrong_kind("a whole number"),
    "bool_type": _wrong_kind("true or false"),
    "bool_parsing": _wrong_kind("true or false"),
    "list_type": _wrong_kind("a list"),
    "dict_type": _wrong_kind("a mapping"),
    "model_type": _wrong_kind("a mapping"),
    "greater_than": _out_of_range("gt", "more than"),
    "greater_than_equal": _out_of_range("ge", "at least"),
    "less_than": _out_of_range("lt", "less than"),
    "less_than_equal": _out_of_range("le", "at most"),
}
