"""Label and field selectors: parsed once, matched many times.

Grammar: `a=b`, `a==b`, `a!=b`, `a in (b,c)`, `a notin (b)`, `a`, `!a`, comma-separated;
field selectors know only the first three.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from latticeforge_operator.devcluster.errors import ApiError

_KEY = r"[A-Za-z0-9][\w./-]*"
_SET = re.compile(rf"({_KEY})\s+(in|notin)\s*\(([^)]*)\)")
_EQUALITY = re.compile(rf"({_KEY})\s*(==|=|!=)\s*([\w.-]*)")
_EXISTS = re.compile(rf"(!?)\s*({_KEY})")
_COMMA_OUTSIDE_PARENTHESES = re.compile(r",(?![^(]*\))")
_FIELD = re.compile(r"([\w.\-\[\]]+?)(==|!=|=)(.*)")


@dataclass(frozen=True, slots=True)
class _Requirement:
    """`key` must be one of (or none of) `values`; without values it must exist (or not)."""

    key: str
    values: frozenset[str] | None
    negated: bool

    def matches(self, labels: Mapping[str, str]) -> bool:
        value = labels.get(self.key)
        found = value is not None if self.values is None else value in self.values
        return found != self.negated


@dataclass(frozen=True, slots=True)
class LabelSelector:
    """A conjunction of requirements on labels."""

    requirements: tuple[_Requirement, ...] = ()

    @classmethod
    def parse(cls, text: str) -> LabelSelector:
        """Parses a label selector; raises a 400 ApiError for what it cannot read."""
        terms = (term.strip() for term in _COMMA_OUTSIDE_PARENTHESES.split(text))
        return cls(tuple(_requirement(term) for term in terms if term))

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether an object with these labels is selected."""
        return all(requirement.matches(labels) for requirement in self.requirements)

    @property
    def exact(self) -> tuple[tuple[str, str], ...]:
        """The `key=value` pairs that every selected object carries; an index can answer them."""
        return tuple(
            (requirement.key, next(iter(requirement.values)))
            for requirement in self.requirements
            if requirement.values and len(requirement.values) == 1 and not requirement.negated
        )


def _requirement(term: str) -> _Requirement:
    if match := _SET.fullmatch(term):
        values = frozenset(value.strip() for value in match[3].split(","))
        return _Requirement(match[1], values, match[2] == "notin")
    if match := _EQUALITY.fullmatch(term):
        return _Requirement(match[1], frozenset({match[3]}), match[2] == "!=")
    if match := _EXISTS.fullmatch(term):
        return _Requirement(match[2], None, match[1] == "!")
    raise ApiError(400, f"unable to parse requirement: {term!r} is no label requirement")


@dataclass(frozen=True, slots=True)
class FieldSelector:
    """A conjunction of `path=value` and `path!=value` on an object's fields."""

    terms: tuple[tuple[tuple[str, ...], str, bool], ...] = ()

    @classmethod
    def parse(cls, text: str, selectable: frozenset[str]) -> FieldSelector:
        """Parses a field selector.

        Raises:
            ApiError: 400, a term cannot be read or names a field that is not in `selectable`
                and is not the object's name or namespace.
        """
        terms = []
        for term in filter(None, text.split(",")):
            match = _FIELD.fullmatch(term)
            if not match:
                raise ApiError(400, f"invalid selector: {text!r}; can't understand {term!r}")
            path, operator, value = match.groups()
            if path not in selectable and path not in {"metadata.name", "metadata.namespace"}:
                raise ApiError(400, f"field label not supported: {path}")
            terms.append((tuple(path.split(".")), value, operator == "!="))
        return cls(tuple(terms))

    def matches(self, obj: Mapping[str, Any]) -> bool:
        """Whether the object is selected; an absent field counts as an empty string."""
        return all((_lookup(obj, path) == value) != negated for path, value, negated in self.terms)


def _lookup(obj: Mapping[str, Any], path: tuple[str, ...]) -> str:
    current: Any = obj
    for name in path:
        current = current.get(name) if isinstance(current, Mapping) else None
    if isinstance(current, bool):
        return str(current).lower()
    return "" if current is None else str(current)
