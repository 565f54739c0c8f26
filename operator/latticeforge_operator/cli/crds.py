"""`latticeforge crds`: the CRDs as YAML, the way they stand in `crds/`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click
import yaml

from latticeforge_operator.api.crds import all_crds

_HEADER = (
    "# Generated from latticeforge_operator/api by `latticeforge crds`; `make crds` updates it.\n"
)


def crd_files() -> dict[str, str]:
    """The text of every file in `crds/`, by file name."""
    return {name: _HEADER + to_yaml(crd) for name, crd in all_crds().items()}


def to_yaml(document: dict[str, Any]) -> str:
    """One YAML document without anchors, its keys in their own order."""
    text: str = yaml.dump(document, Dumper=_PlainDumper, sort_keys=False, width=100)
    return text


def print_crds() -> None:
    """Print all CRDs as one YAML stream."""
    click.echo("---\n".join(crd_files().values()), nl=False)


def write_crds(folder: Path) -> None:
    """Write one file per CRD."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in crd_files().items():
        (folder / name).write_text(text)


class _PlainDumper(yaml.SafeDumper):
    """Repeats what occurs twice: not every YAML reader in a cluster's tool chain knows anchors.

    Texts that YAML 1.2 reads as numbers are quoted: to kubectl and Helm, 2e-5 is one, and "2e-5" is
    what it says.
    """

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002  (the base class's signature)
        return True


_PlainDumper.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$"),
    list("-+.0123456789"),
)
