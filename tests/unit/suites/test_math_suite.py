"""The math suite: what counts as the final answer, and when it is right."""

import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latticeforge_trainer.domain.math_problems import MathProblem, math_problems
from latticeforge_trainer.suites import SUITES, Problem
from latticeforge_trainer.suites.math_suite import final_answer, same_value

SUITE = SUITES["math"]


def credit(answer: str, true: str = "13", task: str = "simple_equations") -> float:
    return SUITE.score(Problem("", [], MathProblem(task, "", "", "", true)), answer).credit


@pytest.mark.parametrize(
    ("text", "final"),
    [
        ("Answer: 13", "13"),
        ("2 + 11 = 13\nAnswer: 13", "13"),
        ("**Answer:** 13.", "13"),
        ("answer is: x = -13", "-13"),
        ("Answer: 12\nNo, that is wrong.\nAnswer: 13", "13"),
        ("Answer: 13\nThere are 7 days in a week.", "13"),
        ("Answer: 1,027", "1027"),
        ("Answer: $\\frac{9}{29}$", "9/29"),
        ("Answer: 9 / 29", "9/29"),
        ("Answer: \\(\\boxed{13}\\)", "13"),
        ("so it is \\boxed{\\dfrac{9}{29}} of 40", "9/29"),
        ("The sum is 12 + 1, which makes 13.", "13"),
        ("−13", "-13"),
        ("2.50", "2.50"),
        ("27, 146", "146"),
        ("I do not know.", ""),
        ("Answer: none", ""),
        ("", ""),
    ],
)
def test_final_answer(text: str, final: str) -> None:
    assert final_answer(text) == final


@pytest.mark.parametrize(
    "answer", ["13", "Answer: 13.0", "26/2", "Answer: \\frac{26}{2}", "x = 13"]
)
def test_right(answer: str) -> None:
    assert credit(answer) == 1


@pytest.mark.parametrize("answer", ["", "14", "Answer: 12\n13 is not it", "3 + 10", "13/0", "1e1"])
def test_wrong(answer: str) -> None:
    assert credit(answer) == 0


def test_a_fraction_must_be_in_lowest_terms_where_those_were_asked_for() -> None:
    assert credit("9/29", "9/29", "fraction_simplification") == 1
    assert credit("\\frac{9}{29}", "9/29", "fraction_simplification") == 1
    assert credit("18/58", "9/29", "fraction_simplification") == 0


def test_hostile_values_do_not_hang() -> None:
    started = time.monotonic()
    for text in (
        "9**9**9**9",
        "9^9^9^9",
        "Answer: " + "9" * 100_000,
        "1/" * 5000 + "1",
        "\\boxed{" * 9999,
    ):
        assert credit(text) == 0
    assert time.monotonic() - started < 5
    assert not same_value("1" * 61, "1" * 61), "too long to be looked at"


def test_it_works_outside_the_main_thread() -> None:
    """math-verify's own time limits are signals, which only the main thread can take."""
    results: list[bool] = []
    thread = threading.Thread(target=lambda: results.append(same_value("26/2", "13")))
    thread.start()
    thread.join(60)
    assert results == [True]


@given(st.text(alphabet="0123456789-−/., $\\{}()frac boxed answer:=\n", max_size=60))
def test_no_answer_makes_it_raise(text: str) -> None:
    assert credit(text) in (0, 1)


def test_problems_are_held_out_and_deterministic() -> None:
    problems = SUITE.problems(24, seed=3)
    assert problems == SUITE.problems(24, seed=3)
    assert problems[:6] == SUITE.problems(6, seed=3)
    train = math_problems(3, "train")
    trained = {next(train).identity for _ in range(300)}
    assert not trained & {problem.truth.identity for problem in problems}
    assert len({problem.task for problem in problems}) == 24


def test_summary() -> None:
    problems = SUITE.problems(12, seed=0)
    score = SUITE.summarize([SUITE.score(p, p.truth.answer) for p in problems])
    assert (score.suite, score.value, score.n, score.extra) == ("math", 1, 12, {})
