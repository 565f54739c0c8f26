"""`GPUPool`: what a platform team offers, and at what price."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Literal

from pydantic import ConfigDict, Field

from latticeforge_operator.api.base import APIModel, Currency, DecimalString, Quantity


class Accelerator(StrEnum):
    """Accelerators whose memory and peak rate are known; CPU is for kind and laptops."""

    H200 = "H200"
    H100 = "H100"
    A100 = "A100"
    L40S = "L40S"
    CPU = "CPU"


class Toleration(APIModel):
    """A toleration of the pool's nodes, as in a pod spec."""

    key: str | None = None
    """Taint key; empty with operator Exists matches all."""
    operator: Literal["Exists", "Equal"] = "Equal"
    """How key and value are compared."""
    value: str | None = None
    """Taint value."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Taint effect; empty matches all."""


class GPUPoolSpec(APIModel):
    """What the nodes of a pool are, what they cost, and how pods reach them."""

    accelerator: Accelerator
    """The accelerator of the pool's nodes."""
    gpus_per_node: int = Field(ge=0, le=64, default=8)
    """GPUs on one node; 0 for accelerator CPU."""
    price_per_gpu_hour: DecimalString = Field(default="0", alias="pricePerGPUHour")
    """Money per GPU and hour (per pod and hour for accelerator CPU), in `currency`."""
    currency: Currency = "USD"
    """ISO 4217 code of the price."""
    host_memory: Quantity | None = None
    """Host memory of one node that pods may use; left out: nothing is planned that needs it."""
    spot: bool = False
    """Whether nodes may be taken back at any time: predicted time and money then allow for work
    that is lost."""
    node_selector: dict[str, str] = Field(default_factory=dict)
    """Labels of the pool's nodes."""
    tolerations: list[Toleration] = Field(default_factory=list, max_length=16)
    """Taints of the pool's nodes that its pods tolerate."""
    pod_template: dict[str, Any] = Field(
        default_factory=dict,
        json_schema_extra={"x-kubernetes-preserve-unknown-fields": True},
    )
    """Merged into every GPU pod of this pool: NCCL variables, RDMA resources, `runtimeClassName`,
    `schedulerName`; `spec.containers[0]` is the trainer."""


class GPUPoolStatus(APIModel):
    """What the pool has and how much of it is held, for whoever counts nodes to fill in.

    The operator may not list nodes: it writes nothing here, and reads `nodes` alone.
    """

    model_config = ConfigDict(extra="ignore")

    nodes: int | None = None
    """Nodes that match the pool; a plan spans no more of them."""
    gpus: int | None = None
    """GPUs on these nodes."""
    gpus_in_use: int | None = None
    """GPUs held by stacks."""


class GPUPool(APIModel):
    """Nodes of one kind that stacks may run on."""

    model_config = ConfigDict(extra="ignore")

    name: str
    """`metadata.name`."""
    spec: GPUPoolSpec
    """What the pool is."""
    nodes: int | None = None
    """`status.nodes`; None while nobody has counted them."""

    @classmethod
    def from_object(cls, obj: dict[str, Any]) -> GPUPool:
        """Read a Kubernetes object.

        Raises:
            pydantic.ValidationError: It does not fit the schema.
        """
        return cls(
            name=obj["metadata"]["name"],
            spec=GPUPoolSpec.model_validate(obj["spec"]),
            nodes=(obj.get("status") or {}).get("nodes"),
        )
