"""A named share of memory or disk, as `latticeforge plan --explain` shows it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True)
class Term:
    """A part of a prediction."""

    name: str
    bytes: int
    why: str
    """The formula in words, with its numbers."""


def total(terms: Iterable[Term]) -> int:
    """Bytes of all terms."""
    return sum(term.bytes for term in terms)


def present(*terms: Term) -> tuple[Term, ...]:
    """The terms that take anything."""
    return tuple(term for term in terms if term.bytes)
