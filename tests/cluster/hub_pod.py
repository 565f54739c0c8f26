"""The tests' Hub as a process of its own, with the model and the data set of two folders.

    python -m tests.cluster.hub_pod --port 8080 --models /seed/models --datasets /seed/datasets
        --url http://hub.ns.svc:8080 --cdn http://hub:8080

Both are called `lab/tiny`. In a pod, this file, the server's two and the folders' files come out of
ConfigMaps.
"""

from __future__ import annotations

import argparse
import signal
import threading
from pathlib import Path

from tests.fixtures.hub_server import HubServer

REPOSITORY = "lab/tiny"
KINDS = ("models", "datasets")


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="0.0.0.0")  # noqa: S104  (a pod's own address)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--url", required=True)
    parser.add_argument("--cdn", required=True)
    for kind in KINDS:
        parser.add_argument(f"--{kind}", type=Path, required=True)
    options = parser.parse_args()
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    address = {"url": options.url, "cdn": options.cdn}
    with HubServer(options.host, options.port, **address, inline=True) as hub:
        for kind in KINDS:
            # A ConfigMap's folder also holds the links (`..data`) by which it is updated.
            found = getattr(options, kind).iterdir()
            files = {path.name: path.read_bytes() for path in found if path.name[:2] != ".."}
            hub.put(REPOSITORY, files, kind=kind)
        ended.wait()


if __name__ == "__main__":
    main()
