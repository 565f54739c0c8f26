"""Entries of `datasets`: where they lie, what their rows are, what of them is learned."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.axolotl.imports import LORA, read, stack_of, stage_of

from latticeforge_operator.axolotl.lines import Verdict
from latticeforge_operator.axolotl.prompts import TYPES
from latticeforge_operator.axolotl.settings import ConfigError

CHAT = {"path": "owner/chats", "type": "chat_template"}


def data_of(*entries: dict[str, Any], **says: Any) -> list[dict[str, Any]]:
    data: list[dict[str, Any]] = stage_of({**LORA, "datasets": list(entries), **says})["data"]
    return data


def verdicts(entry: dict[str, Any]) -> dict[str, Verdict]:
    lines = read({**LORA, "datasets": [entry]}).lines
    return {
        line.key.removeprefix("datasets[0]."): line.verdict
        for line in lines
        if line.key.startswith("datasets[0].")
    }


ENTRIES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"path": "owner/data", "type": "alpaca"}, {"source": "owner/data", "format": "Alpaca"}),
    ({"path": "owner/data", "type": "chat_template"}, {"source": "owner/data", "format": "Chat"}),
    (
        {"path": "owner/data", "type": "sharegpt"},
        {
            "source": "owner/data",
            "format": "Chat",
            "fields": {"messages": "conversations", "role": "from", "content": "value"},
        },
    ),
    (
        {**CHAT, "field_messages": "all", "message_property_mappings": {"role": "from"}},
        {
            "source": "owner/chats",
            "format": "Chat",
            "fields": {"messages": "all", "role": "from"},
        },
    ),
    (
        {**CHAT, "message_field_role": "from", "message_field_content": "value"},
        {"source": "owner/chats", "format": "Chat", "fields": {"role": "from", "content": "value"}},
    ),
    (
        {**CHAT, "field_messages": "messages", "field_tools": "tools"},
        {"source": "owner/chats", "format": "Chat"},
    ),
    (
        {**CHAT, "roles": {"assistant": ["gpt", "model"], "user": ["user"]}},
        {"source": "owner/chats", "format": "Chat", "roles": {"assistant": ["gpt", "model"]}},
    ),
    (
        {**CHAT, "roles_to_train": ["gpt", "user"], "train_on_eos": "all"},
        {
            "source": "owner/chats",
            "format": "Chat",
            "trainOn": ["assistant", "user"],
            "trainOnEnd": "All",
        },
    ),
    (
        {**CHAT, "drop_system_message": True},
        {"source": "owner/chats", "format": "Chat", "dropSystem": True},
    ),
    ({**CHAT, "roles_to_train": ["assistant"]}, {"source": "owner/chats", "format": "Chat"}),
    (
        {
            "path": "owner/data",
            "type": "completion",
            "field": "body",
            "name": "en",
            "split": "dev",
        },
        {
            "source": "owner/data",
            "format": "Text",
            "fields": {"text": "body"},
            "subset": "en",
            "split": "dev",
        },
    ),
    (
        {"path": "owner/data", "type": "alpaca", "revision": "v1", "data_files": "a/*.jsonl"},
        {"source": "owner/data", "format": "Alpaca", "revision": "v1", "files": ["a/*.jsonl"]},
    ),
    (
        {"path": "data/train.jsonl", "ds_type": "json", "type": "input_output"},
        {"source": "./data/train.jsonl", "format": "Segments"},
    ),
    (
        {"path": "/data/x.json", "type": "alpaca"},
        {"source": "/data/x.json", "format": "Alpaca"},
    ),
    ({"path": "./folder", "type": "alpaca"}, {"source": "./folder", "format": "Alpaca"}),
    (
        {"path": "owner/data", "type": "gpteacher"},
        {"source": "owner/data", "format": "Alpaca", "fields": {"output": "response"}},
    ),
    (
        {"path": "owner/data", "type": "alpaca_instruct.load_no_prompt"},
        {
            "source": "owner/data",
            "format": "Alpaca",
            "promptTemplate": {
                "withInput": (
                    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
                ),
                "withoutInput": "### Instruction:\n{instruction}\n\n### Response:\n",
            },
        },
    ),
    (
        {
            "path": "owner/data",
            "type": {
                "system_prompt": "Be short.",
                "system_format": "<s>{system}</s>",
                "field_instruction": "question",
                "field_output": "answer",
                "format": "[INST] {instruction} {input} [/INST]",
                "no_input_format": "[INST] {instruction} [/INST]",
            },
        },
        {
            "source": "owner/data",
            "format": "Alpaca",
            "fields": {"instruction": "question", "output": "answer"},
            "promptTemplate": {
                "withInput": "<s>Be short.</s>[INST] {instruction} {input} [/INST]",
                "withoutInput": "<s>Be short.</s>[INST] {instruction} [/INST]",
            },
        },
    ),
    (
        {
            "path": "owner/data",
            "type": {"format": "{{{instruction}}} {input}", "no_input_format": "{{{instruction}}}"},
        },
        {
            "source": "owner/data",
            "format": "Alpaca",
            "promptTemplate": {
                "withInput": "{system}{{instruction}} {input}",
                "withoutInput": "{system}{{instruction}}",
            },
        },
    ),
    (
        {"path": "owner/data", "type": {"field_output": "answer"}},
        {
            "source": "owner/data",
            "format": "Alpaca",
            "fields": {"output": "answer"},
            "promptTemplate": {
                "withInput": "{system}{instruction} {input} ",
                "withoutInput": "{system}{instruction} ",
            },
        },
    ),
]


@pytest.mark.parametrize(("entry", "expected"), ENTRIES, ids=lambda entry: str(entry)[:60])
def test_entry(entry: dict[str, Any], expected: dict[str, Any]) -> None:
    [data] = data_of(entry)
    excess = "Split" if expected["format"] == "Text" else "Drop"
    assert data == {**expected, "excessLength": excess}
    assert Verdict.UNSUPPORTED not in verdicts(entry).values()


@pytest.mark.parametrize(
    ("entry", "key"),
    [
        ({"path": "owner/data", "type": "jeopardy"}, "type"),
        ({"path": "owner/data"}, "type"),
        ({"path": "owner/data", "type": {"system_format": "S: {system}"}}, "type"),
        ({"path": "owner/data", "type": {"field_prompt": "x"}}, "type"),
        ({"path": "owner/data", "type": {"format": "say {{input}}"}}, "type"),
        ({"path": "owner/data", "type": {"system_prompt": "say {input}"}}, "type"),
        ({**CHAT, "message_property_mappings": {"weight": "weight"}}, "message_property_mappings"),
        ({**CHAT, "roles": {"narrator": ["narrator"]}}, "roles"),
        ({**CHAT, "shards": 10}, "shards"),
        ({**CHAT, "roles_to_train": ["narrator"]}, "roles_to_train"),
        ({"path": "owner/data", "type": "alpaca", "data_files": ["a.csv"]}, "data_files"),
        ({**CHAT, "train_on_eos": "sometimes"}, "train_on_eos"),
        ({**CHAT, "field_thinking": "thoughts"}, "field_thinking"),
        ({**CHAT, "feild_messages": "turns"}, "feild_messages"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_entry_that_would_teach_something_else(entry: dict[str, Any], key: str) -> None:
    found = verdicts(entry)
    assert {k: v for k, v in found.items() if v is Verdict.UNSUPPORTED} == {
        key: Verdict.UNSUPPORTED
    }


def test_local_files_are_data_sets_of_their_own() -> None:
    entry = {"path": "json", "data_files": ["a.jsonl", "/data/b.jsonl"], "type": "alpaca"}
    data = data_of(entry, {"path": "owner/more", "type": "completion"})
    assert [d["source"] for d in data] == ["./a.jsonl", "/data/b.jsonl", "owner/more"]
    assert [d["format"] for d in data] == ["Alpaca", "Alpaca", "Text"]


def test_several_data_sets_are_concatenated() -> None:
    one, two = {"path": "owner/one", "type": "alpaca"}, {"path": "owner/two", "type": "alpaca"}
    assert stage_of({**LORA, "datasets": [one, two]})["mixing"] == "Concatenate"
    assert "mixing" not in stage_of({**LORA, "datasets": [one]})


@pytest.mark.parametrize(
    ("strategy", "excess"), [("drop", "Drop"), ("truncate", "Truncate"), ("raise", "Fail")]
)
def test_longer_samples(strategy: str, excess: str) -> None:
    [data] = data_of(CHAT, excess_length_strategy=strategy)
    assert data["excessLength"] == excess


def test_shorter_samples() -> None:
    assert data_of(CHAT, min_sample_len=100)[0]["minimumLength"] == 100
    assert "minimumLength" not in data_of(CHAT, min_sample_len=0)[0]


@pytest.mark.parametrize(
    ("kind", "learned"),
    [
        ("chat_template", ["system", "user", "assistant", "tool"]),
        ("alpaca", ["user", "assistant"]),
        ("input_output", ["user", "assistant"]),
        ("completion", None),
    ],
)
def test_train_on_inputs(kind: str, learned: list[str] | None) -> None:
    [data] = data_of({"path": "owner/data", "type": kind}, train_on_inputs=True)
    assert data.get("trainOn") == learned
    [data] = data_of({"path": "owner/data", "type": kind}, train_on_inputs=False)
    assert "trainOn" not in data


def test_ends_that_contradict_each_other() -> None:
    entry = {**CHAT, "train_on_eos": "all", "train_on_eot": "last"}
    with pytest.raises(ConfigError, match="contradicts datasets"):
        stack_of({**LORA, "datasets": [entry]})


def test_a_data_set_brings_its_template() -> None:
    def base_of(*entries: dict[str, Any], **says: Any) -> dict[str, Any]:
        spec = stack_of({**LORA, "datasets": list(entries), **says}).manifest["spec"]
        return dict(spec["base"])

    chatml = {**CHAT, "chat_template": "chatml"}
    assert base_of(chatml, chatml)["chatTemplate"] == {"preset": "ChatML"}
    spelt = {**CHAT, "chat_template": "jinja", "chat_template_jinja": "{{ messages }}"}
    assert base_of(spelt)["chatTemplate"] == {"jinja": "{{ messages }}"}
    own = {**CHAT, "chat_template": "tokenizer_default"}
    assert base_of(own, chat_template="chatml")["chatTemplate"] == {"preset": "ChatML"}


def test_data_sets_with_two_templates_are_refused() -> None:
    two = [{**CHAT, "chat_template": name} for name in ("qwen3", "llama3")]
    with pytest.raises(ConfigError, match="chat_template: contradicts datasets"):
        stack_of({**LORA, "datasets": two})


@pytest.mark.parametrize("path", ["s3://bucket/data.jsonl", "https://x/y.json", "./data.csv"])
def test_what_is_not_read_is_left_out(path: str) -> None:
    remote = {"path": path, "type": "alpaca"}
    assert verdicts(remote)["path"] is Verdict.UNSUPPORTED
    with pytest.raises(ConfigError, match="none of them can be read"):
        stack_of({**LORA, "datasets": [remote]})


@pytest.mark.parametrize("kind", TYPES)
def test_every_type_is_accepted_by_the_api(kind: str) -> None:
    assert data_of({"path": "owner/data", "type": kind})
    assert data_of({"path": "owner/data", "type": f"{kind}.load"})
