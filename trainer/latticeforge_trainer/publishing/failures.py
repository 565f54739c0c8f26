"""What a failed request to the Hub means: a sentence for the user, or worth another try.

StepError
├── UserError          token, permission, name: trying again gives the same
└── NetworkError
    └── Transient      429, 5xx, timeouts, broken connections; tried again here first
        └── HeadMoved  412: someone else committed meanwhile; read the head again
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx2
import tenacity
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from latticeforge_trainer.errors import NetworkError, StepError, UserError

log = logging.getLogger(__name__)

ATTEMPTS = 8
LONGEST_WAIT = 60.0
"""Seconds between two tries, unless the Hub asks for more."""
LONGEST_RETRY_AFTER = 900.0
"""Seconds; a Hub that asks for more has the step end and be started again."""

_ADDRESS = re.compile(r"https?://\S+")
_backoff = tenacity.wait_random_exponential(multiplier=1, max=LONGEST_WAIT)


class Transient(NetworkError):  # noqa: N818  (names the case, as its siblings do)
    """The Hub or the network failed in a way that passes.

    Attributes:
        retry_after: Seconds that the Hub asked to wait, if it did.
    """

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class HeadMoved(Transient):
    """The branch is no longer at the commit that a change was made for."""


def patiently(over: threading.Event | None = None) -> tenacity.Retrying:
    """Tries again on `Transient`, with exponential back-off or after what the Hub asks for.

    Args:
        over: Once it is set nobody wants the result: the waiting ends, and there is no other try.
    """
    stop: tenacity.stop.stop_base = tenacity.stop_after_attempt(ATTEMPTS)
    sleep: Callable[[float], None] = tenacity.sleep
    if over is not None:
        stop, sleep = stop | tenacity.stop_when_event_set(over), tenacity.sleep_using_event(over)
    return tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(Transient),
        wait=_wait,
        stop=stop,
        sleep=sleep,
        before_sleep=_say,
        reraise=True,
    )


def _say(state: tenacity.RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    seconds = state.next_action.sleep if state.next_action else 0
    log.warning("%s; trying again in %.0f s", error, seconds)


def _wait(state: tenacity.RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    asked = error.retry_after if isinstance(error, Transient) else None
    return _backoff(state) if asked is None else min(asked, LONGEST_RETRY_AFTER)


@contextmanager
def translated(repository: str, token_env: str) -> Iterator[None]:
    """Raise what the Hub client raises as a `StepError` whose message is fit for the user.

    Messages never hold a URL: those of the storage behind the Hub are signed.

    Args:
        repository: `owner/name`, for the message.
        token_env: The variable that holds the token, for the message.
    """
    try:
        yield
    except HFValidationError as error:
        raise UserError(f"publish.repository {repository} is no valid name: {error}") from error
    except (HfHubHTTPError, httpx2.HTTPError, OSError, RuntimeError) as error:
        meaning = _meaning(error, repository, token_env)
        if meaning is None:
            raise
        raise meaning from error


def _meaning(error: BaseException, repository: str, token_env: str) -> StepError | None:
    """What an exception of the client means; None when it is none of the Hub's."""
    if isinstance(error, StepError):
        return error
    if isinstance(error, RuntimeError):
        if error.__cause__ is None:
            detail = _ADDRESS.sub("(address)", str(error))
            return Transient(f"{repository}: the upload failed: {detail}")
        # The client wraps whatever ends an upload, even what our own signal handler raises. A 4xx
        # from storage is an expired signature or a body cut short: the next try is given a new one.
        meaning = _meaning(error.__cause__, repository, token_env)
        return Transient(str(meaning)) if isinstance(meaning, UserError) else meaning
    if isinstance(error, HfHubHTTPError):
        return _answer(error, repository, token_env)
    if isinstance(error, httpx2.HTTPError | ConnectionError | TimeoutError):
        return Transient(f"{repository}: no answer from the Hub ({type(error).__name__})")
    return None


def _answer(error: HfHubHTTPError, repository: str, token_env: str) -> StepError:
    """What an error status means."""
    status = error.response.status_code
    if status in (408, 429) or status >= 500:
        after = error.response.headers.get("Retry-After", "")
        wait = float(after) if after.isdigit() else None
        return Transient(f"{repository}: the Hub answers {status}", wait)
    if status == 412:
        return HeadMoved(f"{repository}: another commit came in between")
    return UserError(_refusal(status, error.server_message or "", repository, token_env))


def _refusal(status: int, detail: str, repository: str, token_env: str) -> str:
    """What the user can do about a 4xx."""
    owner = repository.partition("/")[0]
    if status == 401:
        return (
            f"the Hub refuses the token in {token_env} for {repository}: give "
            "publish.tokenSecret a valid token with write access"
        )
    if status == 403:
        return (
            f"the token in {token_env} may not write to {repository}: use one with write access "
            f"to {owner}, or change publish.repository"
        )
    if status == 404:
        return (
            f"the Hub knows no {repository}, or the token in {token_env} may not see it: check "
            f"publish.repository and that {owner} exists"
        )
    return f"the Hub refuses to publish to {repository} (status {status}): {detail}".rstrip(": ")
