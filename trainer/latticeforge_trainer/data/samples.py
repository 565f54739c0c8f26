"""What a data set's rows become: samples, each of a kind that is rendered in its own way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from latticeforge_trainer.contract import DataSource


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation; messages are as chat templates take them."""

    messages: list[dict[str, Any]]
    tools: list[Any] | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """A prompt and how it goes on, tokenized as one text."""

    prompt: str
    completion: str


@dataclass(frozen=True, slots=True)
class Text:
    """A text to learn as it is."""

    text: str


class Segment(NamedTuple):
    """A part of a sample, and whether it is learned."""

    text: str
    learned: bool


@dataclass(frozen=True, slots=True)
class Segments:
    """Texts that are tokenized one by one, so that none changes the tokens of another."""

    parts: tuple[Segment, ...]
    whole: bool
    """Whether it is opened and ended as a text is; else its parts say all."""


Sample = Chat | Completion | Text | Segments


class Located(NamedTuple):
    """A sample and the place that a message about it names."""

    where: str
    sample: Sample


@dataclass(frozen=True)
class Learning:
    """Which parts of a sample the loss is taken on.

    Attributes:
        roles: Those whose content is learned; a prompt is the user's.
        end: Whose ends of turns are learned: of learned `Turn`s, of `All`, the `Last`, or `Never`.
    """

    roles: frozenset[str] = frozenset({"assistant"})
    end: str = "Turn"

    @classmethod
    def of(cls, spec: DataSource) -> Learning:
        """As a data source asks for it."""
        return cls(frozenset(spec.train_on or ("assistant",)), spec.train_on_end or "Turn")


ANSWERS = Learning()
"""The assistant's turns with their ends, or a completion with its end."""
