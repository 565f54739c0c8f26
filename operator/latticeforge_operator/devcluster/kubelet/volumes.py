"""A pod's volumes as folders of this machine.

Each kind of volume has one entry in a table below. ConfigMaps, Secrets, the downward API and the
ServiceAccount's token are payloads that are written (again) atomically whenever they change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from latticeforge_operator.devcluster.controllers.objects import (
    CLAIMS,
    CONFIG_MAPS,
    SECRETS,
    VOLUMES,
    find,
)
from latticeforge_operator.devcluster.kubelet.atomic import write_payload
from latticeforge_operator.devcluster.kubelet.environment import ConfigError, Values, expand
from latticeforge_operator.devcluster.resources import JsonObject, ResourceKey
from latticeforge_operator.devcluster.store import Store

ACCOUNT_MOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
_DEFAULT_MODE = 0o644
_SECRET_MODE = 0o600


@dataclass(frozen=True)
class VolumeSet:
    """The volumes of one pod.

    Attributes:
        store: where what they refer to is read.
        pod: the pod.
        folder: where those that live and die with the pod are made.
        account: the folder that stands for the ServiceAccount's token; None when the pod has none.
    """

    store: Store
    pod: JsonObject
    folder: Path
    account: Path | None

    def realise(self) -> Mapping[str, Path]:
        """Makes, or brings up to date, every volume; returns their folders by name.

        Raises:
            ConfigError: a volume refers to something that does not exist (yet).
        """
        volumes = self.pod["spec"].get("volumes") or ()
        return {volume["name"]: self._realise(volume) for volume in volumes}

    def _realise(self, volume: JsonObject) -> Path:
        kind = next((kind for kind in volume if kind != "name"), "emptyDir")
        maker = _MAKERS.get(kind)
        if maker is None:
            raise ConfigError(f"volume {volume['name']}: {kind} is not supported by the devcluster")
        return maker(self, volume["name"], volume.get(kind) or {})

    def empty(self, name: str, _: JsonObject) -> Path:
        """An emptyDir."""
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def host_path(self, name: str, source: JsonObject) -> Path:
        """A hostPath."""
        path = Path(source["path"])
        kind = source.get("type") or ""
        if kind == "DirectoryOrCreate":
            path.mkdir(parents=True, exist_ok=True)
        elif kind == "FileOrCreate":
            path.touch()
        elif not path.exists():
            raise ConfigError(f"volume {name}: hostPath {path} does not exist on this machine")
        return path

    def claim(self, name: str, source: JsonObject) -> Path:
        """The folder behind a PersistentVolumeClaim."""
        namespace = self.pod["metadata"]["namespace"]
        claim = find(self.store, CLAIMS, namespace, source["claimName"])
        if claim is None:
            raise ConfigError(f'persistentvolumeclaim "{source["claimName"]}" not found')
        if claim.get("status", {}).get("phase") != "Bound":
            raise ConfigError(f'persistentvolumeclaim "{source["claimName"]}" is not bound')
        volume = find(self.store, VOLUMES, "", claim["spec"]["volumeName"])
        if volume is None:
            raise ConfigError(f'persistentvolume "{claim["spec"]["volumeName"]}" not found')
        return self.host_path(name, volume["spec"]["hostPath"])

    def config_map(self, name: str, source: JsonObject) -> Path:
        """A ConfigMap's keys as files."""
        return self._payload(name, self._config_map_files(source), source, _DEFAULT_MODE)

    def secret(self, name: str, source: JsonObject) -> Path:
        """A Secret's keys as files; unlike in a cluster, only this user may read them."""
        files = self._secret_files({**source, "name": source["secretName"]})
        return self._payload(name, files, {}, _SECRET_MODE)

    def downward(self, name: str, source: JsonObject) -> Path:
        """Fields of the pod as files."""
        return self._payload(name, self._downward_files(source), source, _DEFAULT_MODE)

    def projected(self, name: str, source: JsonObject) -> Path:
        """Several of these in one folder."""
        files: dict[str, bytes] = {}
        for entry in source.get("sources") or ():
            kind, projection = next(iter(entry.items()))
            reader = _PROJECTIONS.get(kind)
            if reader is None:
                raise ConfigError(f"volume {name}: projected {kind} is not supported")
            files |= reader(self, projection)
        return self._payload(name, files, {}, _SECRET_MODE)

    def _payload(
        self, name: str, files: Mapping[str, bytes], source: JsonObject, mode: int
    ) -> Path:
        folder = self.folder / name
        write_payload(folder, files, source.get("defaultMode", mode))
        return folder

    def _config_map_files(self, source: JsonObject) -> dict[str, bytes]:
        return self._selected(CONFIG_MAPS, source)

    def _secret_files(self, source: JsonObject) -> dict[str, bytes]:
        return self._selected(SECRETS, source)

    def _selected(self, resource: ResourceKey, source: JsonObject) -> dict[str, bytes]:
        values = Values(self.store, self.pod).payload(resource, source["name"], source)
        items = source.get("items")
        if not items:
            return values
        missing = [item["key"] for item in items if item["key"] not in values]
        if missing and not source.get("optional"):
            raise ConfigError(f"{resource.plural} {source['name']} has no key {missing[0]}")
        return {item["path"]: values[item["key"]] for item in items if item["key"] in values}

    def _downward_files(self, source: JsonObject) -> dict[str, bytes]:
        values = Values(self.store, self.pod)
        return {
            item["path"]: values.field(item["fieldRef"]["fieldPath"]).encode()
            for item in source.get("items") or ()
        }

    def _token_file(self, source: JsonObject) -> dict[str, bytes]:
        if self.account is None:
            raise ConfigError("a serviceAccountToken is projected, but the pod has no API access")
        return {source["path"]: (self.account / "token").read_bytes()}

    def mounts(self, container: JsonObject, known: Mapping[str, str]) -> dict[str, Path]:
        """Host folder (or file) of each mountPath of a container.

        Args:
            container: its spec.
            known: its environment, for `subPathExpr`.
        """
        folders = self.realise()
        mounts = {} if self.account is None else {ACCOUNT_MOUNT: self.account}
        for mount in container.get("volumeMounts") or ():
            inside = mount.get("subPath") or expand(mount.get("subPathExpr") or "", known)
            mounts[mount["mountPath"]] = _below(folders[mount["name"]], inside)
        return mounts


def _below(folder: Path, inside: str) -> Path:
    if not inside:
        return folder
    if inside.startswith("/") or ".." in Path(inside).parts:
        raise ConfigError(f"subPath {inside!r} must stay within its volume")
    path = folder / inside
    if not path.exists():
        path.mkdir(parents=True)
    return path


_Maker = Callable[[VolumeSet, str, JsonObject], Path]
_MAKERS: Mapping[str, _Maker] = {
    "configMap": VolumeSet.config_map,
    "downwardAPI": VolumeSet.downward,
    "emptyDir": VolumeSet.empty,
    "hostPath": VolumeSet.host_path,
    "persistentVolumeClaim": VolumeSet.claim,
    "projected": VolumeSet.projected,
    "secret": VolumeSet.secret,
}
_PROJECTIONS: Mapping[str, Callable[[VolumeSet, JsonObject], dict[str, bytes]]] = {
    "configMap": VolumeSet._config_map_files,  # noqa: SLF001 - the class's own table
    "downwardAPI": VolumeSet._downward_files,  # noqa: SLF001 - as above
    "secret": VolumeSet._secret_files,  # noqa: SLF001 - as above
    "serviceAccountToken": VolumeSet._token_file,  # noqa: SLF001 - as above
}
