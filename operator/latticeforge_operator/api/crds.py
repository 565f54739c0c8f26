"""CRDs from the API models: structural schemas with descriptions, defaults, bounds and CEL rules.

`latticeforge crds` prints them; `crds/*.yaml` are these, checked for drift by `make check`.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from latticeforge_operator.api.base import rule
from latticeforge_operator.api.pool import GPUPoolSpec, GPUPoolStatus
from latticeforge_operator.api.status import TrainingStatus
from latticeforge_operator.api.training import MAX_NAME, NAME_TOO_LONG, StackedTrainingSpec

_DROPPED = ("title", "discriminator", "additionalProperties", "$defs", "const")


def _structural(node: Any, definitions: dict[str, Any]) -> Any:
    """A pydantic JSON schema as Kubernetes wants it: no references, no `anyOf`, no titles."""
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        target = definitions[node["$ref"].rsplit("/", 1)[-1]]
        own = {k: v for k, v in node.items() if k != "$ref"}
        return _structural({**target, **own}, definitions)
    if "anyOf" in node:  # X | None: optional fields are simply absent
        (chosen,) = [option for option in node["anyOf"] if option.get("type") != "null"]
        own = {k: v for k, v in node.items() if k != "anyOf"}
        return _structural({**chosen, **own}, definitions)
    schema = {k: v for k, v in node.items() if k not in _DROPPED}
    if "const" in node:
        schema["enum"] = [node["const"]]
    if schema.get("default", ...) is None:
        del schema["default"]
    if "description" in schema:
        schema["description"] = " ".join(schema["description"].split())
    if "properties" in schema:
        schema["properties"] = {
            name: _structural(value, definitions) for name, value in schema["properties"].items()
        }
    if "items" in schema:
        schema["items"] = _structural(schema["items"], definitions)
    extra = node.get("additionalProperties")
    if isinstance(extra, dict):
        schema["additionalProperties"] = _structural(extra, definitions)
    return schema


def schema_of(model: type[BaseModel]) -> dict[str, Any]:
    """The structural schema of an API model."""
    raw = model.model_json_schema(by_alias=True)
    schema: dict[str, Any] = _structural(raw, raw.get("$defs", {}))
    return schema


def _column(name: str, path: str, kind: str = "string", *, wide: bool = False) -> dict[str, Any]:
    column: dict[str, Any] = {"name": name, "type": kind, "jsonPath": path}
    return {**column, "priority": 1} if wide else column


def _crd(
    kind: str,
    *,
    plural: str,
    scope: str,
    short: str,
    schema: dict[str, Any],
    columns: list[dict[str, Any]],
) -> dict[str, Any]:
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.latticeforge.dev"},
        "spec": {
            "group": "latticeforge.dev",
            "scope": scope,
            "names": {
                "kind": kind,
                "listKind": f"{kind}List",
                "plural": plural,
                "singular": kind.lower(),
                "shortNames": [short],
                "categories": ["latticeforge"],
            },
            "versions": [
                {
                    "name": "v1alpha1",
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": columns,
                    "schema": {"openAPIV3Schema": schema},
                }
            ],
        },
    }


def _object_schema(
    description: str, spec: type[BaseModel], status: type[BaseModel]
) -> dict[str, Any]:
    return {
        "description": description,
        "type": "object",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": schema_of(spec),
            "status": schema_of(status),
        },
    }


def stacked_training_crd() -> dict[str, Any]:
    """The CRD of `StackedTraining`."""
    schema = _object_schema(
        "A stack of fine-tuning stages that ends in a published model.",
        StackedTrainingSpec,
        TrainingStatus,
    )
    schema["x-kubernetes-validations"] = [
        rule(f"self.metadata.name.size() <= {MAX_NAME}", NAME_TOO_LONG)
    ]
    columns = [
        _column("Phase", ".status.phase"),
        _column("Stage", ".status.stage"),
        _column("Progress", ".status.progress.percent", "integer"),
        _column("ETA", ".status.progress.eta"),
        _column("Cost", ".status.cost.spent"),
        _column("Forecast", ".status.cost.forecast", wide=True),
        _column("Loss", ".status.progress.loss", wide=True),
        _column("GPUs", ".status.plan.gpus", "integer", wide=True),
        _column("Pool", ".status.plan.pool", wide=True),
        _column("Message", ".status.message", wide=True),
        _column("Age", ".metadata.creationTimestamp", "date"),
    ]
    return _crd(
        "StackedTraining",
        plural="stackedtrainings",
        scope="Namespaced",
        short="st",
        schema=schema,
        columns=columns,
    )


def gpu_pool_crd() -> dict[str, Any]:
    """The CRD of `GPUPool`."""
    schema = _object_schema(
        "Nodes of one kind that stacks may run on, owned by the platform team.",
        GPUPoolSpec,
        GPUPoolStatus,
    )
    columns = [
        _column("Accelerator", ".spec.accelerator"),
        _column("Price", ".spec.pricePerGPUHour"),
        _column("GPUs", ".status.gpus", "integer"),
        _column("In use", ".status.gpusInUse", "integer"),
        _column("Age", ".metadata.creationTimestamp", "date"),
    ]
    return _crd(
        "GPUPool", plural="gpupools", scope="Cluster", short="gp", schema=schema, columns=columns
    )


def all_crds() -> dict[str, dict[str, Any]]:
    """Every CRD by file name."""
    return {"stackedtrainings.yaml": stacked_training_crd(), "gpupools.yaml": gpu_pool_crd()}
