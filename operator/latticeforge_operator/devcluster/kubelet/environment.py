"""A container's environment and command: resolved, expanded, translated.

Order and meaning are Kubernetes's: `envFrom` first, then `env`, each value expanded with what
stands before it; `$(NAME)` of an unknown name stays as it is, `$$(NAME)` is an escape.
"""

from __future__ import annotations

import base64
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from latticeforge_operator.devcluster.controllers.objects import CONFIG_MAPS, SECRETS, find
from latticeforge_operator.devcluster.kubelet.paths import LOOPBACK
from latticeforge_operator.devcluster.resources import JsonObject, ResourceKey
from latticeforge_operator.devcluster.store import Store

Environment = dict[str, str]
Translate = Callable[[str], str]

# What an image would bring, and this machine does: libraries, certificates, the way to the network.
_FROM_MACHINE = (
    "CUDA_HOME",
    "CUDA_PATH",
    "CURL_CA_BUNDLE",
    "DYLD_LIBRARY_PATH",
    "HTTPS_PROXY",
    "HTTP_PROXY",
    "LD_LIBRARY_PATH",
    "NO_PROXY",
    "REQUESTS_CA_BUNDLE",
    "SSL_CERT_DIR",
    "SSL_CERT_FILE",
    "TMPDIR",
    "TZ",
    "http_proxy",
    "https_proxy",
    "no_proxy",
)
_REFERENCE = re.compile(r"\$\$|\$\(([^()]+)\)")
_FIELD_KEY = re.compile(r"metadata\.(labels|annotations)\['([^']+)'\]")


class ConfigError(Exception):
    """A container refers to something that does not exist (yet); it waits until it does."""


def base_environment(home: Path, hostname: str) -> Environment:
    """What every container gets from the machine that plays its image."""
    machine = {name: os.environ[name] for name in _FROM_MACHINE if name in os.environ}
    search = [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
    return machine | {
        "PATH": os.pathsep.join(search),
        "LANG": os.environ.get("LANG", "C.UTF-8"),
        "HOME": str(home),
        "HOSTNAME": hostname,
    }


def expand(text: str, known: Mapping[str, str]) -> str:
    """Replaces `$(NAME)` by what is known under that name."""

    def replaced(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        return known.get(match[1], match[0])

    return _REFERENCE.sub(replaced, text)


class Values:
    """Reads the values that a pod's containers refer to.

    Args:
        store: where ConfigMaps and Secrets are.
        pod: the pod.
    """

    def __init__(self, store: Store, pod: JsonObject) -> None:
        self._store = store
        self._pod = pod
        self._namespace: str = pod["metadata"]["namespace"]

    def environment(
        self, container: JsonObject, service: Mapping[str, str], translate: Translate = str
    ) -> Environment:
        """Resolves a container's envFrom and env.

        Args:
            container: its spec.
            service: variables that the cluster itself provides; values may refer to them.
            translate: applied to each value before references in it are expanded.

        Raises:
            ConfigError: a reference leads nowhere.
        """
        resolved: Environment = {}
        for source in container.get("envFrom") or ():
            prefix = source.get("prefix") or ""
            resolved |= {prefix + key: translate(text) for key, text in self._all(source).items()}
        for variable in container.get("env") or ():
            value = self._value(variable)
            if value is not None:
                text = translate(value)
                refers = "valueFrom" not in variable
                known = {**service, **resolved}
                resolved[variable["name"]] = expand(text, known) if refers else text
        return resolved

    def _all(self, source: JsonObject) -> dict[str, str]:
        if reference := source.get("configMapRef"):
            payload = self.payload(CONFIG_MAPS, reference["name"], reference)
        else:
            reference = source["secretRef"]
            payload = self.payload(SECRETS, reference["name"], reference)
        return {key: value.decode() for key, value in payload.items()}

    def _value(self, variable: JsonObject) -> str | None:
        source = variable.get("valueFrom")
        if not source:
            return variable.get("value") or ""
        if reference := source.get("configMapKeyRef"):
            return self._key(CONFIG_MAPS, reference)
        if reference := source.get("secretKeyRef"):
            return self._key(SECRETS, reference)
        if reference := source.get("fieldRef"):
            return self.field(reference["fieldPath"])
        kind = next(iter(source))
        raise ConfigError(f"env {variable['name']}: {kind} is not supported by the devcluster")

    def _key(self, resource: ResourceKey, reference: JsonObject) -> str | None:
        payload = self.payload(resource, reference["name"], reference)
        if reference["key"] in payload:
            return payload[reference["key"]].decode()
        if reference.get("optional"):
            return None
        kind = {CONFIG_MAPS: "ConfigMap", SECRETS: "Secret"}[resource]
        where = f"{self._namespace}/{reference['name']}"
        raise ConfigError(f"couldn't find key {reference['key']} in {kind} {where}")

    def payload(self, resource: ResourceKey, name: str, reference: JsonObject) -> dict[str, bytes]:
        """Reads all keys of a ConfigMap or Secret; an absent optional one is empty.

        Raises:
            ConfigError: there is none, and the reference is not optional.
        """
        found = find(self._store, resource, self._namespace, name)
        if found is None:
            if reference.get("optional"):
                return {}
            raise ConfigError(f'{resource.plural.removesuffix("s")} "{name}" not found')
        if resource == SECRETS:
            return _decoded(found.get("data"))
        texts = {key: text.encode() for key, text in (found.get("data") or {}).items()}
        return texts | _decoded(found.get("binaryData"))

    def field(self, path: str) -> str:
        """Reads a field of the pod as the downward API offers it.

        Raises:
            ConfigError: the downward API has no such field.
        """
        if match := _FIELD_KEY.fullmatch(path):
            return str((self._pod["metadata"].get(match[1]) or {}).get(match[2], ""))
        reader = _FIELDS.get(path)
        if reader is None:
            raise ConfigError(f"fieldRef {path!r} is not supported by the devcluster")
        return reader(self._pod)


_FIELDS: Mapping[str, Callable[[JsonObject], str]] = {
    "metadata.name": lambda pod: str(pod["metadata"]["name"]),
    "metadata.namespace": lambda pod: str(pod["metadata"]["namespace"]),
    "metadata.uid": lambda pod: str(pod["metadata"]["uid"]),
    "spec.nodeName": lambda pod: str(pod["spec"].get("nodeName", "")),
    "spec.serviceAccountName": lambda pod: str(pod["spec"].get("serviceAccountName", "default")),
    "status.hostIP": lambda _: LOOPBACK,
    "status.hostIPs": lambda _: LOOPBACK,
    "status.podIP": lambda _: LOOPBACK,
    "status.podIPs": lambda _: LOOPBACK,
}


def _decoded(data: Mapping[str, str] | None) -> dict[str, bytes]:
    return {key: base64.b64decode(text) for key, text in (data or {}).items()}


def command_line(
    container: JsonObject, known: Mapping[str, str], translate: Translate = str
) -> Sequence[str]:
    """The container's command and args, translated and expanded.

    Raises:
        ConfigError: there is no command.
    """
    command = container.get("command") or ()
    if not command:
        raise ConfigError(
            f"container {container['name']} has no command, and the devcluster has no image to "
            "take one from; set command"
        )
    parts = (*command, *(container.get("args") or ()))
    return [expand(translate(part), known) for part in parts]
