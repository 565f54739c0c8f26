"""What was measured under ZeRO on two GPUs, beside what the planner says of it today."""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from benchmarks.zero import METHODS, Case, methods, prediction, stall

Row = dict[str, Any]

ROWS: list[Row] = json.loads(Path("docs/data/zero.json").read_text())
AS_NOW = [row for row in ROWS if "then" not in row]
"""Those that ran as the trainer configures DeepSpeed today."""


def case_of(row: Row) -> Case:
    return Case(**{field.name: row[field.name] for field in fields(Case)})


def name_of(row: Row) -> str:
    return f"{row['shape']} {row['method']} ZeRO-{row['zero_stage']} {row['gpu']}"


@pytest.mark.parametrize("row", ROWS, ids=name_of)
def test_the_planner_knows_what_a_gpu_allocates(row: Row) -> None:
    said = prediction(case_of(row), row["gpu"])["allocated_gib"]
    assert 0.995 * row["allocated_gib"] < said < 1.05 * row["allocated_gib"]


@pytest.mark.parametrize("row", AS_NOW, ids=name_of)
def test_the_planner_knows_what_is_reserved_and_how_fast_it_is(row: Row) -> None:
    said = prediction(case_of(row), row["gpu"])
    assert said["reserved_gib"] == pytest.approx(row["reserved_gib"], rel=0.03)
    # The first steps ran while host memory was being locked.
    rate = case_of(row).tokens / statistics.median(row["step_seconds"][-5:])
    assert said["tokens_per_second"] == pytest.approx(rate, rel=0.08)


@pytest.mark.parametrize("shape", ["1.5B", "7.6B"])
def test_all_stages_computed_the_same_loss(shape: str) -> None:
    losses = [row["first_loss"] for row in ROWS if row["shape"] == shape]
    assert len(losses) > 1
    assert losses == pytest.approx([losses[0]] * len(losses), abs=2e-6)


def test_a_stall_is_what_the_step_behind_a_checkpoint_took_longer() -> None:
    seconds = [9.0, 1.0, 1.0, 1.0, 1.0, 3.5, 1.0]
    assert stall(seconds, 5) == 2.5
    assert stall(seconds, 0) is None


def test_cases_are_named_by_method_and_stage() -> None:
    assert methods("LoRA-0,Full-3") == [("LoRA", 0), ("Full", 3)]
    assert methods(",".join(f"{method}-{stage}" for method, stage in METHODS)) == METHODS
    with pytest.raises(argparse.ArgumentTypeError, match=r"no 'Full-4': one of Full-3, "):
        methods("Full-4")
