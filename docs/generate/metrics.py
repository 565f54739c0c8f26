"""docs/reference/metrics.md: what the operator serves to Prometheus."""

from __future__ import annotations

import re

import yaml
from charts.dashboard import PANELS
from charts.sync import CHART
from docs.generate.markdown import code, page, table

from latticeforge_operator.cluster.metrics import METRICS, Described

_SUFFIXES = {"counter": "_total", "gauge": "", "histogram": "_bucket"}

_INTRODUCTION = """\
The operator serves `/metrics` on the port `metrics.port` of the chart. What can be read from the
stacks (phases, GPUs, money) is read when Prometheus asks: it is right after a restart, and a stack
that is deleted takes its figures along. Counters and histograms begin at zero with the operator's
pod. Namespaces stand for teams. Money is in the `currency` of the pool; sums over currencies mean
nothing."""

_PROBES = """\
## Probes

`/readyz` answers 200 once every stack, pool, Job and pod has been listed, and 503 before that: the
operator is starting, or may not list. `/healthz` answers 503 when a stack has waited five minutes
for its pass to end; the kubelet then restarts the operator, and nothing is lost. An API server that
is away changes neither."""


def text() -> str:
    """The page."""
    rows = [
        (code(m.name + _SUFFIXES[m.kind]), m.kind, ", ".join(map(code, m.labels)), f"{m.text}.")
        for m in METRICS
    ]
    examples = [(code(m.name + _SUFFIXES[m.kind]), code(_example(m))) for m in METRICS]
    alerts = [
        (f"[{rule['alert']}](../operations.md#{rule['alert'].lower()})", code(rule["expr"].strip()))
        for rule in _alerts()
    ]
    return page(
        "Metrics",
        _INTRODUCTION,
        table(("metric", "type", "labels", "meaning"), rows),
        "A histogram also has `…_sum` and `…_count`.",
        "## Queries",
        "As the dashboard of the chart asks (`dashboard.enabled`), for all namespaces:",
        table(("metric", "query"), examples),
        "## Alerts",
        "As the chart brings them (`prometheusRule.enabled`); what to do is in "
        "[operations.md](../operations.md#alerts).",
        table(("alert", "query"), alerts),
        _PROBES,
    )


def _alerts() -> list[dict[str, str]]:
    groups = yaml.safe_load((CHART / "files" / "alerts.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def _example(metric: Described) -> str:
    """The first query of the dashboard that asks for a metric, without its variables."""
    name = re.compile(rf"\b{metric.name}(_total|_bucket)?\b")
    queries = (query for panel in PANELS for query in panel.queries.values())
    query = next(query for query in queries if name.search(query))
    return re.sub(r'\w+=~"\$\w+"(, )?', "", query).replace("{}", "")
