"""The client that publishing gives to everything in its process that asks the Hub."""

from __future__ import annotations

import pytest
from huggingface_hub import constants, get_session
from huggingface_hub.errors import OfflineModeIsEnabled

from latticeforge_trainer.publishing.hub import TIMEOUT, HubDestination


@pytest.fixture(autouse=True)
def destination(monkeypatch: pytest.MonkeyPatch) -> HubDestination:
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    return HubDestination("me/elle", "HF_TOKEN", private=True)


def test_it_waits_no_longer_than_that() -> None:
    assert get_session().timeout == TIMEOUT


def test_it_asks_nothing_where_that_is_forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OfflineModeIsEnabled):
        get_session().head("http://127.0.0.1:9")
