"""What the Hub tells anybody of a base, and what becomes of it when the Hub tells nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.fixtures.hub_server import Fault, HubServer
from tests.unit.core.builders import CONFIG

from latticeforge_operator.cluster import public_bases
from latticeforge_operator.cluster.public_bases import PublicBases
from latticeforge_operator.core.values import PublicBase

NOISE = {"auto_map": {"AutoModel": "code.Model"}}
UNKNOWN = PublicBase()


@pytest.fixture
async def bases(hub: HubServer) -> AsyncIterator[PublicBases]:
    hub.put("me/tiny", {"config.json": json.dumps(CONFIG | NOISE).encode()})
    made = PublicBases(hub.url)
    yield made
    await made.aclose()


async def answer(bases: PublicBases, model: str, revision: str = "main") -> PublicBase:
    """What is known once there is an answer."""
    woken = asyncio.Event()
    first = bases.of(model, revision, woken.set)
    if first.awaited:
        await asyncio.wait_for(woken.wait(), 30)
    return bases.of(model, revision, woken.set)


async def test_what_sizes_follow_from_is_known_when_the_hub_has_answered(
    bases: PublicBases,
) -> None:
    assert bases.of("me/tiny", "main", lambda: None) == PublicBase(awaited=True)
    assert await answer(bases, "me/tiny") == PublicBase(CONFIG)


async def test_who_asks_the_same_is_answered_by_the_same(
    hub: HubServer, bases: PublicBases
) -> None:
    woken: list[str] = []
    for name in ("one", "two"):
        bases.of("me/tiny", "main", lambda name=name: woken.append(name))  # type: ignore[misc]  # a default binds
    await answer(bases, "me/tiny")
    assert woken == ["one", "two"]
    assert len(hub.requests("config.json")) == 1


@pytest.mark.parametrize("model", ["./base", "/base", "file:///base", "../x/y", "a/b/c", "a b/c"])
async def test_what_is_no_repository_is_not_asked_for(
    hub: HubServer, bases: PublicBases, model: str
) -> None:
    assert bases.of(model, "main", lambda: None) == UNKNOWN
    assert not hub.requests(".")


@pytest.mark.parametrize(
    "content", [b"not JSON", b"[]", b"\xff", b'{"a": "' + b"x" * public_bases.MOST_BYTES + b'"}']
)
async def test_what_is_no_config_is_not_believed(
    hub: HubServer, bases: PublicBases, content: bytes
) -> None:
    hub.put("me/odd", {"config.json": content})
    assert await answer(bases, "me/odd") == UNKNOWN


async def test_what_is_not_public_is_left_to_prepare(hub: HubServer, bases: PublicBases) -> None:
    config: dict[str, Any] = {"config.json": json.dumps(CONFIG).encode()}
    hub.put("me/private", config, private=True)
    hub.put("me/gated", config, gated=True)
    for model in ("me/private", "me/gated", "me/missing"):
        assert await answer(bases, model) == UNKNOWN
    assert await answer(bases, "me/tiny", "no-such-branch") == UNKNOWN


@pytest.mark.parametrize("fault", [{"status": 503}, {"lose_reply": True}, {"delay": 9}])
async def test_a_hub_that_fails_is_left_alone_for_a_while(
    hub: HubServer, bases: PublicBases, fault: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(public_bases, "PATIENCE_SECONDS", 0.5)
    hub.faults.append(Fault("config.json", times=9, **fault))
    assert await answer(bases, "me/tiny") == UNKNOWN
    assert bases.of("me/tiny", "main", lambda: None) == UNKNOWN
    monkeypatch.setattr(public_bases, "ASKED_AGAIN_SECONDS", -1.0)
    assert bases.of("me/tiny", "main", lambda: None) == PublicBase(awaited=True)


async def test_answers_are_not_kept_for_ever(
    bases: PublicBases, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(public_bases, "KEPT", 1)
    await answer(bases, "me/tiny")
    await answer(bases, "me/other")
    assert bases.of("me/tiny", "main", lambda: None) == PublicBase(awaited=True)
