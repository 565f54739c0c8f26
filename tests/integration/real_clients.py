"""Runs real clients (kubectl, Helm, Kopf) as processes beside a server in this event loop."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latticeforge_operator.devcluster.server import serve, write_kubeconfig
from latticeforge_operator.devcluster.store import Store


class ClientError(AssertionError):
    """A client exited with an error; the text is its stderr."""


@dataclass(frozen=True)
class Client:
    """A command-line client and the kubeconfig that it uses."""

    program: str
    kubeconfig: Path
    seconds: float = 60
    """How long one call may take."""

    async def __call__(self, *arguments: str, stdin: str = "", **environment: str) -> str:
        """Runs the client; returns its stdout, or raises ClientError with its stderr."""
        async with self.running(*arguments, **environment) as process:
            async with asyncio.timeout(self.seconds):
                out, err = await process.communicate(stdin.encode())
        if process.returncode:
            raise ClientError(err.decode())
        return out.decode()

    async def json(self, *arguments: str) -> Any:
        """Runs the client with `-o json`; returns what it printed."""
        return json.loads(await self(*arguments, "-o", "json"))

    @asynccontextmanager
    async def running(
        self, *arguments: str, **environment: str
    ) -> AsyncIterator[asyncio.subprocess.Process]:
        """Starts the client, and kills it at the end if it still runs."""
        home = str(self.kubeconfig.parent)
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            self.program,
            *arguments,
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            env={
                "PATH": os.environ["PATH"],
                "HOME": home,
                "KUBECONFIG": str(self.kubeconfig),
                **environment,
            },
        )
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
                await process.communicate()


@asynccontextmanager
async def running_server(folder: Path, **options: Any) -> AsyncIterator[tuple[Store, Path]]:
    """Serves an empty store; yields it and the path of its kubeconfig."""
    store = Store()
    server = await serve(store, **options)
    kubeconfig = folder / "kubeconfig"
    write_kubeconfig(kubeconfig, server, "default")
    try:
        yield store, kubeconfig
    finally:
        await server.aclose()
