"""Rows that hold conversations: whatever they call roles and keys, as chat templates take them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from latticeforge_trainer.data.readers import Row
from latticeforge_trainer.data.samples import Chat
from latticeforge_trainer.data.values import kind_of, objects_of, text_of
from latticeforge_trainer.errors import UserError

ROLES = ("system", "developer", "user", "assistant", "tool")

SHAREGPT = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "observation": "tool",
}
"""What data sets in the manner of ShareGPT call the roles."""


@dataclass(frozen=True)
class ChatReader:
    """Makes conversations of rows.

    Attributes:
        columns: As `contract.COLUMNS` of a chat; a row may lack `tools` and `system`.
        aliases: Other names of the roles.
        plain: Whether a message is its role and content alone; else its other keys stay.
        drop_system: Whether the system turn that a conversation opens with is left out.
    """

    columns: Mapping[str, str]
    aliases: Mapping[str, str]
    plain: bool = False
    drop_system: bool = False

    def __call__(self, row: Row) -> Chat:
        """The conversation of a row.

        Raises:
            UserError: It is malformed; says where and why.
        """
        turns = objects_of(
            row.value[self.columns["messages"]], self.columns["messages"], "message", row.where
        )
        messages = [
            self._message(turn, f"{row.where}, message {number}")
            for number, turn in enumerate(turns, start=1)
        ]
        messages = self._system(row, messages) + messages
        if self.drop_system and messages[0]["role"] == "system":
            del messages[0]
        return Chat(messages, self._tools(row))

    def _system(self, row: Row, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        column = self.columns.get("system")
        if column is None or not row.value.get(column) or messages[0]["role"] == "system":
            return []
        return [{"role": "system", "content": text_of(row.value[column], column, row.where)}]

    def _tools(self, row: Row) -> list[Any] | None:
        column = self.columns.get("tools")
        tools = row.value.get(column) if column else None
        if tools is not None and not isinstance(tools, list):
            raise UserError(f"{row.where}: '{column}' must be a list, not {kind_of(tools)}")
        return tools or None

    def _message(self, turn: dict[str, Any], where: str) -> dict[str, Any]:
        role_key, content_key = self.columns["role"], self.columns["content"]
        # Columns that other rows of a Parquet file use are there as null.
        rest = {
            key: value
            for key, value in turn.items()
            if not self.plain and value is not None and key not in {role_key, content_key}
        }
        message = {"role": self._role(turn, where), **rest}
        if not (rest.get("tool_calls") and turn.get(content_key) is None):
            message["content"] = _content(turn.get(content_key), content_key, where)
        return message

    def _role(self, turn: dict[str, Any], where: str) -> str:
        key = self.columns["role"]
        name = turn.get(key)
        role = self.aliases.get(name, name) if isinstance(name, str) else None
        if role not in ROLES:
            known = ", ".join((*self.aliases, *ROLES))
            raise UserError(f"{where}: '{key}' must be one of {known}, not {name!r}")
        return role


def _content(content: Any, key: str, where: str) -> str:
    if not isinstance(content, list):
        return text_of(content, key, where)
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text":
            raise UserError(f"{where}: only text content can be trained on")
    return "".join(text_of(part.get("text"), "text", where) for part in content)
