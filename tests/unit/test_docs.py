"""What the documents say exists: links, make targets, commands, folders, examples."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from pydantic import TypeAdapter
from pydantic.alias_generators import to_camel

from latticeforge_operator.api.data import Data, Fields
from latticeforge_operator.api.tokenizer import SpecialTokens
from latticeforge_operator.api.training import Base
from latticeforge_operator.cli.commands import group
from latticeforge_trainer.contract import DataFormat, ExcessLength, ExitCode

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").glob("*.md")]
)
NAMES = [str(path.relative_to(ROOT)) for path in DOCUMENTS]
NOT_YET = {"plan"}
"""Commands that the limits name as missing."""


@pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)
def test_links_lead_somewhere(path: Path) -> None:
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text())
    assert [target for target in targets if not (path.parent / target).exists()] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)
def test_anchors_name_a_heading(path: Path) -> None:
    text = path.read_text()
    headings = {
        re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= headings


@pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)
def test_make_targets_exist(path: Path) -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    code = "\n".join(re.findall(r"`[^`]+`|^ {4}\S.*$", path.read_text(), re.MULTILINE))
    # At the start of what is typed: pasted output may say it, too.
    assert set(re.findall(r"^[` ]*(?:\$ )?make ([a-z]+)", code, re.MULTILINE)) <= set(targets)


@pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)
def test_commands_and_their_options_exist(path: Path) -> None:
    for name, rest in re.findall(r"`latticeforge ([a-z]+)([^`]*)`", path.read_text()):
        if name in NOT_YET:
            continue
        command = group.commands[name]
        if isinstance(command, click.Group) and rest.split():
            command = command.commands[rest.split()[0]]
        known = {option for param in command.params for option in param.opts}
        assert set(re.findall(r"(?<!\S)--?[a-z][a-z-]*", rest)) <= known


def test_every_command_is_documented() -> None:
    readme = (ROOT / "README.md").read_text()
    assert [name for name in group.commands if f"`latticeforge {name}" not in readme] == []


def test_exit_codes_of_the_architecture_page_are_the_contract() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    table = {int(code) for code in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)}
    assert table == {int(code) for code in ExitCode}


def test_folders_of_the_architecture_page_exist() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    house = text.partition("## The house")[2].partition("```")[2].partition("```")[0]
    parent = ROOT
    for line in house.strip().splitlines():
        if not line.startswith(" "):
            parent = ROOT / line.split()[0]
            assert parent.is_dir()
            continue
        names = re.match(r" +((?:[\w.]+(?:/|\.py) ?)+)", line)
        assert names is not None, line
        for name in names[1].split():
            assert (parent / name).exists(), name


def test_help_costs_no_heavy_import() -> None:
    code = "import sys, latticeforge_operator.cli; print(sorted(sys.modules))"
    command = [sys.executable, "-c", code]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True)
    heavy = {"kubernetes", "aiohttp", "rich", "pydantic", "kopf", "torch", "yaml"}
    assert heavy & set(re.findall(r"'(\w+)'", loaded.stdout)) == set()


def test_every_option_says_what_it_does() -> None:
    nested = [c for c in group.commands.values() if isinstance(c, click.Group)]
    for command in [*group.commands.values(), *(c for g in nested for c in g.commands.values())]:
        assert command.help, command.name
        for param in command.params:
            if isinstance(param, click.Option):
                assert param.help, f"{command.name} {param.name}"


def test_every_field_of_a_data_set_is_explained() -> None:
    text = (ROOT / "docs" / "training-data.md").read_text()
    named = {*Data.model_fields, *Fields.model_fields, *SpecialTokens.model_fields}
    words = set(re.findall(r"\w+", text))
    assert {to_camel(name) for name in named} <= words
    assert {str(kind) for kind in (*DataFormat, *ExcessLength)} <= words


@pytest.mark.parametrize(
    "snippet",
    re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/training-data.md").read_text(), re.DOTALL),
)
def test_snippets_are_valid(snippet: str) -> None:
    parts: dict[str, TypeAdapter[Any]] = {
        "base": TypeAdapter(Base),
        "data": TypeAdapter(list[Data]),
    }
    for name, value in yaml.safe_load(snippet).items():
        assert parts[name].validate_python(value)
