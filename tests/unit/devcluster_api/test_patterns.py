"""Patterns of schemas mean what they mean to Kubernetes."""

from __future__ import annotations

import re

import pytest

from latticeforge_operator.devcluster.patterns import compiled


@pytest.mark.parametrize(
    ("pattern", "text", "matches"),
    [
        ("^[a-z]+$", "abc", True),
        ("^[a-z]+$", "abc\n", False),
        (r"^a\$", "a$b", True),
        ("^(?i)(abort|warn)?$", "WARN", True),
        ("^(?i)(abort|warn)?$", "WARNING", False),
        ("^(abort|warn)?$", "WARN", False),
    ],
)
def test_matches(pattern: str, text: str, *, matches: bool) -> None:
    assert bool(compiled(pattern).search(text)) is matches


def test_nonsense_is_an_error() -> None:
    with pytest.raises(re.error):
        compiled("(")
