"""Math problems: right by their own steps, deterministic, of two splits that share nothing."""

import re
from collections import Counter
from fractions import Fraction
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latticeforge_trainer.domain import math_problems as module
from latticeforge_trainer.domain.math_problems import MathProblem, math_problems, sample_of
from latticeforge_trainer.domain.samples import Split, fingerprint
from latticeforge_trainer.errors import UserError
from latticeforge_trainer.suites import SUITES, Problem


def draw(n: int, seed: int = 0, split: Split = "train") -> list[MathProblem]:
    return list(islice(math_problems(seed, split), n))


def value(expression: str) -> Fraction:
    """Evaluate sums and products of integers, exactly."""
    spelled = re.sub(r"\d+", r"Fraction(\g<0>)", expression)
    assert re.fullmatch(r"[-+*/ ()\dFraction]+", spelled), expression
    result: Fraction = eval(spelled, {"Fraction": Fraction})  # noqa: S307  (checked just above)
    return result


def test_tasks_take_turns() -> None:
    names = [task.name for task in module.TASKS]
    assert [problem.task for problem in draw(12)] == names * 2


def test_every_equality_in_the_steps_holds() -> None:
    checked = Counter[str]()
    for problem in draw(600):
        assert "- -" not in problem.steps
        for line in problem.steps.splitlines():
            sides = [side for side in line.split(" = ") if not re.search(r"[a-z]", side)]
            assert len({value(side) for side in sides}) == 1, problem
            checked[problem.task] += len(sides) > 1
    assert all(checked[task.name] > 50 for task in module.TASKS), checked


def test_the_steps_lead_to_the_answer() -> None:
    for problem in draw(300):
        last = problem.steps.splitlines()[-1]
        if problem.task == "gcd":
            assert last.endswith(f"* {problem.answer} + 0")
        elif problem.task == "fraction_simplification":
            results = re.findall(r"= (\d+)$", problem.steps, re.MULTILINE)
            assert "/".join(results[1:]) == problem.answer
        else:
            assert last.endswith(f"= {problem.answer}")


def test_the_answer_is_right_by_the_suite() -> None:
    for problem in draw(300):
        assert SUITES["math"].score(Problem("", [], problem), sample_of(problem).answer).correct


def test_questions_ask_for_the_steps() -> None:
    for problem in draw(60):
        prompt = sample_of(problem).prompt
        assert prompt.endswith(f"\n{module.INSTRUCTION}")
        assert "Give only" not in prompt


def test_same_seed_same_bytes() -> None:
    """Fails too when a release of reasoning-gym draws or words its problems differently."""
    text = "".join(sample_of(problem).prompt for problem in draw(60, seed=7))
    assert f"{fingerprint(text):016x}" == "3403fc04d980f4dc"


def test_neighbouring_seeds_share_few_problems() -> None:
    one, other = ({p.identity for p in draw(120, seed)} for seed in (1, 2))
    assert len(one & other) < 10


@settings(max_examples=10, deadline=None)
@given(st.integers(), st.integers())
def test_splits_share_no_problem(one: int, other: int) -> None:
    train = {p.identity for p in draw(120, one, "train")}
    heldout = {p.identity for p in draw(60, other, "heldout")}
    assert not train & heldout


def test_no_problem_comes_twice() -> None:
    identities = [problem.identity for problem in draw(1200)]
    assert len(set(identities)) == len(identities)


@pytest.mark.parametrize(
    ("task", "one", "other"),
    [
        ("gcd", {"numbers": [12, 18]}, {"numbers": [18, 12]}),
        ("products", {"expression": "12 * 34"}, {"expression": "34 * 12"}),
        (
            "simple_equations",
            {"equation": "3*e = 9", "variable": "e"},
            {"equation": "3*z = 9", "variable": "z"},
        ),
    ],
)
def test_one_problem_in_two_wordings_is_one(
    task: str, one: dict[str, object], other: dict[str, object]
) -> None:
    key = {task.name: task.key for task in module.TASKS}[task]
    assert key(one) == key(other)


def test_running_out_of_problems_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    few = module._task("gcd", module._numbers_key, module._gcd_steps, max_value=4)
    monkeypatch.setattr(module, "TASKS", (few,))
    with pytest.raises(UserError, match=r"gcd has only [0-9]+ different problems in the train"):
        draw(100)
