"""Chat samples and the partition into a training and a held-out split."""

import hashlib
from typing import Literal, NamedTuple, TypedDict

Split = Literal["train", "heldout"]

HELDOUT_SHARE = 5
"""One problem in this many is held out."""


class Message(TypedDict):
    """One turn of a conversation, as chat templates take it."""

    role: Literal["system", "user", "assistant"]
    content: str


class Sample(NamedTuple):
    """A problem with its one correct answer. ``task`` identifies the problem across files."""

    task: str
    prompt: str
    answer: str


def split_of(problem: str) -> Split:
    """The split that a problem belongs to, whatever seed has drawn it.

    The text alone decides, so the splits cannot share a problem: no list is kept, and data that
    was generated years apart stays apart.
    """
    return "heldout" if fingerprint(problem) % HELDOUT_SHARE == 0 else "train"


def fingerprint(text: str) -> int:
    """A 64-bit number that is the same on every platform (SHA-256, unlike ``hash``)."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def user(content: str) -> Message:
    """What the model is asked."""
    return {"role": "user", "content": content}


def assistant(content: str) -> Message:
    """What the model says."""
    return {"role": "assistant", "content": content}
