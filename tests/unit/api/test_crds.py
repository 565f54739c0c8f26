"""The generated CRDs are what Kubernetes calls structural, and say what every field means."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import kubernetes_validate
import pytest
import yaml

from latticeforge_operator.api.crds import all_crds
from latticeforge_operator.cli.crds import crd_files, to_yaml
from latticeforge_operator.devcluster.definitions import check

CRDS = {crd["spec"]["names"]["kind"]: crd for crd in all_crds().values()}
TRAINING = CRDS["StackedTraining"]["spec"]["versions"][0]

FORBIDDEN = {"$ref", "$defs", "anyOf", "oneOf", "allOf", "not", "title", "const", "definitions"}
"""What a structural schema may not hold, or what pydantic leaves there and nobody needs."""

META = ("apiVersion", "kind", "metadata")


def nodes(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema below a schema, with its path."""
    yield path, schema
    for name, below in schema.get("properties", {}).items():
        yield from nodes(below, f"{path}.{name}")
    for key, suffix in (("items", "[]"), ("additionalProperties", "{}")):
        if isinstance(schema.get(key), dict):
            yield from nodes(schema[key], path + suffix)


def schemas() -> Iterator[tuple[str, dict[str, Any]]]:
    for kind, crd in CRDS.items():
        yield from nodes(crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"], kind)


@pytest.mark.parametrize("crd", CRDS.values(), ids=CRDS)
def test_the_definition_is_valid(crd: dict[str, Any]) -> None:
    kubernetes_validate.validate(crd, "1.37", strict=True)
    assert check(crd) == []


def test_every_node_is_structural() -> None:
    for path, schema in schemas():
        assert not FORBIDDEN & set(schema), path
        assert schema.get("type") or schema.get("x-kubernetes-preserve-unknown-fields"), path
        assert not (schema.get("properties") and schema.get("additionalProperties")), path


def test_every_field_is_described() -> None:
    known_by_kubectl = {f"{kind}.{name}" for kind in CRDS for name in META}
    for path, schema in schemas():
        item = path.endswith(("[]", "{}"))  # scalars: the list's own description covers them
        if path not in known_by_kubectl and not (item and "properties" not in schema):
            assert schema.get("description", "").endswith((".", "…")), path


def test_what_a_user_writes_is_bounded() -> None:
    """An API server refuses a CRD whose rules could cost too much on unbounded input."""
    for path, schema in schemas():
        if not path.startswith(("StackedTraining.spec", "GPUPool.spec")):
            continue
        if schema.get("type") == "array":
            assert "maxItems" in schema, path
        if schema.get("x-kubernetes-validations") and schema.get("type") == "string":
            assert "maxLength" in schema, path


def test_defaults_are_shown_by_the_schema() -> None:
    spec = TRAINING["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    stage = spec["stages"]["items"]["properties"]
    assert spec["suspend"]["default"] is False
    assert spec["mode"]["default"] == "Run"
    assert stage["method"]["default"] == "LoRA"
    assert stage["handoff"]["default"] == "Merge"


def test_columns_short_name_category_and_status_subresource() -> None:
    names = CRDS["StackedTraining"]["spec"]["names"]
    assert (names["shortNames"], names["categories"]) == (["st"], ["latticeforge"])
    assert TRAINING["subresources"] == {"status": {}}
    columns = TRAINING["additionalPrinterColumns"]
    shown = [column["name"] for column in columns if not column.get("priority")]
    assert shown == ["Phase", "Stage", "Progress", "ETA", "Cost", "Age"]
    wide = {column["name"] for column in columns if column.get("priority")}
    assert wide >= {"Loss", "GPUs", "Pool"}


def test_columns_show_fields_that_exist() -> None:
    schema = TRAINING["schema"]["openAPIV3Schema"]
    for column in TRAINING["additionalPrinterColumns"]:
        below = schema
        for name in column["jsonPath"].split(".")[1:]:
            if name == "metadata":
                break
            below = below["properties"][name]


def test_no_column_shows_a_future_time_as_an_age() -> None:
    """Kubectl shows a date column as the time since, and `<invalid>` for one in the future."""
    dates = [c["name"] for c in TRAINING["additionalPrinterColumns"] if c["type"] == "date"]
    assert dates == ["Age"]


def test_the_printed_yaml_is_the_definition() -> None:
    for name, text in crd_files().items():
        assert text.startswith("# Generated from latticeforge_operator/api")
        assert yaml.safe_load(text) == all_crds()[name]
        assert " &id" not in text


@pytest.mark.parametrize(
    ("text", "written"),
    [("2e-5", "'2e-5'"), ("1E3", "'1E3'"), ("0.5", "'0.5'"), ("3.", "'3.'"), ("v1", "v1")],
)
def test_texts_that_kubectl_would_read_as_numbers_are_quoted(text: str, written: str) -> None:
    assert to_yaml({"a": text, "b": "1.2.3"}) == f"a: {written}\nb: 1.2.3\n"
