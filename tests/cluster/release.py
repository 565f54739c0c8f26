"""The operator's release: the chart, put into a cluster by the real Helm."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from tests.cluster.sites import Site
from tests.fixtures.chart import CHART, Values
from tests.integration.real_clients import Client
from tests.tools import tool

PROGRESS_SECONDS = "0.3"


def image(name: str) -> Values:
    """An image's name as the chart takes it: repository and tag."""
    head, colon, tag = name.rpartition(":")
    return {"repository": head, "tag": tag} if colon and "/" not in tag else {"repository": name}


@dataclass(frozen=True)
class Release:
    """One release of the chart.

    Attributes:
        program: Helm.
        site: The cluster.
        name: Its name.
        namespace: Where the operator is.
        port: Where it serves metrics and probes.
        values: Those that every version of it has.
    """

    program: str
    site: Site
    name: str
    namespace: str
    port: int
    values: Values

    async def helm(self, *arguments: str, stdin: str = "") -> str:
        """Run Helm in the release's namespace; returns what it prints.

        Raises:
            ClientError: Helm refuses.
        """
        # A little longer than Helm itself waits, which then says for what.
        client = Client(self.program, self.site.kubeconfig, self.site.patience + 30)
        return await client(*arguments, "--namespace", self.namespace, stdin=stdin)

    async def put(self, **values: Any) -> str:
        """Install or upgrade it, and wait for the operator; returns Helm's notes."""
        command = ["upgrade", "--install", self.name, str(CHART), "--create-namespace"]
        wait = ["--wait", f"--timeout={self.site.patience:.0f}s"]
        given = json.dumps({**self.values, **values})
        return await self.helm(*command, *wait, "--values=-", stdin=given)

    async def remove(self) -> str:
        """Uninstall it; returns what Helm says of what stays."""
        wait = ["--wait", f"--timeout={self.site.patience:.0f}s"]
        return await self.helm("uninstall", self.name, "--ignore-not-found", *wait)


def release(site: Site, name: str, namespace: str, hub_url: str, **values: Any) -> Release:
    """A release that runs the site's images and knows its Hub; skips where there is no Helm."""
    port = site.metrics_port()
    common: Values = {
        "image": image(site.operator_image),
        "trainer": {
            "image": image(site.trainer_image),
            "hubEndpoint": hub_url,
            "progressInterval": PROGRESS_SECONDS,
        },
        "metrics": {"port": port},
    }
    return Release(tool("helm"), site, name, namespace, port, {**common, **values})
