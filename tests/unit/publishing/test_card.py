"""The model card says what the store knows, in a form that the Hub and a person can read."""

from __future__ import annotations

import ast
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard, ModelCardData
from tests.unit.publishing.samples import BASE_REVISION, make_config, score

from latticeforge_trainer.artifacts import Store
from latticeforge_trainer.contract import ModelSource, PhaseTimes
from latticeforge_trainer.estimate.flops import CONVENTION
from latticeforge_trainer.publishing import tables
from latticeforge_trainer.publishing.card import Card, render
from latticeforge_trainer.publishing.lineage import Lineage, gather


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


@pytest.fixture
def lineage(store: Store) -> Lineage:
    return gather(make_config(store, "me/elle"), store)


def metadata(text: str) -> ModelCardData:
    """The card's header, as the Hub reads it."""
    data = ModelCard(text).data
    assert isinstance(data, ModelCardData)
    return data


def make_card(**fields: Any) -> Card:
    values: dict[str, Any] = {
        "title": "elle-72b-math",
        "destination": "me/elle",
        "artifact": "Merged",
        "cost": "41.20 USD",
        "curve": "loss_curve.png",
        "parts": {"published model": "c" * 64},
    }
    return Card(**(values | fields))


def test_metadata_name_base_data_licence_and_results(lineage: Lineage) -> None:
    data = metadata(render(make_card(), lineage))
    assert data.base_model == "me/base"
    assert data.get("base_model_relation") == "finetune"
    assert data.datasets == ["me/briefings"]
    assert data.license == "apache-2.0"
    assert data.library_name == "transformers"
    assert data.tags == ["latticeforge", "lora"]
    assert data.model_name == "elle"
    results = {result.metric_name: result for result in data.eval_results or []}
    assert results["json score"].metric_value == 0.97
    assert results["json score"].metric_args == {"n": 32, "interval_95": [0.87, 1]}
    assert results["math score"].metric_value == 0.45


def test_an_adapter_is_loaded_on_its_base(lineage: Lineage) -> None:
    text = render(make_card(artifact="Adapter"), lineage)
    data = metadata(text)
    assert (data.library_name, data.get("base_model_relation")) == ("peft", "adapter")
    assert 'base = "me/base"' in text
    assert "vllm serve me/base --enable-lora --max-lora-rank 8 --lora-modules tuned=me/elle" in text


def test_an_adapter_that_vllm_does_not_load_is_merged_first(lineage: Lineage) -> None:
    last = lineage.stages[-1]
    lora = {"lora": {"rank": 8, "modulesToSave": ["embed_tokens", "lm_head"]}}
    record = last.record.model_copy(update={"hyperparameters": lora})
    saved = replace(lineage, stages=[*lineage.stages[:-1], replace(last, record=record)])
    text = render(make_card(artifact="Adapter"), saved)
    assert "no adapter that holds `embed_tokens` and `lm_head`. To serve it, save" in text
    assert "```sh\nvllm serve ./merged\n```" in text
    assert "--enable-lora" not in text
    assert "```sh\nvllm serve me/elle\n```" in render(make_card(), saved)


@pytest.mark.parametrize("artifact", ["Merged", "Adapter"])
def test_the_code_on_the_card_is_python(lineage: Lineage, artifact: str) -> None:
    text = render(make_card(artifact=artifact), lineage)
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    ast.parse(code)


def test_every_number_of_the_making_is_there(lineage: Lineage) -> None:
    text = render(make_card(), lineage)
    assert "| base | 40.0 % (30.0 – 50.0) | 47.0 % (37.0 – 57.0) |" in text
    assert "| math | 60.0 % (50.0 – 70.0) | 45.0 % (35.0 – 55.0) |" in text
    assert "| cic | **97.0 %** (87.0 – 100.0) | **45.0 %** (35.0 – 55.0) |" in text
    assert "| model | json (n = 32) | math (n = 64) |" in text
    assert "| **cic** | LoRA | 99,000 | 60 | 2.500 → 0.750 | 1 h 42 min | 1,626 |" in text
    assert "| cic | `me/briefings` | `012345678901` | 4 | 500 | 91,000 |" in text
    assert "`learningRate` 2e-06, `epochs` 1, `lora.rank` 8, `lora.alpha` 16" in text
    assert f"`me/base` at revision `{BASE_REVISION}`" in text
    assert "Training took 3 h 24 min over all stages" in text
    assert "**41.20 USD**" in text
    assert "![Training loss of each stage over its optimizer steps](loss_curve.png)" in text
    assert f"published model: `{'c' * 64}`" in text
    assert "\n\n\n" not in text


def test_the_use_of_the_hardware_stands_beside_its_convention(lineage: Lineage) -> None:
    math, cic = lineage.stages
    assert math.trained is not None
    measured = {
        "gpu": "NVIDIA H200",
        "processes": 8,
        "mfu": 0.5912,
        "peak_memory_allocated_bytes": 837 * 2**30 // 10,
        "peak_memory_reserved_bytes": 84 * 2**30,
        "seconds": 90.0,
        "seconds_by_phase": PhaseTimes(forward=30, backward=55, checkpoint=10),
    }
    timed = replace(math, trained=math.trained.model_copy(update=measured))
    text = render(make_card(), replace(lineage, stages=[timed, cic]))
    row = "| **math** | 8 × NVIDIA H200 | 59.1 % | 83.7 / 84.0 GiB | "
    assert row + "forward 30 %, backward 55 %, checkpoint 10 % |" in text
    assert "| **cic** | – |" not in text  # nothing is known of it
    assert CONVENTION in text
    assert "\n\n\n" not in text
    known = {"seconds_by_phase": PhaseTimes(forward=40.0), "seconds": 80.0}
    on_cpu = replace(cic, trained=math.trained.model_copy(update=known))
    text = render(make_card(), replace(lineage, stages=[math, on_cpu]))
    assert "| **cic** | – | – | – | forward 50 % |" in text
    assert "| **math** | – | – |" not in text
    assert "MFU" not in render(make_card(), lineage)


def test_what_retention_removed_is_left_out(store: Store) -> None:
    config = make_config(store, "me/elle")
    whole = gather(config, store)
    bare = replace(
        whole,
        facts=None,
        stages=[
            replace(stage, prepared=None, trained=None, evaluated=None, losses=[])
            for stage in whole.stages
        ],
    )
    text = render(make_card(curve=None, cost=None), bare)
    data = metadata(text)
    assert data.eval_results is None
    assert data.license is None
    assert "![" not in text
    assert "| **cic** | LoRA | – | – | – | – | – |" in text
    assert "| cic | `me/briefings` | `main` | 4 | – | – |" in text
    assert "This model has not been evaluated." in text
    assert "Not recorded." in text


def test_a_local_base_is_no_hub_metadata(store: Store) -> None:
    config = make_config(store, "me/elle", base=ModelSource(model="./models/tiny"))
    lineage = gather(config, store)
    text = render(make_card(artifact="Adapter"), lineage)
    assert metadata(text).base_model is None
    assert f'base = "{store.root / "models/tiny"}"' in text


def test_scores_of_the_latest_table_count(lineage: Lineage) -> None:
    assert list(lineage.scores()) == ["base", "math", "cic"]
    table = tables.score_table(
        {"base": {"json": score("json", 0.5)}, "x": {"json": score("json", 1, 8)}}
    )
    assert table is not None
    assert table.rows[1] == ("x", ["**100.0 %** (90.0 – 100.0, n = 8)"])


def test_a_missing_score_is_a_dash() -> None:
    scores = {"base": {"json": score("json", 0.5)}, "x": {"cic": score("cic", 0.5)}}
    table = tables.score_table(scores)
    assert table is not None
    assert table.rows[0][1][1] == tables.ABSENT
    assert tables.score_table({}) is None


def test_cells_cannot_break_the_table() -> None:
    assert tables.cell("a|b\n`c`") == "a\\|b 'c'"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.6, "1 min 0 s"), (725, "12 min 5 s"), (6123, "1 h 42 min")],
)
def test_durations_are_read_at_a_glance(seconds: float, text: str) -> None:
    assert tables.duration(seconds) == text


def test_a_loss_on_held_out_samples_stands_beside_that_of_training(lineage: Lineage) -> None:
    last = lineage.stages[-1]
    assert last.trained is not None
    measured = last.trained.model_copy(update={"validation_loss": 0.812})
    stages = [*lineage.stages[:-1], replace(last, trained=measured)]
    text = render(make_card(), replace(lineage, stages=stages))
    assert "| 2.500 → 0.750, held out 0.812 |" in text
    assert text.count("held out") == render(make_card(), lineage).count("held out") + 1
