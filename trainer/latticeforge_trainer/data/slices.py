"""Slices of a split, written as in `datasets`: `train[:20%]`, `train[100:200]`, `train[-10%:]`."""

from __future__ import annotations

import re
from typing import NamedTuple

from latticeforge_trainer.errors import UserError

_SLICED = re.compile(r"(?P<split>[^\[\]]+)\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\]")


class RowSlice(NamedTuple):
    """Some of a source's rows; a bound is a number of rows or per cent of them, or left out.

    A negative one counts from the end.
    """

    start: str | None = None
    stop: str | None = None

    def bounds(self, rows: int) -> tuple[int, int]:
        """The first row, and one after the last, of so many."""
        start, stop = _row(self.start, rows, 0), _row(self.stop, rows, rows)
        return start, max(start, stop)


ALL = RowSlice()


def parse_split(text: str, source: str) -> tuple[str, RowSlice]:
    """The name of a split, and which rows of it.

    Raises:
        UserError: The slice is malformed.
    """
    if "[" not in text:
        return text, ALL
    found = _SLICED.fullmatch(text)
    if found is None:
        raise UserError(
            f"{source}: split '{text}' is no slice; write it like train[:20%] or train[100:200]"
        )
    return found["split"], RowSlice(found["start"], found["stop"])


def _row(bound: str | None, rows: int, default: int) -> int:
    if bound is None:
        return default
    number = int(bound.removesuffix("%"))
    row = round(rows * number / 100) if bound.endswith("%") else number
    return min(max(row + rows if number < 0 else row, 0), rows)
