"""How the planner's benchmark splits, fits and counts, on runs that are made up."""

from __future__ import annotations

import json
import random
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from benchmarks import planner_report
from benchmarks.planner import OUT_OF_MEMORY, RAW, append, read_rows
from benchmarks.planner_report import (
    Comparison,
    compare,
    errors_table,
    fit,
    halves,
    mean_error,
    report,
    verdicts,
)
from benchmarks.planner_runs import boundary, chip_of, matrix, planned
from benchmarks.trainer import GIB, Run

from latticeforge_trainer.estimate.chips import chip
from latticeforge_trainer.estimate.constants import FITTED, Constants
from latticeforge_trainer.estimate.memory import gpu_memory
from latticeforge_trainer.estimate.speed import speed

H200 = chip("H200")
WORLD = replace(FITTED, context=GIB, products=0.6, fragments=dict.fromkeys(FITTED.fragments, 0.02))
"""What is true of the made-up runs."""


def made(run: Run, constants: Constants = WORLD, **changes: Any) -> dict[str, Any]:
    """A run as if it had come to what some constants say."""
    of = planned(run, H200)
    memory = gpu_memory(of, constants=constants)
    figures = {
        "device": "NVIDIA H200",
        "outside_gib": constants.context / GIB,
        "allocated_gib": memory.allocated / GIB,
        "reserved_gib": memory.reserved / GIB,
        "tokens_per_second": speed(of, constants=constants).tokens_per_second,
    }
    return asdict(run) | figures | changes


def rows(count: int) -> list[dict[str, Any]]:
    return [made(run) for run in matrix()[:count]]


def test_every_second_run_that_ran_is_fitted_on_in_whatever_order_they_came() -> None:
    ran = rows(9)
    failed = asdict(matrix()[9]) | {"error": OUT_OF_MEMORY}
    mixed = [*ran, failed]
    random.Random(0).shuffle(mixed)  # noqa: S311  (no secret)
    fitted, judged = halves(mixed)
    assert (fitted, judged) == halves([*ran, failed])
    assert (len(fitted), len(judged)) == (5, 4)
    assert {row["row"] for row in fitted + judged} == {row["row"] for row in ran}


def test_an_error_is_a_share_of_what_was_measured() -> None:
    run = matrix()[0]
    found = compare(made(run, FITTED), FITTED)
    assert mean_error("allocated", [found]) == (0, 0)
    low = replace(found, row=found.row | {"tokens_per_second": found.tokens_per_second * 2})
    high = replace(found, row=found.row | {"tokens_per_second": found.tokens_per_second / 1.1})
    assert low.error("tokens_per_second") == -0.5
    mean, largest = mean_error("tokens_per_second", [low, high])
    assert mean == pytest.approx(0.3)
    assert largest == 0.5


def test_what_is_true_of_one_half_is_found_and_holds_for_the_other() -> None:
    fitted, judged = halves(rows(12))
    constants = fit(fitted)
    assert constants.context == WORLD.context
    assert [constants.fragments[kind] for kind in ("bf16", "full")] == pytest.approx([0.02] * 2)
    assert constants.products == pytest.approx(WORLD.products, rel=0.05)
    before = mean_error("tokens_per_second", [compare(row, FITTED) for row in judged])
    after = mean_error("tokens_per_second", [compare(row, constants) for row in judged])
    assert after[0] < before[0] / 4
    assert mean_error("reserved", [compare(row, constants) for row in judged])[1] < 0.005


def verdict(*, fits: bool, ran: bool) -> Comparison:
    run = matrix()[0]
    found = compare(made(run), FITTED)
    capacity = found.memory.reserved + (1 if fits else -1)
    row = found.row if ran else found.row | {"error": OUT_OF_MEMORY}
    return replace(found, memory=replace(found.memory, capacity=capacity), row=row)


def test_a_run_that_was_said_to_fit_and_did_not_is_counted_on_its_own() -> None:
    cases = [(True, True), (False, False), (True, False), (False, True)]
    text = verdicts([verdict(fits=fits, ran=ran) for fits, ran in cases])
    assert "2 of 4 verdicts are right; 1 said “fits” of a run that did not.\n" in text
    assert text.endswith("alone: 2 of 4.")  # it is little: all should run
    assert text.count(OUT_OF_MEMORY) == 2


def test_the_halves_are_reported_apart() -> None:
    fitted, judged = halves(rows(4))
    found = [compare(row, WORLD, fitted=True) for row in fitted]
    found += [compare(row | {"allocated_gib": row["allocated_gib"] / 2}, WORLD) for row in judged]
    lines = errors_table(found).splitlines()
    assert lines[2] == "| judged by, 2 runs | 100.0% (100.0%) | 0.0% (0.0%) | 0.0% (0.0%) |"
    assert lines[3] == "| fitted on, 2 runs | 0.0% (0.0%) | 0.0% (0.0%) | 0.0% (0.0%) |"


def test_a_report_has_every_run_that_ran_or_had_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planner_report, "deepspeed_estimate", lambda _: 7 * GIB)
    first, *others = rows(5)
    broken = made(matrix()[5], error="not done in 150 s")
    full = asdict(replace(matrix()[6], row="boundary x")) | {
        "error": OUT_OF_MEMORY,
        "device": "NVIDIA H200",
    }
    target = tmp_path / "planner.json"
    text = report([first, *others, broken, full], target)
    document = json.loads(target.read_text())
    assert [run["row"] for run in document["runs"]] == [
        row["row"] for row in (first, *others, full)
    ]
    assert broken["row"] not in text
    assert {run["predicted"]["deepspeed_gib"] for run in document["runs"]} == {7}
    assert document["runs"][0]["predicted"]["allocated_gib"] == pytest.approx(
        first["allocated_gib"], rel=0.01
    )


def test_the_planner_predicts_what_was_measured() -> None:
    found = [compare(row, FITTED) for row in read_rows([RAW])]
    ran = [c for c in found if c.ran]
    mean, largest = {}, {}
    for of in ("allocated", "reserved", "tokens_per_second"):
        mean[of], largest[of] = mean_error(of, ran)
    assert len(ran) >= 24
    assert mean["allocated"] < 0.005 > largest["allocated"] / 4
    assert mean["reserved"] < 0.02 > largest["reserved"] / 6
    assert mean["tokens_per_second"] < 0.025 > largest["tokens_per_second"] / 8
    assert not [c.name for c in found if c.memory.fits and not c.ran]


def test_too_few_runs_are_no_report(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="fewer than 4 runs: measure first"):
        report(rows(2), tmp_path / "planner.json")
    assert not (tmp_path / "planner.json").exists()


def test_a_raw_file_keeps_the_last_row_of_a_run(tmp_path: Path) -> None:
    raw = tmp_path / "new" / "planner.jsonl"
    for row in ({"row": "a", "seconds": 1}, {"row": "b"}, {"row": "a", "seconds": 2}):
        append(raw, row)
    assert read_rows([tmp_path / "absent.jsonl", raw]) == [
        {"row": "a", "seconds": 2},
        {"row": "b"},
    ]


def test_the_matrix_has_runs_enough_for_both_cards_and_each_once() -> None:
    runs = matrix()
    assert len({run.row for run in runs}) == len(runs) >= 32
    assert {run.shape for run in runs[:12]} == {run.shape for run in runs}
    for name in ("H100", "H200"):
        fitting = [run for run in runs if gpu_memory(planned(run, chip(name))).fits]
        assert len(fitting) >= 24


@pytest.mark.parametrize("name", ["H100", "H200"])
def test_the_boundary_is_the_last_that_fits_and_the_next(name: str) -> None:
    runs = list(boundary(chip(name)))
    assert len(runs) == 12
    for last, beyond in zip(runs[::2], runs[1::2], strict=True):
        assert beyond.micro_batch == last.micro_batch + 1
        assert gpu_memory(planned(last, chip(name))).fits
        assert not gpu_memory(planned(beyond, chip(name))).fits


def test_a_card_is_known_by_its_drivers_name() -> None:
    assert chip_of("NVIDIA H100 80GB HBM3") is chip("H100")
    with pytest.raises(SystemExit, match="Tesla T4 is no GPU that the planner knows"):
        chip_of("Tesla T4")
