"""`latticeforge import axolotl`: what it prints where, what it refuses, and the examples."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from latticeforge_operator.cli.commands import group
from latticeforge_operator.cli.stackfile import load_stack

EXAMPLES = Path(__file__).parents[3] / "examples" / "axolotl"
CONFIG = """\
base_model: owner/model
adapter: lora
lora_r: 8
lora_alpha: 16
lora_target_linear: true
datasets:
  - path: owner/data
    type: chat_template
sequence_len: 1024
sample_packing: true
micro_batch_size: 2
learning_rate: 2e-6
"""


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(group, ["import", "axolotl", *map(str, arguments)])


def config_file(tmp_path: Path, text: str = CONFIG, name: str = "config.yaml") -> Path:
    file = tmp_path / name
    file.write_text(text)
    return file


def test_the_stack_goes_to_stdout_and_the_report_to_stderr(tmp_path: Path) -> None:
    result = run(config_file(tmp_path), "--gpus", "2")
    assert result.exit_code == 0
    spec = yaml.safe_load(result.stdout)["spec"]
    assert spec["stages"][0]["hyperparameters"]["globalBatchTokens"] == 2 * 2 * 1024
    assert spec["compute"] == {"gpus": 2}
    assert result.stderr.startswith("config.yaml: 9 mapped, 2 implied, 0 ignored, 0 unsupported\n")
    assert "  mapped       lora_r" in result.stderr


def test_a_config_alone_is_trained_with_the_batch_of_one_gpu(tmp_path: Path) -> None:
    result = run(config_file(tmp_path))
    assert "its batch is that of one GPU (--gpus" in result.stdout.splitlines()[0]
    assert "compute" not in yaml.safe_load(result.stdout)["spec"]


def test_it_says_whether_the_result_is_published(tmp_path: Path) -> None:
    said = "# Without a hub_model_id nothing is published"
    assert said in run(config_file(tmp_path)).stdout
    published = run(config_file(tmp_path, CONFIG + "hub_model_id: me/model\n"))
    assert said not in published.stdout
    assert yaml.safe_load(published.stdout)["spec"]["publish"]["repository"] == "me/model"


def test_what_is_written_runs(tmp_path: Path) -> None:
    """Every field has its key beside it, and other YAML readers see text where the API wants it."""
    output = tmp_path / "stack.yaml"
    assert run(config_file(tmp_path), "-o", output, "--name", "mine").stdout == ""
    assert load_stack(output, None).training.name == "mine"
    text = output.read_text()
    assert "learningRate: '2e-6'  # learning_rate" in text
    assert "rank: 8  # lora_r" in text


def test_the_report_as_json(tmp_path: Path) -> None:
    result = run(config_file(tmp_path), "--report", "json")
    records = {record["key"]: record for record in json.loads(result.stderr)}
    assert records["lora_r"] == {
        "file": "config.yaml",
        "stage": "config",
        "key": "lora_r",
        "given": True,
        "verdict": "mapped",
        "sentence": "lora.rank 8",
    }
    assert records["num_epochs"]["given"] is False


def test_configs_become_stages(tmp_path: Path) -> None:
    first = config_file(tmp_path, CONFIG + "output_dir: ./out\n", "math.yaml")
    second = config_file(tmp_path, CONFIG.replace("owner/model", "./out"), "cic.yaml")
    result = run(first, "--then", second)
    assert [stage["name"] for stage in yaml.safe_load(result.stdout)["spec"]["stages"]] == [
        "math",
        "cic",
    ]


def test_a_template_in_a_file_is_taken_along(tmp_path: Path) -> None:
    (tmp_path / "mine.jinja").write_text("{{ messages }}\n{# end #}\n")
    text = CONFIG + "chat_template: jinja\nchat_template_jinja: mine.jinja\n"
    result = run(config_file(tmp_path, text))
    base = yaml.safe_load(result.stdout)["spec"]["base"]
    assert base["chatTemplate"] == {"jinja": "{{ messages }}\n{# end #}\n"}


def test_unsupported_keys_are_refused_line_by_line(tmp_path: Path) -> None:
    text = CONFIG + "peft_use_dora: true\nlerning_rate: 1\n"
    file = config_file(tmp_path, text)
    result = run(file)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert f"{file}:13: peft_use_dora: DoRA" in result.stderr
    assert (
        f"{file}:14: lerning_rate: no key of Axolotl; did you mean learning_rate?" in result.stderr
    )
    assert "--allow-unsupported imports the rest" in result.stderr


def test_a_refused_report_in_json_is_nothing_but_json(tmp_path: Path) -> None:
    result = run(config_file(tmp_path, CONFIG + "peft_use_dora: true\n"), "--report", "json")
    assert result.exit_code == 1
    assert "unsupported" in {record["verdict"] for record in json.loads(result.stderr)}


def test_a_fault_between_configs_is_said_of_the_one_that_has_it(tmp_path: Path) -> None:
    first = config_file(tmp_path, CONFIG, "first.yaml")
    other = config_file(tmp_path, CONFIG.replace("owner/model", "other/model"), "other.yaml")
    result = run(first, "--then", other, "--then", first)
    assert f"{other}:1: base_model: other/model is neither" in result.stderr
    remote = CONFIG.replace("owner/data", "s3://bucket")
    result = run(config_file(tmp_path, remote, "remote.yaml"), "--then", first)
    assert "remote.yaml:6: datasets: none of them can be read" in result.stderr


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--name", "Elle 72B"], "--name Elle 72B: must be lowercase letters"),
        (["--storage", "big"], "spec.storage.size: 'big': must be a Kubernetes quantity"),
        (["--budget", "much"], "spec.budget.limit: 'much': must be a non-negative decimal"),
        (["-o", "missing/stack.yaml"], "missing/stack.yaml: No such file or directory"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_wrong_options(tmp_path: Path, options: list[str], sentence: str) -> None:
    result = run(config_file(tmp_path), *options)
    assert result.exit_code == 1
    assert sentence in result.stderr


def test_unsupported_keys_can_be_left_out(tmp_path: Path) -> None:
    result = run(config_file(tmp_path, CONFIG + "peft_use_dora: true\n"), "--allow-unsupported")
    assert result.exit_code == 0
    assert "# Not imported from config.yaml: peft_use_dora: DoRA" in result.stdout


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: [", "line 1: expected"),
        ("a: 1\na: 2\n", "line 2: a stands twice in the same place"),
        ("- a\n", "an Axolotl config is one YAML mapping of keys to values"),
        ("", "an Axolotl config is one YAML mapping of keys to values"),
        ("a: 1\n---\nb: 2\n", "an Axolotl config is one YAML mapping of keys to values"),
        (CONFIG.replace("lora_r: 8", "lora_r: lots"), ":3: lora_r: must be a number, not 'lots'"),
        (CONFIG.replace("path: owner/data", "path:"), ":7: datasets[0].path: is missing"),
        (CONFIG.replace("base_model: owner/model", "x: 1"), ":1: base_model: is missing"),
        (CONFIG + "rl: dpo\n", ":13: rl: preference and reinforcement learning (dpo) are out of"),
        (CONFIG.replace("owner/model", "gpt2"), ":1: base_model: 'gpt2': must be owner/name"),
        (CONFIG.replace("1024", "8"), ":9: sequence_len: must be at least 16, is 8"),
        (CONFIG + "chat_template_jinja: no.jinja\n", "no.jinja"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_broken_file_gets_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    result = run(config_file(tmp_path, text))
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    assert sentence in result.stderr
    assert len(result.stderr.splitlines()) == 1


MISSION = {
    "elle-72b-math.yaml": (
        "config_72b_math_stacked.yaml --gpus 8 --pool h200 --budget 60 --storage 4Ti"
    ),
    "elle-72b-math-lora.yaml": (
        "config_72b_math_nf4_qlora.yaml --gpus 2 --pool h200 --budget 40 --storage 500Gi"
    ),
}


@pytest.mark.parametrize(("stack", "command"), MISSION.items(), ids=list(MISSION))
def test_examples_import_to_the_files_beside_them(stack: str, command: str) -> None:
    config, *options = command.split()
    result = run(EXAMPLES / config, *options)
    assert result.stdout == (EXAMPLES / stack).read_text(), "import it again, as the README says"
    assert load_stack(EXAMPLES / stack, None)
    assert command in (EXAMPLES.parent / "README.md").read_text()
