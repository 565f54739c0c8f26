"""What `helm test` asks, of a server that comes up while it asks, and of none."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from latticeforge_operator.cluster import ready
from latticeforge_operator.cluster.telemetry import Server, Telemetry, application


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ready, "PAUSE_SECONDS", 0.0)


async def test_it_waits_until_everything_has_been_listed() -> None:
    answers = iter([False, False, True])
    server = Server(application(Telemetry(), lambda: next(answers)), 0, "127.0.0.1")
    url = f"http://127.0.0.1:{await server.start()}"
    assert await ready.is_ready(url, 60) == ""
    await server.aclose()


async def test_it_says_what_the_operator_answered_last() -> None:
    server = Server(application(Telemetry(), lambda: False), 0, "127.0.0.1")
    url = f"http://127.0.0.1:{await server.start()}"
    assert await ready.is_ready(url, 0.3) == "503 starting"
    await server.aclose()


def test_nobody_there_is_a_sentence_and_a_failure() -> None:
    result = CliRunner().invoke(ready.main, ["http://127.0.0.1:9", "--seconds", "0.3"])
    assert result.exit_code == 1
    assert "the operator at http://127.0.0.1:9 is not ready" in result.output
    assert "Connect" in result.output
