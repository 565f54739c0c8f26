"""Events in, decisions carried out: against a client that only remembers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tests.fixtures.hub_server import HubServer
from tests.unit.core.builders import CONFIG, START, spec, stage
from tests.unit.core.simulation import Operator

from latticeforge_operator.api import StackedTraining, StackedTrainingSpec
from latticeforge_operator.api.crds import stacked_training_crd
from latticeforge_operator.cluster.client import (
    EVENTS,
    Client,
    Conflict,
    Listing,
    Refused,
    Resource,
    Unavailable,
)
from latticeforge_operator.cluster.mirror import Mirror
from latticeforge_operator.cluster.names import JOB_NAME_LABEL, TRAINING_LABEL, UID_LABEL
from latticeforge_operator.cluster.public_bases import PublicBases
from latticeforge_operator.cluster.reconciler import STALE_ANSWERS, Reconciler, sentence
from latticeforge_operator.cluster.settings import Settings
from latticeforge_operator.core.settle import PATIENCE
from latticeforge_operator.core.values import Launch
from latticeforge_operator.devcluster.validation import faults

KEY = ("default", "elle")
DEFAULTS = Settings()
POOL = {"metadata": {"name": "h200"}, "spec": {"accelerator": "H200"}}


class FakeClient:
    """An API server that takes everything, unless told to fail."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.objects: dict[tuple[str, str], dict[str, Any]] = {}
        self.fails: dict[str, Exception] = {}
        self.events: list[dict[str, Any]] = []
        self.listed: list[dict[str, Any]] = []
        self.version = 100
        self.lags = 0

    def _call(self, what: str) -> None:
        self.calls.append(what)
        if error := self.fails.get(what):
            raise error

    async def apply(self, manifest: dict[str, Any], subresource: str = "") -> dict[str, Any]:
        kind, meta = manifest["kind"], manifest["metadata"]
        self._call(f"apply {kind}{subresource and f'/{subresource}'}")
        self.version += 1
        known = self.objects.get((kind, meta["name"]), {})
        now = START.strftime("%Y-%m-%dT%H:%M:%SZ")
        made = {"resourceVersion": str(self.version), "creationTimestamp": now}
        answer = {**known, **manifest, "metadata": {**known.get("metadata", {}), **meta, **made}}
        self.objects[kind, meta["name"]] = answer
        return answer

    async def delete(self, resource: Resource, *_: str) -> None:
        self._call(f"delete {resource.plural}")

    async def create(self, resource: Resource, _: str, manifest: dict[str, Any]) -> None:
        self._call(f"create {resource.plural} {manifest.get('reason', '')}".rstrip())

    async def list_all(self, resource: Resource, *_: object, **__: object) -> Listing:
        self._call("list")
        return Listing(self.events if resource is EVENTS else self.listed, self.version - self.lags)


class World:
    def __init__(
        self,
        fields: dict[str, Any] | None = None,
        settings: Settings = DEFAULTS,
        bases: PublicBases | None = None,
    ) -> None:
        self.client, self.mirror, self.now = FakeClient(), Mirror(), START
        self.reconciler = Reconciler(
            cast("Client", self.client), self.mirror, settings, lambda: self.now, bases=bases
        )
        self.mirror.put("GPUPool", POOL)
        self.put(fields or spec())

    def put(self, fields: dict[str, Any], generation: int = 1) -> None:
        self.client.version += 1
        meta = {
            "name": "elle",
            "namespace": "default",
            "uid": "uid-1",
            "creationTimestamp": "2025-12-31T23:59:53Z",
            "generation": generation,
            "resourceVersion": str(self.client.version),
        }
        known = self.client.objects.get(("StackedTraining", "elle"), {})
        obj = {**known, "kind": "StackedTraining", "metadata": meta, "spec": fields}
        self.client.objects["StackedTraining", "elle"] = obj
        self.mirror.put("StackedTraining", obj)

    async def passes(self) -> datetime | None:
        self.client.calls.clear()
        return await self.reconciler.pass_over(KEY)

    def lose_the_job(self) -> None:
        job = next(obj for (kind, _), obj in self.client.objects.items() if kind == "Job")
        self.mirror.remove("Job", job)

    @property
    def status(self) -> dict[str, Any]:
        obj = self.mirror.training(KEY) or {}
        found: dict[str, Any] = obj.get("status") or {}
        return found


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110  # a task of the reconciler decides
            await asyncio.sleep(0)


async def test_objects_then_status_then_events() -> None:
    world = World()
    await world.passes()
    assert world.client.calls == [
        "apply ServiceAccount",
        "apply Role",
        "apply RoleBinding",
        "apply ConfigMap",
        "apply ConfigMap",
        "apply Job",
        "apply StackedTraining/status",
    ]
    assert world.status["phase"] == "Running"


async def test_the_answer_of_the_hub_wakes_the_stack_that_is_to_be_planned(
    hub: HubServer,
) -> None:
    hub.put("owner/base", {"config.json": json.dumps(CONFIG).encode()})
    world = World(spec(mode="Plan"), bases=PublicBases(hub.url))
    await world.passes()
    assert world.status["phase"] == "Pending"
    await until(lambda: world.status["phase"] == "Planned")
    assert world.status["plan"]["stages"]
    await world.reconciler.aclose()


async def test_an_edit_that_only_shows_in_the_answer_to_a_status_write_is_noticed() -> None:
    world = World()
    apply = world.client.apply

    async def apply_after_an_edit(manifest: dict[str, Any], subresource: str = "") -> Any:
        if subresource and not world.status:
            stored = world.client.objects["StackedTraining", "elle"]
            edited = {"metadata": stored["metadata"] | {"generation": 2}}
            edited["spec"] = stored["spec"] | {"ttlAfterFinished": "1h"}
            world.client.objects["StackedTraining", "elle"] = stored | edited
        return await apply(manifest, subresource)

    world.client.apply = apply_after_an_edit  # type: ignore[method-assign]  # it happens meanwhile
    world.reconciler.wake(KEY)
    await until(lambda: world.status.get("observedGeneration") == 2)
    await world.reconciler.aclose()


async def test_how_long_a_new_stack_waited_is_noted_once() -> None:
    world = World()
    for _ in range(3):
        await world.passes()
    registry = world.reconciler.telemetry.registry
    name = "latticeforge_time_to_first_step_seconds"
    assert registry.get_sample_value(f"{name}_count") == 1
    assert registry.get_sample_value(f"{name}_sum") == 7


async def test_nothing_is_written_when_nothing_differs() -> None:
    world = World()
    await world.passes()
    await world.passes()  # what was just written is known without a watch's help
    assert world.client.calls == ["apply StackedTraining/status"]  # its pod is starting now
    await world.passes()
    assert world.client.calls == []


async def test_what_the_cluster_refuses_becomes_the_message_and_is_not_recorded() -> None:
    world = World()
    world.client.fails["apply Job"] = Refused("quota")
    await world.passes()
    assert world.status["message"] == "the cluster refused an object of this stack: quota"
    assert "steps" not in world.status
    before = world.status
    await world.passes()
    assert world.status == before
    del world.client.fails["apply Job"]
    await world.passes()
    assert world.status["phase"] == "Running"


async def test_an_unavailable_cluster_is_tried_again_later() -> None:
    world = World()
    world.client.fails["apply Job"] = Unavailable("busy")
    with pytest.raises(Unavailable):
        await world.passes()
    assert "apply StackedTraining/status" not in world.client.calls


async def test_a_server_that_asks_to_be_left_alone_is() -> None:
    world = World()
    world.client.fails["apply Job"] = Unavailable("busy", after=17)
    world.reconciler.wake(KEY)
    await until(lambda: bool(world.reconciler._timers))
    assert world.reconciler._timers[KEY].when() - asyncio.get_running_loop().time() > 16
    await world.reconciler.aclose()


async def test_after_a_conflict_the_stack_is_read_again() -> None:
    world = World()
    world.client.fails["apply StackedTraining/status"] = Conflict("it has changed")
    newer = {**world.client.objects["StackedTraining", "elle"], "status": {"message": "another"}}
    newer["metadata"] = newer["metadata"] | {"resourceVersion": "200"}
    world.client.listed = [newer]
    with pytest.raises(Conflict):
        await world.passes()
    assert world.client.calls[-2:] == ["apply StackedTraining/status", "list"]
    assert world.status == {"message": "another"}


async def test_a_status_says_which_one_it_follows_from() -> None:
    world = World()
    read = (world.mirror.training(KEY) or {})["metadata"]["resourceVersion"]
    sent = []
    apply = world.client.apply

    async def seen(manifest: dict[str, Any], subresource: str = "") -> Any:
        sent.append(manifest["metadata"].get("resourceVersion"))
        return await apply(manifest, subresource)

    world.client.apply = seen  # type: ignore[method-assign]  # looks at what is sent
    await world.passes()
    assert sent[-1] == read


async def test_nothing_wakes_an_operator_that_has_stopped() -> None:
    world = World()
    await world.reconciler.aclose()
    world.reconciler.wake(KEY)
    assert not world.reconciler._tasks


async def test_a_lost_event_stops_nothing() -> None:
    world = World()
    await world.passes()
    world.lose_the_job()
    world.client.fails["create events Vanished"] = Unavailable("busy")
    await world.passes()
    assert world.status["phase"] == "Running"
    assert "create events StepStarted" in world.client.calls


async def test_a_spec_that_cannot_be_read_is_a_condition_and_ends_what_runs() -> None:
    world = World()
    await world.passes()
    world.put(spec(stage("a"), stage("a")), generation=2)
    await world.passes()
    assert world.client.calls[0] == "delete jobs"
    assert world.status["phase"] == "Failed"
    assert world.status["message"].startswith("spec: two stages are named a")
    world.now += timedelta(seconds=5)
    world.lose_the_job()
    await world.passes()
    assert world.client.calls == []


async def test_a_restart_asks_the_api_server_first() -> None:
    world = World()
    await world.passes()
    world.lose_the_job()
    await world.passes()
    assert world.client.calls[:2] == ["list", "list"]
    assert world.client.calls[-3:] == [
        "apply StackedTraining/status",
        "create events Vanished",
        "create events StepStarted",
    ]


async def test_the_own_volume_goes_with_the_ttl() -> None:
    world = World(spec(ttlAfterFinished="1h", storage={"size": "1Ti"}))
    status = {"phase": "Succeeded", "observedGeneration": 1, "finishedAt": "2026-01-01T00:00:00Z"}
    obj = world.client.objects["StackedTraining", "elle"] | {"status": status}
    world.mirror.put("StackedTraining", obj)
    assert await world.passes() == START + timedelta(hours=1)
    world.now += timedelta(hours=1)
    await world.passes()
    assert world.client.calls == ["delete persistentvolumeclaims", "apply StackedTraining/status"]
    await world.passes()
    assert world.client.calls == []


async def test_what_is_gone_or_going_is_let_be() -> None:
    world = World()
    obj = world.mirror.training(KEY)
    assert obj is not None
    going = {
        **obj,
        "metadata": {**obj["metadata"], "deletionTimestamp": "now", "resourceVersion": "999"},
    }
    world.mirror.put("StackedTraining", going)
    assert await world.passes() is None
    world.mirror.remove("StackedTraining", going)
    assert await world.passes() is None
    assert world.client.calls == []


async def test_many_wakes_are_one_pass_and_failures_are_repeated() -> None:
    world = World()
    world.client.fails["apply ServiceAccount"] = ValueError("a defect")
    for _ in range(5):
        world.reconciler.wake(KEY)
    await until(lambda: not world.reconciler._tasks)
    assert world.client.calls == ["apply ServiceAccount"]
    assert KEY in world.reconciler._timers
    world.client.fails["apply ServiceAccount"] = Unavailable("busy")
    world.reconciler.wake(KEY)
    await until(lambda: not world.reconciler._tasks)
    assert world.reconciler._failures[KEY] == 1
    world.client.fails.clear()
    world.reconciler.wake(KEY)
    await until(lambda: not world.reconciler._tasks)
    assert KEY not in world.reconciler._failures
    await world.reconciler.aclose()


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({}, "spec.base: Field required"),
        (
            spec(stage("a"), stage("a")),
            "spec: two stages are named a; every stage needs its own name",
        ),
        (
            spec(stage("a", hyperparameters={"learningRate": "fast"})),
            (
                "spec.stages.0.hyperparameters.learningRate: 'fast': must be a non-negative number "
                'in quotes, such as "2e-6"'
            ),
        ),
        (spec(wrong=1), "spec.wrong: Extra inputs are not permitted"),
    ],
)
def test_one_sentence_says_where_and_what(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError) as error:
        StackedTrainingSpec.model_validate(fields)
    assert sentence(error.value) == told


def test_other_errors_speak_for_themselves() -> None:
    assert sentence(ValueError("metadata.name is too long")) == "metadata.name is too long"


async def test_what_the_steps_share_is_applied_once_in_a_process_and_before_every_restart() -> None:
    world = World()
    await world.passes()
    training = StackedTraining.from_object(world.mirror.training(KEY) or {})
    (job,) = world.mirror.observed(KEY).jobs
    launch = next(x for x in launches_of(training) if x.job == job.name)
    for attempt, applied in ((0, 0), (1, 1), (0, 0)):
        world.client.calls.clear()
        await world.reconciler._launch(training, replace(launch, attempt=attempt))
        assert world.client.calls.count("apply ServiceAccount") == applied
        assert world.client.calls[-2:] == ["apply ConfigMap", "apply Job"]


def launches_of(training: StackedTraining) -> list[Launch]:
    operator = Operator(training)
    operator.look()
    operator.step()
    return list(operator.cluster.launches.values())


async def test_a_job_without_pods_says_why() -> None:
    world = World()
    await world.passes()
    await world.passes()
    assert world.status["message"] == "math/prepare: its pod is starting"
    world.now += PATIENCE
    message = "exceeded quota: team, requested: pods=1, used: pods=9, limited: pods=9"
    world.client.events = [
        {"lastTimestamp": "2026-01-01T00:00:05Z", "message": message},
        {"lastTimestamp": "2026-01-01T00:00:01Z", "message": "an older one"},
    ]
    await world.passes()
    assert world.client.calls[0] == "list"
    assert world.status["message"] == f"math/prepare: waiting: {message}"


STACK_SCHEMA = stacked_training_crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"][
    "properties"
]


def documents(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Whatever fits the structure of a schema; its rules between fields may refuse it."""
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    return {
        "object": objects,
        "array": lists,
        "integer": integers,
        "boolean": lambda _: st.booleans(),
        "string": strings,
    }[schema["type"]](schema)


def objects(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    needed = set(schema.get("required", ()))
    fields = {name: documents(field) for name, field in schema["properties"].items()}
    return st.fixed_dictionaries(
        {name: value for name, value in fields.items() if name in needed},
        optional={name: value for name, value in fields.items() if name not in needed},
    )


def lists(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    return st.lists(documents(schema["items"]), min_size=schema.get("minItems", 0), max_size=3)


def integers(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    least, most = schema.get("minimum", -(2**63)), schema.get("maximum", 2**63 - 1)
    return st.just(max(1, least)) | st.integers(least, most)


def strings(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    if "pattern" in schema:
        return st.from_regex(schema["pattern"], fullmatch=True)
    likely = st.sampled_from(["1", "0.5", "0", "2e-6", "a", "b", "owner/x", "json", "7d", "1Ti"])
    return likely | st.text(max_size=schema.get("maxLength", 300))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(fields=documents(STACK_SCHEMA["spec"]))
async def test_any_json_of_the_schema_is_accepted_or_refused_with_a_condition(
    fields: dict[str, Any],
) -> None:
    world = World(fields)
    await world.passes()
    conditions = {c["type"]: c["status"] for c in world.status["conditions"]}
    assert conditions["Accepted"] in {"True", "False"}
    assert world.status["message"]
    assert not faults(STACK_SCHEMA["status"], world.status)


async def test_a_list_from_the_past_is_asked_for_again_but_not_for_ever() -> None:
    world = World()
    await world.passes()
    world.lose_the_job()
    world.client.lags = 90
    with pytest.raises(Unavailable, match="the list of jobs is older than what was seen"):
        await world.passes()
    assert world.client.calls == ["list"]
    world.reconciler._failures[KEY] = STALE_ANSWERS
    await world.passes()
    assert "create events Vanished" in world.client.calls


async def test_pods_and_jobs_whose_deletion_no_watch_told_of_are_found_gone() -> None:
    world = World()
    await world.passes()
    (job,) = world.mirror.observed(KEY).jobs
    labels = {
        TRAINING_LABEL: "elle",
        UID_LABEL: "uid-1",
        JOB_NAME_LABEL: job.name,
    }
    meta = {"name": "pod", "namespace": "default", "resourceVersion": "100", "labels": labels}
    pod = {"metadata": meta, "spec": {}, "status": {"phase": "Running"}}
    world.mirror.put("Pod", pod)
    world.client.listed = [pod]
    await world.reconciler._doubt()
    assert not world.reconciler._doubted, "it is there"
    world.client.listed = []
    await world.reconciler._doubt()
    assert world.reconciler._doubted == {KEY}
    await world.passes()
    assert not world.mirror.observed(KEY).pods
    assert not world.reconciler._doubted


async def test_a_job_without_pods_is_doubted() -> None:
    world = World()
    await world.passes()
    await world.reconciler._doubt()
    assert world.reconciler._doubted == {KEY}


async def test_nothing_starts_on_a_volume_that_goes_with_an_earlier_stack_of_the_name() -> None:
    world = World(spec(storage={"size": "1Ti"}))
    world.client.fails["create persistentvolumeclaims"] = Conflict("it exists")
    claim = ("PersistentVolumeClaim", "elle-store")
    world.client.objects[claim] = {"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}
    await world.passes()
    assert "claim elle-store is still being deleted" in world.status["message"]
    assert not [kind for kind, _ in world.client.objects if kind == "Job"]
    del world.client.fails["create persistentvolumeclaims"]
    await world.passes()
    assert [kind for kind, _ in world.client.objects if kind == "Job"]


async def test_a_volume_that_is_there_keeps_its_class_whatever_the_settings_say() -> None:
    world = World(spec(storage={"size": "1Ti"}), Settings(storage_class="block"))
    world.client.fails["create persistentvolumeclaims"] = Conflict("it exists")
    await world.passes()
    assert world.client.calls[:3] == [
        "create persistentvolumeclaims",
        "apply PersistentVolumeClaim",
        "apply ServiceAccount",
    ]
    claims = [obj for (kind, _), obj in world.client.objects.items() if "Volume" in kind]
    assert ["storageClassName" in claim["spec"] for claim in claims] == [False]
