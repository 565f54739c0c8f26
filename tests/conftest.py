"""Fixtures that several tests share: a tiny model and a Hub."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from tests.fixtures.hub_server import HubServer
from tests.fixtures.tiny_model import make_model

# How long an example takes says more about the machine's other work than about the code.
settings.register_profile("shared-machine", deadline=None)
settings.load_profile("shared-machine")

# Read once, when huggingface_hub is imported: our Hub speaks plain HTTP only.
os.environ["HF_HUB_DISABLE_XET"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"


def pytest_configure(config: pytest.Config) -> None:
    """Let libraries use what is deprecated in one another."""
    for warning in (
        # huggingface_hub's own call of its HTTP client, when it uploads.
        "Use 'content=<...>' to upload raw bytes:DeprecationWarning",
        # PEFT asks transformers' models for it.
        ".is_gradient_checkpointing. is deprecated:FutureWarning",
    ):
        config.addinivalue_line("filterwarnings", f"ignore:{warning}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the figures that tests record under `endurance`: what was tried, and how often."""
    reports = [
        report for kind in ("passed", "failed") for report in terminalreporter.getreports(kind)
    ]
    figures = [str(v) for report in reports for k, v in report.user_properties if k == "endurance"]
    if figures:
        terminalreporter.section("endurance")
        for figure in sorted(figures):
            terminalreporter.write_line(figure)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny Qwen2 model; tests must not write to it."""
    return make_model(tmp_path_factory.mktemp("tiny-model"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """An empty Hub that `HF_ENDPOINT` points to, with the write token in `HF_TOKEN`."""
    from latticeforge_trainer.hub import DOWNLOAD  # noqa: PLC0415  (brings huggingface_hub)

    with HubServer() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", server.token)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf-home"))
        yield server
        # In a step they end with the process; here they would close the next test's connections.
        for thread in threading.enumerate():
            if thread.name == DOWNLOAD:
                thread.join(60)
                assert not thread.is_alive(), "a download goes on that nobody wants"
