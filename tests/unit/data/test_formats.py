"""Every data format, and every way a row can be wrong: one sentence that says where and what."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from latticeforge_trainer.contract import DataSource
from latticeforge_trainer.data import readers
from latticeforge_trainer.data.files import DataFile
from latticeforge_trainer.data.formats import read_samples
from latticeforge_trainer.data.samples import Chat, Completion, Sample, Segment, Segments, Text
from latticeforge_trainer.errors import UserError

TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hé"}]
ROWS: list[tuple[dict[str, Any], Sample]] = [
    ({"messages": TURNS, "text": "ignored"}, Chat(TURNS)),
    (
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hé"}]},
        Chat(TURNS),
    ),
    ({"prompt": "1+1=", "completion": "2"}, Completion("1+1=", "2")),
    ({"instruction": "Add", "input": "1 1", "output": "2"}, Completion("Add\n1 1\n", "2")),
    ({"instruction": "Add", "input": "", "output": "2"}, Completion("Add\n", "2")),
    ({"question": "1+1?", "answer": "2"}, Completion("1+1?\n", "2")),
    ({"text": "Once"}, Text("Once")),
]


def samples_of(path: Path, **spec: Any) -> list[Sample]:
    source = DataSource(source=f"./{path.name}", **spec)
    return [located.sample for located in read_samples(DataFile(path, path.name), source)]


def written(folder: Path, suffix: str, rows: list[dict[str, Any]]) -> Path:
    path = folder / f"data{suffix}"
    if suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path)
    elif suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson", ".json", ".parquet"])
@pytest.mark.parametrize(("row", "sample"), ROWS)
def test_each_format_in_each_kind_of_file(
    tmp_path: Path, suffix: str, row: dict[str, Any], sample: Sample
) -> None:
    assert samples_of(written(tmp_path, suffix, [row, row])) == [sample, sample]


def test_json_may_wrap_its_list_or_be_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"version": 1, "data": [{"text": "x"}]}')
    assert samples_of(path) == [Text("x")]
    path.write_text('{"text": "x"}\n\n{"text": "y"}\n')
    assert samples_of(path) == [Text("x"), Text("y")]
    path.write_bytes(b'\xef\xbb\xbf[{"text": "x"}]')
    assert samples_of(path) == [Text("x")]


def test_content_parts_tools_and_nulls(tmp_path: Path) -> None:
    call = {"function": {"name": "add", "arguments": {"a": 1}}}
    row = {
        "tools": [{"type": "function"}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "1"}], "name": None},
            {"role": "assistant", "content": None, "tool_calls": [call]},
        ],
    }
    (chat,) = samples_of(written(tmp_path, ".jsonl", [row]))
    assert chat == Chat(
        [{"role": "user", "content": "1"}, {"role": "assistant", "tool_calls": [call]}],
        [{"type": "function"}],
    )


def test_a_byte_order_mark_is_no_content(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "x"}\n')
    assert samples_of(path) == [Text("x")]


NAMED: list[tuple[dict[str, Any], dict[str, Any], Sample]] = [
    (
        {"format": "Chat", "fields": {"messages": "turns", "role": "from", "content": "value"}},
        {"turns": [{"from": "human", "value": "Hi"}, {"from": "model", "value": "Hé", "n": 1}]},
        Chat([TURNS[0], TURNS[1] | {"n": 1}]),
    ),
    (
        {"format": "Chat", "roles": {"assistant": ["narrator"]}},
        {"messages": [{"role": "narrator", "content": "Hé"}]},
        Chat([TURNS[1]]),
    ),
    (
        {"roles": {"user": ["narrator"]}},
        {"conversations": [{"from": "narrator", "value": "Hi"}]},
        Chat([TURNS[0]]),
    ),
    (
        {"format": "Chat", "fields": {"system": "prompt"}},
        {"messages": TURNS, "prompt": "Be kind"},
        Chat([{"role": "system", "content": "Be kind"}, *TURNS]),
    ),
    (
        {"format": "Chat", "fields": {"system": "prompt"}},
        {"messages": [{"role": "system", "content": "Be"}], "prompt": "Be kind"},
        Chat([{"role": "system", "content": "Be"}]),
    ),
    ({"format": "Chat"}, {"messages": TURNS, "system": "not asked for"}, Chat(TURNS)),
    (
        {"format": "Completion", "fields": {"prompt": "q", "completion": "a"}},
        {"q": "1+1=", "a": "2"},
        Completion("1+1=", "2"),
    ),
    ({"format": "Text", "fields": {"text": "body"}}, {"body": "Once"}, Text("Once")),
    (
        {"format": "Segments"},
        {"segments": [{"label": False, "text": "a"}, {"label": True, "text": "b"}]},
        Segments((Segment("a", False), Segment("b", True)), whole=False),
    ),
    (
        {"format": "Segments", "train_on": ["user", "assistant"]},
        {"segments": [{"label": False, "text": "a"}]},
        Segments((Segment("a", True),), whole=False),
    ),
    (
        {"format": "Alpaca"},
        {"instruction": "Add", "input": "1 1", "output": "2"},
        Segments(
            (
                Segment(
                    "Below is an instruction that describes a task, paired with an input that "
                    "provides further context. Write a response that appropriately completes the "
                    "request.\n\n### Instruction:\nAdd\n\n### Input:\n1 1\n\n### Response:\n",
                    False,
                ),
                Segment("2", True),
            ),
            whole=True,
        ),
    ),
    (
        {"format": "Alpaca", "train_on": ["user", "assistant"]},
        {"instruction": "Add", "input": "", "output": "2"},
        Segments(
            (
                Segment(
                    "Below is an instruction that describes a task. Write a response that "
                    "appropriately completes the request.\n\n### Instruction:\nAdd\n\n"
                    "### Response:\n",
                    True,
                ),
                Segment("2", True),
            ),
            whole=True,
        ),
    ),
    (
        {
            "format": "Alpaca",
            "fields": {"instruction": "q", "output": "a", "system": "s"},
            "prompt_template": {
                "with_input": "{system}|{instruction}|{input}|{other}",
                "without_input": "{system}[{instruction}]",
            },
        },
        {"q": "{input}", "a": "2", "s": "Be kind"},
        Segments((Segment("Be kind[{input}]", False), Segment("2", True)), whole=True),
    ),
]


@pytest.mark.parametrize(("spec", "row", "sample"), NAMED)
def test_a_named_format_renames_columns_and_roles(
    tmp_path: Path, spec: dict[str, Any], row: dict[str, Any], sample: Sample
) -> None:
    assert samples_of(written(tmp_path, ".jsonl", [row, row]), **spec) == [sample, sample]


@pytest.mark.parametrize(
    ("spec", "row", "sentence"),
    [
        ({"format": "Chat"}, {"text": "x"}, "expected columns messages; got 'text'"),
        (
            {"format": "Text", "fields": {"text": "body"}},
            {"text": "x"},
            "expected columns body; got 'text'",
        ),
        (
            {"format": "Alpaca"},
            {"instruction": "x", "output": "y", "input": 3},
            "'input' must be text, not a number",
        ),
        (
            {"format": "Chat", "fields": {"role": "from"}},
            {"messages": [{"from": "cat", "content": "x"}]},
            "message 1: 'from' must be one of human, gpt",
        ),
        (
            {"format": "Segments"},
            {"segments": [{"label": 1, "text": "x"}]},
            "segment 1: 'label' must be true or false, not 1",
        ),
        ({"format": "Segments"}, {"segments": []}, "'segments' is empty"),
    ],
)
def test_rows_that_are_not_of_the_named_format_are_one_sentence(
    tmp_path: Path, spec: dict[str, Any], row: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError, match=f"^data.jsonl, line 1.*{sentence}"):
        samples_of(written(tmp_path, ".jsonl", [row]), **spec)


GOOD = b'{"messages": [{"role": "user", "content": "x"}]}\n'
BAD: list[tuple[str, bytes, str]] = [
    ("a.jsonl", b'{"text": "x"}\n{"text": \n', "a.jsonl, line 2: not valid JSON"),
    ("a.jsonl", b"[1]\n", "line 1: expected an object with columns, got a list"),
    ("a.jsonl", b'"x"\n', "line 1: expected an object with columns, got text"),
    ("a.jsonl", b'{"text": "x\xff"}\n', "line 1: not UTF-8 (byte 0xff at 11)"),
    ("a.jsonl", b'{"text": "x \\ud800"}\n', "half a character (a lone surrogate, \\ud800)"),
    ("a.jsonl", b'{"txt": "x"}\n', "unknown format; expected columns messages, or"),
    ("a.jsonl", b"{}\n", "got none"),
    ("a.jsonl", b'{"text": "x"}\n\n{"texts": "x"}\n', "line 3: no 'text', which every row"),
    ("a.jsonl", b'{"text": 3}\n', "'text' must be text, not a number"),
    ("a.jsonl", b'{"text": null}\n', "no 'text'"),
    ("a.jsonl", b'{"prompt": "x", "completion": ["y"]}\n', "'completion' must be text, not a list"),
    ("a.jsonl", b'{"messages": []}\n', "line 1: 'messages' is empty"),
    ("a.jsonl", b'{"messages": "x"}\n', "'messages' must be a list, not text"),
    ("a.jsonl", GOOD + b'{"messages": [1]}\n', "line 2, message 1: must be an object"),
    ("a.jsonl", b'{"messages": [{"role": "bot"}]}\n', "'role' must be one of system, developer"),
    ("a.jsonl", b'{"messages": [{"role": "user"}]}\n', "'content' must be text, not null"),
    (
        "a.jsonl",
        b'{"messages": [{"role": "user", "content": [{"type": "image"}]}]}\n',
        "only text content can be trained on",
    ),
    ("a.jsonl", GOOD[:-2] + b', "tools": {"a": 1}}\n', "'tools' must be a list, not an object"),
    (
        "a.jsonl",
        b'{"conversations": [{"from": "cat", "value": "x"}]}\n',
        "'from' must be one of human, gpt",
    ),
    ("a.jsonl", b'{"conversations": [{"from": [], "value": "x"}]}\n', "not []"),
    ("a.jsonl", b'{"text": ' + b"[" * 100_000 + b"\n", "nested too deeply"),
    ("a.json", b"{", "a.json: not valid JSON"),
    ("a.json", b"3", "expected a list of samples"),
    ("a.json", b'[{"text": "x"}, 3]', "item 2: expected an object with columns, got a number"),
    ("a.json", b'{"text": "x"}', "expected a list of samples, got one object"),
    ("a.parquet", b"no parquet", "a.parquet: not readable as Parquet"),
]


@pytest.mark.parametrize(("name", "content", "sentence"), BAD)
def test_bad_rows_are_one_sentence(
    tmp_path: Path, name: str, content: bytes, sentence: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        samples_of(path)
    message = str(error.value)
    assert message.startswith(name)
    assert sentence in message
    assert "\n" not in message


def test_parquet_rows_are_numbered(tmp_path: Path) -> None:
    path = written(tmp_path, ".parquet", [{"text": "x"}, {"text": None}])
    with pytest.raises(UserError, match=r"data\.parquet, row 2: no 'text'"):
        samples_of(path)


def test_a_huge_line_is_refused_without_reading_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "MAXIMUM_LINE", 1 << 20)
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "x"}\n{"text": "' + b"y" * (2 << 20) + b'"}\n')
    with pytest.raises(UserError, match="line 2: longer than 1 MiB"):
        samples_of(path)


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.jsonl: No such file"):
        samples_of(tmp_path / "gone.jsonl")
