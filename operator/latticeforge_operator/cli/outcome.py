"""How a run ended: the exit code, and what is said about it."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from latticeforge_operator.api.status import Phase, StepPhase
from latticeforge_operator.cli.access import Access
from latticeforge_operator.cli.stackview import StackView

EXIT_INTERRUPTED = 130
_LOG_LINES = "25"
_GOOD = frozenset({Phase.SUCCEEDED, Phase.PLANNED})

_ADVICE = {
    Phase.FAILED: "Correct the cause and run the same command again: finished steps are reused.",
    Phase.SUSPENDED: "Everything is kept; the same command goes on from the last checkpoint.",
}


def exit_code(view: StackView) -> int:
    """0 when the stack has done all that was asked of it, else 1."""
    return 0 if view.status.phase in _GOOD else 1


async def tell_end(access: Access, view: StackView) -> RenderableType:
    """How a run ended: after a failure the end of the log, and what to do next."""
    parts: list[RenderableType] = []
    if view.status.phase is Phase.FAILED:
        parts += [Text(f"\nFailed: {view.status.message}", style="bold red")]
        parts += [Text(line) for line in await _last_words(access, view)]
    if view.status.phase in _ADVICE:
        parts.append(Text(_ADVICE[view.status.phase]))
    return Group(*parts)


async def _last_words(access: Access, view: StackView) -> list[str]:
    """The end of the failed step's log."""
    failed = next((s for s in view.status.steps if s.phase is StepPhase.FAILED), None)
    if failed is None or not failed.attempts:
        return []
    pods = f"/api/v1/namespaces/{view.namespace}/pods"
    selector = f"batch.kubernetes.io/job-name={failed.attempts[-1].job}"
    found = (await access.get(pods, labelSelector=selector) or {}).get("items") or []
    if not found:
        return []
    log = await access.text(f"{pods}/{found[0]['metadata']['name']}/log", tailLines=_LOG_LINES)
    return [f"\nThe last lines of {failed.name}:", *(f"  {line}" for line in log.splitlines()), ""]
