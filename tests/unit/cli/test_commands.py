"""Commands as a person types them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from latticeforge_operator.api.crds import all_crds
from latticeforge_operator.cli.commands import group


@pytest.fixture
def runner() -> CliRunner:
    return CliRunner()


def test_crds_are_printed_as_one_stream(runner: CliRunner) -> None:
    result = runner.invoke(group, ["crds"])
    assert list(yaml.safe_load_all(result.output)) == list(all_crds().values())


def test_crds_are_written_as_files(runner: CliRunner, tmp_path: Path) -> None:
    assert runner.invoke(group, ["crds", "-o", str(tmp_path / "new")]).exit_code == 0
    assert {path.name for path in (tmp_path / "new").iterdir()} == set(all_crds())


def test_data_is_the_same_for_the_same_seed(runner: CliRunner, tmp_path: Path) -> None:
    def made(seed: int, split: str = "train") -> str:
        file = tmp_path / "made" / f"{seed}-{split}.jsonl"
        command = ["data", "cic", "--n", "8", "--seed", str(seed), "--split", split]
        result = runner.invoke(group, [*command, "-o", str(file)])
        assert result.output.endswith(f"8 cic samples of the {split} split, seed {seed}\n")
        text = file.read_text()
        file.unlink()
        return text

    assert made(1) == made(1)
    assert made(1) != made(2)
    tasks = [{json.loads(line)["task"] for line in made(1, split).splitlines()}
             for split in ("train", "heldout")]  # fmt: skip
    assert not tasks[0] & tasks[1]


def test_data_that_cannot_be_written_is_told(runner: CliRunner, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    target = tmp_path / "file" / "x.jsonl"
    result = runner.invoke(group, ["data", "math", "--n", "1", "-o", str(target)])
    assert result.exit_code == 1
    assert str(target) in result.output


@pytest.mark.parametrize("claim", ["store", "=here", "store=", "store=absent"])
def test_a_claim_that_is_no_folder_is_told(runner: CliRunner, claim: str, tmp_path: Path) -> None:
    options = ["--data-dir", str(tmp_path), "--claim", claim]
    result = runner.invoke(group, ["devcluster", *options])
    assert result.exit_code == 2
    assert f"{claim} is not NAME=FOLDER with a folder that exists" in result.output


def test_without_a_cluster_status_says_so(
    runner: CliRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    result = runner.invoke(group, ["status"])
    assert result.exit_code == 1
    assert result.output.startswith("Error: no cluster to ask")


def test_a_missing_token_is_told_before_anything_starts(
    runner: CliRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    example = Path(__file__).parents[3] / "examples" / "qwen2.5-72b-full.yaml"
    result = runner.invoke(group, ["run", str(example), "--workdir", str(tmp_path)])
    assert result.exit_code == 1
    assert "the environment variable HF_TOKEN, and that is not set" in result.output
    assert list(tmp_path.iterdir()) == []
