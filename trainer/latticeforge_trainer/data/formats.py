"""Samples: what a row means, decided by the columns of its file's first row.

| columns | sample | loss on |
|---|---|---|
| `messages` (role, content) | chat | the assistant's turns |
| `conversations` (from, value) | chat | the assistant's turns |
| `prompt`, `completion` | completion | the completion and its end |
| `instruction`, (`input`,) `output` | completion | the output and its end |
| `question`, `answer` | completion | the answer and its end |
| `text` | text | everything |

Instruction, input, output, and question and answer, stand on lines of their own. A chat row may
carry `tools`, the functions that its template is to describe.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from latticeforge_trainer.data.files import DataFile
from latticeforge_trainer.data.readers import Row, read_rows
from latticeforge_trainer.errors import UserError

ROLES = ("system", "developer", "user", "assistant", "tool")

_SHAREGPT = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "observation": "tool",
}


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation; messages are as chat templates take them."""

    messages: list[dict[str, Any]]
    tools: list[Any] | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """A prompt and how it goes on."""

    prompt: str
    completion: str


@dataclass(frozen=True, slots=True)
class Text:
    """A text to learn as it is."""

    text: str


Sample = Chat | Completion | Text


class Located(NamedTuple):
    """A sample and the place that a message about it names."""

    where: str
    sample: Sample


class Format(NamedTuple):
    """What columns a format needs, and what its rows mean."""

    name: str
    columns: tuple[str, ...]
    parse: Callable[[Row], Sample]


def read_samples(file: DataFile) -> Iterator[Located]:
    """The samples of a file.

    Raises:
        UserError: The file or a row is malformed or of no known format; says where and why.
    """
    known: Format | None = None
    for row in read_rows(file):
        if known is None:
            known = detect(row)
        missing = [column for column in known.columns if row.value.get(column) is None]
        if missing:
            raise UserError(
                f"{row.where}: no '{missing[0]}', which every row of a file of "
                f"{known.name} samples has"
            )
        yield Located(row.where, known.parse(row))


def detect(row: Row) -> Format:
    """The format of a file that begins with this row.

    Raises:
        UserError: Its columns are of no known format.
    """
    for known in FORMATS:
        if all(column in row.value for column in known.columns):
            return known
    columns = ", ".join(f"'{column}'" for column in row.value) or "none"
    expected = ", or ".join(" + ".join(known.columns) for known in FORMATS)
    raise UserError(f"{row.where}: unknown format; expected columns {expected}; got {columns}")


def _messages(row: Row) -> Chat:
    turns = _turns(row, "messages")
    messages = [
        _message(turn, f"{row.where}, message {number}")
        for number, turn in enumerate(turns, start=1)
    ]
    tools = row.value.get("tools")
    if tools is not None and not isinstance(tools, list):
        raise UserError(f"{row.where}: 'tools' must be a list, not {_kind(tools)}")
    return Chat(messages, tools or None)


def _turns(row: Row, column: str) -> list[dict[str, Any]]:
    turns = row.value[column]
    if not isinstance(turns, list):
        raise UserError(f"{row.where}: '{column}' must be a list, not {_kind(turns)}")
    if not turns:
        raise UserError(f"{row.where}: '{column}' is empty")
    for number, turn in enumerate(turns, start=1):
        if not isinstance(turn, dict):
            raise UserError(f"{row.where}, message {number}: must be an object, not {_kind(turn)}")
    return turns


def _message(turn: dict[str, Any], where: str) -> dict[str, Any]:
    role = turn.get("role")
    if role not in ROLES:
        raise UserError(f"{where}: 'role' must be one of {', '.join(ROLES)}, not {role!r}")
    # Columns that other rows of a Parquet file use are there as null.
    message = {key: value for key, value in turn.items() if value is not None}
    if not (message.get("tool_calls") and "content" not in message):
        message["content"] = _content(turn.get("content"), where)
    return message


def _content(content: Any, where: str) -> str:
    if not isinstance(content, list):
        return _text(content, "content", where)
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text":
            raise UserError(f"{where}: only text content can be trained on")
    return "".join(_text(part.get("text"), "text", where) for part in content)


def _conversations(row: Row) -> Chat:
    messages = []
    for number, turn in enumerate(_turns(row, "conversations"), start=1):
        where = f"{row.where}, message {number}"
        speaker = turn.get("from")
        role = _SHAREGPT.get(speaker, speaker) if isinstance(speaker, str) else None
        if role not in ROLES:
            known = ", ".join((*_SHAREGPT, *ROLES))
            raise UserError(f"{where}: 'from' must be one of {known}, not {speaker!r}")
        messages.append({"role": role, "content": _text(turn.get("value"), "value", where)})
    return Chat(messages)


def _completion(row: Row) -> Completion:
    return Completion(_column(row, "prompt"), _column(row, "completion"))


def _instruction(row: Row) -> Completion:
    parts = [_column(row, "instruction")]
    if row.value.get("input"):
        parts.append(_column(row, "input"))
    return Completion("\n".join(parts) + "\n", _column(row, "output"))


def _question(row: Row) -> Completion:
    return Completion(_column(row, "question") + "\n", _column(row, "answer"))


def _plain(row: Row) -> Text:
    return Text(_column(row, "text"))


def _column(row: Row, column: str) -> str:
    return _text(row.value[column], column, row.where)


def _text(value: Any, column: str, where: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"{where}: '{column}' must be text, not {_kind(value)}")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"{where}: '{column}' holds half a character (a lone surrogate, "
                f"\\u{ord(value[error.start]):04x}) and cannot be written as UTF-8"
            ) from error
    return value


def _kind(value: Any) -> str:
    kinds = {list: "a list", dict: "an object", str: "text", bool: "a boolean"}
    return "null" if value is None else kinds.get(type(value), "a number")


FORMATS = (
    Format("chat", ("messages",), _messages),
    Format("chat", ("conversations",), _conversations),
    Format("prompt and completion", ("prompt", "completion"), _completion),
    Format("instruction", ("instruction", "output"), _instruction),
    Format("question and answer", ("question", "answer"), _question),
    Format("text", ("text",), _plain),
)
"""In the order of preference: a chat with an extra `text` column is a chat."""
