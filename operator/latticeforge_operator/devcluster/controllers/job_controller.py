"""The Job controller's loop: reads a Job and its pods, lets `jobs.decide`, and writes."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

from latticeforge_operator.devcluster.controllers import jobs
from latticeforge_operator.devcluster.controllers.job_pods import FINALIZER, JOB_NAME
from latticeforge_operator.devcluster.controllers.jobs import Actions
from latticeforge_operator.devcluster.controllers.loops import Controller, Request
from latticeforge_operator.devcluster.controllers.objects import (
    JOBS,
    PODS,
    controller_uid,
    find,
    key_of,
)
from latticeforge_operator.devcluster.controllers.recorder import Event, Recorder
from latticeforge_operator.devcluster.errors import ApiError
from latticeforge_operator.devcluster.resources import JsonObject
from latticeforge_operator.devcluster.store import Store


class JobController:
    """Runs Jobs.

    Args:
        store: the API.
        backoff_base: the wait after a Job's first failed pod.
    """

    def __init__(self, store: Store, *, backoff_base: timedelta = jobs.BACKOFF_BASE) -> None:
        self._store = store
        self._backoff_base = backoff_base
        self._recorder = Recorder(store, "job-controller")
        sources = {JOBS: lambda job: [key_of(job)], PODS: _job_of}
        self._controller = Controller(store, "job controller", sources, self._reconcile)

    async def run(self) -> None:
        """Runs until cancelled."""
        await self._controller.run()

    def _reconcile(self, request: Request) -> datetime | None:
        namespace, name = request
        job = find(self._store, JOBS, namespace, name)
        uid = job["metadata"]["uid"] if job else None
        pods = self._store.list(PODS, namespace, label_selector=f"{JOB_NAME}={name}")
        for pod in pods:
            if controller_uid(pod) != uid:
                self._release(pod)
        if job is None:
            return None
        mine = [pod for pod in pods if controller_uid(pod) == uid]
        actions = jobs.decide(job, mine, self._store.now(), backoff_base=self._backoff_base)
        self._carry_out(job, {pod["metadata"]["name"]: pod for pod in mine}, actions)
        return actions.wake_at

    def _carry_out(self, job: JsonObject, pods: dict[str, JsonObject], actions: Actions) -> None:
        # Nothing is awaited in between: counting a pod and letting it go are one step for others.
        if actions.status != job.get("status"):
            self._write_status(job, actions.status)
        for name in (*actions.release, *actions.discard):
            self._release(pods[name])
        for name in (*actions.discard, *actions.delete):
            self._delete(job, pods[name])
        for pod in actions.create:
            self._create(job, pod)
        for event in actions.events:
            self._recorder.record(job, event)
        if actions.remove:
            self._store.delete(JOBS, *key_of(job))

    def _write_status(self, job: JsonObject, status: JsonObject) -> None:
        self._store.patch(
            JOBS,
            *key_of(job),
            lambda live: {**live, "status": status},
            subresource="status",
        )

    def _release(self, pod: JsonObject) -> None:
        finalizers = pod["metadata"].get("finalizers") or []
        if FINALIZER in finalizers:
            rest = [finalizer for finalizer in finalizers if finalizer != FINALIZER]
            self._store.merge_patch(PODS, *key_of(pod), {"metadata": {"finalizers": rest}})

    def _delete(self, job: JsonObject, pod: JsonObject) -> None:
        self._store.delete(PODS, *key_of(pod))
        message = f"Deleted pod: {pod['metadata']['name']}"
        self._recorder.record(job, Event("Normal", "SuccessfulDelete", message))

    def _create(self, job: JsonObject, pod: JsonObject) -> None:
        try:
            made = self._store.create(PODS, job["metadata"]["namespace"], pod)
        except ApiError as error:
            message = f"Error creating: {error.message}"
            self._recorder.record(job, Event("Warning", "FailedCreate", message))
            raise
        message = f"Created pod: {made['metadata']['name']}"
        self._recorder.record(job, Event("Normal", "SuccessfulCreate", message))


def _job_of(pod: JsonObject) -> Iterable[Request]:
    if name := (pod["metadata"].get("labels") or {}).get(JOB_NAME):
        yield pod["metadata"]["namespace"], name
