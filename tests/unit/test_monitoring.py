"""Dashboard and alerts speak of metrics that the operator exports, by labels that they have."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import promql_parser
import pytest
import yaml
from charts.dashboard import PANELS, Panel, dashboard
from charts.sync import CHART
from prometheus_client.metrics_core import Metric
from tests.fixtures.documents import ROOT

from latticeforge_operator.cluster.metrics import METRICS
from latticeforge_operator.cluster.telemetry import StackCollector, Telemetry

STACK = {
    "metadata": {"name": "a", "namespace": "team"},
    "spec": {"budget": {"limit": "10"}},
    "status": {
        "phase": "Running",
        "plan": {"pool": "h200", "gpus": 8, "steps": []},
        "steps": [
            {
                "name": "math/train",
                "digest": "d",
                "phase": "Running",
                "meters": {
                    "step": 1,
                    "totalSteps": 2,
                    "tokensPerSecond": 1.0,
                    "modelFlopsPerSecond": 1.0,
                },
                "attempts": [{"number": 0, "job": "j", "gpusPerPod": 8, "outcome": "Stalled"}],
            },
            {
                "name": "math/evaluate",
                "digest": "d",
                "phase": "Running",
                "attempts": [{"number": 0, "job": "k", "gpusPerPod": 8}],
            },
        ],
    },
}
"""A stack of which every metric says something."""


def exported() -> dict[str, set[str]]:
    """Labels of every series that the operator serves, by its name."""
    telemetry = Telemetry()
    pods = {("team", "j"): 1, ("team", "k"): 1}
    telemetry.registry.register(StackCollector(lambda: [STACK], lambda: pods))
    telemetry.passed("done")
    telemetry.called("GET")
    return {
        sample.name: set(sample.labels)
        for family in telemetry.registry.collect()
        for sample in _samples(family)
    }


def _samples(family: Metric) -> Iterator[Any]:
    assert family.samples, f"{family.name} is not exercised by this test"
    yield from family.samples


def test_what_is_described_is_what_is_exported() -> None:
    suffixes = {"counter": ("_total",), "gauge": ("",), "histogram": ("_count", "_sum", "_bucket")}
    described = {
        metric.name + suffix: set(metric.labels)
        for metric in METRICS
        for suffix in suffixes[metric.kind]
    }
    found = {name: labels - {"le"} for name, labels in exported().items()}
    assert {name: v for name, v in found.items() if not name.endswith("_created")} == described


ALERTS = [
    rule
    for group in yaml.safe_load((CHART / "files" / "alerts.yaml").read_text())["groups"]
    for rule in group["rules"]
]
QUERIES = [
    *(query for panel in PANELS for query in panel.queries.values()),
    *(rule["expr"] for rule in ALERTS),
]


def nodes(expression: Any) -> Iterator[Any]:
    """A parsed query and everything that it is made of."""
    yield expression
    parts = [getattr(expression, name, None) for name in ("expr", "lhs", "rhs", "vector_selector")]
    for part in (*parts, *getattr(expression, "args", ())):
        if part is not None:
            yield from nodes(part)


def labels_of(expression: Any) -> set[str]:
    """Labels that the result of a query has."""
    if isinstance(expression, promql_parser.AggregateExpr):
        return set(expression.modifier.labels) if expression.modifier else set()
    if isinstance(expression, promql_parser.VectorSelector):
        return exported()[str(expression.name)]
    below = [node for node in nodes(expression) if node is not expression]
    return labels_of(below[0]) if below else set()


@pytest.mark.parametrize("query", QUERIES)
def test_a_query_is_promql_over_what_is_exported(query: str) -> None:
    known, found = exported(), list(nodes(promql_parser.parse(query)))
    selectors = [node for node in found if isinstance(node, promql_parser.VectorSelector)]
    assert selectors
    for selector in selectors:
        assert selector.name in known
        assert {m.name for m in selector.matchers.matchers} <= known[str(selector.name)]
    for node in found:
        if isinstance(node, promql_parser.AggregateExpr):
            below = [n for n in nodes(node) if isinstance(n, promql_parser.VectorSelector)]
            for selector in below:
                assert labels_of(node) <= known[str(selector.name)]


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel.title)
def test_a_legend_names_labels_that_its_query_keeps(panel: Panel) -> None:
    for legend, query in panel.queries.items():
        named = set(re.findall(r"\{\{(\w+)\}\}", legend))
        assert named <= labels_of(promql_parser.parse(query))


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_an_alert_says_what_is_wrong_and_what_to_do(rule: dict[str, Any]) -> None:
    told = rule["annotations"]
    assert set(told) == {"summary", "description", "runbook"}
    assert told["runbook"] == f"docs/operations.md#{rule['alert'].lower()}"
    assert f"\n### {rule['alert']}\n" in (ROOT / "docs" / "operations.md").read_text()
    assert rule["labels"]["severity"] in {"warning", "critical"}
    named = set(re.findall(r"\$labels\.(\w+)", str(told)))
    assert named <= labels_of(promql_parser.parse(rule["expr"]))


def test_what_people_ask_is_on_the_dashboard() -> None:
    shown = " ".join(QUERIES)
    for metric in ("spent", "gpus_held", "gpus_idle", "stacks", "queued_seconds", "attempts"):
        assert f"latticeforge_{metric}" in shown


def test_panels_do_not_overlap() -> None:
    places = [tuple(panel["gridPos"].values())[:2] for panel in dashboard()["panels"]]
    assert len(set(places)) == len(places)
    assert all(x + 8 <= 24 for x, _ in places)
