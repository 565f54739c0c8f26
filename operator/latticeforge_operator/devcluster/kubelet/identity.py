"""What a pod needs to talk to the API: a kubeconfig, and the folder that clusters mount."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from latticeforge_operator.devcluster.authorization import Account
from latticeforge_operator.devcluster.kubelet.environment import Environment
from latticeforge_operator.devcluster.resources import JsonObject
from latticeforge_operator.devcluster.server import Server, write_kubeconfig


@dataclass(frozen=True)
class ApiAccess:
    """How pods reach the API."""

    server: Server

    def install(self, folder: Path, account: Account) -> Environment:
        """Writes an account's credentials into a folder; returns the variables that point there."""
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        token = self.server.account_token(account)
        write_kubeconfig(folder / "kubeconfig", self.server, account.namespace, token)
        files = {"token": token, "namespace": account.namespace, "ca.crt": ""}
        for name, text in files.items():
            _write_private(folder / name, text)
        address = urlsplit(self.server.url)
        return {
            "KUBERNETES_SERVICE_HOST": address.hostname or "",
            "KUBERNETES_SERVICE_PORT": str(address.port),
            "KUBECONFIG": str(folder / "kubeconfig"),
        }


def _write_private(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)


def wants_access(pod: JsonObject, account: JsonObject | None) -> bool:
    """Whether the pod, or else its ServiceAccount, lets a token be mounted."""
    for said in (pod["spec"], account or {}):
        if (wanted := said.get("automountServiceAccountToken")) is not None:
            return bool(wanted)
    return True
