"""What the documents say exists: links, make targets, commands, folders, examples."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from pydantic.alias_generators import to_camel
from tests.fixtures.documents import DOCUMENTS, ROOT

from latticeforge_operator.api.data import Data, Fields
from latticeforge_operator.api.tokenizer import SpecialTokens
from latticeforge_operator.cli.commands import group
from latticeforge_trainer.contract import DataFormat, ExcessLength, ExitCode

NAMES = [str(path.relative_to(ROOT)) for path in DOCUMENTS]


@pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)
def test_links_lead_somewhere(path: Path) -> None:
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text())
    assert [target for target in targets if not (path.parent / target).exists()] == []


def anchors(path: Path) -> set[str]:
    """The headings of a document, as links name them."""
    return {
        re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    }


@pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)
def test_anchors_name_a_heading(path: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#:]*\.md)?#([^)]+)\)", path.read_text()):
        assert anchor in anchors(path.parent / target if target else path)


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
