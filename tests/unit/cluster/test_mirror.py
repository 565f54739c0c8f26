"""What the watches have shown, and what decisions see of it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from tests.unit.cluster.test_measurements import stack
from tests.unit.core.builders import report

from latticeforge_operator.cluster.client import Listing
from latticeforge_operator.cluster.mirror import Mirror, job_view, pod_view, reports

KEY = ("default", "elle")
DIGEST = "d" * 64


def meta(name: str, version: int = 1, **fields: Any) -> dict[str, Any]:
    return {
        "name": name,
        "namespace": "default",
        "uid": f"uid-of-{name}",
        "resourceVersion": str(version),
        "creationTimestamp": "2026-01-01T00:00:00Z",
        **fields,
    }


def training(version: int = 1, **fields: Any) -> dict[str, Any]:
    return {"metadata": meta("elle", version, **{"generation": 1, **fields}), "spec": {}}


def child(
    name: str, version: int = 1, *, owner: str = "uid-of-elle", **body: Any
) -> dict[str, Any]:
    labels = {
        "latticeforge.dev/training": "elle",
        "latticeforge.dev/training-uid": owner,
        "batch.kubernetes.io/job-name": "job",
        "kueue.x-k8s.io/queue-name": "research",
    }
    annotations = {
        "latticeforge.dev/digest": DIGEST,
        "latticeforge.dev/step": "math/train",
        "latticeforge.dev/attempt": "2",
    }
    more = body.pop("meta", {})
    described = meta(name, version, labels=labels, annotations=annotations, **more)
    return {"metadata": described, "spec": {}, **body}


def condition(kind: str, status: str = "True", second: int = 0, **fields: str) -> dict[str, str]:
    time = f"2026-01-01T00:00:{second:02}Z"
    return {"type": kind, "status": status, "lastTransitionTime": time, **fields}


def at(second: int) -> datetime:
    return datetime(2026, 1, 1, 0, 0, second, tzinfo=UTC)


@pytest.fixture
def mirror() -> Mirror:
    made = Mirror()
    made.put("StackedTraining", training())
    return made


def names(mirror: Mirror) -> list[str]:
    return [job.name for job in mirror.observed(KEY).jobs]


# --- what is known


def test_what_a_stack_has_measured_is_observed_by_all(mirror: Mirror) -> None:
    mirror.put("StackedTraining", {"metadata": meta("other"), **stack()})
    assert len(mirror.observed(KEY).history.measured) == 1
    mirror.remove("StackedTraining", {"metadata": meta("other", 2), **stack()})
    assert mirror.observed(KEY).history.measured == ()


def test_an_older_version_never_replaces_a_newer_one(mirror: Mirror) -> None:
    newer = child("job", 9, status={"conditions": [condition("Complete")]})
    mirror.put("Job", newer)
    mirror.put("Job", child("job", 8))
    assert mirror.observed(KEY).jobs[0].succeeded


def test_a_late_deletion_does_not_remove_what_was_made_since(mirror: Mirror) -> None:
    mirror.put("Job", child("job", 9))
    mirror.remove("Job", child("job", 8))
    assert names(mirror) == ["job"]
    mirror.remove("Job", child("job", 10))
    assert names(mirror) == []


def test_the_answer_to_a_change_does_not_revive_what_was_deleted(mirror: Mirror) -> None:
    mirror.put("Job", child("job", 1))
    mirror.refresh("Job", child("job", 2, spec={"suspend": True}))
    assert mirror.observed(KEY).jobs[0].suspended
    mirror.remove("Job", child("job", 3))
    mirror.refresh("Job", child("job", 2))
    assert names(mirror) == []
    mirror.remove("StackedTraining", training(5))
    mirror.refresh("StackedTraining", training(4))
    assert mirror.training(KEY) is None


def test_a_list_from_before_an_object_was_made_does_not_take_it_away(mirror: Mirror) -> None:
    mirror.put("Job", child("job", 7))
    mirror.replace("Job", KEY, Listing([], version=6))
    assert names(mirror) == ["job"]
    mirror.replace("Job", KEY, Listing([], version=7))
    assert names(mirror) == []


def test_the_answer_to_a_change_is_news_when_others_changed_more(mirror: Mirror) -> None:
    mirror.put("StackedTraining", training(6))
    assert mirror.refresh("StackedTraining", training(7)) == []
    edited = training(8)
    edited["metadata"]["generation"] = 2
    assert mirror.refresh("StackedTraining", edited) == [KEY]


def test_children_of_a_deleted_namesake_are_not_seen(mirror: Mirror) -> None:
    for kind in ("Job", "Pod"):
        mirror.put(kind, child("old", owner="uid-before"))
        mirror.put(kind, child("own"))
    assert names(mirror) == ["own"]
    assert [pod.name for pod in mirror.observed(KEY).pods] == ["own"]


def test_a_fresh_list_takes_away_what_it_lacks_but_not_what_came_since(mirror: Mirror) -> None:
    mirror.put("Job", child("gone", 1))
    mirror.put("Pod", child("pod", 1))
    mirror.put("Job", child("new", 5))
    mirror.replace("Job", KEY, Listing([child("other", 2)], version=3))
    assert sorted(names(mirror)) == ["new", "other"]
    assert mirror.names("Pod", KEY) == {"pod"}


def test_with_a_stack_its_children_are_forgotten(mirror: Mirror) -> None:
    mirror.put("Job", child("job"))
    mirror.remove("StackedTraining", training(2))
    mirror.put("StackedTraining", training(3))
    assert names(mirror) == []
    assert mirror.trainings() == [KEY]


# --- who is woken


def test_children_and_pools_wake_the_stacks_that_they_concern(mirror: Mirror) -> None:
    assert mirror.put("Job", child("job")) == [KEY]
    assert mirror.remove("Pod", child("pod")) == [KEY]
    assert mirror.put("GPUPool", {"metadata": {"name": "h200"}, "spec": {}}) == [KEY]
    assert mirror.put("Job", {"metadata": {"name": "alien", "namespace": "default"}}) == []


def test_a_status_write_is_no_news_but_everything_that_users_do_is(mirror: Mirror) -> None:
    def changed(version: int, **fields: Any) -> bool:
        return bool(mirror.put("StackedTraining", training(version, **fields)))

    assert not changed(2)
    assert changed(3, annotations={"latticeforge.dev/approve": "cic"})
    assert changed(4)
    assert changed(5, generation=2)
    assert changed(6, generation=2, deletionTimestamp="2026-01-01T00:00:00Z")
    assert mirror.remove("StackedTraining", training(7)) == [KEY]
    assert changed(8)


# --- views


def test_job_view() -> None:
    conditions = [
        condition("FailureTarget"),
        condition("Failed", second=7, reason="BackoffLimitExceeded", message="it has"),
    ]
    view = job_view(
        child(
            "job",
            spec={"suspend": True},
            status={"conditions": conditions},
            meta={"deletionTimestamp": "x"},
        )
    )
    assert (view.name, view.step, view.digest, view.attempt) == ("job", "math/train", DIGEST, 2)
    assert (view.failed, view.succeeded, view.suspended, view.deleting) == (True, False, True, True)
    assert view.queue == "research"
    assert (view.reason, view.message) == ("BackoffLimitExceeded", "it has")
    assert (view.created_at, view.finished_at) == (at(0), at(7))


def test_a_job_that_is_about_to_end_has_not_ended() -> None:
    view = job_view(child("job", status={"conditions": [condition("SuccessCriteriaMet")]}))
    assert not view.finished
    assert view.finished_at is None


def pod(phase: str, *containers: dict[str, Any], conditions: Any = ()) -> dict[str, Any]:
    status = {"phase": phase, "conditions": list(conditions), "containerStatuses": list(containers)}
    return child("pod", status=status)


def container(name: str = "trainer", **state: Any) -> dict[str, Any]:
    return {"name": name, "state": state}


def ended(code: int, second: int) -> dict[str, Any]:
    return {"exitCode": code, "finishedAt": f"2026-01-01T00:00:{second:02}Z"}


def test_a_running_pod_holds_from_when_it_was_scheduled() -> None:
    view = pod_view(
        pod("Running", container(running={}), conditions=[condition("PodScheduled", second=3)])
    )
    assert (view.job, view.scheduled_at, view.finished_at) == ("job", at(3), None)
    assert view.active
    assert view.exit_code is None


def test_a_pod_ends_with_its_last_container_and_the_trainers_code_counts() -> None:
    sidecar = container("sidecar", terminated=ended(143, 9))
    view = pod_view(pod("Failed", sidecar, container(terminated=ended(82, 5))))
    assert (view.exit_code, view.finished_at, view.active) == (82, at(9), False)


def test_a_pod_whose_sidecar_still_runs_still_holds() -> None:
    view = pod_view(
        pod("Running", container(terminated=ended(0, 5)), container("sidecar", running={}))
    )
    assert (view.active, view.finished_at, view.exit_code) == (True, None, 0)


def test_an_evicted_pod_ends_when_that_was_noticed() -> None:
    conditions = [condition("PodScheduled", second=1), condition("DisruptionTarget", second=8)]
    view = pod_view(pod("Failed", container(waiting={}), conditions=conditions))
    assert (view.disrupted, view.finished_at, view.exit_code) == (True, at(8), None)


@pytest.mark.parametrize(
    ("obj", "waiting"),
    [
        (
            pod(
                "Pending",
                conditions=[
                    condition("PodScheduled", "False", reason="Unschedulable", message="0/3 nodes")
                ],
            ),
            "0/3 nodes",
        ),
        (
            pod(
                "Pending", conditions=[condition("PodScheduled", "False", reason="SchedulingGated")]
            ),
            "SchedulingGated",
        ),
        (pod("Pending", container(waiting={"reason": "ContainerCreating"})), ""),
        (
            pod(
                "Pending",
                container(waiting={"reason": "ImagePullBackOff", "message": "no such image"}),
            ),
            "ImagePullBackOff: no such image",
        ),
        (pod("Pending", container(waiting={"reason": "ErrImagePull"})), "ErrImagePull"),
        (pod("Running", container(running={})), ""),
        (child("pod"), ""),
    ],
)
def test_why_a_pod_waits(obj: dict[str, Any], waiting: str) -> None:
    assert pod_view(obj).waiting == waiting


# --- reports


@pytest.mark.parametrize(
    ("state", "because"),
    [
        (ended(0, 1) | {"reason": "Completed"}, ""),
        (ended(1, 1) | {"reason": "Error", "message": "Traceback"}, ""),
        (ended(137, 1) | {"reason": "OOMKilled"}, "OOMKilled"),
        (
            ended(128, 1) | {"reason": "StartError", "message": "runc:\nno such file: python\n"},
            "StartError: no such file: python",
        ),
    ],
    ids=["done", "error", "host memory", "start"],
)
def test_what_the_kubelet_says_of_an_end_is_kept(state: dict[str, Any], because: str) -> None:
    view = pod_view(pod("Failed", container(terminated=state)))
    assert view.ended_because == because


def test_a_pod_says_where_it_runs() -> None:
    assert pod_view(child("pod", status={})).node == ""
    assert pod_view(child("pod") | {"spec": {"nodeName": "n1"}}).node == "n1"


def config_map(text: str | None, name: str = "progress") -> dict[str, Any]:
    return child(name, data={} if text is None else {"math.train.progress.json": text})


def test_a_report_belongs_to_its_step_and_digest(mirror: Mirror) -> None:
    said = report("math/train", DIGEST, fraction=0.5)
    text = said.model_dump_json(by_alias=True)
    assert reports(config_map(text)) == {("math/train", DIGEST): said}
    mirror.put("ConfigMap", config_map(text))
    mirror.put("ConfigMap", child("config", data={"step.json": "{}"}))
    assert mirror.observed(KEY).progress == {("math/train", DIGEST): said}


@pytest.mark.parametrize(
    "text",
    [
        None,
        "no JSON",
        '{"schemaVersion": 2}',
        report("math/train", DIGEST)
        .model_copy(update={"updated_at": "today"})
        .model_dump_json(by_alias=True),
        report("math/train", DIGEST)
        .model_copy(update={"updated_at": "2026-01-01T00:00:00"})
        .model_dump_json(by_alias=True),
    ],
    ids=["none", "broken", "newer", "no time", "no zone"],
)
def test_unreadable_reports_are_none(text: str | None) -> None:
    assert reports(config_map(text)) == {}


def test_a_pool_that_no_api_server_accepts_is_absent(mirror: Mirror) -> None:
    mirror.put("GPUPool", {"metadata": {"name": "good"}, "spec": {"accelerator": "H200"}})
    mirror.put("GPUPool", {"metadata": {"name": "bad"}, "spec": {"accelerator": "abacus"}})
    assert [pool.name for pool in mirror.observed(KEY).pools] == ["good"]


def test_the_trainer_runs_from_when_its_container_started() -> None:
    begun = {"startedAt": "2026-01-01T00:00:07Z"}
    assert pod_view(pod("Running", container(running=begun))).started_at == at(7)
    assert pod_view(pod("Failed", container(terminated=ended(1, 9) | begun))).started_at == at(7)
    assert pod_view(pod("Pending", container(waiting={"reason": "x"}))).started_at is None
    assert pod_view(pod("Pending", container("sidecar", running=begun))).started_at is None


@pytest.mark.parametrize(
    ("code", "message", "tail"),
    [
        (1, "Traceback\n  boom\n", "Traceback\n  boom"),
        (0, "all is well", ""),
        (1, "x" * 3000 + "end", "x" * 2045 + "end"),
        (1, "sent hf_abcdefghijklmnop to the Hub", "sent hf_*** to the Hub"),
    ],
    ids=["failed", "done", "long", "token"],
)
def test_the_end_of_a_failed_log_is_kept_without_tokens(code: int, message: str, tail: str) -> None:
    state = ended(code, 1) | {"message": message}
    assert pod_view(pod("Failed", container(terminated=state))).log_tail == tail


def test_only_news_wakes_a_stack(mirror: Mirror) -> None:
    first = child("pod", 5, status={"phase": "Running"})
    assert mirror.put("Pod", first) == [KEY]
    same = child("pod", 6, status={"phase": "Running", "podIP": "10.0.0.1"})
    assert mirror.put("Pod", same) == []
    assert mirror.put("Pod", child("pod", 7, status={"phase": "Failed"})) == [KEY]
    assert mirror.put("Pod", first) == []
    assert mirror.remove("Pod", child("pod", 8, status={"phase": "Failed"})) == [KEY]


def test_a_complaint_lasts_until_the_job_moves(mirror: Mirror) -> None:
    mirror.complain(KEY, "unknown", "no")
    mirror.put("Job", child("job", 3))
    mirror.complain(KEY, "job", "exceeded quota: gpus")
    assert [job.complaint for job in mirror.observed(KEY).jobs] == ["exceeded quota: gpus"]
    mirror.put("Job", child("job", 4))
    assert [job.complaint for job in mirror.observed(KEY).jobs] == [""]
