"""Where a followed stack is shown."""

from __future__ import annotations

import io

import pytest
from rich.console import Console, RenderableType
from tests.unit.cli.stacks import running, succeeded, view

from latticeforge_operator.cli.display import Display, open_display


def console(height: int = 60, *, terminal: bool = True) -> Console:
    return Console(
        file=io.StringIO(),
        width=100,
        height=height,
        force_terminal=terminal,
        color_system=None,
        _environ={},
    )


def written(screen: Console) -> str:
    assert isinstance(screen.file, io.StringIO)
    return screen.file.getvalue()


def text(picture: RenderableType) -> str:
    paper = console(terminal=False)
    paper.print(picture)
    return written(paper)


def show(display: Display) -> str:
    display.tell("starting")
    display.update(running())
    display.tell("checkpointing")
    display.update(succeeded())
    return text(display.closing(succeeded()))


def test_a_pipe_gets_lines_and_the_summary_at_the_end() -> None:
    screen = console(terminal=False)
    with open_display(screen) as display:
        closing = show(display)
    assert "\x1b" not in written(screen)
    said = [line.split(maxsplit=1)[1] for line in written(screen).splitlines()]
    assert said[0] == "starting"
    assert said[-1].startswith("demo is Succeeded")
    assert "load it:" in closing


def test_a_terminal_gets_a_picture_that_is_whole_at_the_end() -> None:
    screen = console()
    with open_display(screen) as display:
        assert show(display).strip() == ""
    last = written(screen).rpartition("demo   Succeeded")[2]
    assert "load it:" in last
    assert "checkpointing" in last


@pytest.mark.parametrize(("height", "whole"), [(60, True), (24, False)])
def test_a_low_screen_gets_a_compact_picture(height: int, whole: bool) -> None:
    screen = console(height)
    with open_display(screen) as display:
        display.update(running())
        drawn = written(screen)
    assert ("512 samples" in drawn) is whole
    assert "cic  Full" in drawn


def test_a_stack_that_has_no_status_yet_is_followed() -> None:
    screen = console()
    with open_display(screen) as display:
        display.update(view({}))
    assert "demo   Pending" in written(screen)
