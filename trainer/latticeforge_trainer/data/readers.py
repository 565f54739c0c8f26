"""Rows of data files, one at a time, each with the place that a message about it names."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from latticeforge_trainer.data.files import DataFile
from latticeforge_trainer.data.values import kind_of
from latticeforge_trainer.errors import UserError

MAXIMUM_LINE = 64 << 20
"""Bytes; a longer line is a file of another kind, and would only fill the memory."""

_PARQUET_ROWS = 1024


class Row(NamedTuple):
    """One row: `where` it stands, such as `train.jsonl, line 3`, and its columns."""

    where: str
    value: dict[str, Any]


def read_rows(file: DataFile) -> Iterator[Row]:
    """The rows of a file, by its suffix.

    Raises:
        UserError: The file cannot be read or a row is malformed; says where and why.
    """
    reader = _READERS[file.path.suffix]
    try:
        yield from reader(file)
    except OSError as error:
        raise UserError(f"{file.name}: {error.strerror or error}") from error


def _read_lines(file: DataFile) -> Iterator[Row]:
    with file.path.open("rb") as stream:
        for number, line in enumerate(_lines(stream, file.name), start=1):
            if line.strip():
                where = f"{file.name}, line {number}"
                yield Row(where, _object(_parse(line, where), where))


def _lines(stream: BinaryIO, name: str) -> Iterator[bytes]:
    number = 0
    while line := stream.readline(MAXIMUM_LINE):
        number += 1
        if len(line) == MAXIMUM_LINE and not line.endswith(b"\n"):
            raise UserError(
                f"{name}, line {number}: longer than {MAXIMUM_LINE >> 20} MiB; "
                "a JSONL file has one sample per line"
            )
        yield line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line


def _parse(content: bytes, where: str) -> Any:
    try:
        return json.loads(content.decode())
    except UnicodeDecodeError as error:
        byte = content[error.start]
        raise UserError(f"{where}: not UTF-8 (byte 0x{byte:02x} at {error.start})") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not valid JSON: {error.msg} at column {error.colno}") from error
    except RecursionError as error:
        raise UserError(f"{where}: nested too deeply") from error


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{where}: expected an object with columns, got {kind_of(value)}")
    return value


def _read_json(file: DataFile) -> Iterator[Row]:
    """A list of objects, or an object with one such list, or JSON Lines under another name."""
    if _is_lines(file.path):
        yield from _read_lines(file)
        return
    value = _parse(file.path.read_bytes().removeprefix(b"\xef\xbb\xbf"), file.name)
    if isinstance(value, dict):
        lists = [column for column in value.values() if isinstance(column, list)]
        value = lists[0] if len(lists) == 1 and lists[0] else value
    if not isinstance(value, list):
        raise UserError(f"{file.name}: expected a list of samples, got one object")
    for number, item in enumerate(value, start=1):
        where = f"{file.name}, item {number}"
        yield Row(where, _object(item, where))


def _is_lines(path: Path) -> bool:
    """Whether the first line is a whole object and something follows it."""
    with path.open("rb") as stream:
        first, rest = stream.readline(MAXIMUM_LINE), stream.read(1)
    try:
        return bool(rest) and isinstance(json.loads(first), dict)
    except ValueError:
        return False


def _read_parquet(file: DataFile) -> Iterator[Row]:
    import pyarrow as pa  # noqa: PLC0415  (0.2 s that other formats need not pay)
    from pyarrow import parquet  # noqa: PLC0415  (as above)

    number = 0
    try:
        with parquet.ParquetFile(file.path) as table:
            for batch in table.iter_batches(_PARQUET_ROWS):
                for value in batch.to_pylist():
                    number += 1
                    yield Row(f"{file.name}, row {number}", value)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        problem = str(error).splitlines()[0]
        raise UserError(f"{file.name}: not readable as Parquet: {problem}") from error


_READERS: dict[str, Callable[[DataFile], Iterator[Row]]] = {
    ".jsonl": _read_lines,
    ".ndjson": _read_lines,
    ".json": _read_json,
    ".parquet": _read_parquet,
}
