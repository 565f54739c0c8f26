"""Which files of a source are taken: metadata, names, links."""

from __future__ import annotations

from pathlib import Path

import pytest

from latticeforge_trainer.data.files import Selection, front_matter, walk
from latticeforge_trainer.errors import UserError

CONFIGS = """---
license: apache-2.0
configs:
- config_name: olympiad
  data_files:
  - {split: train, path: "olympiad/train-*.parquet"}
  - {split: test, path: ["olympiad/test.jsonl", "more/**/test.jsonl"]}
- config_name: school
  default: true
  data_files: "school/*.jsonl"
- config_name: nested
  data_dir: deep
  data_files: {train: ["a?.jsonl"]}
- config_name: bare
  data_dir: school
---
# A data set
"""
FILES = [
    "README.md",
    "olympiad/train-00000-of-00002.parquet",
    "olympiad/train-00001-of-00002.parquet",
    "olympiad/test.jsonl",
    "more/x/y/test.jsonl",
    "school/a.jsonl",
    "school/sub/b.jsonl",
    "deep/a1.jsonl",
    "deep/b1.jsonl",
]


@pytest.mark.parametrize(
    ("subset", "split", "expected"),
    [
        ("olympiad", "train", FILES[1:3]),
        ("olympiad", "test", ["more/x/y/test.jsonl", "olympiad/test.jsonl"]),
        (None, "train", ["school/a.jsonl"]),
        ("nested", "train", ["deep/a1.jsonl"]),
        ("bare", "train", ["school/a.jsonl", "school/sub/b.jsonl"]),
    ],
)
def test_metadata_decides(subset: str | None, split: str, expected: list[str]) -> None:
    assert Selection("me/data", subset, split).pick(FILES, CONFIGS) == expected


@pytest.mark.parametrize(
    ("names", "subset", "split", "expected"),
    [
        (["a.jsonl", "b.parquet", "notes.txt"], None, "train", ["a.jsonl", "b.parquet"]),
        (["train.jsonl", "test.jsonl"], None, "train", ["train.jsonl"]),
        (["cic-train.jsonl", "cic-heldout.jsonl"], None, "test", ["cic-heldout.jsonl"]),
        (["all.jsonl", "val.jsonl"], None, "train", ["all.jsonl"]),
        (["data/train/1.json", "data/dev/1.json"], None, "validation", ["data/dev/1.json"]),
        (["math/train.jsonl", "cic/train.jsonl"], "cic", "train", ["cic/train.jsonl"]),
        (["train/a.jsonl", "train/test.jsonl"], "train", "test", ["train/test.jsonl"]),
        ([".cache/a.jsonl", "dataset_infos.json", "a.jsonl"], None, "train", ["a.jsonl"]),
        (["gold.jsonl", "train.jsonl"], None, "gold", ["gold.jsonl"]),
    ],
)
def test_names_decide_without_metadata(
    names: list[str], subset: str | None, split: str, expected: list[str]
) -> None:
    assert Selection("./data", subset, split).pick(names) == expected


@pytest.mark.parametrize(
    ("names", "readme", "subset", "split", "sentence"),
    [
        (["a.txt"], None, None, "train", "no data files; known are .jsonl"),
        ([], None, None, "train", "no data files"),
        (["a/x.jsonl"], None, "b", "train", "no subset 'b'; there are a"),
        (["train.jsonl"], None, None, "test", "no split 'test'; there are train"),
        (FILES, CONFIGS, "none", "train", "no subset 'none'; there are olympiad, school"),
        (FILES, CONFIGS, "olympiad", "gold", "no split 'gold'; there are train, test"),
        ([*FILES[:1], "x.jsonl"], CONFIGS, None, "train", "no data file matches school/"),
        (["a.jsonl"], "---\nconfigs: [\n---\n", None, "train", "no valid YAML"),
        (["a.jsonl"], "---\nconfigs: 3\n---\n", None, "train", "not a list of subsets"),
        (
            ["a.jsonl"],
            "---\nconfigs: [{config_name: a}, {config_name: b}]\n---\n",
            None,
            "train",
            "name a subset, one of a, b",
        ),
    ],
)
def test_what_is_not_there_is_named(
    names: list[str], readme: str | None, subset: str | None, split: str, sentence: str
) -> None:
    with pytest.raises(UserError, match=r"^me/data: ") as error:
        Selection("me/data", subset, split).pick(names, readme)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_links_are_followed_and_loops_are_not(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.jsonl").write_text("{}")
    data = tmp_path / "data"
    data.mkdir()
    (data / "linked").symlink_to(tmp_path / "real")
    (data / "loop").symlink_to(data)
    (data / "self.jsonl").symlink_to(data / "self.jsonl")
    assert list(walk(data)) == ["linked/a.jsonl"]


def test_front_matter_is_optional() -> None:
    assert front_matter("x", None) == front_matter("x", "# Title\n---\n") == {}
    assert front_matter("x", "---\nlicense: mit\n---") == {"license": "mit"}


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["school/a.jsonl"], ["school/a.jsonl"]),
        (["olympiad/*.parquet", "deep/?1.jsonl"], ["deep/a1.jsonl", "deep/b1.jsonl", *FILES[1:3]]),
        (["**/a*.jsonl"], ["deep/a1.jsonl", "school/a.jsonl"]),
        (["./school/a.jsonl", "school/*.jsonl"], ["school/a.jsonl"]),
    ],
)
def test_files_that_are_named_are_taken_whatever_the_metadata_says(
    patterns: list[str], expected: list[str]
) -> None:
    assert Selection("me/data", files=patterns).pick(FILES, CONFIGS) == expected


@pytest.mark.parametrize("pattern", ["school/c.jsonl", "README.md", "school/a.jsonl.zst"])
def test_a_file_that_is_not_there_is_named_beside_those_that_are(pattern: str) -> None:
    with pytest.raises(UserError, match=f"me/data: no data file matches {pattern}; there are deep"):
        Selection("me/data", files=["school/a.jsonl", pattern]).pick(FILES)
