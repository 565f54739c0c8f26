"""The part of Kubernetes' JSONPath that printer columns use.

Fields (`.status.phase`, `.metadata.labels['a.b/c']`), indexes (`[0]`, `[-1]`), wildcards (`[*]`)
and filters on equality (`[?(@.type=="Ready")]`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

_STEP = re.compile(
    r"""\.(?P<field>[\w\-]+(?:\\\.[\w\-/]+)*)
      | \[(?P<index>-?\d+)\]
      | \[(?P<quote>['"])(?P<quoted>.+?)(?P=quote)\]
      | (?P<all>\[\*\])
      | \[\?\(\s*@(?P<path>[.\w]+)\s*==\s*["'](?P<value>[^"']*)["']\s*\)\]""",
    re.VERBOSE,
)
_Step = Callable[[Any], Iterator[Any]]


def find(path: str, obj: Any) -> list[Any]:
    """Returns the values at a path; none when the path leads nowhere or cannot be read."""
    values = [obj]
    for step in _steps(path):
        values = [found for value in values for found in step(value)]
    return values


@lru_cache(maxsize=512)
def _steps(path: str) -> tuple[_Step, ...]:
    path = path.strip().removeprefix("{").removesuffix("}")
    if path and path[0] not in ".[":
        path = f".{path}"
    steps: list[_Step] = []
    position = 0
    while position < len(path):
        match = _STEP.match(path, position)
        if match is None:
            return (lambda _: iter(()),)
        steps.append(_step(match))
        position = match.end()
    return tuple(steps)


def _step(match: re.Match[str]) -> _Step:
    if match["index"]:
        index = int(match["index"])
        return lambda value: iter(_at(value, index))
    if match["all"]:
        return lambda value: iter(_all(value))
    if match["path"]:
        path, wanted = match["path"], match["value"]
        return lambda value: (item for item in _all(value) if find(path, item) == [wanted])
    field = (match["field"] or match["quoted"]).replace("\\.", ".")
    return lambda value: iter(
        [value[field]] if isinstance(value, dict) and value.get(field) is not None else []
    )


def _at(value: Any, index: int) -> list[Any]:
    inside = isinstance(value, list) and -len(value) <= index < len(value)
    return [value[index]] if inside else []


def _all(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []
