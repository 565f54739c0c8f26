"""Which option is taken: cost to the cent, budget, deadline, objective."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from math import floor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.core.planning.cases import asked, h200

from latticeforge_operator.core.planning import Option, Spread, Work, words
from latticeforge_operator.core.planning.choice import choose, closest

PRICES = st.decimals("0.01", "99.99", places=2)
SECONDS = st.integers(1, 10**6)


def option(
    gpus: int, seconds: int, price: Decimal | str = "3.59", *, error: float = 0.2, aside: int = 0
) -> Option:
    """One train step, and one that holds nothing."""
    spread = Spread(round(seconds * (1 - error)), seconds, round(seconds * (1 + error)))
    works = (
        Work("one/train", gpus, spread, ""),
        Work("publish", 0, Spread(aside, aside, aside), ""),
    )
    return Option(h200(pricePerGPUHour=str(price)), gpus, works=works)


OPTIONS = st.lists(
    st.builds(option, st.sampled_from([1, 2, 4, 8]), SECONDS, PRICES), min_size=1, max_size=8
)


def judged(options: list[Option], **fields: Any) -> list[Option]:
    """Options refused as `option_of` refuses them."""
    spec = asked(**fields)
    return [replace(o, refusal=words.too_slow(spec, o) or words.too_dear(spec, o)) for o in options]


def picked(options: list[Option], objective: str, limit: Decimal | None = None) -> Option | None:
    fields: dict[str, Any] = {"compute": {"objective": objective}}
    if limit is not None:
        fields["budget"] = {"limit": str(limit)}
    return choose(asked(**fields), judged(options, **fields))


@given(st.integers(1, 64), SECONDS, PRICES)
def test_cost_is_hours_times_gpus_times_price_to_the_cent(
    gpus: int, seconds: int, price: Decimal
) -> None:
    cents = 100 * Fraction(seconds, 3600) * gpus * Fraction(price)
    cost = option(gpus, seconds, price, aside=7200).cost.expected
    assert cost * 100 == floor(cents + Fraction(1, 2))


def test_steps_on_cpu_cost_time_and_no_money() -> None:
    assert option(8, 3600, aside=1800).seconds.expected == 5400
    assert option(8, 3600, aside=1800).cost.expected == Decimal("28.72")


@given(OPTIONS, st.sampled_from(["Cheapest", "Fastest"]), st.none() | PRICES)
def test_nothing_affordable_is_both_faster_and_cheaper(
    options: list[Option], objective: str, limit: Decimal | None
) -> None:
    chosen = picked(options, objective, limit)
    if chosen is None:
        assert limit is not None
        assert all(o.cost.low > limit for o in options)
        return
    for other in options:
        faster = other.seconds.expected < chosen.seconds.expected
        assert not (faster and other.cost.expected < chosen.cost.expected)


@given(OPTIONS, PRICES, PRICES)
def test_more_budget_is_never_slower(options: list[Option], one: Decimal, two: Decimal) -> None:
    less, more = sorted([one, two])
    poor, rich = picked(options, "Fastest", less), picked(options, "Fastest", more)
    if poor is not None:
        assert rich is not None
        assert rich.seconds.expected <= poor.seconds.expected


@given(OPTIONS)
def test_cheapest_is_within_a_twentieth_of_the_least(options: list[Option]) -> None:
    chosen = picked(options, "Cheapest")
    assert chosen is not None
    least = min(o.cost.expected for o in options)
    assert chosen.cost.expected <= least * Decimal("1.05")


def test_a_few_cents_are_given_for_half_the_time() -> None:
    one, two, four = option(1, 7200), option(2, 3650), option(4, 2500)
    assert picked([one, two, four], "Cheapest") == two
    assert picked([one, two, four], "Fastest") == four


def test_the_budget_comes_before_the_objective() -> None:
    slow, fast = option(1, 7200), option(8, 1200)
    assert picked([slow, fast], "Fastest", Decimal(9)) == slow
    assert picked([slow, fast], "Fastest", Decimal(10)) == fast


def test_where_none_is_expected_to_stay_within_the_budget_the_cheapest_is_taken() -> None:
    slow, fast = option(1, 7200), option(8, 1000)  # 7.18 and 7.98 USD, at best 5.74 and 6.38
    for objective in ("Cheapest", "Fastest"):
        assert picked([slow, fast], objective, Decimal(7)) == slow


@pytest.mark.parametrize(
    ("budget", "refusal"),
    [
        ({"limit": "5"}, "costs 7.18 USD (5.74–8.62), more than budget.limit 5 even at best"),
        ({"limit": "6"}, None),
        ({"limit": "5", "onExceed": "Warn"}, None),
    ],
    ids=["even the least is too much", "the least is not", "a warning only"],
)
def test_what_even_at_best_costs_more_is_refused(
    budget: dict[str, str], refusal: str | None
) -> None:
    assert judged([option(1, 7200)], budget=budget)[0].refusal == refusal


def test_a_deadline_is_for_the_whole_stack() -> None:
    late = judged([option(1, 7200, aside=3600)], compute={"deadline": "2h30m"})
    assert late[0].refusal == "takes 3.0 h, more than compute.deadline 2h30m"
    assert judged([option(1, 7200, aside=3600)], compute={"deadline": "3h"})[0].refusal is None


@pytest.mark.parametrize(
    ("fields", "gpus"),
    [({"budget": {"limit": "1"}}, 1), ({"compute": {"deadline": "1m"}}, 4)],
    ids=["the cheapest is still too dear", "the fastest is still too slow"],
)
def test_the_closest_refused_option_is_explained(fields: dict[str, Any], gpus: int) -> None:
    refused = judged([option(1, 7200), option(2, 3650), option(4, 2500)], **fields)
    assert closest(asked(**fields), refused).gpus == gpus


def test_where_nothing_trains_the_most_gpus_are_explained() -> None:
    refused = [Option(h200(), gpus, refusal="no") for gpus in (1, 8, 2)]
    assert closest(asked(), refused).gpus == 8


def test_unknown_tokens_break_no_limit() -> None:
    unknown = replace(option(8, 10**6), per_million=True)
    fields = {"budget": {"limit": "1"}, "compute": {"deadline": "1h"}}
    assert judged([unknown], **fields)[0].refusal is None
    assert choose(asked(**fields), [unknown]) == unknown
