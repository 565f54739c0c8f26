"""Labels, annotations and names that the operator puts on objects, each with its reader."""

from latticeforge_operator.api import API_VERSION, GROUP, VERSION

MANAGER = "latticeforge"
"""Field manager of every server-side apply."""

TRAINING_LABEL = f"{GROUP}/training"
"""Name of the StackedTraining; on every child, read by the watches and by `kubectl -l`."""

UID_LABEL = f"{GROUP}/training-uid"
"""Its UID; on every child and pod, so that those of a deleted namesake are told apart."""

STEP_LABEL = f"{GROUP}/step"
"""`STAGE.KIND`; on Jobs and pods, for people and dashboards."""

DIGEST_ANNOTATION = f"{GROUP}/digest"
"""Full digest of the step; on Jobs and progress ConfigMaps, read when they are observed."""

STEP_ANNOTATION = f"{GROUP}/step"
"""Name of the step; on Jobs, read when they are observed."""

ATTEMPT_ANNOTATION = f"{GROUP}/attempt"
"""Number of the attempt; on Jobs, read when they are observed."""

QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
"""LocalQueue of a Job, read by Kueue, and when the Job is observed."""

JOB_NAME_LABEL = "batch.kubernetes.io/job-name"
"""Put on pods by the Job controller."""

TRAINER_CONTAINER = "trainer"
"""Name of the container that runs the step; a pool's pod template may add others."""

__all__ = [
    "API_VERSION",
    "ATTEMPT_ANNOTATION",
    "DIGEST_ANNOTATION",
    "GROUP",
    "JOB_NAME_LABEL",
    "MANAGER",
    "QUEUE_LABEL",
    "STEP_ANNOTATION",
    "STEP_LABEL",
    "TRAINER_CONTAINER",
    "TRAINING_LABEL",
    "UID_LABEL",
    "VERSION",
]

Key = tuple[str, str]
"""Namespace and name of a StackedTraining."""
