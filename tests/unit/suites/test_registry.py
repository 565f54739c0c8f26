"""The registry of suites, and lm-evaluation-harness behind its own name."""

import subprocess
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from latticeforge_trainer import suites
from latticeforge_trainer.errors import UserError
from latticeforge_trainer.suites import HarnessSuite, suite_named

MODEL: Any = object()


def test_every_suite_is_found_by_its_name() -> None:
    assert list(suites.SUITES) == ["json", "cic", "phase", "confidence", "math"]
    assert all(suite_named(name) is suite for name, suite in suites.SUITES.items())
    assert all(suite.name == name for name, suite in suites.SUITES.items())


@pytest.mark.parametrize("name", ["", "JSON", "lm-eval:", "mmlu"])
def test_unknown_suite_lists_the_known(name: str) -> None:
    with pytest.raises(UserError, match=f"no suite '{name}'; there are json, cic, .*lm-eval:TASK"):
        suite_named(name)


def test_importing_the_suites_is_cheap() -> None:
    code = (
        "import sys; import latticeforge_trainer.suites, latticeforge_trainer.domain.datasets; "
        "heavy = {'torch', 'transformers', 'reasoning_gym', 'math_verify', 'sympy', 'numpy'}; "
        "sys.exit(' '.join(heavy & sys.modules.keys()) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert result.returncode == 0, result.stderr


def test_harness_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latticeforge_trainer.suites.lm_eval.find_spec", lambda _: None)
    suite = suite_named("lm-eval:arc_easy")
    assert isinstance(suite, HarnessSuite)
    with pytest.raises(UserError, match=r"lm-eval:arc_easy needs .* install the package lm-eval"):
        suite.evaluate(MODEL, MODEL, n=8, seed=0, batch_size=4)


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A stand-in with the harness's signatures and result layout; it records how it is called."""
    calls: dict[str, Any] = {"metrics": {}}

    def simple_evaluate(**arguments: Any) -> dict[str, Any]:
        calls.update(arguments)
        (task,) = arguments["tasks"]
        samples = {"original": 100, "effective": arguments["limit"]}
        return {"results": {task: calls["metrics"]}, "n-samples": {task: samples}}

    package, models = ModuleType("lm_eval"), ModuleType("lm_eval.models.huggingface")
    vars(package)["simple_evaluate"] = simple_evaluate
    vars(models)["HFLM"] = SimpleNamespace
    monkeypatch.setitem(sys.modules, "lm_eval", package)
    monkeypatch.setitem(sys.modules, "lm_eval.models.huggingface", models)
    monkeypatch.setattr("latticeforge_trainer.suites.lm_eval.find_spec", lambda _: object())
    return calls


def test_harness_score(harness: dict[str, Any]) -> None:
    harness["metrics"] = {"alias": "arc", "acc,none": 0.75, "acc_stderr,none": 0.15}
    score = HarnessSuite("arc_easy").evaluate(MODEL, MODEL, n=8, seed=3, batch_size=4)
    assert (score.suite, score.n, score.value, score.high) == ("lm-eval:arc_easy", 8, 0.75, 1.0)
    assert score.low == pytest.approx(0.75 - 1.96 * 0.15, abs=1e-4)
    assert (harness["limit"], harness["random_seed"]) == (8, 3)
    assert (harness["model"].pretrained, harness["model"].batch_size) == (MODEL, 4)


def test_harness_task_without_a_share(harness: dict[str, Any]) -> None:
    harness["metrics"] = {"alias": "wikitext", "ppl,none": 12.5, "ppl_stderr,none": 0.5}
    harness["metrics"] |= {"acc,none": 0.5, "acc_stderr,none": "N/A"}
    with pytest.raises(UserError, match="lm-eval:wikitext gives no metric between 0 and 1"):
        HarnessSuite("wikitext").evaluate(MODEL, MODEL, n=8, seed=0, batch_size=4)
