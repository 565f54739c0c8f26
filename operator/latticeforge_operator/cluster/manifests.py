"""`Launch` → the objects of a stack and of one attempt, all owned by the StackedTraining.

Pods fit the restricted Pod Security profile: non-root, no privilege escalation, no capabilities,
RuntimeDefault seccomp, read-only root. Only `prepare` and `publish` get the Hub token.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from typing import Any

from latticeforge_operator.api import StackedTraining
from latticeforge_operator.cluster.names import (
    API_VERSION,
    ATTEMPT_ANNOTATION,
    DIGEST_ANNOTATION,
    QUEUE_LABEL,
    STEP_ANNOTATION,
    STEP_LABEL,
    TRAINER_CONTAINER,
    TRAINING_LABEL,
    UID_LABEL,
)
from latticeforge_operator.cluster.settings import Settings
from latticeforge_operator.core.launch import store_claim
from latticeforge_operator.core.planning import place
from latticeforge_operator.core.values import Launch
from latticeforge_trainer.contract import StepKind, progress_key

CONFIG_FOLDER = "/etc/latticeforge"
STORE_FOLDER = "/store"
USER_ID = 10001
RENDEZVOUS_PORT = 29500

GRACE_SECONDS = {StepKind.TRAIN: 300}
"""Time to write a checkpoint after SIGTERM; others need only stop."""
DEFAULT_GRACE_SECONDS = 30


def shared_objects(
    training: StackedTraining, launch: Launch, settings: Settings
) -> list[dict[str, Any]]:
    """What every step of the stack needs beside the volume: the right to report progress."""
    factory = _Factory(training, launch, settings)
    return [
        factory.service_account(),
        factory.role(),
        factory.role_binding(),
        factory.progress(),
    ]


def volume_claim(
    training: StackedTraining, launch: Launch, settings: Settings
) -> dict[str, Any] | None:
    """The stack's own volume as its spec has it; None if it names an existing claim."""
    return _Factory(training, launch, settings).store()


def first_claim(claim: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """A claim as it is made: of the platform's storage class, if its stack names none.

    The class of a volume that is there can never be changed, so only this one says it.
    """
    shared = "ReadWriteMany" in claim["spec"]["accessModes"]
    default = settings.class_for(shared=shared)
    if default is None:
        return claim
    return {**claim, "spec": {"storageClassName": default, **claim["spec"]}}


def attempt_objects(
    training: StackedTraining, launch: Launch, settings: Settings
) -> list[dict[str, Any]]:
    """What one attempt needs beside them, in the order in which it is applied; the Job last."""
    factory = _Factory(training, launch, settings)
    return [factory.config(), *factory.service(), factory.job()]


class _Factory:
    def __init__(self, training: StackedTraining, launch: Launch, settings: Settings) -> None:
        self.training, self.launch, self.settings = training, launch, settings
        self.placement = launch.placement
        self.kind = StepKind(launch.config.step)

    def _shared_meta(self, name: str) -> dict[str, Any]:
        return {
            "name": name,
            "namespace": self.training.namespace,
            "labels": {
                TRAINING_LABEL: self.training.name,
                UID_LABEL: self.training.uid,
                "app.kubernetes.io/managed-by": "latticeforge",
            },
            "ownerReferences": [owner_reference(self.training)],
        }

    def _meta(self, name: str) -> dict[str, Any]:
        meta = self._shared_meta(name)
        meta["labels"][STEP_LABEL] = self.launch.step.replace("/", ".")
        meta["annotations"] = {
            DIGEST_ANNOTATION: self.launch.digest,
            STEP_ANNOTATION: self.launch.step,
        }
        return meta

    def store(self) -> dict[str, Any] | None:
        storage = self.training.spec.storage
        if storage.size is None:
            return None
        meta = self._shared_meta(store_claim(self.training))
        spec: dict[str, Any] = {
            "accessModes": ["ReadWriteMany" if self._spans_nodes() else "ReadWriteOnce"],
            "resources": {"requests": {"storage": storage.size}},
        }
        if storage.storage_class_name is not None:
            spec["storageClassName"] = storage.storage_class_name
        return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": meta, "spec": spec}

    def _spans_nodes(self) -> bool:
        """Whether any step does: a volume's access modes cannot be changed later."""
        spec, pool = self.training.spec, self.placement.pool
        return any(place(spec, stage, StepKind.TRAIN, pool).pods > 1 for stage in spec.stages)

    def service_account(self) -> dict[str, Any]:
        meta = self._shared_meta(self.launch.stack)
        return {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta}

    def role(self) -> dict[str, Any]:
        rule = {
            "apiGroups": [""],
            "resources": ["configmaps"],
            "resourceNames": [self.launch.stack],
            "verbs": ["get", "patch"],
        }
        return {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "Role",
            "metadata": self._shared_meta(self.launch.stack),
            "rules": [rule],
        }

    def role_binding(self) -> dict[str, Any]:
        name = self.launch.stack
        return {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": self._shared_meta(name),
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io",
                "kind": "Role",
                "name": name,
            },
            "subjects": [
                {"kind": "ServiceAccount", "name": name, "namespace": self.training.namespace}
            ],
        }

    def progress(self) -> dict[str, Any]:
        """The ConfigMap that the steps report into; its data are the trainers' own."""
        meta = self._shared_meta(self.launch.stack)
        return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta}

    def config(self) -> dict[str, Any]:
        return {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": self._meta(self.launch.job),
            "data": {"step.json": json.dumps(self.launch.config.to_json(), sort_keys=True)},
        }

    def service(self) -> list[dict[str, Any]]:
        """A headless Service, so that the pods of one attempt find the first one by name."""
        if self.placement.pods == 1:
            return []
        return [
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": self._meta(self.launch.job),
                "spec": {
                    "clusterIP": "None",
                    "publishNotReadyAddresses": True,
                    "selector": {"batch.kubernetes.io/job-name": self.launch.job},
                    "ports": [{"name": "rendezvous", "port": RENDEZVOUS_PORT}],
                },
            }
        ]

    def job(self) -> dict[str, Any]:
        meta = self._meta(self.launch.job)
        meta["annotations"][ATTEMPT_ANNOTATION] = str(self.launch.attempt)
        if self.placement.queue is not None:
            meta["labels"][QUEUE_LABEL] = self.placement.queue
        disrupted = {
            "action": "Ignore",
            "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
        }
        spec: dict[str, Any] = {
            "completionMode": "Indexed",
            "completions": self.placement.pods,
            "parallelism": self.placement.pods,
            "backoffLimit": 0,
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {"rules": [disrupted]},
            "template": self.pod_template(),
        }
        if self.launch.deadline_seconds is not None:
            spec["activeDeadlineSeconds"] = self.launch.deadline_seconds
        return {"apiVersion": "batch/v1", "kind": "Job", "metadata": meta, "spec": spec}

    def pod_template(self) -> dict[str, Any]:
        grace = GRACE_SECONDS.get(self.kind, DEFAULT_GRACE_SECONDS)
        spec: dict[str, Any] = {
            "restartPolicy": "Never",
            "serviceAccountName": self.launch.stack,
            "terminationGracePeriodSeconds": grace,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": USER_ID,
                "runAsGroup": USER_ID,
                "fsGroup": USER_ID,
                "fsGroupChangePolicy": "OnRootMismatch",
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [self.container()],
            "volumes": [
                {"name": "config", "configMap": {"name": self.launch.job}},
                {
                    "name": "store",
                    "persistentVolumeClaim": {"claimName": store_claim(self.training)},
                },
                {"name": "scratch", "emptyDir": {}},
                {"name": "shm", "emptyDir": {"medium": "Memory"}},
            ],
        }
        if self.settings.pull_secrets:
            spec["imagePullSecrets"] = [{"name": name} for name in self.settings.pull_secrets]
        if self.placement.pods > 1:
            spec["subdomain"] = self.launch.job
        if self.placement.on_pool:
            spec |= self._on_pool()
        labels = {
            TRAINING_LABEL: self.training.name,
            UID_LABEL: self.training.uid,
            STEP_LABEL: self.launch.step.replace("/", "."),
        }
        template: dict[str, Any] = {"metadata": {"labels": labels}, "spec": spec}
        overlay = self.placement.pool.spec.pod_template if self.placement.on_pool else {}
        return {**merged(template, overlay)}

    def _on_pool(self) -> dict[str, Any]:
        pool = self.placement.pool.spec
        fields: dict[str, Any] = {}
        if pool.node_selector:
            fields["nodeSelector"] = dict(pool.node_selector)
        if pool.tolerations:
            fields["tolerations"] = [toleration.to_json() for toleration in pool.tolerations]
        if (priority := self.training.spec.compute.priority_class_name) is not None:
            fields["priorityClassName"] = priority
        if self.launch.avoided_nodes:
            fields["affinity"] = {"nodeAffinity": _preferring_others(self.launch.avoided_nodes)}
        return fields

    def container(self) -> dict[str, Any]:
        resources: dict[str, Any] = {"requests": {"cpu": "1"}}
        if self.placement.gpus_per_pod:
            resources["limits"] = {"nvidia.com/gpu": str(self.placement.gpus_per_pod)}
        return {
            "name": TRAINER_CONTAINER,
            "image": self.settings.trainer_image,
            "command": ["python", "-m", "latticeforge_trainer", self.kind.value],
            "args": ["--config", f"{CONFIG_FOLDER}/step.json", "--store", STORE_FOLDER],
            "env": self.environment(),
            "resources": resources,
            "terminationMessagePolicy": "FallbackToLogsOnError",
            "securityContext": {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            },
            "volumeMounts": [
                {"name": "config", "mountPath": CONFIG_FOLDER, "readOnly": True},
                {"name": "store", "mountPath": STORE_FOLDER},
                {"name": "scratch", "mountPath": "/tmp"},  # noqa: S108  (an emptyDir)
                {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108  (an emptyDir)
            ],
        }

    def _progress_target(self) -> str:
        return f"{self.training.namespace}/{self.launch.stack}/{progress_key(self.launch.step)}"

    def environment(self) -> list[dict[str, Any]]:
        values = {
            "HOME": "/tmp",  # noqa: S108  (an emptyDir)
            "TMPDIR": "/tmp",  # noqa: S108
            "LATTICEFORGE_PROGRESS": self._progress_target(),
            "LATTICEFORGE_PROGRESS_INTERVAL": self.settings.progress_interval,
            "HF_ENDPOINT": self.settings.hub_endpoint,
        }
        if self.placement.pods > 1:
            values["MASTER_ADDR"] = f"{self.launch.job}-0.{self.launch.job}"
            values["MASTER_PORT"] = str(RENDEZVOUS_PORT)
        env: list[dict[str, Any]] = [
            {"name": name, "value": value} for name, value in values.items() if value is not None
        ]
        publish = self.training.spec.publish
        if self.launch.needs_token and publish is not None and publish.token_secret is not None:
            key = {"name": publish.token_secret.name, "key": publish.token_secret.key}
            env.append({"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": key}})
        return env


def _preferring_others(nodes: Sequence[str]) -> dict[str, Any]:
    """Node affinity for any other node: preferred, so that the only node is still a node."""
    other = {"key": "kubernetes.io/hostname", "operator": "NotIn", "values": list(nodes)}
    term = {"weight": 100, "preference": {"matchExpressions": [other]}}
    return {"preferredDuringSchedulingIgnoredDuringExecution": [term]}


def owner_reference(training: StackedTraining) -> dict[str, Any]:
    """What makes the garbage collector remove a child with its StackedTraining."""
    return {
        "apiVersion": API_VERSION,
        "kind": "StackedTraining",
        "name": training.name,
        "uid": training.uid,
        "controller": True,
        "blockOwnerDeletion": False,
    }


def merged(base: Any, overlay: Any) -> Any:
    """`overlay` over `base`: key by key, the first container by position, lists appended."""
    if isinstance(base, dict) and isinstance(overlay, dict):
        result = copy.deepcopy(base)
        for key, value in overlay.items():
            if key == "containers" and isinstance(value, list) and value:
                result[key] = [merged(base[key][0], value[0]), *value[1:]]
            else:
                result[key] = merged(base[key], value) if key in base else value
        return result
    if isinstance(base, list) and isinstance(overlay, list):
        return [*base, *overlay]
    return overlay
