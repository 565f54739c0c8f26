"""Samples as token ids, and which of them the loss is taken on.

A chat is rendered by the tokenizer's own template. Where the template marks the assistant's part
with `{% generation %}`, that mark decides; elsewhere, and where other parts are asked for,
`conversations` finds the turns.

The token that ends the turn belongs to the loss, so that the model learns to stop; white space that
the template puts behind it does not. A sample's first token is never a target: nothing precedes it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from latticeforge_trainer.data.conversations import ChatRenderer, Turn
from latticeforge_trainer.data.samples import (
    ANSWERS,
    Chat,
    Completion,
    Learning,
    Located,
    Segments,
    Text,
)
from latticeforge_trainer.data.tokenized import Tokens
from latticeforge_trainer.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerBase

_MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")


class _Rendered(NamedTuple):
    """Texts to be tokenized one by one, and what of them is learned."""

    texts: tuple[str, ...]
    spans: list[tuple[int, int, int]]
    """Learned characters: number of the text, first, and one after the last."""
    turns: list[Turn]
    """Of the first text, if it is a chat."""
    begin: bool
    """Whether it opens with the token that the tokenizer opens a text with, if it does."""
    end: bool | None
    """Whether the end-of-text token, which follows unless a special token ends the text, is a
    target; None: it never follows."""


class Renderer:
    """Turns samples into tokens, as a model's tokenizer and chat template say.

    Args:
        tokenizer: With a `tokenizer.json`: only those know where in a text a token came from.

    Attributes:
        tokens: One more than its greatest token id.
        pad_token: The id that fills up a sequence.

    Raises:
        UserError: The tokenizer is of the slow kind, or names no end-of-text token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        from transformers import PreTrainedTokenizerFast  # noqa: PLC0415  (seconds)

        if not isinstance(tokenizer, PreTrainedTokenizerFast):
            raise UserError("the base model's tokenizer has no tokenizer.json, which is needed")
        if tokenizer.eos_token_id is None:
            raise UserError("the base model's tokenizer names no eos_token, so nothing could end")
        self._tokenizer = tokenizer
        self._core = tokenizer.backend_tokenizer
        self._core.no_truncation()
        self._core.no_padding()
        added = tokenizer.added_tokens_decoder.items()
        self._special = np.array([number for number, token in added if token.special], np.int32)
        opening = self._core.encode("a").ids[:1]
        self._end: list[int] = [tokenizer.eos_token_id]
        self._begin: list[int] = [i for i in opening if i == tokenizer.bos_token_id]
        self.tokens = max(tokenizer.get_vocab().values()) + 1
        pad = tokenizer.pad_token_id
        self.pad_token: int = tokenizer.eos_token_id if pad is None else pad
        self._chats = ChatRenderer(tokenizer)
        self._marked = bool(_MARKED.search(self._chats.template or ""))

    def tokenize(self, samples: Sequence[Located], learning: Learning = ANSWERS) -> list[Tokens]:
        """Tokens of each sample, and what of them is learned.

        Raises:
            UserError: The chat template is missing, fails, or contradicts itself.
        """
        marks = self._marked and learning == ANSWERS
        marked = [marks and isinstance(sample.sample, Chat) for sample in samples]
        plain = [
            self._render(sample, learning)
            for sample, own in zip(samples, marked, strict=True)
            if not own
        ]
        texts = [text for rendered in plain for text in rendered.texts]
        encoded = iter(self._core.encode_batch(texts, add_special_tokens=False))
        rest = iter(plain)
        return [
            self._by_mark(sample) if own else self._by_spans(next(rest), encoded)
            for sample, own in zip(samples, marked, strict=True)
        ]

    def _render(self, located: Located, learning: Learning) -> _Rendered:
        match located.sample:
            case Text(text):
                return _Rendered((text,), [(0, 0, len(text))], [], True, bool(text) or None)
            case Completion(prompt, completion):
                text, middle = prompt + completion, len(prompt)
                answers = "assistant" in learning.roles
                spans = [(0, middle, len(text))] if answers else []
                spans += [(0, 0, middle)] if "user" in learning.roles else []
                return _Rendered((text,), spans, [], True, answers if completion else None)
            case Segments(parts, whole):
                texts = tuple(part.text for part in parts)
                spans = [(n, 0, len(part.text)) for n, part in enumerate(parts) if part.learned]
                ends = whole and bool(texts[-1])
                return _Rendered(texts, spans, [], whole, parts[-1].learned if ends else None)
            case Chat() as chat:
                text, turns, answered = self._chats.render(chat, learning, located.where)
                end = turns[-1].end_learned if answered else None
                return _Rendered((text,), [], turns, False, end)

    def _by_spans(self, rendered: _Rendered, encoded: Iterator[Encoding]) -> Tokens:
        begin = self._begin if rendered.begin else []
        ids: list[ArrayLike] = [begin]
        targets: list[ArrayLike] = [np.zeros(len(begin))]
        for number, encoding in enumerate(islice(encoded, len(rendered.texts))):
            offsets = np.asarray(encoding.offsets, dtype=np.int64).reshape(-1, 2)
            here = np.asarray(encoding.ids, dtype=np.int32)
            learned = np.zeros(len(here), dtype=np.uint8)
            for text, start, end in rendered.spans:
                if text == number:
                    learned[_inside(offsets, start, end)] = 1
            for turn in rendered.turns:
                self._learn_turn(turn, here, _inside(offsets, turn.start, turn.end), learned)
            ids.append(here)
            targets.append(learned)
        if rendered.end is not None and self._turn_end(here) is None:
            ids.append(self._end)
            targets.append([rendered.end])
        return _tokens(np.concatenate(ids), np.concatenate(targets))

    def _learn_turn(
        self,
        turn: Turn,
        ids: NDArray[np.int32],
        inside: NDArray[np.intp],
        learned: NDArray[np.uint8],
    ) -> None:
        end = self._turn_end(ids[inside])
        content = inside if end is None else inside[: end - 1]
        if turn.learned:
            learned[content] = 1
        if turn.end_learned and end is not None:
            learned[inside[end - 1]] = 1

    def _turn_end(self, ids: NDArray[np.int32]) -> int | None:
        """Tokens up to the special one that ends a turn, if only white space follows it."""
        special = np.flatnonzero(np.isin(ids, self._special))
        if not len(special):
            return None
        end = int(special[-1]) + 1
        return None if self._core.decode(ids[end:].tolist()).strip() else end

    def _by_mark(self, located: Located) -> Tokens:
        chat = located.sample
        if not isinstance(chat, Chat):
            raise TypeError(f"only chats have marks, not {type(chat).__name__}")
        whole = self._chats.call(
            chat,
            len(chat.messages),
            located.where,
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        ids, targets = list(whole["input_ids"]), list(whole["assistant_masks"])
        for at in range(1, len(ids)):
            turn_ended = targets[at - 1] and not targets[at]
            if turn_ended and ids[at] in self._special and ids[at - 1] not in self._special:
                targets[at] = 1
        return _tokens(ids, targets)


def _inside(offsets: NDArray[np.int64], start: int, end: int) -> NDArray[np.intp]:
    """Tokens that touch characters from `start` to before `end`."""
    return np.flatnonzero((offsets[:, 0] < end) & (offsets[:, 1] > start))


def _tokens(ids: ArrayLike, targets: ArrayLike) -> Tokens:
    mask = np.asarray(targets, dtype=np.uint8)
    mask[:1] = 0
    return Tokens(np.asarray(ids, dtype=np.int32), mask)
