"""The Grafana dashboard: what is spent, held, waited for and failed, by namespace and pool.

A panel is a row of `PANELS`; the JSON that Grafana wants around it is made here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_WIDTH, _HEIGHT, _GRID = 8, 8, 24
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_IN = 'namespace=~"$namespace"'
"""Namespaces are teams: whoever looks chooses his own."""
_PLACE = f'{_IN}, pool=~"$pool"'


@dataclass(frozen=True)
class Panel:
    """One panel.

    Attributes:
        title: What it answers.
        text: How to read it.
        queries: PromQL by legend; one without a legend is shown as a number.
        unit: Of Grafana.
        stacked: Whether the series add up to something.
    """

    title: str
    text: str
    queries: dict[str, str]
    unit: str = "short"
    stacked: bool = False


PANELS = (
    Panel(
        "Spent",
        "Money spent on the stacks there are.",
        {"": f"sum by (currency) (latticeforge_spent{{{_PLACE}}})"},
    ),
    Panel(
        "GPUs held",
        "GPUs that pods hold now.",
        {"": f"sum(latticeforge_gpus_held{{{_PLACE}}}) or vector(0)"},
    ),
    Panel(
        "Stacks that ended badly",
        "Stacks in phase Failed; `kubectl get st -A` says why.",
        {"": f'sum(latticeforge_stacks{{{_IN}, phase="Failed"}}) or vector(0)'},
    ),
    Panel(
        "Spend by team",
        "Money spent on the stacks there are. A stack that is deleted takes its bill along.",
        {
            "{{namespace}} ({{currency}})": (
                f"sum by (namespace, currency) (latticeforge_spent{{{_PLACE}}})"
            )
        },
        stacked=True,
    ),
    Panel(
        "Money that bought nothing",
        "Lost: on work that was redone. Waiting: on GPUs that were held before the work began.",
        {
            "lost, {{namespace}} ({{currency}})": (
                f"sum by (namespace, currency) (latticeforge_lost{{{_PLACE}}})"
            ),
            "waiting, {{namespace}} ({{currency}})": (
                f"sum by (namespace, currency) (latticeforge_waiting{{{_PLACE}}})"
            ),
        },
        stacked=True,
    ),
    Panel(
        "Budget used by the stacks that run",
        "Share of spec.budget.limit that is spent, of stacks that have one and have not ended.",
        {"{{namespace}}/{{training}}": (f"latticeforge_budget_used_ratio{{{_IN}}}")},
        unit="percentunit",
    ),
    Panel(
        "GPUs held and idle",
        "Idle: of those held, where no step reports work yet (images, volumes, weights, peers).",
        {
            "held, {{pool}}": f"sum by (pool) (latticeforge_gpus_held{{{_PLACE}}})",
            "idle, {{pool}}": f"sum by (pool) (latticeforge_gpus_idle{{{_PLACE}}})",
        },
    ),
    Panel(
        "Tokens per second",
        "Real tokens that running steps train on.",
        {
            "{{namespace}}, {{pool}}": (
                f"sum by (namespace, pool) (latticeforge_tokens_per_second{{{_PLACE}}})"
            )
        },
    ),
    Panel(
        "Model FLOP/s per GPU held",
        "Divided by 989 TFLOP/s it is the MFU of H100 and H200.",
        {
            "{{pool}}": (
                f"sum by (pool) (latticeforge_model_flops_per_second{{{_PLACE}}})"
                f" / (sum by (pool) (latticeforge_gpus_held{{{_PLACE}}}) > 0)"
            )
        },
        unit="flops",
    ),
    Panel(
        "Stacks by phase",
        "Every stack there is.",
        {"{{phase}}": f"sum by (phase) (latticeforge_stacks{{{_IN}}})"},
        stacked=True,
    ),
    Panel(
        "Running steps by kind",
        "What the stacks are doing.",
        {"{{kind}}": f'sum by (kind) (latticeforge_steps{{{_IN}, phase="Running"}})'},
        stacked=True,
    ),
    Panel(
        "Failures by class",
        "Attempts that ended otherwise than well: what followed is in status.steps[].attempts.",
        {"{{outcome}}": (f'sum by (outcome) (latticeforge_attempts{{{_IN}, outcome!="Done"}})')},
        stacked=True,
    ),
    Panel(
        "Time waiting for nodes",
        "Seconds that attempts waited for their first node: queue, quota, scheduler.",
        {
            "{{namespace}}, {{pool}}": (
                f"sum by (namespace, pool) (latticeforge_queued_seconds{{{_PLACE}}})"
            )
        },
        unit="s",
        stacked=True,
    ),
    Panel(
        "Time to the first step",
        "From the creation of a stack to its first Job.",
        {
            "median": (
                "histogram_quantile(0.5, sum by (le)"
                " (rate(latticeforge_time_to_first_step_seconds_bucket[1h])))"
            ),
            "99 of 100": (
                "histogram_quantile(0.99, sum by (le)"
                " (rate(latticeforge_time_to_first_step_seconds_bucket[1h])))"
            ),
        },
        unit="s",
    ),
    Panel(
        "The operator's passes",
        "By how they ended; a defect is a bug, unavailable the API server.",
        {
            "{{result}}": "sum by (result) (rate(latticeforge_reconciles_total[5m]))",
            "seconds of one, 99 of 100": (
                "histogram_quantile(0.99, sum by (le)"
                " (rate(latticeforge_reconcile_duration_seconds_bucket[5m])))"
            ),
        },
    ),
    Panel(
        "Requests to the API server",
        "Per second, watches aside.",
        {"{{method}}": "sum by (method) (rate(latticeforge_api_requests_total[5m]))"},
    ),
)


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana imports it."""
    return {
        "title": "LatticeForge",
        "uid": "latticeforge",
        "tags": ["latticeforge"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "1m",
        "time": {"from": "now-24h", "to": "now"},
        "templating": {"list": [_source(), *map(_choice, ("namespace", "pool"))]},
        "panels": [_panel(index, panel) for index, panel in enumerate(PANELS)],
    }


def _source() -> dict[str, Any]:
    return {"name": "datasource", "type": "datasource", "query": "prometheus"}


def _choice(label: str) -> dict[str, Any]:
    """A variable that offers every value which a label has had."""
    metric = {"namespace": "latticeforge_stacks", "pool": "latticeforge_spent"}[label]
    return {
        "name": label,
        "type": "query",
        "datasource": _SOURCE,
        "query": f"label_values({metric}, {label})",
        "refresh": 2,
        "includeAll": True,
        "allValue": ".*",
        "multi": True,
        "current": {"text": "All", "value": "$__all"},
    }


def _panel(index: int, panel: Panel) -> dict[str, Any]:
    per_row = _GRID // _WIDTH
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0}
    if panel.stacked:
        defaults["custom"] = {"fillOpacity": 25, "stacking": {"mode": "normal"}}
    return {
        "id": index + 1,
        "type": "stat" if "" in panel.queries else "timeseries",
        "title": panel.title,
        "description": panel.text,
        "datasource": _SOURCE,
        "gridPos": {
            "x": index % per_row * _WIDTH,
            "y": index // per_row * _HEIGHT,
            "w": _WIDTH,
            "h": _HEIGHT,
        },
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "targets": [
            {
                "refId": chr(ord("A") + number),
                "datasource": _SOURCE,
                "expr": query,
                "legendFormat": legend or "__auto",
            }
            for number, (legend, query) in enumerate(panel.queries.items())
        ],
    }
