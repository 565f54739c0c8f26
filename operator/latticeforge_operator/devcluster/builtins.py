"""The built-in resources that this server knows: what a stack of training steps and Helm need."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

from latticeforge_operator.devcluster import builtin_schemas
from latticeforge_operator.devcluster.resources import Resource, ResourceKey


class _Row(NamedTuple):
    group_version: str
    kind: str
    plural: str
    short: str = ""
    subresources: str = ""
    namespaced: bool = True
    generation: bool = False
    categories: str = ""
    selectable: str = ""


_RBAC = "rbac.authorization.k8s.io/v1"
_WEBHOOKS = "admissionregistration.k8s.io/v1"
_POD_FIELDS = (
    "spec.nodeName spec.restartPolicy spec.schedulerName spec.serviceAccountName spec.hostNetwork "
    "status.phase status.podIP status.nominatedNodeName"
)
_EVENT_FIELDS = (
    "involvedObject.kind involvedObject.namespace involvedObject.name involvedObject.uid "
    "involvedObject.apiVersion involvedObject.resourceVersion involvedObject.fieldPath "
    "reason reportingComponent source type"
)

_ROWS = (
    _Row("v1", "Namespace", "namespaces", "ns", "status", namespaced=False,
         selectable="status.phase"),
    _Row("v1", "Node", "nodes", "no", "status", namespaced=False, selectable="spec.unschedulable"),
    _Row("v1", "ConfigMap", "configmaps", "cm"),
    _Row("v1", "Secret", "secrets", selectable="type"),
    _Row("v1", "Service", "services", "svc", "status", categories="all"),
    _Row("v1", "Pod", "pods", "po", "status log eviction", generation=True, categories="all",
         selectable=_POD_FIELDS),
    _Row("v1", "Event", "events", "ev", selectable=_EVENT_FIELDS),
    _Row("v1", "ServiceAccount", "serviceaccounts", "sa"),
    _Row("v1", "PersistentVolumeClaim", "persistentvolumeclaims", "pvc", "status"),
    _Row("batch/v1", "Job", "jobs", "", "status", generation=True, categories="all",
         selectable="status.successful"),
    _Row("batch/v1", "CronJob", "cronjobs", "cj", "status", generation=True, categories="all"),
    _Row("apps/v1", "Deployment", "deployments", "deploy", "status", generation=True,
         categories="all"),
    _Row("apps/v1", "ReplicaSet", "replicasets", "rs", "status", generation=True,
         categories="all"),
    _Row("coordination.k8s.io/v1", "Lease", "leases"),
    _Row("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets", "pdb", "status",
         generation=True),
    _Row("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies", "netpol", generation=True),
    _Row(_RBAC, "Role", "roles"),
    _Row(_RBAC, "RoleBinding", "rolebindings"),
    _Row(_RBAC, "ClusterRole", "clusterroles", namespaced=False),
    _Row(_RBAC, "ClusterRoleBinding", "clusterrolebindings", namespaced=False),
    _Row("scheduling.k8s.io/v1", "PriorityClass", "priorityclasses", "pc", namespaced=False),
    _Row("apiextensions.k8s.io/v1", "CustomResourceDefinition", "customresourcedefinitions",
         "crd crds", "status", namespaced=False, generation=True, categories="api-extensions"),
    _Row(_WEBHOOKS, "ValidatingWebhookConfiguration", "validatingwebhookconfigurations",
         namespaced=False, generation=True, categories="api-extensions"),
    _Row(_WEBHOOKS, "MutatingWebhookConfiguration", "mutatingwebhookconfigurations",
         namespaced=False, generation=True, categories="api-extensions"),
)  # fmt: skip


def builtin_resources() -> tuple[Resource, ...]:
    """Returns the built-in resources."""
    return tuple(
        Resource(
            key=ResourceKey(row.group_version, row.plural),
            kind=row.kind,
            namespaced=row.namespaced,
            short_names=tuple(row.short.split()),
            categories=tuple(row.categories.split()),
            subresources=tuple(row.subresources.split()),
            has_generation=row.generation,
            selectable=frozenset(row.selectable.split()),
            load_schema=partial(builtin_schemas.for_kind, row.kind),
        )
        for row in _ROWS
    )


NAMESPACES = ResourceKey("v1", "namespaces")
PODS = ResourceKey("v1", "pods")
JOBS = ResourceKey("batch/v1", "jobs")
CRDS = ResourceKey("apiextensions.k8s.io/v1", "customresourcedefinitions")
