"""The one exception that a command ends with when it cannot do what was asked."""

from __future__ import annotations

import click


class CommandError(click.ClickException):
    """Shown as `Error: …` without a traceback; its sentence says what to do. Exit code 1."""
