"""`latticeforge plan` as a person types it."""

from __future__ import annotations

import json
import re
import shlex
import socketserver
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from latticeforge_operator.api.training import Base
from latticeforge_operator.cli.base_config import find_config
from latticeforge_operator.cli.commands import group
from latticeforge_operator.cli.data_size import stage_data
from latticeforge_operator.cli.errors import CommandError
from latticeforge_operator.cli.heading import heading
from latticeforge_operator.cli.stackfile import load_stack

ROOT = Path(__file__).parents[3]
EXAMPLES = ROOT / "examples"
FULL, QLORA = EXAMPLES / "qwen2.5-72b-full.yaml", EXAMPLES / "qwen2.5-72b-qlora.yaml"
CONFIG = EXAMPLES / "configs" / "qwen2.5-72b.json"
POOLS = EXAMPLES / "pools" / "h200.yaml"


def plan(*options: object) -> Result:
    return CliRunner().invoke(group, ["plan", *map(str, options)])


def words_of(result: Result) -> str:
    """The output as if lines were never broken."""
    return " ".join(result.output.split())


def test_a_plan_says_what_was_chosen_and_what_it_costs() -> None:
    result = plan(FULL, "--config", CONFIG, "--tokens", "12M")
    assert result.exit_code == 0
    first, *_ = result.output.splitlines()
    assert first == "elle-72b-math: cic (Full) from aphoticshaman/qwen-72b-math-v1"
    said = words_of(result)
    for part in ("✔ h200 8", "ZeRO-3", "USD", "Trade-off: exact AdamW", "compute.gpus: 16",
                 "Faster, but another result", "Rests on", "12,000,000 tokens"):  # fmt: skip
        assert part in said


def test_explain_shows_every_term() -> None:
    said = words_of(plan(FULL, "--config", CONFIG, "--tokens", "12M", "--explain"))
    for part in ("memory of each GPU at its peak", "linear layers", "host memory of each pod",
                 "moments", "one optimizer step", "update", "the storage volume",
                 "checkpoints", "time of every step", "cic/evaluate"):  # fmt: skip
        assert part in said


def test_what_cannot_be_taken_ends_with_1_and_what_would_help(tmp_path: Path) -> None:
    poor = tmp_path / "stack.yaml"
    poor.write_text(FULL.read_text().replace("1900Gi", "900Gi"))
    result = plan(poor, "--config", CONFIG, "--tokens", "12M")
    assert result.exit_code == 1
    said = words_of(result)
    assert "✘ h200 8" in said
    explained = words_of(plan(poor, "--config", CONFIG, "--tokens", "12M", "--explain"))
    assert "cic: memory of each GPU at its peak" in explained
    document = json.loads(plan(poor, "--config", CONFIG, "-o", "json").output)
    assert document["chosen"] is None
    assert document["options"][0]["misfit"]["strategy"]["zeroStage"] == 3
    assert "None of these can be taken. What would make it fit – compute.gpus: 16" in said


def test_programs_get_json_or_yaml() -> None:
    options = (FULL, "--config", CONFIG, "--tokens", "12M", "-o")
    document = json.loads(plan(*options, "json").output)
    assert document["options"][document["chosen"]]["gpus"] == 8
    assert yaml.safe_load(plan(*options, "yaml").output) == document


def test_a_refused_base_is_one_sentence() -> None:
    refused = EXAMPLES / "refused" / "qwen2.5-72b-int4.yaml"
    int4 = CONFIG.with_name("qwen2.5-72b-int4.json")
    result = plan(refused, "--pools", POOLS, "--config", int4)
    assert result.exit_code == 1
    assert "Error: aphoticshaman/qwen-72b-math-int4 holds gptq weights" in result.output
    assert "Traceback" not in result.output


def test_on_cpu_no_model_is_asked_for() -> None:
    result = plan(EXAMPLES / "quickstart.yaml", "--workdir", "/nowhere")
    assert result.exit_code == 0
    assert "on CPU nothing is predicted" in words_of(result)


def test_the_documented_command_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    text = (ROOT / "docs" / "planner.md").read_text().replace("\\\n", " ")
    commands = re.findall(r"^    latticeforge plan (.+)$", text, re.MULTILINE)
    assert commands
    assert {plan(*shlex.split(command)).exit_code for command in commands} == {0}


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("qwen*.yaml")), ids=lambda p: p.stem)
def test_every_large_example_has_a_plan(example: Path) -> None:
    result = plan(example, "--config", CONFIG, "--tokens", "5M")
    assert result.exit_code == 0, result.output


# --- where inputs come from


def test_pools_of_a_file_come_before_those_of_the_stack() -> None:
    result = plan(QLORA, "--pools", POOLS, "--config", CONFIG, "-o", "json")
    assert json.loads(result.output)["options"][0]["pool"] == "h200-pair"
    only = plan(FULL, "--pools", QLORA, "--config", CONFIG)
    assert "compute.pool h200 does not exist (there are: h200-pair)" in only.output


def test_without_pools_and_cluster_it_is_said_what_to_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    result = plan(EXAMPLES / "refused" / "qwen2.5-72b-int4.yaml", "--config", CONFIG)
    assert result.exit_code == 1
    assert "no GPUPool to plan for: no cluster to ask" in result.output
    assert "or pass --pools FILE" in result.output


def test_a_file_without_pools_is_told(tmp_path: Path) -> None:
    stack = tmp_path / "stack.yaml"
    stack.write_text(yaml.safe_dump(list(yaml.safe_load_all(FULL.read_text()))[1]))
    result = plan(stack, "--pools", stack, "--config", CONFIG)
    assert f"{stack}: holds no GPUPool" in result.output


def test_the_base_config_is_read_where_the_base_is(tmp_path: Path) -> None:
    model = tmp_path / "models" / "base"
    model.mkdir(parents=True)
    (model / "config.json").write_bytes(CONFIG.read_bytes())
    for reference in ("./models/base", f"file://{model}", str(model)):
        assert find_config(Base(model=reference), None, tmp_path)["hidden_size"] == 8192
    assert find_config(Base(model="a/b"), model, tmp_path)["hidden_size"] == 8192
    assert find_config(Base(model="a/b"), CONFIG, tmp_path)["hidden_size"] == 8192


@pytest.mark.parametrize(
    ("content", "sentence"),
    [(None, "No such file"), ("{", "no valid JSON"), ("[]", "not an object")],
)
def test_a_config_that_cannot_be_read_is_told(
    tmp_path: Path, content: str | None, sentence: str
) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(CommandError, match=sentence):
        find_config(Base(model=str(tmp_path)), None, tmp_path)


def test_a_config_in_the_hubs_cache_needs_no_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CommandError, match=r"cannot be had from the Hub .*--config"):
        find_config(Base(model="owner/model"), None, tmp_path)
    commit = "0" * 40
    repository = tmp_path / "models--owner--model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots" / commit).mkdir(parents=True)
    (repository / "snapshots" / commit / "config.json").write_bytes(CONFIG.read_bytes())
    assert find_config(Base(model="owner/model"), None, tmp_path)["hidden_size"] == 8192


def test_a_hub_that_cannot_be_reached_is_asked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    asked: list[tuple[str, int]] = []

    class Mute(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            asked.append(self.client_address)

    with socketserver.TCPServer(("127.0.0.1", 0), Mute) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        address = f"http://127.0.0.1:{server.server_address[1]}"
        url = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url)
        with pytest.raises(CommandError, match=r"the Hub cannot be reached .*--config"):
            find_config(Base(model="owner/model"), None, tmp_path)
        server.shutdown()
    assert len(asked) == 1


def test_an_unknown_architecture_is_told(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text('{"model_type": "mamba"}')
    result = plan(FULL, "--config", config)
    assert "aphoticshaman/qwen-72b-math-v1: model type mamba is not known" in result.output


# --- tokens


def stack_of(*data: dict[str, Any], **parameters: Any) -> Any:
    text = yaml.safe_load_all(FULL.read_text())
    stack = list(text)[1]["spec"]
    stack["stages"][0]["data"] = list(data)
    stack["stages"][0]["hyperparameters"] |= {"epochs": 1} | parameters
    from latticeforge_operator.api import StackedTrainingSpec  # noqa: PLC0415

    return StackedTrainingSpec.model_validate(stack)


@pytest.mark.parametrize(
    ("given", "tokens"),
    [("12M", 12_000_000), ("1_000", 1000), ("cic=1.5k", 1500), ("2B", 2 * 10**9)],
)
def test_given_tokens_are_of_one_epoch(given: str, tokens: int) -> None:
    known = stage_data(stack_of({"source": "a/b"}, epochs=2), [given], Path())["cic"]
    assert (known.tokens, known.exact) == (2 * tokens, True)


@pytest.mark.parametrize("given", ["many", "0", "-5", "cic=", "math=5M", "12 M"])
def test_tokens_that_are_none_are_told(given: str) -> None:
    with pytest.raises(CommandError, match="--tokens"):
        stage_data(stack_of({"source": "a/b"}), [given], Path())


def test_so_many_steps_need_no_size_of_the_data() -> None:
    stack = stack_of({"source": "a/b"}, maxSteps=10)
    known = stage_data(stack, ["12M"], Path())["cic"]
    assert known.tokens == 10 * stack.stages[0].hyperparameters.global_batch_tokens


def test_local_samples_are_sized_and_mixed(tmp_path: Path) -> None:
    (tmp_path / "long.jsonl").write_text(("x" * 399 + "\n") * 10)
    (tmp_path / "short.jsonl").write_text(("x" * 39 + "\n") * 1000)
    data = [{"source": "./long.jsonl", "weight": 2}, {"source": "./short.jsonl", "weight": 1}]
    known = stage_data(stack_of(*data, epochs=3), [], tmp_path)["cic"]
    # An epoch has the ten long samples, and half as many short ones.
    assert (known.tokens, known.exact) == (3 * (10 * 400 + 5 * 40) // 4, False)


@pytest.mark.parametrize(
    "source", ["owner/data", "./none.jsonl", "./data.parquet", "./empty.jsonl"]
)
def test_other_data_is_not_guessed(tmp_path: Path, source: str) -> None:
    (tmp_path / "data.parquet").write_bytes(b"PAR1")
    (tmp_path / "empty.jsonl").write_text("")
    assert stage_data(stack_of({"source": source}), [], tmp_path)["cic"].tokens is None


# --- the first line


def test_the_heading_comes_without_the_api(tmp_path: Path) -> None:
    assert heading(QLORA) == "elle-72b-math-lora: cic (QLoRA) from aphoticshaman/qwen-72b-math-nf4"
    assert load_stack(QLORA, None).training.name == "elle-72b-math-lora"
    for text in ("{", "kind: StackedTraining", "a: 1", ""):
        (tmp_path / "bad.yaml").write_text(text)
        assert heading(tmp_path / "bad.yaml") is None
