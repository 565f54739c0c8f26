"""Formats: what the rows of a data set mean.

Which one a source names, or else what the columns of a file's first row show:

| format | columns | sample | loss on |
|---|---|---|---|
| Chat | `messages` (role, content) | chat | the assistant's turns |
| | `conversations` (from, value) | chat | the assistant's turns |
| Completion | `prompt`, `completion` | completion | the completion and its end |
| | `instruction`, (`input`,) `output` | completion | the output and its end |
| | `question`, `answer` | completion | the answer and its end |
| Text | `text` | text | everything |
| Alpaca | `instruction`, (`input`,) `output` | segments | the output and its end |
| Segments | `segments` (label, text) | segments | those with a true label |

Instruction, input, output, and question and answer, stand on lines of their own; Alpaca rows, which
must be named as such, are put into a prompt. A chat row may carry `tools`, the functions that its
template is to describe. A source that names its format may rename the columns.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from latticeforge_trainer.contract import COLUMNS, DataFormat, DataSource, PromptTemplate
from latticeforge_trainer.data.chats import SHAREGPT, ChatReader
from latticeforge_trainer.data.files import DataFile
from latticeforge_trainer.data.readers import Row, read_rows
from latticeforge_trainer.data.samples import (
    Completion,
    Learning,
    Located,
    Sample,
    Segment,
    Segments,
    Text,
)
from latticeforge_trainer.data.values import objects_of, text_of
from latticeforge_trainer.errors import UserError

Columns = Mapping[str, str]
Parser = Callable[[Row], Sample]

OPTIONAL = frozenset({"tools", "system", "input", "role", "content"})
"""Columns that a row may lack, and keys of messages."""

ALPACA = PromptTemplate(
    with_input=(
        "Below is an instruction that describes a task, paired with an input that provides further "
        "context. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
    ),
    without_input=(
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n\n### Instruction:\n{instruction}\n\n### Response:\n"
    ),
)
"""The prompt of Stanford Alpaca, https://github.com/tatsu-lab/stanford_alpaca (2023)."""

_PLACE = re.compile(r"\{(instruction|input|system)\}")


class Format(NamedTuple):
    """What columns a format needs, and what its rows mean."""

    name: str
    columns: tuple[str, ...]
    parse: Parser


def read_samples(file: DataFile, spec: DataSource) -> Iterator[Located]:
    """The samples of a file.

    Raises:
        UserError: The file or a row is malformed or of no known format; says where and why.
    """
    candidates = formats_of(spec)
    known: Format | None = None
    for row in read_rows(file):
        if known is None:
            known = detect(row, candidates)
        missing = [column for column in known.columns if row.value.get(column) is None]
        if missing:
            raise UserError(
                f"{row.where}: no '{missing[0]}', which every row of a file of "
                f"{known.name} samples has"
            )
        yield Located(row.where, known.parse(row))


def formats_of(spec: DataSource) -> tuple[Format, ...]:
    """The format that a source names, or those that its columns choose among."""
    if spec.format is None:
        return _shown_by_columns(spec)
    columns = COLUMNS[spec.format] | (spec.fields or {})
    needed = tuple(column for field, column in columns.items() if field not in OPTIONAL)
    return (Format(spec.format, needed, _PARSERS[spec.format](columns, spec)),)


def detect(row: Row, candidates: tuple[Format, ...]) -> Format:
    """The format of a file that begins with this row.

    Raises:
        UserError: Its columns are of none of them.
    """
    for known in candidates:
        if all(column in row.value for column in known.columns):
            return known
    columns = ", ".join(f"'{column}'" for column in row.value) or "none"
    expected = ", or ".join(" + ".join(known.columns) for known in candidates)
    raise UserError(f"{row.where}: unknown format; expected columns {expected}; got {columns}")


def _shown_by_columns(spec: DataSource) -> tuple[Format, ...]:
    """In the order of preference: a chat with an extra `text` column is a chat."""
    named = _aliases(spec)
    messages = {name: COLUMNS[DataFormat.CHAT][name] for name in ("messages", "role", "content")}
    conversations = {"messages": "conversations", "role": "from", "content": "value"}
    return (
        Format("chat", ("messages",), ChatReader(messages | {"tools": "tools"}, named)),
        Format("chat", ("conversations",), ChatReader(conversations, SHAREGPT | named, plain=True)),
        Format("prompt and completion", ("prompt", "completion"), _pair("prompt", "completion")),
        Format("instruction", ("instruction", "output"), _instruction),
        Format("question and answer", ("question", "answer"), _pair("question", "answer", "\n")),
        Format("text", ("text",), _text(COLUMNS[DataFormat.TEXT], spec)),
    )


def _aliases(spec: DataSource) -> dict[str, str]:
    return {name: role for role, names in (spec.roles or {}).items() for name in names}


def _chat(columns: Columns, spec: DataSource) -> Parser:
    # A system prompt in a column of its own is taken only where the source names the column.
    named = {"tools", *(spec.fields or {})}
    wanted = {field: c for field, c in columns.items() if field != "system" or field in named}
    return ChatReader(wanted, SHAREGPT | _aliases(spec), drop_system=bool(spec.drop_system))


def _completion(columns: Columns, spec: DataSource) -> Parser:
    del spec
    return _pair(columns["prompt"], columns["completion"])


def _pair(prompt: str, completion: str, between: str = "") -> Parser:
    return lambda row: Completion(_column(row, prompt) + between, _column(row, completion))


def _instruction(row: Row) -> Completion:
    parts = [_column(row, "instruction")]
    if row.value.get("input"):
        parts.append(_column(row, "input"))
    return Completion("\n".join(parts) + "\n", _column(row, "output"))


def _alpaca(columns: Columns, spec: DataSource) -> Parser:
    template, learning = spec.prompt_template or ALPACA, Learning.of(spec)

    def parse(row: Row) -> Segments:
        values = {
            field: _column(row, column) if row.value.get(column) else ""
            for field, column in columns.items()
        }
        form = template.with_input if values["input"] else template.without_input
        prompt = _PLACE.sub(lambda place: values[place[1]], form)
        return Segments(
            (
                Segment(prompt, "user" in learning.roles),
                Segment(values["output"], "assistant" in learning.roles),
            ),
            whole=True,
        )

    return parse


def _text(columns: Columns, spec: DataSource) -> Parser:
    del spec
    return lambda row: Text(_column(row, columns["text"]))


def _segments(columns: Columns, spec: DataSource) -> Parser:
    column, everything = columns["segments"], "user" in Learning.of(spec).roles

    def parse(row: Row) -> Segments:
        parts = []
        for number, part in enumerate(
            objects_of(row.value[column], column, "segment", row.where), start=1
        ):
            where = f"{row.where}, segment {number}"
            label = part.get("label")
            if not isinstance(label, bool):
                raise UserError(f"{where}: 'label' must be true or false, not {label!r}")
            parts.append(Segment(text_of(part.get("text"), "text", where), label or everything))
        return Segments(tuple(parts), whole=False)

    return parse


def _column(row: Row, column: str) -> str:
    return text_of(row.value[column], column, row.where)


_PARSERS: dict[DataFormat, Callable[[Columns, DataSource], Parser]] = {
    DataFormat.CHAT: _chat,
    DataFormat.COMPLETION: _completion,
    DataFormat.ALPACA: _alpaca,
    DataFormat.TEXT: _text,
    DataFormat.SEGMENTS: _segments,
}
