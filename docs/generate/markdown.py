"""Pieces of Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

NOTE = "<!-- Generated from the code; `make docs` writes it anew. -->\n"
NOTHING = "–"


def page(title: str, *parts: str) -> str:
    """A page of its paragraphs, tables and sections."""
    return (
        "\n\n".join([f"# {title}\n\n{NOTE}".rstrip(), *(p.strip("\n") for p in parts if p)]) + "\n"
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; a bar within a cell does not end it."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|") or NOTHING


def code(text: object) -> str:
    """Text between backticks; two where it holds one."""
    shown = str(text)
    return f"`` {shown} ``" if "`" in shown else f"`{shown}`"


def link(title: str, shown: str) -> str:
    """A link to the section of a title."""
    anchor = re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
    return f"[{shown}](#{anchor})"


def sentence(text: str) -> str:
    """With a capital and a full stop."""
    text = text.strip()
    if not text:
        return ""
    return text[0].upper() + text[1:] + ("" if text[-1] in ".:?!" else ".")
