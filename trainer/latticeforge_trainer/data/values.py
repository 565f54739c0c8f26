"""Checks of values in rows; each refusal is one sentence that names the place."""

from __future__ import annotations

from typing import Any

from latticeforge_trainer.errors import UserError


def text_of(value: Any, column: str, where: str) -> str:
    """A value that must be text, and must be possible to write as UTF-8.

    Raises:
        UserError: It is not.
    """
    if not isinstance(value, str):
        raise UserError(f"{where}: '{column}' must be text, not {kind_of(value)}")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"{where}: '{column}' holds half a character (a lone surrogate, "
                f"\\u{ord(value[error.start]):04x}) and cannot be written as UTF-8"
            ) from error
    return value


def objects_of(value: Any, column: str, item: str, where: str) -> list[dict[str, Any]]:
    """A value that must be a list of objects, at least one; messages call one an `item`.

    Raises:
        UserError: It is not.
    """
    if not isinstance(value, list):
        raise UserError(f"{where}: '{column}' must be a list, not {kind_of(value)}")
    if not value:
        raise UserError(f"{where}: '{column}' is empty")
    for number, entry in enumerate(value, start=1):
        if not isinstance(entry, dict):
            raise UserError(f"{where}, {item} {number}: must be an object, not {kind_of(entry)}")
    return value


def kind_of(value: Any) -> str:
    """What a JSON value is, in words."""
    kinds = {list: "a list", dict: "an object", str: "text", bool: "a boolean"}
    return "null" if value is None else kinds.get(type(value), "a number")
