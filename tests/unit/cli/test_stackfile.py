"""A file that cannot run is refused with file, line, field and a sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from latticeforge_operator.cli.errors import CommandError
from latticeforge_operator.cli.stackfile import load_stack

GOOD = """\
apiVersion: latticeforge.dev/v1alpha1
kind: StackedTraining
metadata: {name: demo}
spec:
  base: {model: ./models/base}
  stages:
  - name: math
    data:
    - {source: ./data/math.jsonl}
    hyperparameters: {epochs: 2}
  - name: cic
    data: [{source: ./data/cic.jsonl}]
    evaluate:
    - {suite: json, minimum: "0.8"}
  storage: {claimName: store}
"""


def refused(tmp_path: Path, text: str) -> list[str]:
    file = tmp_path / "stack.yaml"
    file.write_text(text)
    with pytest.raises(CommandError) as caught:
        load_stack(file, None)
    return caught.value.message.replace(f"{file}:", "").splitlines()


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("epochs: 2", "epoch: 2",
         ("10: spec.stages[0].hyperparameters.epoch: is no field of this object; "
          "did you mean epochs?")),
        ("epochs: 2", "learningRate: 0.001",
         ("10: spec.stages[0].hyperparameters.learningRate: must be text; write it in quotes: "
          '"0.001"')),
        ("epochs: 2", "epochs: 0",
         "10: spec.stages[0].hyperparameters.epochs: must be at least 1, is 0"),
        ("epochs: 2", "epochs: [2]",
         "10: spec.stages[0].hyperparameters.epochs: must be a whole number, not a list"),
        ("- name: math", "- name: math\n    method: Best",
         "8: spec.stages[0].method: 'Best' is unknown; write Full, LoRA or QLoRA"),
        ("base: {model: ./models/base}", "base: {}",
         "5: spec.base.model: is missing"),
        ("storage: {claimName: store}", "suspend: false",
         "4: spec.storage: is missing"),
        ("- {source: ./data/math.jsonl}", " []",
         "8: spec.stages[0].data: needs at least 1 entry, has none"),
        ("- name: cic", "- name: math",
         "4: spec: two stages are named math; every stage needs its own name"),
        ("suite: json", "suite: yaml",
         ("14: spec.stages[1].evaluate[0].suite: 'yaml': unknown suite; known are json, cic, "
          "phase, confidence, math and lm-eval:TASK")),
        ("kind: StackedTraining", "kind: Job",
         "2: kind 'Job': expected StackedTraining or GPUPool"),
        ("latticeforge.dev/v1alpha1", "latticeforge.dev/v1",
         "1: apiVersion must be latticeforge.dev/v1alpha1"),
        ("metadata: {name: demo}", "metadata: {}", "3: metadata.name is missing"),
        ("name: demo", "name: " + "x" * 64,
         "3: metadata.name is longer than 63 characters, the limit of a label value"),
        ("metadata: {name: demo}", "metadata: {name: demo}\nkind: GPUPool",
         " line 4: kind stands twice in the same place"),
        ("metadata: {name: demo}", "metadata: {name: demo",
         " line 4: expected ',' or '}', but got ':'"),
    ],
)  # fmt: skip
def test_each_fault_is_one_sentence_at_its_line(
    tmp_path: Path, old: str, new: str, fault: str
) -> None:
    assert old in GOOD
    assert refused(tmp_path, GOOD.replace(old, new, 1)) == [fault]


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    text = GOOD.replace("epochs: 2", "epoch: 2").replace("suite: json", "suit: json")
    assert [fault.split(":")[0] for fault in refused(tmp_path, text)] == ["10", "14", "14"]


@pytest.mark.parametrize(("text", "count"), [("", 0), (f"{GOOD}---\n{GOOD}", 2)])
def test_a_file_holds_one_stack(tmp_path: Path, text: str, count: int) -> None:
    assert refused(tmp_path, text) == [f" holds {count} StackedTrainings, expected one"]


def test_lines_count_from_the_start_of_the_file(tmp_path: Path) -> None:
    pool = "apiVersion: latticeforge.dev/v1alpha1\nkind: GPUPool\nmetadata: {name: p}\n---\n"
    assert refused(tmp_path, pool + GOOD.replace("epochs: 2", "epochs: 0")) == [
        "1: spec.accelerator: is missing",
        "14: spec.stages[0].hyperparameters.epochs: must be at least 1, is 0",
    ]


def test_namespace_of_the_command_line_wins(tmp_path: Path) -> None:
    file = tmp_path / "stack.yaml"
    file.write_text(GOOD.replace("name: demo", "name: demo, namespace: team"))
    assert load_stack(file, None).training.namespace == "team"
    assert load_stack(file, "other").manifest["metadata"]["namespace"] == "other"
    file.write_text(GOOD)
    assert load_stack(file, None).training.namespace == "default"
