"""YAML in the documents is what the API server and the chart take.

A fence holds whole manifests, or says on the line before what it is part of, and is then completed
to a minimal whole:

    <!-- part of: StackedTraining.spec -->     also StackedTraining.spec.stages[], GPUPool.spec, …
    <!-- part of: values -->                   of the chart
    <!-- part of: axolotl -->                  a config of Axolotl
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import kubernetes_validate
import pytest
import yaml
from tests.fixtures.documents import Snippet, snippets
from tests.fixtures.manifest_checks import MINIMAL, SCHEMAS, check_values, completed, problems

from latticeforge_operator.api import API_VERSION
from latticeforge_operator.axolotl.registry import KEYS

YAML = [snippet for snippet in snippets() if snippet.language in {"yaml", "yml"}]


def nested(path: Iterable[str], value: Any) -> Any:
    """A value below a path, whose parts with `[]` are lists."""
    for name in reversed(list(path)):
        inside = value if isinstance(value, list) or not name.endswith("[]") else [value]
        value = {name.removesuffix("[]"): inside}
    return value


def check_manifest(manifest: dict[str, Any]) -> None:
    """Hold a whole manifest against its kind."""
    if manifest["kind"] in SCHEMAS and manifest["apiVersion"] == API_VERSION:
        assert list(problems(manifest["kind"], manifest)) == []
    else:
        kubernetes_validate.validate(manifest, "1.37", strict=True)


@pytest.mark.parametrize("snippet", YAML, ids=str)
def test_yaml_is_valid(snippet: Snippet) -> None:
    documents = [document for document in yaml.safe_load_all(snippet.text) if document]
    assert documents
    kind, *path = snippet.part.split(".")
    for document in documents:
        if not snippet.part:
            assert {"apiVersion", "kind"} <= set(document), "say what it is part of, or complete it"
            check_manifest(document)
        elif kind == "values":
            check_values(nested(path, document))
        elif kind == "axolotl":
            assert set(document) <= set(KEYS)
        else:
            whole = completed(nested(path, document), MINIMAL[kind])
            assert list(problems(kind, whole)) == []


@pytest.mark.parametrize("kind", MINIMAL)
def test_what_completes_a_fragment_is_valid_itself(kind: str) -> None:
    assert list(problems(kind, MINIMAL[kind])) == []


@pytest.mark.parametrize(
    ("path", "fragment", "problem"),
    [
        ("spec", {"budget": {"limits": "1"}}, "unknown field spec.budget.limits"),
        ("spec.stages[]", {"metod": "Full"}, "unknown field spec.stages[0].metod"),
        ("spec.stages[]", {"method": "full"}, "spec.stages[0].method"),
        ("spec.stages[].evaluate", [{"suite": "math"}], "a gate needs minimum"),
        ("status.plan", {"pol": "x"}, "unknown field status.plan.pol"),
    ],
)
def test_a_wrong_fragment_is_found(path: str, fragment: Any, problem: str) -> None:
    whole = completed(nested(path.split("."), fragment), MINIMAL["StackedTraining"])
    assert problem in "\n".join(problems("StackedTraining", whole))
