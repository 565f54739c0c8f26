"""What a config sets: every value read as its key's type, or refused with one sentence."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Reader = Callable[[Any], Any]
"""Checks and converts one value; raises WrongValueError with what it must be."""

_DEFAULTS: Mapping[str, Any] = {
    "gradient_accumulation_steps": 1,
    "micro_batch_size": 1,
    "num_epochs": 1.0,
    "sequence_len": 512,
    "lr_scheduler": "cosine",
    "warmup_ratio": 0.03,
    "optimizer": "adamw_torch_fused",
    "lora_dropout": 0.0,
    "output_dir": "./model-out",
    "excess_length_strategy": "drop",
}
"""What Axolotl takes for a key that is left out, where it counts and is not "nothing"."""


class ConfigError(Exception):
    """The config is wrong; the message says what to write instead.

    Attributes:
        key: The key at fault, as `datasets[0].path`.
        sentence: What is wrong with it.
        config: The name of the config, where several are put together.
    """

    def __init__(self, key: str, sentence: str, config: str = "") -> None:
        super().__init__(f"{key}: {sentence}")
        self.key, self.sentence, self.config = key, sentence, config


class WrongValueError(ValueError):
    """A value is not of its key's type; the message says what it must be."""


@dataclass(frozen=True)
class Settings:
    """The values of one config.

    Attributes:
        values: What the file sets, by key, as its type; never null, empty text, list or mapping.
        gpus: Processes of the training, by which Axolotl multiplies the batch.
    """

    values: Mapping[str, Any]
    gpus: int = 1

    def __getitem__(self, key: str) -> Any:
        """The value, or else Axolotl's default; None where that is nothing."""
        return self.values.get(key, _DEFAULTS.get(key))

    def first(self, *keys: str) -> Any:
        """The first of several spellings that is set."""
        return next((self[key] for key in keys if self[key] is not None), None)


def is_blank(value: Any) -> bool:
    """Whether a value sets nothing."""
    return value is None or value in ("", [], {})


def whole(value: Any) -> int:
    """A whole number from 0."""
    number_ = number(value)
    if number_ != int(number_) or number_ < 0:
        raise WrongValueError(f"must be a whole number from 0, not {shown(value)}")
    return int(number_)


def number(value: Any) -> float:
    """A finite number; YAML reads `1e-4` as text, and so does this."""
    try:
        if isinstance(value, int | float | str) and not isinstance(value, bool):
            found = float(value)
            if math.isfinite(found):
                return found
    except (ValueError, OverflowError):
        pass
    raise WrongValueError(f"must be a number, not {shown(value)}")


def positive(value: Any) -> float:
    """A number above 0."""
    found = number(value)
    if found <= 0:
        raise WrongValueError(f"must be more than 0, not {shown(value)}")
    return found


def counted(value: Any) -> int:
    """A whole number from 1."""
    found = whole(value)
    if found < 1:
        raise WrongValueError(f"must be at least 1, not {shown(value)}")
    return found


def flag(value: Any) -> bool:
    """True or false."""
    if isinstance(value, str) and value.lower() in {"true", "false"}:
        return value.lower() == "true"
    if not isinstance(value, bool):
        raise WrongValueError(f"must be true or false, not {shown(value)}")
    return value


def text(value: Any) -> str:
    """Text; a number stands for its digits, as a model named `3` would."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise WrongValueError(f"must be text, not {shown(value)}")
    return str(value)


def texts(value: Any) -> list[str]:
    """A list of texts, or one."""
    return [text(entry) for entry in (value if isinstance(value, list) else [value])]


def mapping(value: Any) -> dict[str, Any]:
    """A mapping whose keys are text."""
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise WrongValueError(f"must be a mapping, not {shown(value)}")
    return value


def mappings(value: Any) -> list[dict[str, Any]]:
    """A list of mappings."""
    if not isinstance(value, list):
        raise WrongValueError(f"must be a list, not {shown(value)}")
    return [mapping(entry) for entry in value]


def anything(value: Any) -> Any:
    """A value that nobody looks into."""
    return value


def shown(value: Any) -> str:
    """A value as a message shows it: short, on one line."""
    kinds = {dict: "a mapping", list: "a list", bool: str(value).lower(), type(None): "nothing"}
    words = kinds.get(type(value)) or repr(value)
    return words if len(words) <= 60 else f"{words[:57]}…"
