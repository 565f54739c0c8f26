"""Read the arithmetic in a text and say which of its equalities hold within their rounding.

``F[T] = 0.81 − 0.3×H(0.40) = 0.81 − 0.12 = 0.69, stable`` is one chain: it names ``F[T]``, has
three operands, and the rest is prose. Operands follow this grammar, in which a named value such as
``H(0.40)`` is the number in its parentheses:

    sum    := term (("+" | "−") term)*
    term   := factor (("×" | "·" | "/") factor)*
    factor := "−" factor | "√" factor | "e^" factor | number | "λ" | "γ" | [name] "(" sum ")"

A side with names that have no value (``F[T]``, ``λ·dH/dt``, ``Φ − 0.12``) is a formula: there is
nothing to check in it, but what stands on its two sides must be equal all the same.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal, DecimalException
from itertools import pairwise
from typing import NamedTuple

from latticeforge_trainer.domain.cic import GAMMA, LAMBDA

MAX_LENGTH = 2000
"""Characters; no derivation needs more."""

MAX_DEPTH = 20
"""Nested factors; keeps the recursion of a hostile text shallow."""

_CONSTANTS = {"λ": LAMBDA, "γ": GAMMA}
_TIMES = frozenset("×·*")
_OVER = frozenset("/÷")
_MINUS = frozenset("−-")
_BINARY = _TIMES | _OVER | _MINUS | {"+"}
_EXACT = Decimal("1e-9")

_TOKEN = re.compile(
    r"(?P<number>\d+(?:\.\d+)?)"
    r"|(?P<operator>e\^|[−+×·*/÷√()-])"
    r"|(?P<constant>[λγ](?!\w))"
    r"|(?P<call>[^\W\d]\w*(?=\())"
    r"|(?P<glue>[\^²³%])"  # changes the value of a number beside it in a way the grammar has not
    r"|(?P<name>[^\W\d]\w*(?:\[\w+\])?)"
    r"|(?P<equals>=)"
    r"|(?P<prose>\S)",
)
_ARITHMETIC = frozenset({"number", "operator", "constant", "call"})


class UnreadableEqualityError(ValueError):
    """A text has an equality whose truth cannot be established."""


class _Token(NamedTuple):
    kind: str
    text: str


@dataclass(frozen=True)
class Operand:
    """One side of an equality, evaluated."""

    terms: tuple[Decimal, ...]
    """What its value is the sum of."""
    rounding: Decimal
    """Half a unit in the last place of its least precise number; integers are exact."""
    is_number: bool
    """Whether it is one number and no computation."""

    @property
    def value(self) -> Decimal:
        """What it comes to."""
        return sum(self.terms, Decimal(0))


@dataclass(frozen=True)
class Chain:
    """What is joined by ``=``."""

    names: tuple[str, ...]
    """The sides that are one name and nothing else."""
    operands: tuple[Operand, ...]
    """The sides that have a value."""

    def holds(self) -> bool:
        """Whether every equality in the chain does."""
        return all(equal_within_rounding(left, right) for left, right in pairwise(self.operands))


def equal_within_rounding(left: Operand, right: Operand) -> bool:
    """Whether ``left = right`` is true when the right side may be rounded.

    Either the two values differ by no more than the right side's rounding, or both are sums of as
    many terms and each pair of terms does (rounded terms may add up to a little more).
    """
    if abs(left.value - right.value) <= right.rounding:
        return True
    return len(left.terms) == len(right.terms) and all(
        abs(a - b) <= right.rounding for a, b in zip(left.terms, right.terms, strict=True)
    )


def read_chains(text: str) -> list[Chain]:
    """Every chain of equalities in a text, in reading order.

    Raises:
        UnreadableEqualityError: a side is no arithmetic of the grammar and no formula, or the text
            is longer than ``MAX_LENGTH``.
    """
    if len(text) > MAX_LENGTH:
        raise UnreadableEqualityError(f"the text has {len(text)} characters, at most {MAX_LENGTH}")
    chains: list[Chain] = []
    goes_on = False
    for before, after in pairwise(_sides(text)):
        if not goes_on:
            chains.append(Chain(_name(before[-1:]), _operand(_trailing(before))))
        last, end = chains[-1], _leading(after)
        chains[-1] = Chain(last.names + _name(after), last.operands + _operand(end))
        goes_on = len(end) == len(after) or _is_formula(after)
    return chains


def named_values(text: str) -> list[tuple[str, Decimal]]:
    """Every value stated as ``name(number)``, such as ``("H", 0.40)``, in reading order."""
    found = re.findall(r"([^\W\d]\w*)\(\s*([−-]?\d+(?:\.\d+)?)\s*\)", text)
    return [(name, Decimal(number.replace("−", "-"))) for name, number in found]


def _sides(text: str) -> list[list[_Token]]:
    sides: list[list[_Token]] = [[]]
    for match in _TOKEN.finditer(text):
        kind = str(match.lastgroup)
        if kind == "equals":
            sides.append([])
        else:
            sides[-1].append(_Token(kind, match.group()))
    return sides


def _name(side: Sequence[_Token]) -> tuple[str, ...]:
    return (side[0].text,) if [token.kind for token in side] == ["name"] else ()


def _is_formula(side: Sequence[_Token]) -> bool:
    """Whether a side without a value is all of one expression, so that a chain goes on after it."""
    return bool(side) and not (
        _leading(side) or _trailing(side) or any(token.kind == "prose" for token in side)
    )


def _leading(side: Sequence[_Token]) -> Sequence[_Token]:
    """The arithmetic that a side starts with, without a parenthesis opened around prose."""
    run = side[: _run(side, opening="(", closing=")")]
    if run and run[-1].text in _BINARY and side[len(run) :][:1] and side[len(run)].kind == "name":
        return ()
    while run and run[-1].text == "(":
        run = run[:-1]
    return run


def _trailing(side: Sequence[_Token]) -> Sequence[_Token]:
    """The arithmetic that a side ends with, without a parenthesis closed around prose."""
    run = side[len(side) - _run(side[::-1], opening=")", closing="(") :]
    if (
        run
        and run[0].text in _BINARY
        and len(run) < len(side)
        and side[-len(run) - 1].kind == "name"
    ):
        return ()
    while run and run[0].text == ")":
        run = run[1:]
    return run


def _run(tokens: Sequence[_Token], opening: str, closing: str) -> int:
    """How many tokens from the start are arithmetic, up to a parenthesis never opened."""
    depth = 0
    for index, token in enumerate(tokens):
        depth += (token.text == opening) - (token.text == closing)
        if token.kind == "glue":
            raise UnreadableEqualityError(f"cannot compute with {token.text!r}")
        if token.kind not in _ARITHMETIC or depth < 0:
            return index
    return len(tokens)


def _operand(tokens: Sequence[_Token]) -> tuple[Operand, ...]:
    """The value of a run of arithmetic; nothing where there is none."""
    if not tokens:
        return ()
    try:
        terms = _Parser(tokens).parse()
    except DecimalException as error:
        raise UnreadableEqualityError("an operand has no finite value") from error
    places = [len(t.text.partition(".")[2]) for t in tokens if t.kind == "number" and "." in t.text]
    rounding = Decimal(5).scaleb(-min(places) - 1) if places else _EXACT
    unsigned = tokens[1:] if tokens[0].text in _MINUS else tokens
    is_number = [token.kind for token in unsigned] == ["number"]
    return (Operand(tuple(terms), rounding, is_number),)


class _Parser:
    """Recursive descent over one operand."""

    def __init__(self, tokens: Sequence[_Token]) -> None:
        self._tokens = tokens
        self._next = 0
        self._depth = 0

    def parse(self) -> list[Decimal]:
        """Evaluate the whole operand to the terms of its outermost sum."""
        terms = self._sum()
        if self._next < len(self._tokens):
            raise self._unreadable()
        return terms

    def _sum(self) -> list[Decimal]:
        terms = [self._term()]
        while self._peek() == "+" or self._peek() in _MINUS:
            sign = 1 if self._take() == "+" else -1
            terms.append(sign * self._term())
        return terms

    def _term(self) -> Decimal:
        value = self._factor()
        while self._peek() in _TIMES or self._peek() in _OVER:
            if self._take() in _TIMES:
                value *= self._factor()
            else:
                value /= self._factor()
        return value

    def _factor(self) -> Decimal:
        self._depth += 1
        if self._depth > MAX_DEPTH or self._next == len(self._tokens):
            raise self._unreadable()
        token = self._tokens[self._next]
        self._next += 1
        value = self._value(token)
        self._depth -= 1
        return value

    def _value(self, token: _Token) -> Decimal:
        if token.kind == "number":
            return Decimal(token.text)
        if token.kind == "constant":
            return _CONSTANTS[token.text]
        if token.kind == "call":
            return self._factor()
        if token.text == "(":
            value = sum(self._sum(), Decimal(0))
            if self._peek() != ")":
                raise self._unreadable()
            self._take()
            return value
        prefix = _PREFIXES.get(token.text)
        if prefix is None:
            raise self._unreadable()
        return prefix(self._factor())

    def _peek(self) -> str:
        return self._tokens[self._next].text if self._next < len(self._tokens) else ""

    def _take(self) -> str:
        self._next += 1
        return self._tokens[self._next - 1].text

    def _unreadable(self) -> UnreadableEqualityError:
        text = " ".join(token.text for token in self._tokens)
        return UnreadableEqualityError(f"cannot compute {text!r}")


_PREFIXES: dict[str, Callable[[Decimal], Decimal]] = {
    "−": Decimal.__neg__,
    "-": Decimal.__neg__,
    "√": Decimal.sqrt,
    "e^": Decimal.exp,
}
