"""Writes docs/reference from the code: `python -m docs.generate`, or `make docs`.

`make check` and a test refuse pages that are out of date.
"""

from __future__ import annotations

import sys
from pathlib import Path

from docs.generate import api, chart_values, cli, exit_codes, metrics

FOLDER = Path(__file__).parents[1] / "reference"


def generated() -> dict[str, str]:
    """The text of every page, by its name."""
    return {
        "api.md": api.text(),
        "chart-values.md": chart_values.text(),
        "cli.md": cli.text(),
        "exit-codes.md": exit_codes.text(),
        "metrics.md": metrics.text(),
    }


def outdated() -> list[str]:
    """The pages that are not what they would be today."""
    stored = {path.name: path.read_text() for path in FOLDER.glob("*.md")}
    made = generated()
    return sorted(name for name in stored | made if stored.get(name) != made.get(name))


def main() -> None:
    """Write every page; with --check, refuse those that are out of date."""
    if sys.argv[1:] == ["--check"]:
        if found := outdated():
            sys.exit(f"docs/reference is out of date ({', '.join(found)}): make docs")
        return
    for name, text in generated().items():
        (FOLDER / name).write_text(text)


if __name__ == "__main__":
    main()
