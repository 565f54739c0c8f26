"""Generated files are what their generators make today."""

from __future__ import annotations

from pathlib import Path

from latticeforge_operator.cli.crds import crd_files

ROOT = Path(__file__).parents[2]


def test_crds_are_up_to_date() -> None:
    stored = {path.name: path.read_text() for path in (ROOT / "crds").iterdir()}
    assert stored == crd_files(), "run: make crds"
