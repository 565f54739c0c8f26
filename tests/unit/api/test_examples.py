"""Every example is a file that `latticeforge run` accepts."""

from __future__ import annotations

from pathlib import Path

import pytest

from latticeforge_operator.cli.stackfile import load_stack
from latticeforge_operator.core.policies.gate import unreachable

ROOT = Path(__file__).parents[3]
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))


def test_there_are_examples() -> None:
    assert "quickstart.yaml" in {path.name for path in EXAMPLES}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_is_valid(path: Path) -> None:
    training = load_stack(path, None).training
    gates = [gate for stage in training.spec.stages for gate in stage.evaluate]
    assert [unreachable(gate) for gate in gates] == [None] * len(gates)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_brings_the_pool_that_it_names(path: Path) -> None:
    file = load_stack(path, None)
    pools = [pool["metadata"]["name"] for pool in file.pools]
    named = file.training.spec.compute.pool
    assert pools if named is None else named in pools


def test_examples_are_listed() -> None:
    listed = (ROOT / "examples" / "README.md").read_text()
    assert [path.name for path in EXAMPLES if f"`{path.name}`" not in listed] == []
