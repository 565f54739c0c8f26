"""A key that Axolotl does not know, with the nearest that it does."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from latticeforge_operator.axolotl.lines import Line, unsupported


def unknown_key(key: str, name: str, known: Iterable[str]) -> Line:
    """The line of a key that is in no registry: a misspelt one would silently do nothing."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    advice = f"did you mean {close[0]}?" if close else "remove it"
    return unsupported(key, f"no key of Axolotl; {advice}")
