"""Every key that Axolotl knows, and what becomes of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from latticeforge_operator.axolotl.adapter import ADAPTER
from latticeforge_operator.axolotl.contradictions import check_contradictions
from latticeforge_operator.axolotl.data import DATA
from latticeforge_operator.axolotl.keynames import unknown_key
from latticeforge_operator.axolotl.lines import Line, Verdict, ignored
from latticeforge_operator.axolotl.model import MODEL
from latticeforge_operator.axolotl.rules import Key
from latticeforge_operator.axolotl.scope import SCOPE, check_scope
from latticeforge_operator.axolotl.settings import (
    ConfigError,
    Settings,
    WrongValueError,
    is_blank,
)
from latticeforge_operator.axolotl.surroundings import SURROUNDINGS
from latticeforge_operator.axolotl.training import TRAINING

KEYS: Mapping[str, Key] = {**MODEL, **ADAPTER, **DATA, **TRAINING, **SURROUNDINGS, **SCOPE}
"""By name; a name stands in one of the modules only."""

_COUNTING = (
    "adapter",
    "micro_batch_size",
    "sequence_len",
    "num_epochs",
    "lr_scheduler",
    "warmup_ratio",
    "optimizer",
)
"""Keys whose default has a say in the result: it is written out when the file does not set them."""


def read_settings(config: Mapping[str, Any], gpus: int) -> Settings:
    """Read a config.

    Args:
        config: The file's keys and values.
        gpus: Processes of the training.

    Raises:
        ConfigError: A value has the wrong type, a key is missing, two contradict each other, or
            the config asks for another training than supervised fine-tuning.
    """
    check_scope(config)
    values = {
        name: _read(name, value)
        for name, value in config.items()
        if name in KEYS and not is_blank(value)
    }
    settings = Settings(values, gpus)
    check_contradictions(settings)
    return settings


def _read(name: str, value: Any) -> Any:
    try:
        return KEYS[name].read(value)
    except WrongValueError as error:
        raise ConfigError(name, str(error)) from error


def lines_of(config: Mapping[str, Any], settings: Settings) -> list[Line]:
    """One line for every key of a config, and for the defaults that count."""
    return [*_given(config, settings), *_defaults(config, settings)]


def _given(config: Mapping[str, Any], settings: Settings) -> Iterator[Line]:
    for name, value in config.items():
        if name not in KEYS:
            yield unknown_key(name, name, KEYS)
        elif is_blank(value) and name in _COUNTING:
            yield from _lines(name, settings[name], settings)
        elif is_blank(value):
            yield ignored(name, "not set")
        else:
            yield from _lines(name, settings.values[name], settings)


def _defaults(config: Mapping[str, Any], settings: Settings) -> Iterable[Line]:
    for name in _COUNTING:
        if name not in config:
            for line in _lines(name, settings[name], settings):
                if line.verdict is not Verdict.IGNORED:
                    yield replace(line, given=False)


def _lines(name: str, value: Any, settings: Settings) -> Iterable[Line]:
    return KEYS[name].rule(name, value, settings)
