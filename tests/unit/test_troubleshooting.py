"""docs/troubleshooting.md quotes every sentence that stops a user, as the code has it."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import pytest
from markdown_it import MarkdownIt
from tests.fixtures.documents import ROOT
from tests.fixtures.sentences import normal, raised, told_by, words, written

PAGE = ROOT / "docs" / "troubleshooting.md"
OPERATOR = ROOT / "operator" / "latticeforge_operator"
TRAINER = ROOT / "trainer" / "latticeforge_trainer"
CORE = OPERATOR / "core"

STEP_ERRORS = {"UserError", "OutOfMemory", "NumericalError", "NetworkError", "Interrupted"}
WORDS = {
    "why_untrainable",
    "why_unmergeable",
    "conflict",
    "_why_unknown",
    "_contradiction",
    "_not_finite",
    "_meaning",
    "_answer",
    "_refusal",
}
"""Functions of the trainer that make sentences for others to raise."""

DECISIONS = [
    *(CORE / name for name in ("planner.py", "reconcile.py", "settle.py", "walk.py")),
    *(CORE / "planning" / name for name in ("options.py", "placement.py", "stack.py")),
    *(CORE / "policies").glob("*.py"),
]
"""Modules of the operator whose sentences become `status.message`, conditions and events."""

REFUSALS = {"unfit", "misfit", "_host", "too_large_to_evaluate", "too_large_for_volume"}
REFUSALS |= {"too_slow", "too_dear"}
"""The planner's words for what does not fit; its others describe what does."""

NO_SENTENCES = {
    "latticeforge.dev/approve",
    "layers' inputs in host memory",
    "of a node's … GPUs",
    "GPU… of pool",
    "starts again (attempt …)",
    "passed its gates",
    "was already done",
    "the spec is valid",
    "nothing fits",
    "is not set",
}
"""Parts of other sentences, and what nobody has to do anything about."""


@cache
def quoted() -> list[str]:
    """What stands as code in the first column of the page's tables."""
    tokens = MarkdownIt("commonmark").enable("table").parse(PAGE.read_text())
    cells = [
        inline
        for row, cell, inline in zip(tokens, tokens[1:], tokens[2:], strict=False)
        if (row.type, cell.type) == ("tr_open", "td_open")
    ]
    return [
        normal(child.content)
        for cell in cells
        for child in cell.children or ()
        if child.type == "code_inline"
    ]


@cache
def said() -> frozenset[str]:
    """Every text of both packages."""
    return frozenset(written(OPERATOR) | written(TRAINER))


def refusals() -> set[str]:
    """What the page must explain."""
    found = raised(TRAINER, STEP_ERRORS) | told_by(TRAINER, WORDS)
    found |= raised(OPERATOR / "cli", {"CommandError"}) | raised(OPERATOR / "api", {"ValueError"})
    found |= told_by(CORE / "planning" / "words.py", REFUSALS)
    for module in DECISIONS:
        found |= written(module)
    remedies = (ROOT / "docs" / "reference" / "exit-codes.md").read_text()
    return {
        text
        for text in found - NO_SENTENCES
        if words(text) > 2 and " " in text and text not in remedies
    }


@pytest.mark.parametrize("sentence", sorted(refusals()))
def test_what_stops_a_user_is_explained(sentence: str) -> None:
    assert sentence in quoted()


def test_what_is_quoted_is_said() -> None:
    assert [quote for quote in quoted() if quote not in said()] == []


def test_nothing_is_explained_twice() -> None:
    assert [a for a, b in pairwise(sorted(quoted())) if a == b] == []
