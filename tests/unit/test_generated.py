"""Generated files are what their generators make today."""

from __future__ import annotations

from pathlib import Path

import yaml
from charts import sync
from docs.generate import __main__ as reference

from latticeforge_operator import __version__
from latticeforge_operator.cli.crds import crd_files

ROOT = Path(__file__).parents[2]


def test_crds_are_up_to_date() -> None:
    stored = {path.name: path.read_text() for path in (ROOT / "crds").iterdir()}
    assert stored == crd_files(), "run: make crds"


def test_the_chart_is_up_to_date() -> None:
    assert sync.outdated() == [], "run: make chart"


def test_the_reference_is_up_to_date() -> None:
    assert reference.outdated() == [], "run: make docs"


def test_the_chart_has_the_version_of_what_it_installs() -> None:
    chart = yaml.safe_load((sync.CHART / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (__version__, __version__)
