"""Loops go on after any error, notice every change, and wake when they said they would."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest
from tests.unit.devcluster_pods.polling import until

from latticeforge_operator.devcluster.controllers.loops import Controller, Request, sleep_until
from latticeforge_operator.devcluster.controllers.objects import CONFIG_MAPS, key_of
from latticeforge_operator.devcluster.store import Store


@asynccontextmanager
async def controller(
    store: Store, reconcile: Callable[[Request], datetime | None]
) -> AsyncIterator[None]:
    sources = {CONFIG_MAPS: lambda found: [key_of(found)]}
    task = asyncio.create_task(Controller(store, "test", sources, reconcile).run())
    yield
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def touch(store: Store, name: str) -> None:
    store.create(CONFIG_MAPS, "default", {"metadata": {"name": name}})


async def test_every_change_is_noticed_also_those_before_the_start() -> None:
    store, seen = Store(), set[Request]()
    touch(store, "before")
    async with controller(store, seen.add):
        await until(lambda: ("default", "before") in seen)
        touch(store, "after")
        await until(lambda: ("default", "after") in seen)


async def test_an_error_is_logged_and_stops_neither_the_others_nor_a_retry(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store, attempts = Store(), list[str]()

    def reconcile(request: Request) -> None:
        attempts.append(request[1])
        if attempts.count("bad") == 1 and request[1] == "bad":
            raise ValueError("no luck")

    touch(store, "bad")
    touch(store, "good")
    with caplog.at_level(logging.ERROR):
        async with controller(store, reconcile):
            await until(lambda: "good" in attempts and attempts.count("bad") == 2)
    [record] = caplog.records
    assert record.getMessage() == "devcluster: test failed on default/bad"
    assert record.exc_info is not None


async def test_a_broken_watch_lists_again(caplog: pytest.LogCaptureFixture) -> None:
    store, seen = Store(history_limit=1), set[str]()

    def reconcile(request: Request) -> None:
        seen.add(request[1])
        if request[1] == "first":
            # More history than is kept: the watch falls behind, and is refused.
            for number in range(5):
                touch(store, f"late-{number}")

    touch(store, "first")
    async with controller(store, reconcile):
        await until(lambda: len(seen) == 6)
    assert "watch of configmaps" in caplog.text


async def test_a_reconciler_is_woken_when_it_wanted_to_be() -> None:
    moment = datetime(2030, 1, 1, tzinfo=UTC)
    store, times = Store(now=lambda: moment), list[datetime]()

    def reconcile(_: Request) -> datetime | None:
        times.append(moment)
        return None if len(times) > 1 else moment + timedelta(hours=1)

    touch(store, "sleeper")
    async with controller(store, reconcile):
        await until(lambda: len(times) == 1)
        moment += timedelta(hours=1)
        await until(lambda: len(times) == 2)
    assert times[1] - times[0] == timedelta(hours=1)


async def test_sleeping_follows_a_clock_that_jumps() -> None:
    moment = datetime(2030, 1, 1, tzinfo=UTC)
    sleeper = asyncio.create_task(sleep_until(moment + timedelta(days=1), lambda: moment))
    await asyncio.sleep(0)
    assert not sleeper.done()
    moment += timedelta(days=1)
    async with asyncio.timeout(60):
        await sleeper
