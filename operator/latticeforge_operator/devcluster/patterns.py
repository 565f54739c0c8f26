"""Regular expressions of schemas: Kubernetes reads them as RE2 does, Python as its own."""

from __future__ import annotations

import re
from functools import lru_cache

_FLAGS_BEHIND_ANCHOR = re.compile(r"^\^(\(\?[ims]+\))")
_END = re.compile(r"(?<!\\)\$$")


@lru_cache(maxsize=1024)
def compiled(pattern: str) -> re.Pattern[str]:
    """A pattern as RE2 means it.

    Raises:
        re.error: It is no regular expression.
    """
    # Python wants flags at the very start, and reads $ as before a last newline too.
    return re.compile(_END.sub(r"\\Z", _FLAGS_BEHIND_ANCHOR.sub(r"\1^", pattern)))
