"""Which GPUs a pod's containers see: each device belongs to one pod at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from latticeforge_operator.devcluster.controllers.nodes import GPU
from latticeforge_operator.devcluster.controllers.scheduler import requests
from latticeforge_operator.devcluster.resources import JsonObject


class Devices:
    """The machine's GPUs and who holds them.

    Args:
        names: the GPUs as CUDA_VISIBLE_DEVICES names them.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = tuple(names)
        self._held: dict[str, tuple[str, ...]] = {}

    def acquire(self, pod: JsonObject) -> Mapping[str, str] | None:
        """Gives a pod its GPUs.

        Returns:
            CUDA_VISIBLE_DEVICES of each of its containers; None while too few are free, which
            happens when a pod was removed by force and its processes are still ending.
        """
        uid = pod["metadata"]["uid"]
        if uid not in self._held:
            taken = {name for names in self._held.values() for name in names}
            free = [name for name in self._names if name not in taken]
            wanted = int(requests(pod).get(GPU, 0))
            if len(free) < wanted:
                return None
            self._held[uid] = tuple(free[:wanted])
        return _share_out(pod, self._held[uid])

    def release(self, uid: str) -> None:
        """Takes back what a pod held."""
        self._held.pop(uid, None)


def _share_out(pod: JsonObject, devices: Sequence[str]) -> dict[str, str]:
    """Init containers run alone and start from the first device; the others stand side by side."""
    shares = {}
    for container in pod["spec"].get("initContainers") or ():
        shares[container["name"]] = ",".join(devices[: _count(container)])
    first = 0
    for container in pod["spec"]["containers"]:
        last = first + _count(container)
        shares[container["name"]] = ",".join(devices[first:last])
        first = last
    return shares


def _count(container: JsonObject) -> int:
    return int(requests({"spec": {"containers": [container]}}).get(GPU, 0))
