"""How a step fails, and with which exit code.

    StepError
    ├── UserError        81  the input is wrong; the message is shown to its author as it stands
    ├── OutOfMemory      82  GPU memory; half the micro-batch may fit
    ├── NumericalError   83  NaN or Inf in loss or gradients
    ├── NetworkError     84  the Hub or the network, after our own retries
    └── Interrupted      80  SIGTERM; everything worth keeping is written

Messages are one sentence: what, where, what to do instead.
"""

from __future__ import annotations

from typing import ClassVar

from latticeforge_trainer.contract import ExitCode


class StepError(Exception):
    """Base of every expected failure of a step."""

    exit_code: ClassVar[ExitCode]


class UserError(StepError):
    """The input is wrong; trying again gives the same."""

    exit_code = ExitCode.USER_ERROR


class OutOfMemory(StepError):  # noqa: N818  (the field's own term)
    """GPU memory ran out."""

    exit_code = ExitCode.OUT_OF_MEMORY


class NumericalError(StepError):
    """Loss or gradients are no longer finite."""

    exit_code = ExitCode.NUMERICAL


class NetworkError(StepError):
    """The Hub or the network failed for longer than our own retries last."""

    exit_code = ExitCode.NETWORK


class Interrupted(StepError):  # noqa: N818  (not an error: the normal end of a preempted pod)
    """The process was asked to end and has written what it needs to continue."""

    exit_code = ExitCode.INTERRUPTED
