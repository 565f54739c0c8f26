"""An imported Axolotl config trains on the tokens and labels that its own rules prescribe.

The expected tokens are put together here from what Axolotl documents of each `type`, not by any
code of the trainer: prompt and answer are tokenized by themselves, an end-of-text token follows the
answer, -100 stands where nothing is learned.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tests.fixtures.tiny_model import make_tokenizer
from tokenizers import processors

from latticeforge_operator.api import StackedTrainingSpec
from latticeforge_operator.axolotl.registry import lines_of, read_settings
from latticeforge_operator.axolotl.stack import Config, Options, build_stack
from latticeforge_operator.core.steps import expand
from latticeforge_trainer.artifacts import Store
from latticeforge_trainer.contract import (
    PrepareConfig,
    PreparePayload,
    PrepareRuntime,
    StepKind,
    TrainPayload,
)
from latticeforge_trainer.data.packed import PackedData
from latticeforge_trainer.progress import LogSink, Reporter
from latticeforge_trainer.steps import prepare

IGNORED = -100
END = "<|im_end|>"
Labelled = tuple[tuple[int, ...], tuple[int, ...]]
"""Token ids of a sample, and its labels."""

CONFIG: dict[str, Any] = {
    "base_model": "./base",
    "adapter": "lora",
    "lora_r": 4,
    "lora_alpha": 8,
    "lora_target_linear": True,
    "sequence_len": 512,
    "sample_packing": True,
    "micro_batch_size": 1,
    "learning_rate": 1e-3,
}
ALPACA = [
    {"instruction": "Add.", "input": "1 2", "output": "3"},
    {"instruction": "Say hi.", "input": "", "output": "hi"},
    {"instruction": "Say no.", "output": "no"},
]
TURNS = [
    {"from": "system", "value": "Be kind."},
    {"from": "human", "value": "1 + 1?"},
    {"from": "gpt", "value": "2"},
    {"from": "human", "value": "2 + 2?"},
    {"from": "gpt", "value": "4"},
]
CHAT = {
    "path": "./rows.jsonl",
    "type": "chat_template",
    "field_messages": "conversations",
    "message_property_mappings": {"role": "from", "content": "value"},
}
SPEAKERS = {"system": "system", "human": "user", "gpt": "assistant"}


@pytest.fixture
def store(tmp_path: Path, tiny_model: Path) -> Store:
    """A volume with the tiny model in ./base."""
    shutil.copytree(tiny_model, tmp_path / "base")
    return Store(tmp_path)


def prepared(store: Store, rows: list[dict[str, Any]], **says: Any) -> PackedData:
    """What an imported config makes of rows in ./rows.jsonl."""
    (store.root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    payload = payloads(**says)[0]
    config = PrepareConfig(
        training="default/t",
        stage="one",
        digest="0" * 64,
        payload=payload,
        runtime=PrepareRuntime(method="LoRA"),
    )
    result, _ = prepare.run(config, store, Reporter(StepKind.PREPARE, config.digest, LogSink()))
    return PackedData(store.require(result.artifact, "data"))


def payloads(gpus: int = 1, **says: Any) -> tuple[PreparePayload, TrainPayload]:
    """The steps of an imported config."""
    config = {**CONFIG, "datasets": [{"path": "./rows.jsonl", "type": "alpaca"}], **says}
    settings = read_settings(config, gpus)
    imported = build_stack([Config("one", settings, lines_of(config, settings))], Options())
    spec = StackedTrainingSpec.model_validate(imported.manifest["spec"])
    prepare_step, train_step = expand(spec, {})[:2]
    assert isinstance(prepare_step.payload, PreparePayload)
    assert isinstance(train_step.payload, TrainPayload)
    return prepare_step.payload, train_step.payload


def samples_of(data: PackedData) -> list[Labelled]:
    """The samples that packed data holds, in any order."""
    batch = data.batch(range(len(data)))
    found = []
    for row, length in enumerate(data.lengths.tolist()):
        ids = batch["input_ids"][row, :length].tolist()
        mask = batch["loss_mask"][row, :length].tolist()
        starts = [*(batch["position_ids"][row, :length] == 0).nonzero().flatten().tolist(), length]
        for start, end in pairwise(starts):
            labels = [i if m else IGNORED for i, m in zip(ids, mask, strict=True)]
            found.append((tuple(ids[start:end]), tuple(labels[start:end])))
    return sorted(found)


def labelled(*parts: tuple[str, bool]) -> Labelled:
    """A sample from texts that are tokenized one by one, each learned or not."""
    tokenizer = make_tokenizer()
    ids: list[int] = []
    labels: list[int] = []
    for text, learned in parts:
        tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
        ids += tokens
        labels += tokens if learned else [IGNORED] * len(tokens)
    labels[0] = IGNORED  # nothing comes before it
    return tuple(ids), tuple(labels)


def alpaca_prompt(row: dict[str, Any]) -> str:
    """The prompt of Stanford Alpaca, as Axolotl documents `type: alpaca`."""
    task = "Below is an instruction that describes a task"
    if row.get("input"):
        return (
            f"{task}, paired with an input that provides further context. Write a response that "
            f"appropriately completes the request.\n\n### Instruction:\n{row['instruction']}\n\n"
            f"### Input:\n{row['input']}\n\n### Response:\n"
        )
    return (
        f"{task}. Write a response that appropriately completes the request.\n\n"
        f"### Instruction:\n{row['instruction']}\n\n### Response:\n"
    )


@pytest.mark.parametrize("train_on_inputs", [False, True])
def test_alpaca(store: Store, train_on_inputs: bool) -> None:
    data = prepared(store, ALPACA, train_on_inputs=train_on_inputs)
    assert samples_of(data) == sorted(
        labelled((alpaca_prompt(row), train_on_inputs), (row["output"], True), (END, True))
        for row in ALPACA
    )


@pytest.mark.parametrize(
    ("kind", "prompts"),
    [
        (
            "alpaca_chat.load_no_prompt",
            ["USER: Add.\n1 2\nASSISTANT:", "USER: Say hi.\nASSISTANT:"],
        ),
        (
            {"format": "Q: {instruction} {input}\nA: ", "no_input_format": "Q: {instruction}\nA: "},
            ["Q: Add. 1 2\nA: ", "Q: Say hi.\nA: "],
        ),
    ],
    ids=["named", "spelt out"],
)
def test_other_prompts(store: Store, kind: Any, prompts: list[str]) -> None:
    data = prepared(store, ALPACA[:2], datasets=[{"path": "./rows.jsonl", "type": kind}])
    assert samples_of(data) == sorted(
        labelled((prompt, False), (row["output"], True), (END, True))
        for prompt, row in zip(prompts, ALPACA[:2], strict=True)
    )


@pytest.mark.parametrize(
    ("says", "learned", "ends"),
    [
        ({}, {"gpt"}, {2, 4}),
        ({"roles_to_train": ["assistant"], "train_on_eos": "turn"}, {"gpt"}, {2, 4}),
        ({"roles_to_train": ["gpt", "human"]}, {"gpt", "human"}, {1, 2, 3, 4}),
        ({"train_on_eos": "all"}, {"gpt"}, {0, 1, 2, 3, 4}),
        ({"train_on_eos": "last"}, {"gpt"}, {4}),
        ({"train_on_eos": "none"}, {"gpt"}, set()),
    ],
    ids=["default", "said", "roles", "all ends", "last end", "no end"],
)
@pytest.mark.parametrize("template", ["tokenizer_default", "chatml"])
def test_chat_template(
    store: Store, template: str, says: dict[str, Any], learned: set[str], ends: set[int]
) -> None:
    data = prepared(
        store,
        [{"conversations": TURNS}],
        datasets=[{**CHAT, **says}],
        chat_template=template,
    )
    parts: list[tuple[str, bool]] = []
    for number, turn in enumerate(TURNS):
        parts += [
            (f"<|im_start|>{SPEAKERS[turn['from']]}\n", False),
            (turn["value"], turn["from"] in learned),
            (END, number in ends),
            ("\n", False),
        ]
    assert samples_of(data) == [labelled(*parts)]


def test_train_on_inputs_learns_every_turn(store: Store) -> None:
    data = prepared(store, [{"conversations": TURNS}], datasets=[CHAT], train_on_inputs=True)
    parts: list[tuple[str, bool]] = []
    for turn in TURNS:
        opening = f"<|im_start|>{SPEAKERS[turn['from']]}\n"
        parts += [(opening, False), (turn["value"], True), (END, True), ("\n", False)]
    assert samples_of(data) == [labelled(*parts)]


def test_a_template_of_the_config_replaces_the_tokenizers(store: Store) -> None:
    jinja = (
        "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant] {% endif %}"
    )
    data = prepared(
        store, [{"conversations": TURNS[1:3]}], datasets=[CHAT], chat_template_jinja=jinja
    )
    question = ("[user] 1 + 1?<|im_end|>[assistant] ", False)
    assert samples_of(data) == [labelled(question, ("2", True), (END, True))]


def test_completion(store: Store) -> None:
    """Everything is learned; a longer text goes on in the next sample."""
    rows = [{"body": "short"}, {"body": "x" * 40}]
    entry = {"path": "./rows.jsonl", "type": "completion", "field": "body"}
    data = prepared(store, rows, datasets=[entry], sequence_len=32)
    assert samples_of(data) == sorted(
        [
            labelled(("short", True), (END, True)),
            labelled(("x" * 32, True)),
            labelled(("x" * 8, True), (END, True)),
        ]
    )


def test_segments(store: Store) -> None:
    """Nothing is added: what ends a text stands in its segments."""
    segments: list[dict[str, Any]] = [
        {"label": False, "text": "Q: 1 + 1?\n"},
        {"label": True, "text": "2<|im_end|>"},
        {"label": False, "text": "\nQ: 2 + 2?\n"},
        {"label": True, "text": "4"},
    ]
    data = prepared(
        store,
        [{"segments": segments}],
        datasets=[{"path": "./rows.jsonl", "type": "input_output"}],
    )
    assert samples_of(data) == [labelled(*((s["text"], s["label"]) for s in segments))]


@pytest.mark.parametrize(
    ("kind", "row", "opened"),
    [
        ("alpaca", ALPACA[0], True),
        ("completion", {"text": "short"}, True),
        ("input_output", {"segments": [{"label": True, "text": "no opening"}]}, False),
    ],
)
def test_a_token_that_opens_texts(
    store: Store, kind: str, row: dict[str, Any], opened: bool
) -> None:
    """Where the tokenizer opens every text with a token, a sample has one, and it is no target."""
    opening = make_tokenizer()
    opening.bos_token = "<|endoftext|>"
    number = opening.convert_tokens_to_ids("<|endoftext|>")
    opening.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", number)]
    )
    opening.save_pretrained(store.root / "base")
    [(ids, labels)] = samples_of(
        prepared(store, [row], datasets=[{"path": "./rows.jsonl", "type": kind}])
    )
    assert [at for at, token in enumerate(ids) if token == number] == ([0] if opened else [])
    assert labels[0] == IGNORED


@pytest.mark.parametrize(("strategy", "kept"), [(None, 1), ("drop", 1), ("truncate", 2)])
def test_longer_samples(store: Store, strategy: str | None, kept: int) -> None:
    rows = [{"conversations": TURNS[1:3]}, {"conversations": TURNS}]
    data = prepared(store, rows, datasets=[CHAT], sequence_len=64, excess_length_strategy=strategy)
    assert len(samples_of(data)) == kept


def test_shorter_samples(store: Store) -> None:
    rows = [{"text": "x" * n} for n in (1, 8, 9, 20)]
    entry = {"path": "./rows.jsonl", "type": "completion"}
    data = prepared(store, rows, datasets=[entry], min_sample_len=10)
    assert samples_of(data) == sorted(labelled(("x" * n, True), (END, True)) for n in (9, 20))


def test_the_opening_system_turn_is_dropped(store: Store) -> None:
    rows = [{"conversations": TURNS[:3]}, {"conversations": TURNS[1:3]}]
    data = prepared(store, rows, datasets=[{**CHAT, "drop_system_message": True}])
    question = ("<|im_start|>user\n1 + 1?<|im_end|>\n<|im_start|>assistant\n", False)
    expected = labelled(question, ("2", True), (END, True), ("\n", False))
    assert samples_of(data) == [expected, expected]


def test_several_data_sets_are_seen_once_each(store: Store) -> None:
    (store.root / "more.jsonl").write_text(
        "".join(json.dumps({"text": f"number {n}"}) + "\n" for n in range(20))
    )
    entries = [
        {"path": "./rows.jsonl", "type": "alpaca"},
        {"path": "./more.jsonl", "type": "completion"},
    ]
    data = prepared(store, ALPACA, datasets=entries)
    expected = [
        labelled((alpaca_prompt(row), False), (row["output"], True), (END, True)) for row in ALPACA
    ] + [labelled((f"number {n}", True), (END, True)) for n in range(20)]
    assert samples_of(data) == sorted(expected)


def test_the_effective_batch_with_packing() -> None:
    """micro_batch_size × gradient_accumulation_steps × GPUs sequences, each full of samples."""
    says = {"micro_batch_size": 2, "gradient_accumulation_steps": 4}
    made, train = payloads(gpus=8, **says)
    assert train.sequences_per_step == 2 * 4 * 8
    assert train.sequence_length == made.sequence_length == 512
    assert made.step_samples is None


def test_the_effective_batch_without_packing(store: Store) -> None:
    """As many samples, whatever their length."""
    rows = [{"text": "x" * n} for n in range(1, 21)]
    data = prepared(
        store,
        rows,
        datasets=[{"path": "./rows.jsonl", "type": "completion"}],
        sample_packing=False,
        micro_batch_size=2,
        gradient_accumulation_steps=3,
        sequence_len=64,
    )
    assert data.step_ends is not None
    batch = data.batch(range(len(data)))
    per_step = []
    for start, end in zip([0, *data.step_ends], data.step_ends, strict=False):
        real = [
            int((batch["position_ids"][row, : data.lengths[row]] == 0).sum())
            for row in range(start, end)
        ]
        per_step.append(sum(real))
    assert per_step == [6, 6, 6, 2]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_imported_config_trains_to_the_end(tmp_path: Path, tiny_model: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "base")
    rows = [{"conversations": TURNS}] * 8
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    first = {**CONFIG, "datasets": [CHAT], "output_dir": "./out", "optimizer": "adamw_torch"}
    (tmp_path / "first.yaml").write_text(json.dumps({**first, "num_epochs": 2}))
    second = {**first, "base_model": "./out/merged", "max_steps": 3, "sample_packing": False}
    (tmp_path / "second.yaml").write_text(json.dumps(second))

    def latticeforge(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", "from latticeforge_operator.cli import main; main()"]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            [*command, *arguments],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )

    imported = latticeforge(
        "import", "axolotl", "first.yaml", "--then", "second.yaml", "-o", "stack.yaml"
    )
    assert imported.returncode == 0, imported.stderr
    ran = latticeforge("run", "stack.yaml")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "second/train: done" in ran.stdout
    assert "3 steps" in ran.stdout
