"""YAML in the documents is what the API server and the chart take.

A fence holds whole manifests, or says on the line before what it is part of, and is then completed
to a minimal whole:

    <!-- part of: StackedTraining.spec -->     also StackedTraining.spec.stages[], GPUPool.spec, …
    <!-- part of: values -->                   of the chart
    <!-- part of: axolotl -->                  a config of Axolotl
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from copy import deepcopy
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from tests.fixtures.documents import ROOT, Snippet, snippets

from latticeforge_operator.api import API_VERSION, GPUPool, StackedTraining
from latticeforge_operator.api.crds import all_crds
from latticeforge_operator.axolotl.registry import KEYS
from latticeforge_operator.devcluster.schema import default, unknown_fields
from latticeforge_operator.devcluster.validation import faults

CHART = ROOT / "charts" / "latticeforge"
SCHEMAS = {
    crd["spec"]["names"]["kind"]: crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    for crd in all_crds().values()
}
MODELS = {"StackedTraining": StackedTraining, "GPUPool": GPUPool}
ATTEMPT = {"number": 0, "job": "j"}
MINIMAL: dict[str, Any] = {
    "StackedTraining": {
        "metadata": {"name": "x"},
        "spec": {
            "base": {"model": "owner/base"},
            "stages": [{"name": "x", "data": [{"source": "owner/data"}]}],
            "storage": {"size": "1Gi"},
        },
        "status": {
            "steps": [{"name": "x/train", "digest": "d", "attempts": [ATTEMPT]}],
            "stages": [{"name": "x", "phase": "Running"}],
            "plan": {"pool": "p", "gpus": 1, "steps": []},
        },
    },
    "GPUPool": {"metadata": {"name": "x"}, "spec": {"accelerator": "H200"}},
}
"""What a fragment is completed with."""

YAML = [snippet for snippet in snippets() if snippet.language in {"yaml", "yml"}]


def completed(part: Any, whole: Any) -> Any:
    """A value with what it leaves open; every item of a list like the first of the whole's."""
    if isinstance(part, dict) and isinstance(whole, dict):
        return whole | {key: completed(value, whole.get(key)) for key, value in part.items()}
    if isinstance(part, list) and isinstance(whole, list) and whole:
        return [completed(item, whole[0]) for item in part]
    return part


def nested(path: Iterable[str], value: Any) -> Any:
    """A value below a path, whose parts with `[]` are lists."""
    for name in reversed(list(path)):
        inside = value if isinstance(value, list) or not name.endswith("[]") else [value]
        value = {name.removesuffix("[]"): inside}
    return value


def problems(kind: str, manifest: dict[str, Any]) -> Iterator[str]:
    """What an API server says to a manifest of ours, and then the operator."""
    whole = {"apiVersion": API_VERSION, "kind": kind, **deepcopy(manifest)}
    schema = SCHEMAS[kind]
    ours = {name: value for name, value in whole.items() if name != "metadata"}
    found = [f"unknown field {path}" for path in unknown_fields(schema, ours)]
    found += [str(fault) for fault in faults(schema, default(schema, whole))]
    yield from found
    if not found:
        MODELS[kind].from_object(whole)


def check_values(values: dict[str, Any]) -> None:
    """Hold values of the chart, on top of its own, against its schema."""
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())
    schema = json.loads((CHART / "values.schema.json").read_text())
    jsonschema.validate(completed(values, defaults), schema)


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
