"""Chats as text by a chat template, and where in the text each turn that matters stands.

An assistant's turn begins where the prompt before it ends and ends where the text up to it ends;
any other turn's content is found by rendering another in its place. Both must agree with the whole
text, or the template cannot be trained on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from latticeforge_trainer.data.samples import Chat, Learning
from latticeforge_trainer.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

STAND_IN = "[[content]]"


class Turn(NamedTuple):
    """A turn's characters, from its content to the text after its end."""

    start: int
    end: int
    learned: bool
    """Whether the content is learned."""
    end_learned: bool
    """Whether the token that ends it is."""


class Conversation(NamedTuple):
    """A rendered chat."""

    text: str
    turns: list[Turn]
    answered: bool
    """Whether an assistant's turn ends the text."""


class ChatRenderer:
    """Renders chats by a tokenizer's template.

    Args:
        tokenizer: With a chat template, or nothing can be rendered.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer

    @property
    def template(self) -> str | None:
        """The template's text."""
        template: Any = self._tokenizer.chat_template
        return template.get("default") if isinstance(template, dict) else template

    def require_template(self, source: str) -> None:
        """Check that chats can be rendered.

        Raises:
            UserError: The tokenizer has no chat template.
        """
        if not self.template:
            raise UserError(
                f"{source} holds chats, but the base model's tokenizer has no chat template: set "
                "base.chatTemplate, use an instruction-tuned base, or data with prompt and "
                "completion, or text"
            )

    def render(self, chat: Chat, learning: Learning, where: str) -> Conversation:
        """The text of a chat, and the turns of which something is learned.

        Raises:
            UserError: The template is missing, fails, or contradicts itself.
        """
        self.require_template(where)
        messages = chat.messages
        whole = self._apply(chat, len(messages), where)
        turns, answered = [], False
        for number, message in enumerate(messages):
            last = number + 1 == len(messages)
            # Nothing asked for an assistant's first turn.
            asked = message["role"] == "assistant" and number > 0
            learned = message["role"] in learning.roles and (
                asked or message["role"] != "assistant"
            )
            end_learned = {"Turn": learned, "All": True, "Last": last}.get(learning.end, False)
            if not (learned or end_learned):
                continue
            after = whole if last else self._apply(chat, number + 1, where)
            find = self._answer if asked else self._content
            start = find(chat, number, after, where)
            if start is None or not whole.startswith(after):
                raise UserError(_contradiction(where, number))
            turns.append(Turn(start, len(after), learned, end_learned))
            answered |= asked and len(after) == len(whole)
        return Conversation(whole, turns, answered)

    def call(self, chat: Chat, count: int, where: str, **options: Any) -> Any:
        """What the template makes of the first `count` messages.

        Raises:
            UserError: It fails.
        """
        import jinja2  # noqa: PLC0415  (transformers brings it; text data does without)

        try:
            return self._tokenizer.apply_chat_template(
                chat.messages[:count],
                tools=chat.tools,
                **options,
            )
        except (jinja2.TemplateError, TypeError, ValueError, KeyError) as error:
            raise UserError(f"{where}: the chat template cannot render it: {error}") from error

    def _apply(self, chat: Chat, count: int, where: str, *, prompt: bool = False) -> str:
        """The text of the first `count` messages."""
        return str(self.call(chat, count, where, tokenize=False, add_generation_prompt=prompt))

    def _answer(self, chat: Chat, number: int, after: str, where: str) -> int | None:
        """Where an assistant's turn begins in the text up to it; None: nowhere."""
        before = self._apply(chat, number, where, prompt=True)
        return len(before) if after.startswith(before) else None

    def _content(self, chat: Chat, number: int, after: str, where: str) -> int | None:
        """Where the content of any turn begins in the text up to it; None: nowhere."""
        changed = chat.messages[number] | {"content": STAND_IN}
        other = Chat([*chat.messages[:number], changed], chat.tools)
        head, found, tail = self._apply(other, number + 1, where).rpartition(STAND_IN)
        fits = bool(found) and after.startswith(head) and after.endswith(tail)
        return len(head) if fits else None


def _contradiction(where: str, number: int) -> str:
    return (
        f"{where}: the chat template renders message {number + 1} differently when more follows, "
        "so the tokens to learn cannot be told; use a template with {% generation %}, or "
        "conversations with one assistant turn"
    )
