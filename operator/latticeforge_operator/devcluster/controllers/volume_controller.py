"""The volume controller's loop: binds claims, keeps those in use, and empties deleted ones."""

from __future__ import annotations

import logging
import shutil
from datetime import datetime
from pathlib import Path

from latticeforge_operator.devcluster.controllers import volumes
from latticeforge_operator.devcluster.controllers.loops import Controller, Request
from latticeforge_operator.devcluster.controllers.objects import CLAIMS, PODS, VOLUMES, key_of
from latticeforge_operator.devcluster.controllers.recorder import Recorder
from latticeforge_operator.devcluster.controllers.volumes import PROTECTION
from latticeforge_operator.devcluster.resources import JsonObject
from latticeforge_operator.devcluster.store import Store

_log = logging.getLogger(__name__)
_EVERYTHING: tuple[Request, ...] = (("", "volumes"),)


class VolumeController:
    """Binds claims to volumes.

    Args:
        store: the API.
        root: folder under which claims get their own.
    """

    def __init__(self, store: Store, root: Path) -> None:
        self._store = store
        self._root = root
        self._recorder = Recorder(store, "persistentvolume-controller")
        sources = dict.fromkeys((CLAIMS, VOLUMES, PODS), lambda _: _EVERYTHING)
        self._controller = Controller(store, "volume controller", sources, self._reconcile)

    async def run(self) -> None:
        """Runs until cancelled."""
        await self._controller.run()

    def _reconcile(self, _: Request) -> datetime | None:
        for claim in self._store.list(CLAIMS):
            namespace = claim["metadata"]["namespace"]
            pods = self._store.list(PODS, namespace)
            known = self._store.list(VOLUMES)
            self._carry_out(claim, volumes.decide_claim(claim, known, pods, self._root))
        uids = {claim["metadata"]["uid"] for claim in self._store.list(CLAIMS)}
        for volume in volumes.orphaned(self._store.list(VOLUMES), uids):
            self._reclaim(volume)
        return None

    def _carry_out(self, claim: JsonObject, actions: volumes.ClaimActions) -> None:
        if actions.protected is not None:
            self._protect(claim, wanted=actions.protected)
        if actions.event is not None:
            self._recorder.record(claim, actions.event)
        if actions.provision is not None:
            Path(actions.provision["spec"]["hostPath"]["path"]).mkdir(parents=True, exist_ok=True)
            self._store.create(VOLUMES, "", actions.provision)
        if actions.bind_to is not None:
            self._bind(claim, actions.bind_to)

    def _protect(self, claim: JsonObject, *, wanted: bool) -> None:
        present = claim["metadata"].get("finalizers") or []
        if wanted == (PROTECTION in present):
            return
        rest = [finalizer for finalizer in present if finalizer != PROTECTION]
        patch = {"metadata": {"finalizers": [*rest, PROTECTION] if wanted else rest}}
        self._store.merge_patch(CLAIMS, *key_of(claim), patch)

    def _bind(self, claim: JsonObject, name: str) -> None:
        reference = {"spec": {"claimRef": volumes.claim_reference(claim)}}
        volume = self._store.merge_patch(VOLUMES, "", name, reference)
        bound = {"status": {"phase": "Bound"}}
        self._store.merge_patch(VOLUMES, "", name, bound, subresource="status")
        self._store.merge_patch(CLAIMS, *key_of(claim), {"spec": {"volumeName": name}})
        status = {
            "phase": "Bound",
            "accessModes": volume["spec"].get("accessModes"),
            "capacity": volume["spec"].get("capacity"),
        }
        self._store.merge_patch(CLAIMS, *key_of(claim), {"status": status}, subresource="status")

    def _reclaim(self, volume: JsonObject) -> None:
        name = volume["metadata"]["name"]
        if volume["spec"].get("persistentVolumeReclaimPolicy") != "Delete":
            released = {"status": {"phase": "Released"}}
            self._store.merge_patch(VOLUMES, "", name, released, subresource="status")
            return
        folder = Path(volume["spec"]["hostPath"]["path"])
        # Only what was provisioned here is ours to remove, whatever a volume says of itself.
        if folder.is_relative_to(self._root) and ".." not in folder.parts:
            _log.info("devcluster: removing %s, its claim was deleted", folder)
            if folder.exists():
                shutil.rmtree(folder)
        self._store.delete(VOLUMES, "", name)
