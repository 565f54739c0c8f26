"""Events in, decisions carried out: one stack at a time, many stacks side by side.

Level-triggered: whatever wakes a stack, the same pass reads the mirror, decides, applies objects,
writes the status once if it differs, then tells events. A pass that fails is repeated with
back-off.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError

from latticeforge_operator.api import API_VERSION, StackedTraining, TrainingStatus
from latticeforge_operator.cluster import manifests
from latticeforge_operator.cluster.client import (
    CLAIMS,
    CONFIG_MAPS,
    EVENTS,
    JOBS,
    PODS,
    TRAININGS,
    Client,
    ClusterError,
    Conflict,
    Listing,
    Refused,
    Unavailable,
)
from latticeforge_operator.cluster.mirror import Mirror
from latticeforge_operator.cluster.names import TRAINING_LABEL, Key
from latticeforge_operator.cluster.public_bases import PublicBases
from latticeforge_operator.cluster.settings import Settings
from latticeforge_operator.cluster.telemetry import Telemetry
from latticeforge_operator.core.idle import refuse
from latticeforge_operator.core.launch import store_claim
from latticeforge_operator.core.policies.failure import Outcome
from latticeforge_operator.core.reconcile import FINAL, reconcile
from latticeforge_operator.core.settle import PATIENCE
from latticeforge_operator.core.steps import kind_of
from latticeforge_operator.core.values import Decision, Event, Launch
from latticeforge_trainer.contract import StepKind

log = logging.getLogger(__name__)

CONCURRENCY = 16
"""Stacks worked on at the same time."""
LONGEST_BACKOFF = 60.0
PAUSE_SECONDS = 0.2
"""Between two passes over one stack: a Job, its pods and its report move together, in one pass."""
STALE_ANSWERS = 5
"""After so many lists that are older than what was seen before, one is believed."""
PODLESS_AT_ONCE = 50
"""Of the stacks that wait for pods, so many are looked at closer in each round."""
RESYNC_SECONDS = 60.0
"""Every stack is looked at this often even if no event says so."""


_NOT_ENDED = "status.phase!=Succeeded,status.phase!=Failed"


def utc_now() -> datetime:
    """The time, to the second, as Kubernetes writes it."""
    return datetime.now(UTC).replace(microsecond=0)


class Reconciler:
    """Keeps every stack moving.

    Args:
        client: Access to the API server.
        mirror: What the watches have shown.
        settings: The operator's settings.
        now: The time.
        telemetry: Where passes are counted.
        bases: Where to ask what public models are; None: nowhere.
    """

    def __init__(
        self,
        client: Client,
        mirror: Mirror,
        settings: Settings,
        now: Callable[[], datetime] = utc_now,
        *,
        telemetry: Telemetry | None = None,
        bases: PublicBases | None = None,
    ) -> None:
        self._client, self.mirror, self._settings, self._now = client, mirror, settings, now
        self.telemetry = telemetry or Telemetry()
        self._bases = bases
        self._dirty: set[Key] = set()
        self._tasks: dict[Key, asyncio.Task[None]] = {}
        self._timers: dict[Key, asyncio.TimerHandle] = {}
        self._failures: dict[Key, int] = {}
        self._rested_at: dict[Key, float] = {}
        self._doubted: set[Key] = set()
        self._furnished: set[str] = set()
        """UIDs of stacks whose shared objects this process has applied."""
        self._closed = False
        self._slots = asyncio.Semaphore(CONCURRENCY)

    def wake(self, key: Key) -> None:
        """Look at a stack soon; many wakes while it is being looked at are one."""
        if self._closed:
            return
        self._dirty.add(key)
        if key not in self._tasks:
            self._tasks[key] = asyncio.create_task(self._work(key))

    async def resync(self) -> None:
        """Wake every stack now and then, for ever."""
        while True:
            await asyncio.sleep(RESYNC_SECONDS)
            try:
                await self._doubt()
            except ClusterError as error:
                log.warning("active pods not listed, the next time will do: %s", error)
            for key in self.mirror.trainings():
                self.wake(key)

    async def _doubt(self) -> None:
        """Have stacks looked at closer of which a broken watch may have hidden a deletion."""
        active = Listing([])
        for namespace in self._settings.namespaces or (None,):
            listed = await self._client.list_all(PODS, namespace, TRAINING_LABEL, _NOT_ENDED)
            active = Listing([*active.items, *listed.items], active.version or listed.version)
        ghosts, podless = self.mirror.doubtful(active)
        some = random.sample(sorted(podless), min(len(podless), PODLESS_AT_ONCE))
        self._doubted |= ghosts | set(some)

    async def aclose(self) -> None:
        """Stop at once; whatever was under way is decided again by the next operator."""
        self._closed = True
        for timer in self._timers.values():
            timer.cancel()
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._bases is not None:
            await self._bases.aclose()

    async def _work(self, key: Key) -> None:
        loop = asyncio.get_running_loop()
        try:
            while key in self._dirty:
                self.telemetry.woken(key)
                await asyncio.sleep(max(0.0, self._rested_at.get(key, 0.0) - loop.time()))
                async with self._slots:
                    self._dirty.discard(key)  # only now: what has come meanwhile is seen too
                    with self.telemetry.timed_pass(key):
                        await self._attempt(key)
                self._rested_at[key] = loop.time() + PAUSE_SECONDS
        finally:
            del self._tasks[key]
            if self.mirror.training(key) is None:
                self._rested_at.pop(key, None)

    async def _attempt(self, key: Key) -> None:
        try:
            wake_at = await self.pass_over(key)
        except ClusterError as error:
            self.telemetry.passed("unavailable")
            count = self._failures[key] = self._failures.get(key, 0) + 1
            asked = error.after if isinstance(error, Unavailable) else 0.0
            seconds = max(asked, min(2.0 ** min(count, 6) / 2, LONGEST_BACKOFF))
            log.warning("%s/%s: %s; again in %.0f s", *key, error, seconds, extra=_about(key))
            self._wake_later(key, seconds)
            return
        except Exception:
            # The edge: a defect in one stack's pass must not end the others' operator.
            self.telemetry.passed("defect")
            log.exception("%s/%s: reconcile failed", *key, extra=_about(key))
            self._wake_later(key, LONGEST_BACKOFF)
            return
        self.telemetry.passed("done")
        self._failures.pop(key, None)
        if wake_at is not None:
            self._wake_later(key, max(0.0, (wake_at - self._now()).total_seconds()))

    def _wake_later(self, key: Key, seconds: float) -> None:
        if timer := self._timers.pop(key, None):
            timer.cancel()
        self._timers[key] = asyncio.get_running_loop().call_later(seconds, self.wake, key)

    async def pass_over(self, key: Key) -> datetime | None:
        """One pass over one stack; returns when to look again.

        Raises:
            ClusterError: The API server could not be reached, or refused what every stack needs;
                nothing is lost by trying again.
        """
        obj = self.mirror.training(key)
        if obj is None or "deletionTimestamp" in obj["metadata"]:
            return None
        if key in self._doubted:
            await self._look_closer(key)
            self._doubted.discard(key)
        await self._ask_why_without_pods(key)
        decision, training = self._decide(obj, key)
        if _must_be_sure(obj, decision):
            await self._look_closer(key)
            decision, training = self._decide(obj, key)
        problem = None
        try:
            await self._control_jobs(key[0], decision)
            if training is not None and decision.delete_volume:
                await self._client.delete(CLAIMS, key[0], store_claim(training))
            if training is not None and decision.launch is not None:
                await self._launch(training, decision.launch)
        except Refused as error:
            log.warning("%s/%s: %s", *key, error, extra=_about(key))
            problem = f"the cluster refused an object of this stack: {error}"
        status = decision.status.to_json()
        if problem is not None:
            status = (obj.get("status") or {}) | {"message": problem[:1000]}
        if status != obj.get("status"):
            await self._write_status(obj, status)
            self._time_first_step(obj, status)
        for event in decision.events if problem is None else ():
            await self._tell(obj, event)
        return decision.wake_at

    def _decide(self, obj: dict[str, Any], key: Key) -> tuple[Decision, StackedTraining | None]:
        now = self._now()
        status = TrainingStatus.model_validate(obj.get("status") or {})
        observed = self.mirror.observed(key)
        try:
            training = self._settings.completed(StackedTraining.from_object(obj))
        except ValueError as error:
            generation = obj["metadata"].get("generation", 1)
            return refuse(generation, status, observed, sentence(error), now), None
        if self._bases is not None and _is_unread(status):
            source = training.spec.base
            base = self._bases.of(source.model, source.revision, lambda: self.wake(key))
            observed = replace(observed, public_base=base)
        return reconcile(training, status, observed, now), training

    async def _look_closer(self, key: Key) -> None:
        """Ask the API server itself: watches may lag, and what follows cannot be taken back."""
        namespace, name = key
        for kind, resource in (("Job", JOBS), ("Pod", PODS), ("ConfigMap", CONFIG_MAPS)):
            selector = f"{TRAINING_LABEL}={name}"
            listed = await self._client.list_all(resource, namespace, selector)
            # Kinds share one count of versions, unless each has a database: hence not for ever.
            stale = listed.version < self.mirror.newest(key)
            if stale and self._failures.get(key, 0) < STALE_ANSWERS:
                raise Unavailable(f"the list of {resource.plural} is older than what was seen")
            self.mirror.replace(kind, key, listed)

    async def _ask_why_without_pods(self, key: Key) -> None:
        """A quota or a webhook that refuses pods says so in the Events of their Job alone."""
        observed, now = self.mirror.observed(key), self._now()
        with_pods = {pod.job for pod in observed.pods}
        for job in observed.unfinished:
            if job.suspended or job.name in with_pods or now < job.created_at + PATIENCE:
                continue
            selector = f"involvedObject.name={job.name},reason=FailedCreate"
            events = await self._client.list_all(EVENTS, key[0], field_selector=selector)
            newest = max(events.items, key=lambda e: e.get("lastTimestamp") or "", default=None)
            if newest is not None:
                self.mirror.complain(key, job.name, str(newest.get("message", "")))

    async def _control_jobs(self, namespace: str, decision: Decision) -> None:
        for name in decision.delete:
            await self._client.delete(JOBS, namespace, name)
        changes: dict[str, dict[str, Any]] = defaultdict(dict)
        for name, seconds in decision.deadlines.items():
            changes[name]["activeDeadlineSeconds"] = seconds
        for names, suspended in ((decision.suspend, True), (decision.resume, False)):
            for name in names:
                changes[name]["suspend"] = suspended
        for name, spec in changes.items():
            job = await self._client.merge_patch(JOBS, namespace, name, {"spec": spec})
            if job is not None:
                self.mirror.refresh("Job", job)

    async def _launch(self, training: StackedTraining, launch: Launch) -> None:
        """Create what an attempt needs; what its steps share only once in this process's life.

        A later attempt makes sure of it again: its failure may be that somebody deleted it.
        """
        if launch.attempt > 0 or training.uid not in self._furnished:
            await self._make_volume(training, launch)
            for manifest in manifests.shared_objects(training, launch, self._settings):
                await self._client.apply(manifest)
            self._furnished.add(training.uid)
        for manifest in manifests.attempt_objects(training, launch, self._settings):
            answer = await self._client.apply(manifest)
            if manifest["kind"] == "Job":
                self.mirror.put("Job", answer)

    async def _make_volume(self, training: StackedTraining, launch: Launch) -> None:
        """Make the stack's own volume; one that is there follows the spec, as far as it can.

        Raises:
            Refused: An earlier stack of this name has not quite gone, and takes its volume along.
        """
        claim = manifests.volume_claim(training, launch, self._settings)
        if claim is None:
            return
        first = manifests.first_claim(claim, self._settings)
        try:
            await self._client.create(CLAIMS, training.namespace, first)
        except Conflict:
            found = await self._client.apply(claim)
            if "deletionTimestamp" in found["metadata"]:
                name = found["metadata"]["name"]
                raise Refused(
                    f"claim {name} is still being deleted; tried again every minute"
                ) from None

    async def _write_status(self, obj: dict[str, Any], status: dict[str, Any]) -> None:
        meta = obj["metadata"]
        manifest = {
            "apiVersion": API_VERSION,
            "kind": "StackedTraining",
            # A status that was decided on an older one must never replace a newer one.
            "metadata": {
                field: meta[field] for field in ("name", "namespace", "uid", "resourceVersion")
            },
            "status": status,
        }
        try:
            answer = await self._client.apply(manifest, subresource="status")
        except Conflict:
            await self._read_again(meta["namespace"], meta["name"])
            raise
        # An edit that came in between is in the answer, and its event will be no news any more.
        for key in self.mirror.refresh("StackedTraining", answer):
            self.wake(key)

    async def _read_again(self, namespace: str, name: str) -> None:
        fields = f"metadata.name={name}"
        listed = await self._client.list_all(TRAININGS, namespace, field_selector=fields)
        for obj in listed.items:
            self.mirror.refresh("StackedTraining", {"kind": "StackedTraining", **obj})

    def _time_first_step(self, obj: dict[str, Any], status: dict[str, Any]) -> None:
        """Note how long a new stack waited, once its first Job is recorded."""
        if "startedAt" in status and "startedAt" not in (obj.get("status") or {}):
            created = datetime.fromisoformat(obj["metadata"]["creationTimestamp"])
            self.telemetry.first_step((self._now() - created).total_seconds())

    async def _tell(self, obj: dict[str, Any], event: Event) -> None:
        meta, now = obj["metadata"], self._now().strftime("%Y-%m-%dT%H:%M:%SZ")
        manifest = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"generateName": f"{meta['name']}.", "namespace": meta["namespace"]},
            "involvedObject": {
                "apiVersion": API_VERSION,
                "kind": "StackedTraining",
                "name": meta["name"],
                "namespace": meta["namespace"],
                "uid": meta["uid"],
            },
            "type": "Warning" if event.warning else "Normal",
            "reason": event.reason,
            "message": event.message[:1024],
            "source": {"component": "latticeforge"},
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }
        try:
            await self._client.create(EVENTS, meta["namespace"], manifest)
        except (Refused, Unavailable) as error:
            key = (meta["namespace"], meta["name"])
            told = f"event not told: {event.message}: {error}"
            log.warning("%s/%s: %s", *key, told, extra=_about(key))


def _is_unread(status: TrainingStatus) -> bool:
    """Whether no `prepare` has told yet what the base is."""
    prepared = (s for s in status.steps if s.result and kind_of(s.name) is StepKind.PREPARE)
    return status.phase not in FINAL and next(prepared, None) is None


def _about(key: Key) -> dict[str, str]:
    """The field of a structured log line that names its stack."""
    return {"training": "/".join(key)}


def _must_be_sure(obj: dict[str, Any], decision: Decision) -> bool:
    """Whether a decision follows from what is missing, and a watch that lags might still bring."""
    if decision.launch is not None and decision.launch.attempt > 0:
        return True
    before = TrainingStatus.model_validate(obj.get("status") or {})
    return bool(_given_up(decision.status) - _given_up(before))


def _given_up(status: TrainingStatus) -> set[tuple[str, str, int]]:
    """Attempts that ended otherwise than well."""
    return {
        (step.name, step.digest, attempt.number)
        for step in status.steps
        for attempt in step.attempts
        if attempt.outcome not in (None, Outcome.DONE)
    }


def sentence(error: ValueError) -> str:
    """One sentence from a validation error: where, and what is wrong."""
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    return f"spec.{where}: {message}" if where else f"spec: {message}"
