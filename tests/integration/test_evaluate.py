"""The evaluate step: each model is asked once, and a kill loses only the exam it interrupts."""

from __future__ import annotations

import json
import subprocess
import sys
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from latticeforge_trainer.artifacts import Store
from latticeforge_trainer.contract import (
    EvaluateConfig,
    EvaluatePayload,
    EvaluateResult,
    EvaluateRuntime,
    ModelRef,
    Progress,
    Score,
    StepKind,
    SuiteRequest,
    digest_of,
)
from latticeforge_trainer.errors import OutOfMemory, UserError
from latticeforge_trainer.evaluation import asking
from latticeforge_trainer.evaluation.exams import Judged, Reply, plan
from latticeforge_trainer.evaluation.scoring import unpaired_drop
from latticeforge_trainer.generate import Answer
from latticeforge_trainer.progress import Reporter
from latticeforge_trainer.steps import evaluate
from latticeforge_trainer.suites import SUITES, HarnessSuite, Problem, Verdict
from latticeforge_trainer.suites.base import share


class Killed(BaseException):
    """The process ends here."""


@dataclass(frozen=True)
class Sums:
    """A suite of sums, or one that judges only whether there is an answer."""

    name: str
    group: str = "sums"
    max_new_tokens: int = 4
    lenient: bool = False
    first: int = 0

    def problems(self, n: int, seed: int) -> list[Problem[int]]:
        return [
            Problem(f"sum-{i}", [{"role": "user", "content": f"{seed} + {i} ="}], seed + i)
            for i in range(self.first, self.first + n)
        ]

    def score(self, problem: Problem[int], answer: str) -> Verdict:
        right = self.lenient or answer == str(problem.truth)
        return Verdict(float(right), {"stated": answer})

    def summarize(self, verdicts: Sequence[Verdict]) -> Score:
        return share(self.name, verdicts)


@dataclass
class Models:
    """Stands in for loading and generating: knows which sums each model gets right."""

    right: dict[str, int] = field(default_factory=lambda: {"base": 1, "math": 3, "cic": 4})
    asked: list[tuple[str, int]] = field(default_factory=list)
    limits: set[int] = field(default_factory=set)
    fits: int = 1000
    dies_at: int = 0
    alive: list[weakref.ref[Any]] = field(default_factory=list)

    def load(self, reference: ModelRef, _: Store) -> tuple[Any, str]:
        assert [model for model in self.alive if model() is not None] == []
        model = torch.nn.Linear(1, 1)
        self.alive.append(weakref.ref(model))
        return model, reference.name

    def generate(
        self,
        _: object,
        tokenizer: str,
        prompts: Sequence[list[dict[str, str]]],
        *,
        max_new_tokens: int,
        batch_size: int,
        on_progress: Any,
    ) -> list[Answer]:
        self.limits.add(max_new_tokens)
        if batch_size > self.fits:
            raise torch.OutOfMemoryError
        if self.dies_at == len(self.asked) + 1:
            raise Killed
        self.asked.append((tokenizer, len(prompts)))
        on_progress(len(prompts), len(prompts))
        sums = [sum(map(int, prompt[-1]["content"][:-2].split(" + "))) for prompt in prompts]
        right = self.right[tokenizer]
        return [Answer(str(value if i < right else -1), 1, True) for i, value in enumerate(sums)]


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> Models:
    models = Models()
    monkeypatch.setattr(asking, "load_for_inference", models.load)
    monkeypatch.setattr(asking, "generate", models.generate)
    for suite in (
        Sums("sums"),
        Sums("said", lenient=True, max_new_tokens=9),
        Sums("more", group="more", first=9),
    ):
        monkeypatch.setitem(SUITES, suite.name, suite)
    return models


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


class Recorder:
    """A progress sink that keeps what it is sent."""

    def __init__(self) -> None:
        self.sent: list[Progress] = []

    def send(self, progress: Progress) -> None:
        self.sent.append(progress)


BASE = ModelRef(name="base", base_path="./base", base_revision="r")
MATH = BASE.model_copy(update={"name": "math", "artifact": "1" * 64})
CIC = BASE.model_copy(update={"name": "cic", "artifact": "2" * 64})


def make_config(
    *models: ModelRef, suites: Sequence[str] = ("sums", "said"), n: int = 4
) -> EvaluateConfig:
    requests = [SuiteRequest(suite=suite, samples=n, seed=7) for suite in suites]
    return EvaluateConfig(
        training="default/elle",
        stage=models[0].name,
        digest=digest_of([model.name for model in models], list(suites), n),
        payload=EvaluatePayload(suites=requests),
        runtime=EvaluateRuntime(model=models[0], compare=list(models[1:]), batch_size=8),
    )


def run(
    config: EvaluateConfig, store: Store, sink: Recorder | None = None
) -> tuple[EvaluateResult, bool]:
    reporter = Reporter(StepKind.EVALUATE, config.digest, sink or Recorder(), interval=0)
    return evaluate.run(config, store, reporter)


def test_the_table_has_the_model_first_and_drops_on_the_same_problems(
    store: Store, models: Models
) -> None:
    result, reused = run(make_config(CIC, BASE, MATH), store)
    assert not reused
    rows = {row.model: {score.suite: score.value for score in row.scores} for row in result.table}
    assert list(rows) == ["cic", "base", "math"]
    assert rows["cic"] == {"sums": 1, "said": 1}
    assert rows["base"] == {"sums": 0.25, "said": 1}
    assert rows["math"] == {"sums": 0.75, "said": 1}
    drops = {(drop.suite, drop.against): drop for drop in result.drops}
    assert drops["sums", "base"].drop == pytest.approx(-0.75)
    assert drops["sums", "previous"].drop == pytest.approx(-0.25)
    assert drops["said", "base"].drop == 0
    assert drops["sums", "base"].low < -0.75 < drops["sums", "base"].high


def test_suites_of_one_group_ask_once(store: Store, models: Models) -> None:
    run(make_config(CIC, BASE), store)
    assert models.asked == [("cic", 4), ("base", 4)]


def test_answers_do_not_depend_on_which_suites_of_a_group_are_asked(
    store: Store, models: Models
) -> None:
    run(make_config(CIC, suites=["sums"]), store)
    run(make_config(CIC, suites=["said"]), store)
    assert models.asked == [("cic", 4)]
    assert models.limits == {9}


def test_the_first_stages_previous_is_the_base(store: Store, models: Models) -> None:
    result, _ = run(make_config(MATH, BASE, suites=["sums"]), store)
    assert [drop.against for drop in result.drops] == ["base", "previous"]
    assert result.drops[0].drop == result.drops[1].drop == pytest.approx(-0.5)


def test_nothing_to_compare_with_gives_no_drops(store: Store, models: Models) -> None:
    result, _ = run(make_config(MATH), store)
    assert result.drops == []


def test_a_later_stage_asks_only_its_own_model(store: Store, models: Models) -> None:
    run(make_config(MATH, BASE), store)
    models.asked.clear()
    again = BASE.model_copy(update={"name": "start", "base_path": "./elsewhere"})
    run(make_config(CIC, again, MATH), store)
    assert models.asked == [("cic", 4)]


def test_the_same_weights_under_two_names_are_asked_once(store: Store, models: Models) -> None:
    twin = BASE.model_copy(update={"name": "twin"})
    result, _ = run(make_config(CIC, BASE, twin), store)
    assert models.asked == [("cic", 4), ("base", 4)]
    assert result.table[1].scores == result.table[2].scores


def test_other_problems_or_weights_are_asked_anew(store: Store, models: Models) -> None:
    run(make_config(CIC), store)
    run(make_config(CIC, n=5), store)
    run(make_config(CIC.model_copy(update={"adapter": "a"}), suites=["sums"]), store)
    assert models.asked == [("cic", 4), ("cic", 5), ("cic", 4)]


def test_a_finished_step_is_reused(store: Store, models: Models) -> None:
    first, _ = run(make_config(CIC, BASE), store)
    models.asked.clear()
    assert run(make_config(CIC, BASE), store) == (first, True)
    assert models.asked == []


def test_a_killed_step_goes_on_with_the_exam_it_was_at(store: Store, models: Models) -> None:
    config = make_config(CIC, BASE, suites=["sums", "more"])
    models.dies_at = 3
    with pytest.raises(Killed):
        run(config, store)
    assert models.asked == [("cic", 4), ("cic", 4)]
    models.dies_at = 0
    models.asked.clear()
    models.alive.clear()
    result, _ = run(config, store)
    assert models.asked == [("base", 4), ("base", 4)]
    assert store.manifest(config.digest).result == result  # type: ignore[union-attr]  # sealed


def test_one_model_is_freed_before_the_next_is_loaded(store: Store, models: Models) -> None:
    run(make_config(CIC, BASE, MATH), store)
    assert len(models.alive) == 3  # each load checked that no other model was alive


def test_answers_are_kept_with_truth_and_verdict(store: Store, models: Models) -> None:
    config = make_config(MATH, BASE)
    result, _ = run(config, store)
    folder = store.path(config.digest)
    assert json.loads((folder / "scores.json").read_bytes()) == result.to_json()
    lines = (folder / "answers/math/sums.jsonl").read_text().splitlines()
    last = json.loads(lines[3])
    assert last == {
        "task": "sum-3",
        "prompt": [{"role": "user", "content": "7 + 3 ="}],
        "answer": "-1",
        "finished": True,
        "truth": 10,
        "credit": 0.0,
        "details": {"stated": "-1"},
    }
    assert (folder / "answers/base/said.jsonl").is_file()


def test_progress_runs_over_all_models_with_the_time_that_is_left(
    store: Store, models: Models
) -> None:
    sink = Recorder()
    run(make_config(CIC, BASE), store, sink)
    answered = [progress for progress in sink.sent if "answers sums" in progress.message]
    assert [progress.fraction for progress in answered] == [0.5, 1.0]
    assert answered[0].message == "cic answers sums: 4 of 8 answers"
    assert answered[0].eta_seconds is not None
    fractions = [progress.fraction for progress in sink.sent]
    assert fractions == sorted(fractions)


def test_smaller_batches_are_tried_when_memory_runs_out(store: Store, models: Models) -> None:
    models.fits = 2
    result, _ = run(make_config(CIC), store)
    assert result.table[0].scores[0].value == 1
    models.fits = 0
    with pytest.raises(OutOfMemory, match="cic does not fit in GPU memory with a single prompt"):
        run(make_config(CIC, n=3), store)


def test_an_unknown_suite_is_refused_with_those_there_are(store: Store, models: Models) -> None:
    with pytest.raises(UserError, match=r"no suite 'poetry'.*json.*math"):
        run(make_config(CIC, suites=["poetry"]), store)
    assert models.asked == []


def test_a_harness_task_is_scored_once_and_dropped_without_pairs(
    store: Store, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[object] = []

    def score(self: HarnessSuite, model: object, tokenizer: str, **options: object) -> Score:
        calls.append((tokenizer, options))
        value = {"base": 0.5, "cic": 0.4}[tokenizer]
        return Score(suite=self.name, value=value, low=value - 0.1, high=value + 0.1, n=4)

    monkeypatch.setattr(HarnessSuite, "evaluate", score)
    result, _ = run(make_config(CIC, BASE, suites=["lm-eval:gsm8k"]), store)
    options = {"n": 4, "seed": 7, "batch_size": 8}
    assert calls == [("cic", options), ("base", options)]
    assert result.drops[0].drop == pytest.approx(0.1)
    assert result.drops[0].low == pytest.approx(0.1 - 0.1 * 2**0.5)
    run(make_config(CIC, suites=["lm-eval:gsm8k"]), store)
    assert len(calls) == 2


def test_an_unpaired_drop_stays_a_drop_of_shares() -> None:
    sure = Score(suite="s", value=1, low=1, high=1, n=9)
    none = Score(suite="s", value=0, low=0, high=0, n=9)
    wide = Score(suite="s", value=0.5, low=0, high=1, n=1)
    assert unpaired_drop(sure, none) == (1, 1, 1)
    assert unpaired_drop(wide, sure) == (-0.5, -1, 0)
    before = Score(suite="s", value=0.5, low=0.4, high=0.9, n=9)
    after = Score(suite="s", value=0.3, low=0.2, high=0.7, n=9)
    drop, low, high = unpaired_drop(before, after)
    assert drop == pytest.approx(0.2)
    assert low == pytest.approx(0.2 - (0.1**2 + 0.4**2) ** 0.5)
    assert high == pytest.approx(0.2 + (0.4**2 + 0.1**2) ** 0.5)
    assert unpaired_drop(none, wide) == (-0.5, -1, 0)


def test_real_suites_and_a_real_model(store: Store, tiny_model: Path) -> None:
    base = ModelRef(name="base", base_path=str(tiny_model), base_revision="r")
    config = make_config(base, suites=["json", "cic"], n=2)
    result, _ = run(config, store)
    assert [(score.suite, score.n) for score in result.table[0].scores] == [
        ("json", 2),
        ("cic", 2),
    ]
    line = json.loads(
        (store.path(config.digest) / "answers/base/cic.jsonl").read_text().split("\n")[0]
    )
    assert line["truth"]
    assert line["finished"] is False
    assert line["answer"]


def test_torch_is_not_imported_when_every_answer_is_there(store: Store) -> None:
    config = make_config(BASE, suites=["json", "math"], n=1)
    for item in plan(config.payload.suites):
        assert isinstance(item, Judged)
        item.exam.keep(BASE, [Reply("{}", finished=True)], store)
    (store.root / "step.json").write_text(json.dumps(config.to_json()))
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from latticeforge_trainer.__main__ import load_config, run_step\n"
        "from latticeforge_trainer.artifacts import Store\n"
        "from latticeforge_trainer.progress import LogSink, Reporter\n"
        "config = load_config(Path('step.json'), 'evaluate')\n"
        "code = run_step(config, Store(Path()), Reporter('evaluate', config.digest, LogSink()))\n"
        "print(int(code), 'torch' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=store.root,
        env={"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == "0 False\n", done.stderr
