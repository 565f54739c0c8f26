"""What public base models are, before `prepare` reads them: their `config.json`, asked of the Hub.

It lets a stack be planned before anything runs. It is only hearsay: no token is used, whatever goes
wrong is taken for "not to be had", and what `prepare` says comes first. Nobody waits for an answer;
the stacks that asked are woken by it.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import aiohttp

from latticeforge_operator.api.base import is_on_hub
from latticeforge_operator.core.values import PublicBase
from latticeforge_trainer.estimate.config_fields import size_fields

log = logging.getLogger(__name__)

HUB = "https://huggingface.co"
PATIENCE_SECONDS = 5.0
AT_ONCE = 4
"""Questions that are open at a time."""
MOST_BYTES = 1 << 20
"""Of an answer; a config has a few thousand."""
KEPT = 1000
"""Answers that are remembered."""
ASKED_AGAIN_SECONDS = 600.0
"""A Hub that did not answer is left alone for so long, and a branch is taken not to move."""


@dataclass
class _Answer:
    base: PublicBase
    asked_at: float
    waiting: list[Callable[[], None]] = field(default_factory=list)


class PublicBases:
    """Asks the Hub what models are, each once in a while.

    Args:
        endpoint: The Hub.
    """

    def __init__(self, endpoint: str = HUB) -> None:
        self._endpoint = endpoint.rstrip("/")
        self._answers: OrderedDict[tuple[str, str], _Answer] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()
        self._slots = asyncio.Semaphore(AT_ONCE)

    def of(self, model: str, revision: str, wake: Callable[[], None]) -> PublicBase:
        """What is known of a model now.

        Args:
            model: `owner/name`; of anything else nothing is known.
            revision: A branch, a tag or a commit.
            wake: Called when more is known.
        """
        if not is_on_hub(model):
            return PublicBase()
        now = asyncio.get_running_loop().time()
        answer = self._answers.get((model, revision))
        if answer is None or now - answer.asked_at > ASKED_AGAIN_SECONDS:
            answer = self._ask(model, revision, now)
        if answer.base.awaited:
            answer.waiting.append(wake)
        return answer.base

    def _ask(self, model: str, revision: str, now: float) -> _Answer:
        answer = self._answers[model, revision] = _Answer(PublicBase(awaited=True), now)
        while len(self._answers) > KEPT:
            self._answers.popitem(last=False)
        task = asyncio.create_task(self._answer(answer, model, revision))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return answer

    async def _answer(self, answer: _Answer, model: str, revision: str) -> None:
        url = f"{self._endpoint}/{model}/resolve/{quote(revision, safe='')}/config.json"
        async with self._slots:
            answer.base = PublicBase(await _config_at(url))
        for wake in answer.waiting:
            wake()

    async def aclose(self) -> None:
        """Ask no more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def _config_at(url: str) -> Mapping[str, Any] | None:
    timeout = aiohttp.ClientTimeout(total=PATIENCE_SECONDS)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, trust_env=True) as session,
            session.get(url, raise_for_status=True) as response,
        ):
            config = json.loads(await _body(response))
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        log.info("%s: %s; prepare will tell", url, error or type(error).__name__)
        return None
    return size_fields(config) if isinstance(config, dict) else None


async def _body(response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > MOST_BYTES:
            raise ValueError(f"more than {MOST_BYTES:,} bytes")
    return bytes(body)
