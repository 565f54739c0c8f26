"""A source's samples as token ids, cut, split or dropped to what a sequence holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from latticeforge_trainer.contract import ExcessLength
from latticeforge_trainer.data.samples import ANSWERS, Learning, Located
from latticeforge_trainer.errors import UserError

_BATCH = 512


class Tokens(NamedTuple):
    """One sample: ids [n], and 1 where the loss of predicting this token counts [n]."""

    ids: NDArray[np.int32]
    targets: NDArray[np.uint8]

    def part(self, start: int, end: int) -> Tokens:
        """Some of its tokens, as a sample of their own."""
        targets = self.targets[start:end].copy()
        targets[:1] = 0  # nothing precedes it
        return Tokens(self.ids[start:end], targets)


class Tokenizes(Protocol):
    """What turns samples into tokens; `rendering.Renderer` is one."""

    def tokenize(self, samples: Sequence[Located], learning: Learning) -> list[Tokens]:
        """Tokens of each sample."""
        ...


@dataclass
class TokenizedSource:
    """The samples of one source that have something to learn from.

    Attributes:
        truncated: Samples cut, or split, at the sequence length.
        dropped: Samples left out because they are longer, or too short.
        skipped: Samples left out because no target token is in them.
    """

    truncated: int = 0
    dropped: int = 0
    skipped: int = 0
    _samples: list[Tokens] = field(default_factory=list)

    def add(
        self,
        tokens: Tokens,
        length: int,
        excess: ExcessLength = ExcessLength.TRUNCATE,
        where: str = "a sample",
        *,
        minimum: int | None = None,
    ) -> None:
        """Keep a sample of `minimum` tokens, made to fit `length`, if a target is left in it.

        Raises:
            UserError: It is longer, and that is to fail.
        """
        size = len(tokens.ids)
        if minimum is not None and size < minimum:
            self.dropped += 1
            return
        if size <= length:
            parts = [tokens]
        elif excess is ExcessLength.TRUNCATE:
            parts = [tokens.part(0, length)]
        elif excess is ExcessLength.SPLIT:
            parts = [tokens.part(start, start + length) for start in range(0, size, length)]
        elif excess is ExcessLength.DROP:
            self.dropped += 1
            return
        else:
            raise UserError(
                f"{where}: {size} tokens, more than sequenceLength {length}: raise it, or set "
                "excessLength to Truncate or Drop"
            )
        learned = [part for part in parts if part.targets.any()]
        self.skipped += not learned
        self.truncated += size > length and bool(learned)
        self._samples += learned

    def hold_out(self, share: float, seed: int) -> tuple[TokenizedSource, TokenizedSource]:
        """Split off a random share of the samples.

        Args:
            share: Between 0 and 1; rounded to samples, and at least one stays on each side.
            seed: Of the choice.

        Returns:
            What stays, in its order and with all that was counted; and what is split off.
        """
        count = max(1, min(round(share * len(self)), len(self) - 1)) if len(self) > 1 else 0
        order = np.random.default_rng(seed % 2**64).permutation(len(self))
        held = set(order[:count].tolist())
        stay: list[Tokens] = []
        away: list[Tokens] = []
        for number, tokens in enumerate(self._samples):
            (away if number in held else stay).append(tokens)
        return replace(self, _samples=stay), TokenizedSource(_samples=away)

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
    renderer: Tokenizes,
    length: int,
    progress: Callable[[int], None] = lambda _: None,
    *,
    learning: Learning = ANSWERS,
    excess: ExcessLength = ExcessLength.TRUNCATE,
    minimum: int | None = None,
) -> TokenizedSource:
    """Tokenize a source's samples.

    Args:
        samples: In the order that numbers them.
        renderer: Of the base model's tokenizer.
        length: Tokens that a sample may have at most.
        progress: Called with the number of samples so far.
        learning: Which parts of a sample the loss is taken on.
        excess: What becomes of a longer sample.
        minimum: Tokens that a sample must have at least to be kept.

    Raises:
        UserError: A sample cannot be rendered, or is too long and that is to fail.
    """
    source = TokenizedSource()
    done = 0
    for chunk in _chunks(samples):
        for located, tokens in zip(chunk, renderer.tokenize(chunk, learning), strict=True):
            source.add(tokens, length, excess, located.where, minimum=minimum)
        done += len(chunk)
        progress(done)
    return source


def _chunks(samples: Iterable[Located]) -> Iterator[list[Located]]:
    iterator = iter(samples)
    while chunk := list(islice(iterator, _BATCH)):
        yield chunk
