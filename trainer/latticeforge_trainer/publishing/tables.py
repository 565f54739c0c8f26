"""Cells of the card's tables: numbers as a person reads them, escaped for markdown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from latticeforge_trainer.contract import DataFacts, DataSource, PhaseTimes, Score
from latticeforge_trainer.publishing.lineage import Stage

ABSENT = "–"
_REVISION_LENGTH = 12
_COMMIT_LENGTH = 40


@dataclass(frozen=True)
class ScoreTable:
    """Scores of every model on every suite.

    Attributes:
        header: `suite (n)`, one per suite.
        rows: Model name and one cell per suite.
    """

    header: list[str]
    rows: list[tuple[str, list[str]]]


def score_table(scores: dict[str, dict[str, Score]]) -> ScoreTable | None:
    """The table of model → suite → score; None when nothing was evaluated.

    A header gives the suite's n; a cell of another n says so itself. The last row is in bold: it
    is the model that the card is about.
    """
    sizes: dict[str, int] = {}
    for row in scores.values():
        for suite, score in row.items():
            sizes.setdefault(suite, score.n)
    if not sizes:
        return None
    final = list(scores)[-1]
    rows = [
        (name, [_score(row.get(suite), n, bold=name == final) for suite, n in sizes.items()])
        for name, row in scores.items()
    ]
    return ScoreTable([f"{suite} (n = {n})" for suite, n in sizes.items()], rows)


def _score(score: Score | None, expected_n: int, *, bold: bool) -> str:
    if score is None:
        return ABSENT
    other = "" if score.n == expected_n else f", n = {score.n}"
    mark = "**" if bold else ""
    interval = f"{100 * score.low:.1f} – {100 * score.high:.1f}{other}"
    return f"{mark}{100 * score.value:.1f} %{mark} ({interval})"


def stage_row(stage: Stage) -> list[str]:
    """Stage, method, tokens, steps, loss first → final, time, tokens/s."""
    name, method = f"**{cell(stage.record.name)}**", str(stage.record.method)
    trained = stage.trained
    if trained is None:
        return [name, method, *([ABSENT] * 5)]
    loss = f"{trained.first_loss:.3f} → {trained.final_loss:.3f}"
    if trained.validation_loss is not None:
        loss += f", held out {trained.validation_loss:.3f}"
    speed = f"{trained.tokens_per_second:,.0f}"
    counts = [f"{trained.tokens:,}", f"{trained.steps:,}"]
    return [name, method, *counts, loss, duration(trained.seconds), speed]


def speed_row(stage: Stage) -> list[str] | None:
    """Stage, GPUs, MFU, peak memory, where the time went; None when nothing of it is known."""
    trained = stage.trained
    if trained is None:
        return None
    gpus = f"{trained.processes} × {cell(trained.gpu)}" if trained.gpu else ABSENT
    mfu = ABSENT if trained.mfu is None else f"{100 * trained.mfu:.1f} %"
    sizes = trained.peak_memory_allocated_bytes, trained.peak_memory_reserved_bytes
    memory = " / ".join(ABSENT if size is None else f"{size / 2**30:.1f}" for size in sizes)
    cells = [gpus, mfu, ABSENT if memory == f"{ABSENT} / {ABSENT}" else f"{memory} GiB"]
    cells.append(_where_time_went(trained.seconds_by_phase, trained.seconds))
    known = any(text != ABSENT for text in cells)
    return [f"**{cell(stage.record.name)}**", *cells] if known else None


def _where_time_went(phases: PhaseTimes | None, seconds: float) -> str:
    """`forward 33 %, backward 60 %, …`: shares of the steps and their checkpoints together."""
    whole = seconds + (phases.aside if phases else 0.0)
    if phases is None or not whole:
        return ABSENT
    parts = phases.model_dump(exclude_none=True).items()
    return ", ".join(f"{name} {100 * part / whole:.0f} %" for name, part in parts) or ABSENT


def source_rows(stage: Stage) -> list[list[str]]:
    """Stage, source, revision, weight, samples, tokens: one row per data source.

    What `prepare` counted goes with the source in its position: a mixture may name one twice.
    """
    facts: list[DataFacts | None] = [*(stage.prepared.data if stage.prepared else [])]
    facts += [None] * (len(stage.record.data) - len(facts))
    pairs = zip(stage.record.data, facts, strict=False)
    return [[cell(stage.record.name), *_source(data, fact)] for data, fact in pairs]


def _source(data: DataSource, facts: DataFacts | None) -> list[str]:
    revision = facts.revision if facts else data.revision
    counts = [f"{facts.samples:,}", f"{facts.tokens:,}"] if facts else [ABSENT, ABSENT]
    named = data.source if data.subset is None else f"{data.source} ({data.subset})"
    return [f"`{cell(named)}`", f"`{short(revision)}`", f"{data.weight:g}", *counts]


def hyperparameters(stage: Stage) -> str:
    """`learningRate` 2e-06, `epochs` 1, …: nested settings are flattened with dots."""
    pairs = _flat(stage.record.hyperparameters)
    return ", ".join(f"`{key}` {cell(value)}" for key, value in pairs) or ABSENT


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, dict):
            pairs += _flat(value, f"{prefix}{key}.")
        elif value is not None:
            joined = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            pairs.append((f"{prefix}{key}", joined))
    return pairs


def cell(value: object) -> str:
    """Text that cannot break out of a table cell or a code span."""
    return " ".join(str(value).split()).replace("|", "\\|").replace("`", "'")


def short(revision: str) -> str:
    """A revision at the length people compare; branch names stay whole."""
    hexadecimal = len(revision) >= _COMMIT_LENGTH and set(revision) <= set("0123456789abcdef")
    return revision[:_REVISION_LENGTH] if hexadecimal else cell(revision)


def duration(seconds: float) -> str:
    """`48 s`, `12 min 5 s` or `1 h 42 min`."""
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{whole} s"
