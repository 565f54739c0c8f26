"""Any task of lm-evaluation-harness as a suite, ``lm-eval:TASK``, where that is installed.

The harness asks and judges by itself, so these suites have no problems of ours: they take the
model and return its score.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

from latticeforge_trainer.contract import Score
from latticeforge_trainer.errors import UserError
from latticeforge_trainer.suites.statistics import Z_95

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PREFIX = "lm-eval:"


@dataclass(frozen=True)
class HarnessSuite:
    """One task of lm-evaluation-harness."""

    task: str

    @property
    def name(self) -> str:
        """What a StackedTraining calls it."""
        return f"{PREFIX}{self.task}"

    def evaluate(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        n: int,
        seed: int,
        batch_size: int,
    ) -> Score:
        """Run the task's first n documents and return its main metric with a normal interval.

        Raises:
            UserError: the harness is not installed, or its task gives no share with an error.
        """
        if find_spec("lm_eval") is None:
            raise UserError(
                f"suite {self.name} needs lm-evaluation-harness: install the package lm-eval"
            )
        harness = import_module("lm_eval")  # optional, so neither a dependency nor type-checked
        models = import_module("lm_eval.models.huggingface")
        results = harness.simple_evaluate(
            model=models.HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size),
            tasks=[self.task],
            limit=n,
            random_seed=seed,
            bootstrap_iters=0,
            verbosity="ERROR",
        )
        return _score(self.name, results["results"][self.task], results["n-samples"][self.task])


def _score(name: str, metrics: dict[str, object], samples: dict[str, int]) -> Score:
    """The task's first metric that is a share, with its standard error."""
    for metric, value in metrics.items():
        key, _, filtering = metric.partition(",")
        error = metrics.get(f"{key}_stderr,{filtering}")
        if isinstance(value, float) and isinstance(error, float) and 0 <= value <= 1:
            low, high = max(0.0, value - Z_95 * error), min(1.0, value + Z_95 * error)
            return Score(suite=name, value=value, low=low, high=high, n=samples["effective"])
    raise UserError(f"suite {name} gives no metric between 0 and 1 with a standard error")
