"""A line of the report: what became of one key, why, and which fields follow from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Verdict(StrEnum):
    """What became of a key."""

    MAPPED = "mapped"  # a field of the StackedTraining says the same
    IMPLIED = "implied"  # LatticeForge decides it by itself; the sentence says how
    IGNORED = "ignored"  # not set, or without influence on the model
    UNSUPPORTED = "unsupported"  # the model would be another one; refused unless allowed


@dataclass(frozen=True)
class Line:
    """One key of a config.

    Attributes:
        key: As in the file; inside a list or mapping like `datasets[0].type`.
        verdict: What became of it.
        sentence: Why, and what it became.
        fields: Values that follow, by path: `hyperparameters.epochs` of the stage, or, where the
            first name is one of the spec's own, `base.model`.
        given: Whether the file sets the key; otherwise it is Axolotl's default that counts.
    """

    key: str
    verdict: Verdict
    sentence: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    given: bool = True


def mapped(key: str, sentence: str, fields: Mapping[str, Any]) -> Line:
    """The StackedTraining says the same."""
    return Line(key, Verdict.MAPPED, sentence, fields)


def implied(key: str, sentence: str) -> Line:
    """LatticeForge decides it."""
    return Line(key, Verdict.IMPLIED, sentence)


def ignored(key: str, sentence: str) -> Line:
    """It has no influence on the model."""
    return Line(key, Verdict.IGNORED, sentence)


def unsupported(key: str, sentence: str) -> Line:
    """The model would be another one."""
    return Line(key, Verdict.UNSUPPORTED, sentence)
