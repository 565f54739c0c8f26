"""The CIC suites: json, cic, phase and confidence judge the same answers to the same briefings.

The whole answer must be one JSON object, in a ```` ```json ```` fence or not; prose around it is
wrong, because the next program in the chain could not read it either. Each suite then judges its
own part: a wrong phase costs nothing in `cic`.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import islice
from typing import Any, NoReturn

from pydantic import ValidationError

from latticeforge_trainer.contract import Score
from latticeforge_trainer.domain.briefings import Assessment, Briefing, briefings, sample_of
from latticeforge_trainer.domain.cic import PHASES, epistemic_bound
from latticeforge_trainer.domain.samples import user
from latticeforge_trainer.suites.base import Problem, Verdict, share
from latticeforge_trainer.suites.equalities import (
    Chain,
    UnreadableEqualityError,
    named_values,
    read_chains,
)
from latticeforge_trainer.suites.statistics import macro_f1

FUNCTIONAL_TOLERANCE = Decimal("0.005")
"""How far a stated F may be from the true one: half a unit of its second decimal."""

BOUND_TOLERANCE = Decimal("0.01")
"""How far a stated confidence bound may be from the true, unrounded one."""

MAX_NEW_TOKENS = 176
"""The longest right answer has 143 tokens where every digit is one; the rest is room."""

_FUNCTIONAL_NAMES = frozenset({"F", "F[T]"})
_FENCE = re.compile(r"\A```(?:json)?\s*\n(.*?)\n?```\Z", re.DOTALL)


@dataclass(frozen=True)
class CICSuite:
    """Asks held-out briefings and judges one part of the JSON object that answers."""

    name: str
    judge: Callable[[Briefing, dict[str, Any]], Verdict]
    figures: Callable[[Sequence[Verdict]], dict[str, float]] = lambda _: {}
    """Further figures beside the share of credit."""
    group: str = "cic"
    max_new_tokens: int = MAX_NEW_TOKENS

    def problems(self, n: int, seed: int) -> list[Problem[Briefing]]:
        """The first n held-out briefings of a seed."""
        return [
            Problem(sample_of(briefing).task, [user(briefing.prompt())], briefing)
            for briefing in islice(briefings(seed, "heldout"), n)
        ]

    def score(self, problem: Problem[Briefing], answer: str) -> Verdict:
        """Judge the object; an answer that is none earns nothing in any of the suites."""
        try:
            parsed = parse_object(answer)
        except ValueError as error:
            nothing = self.judge(problem.truth, {})
            return Verdict(0, {**nothing.details, "reason": f"not a JSON object: {error}"})
        return self.judge(problem.truth, parsed)

    def summarize(self, verdicts: Sequence[Verdict]) -> Score:
        """Share of credit over all answers."""
        return share(self.name, verdicts, **self.figures(verdicts))


def parse_object(answer: str) -> dict[str, Any]:
    """Read an answer that is one JSON object and nothing else.

    Raises:
        ValueError: it is not, or a key occurs twice, or a number is not finite (RFC 8259).
    """
    text = answer.strip()
    fenced = _FENCE.match(text)
    try:
        parsed = json.loads(
            fenced[1] if fenced else text,
            object_pairs_hook=_without_duplicates,
            parse_constant=_refuse_constant,
        )
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(parsed, dict):
        raise ValueError(f"it is a {type(parsed).__name__}")  # noqa: TRY004  (of the text, no bug)
    return parsed


def judge_json(_: Briefing, parsed: dict[str, Any]) -> Verdict:
    """Whether the object matches the schema of ``Assessment``."""
    try:
        Assessment.model_validate(parsed)
    except ValidationError as error:
        first = error.errors()[0]
        return _wrong(f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}")
    return Verdict(1)


def judge_cic(briefing: Briefing, parsed: dict[str, Any]) -> Verdict:
    """Whether F is right, is computed from the measurements, and all arithmetic written holds."""
    assessment = parsed.get("cic_assessment")
    if not isinstance(assessment, str):
        return _wrong("cic_assessment is no text")
    try:
        chains = read_chains(assessment)
        elsewhere = [
            chain
            for key, text in parsed.items()
            if key != "cic_assessment" and isinstance(text, str)
            for chain in read_chains(text)
        ]
    except UnreadableEqualityError as error:
        return _wrong(str(error))
    return _judge_functional(briefing, chains) or _judge_derivation(
        briefing, assessment, [*chains, *elsewhere]
    )


def judge_phase(briefing: Briefing, parsed: dict[str, Any]) -> Verdict:
    """Whether the phase label is the true one."""
    answered = parsed.get("phase")
    known = answered if answered in PHASES else "none"
    return Verdict(float(answered == briefing.phase), {"phase": known, "true": briefing.phase})


def judge_confidence(briefing: Briefing, parsed: dict[str, Any]) -> Verdict:
    """The share of the asked confidence bounds that are within tolerance of the true value."""
    bounds = parsed.get("confidence_bounds")
    if not isinstance(bounds, dict):
        return _wrong("confidence_bounds is no object")
    right = [
        _is_close(bounds.get(f"{months}m"), epistemic_bound(briefing.base, Decimal(months)))
        for months in briefing.horizons
    ]
    return Verdict(sum(right) / len(right), {"right": f"{sum(right)} of {len(right)}"})


def phase_macro_f1(verdicts: Sequence[Verdict]) -> dict[str, float]:
    """The unweighted mean of the phases' F1; an answer that is no phase is a miss."""
    true = [verdict.details["true"] for verdict in verdicts]
    answered = [verdict.details["phase"] for verdict in verdicts]
    return {"macro_f1": macro_f1(true, answered, labels=PHASES)}


CIC_SUITES = (
    CICSuite("json", judge_json),
    CICSuite("cic", judge_cic),
    CICSuite("phase", judge_phase, phase_macro_f1),
    CICSuite("confidence", judge_confidence),
)


def _judge_functional(briefing: Briefing, chains: Sequence[Chain]) -> Verdict | None:
    """Refuse an F that is missing or wrong."""
    named = [chain.operands for chain in chains if _FUNCTIONAL_NAMES.intersection(chain.names)]
    if not named or not all(operands and operands[-1].is_number for operands in named):
        return _wrong("no value of F is stated")
    for operands in named:
        if abs(operands[-1].value - briefing.functional) > FUNCTIONAL_TOLERANCE:
            return _wrong(f"F is {operands[-1].value}, truly {briefing.functional}")
    return None


def _judge_derivation(briefing: Briefing, text: str, chains: Sequence[Chain]) -> Verdict:
    """Refuse other inputs than the measurements, and any equality that does not hold."""
    measured = {"Φ": briefing.phi, "H": briefing.entropy, "C": briefing.causality}
    for name, value in named_values(text):
        if measured.get(name, value) != value:
            return _wrong(f"{name} is {value}, measured {measured[name]}")
    if not all(chain.holds() for chain in chains):
        return _wrong("an equality does not hold")
    return Verdict(1)


def _is_close(answered: object, true: Decimal) -> bool:
    if isinstance(answered, bool) or not isinstance(answered, int | float):
        return False
    return abs(Decimal(str(answered)) - true) <= BOUND_TOLERANCE


def _wrong(reason: str) -> Verdict:
    return Verdict(0, {"reason": reason})


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    parsed = dict(pairs)
    if len(parsed) < len(pairs):
        raise ValueError("a key occurs twice")
    return parsed


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")
