"""Samples as token ids, and which of them the loss is taken on.

A chat is rendered by the tokenizer's own template. Where the template marks the assistant's part
with `{% generation %}`, that mark decides. Elsewhere the part is found by rendering prefixes of the
conversation: an assistant's turn begins where the prompt before it ends and ends where the text up
to it ends, and both must agree with the whole text, or the template cannot be trained on.

The token that ends the turn belongs to the loss, so that the model learns to stop; white space that
the template puts behind it does not. A sample's first token is never a target: nothing precedes it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from latticeforge_trainer.data.formats import Chat, Completion, Located, Text
from latticeforge_trainer.errors import StepError, UserError

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerBase

_BATCH = 512
_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json")
_MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")


class Tokens(NamedTuple):
    """One sample: ids [n], and 1 where the loss of predicting this token counts [n]."""

    ids: NDArray[np.int32]
    targets: NDArray[np.uint8]


class _Rendered(NamedTuple):
    """A text, the character ranges that are targets, and what is added around it."""

    text: str
    spans: list[tuple[int, int]]
    begin: bool
    """Whether it opens with the token that the tokenizer opens a text with, if it does."""
    end: bool
    """Whether the end-of-text token follows, as a target, unless a special token ends the text."""


@dataclass
class TokenizedSource:
    """The samples of one source that have something to learn from.

    Attributes:
        truncated: Samples cut at the sequence length.
        skipped: Samples left out because no target token is in them.
    """

    truncated: int = 0
    skipped: int = 0
    _samples: list[Tokens] = field(default_factory=list)

    def add(self, tokens: Tokens, length: int) -> None:
        """Keep a sample, cut to `length` tokens, if a target is left in it."""
        cut = Tokens(tokens.ids[:length], tokens.targets[:length])
        if not cut.targets.any():
            self.skipped += 1
            return
        self.truncated += len(tokens.ids) > length
        self._samples.append(cut)

    def sample(self, number: int) -> Tokens:
        """One sample."""
        return self._samples[number]

    def __len__(self) -> int:
        return len(self._samples)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each sample [n]."""
        return np.fromiter((len(s.ids) for s in self._samples), np.int64, len(self._samples))


def tokenize_source(
    samples: Iterable[Located],
    renderer: Renderer,
    length: int,
    progress: Callable[[int], None] = lambda _: None,
) -> TokenizedSource:
    """Tokenize a source's samples.

    Args:
        samples: In the order that numbers them.
        renderer: Of the base model's tokenizer.
        length: Tokens that a sample may have at most; the rest is cut off.
        progress: Called with the number of samples so far.

    Raises:
        UserError: A sample cannot be rendered.
    """
    source = TokenizedSource()
    done = 0
    iterator = iter(samples)
    while chunk := list(islice(iterator, _BATCH)):
        for tokens in renderer.tokenize(chunk):
            source.add(tokens, length)
        done += len(chunk)
        progress(done)
    return source


def load_renderer(folder: Path, name: str) -> Renderer:
    """The renderer of a model folder's tokenizer.

    Args:
        folder: The model's folder; nothing outside of it is asked.
        name: What messages call the model.

    Raises:
        UserError: It holds no usable tokenizer.
    """
    from transformers import AutoTokenizer  # noqa: PLC0415  (seconds; a reused step needs none)

    # Without these transformers makes up an empty tokenizer instead of failing.
    if not any((folder / file).exists() for file in _VOCABULARIES):
        raise UserError(f"{name} holds no tokenizer (none of {', '.join(_VOCABULARIES)})")
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except StepError:  # a signal's
        raise
    except Exception as error:  # the tokenizers library raises bare ones for a damaged file
        problem = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{name} holds no usable tokenizer: {problem}") from error
    return Renderer(tokenizer)


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
        self._marked = bool(_MARKED.search(self._template() or ""))

    def _template(self) -> str | None:
        template: Any = self._tokenizer.chat_template
        return template.get("default") if isinstance(template, dict) else template

    def require_template(self, source: str) -> None:
        """Check that chats can be rendered.

        Raises:
            UserError: The tokenizer has no chat template.
        """
        if not self._template():
            raise UserError(
                f"{source} holds chats, but the base model's tokenizer has no chat template: use "
                "an instruction-tuned base, or data with prompt and completion, or text"
            )

    def tokenize(self, samples: Sequence[Located]) -> list[Tokens]:
        """Tokens of each sample.

        Raises:
            UserError: The chat template is missing, fails, or contradicts itself.
        """
        marked = [self._marked and isinstance(sample.sample, Chat) for sample in samples]
        plain = [self._render(s) for s, own in zip(samples, marked, strict=True) if not own]
        encoded = self._core.encode_batch([r.text for r in plain], add_special_tokens=False)
        located = zip(plain, encoded, strict=True)
        return [
            self._by_mark(sample) if own else self._by_spans(*next(located))
            for sample, own in zip(samples, marked, strict=True)
        ]

    def _render(self, located: Located) -> _Rendered:
        match located.sample:
            case Text(text):
                return _Rendered(text, [(0, len(text))], begin=True, end=bool(text))
            case Completion(prompt, completion):
                text = prompt + completion
                spans = [(len(prompt), len(text))]
                return _Rendered(text, spans, begin=True, end=bool(completion))
            case Chat() as chat:
                return self._render_chat(chat, located.where)

    def _render_chat(self, chat: Chat, where: str) -> _Rendered:
        self.require_template(where)
        messages = chat.messages
        whole = self._apply(chat, len(messages), where)
        spans = []
        for number, message in enumerate(messages):
            if message["role"] != "assistant" or number == 0:  # nothing asked for a first turn
                continue
            last = number + 1 == len(messages)
            before = self._apply(chat, number, where, prompt=True)
            after = whole if last else self._apply(chat, number + 1, where)
            if not (whole.startswith(before) and whole.startswith(after)):
                raise UserError(
                    f"{where}: the chat template renders message {number + 1} differently when "
                    "more follows, so the assistant's tokens cannot be told; use a template with "
                    "{% generation %}, or conversations with one assistant turn"
                )
            spans.append((len(before), len(after)))
        answered = bool(spans) and spans[-1][1] == len(whole)
        return _Rendered(whole, spans, begin=False, end=answered)

    def _apply(self, chat: Chat, count: int, where: str, *, prompt: bool = False) -> str:
        """The text of the first `count` messages."""
        return str(self._call(chat, count, where, tokenize=False, add_generation_prompt=prompt))

    def _call(self, chat: Chat, count: int, where: str, **options: Any) -> Any:
        import jinja2  # noqa: PLC0415  (transformers brings it; text data does without)

        try:
            return self._tokenizer.apply_chat_template(
                chat.messages[:count],
                tools=chat.tools,
                **options,
            )
        except (jinja2.TemplateError, TypeError, ValueError, KeyError) as error:
            raise UserError(f"{where}: the chat template cannot render it: {error}") from error

    def _by_spans(self, rendered: _Rendered, encoding: Encoding) -> Tokens:
        offsets = np.asarray(encoding.offsets, dtype=np.int64).reshape(-1, 2)
        ids = np.asarray(encoding.ids, dtype=np.int32)
        targets = np.zeros(len(ids), dtype=np.uint8)
        for start, end in rendered.spans:
            inside = np.flatnonzero((offsets[:, 0] < end) & (offsets[:, 1] > start))
            stop = None if rendered.begin else self._turn_end(ids[inside])
            targets[inside[:stop]] = 1
        begin = self._begin if rendered.begin else []
        ending = self._end if rendered.end and self._turn_end(ids) is None else []
        return _tokens(
            np.concatenate([begin, ids, ending]),
            np.concatenate([np.zeros(len(begin)), targets, np.ones(len(ending))]),
        )

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
        whole = self._call(
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


def _tokens(ids: ArrayLike, targets: ArrayLike) -> Tokens:
    mask = np.asarray(targets, dtype=np.uint8)
    mask[:1] = 0
    return Tokens(np.asarray(ids, dtype=np.int32), mask)
