"""Loops that keep going: watch, queue what changed, reconcile it, and survive any error.

Level-triggered: a reconciler is told only *which* object to look at. A watch that breaks is started
again and lists everything, so nothing that happened meanwhile is missed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from latticeforge_operator.devcluster.resources import JsonObject, ResourceKey
from latticeforge_operator.devcluster.store import Store

Request = tuple[str, str]
"""Namespace and name of the object to reconcile."""

_log = logging.getLogger(__name__)
_PAUSE_AFTER_ERROR = 0.5
# A clock that tests set forward is noticed within this many seconds of real time.
_LONGEST_NAP = 0.5


async def keep_running(
    name: str, body: Callable[[], Awaitable[object]], *, pause: float = _PAUSE_AFTER_ERROR
) -> None:
    """Runs `body` for ever: an error is logged with its traceback, and after a pause it goes on."""
    while True:
        try:
            await body()
        except Exception:  # noqa: BLE001 - the edge: one bad object must not stop the cluster
            _log.exception("devcluster: %s failed, and is started again", name)
        await asyncio.sleep(pause)


async def sleep_until(moment: datetime, now: Callable[[], datetime]) -> None:
    """Sleeps until a clock, which need not be the wall clock, shows `moment`."""
    while (left := (moment - now()).total_seconds()) > 0:  # noqa: ASYNC110 - a clock has no event
        await asyncio.sleep(min(left, _LONGEST_NAP))


async def first_of(*waits: Coroutine[Any, Any, object]) -> None:
    """Returns when one of these does, and cancels the others."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


class Controller:
    """Reconciles objects one at a time whenever something they depend on has changed.

    Args:
        store: what is watched.
        name: for the log.
        sources: for each watched resource, which objects a change of one of its objects concerns.
        reconcile: brings one object closer to what it should be; returns when to look again even
            if nothing changes. An error is logged, and the object is tried again after a pause.
    """

    def __init__(
        self,
        store: Store,
        name: str,
        sources: Mapping[ResourceKey, Callable[[JsonObject], Iterable[Request]]],
        reconcile: Callable[[Request], datetime | None],
    ) -> None:
        self._store = store
        self._name = name
        self._sources = sources
        self._reconcile = reconcile
        self._dirty: dict[Request, None] = {}
        self._wake = asyncio.Event()
        self._alarms: dict[Request, datetime] = {}

    async def run(self) -> None:
        """Watches and reconciles until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for key, concerned in self._sources.items():
                name = f"{self._name} (watch of {key.plural})"
                tasks.create_task(keep_running(name, partial(self._follow, key, concerned)))
            tasks.create_task(keep_running(self._name, self._work))

    async def _follow(
        self, key: ResourceKey, concerned: Callable[[JsonObject], Iterable[Request]]
    ) -> None:
        async for event in self._store.watch(key):
            for request in concerned(event.object):
                self._enqueue(request)

    def _enqueue(self, request: Request) -> None:
        self._dirty[request] = None
        self._wake.set()

    async def _work(self) -> None:
        while True:
            self._ring()
            while self._dirty:
                self._attempt(next(iter(self._dirty)))
                await asyncio.sleep(0)
            self._wake.clear()
            await self._nap()

    def _attempt(self, request: Request) -> None:
        del self._dirty[request]
        try:
            due = self._reconcile(request)
        except Exception:  # noqa: BLE001 - the edge, as above: the other objects must go on
            _log.exception("devcluster: %s failed on %s/%s", self._name, *request)
            due = self._store.now() + timedelta(seconds=_PAUSE_AFTER_ERROR)
        if due is None:
            self._alarms.pop(request, None)
        else:
            self._alarms[request] = due

    def _ring(self) -> None:
        now = self._store.now()
        for request in [request for request, due in self._alarms.items() if due <= now]:
            del self._alarms[request]
            self._dirty[request] = None

    async def _nap(self) -> None:
        timeout = None
        if self._alarms:
            left = (min(self._alarms.values()) - self._store.now()).total_seconds()
            timeout = min(max(left, 0), _LONGEST_NAP)
        try:
            async with asyncio.timeout(timeout):
                await self._wake.wait()
        except TimeoutError:
            return
