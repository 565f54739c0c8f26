"""The GPUPools of the cluster in KUBECONFIG."""

from __future__ import annotations

import asyncio
from typing import Any

from latticeforge_operator.cli.access import Access
from latticeforge_operator.cli.errors import CommandError

_POOLS = "/apis/latticeforge.dev/v1alpha1/gpupools"


def list_pools() -> list[dict[str, Any]]:
    """All of them, as the API server has them.

    Raises:
        CommandError: There is no cluster, or it has none.
    """
    try:
        pools = asyncio.run(_list())
    except CommandError as error:
        raise CommandError(f"no GPUPool to plan for: {error}, or pass --pools FILE") from error
    if not pools:
        raise CommandError("the cluster has no GPUPool; create one, or pass --pools FILE")
    return pools


async def _list() -> list[dict[str, Any]]:
    access = await Access.connect()
    try:
        return (await access.get(_POOLS) or {}).get("items") or []
    finally:
        await access.aclose()
