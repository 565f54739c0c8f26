"""What a rule is, and the rules that many keys share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from latticeforge_operator.axolotl.lines import Line, ignored, implied, mapped, unsupported
from latticeforge_operator.axolotl.settings import Reader, Settings, anything, flag, shown

Rule = Callable[[str, Any, Settings], Iterable[Line]]
"""From a key, its value and all settings to the key's lines; a list has some for each entry."""


@dataclass(frozen=True)
class Key:
    """A key that Axolotl knows."""

    read: Reader
    rule: Rule


def becomes(path: str, convert: Callable[[Any], Any] = lambda value: value) -> Rule:
    """A field of the same meaning."""

    def rule(key: str, value: Any, _settings: Settings) -> Iterable[Line]:
        yield same(key, path, convert(value))

    return rule


def same(key: str, path: str, value: Any) -> Line:
    """The line of a key that is one field of the same meaning."""
    return mapped(
        key, f"{path} {shown(value) if isinstance(value, list) else value}", {path: value}
    )


def decided(sentence: str) -> Rule:
    """Whatever the value, LatticeForge decides it."""
    return lambda key, _value, _settings: [implied(key, sentence)]


def harmless(sentence: str) -> Rule:
    """Whatever the value, the model is the same."""
    return lambda key, _value, _settings: [ignored(key, sentence)]


def refused(sentence: str) -> Rule:
    """Any value that is not off makes another model."""

    def rule(key: str, value: Any, _settings: Settings) -> Iterable[Line]:
        off = value in (False, 0)
        yield ignored(key, "off") if off else unsupported(key, sentence)

    return rule


def only(accepted: Iterable[Any], reason: str, sentence: str) -> Rule:
    """Some values are what LatticeForge does anyway, any other makes another model."""
    values = tuple(accepted)

    def rule(key: str, value: Any, _settings: Settings) -> Iterable[Line]:
        if value in values:
            yield implied(key, reason)
        else:
            yield unsupported(key, f"{shown(value)}: {sentence}")

    return rule


def keys(names: str, rule: Rule, read: Reader = anything) -> dict[str, Key]:
    """The same rule for several keys."""
    return {name: Key(read, rule) for name in names.split()}


def switches(names: str, rule: Rule) -> dict[str, Key]:
    """The same rule for several keys that are true or false."""
    return keys(names, rule, flag)


def plain(value: float) -> str:
    """A number without an exponent, as the API's decimal strings want it: `0.05`."""
    return format(Decimal(repr(value)), "f").removesuffix(".0")


def scientific(value: float) -> str:
    """A number as people write small ones: `2e-5`."""
    mantissa, _, exponent = f"{value:.12g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa
