"""docs/import-axolotl.md lists every key, with what the importer says of it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from tests.unit.axolotl.imports import LORA

from latticeforge_operator.axolotl.datasets import ENTRY
from latticeforge_operator.axolotl.lines import Line
from latticeforge_operator.axolotl.registry import KEYS
from latticeforge_operator.axolotl.settings import Settings, WrongValueError

PAGE = Path(__file__).parents[3] / "docs" / "import-axolotl.md"
PROBES: tuple[Any, ...] = (True, 0.5, 3, "x", ["x"], {"x": 1}, [{"path": "a/b"}])


def rows(title: str) -> list[tuple[list[str], str]]:
    """The rows of a table: keys, and what is said of them."""
    section = PAGE.read_text().partition(f"\n### {title}\n")[2].partition("\n#")[0]
    found = re.findall(r"^\| (`.+`) \| (.+) \|$", section, re.MULTILINE)
    return [(re.findall(r"`(\w+)`", keys), sentence) for keys, sentence in found]


def line_of(name: str) -> Line:
    """What is said of a key that is set."""
    for probe in PROBES:
        try:
            value = KEYS[name].read(probe)
        except WrongValueError:
            continue
        return next(iter(KEYS[name].rule(name, value, Settings({**LORA, name: value}))))
    raise AssertionError(name)


def test_every_key_stands_there_once() -> None:
    titles = ("Mapped", "Implied", "Ignored", "Unsupported")
    listed = [key for title in titles for keys, _ in rows(title) for key in keys]
    assert sorted(listed) == sorted(KEYS)


def test_every_key_of_a_data_set_stands_there_once() -> None:
    listed = [key for keys, _ in rows("Of an entry of `datasets`") for key in keys]
    assert sorted(listed) == sorted(ENTRY)


@pytest.mark.parametrize("title", ["Implied", "Ignored", "Unsupported"])
def test_what_is_said_is_what_the_importer_says(title: str) -> None:
    for keys, sentence in rows(title):
        for line in (line_of(key) for key in keys):
            said = re.sub(r"^(true|0\.5|x|'x'): ", "", line.sentence)
            assert (line.verdict, said) == (title.lower(), sentence), line.key
