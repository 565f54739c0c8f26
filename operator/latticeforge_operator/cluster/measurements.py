"""What the train steps of all stacks have measured against their plans, for the plans to come.

A status is read again only when another train step of it is done: with ten thousand stacks, most of
what the watches bring is no news here.
"""

from __future__ import annotations

from itertools import chain, islice
from typing import Any

from latticeforge_operator.api import StackedTrainingSpec, TrainingStatus
from latticeforge_operator.cluster.names import Key
from latticeforge_operator.core.planning import History, Measured, measured_in

NEWEST = 500
"""Stacks that count: what was measured long ago tells least, and each plan looks at all of it."""


class Measurements:
    """The measurements of every stack that has any, the newest last."""

    def __init__(self) -> None:
        self._trained: dict[Key, list[str]] = {}
        self._measured: dict[Key, tuple[Measured, ...]] = {}
        self._history: History | None = History()

    def see(self, key: Key, training: dict[str, Any] | None) -> None:
        """Take in a StackedTraining as the API server shows it; None when it is gone."""
        trained = _trained(training) if training is not None else []
        if trained == self._trained.get(key, []):
            return
        self._trained.pop(key, None)
        self._measured.pop(key, None)
        self._history = None
        if training is not None and trained:
            self._trained[key] = trained
            self._measured[key] = _measured(training)

    @property
    def history(self) -> History:
        """What the newest say."""
        if self._history is None:
            newest = islice(reversed(self._measured.values()), NEWEST)
            self._history = History(tuple(chain.from_iterable(newest)))
        return self._history


def _trained(training: dict[str, Any]) -> list[str]:
    """Digests of the train steps that are done."""
    steps = (training.get("status") or {}).get("steps") or []
    return [s["digest"] for s in steps if (s.get("result") or {}).get("kind") == "train"]


def _measured(training: dict[str, Any]) -> tuple[Measured, ...]:
    try:
        spec = StackedTrainingSpec.model_validate(training["spec"])
        status = TrainingStatus.model_validate(training["status"])
    except ValueError:
        return ()  # its own pass says what is wrong with it
    return tuple(measured_in(spec, status))
