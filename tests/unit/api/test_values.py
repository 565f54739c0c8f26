"""Values that the API holds as strings, and what is read beside a spec."""

from __future__ import annotations

import pytest

from latticeforge_operator.api import GPUPool
from latticeforge_operator.api.base import parse_quantity


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("1500m", 1),
        ("2k", 2000),
        ("1.5Ki", 1536),
        ("500Gi", 500 * 2**30),
        ("2Ti", 2**41),
        ("1T", 10**12),
    ],
)
def test_quantities(text: str, value: int) -> None:
    assert parse_quantity(text) == value


@pytest.mark.parametrize("text", ["", "Gi", "5GB", "-1Gi", "1 Gi"])
def test_what_is_no_quantity_is_told(text: str) -> None:
    with pytest.raises(ValueError, match="is no quantity; write it like 500Gi"):
        parse_quantity(text)


@pytest.mark.parametrize(("status", "nodes"), [(None, None), ({}, None), ({"nodes": 4}, 4)])
def test_a_pool_knows_its_nodes_if_somebody_has_counted(
    status: dict[str, int] | None, nodes: int | None
) -> None:
    manifest = {"metadata": {"name": "p"}, "spec": {"accelerator": "H200"}}
    pool = GPUPool.from_object(manifest if status is None else manifest | {"status": status})
    assert pool.nodes == nodes
