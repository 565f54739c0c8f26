"""`latticeforge devcluster`: the one-machine cluster alone, until Ctrl-C."""

from __future__ import annotations

import asyncio
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path

import click

from latticeforge_operator.cli import provision
from latticeforge_operator.cli.access import Access
from latticeforge_operator.cli.errors import CommandError
from latticeforge_operator.cli.local import apply_all, bypass_proxies
from latticeforge_operator.devcluster.cluster import DataFolderInUseError, DevCluster


def serve_devcluster(
    data_dir: Path,
    *,
    port: int,
    kubeconfig: Path | None,
    claims: Mapping[str, Path],
    with_crds: bool,
) -> None:
    """Serve until SIGINT or SIGTERM.

    Args:
        data_dir: Where its objects, logs and pod folders are kept.
        port: Port on loopback; 0: a free one.
        kubeconfig: Where to write a second kubeconfig; None: nowhere.
        claims: Folders by the names of the claims, in namespace `default`, that are bound to them.
        with_crds: Whether to install LatticeForge's kinds.

    Raises:
        CommandError: The folder is in use, or the port is taken.
    """
    try:
        asyncio.run(_serve(data_dir.resolve(), port, kubeconfig, claims, with_crds=with_crds))
    except (DataFolderInUseError, OSError) as error:
        raise CommandError(str(error)) from error


async def _serve(
    data_dir: Path,
    port: int,
    kubeconfig: Path | None,
    claims: Mapping[str, Path],
    *,
    with_crds: bool,
) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    cluster = await DevCluster.start(data_dir=data_dir, port=port)
    try:
        await _bring(
            cluster.kubeconfig,
            [
                *(provision.crds() if with_crds else ()),
                *(placed for name, folder in claims.items() for placed in _claim(name, folder)),
            ],
        )
        if kubeconfig is not None:
            _copy_private(cluster.kubeconfig, kubeconfig)
        click.echo(_usage(cluster.url, kubeconfig or cluster.kubeconfig, with_crds=with_crds))
        await stop.wait()
        click.echo("stopping")
    finally:
        await cluster.aclose()


def _claim(name: str, folder: Path) -> list[provision.Placed]:
    return provision.claim("default", name, folder.resolve())


async def _bring(kubeconfig: Path, objects: list[provision.Placed]) -> None:
    bypass_proxies("127.0.0.1")
    access = await Access.connect(kubeconfig)
    try:
        await apply_all(access, objects)
    finally:
        await access.aclose()


def _copy_private(source: Path, target: Path) -> None:
    """Copy a file that holds a token: readable by its owner alone from the first moment on."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    target.touch(mode=0o600)
    shutil.copyfile(source, target)


def _usage(url: str, kubeconfig: Path, *, with_crds: bool) -> str:
    lines = [
        f"serving the Kubernetes API on {url}, for this user only; Ctrl-C stops it",
        "in another terminal:",
        f"  export KUBECONFIG={kubeconfig.resolve()}",
        "  kubectl get nodes",
    ]
    if with_crds:
        lines += [
            "  python -m latticeforge_operator.cluster --namespace default   # the operator",
            "  kubectl get st",
        ]
    return "\n".join(lines)
