"""Short arithmetic with worked answers: what keeps a model's sums right, and proves it.

Six procedural tasks of reasoning-gym (chosen because a few lines of working solve them exactly)
take turns: sums, products, greatest common divisors, least common multiples, linear equations and
fractions. A problem is identified by its numbers and not by its wording, so the splits do not
share ``gcd(12, 18)`` under two phrasings.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import gcd
from types import MappingProxyType
from typing import Any

from latticeforge_trainer.domain.samples import Sample, Split, fingerprint, split_of
from latticeforge_trainer.errors import UserError

INSTRUCTION = 'Show the steps, then write "Answer:" and the result.'
"""Ends every question, so that a model that was never trained on it can score too."""

MAX_REPEATS = 1000
"""Draws in a row with nothing new after which a task counts as used up."""

_ONLY_ANSWER = re.compile(r" Give only [^.]* as your final answer\.")
"""A sentence of reasoning-gym's questions that contradicts ``INSTRUCTION``."""

Facts = Mapping[str, Any]
"""What reasoning-gym states of a problem beside its text, and its ``answer``."""


@dataclass(frozen=True)
class MathTask:
    """One task of reasoning-gym: how hard, how to identify a problem, how to work it out."""

    name: str
    config: Mapping[str, Any]
    key: Callable[[Facts], str]
    """Equal for equal problems, whatever their wording."""
    work: Callable[[Facts], str]
    """The steps of the solution."""


@dataclass(frozen=True)
class MathProblem:
    """A question, its steps and its final answer."""

    task: str
    """Name of the reasoning-gym task."""
    key: str
    question: str
    steps: str
    answer: str

    @property
    def identity(self) -> str:
        """What decides the split: the same whichever seed drew it."""
        return f"{self.task} {self.key}"


def math_problems(seed: int, split: Split) -> Iterator[MathProblem]:
    """Draw different problems of one split without end, the tasks in turn.

    Raises:
        UserError: a task has no more problems that have not been drawn yet.
    """
    streams = [_new_problems(task, seed, split) for task in TASKS]
    while True:
        for stream in streams:
            yield next(stream)


def sample_of(problem: MathProblem) -> Sample:
    """The problem as a chat sample, with an id that is the same wherever it is drawn."""
    task = f"{problem.task}-{fingerprint(problem.identity):016x}"
    return Sample(task, prompt_of(problem), f"{problem.steps}\nAnswer: {problem.answer}")


def prompt_of(problem: MathProblem) -> str:
    """The question with the instruction how to answer."""
    return f"{problem.question}\n{INSTRUCTION}"


def _new_problems(task: MathTask, seed: int, split: Split) -> Iterator[MathProblem]:
    seen: set[str] = set()
    repeats = 0
    for problem in _draw(task, seed):
        if problem.key in seen:
            repeats += 1
            if repeats > MAX_REPEATS:
                raise UserError(
                    f"math task {task.name} has only {len(seen)} different problems "
                    f"in the {split} split; ask for fewer"
                )
        elif split_of(problem.identity) == split:
            repeats = 0
            seen.add(problem.key)
            yield problem


def _draw(task: MathTask, seed: int) -> Iterator[MathProblem]:
    import reasoning_gym  # noqa: PLC0415  (a second to import, which --help should not pay)

    # Its problem i comes from seed + i: neighbouring seeds would draw the same problems.
    start = fingerprint(f"math {task.name} {seed}") >> 2
    dataset = reasoning_gym.create_dataset(task.name, seed=start, **task.config)
    index = 0
    while True:
        item = dataset[index]
        facts = {**item["metadata"], "answer": item["answer"]}
        question = _ONLY_ANSWER.sub("", item["question"]).strip()
        yield MathProblem(task.name, task.key(facts), question, task.work(facts), item["answer"])
        index += 1


def _sum_steps(facts: Facts) -> str:
    """``57 + 87 - 70`` from left to right."""
    first, *rest = re.findall(r"([+-]?) ?(\d+)", facts["expression"])
    total, steps = int(first[1]), []
    for sign, number in rest:
        before, total = total, total + int(f"{sign}{number}")
        steps.append(f"{before} {sign} {number} = {total}")
    return "\n".join(steps)


def _product_steps(facts: Facts) -> str:
    """Partial products by the digits of the second factor."""
    first, second = (int(factor) for factor in facts["expression"].split(" * "))
    tens, ones = second - second % 10, second % 10
    if not tens or not ones:
        return f"{first} * {second} = {first * second}"
    return (
        f"{first} * {second} = {first} * {tens} + {first} * {ones}"
        f" = {first * tens} + {first * ones} = {first * second}"
    )


def _gcd_steps(facts: Facts) -> str:
    """Euclid's algorithm."""
    a, b = sorted(facts["numbers"], reverse=True)
    steps = []
    while b:
        steps.append(f"{a} = {a // b} * {b} + {a % b}")
        a, b = b, a % b
    return "\n".join(steps)


def _lcm_steps(facts: Facts) -> str:
    """The product over the greatest common divisor."""
    a, b = facts["numbers"]
    return f"gcd({a}, {b}) = {gcd(a, b)}\n{a} * {b} / {gcd(a, b)} = {a * b // gcd(a, b)}"


def _equation_steps(facts: Facts) -> str:
    """Constants to the right, then divide by the coefficient."""
    variable = facts["variable"]
    left, right = facts["equation"].split(" = ")
    slope = constant = 0
    for sign, number, name in re.findall(rf"([+-]?) ?(\d*)\*?({variable}?)", left):
        if name:
            slope += int(f"{sign}{number or 1}")
        elif number:
            constant += int(f"{sign}{number}")
    product = int(right) - constant
    moved = f"- {constant}" if constant > 0 else f"+ {-constant}"
    return (
        f"{slope}*{variable} = {right} {moved} = {product}\n"
        f"{variable} = {product} / {slope} = {product // slope}"
    )


def _fraction_steps(facts: Facts) -> str:
    """Both parts over their greatest common divisor."""
    top, bottom = facts["numerator"], facts["denominator"]
    common = gcd(top, bottom)
    return (
        f"gcd({top}, {bottom}) = {common}\n"
        f"{top} / {common} = {top // common}\n{bottom} / {common} = {bottom // common}"
    )


def _numbers_key(facts: Facts) -> str:
    return " ".join(str(number) for number in sorted(facts["numbers"]))


def _task(
    name: str, key: Callable[[Facts], str], work: Callable[[Facts], str], **config: Any
) -> MathTask:
    return MathTask(name, MappingProxyType(config), key, work)


TASKS = (
    _task(
        "chain_sum",
        lambda facts: str(facts["expression"]),
        _sum_steps,
        min_terms=2,
        max_terms=4,
        min_digits=2,
        max_digits=2,
    ),
    _task(
        "products",
        lambda facts: " ".join(sorted(facts["expression"].split(" * "))),
        _product_steps,
        min_digits=2,
        max_digits=2,
    ),
    _task("gcd", _numbers_key, _gcd_steps, max_value=200),
    _task("lcm", _numbers_key, _lcm_steps, min_value=2, max_value=150),
    _task(
        "simple_equations",
        lambda facts: str(facts["equation"]).replace(facts["variable"], "x"),
        _equation_steps,
        min_terms=2,
        max_terms=2,
        min_value=2,
        max_value=50,
        operators_weights=[0.5, 0.5, 0.0],
    ),
    _task(
        "fraction_simplification",
        lambda facts: f"{facts['numerator']}/{facts['denominator']}",
        _fraction_steps,
        max_value=50,
        min_factor=2,
        max_factor=20,
        styles=("plain",),
    ),
)
