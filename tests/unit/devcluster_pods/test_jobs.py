"""What a Job does next, case by case."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from tests.unit.devcluster_pods.builders import NOW, at, indexed, job, pod

from latticeforge_operator.devcluster.controllers import job_pods
from latticeforge_operator.devcluster.controllers.jobs import Actions, decide

IGNORE_DISRUPTION = {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]}


def after(seconds: float, of: dict[str, Any], *pods: dict[str, Any]) -> Actions:
    return decide(of, pods, NOW + timedelta(seconds=seconds))


def conditions(actions: Actions) -> dict[str, str]:
    """Reasons of the conditions that are True."""
    found = actions.status.get("conditions") or []
    return {c["type"]: c["reason"] for c in found if c["status"] == "True"}


def ended(**status: Any) -> dict[str, Any]:
    """The status of a Job for which the verdict has been given."""
    verdict = {
        "type": "FailureTarget",
        "status": "True",
        "reason": "BackoffLimitExceeded",
        "message": "Job has reached the specified backoff limit",
        "lastTransitionTime": at(0),
    }
    return {"conditions": [verdict], "startTime": at(0), **status}


def test_a_new_job_starts_as_many_pods_as_run_in_parallel() -> None:
    actions = after(0, job(completions=5, parallelism=2))
    assert len(actions.create) == 2
    assert actions.status["active"] == 2
    assert actions.status["startTime"] == at(0)


def test_never_more_pods_than_completions_are_missing() -> None:
    done = {"succeeded": 4, "startTime": at(0)}
    assert len(after(0, job(done, completions=5, parallelism=3)).create) == 1


def test_an_indexed_pod_knows_its_index() -> None:
    made = after(0, indexed(2)).create[1]
    metadata, spec = made["metadata"], made["spec"]
    assert metadata["annotations"][job_pods.INDEX] == "1"
    assert metadata["labels"][job_pods.INDEX] == "1"
    assert spec["hostname"] == "j-1"
    assert metadata["generateName"] == "j-1-"
    assert [env["name"] for env in spec["containers"][0]["env"]] == ["JOB_COMPLETION_INDEX"]
    assert metadata["ownerReferences"][0]["controller"] is True


def test_an_index_given_by_the_template_is_kept() -> None:
    container = {"name": "main", "env": [{"name": "JOB_COMPLETION_INDEX", "value": "mine"}]}
    template = {"spec": {"containers": [container]}}
    made = after(0, indexed(1, template=template)).create[0]
    assert made["spec"]["containers"][0]["env"] == container["env"]


def test_a_failed_index_is_tried_again_and_a_done_one_is_not() -> None:
    pods = [pod("a", "Succeeded", index=0), pod("b", "Failed", index=1)]
    actions = after(10, indexed(2, backoffLimit=1), *pods)
    assert [job_pods.index_of(made) for made in actions.create] == [1]
    assert actions.status["completedIndexes"] == "0"
    assert (actions.status["succeeded"], actions.status["failed"]) == (1, 1)
    assert set(actions.release) == {"a", "b"}


def test_a_pod_is_counted_once() -> None:
    counted = pod("a", "Failed", counted=True)
    actions = after(0, job({"failed": 1, "startTime": at(0)}), counted)
    assert actions.status["failed"] == 1
    assert actions.release == ()


def test_two_pods_of_one_index_are_reduced_to_one() -> None:
    pods = [pod("a", index=0), pod("b", index=0), pod("c", index=1)]
    actions = after(0, indexed(2), *pods)
    assert actions.discard in {("a",), ("b",)}
    assert actions.create == ()


def test_scaling_down_ends_pods_without_failing_the_job() -> None:
    pods = [pod("a", conditions=("Ready",)), pod("b")]
    actions = after(0, job(completions=5, parallelism=1, backoffLimit=0), *pods)
    assert actions.discard == ("b",)
    assert actions.delete == ()
    assert "FailureTarget" not in conditions(actions)


@pytest.mark.parametrize(("failures", "seconds"), [(1, 10), (2, 20), (3, 40), (4, 80), (30, 600)])
def test_each_failure_doubles_the_wait(failures: int, seconds: int) -> None:
    pods = [pod(f"p{i}", "Failed", counted=True) for i in range(failures)]
    waiting = job({"failed": failures, "startTime": at(0)}, backoffLimit=99)
    before = after(seconds - 1, waiting, *pods)
    assert before.create == ()
    assert before.wake_at == NOW + timedelta(seconds=seconds)
    assert len(after(seconds, waiting, *pods).create) == 1


def test_a_success_ends_the_wait() -> None:
    pods = [pod("a", "Failed", ended=0), pod("b", "Succeeded", ended=1)]
    assert len(after(1, job(completions=3, parallelism=1), *pods).create) == 1


def test_past_the_backoff_limit_the_job_fails_once_its_pods_are_gone() -> None:
    pods = [pod("a", "Failed", index=0), pod("b", index=1)]
    first = after(0, indexed(2, backoffLimit=0), *pods)
    assert conditions(first) == {"FailureTarget": "BackoffLimitExceeded"}
    assert first.delete == ("b",)
    assert first.create == ()

    going = indexed(2, first.status, backoffLimit=0)
    second = after(1, going, pod("a", "Failed", index=0, counted=True), pod("b", deleted=True))
    assert "Failed" not in conditions(second)
    assert second.status["terminating"] == 1

    gone = indexed(2, second.status, backoffLimit=0)
    third = after(2, gone, pod("a", "Failed", index=0, counted=True))
    assert conditions(third)["Failed"] == "BackoffLimitExceeded"
    assert [event.reason for event in third.events] == ["BackoffLimitExceeded"]


@pytest.mark.parametrize(
    ("limit", "restarts", "fails"), [(2, 1, False), (2, 2, True), (0, 1, True)]
)
def test_restarts_of_containers_count_as_failures(limit: int, restarts: int, fails: bool) -> None:
    template = {"spec": {"restartPolicy": "OnFailure", "containers": [{"name": "main"}]}}
    running = pod("a")
    running["status"]["containerStatuses"] = [{"name": "main", "restartCount": restarts}]
    actions = after(0, job(template=template, backoffLimit=limit), running)
    assert ("FailureTarget" in conditions(actions)) == fails


def test_all_done_is_complete() -> None:
    actions = after(5, job(), pod("a", "Succeeded"))
    assert conditions(actions) == {
        "SuccessCriteriaMet": "CompletionsReached",
        "Complete": "CompletionsReached",
    }
    assert actions.status["completionTime"] == at(5)
    assert [event.reason for event in actions.events] == ["Completed"]


def test_done_waits_for_a_pod_that_is_still_ending() -> None:
    actions = after(5, job(), pod("a", "Succeeded"), pod("b", deleted=True))
    assert conditions(actions) == {"SuccessCriteriaMet": "CompletionsReached"}
    assert "completionTime" not in actions.status


def test_after_complete_nothing_is_created() -> None:
    over = job(after(5, job(), pod("a", "Succeeded")).status, completions=9, parallelism=9)
    actions = after(6, over)
    assert (actions.create, actions.status) == ((), over["status"])


def test_a_work_queue_is_done_when_one_succeeded_and_none_runs() -> None:
    queue = job(parallelism=2)
    del queue["spec"]["completions"]
    running = after(0, queue, pod("a", "Succeeded"), pod("b"))
    assert (running.create, running.discard, conditions(running)) == ((), (), {})
    done = after(0, queue, pod("a", "Succeeded"), pod("b", "Succeeded"))
    assert "Complete" in conditions(done)


@pytest.mark.parametrize(
    ("rule", "code", "outcome"),
    [
        ({"action": "FailJob", "onExitCodes": {"operator": "In", "values": [42]}}, 42, "fail"),
        ({"action": "FailJob", "onExitCodes": {"operator": "In", "values": [42]}}, 1, "count"),
        ({"action": "FailJob", "onExitCodes": {"operator": "NotIn", "values": [42]}}, 1, "fail"),
        ({"action": "Ignore", "onExitCodes": {"operator": "In", "values": [7]}}, 7, "ignore"),
        ({"action": "Count", "onExitCodes": {"operator": "In", "values": [7]}}, 7, "count"),
        (
            {
                "action": "FailJob",
                "onExitCodes": {"containerName": "other", "operator": "In", "values": [42]},
            },
            42,
            "count",
        ),
    ],
)
def test_exit_codes_decide(rule: dict[str, Any], code: int, outcome: str) -> None:
    ruled = job(podFailurePolicy={"rules": [rule]})
    actions = after(0, ruled, pod("a", "Failed", code=code))
    assert actions.status["failed"] == (outcome != "ignore")
    assert (conditions(actions).get("Failed") == "PodFailurePolicy") == (outcome == "fail")


def test_the_first_matching_rule_counts() -> None:
    codes = {"operator": "In", "values": [42]}
    rules = [IGNORE_DISRUPTION, {"action": "FailJob", "onExitCodes": codes}]
    ruled = job(podFailurePolicy={"rules": rules})
    evicted = pod("a", "Failed", code=42, conditions=("DisruptionTarget",))
    assert after(0, ruled, evicted).status["failed"] == 0
    message = after(0, ruled, pod("b", "Failed", code=42)).status["conditions"][-1]["message"]
    assert message == (
        "Container main for pod n/b failed with exit code 42 matching FailJob rule at index 1"
    )


def test_a_disruption_is_retried_and_not_counted() -> None:
    ruled = job(podFailurePolicy={"rules": [IGNORE_DISRUPTION]}, backoffLimit=0)
    evicted = pod("a", "Failed", code=143, conditions=("DisruptionTarget",), deleted=True)
    actions = after(60, ruled, evicted)
    assert (actions.status["failed"], len(actions.create)) == (0, 1)


@pytest.mark.parametrize(
    ("spec", "replaced"),
    [
        ({}, True),
        ({"podReplacementPolicy": "Failed"}, False),
        ({"podFailurePolicy": {"rules": [IGNORE_DISRUPTION]}}, False),
    ],
)
def test_when_a_terminating_pod_is_replaced(spec: dict[str, Any], replaced: bool) -> None:
    actions = after(60, indexed(1, **spec), pod("a", index=0, deleted=True))
    assert bool(actions.create) == replaced
    assert bool(after(60, job(**spec), pod("a", deleted=True)).create) == replaced
    assert actions.status["failed"] == replaced
    assert actions.status["terminating"] == 1


def test_only_indexes_that_nobody_holds_are_tried_again() -> None:
    pods = [pod("a", index=0, deleted=True), pod("b", "Failed", index=1)]
    actions = after(60, indexed(2, podReplacementPolicy="Failed"), *pods)
    assert [job_pods.index_of(made) for made in actions.create] == [1]


def test_a_pod_deleted_before_it_had_a_node_holds_nothing() -> None:
    waiting = pod("a", "Pending", index=0, deleted=True, node=None)
    actions = after(60, indexed(1, podReplacementPolicy="Failed"), waiting)
    assert actions.release == ("a",)
    assert len(actions.create) == 1


def test_suspending_ends_pods_without_counting_them() -> None:
    running = {"startTime": at(0), "active": 1}
    actions = after(5, job(running, suspend=True, backoffLimit=0), pod("a"))
    assert (actions.discard, actions.delete, actions.create) == (("a",), (), ())
    assert conditions(actions) == {"Suspended": "JobSuspended"}
    assert (actions.status["failed"], actions.status["active"]) == (0, 0)


def test_resuming_starts_the_clock_again() -> None:
    suspended = after(5, job({"startTime": at(0)}, suspend=True)).status
    actions = after(1000, job(suspended, activeDeadlineSeconds=60))
    assert actions.status["startTime"] == at(1000)
    assert conditions(actions) == {}
    assert [event.reason for event in actions.events] == ["Resumed"]
    assert actions.wake_at == NOW + timedelta(seconds=1060)


def test_a_suspended_job_has_no_deadline() -> None:
    suspended = job({"startTime": at(0)}, suspend=True, activeDeadlineSeconds=60)
    assert conditions(after(1000, suspended)) == {"Suspended": "JobSuspended"}


def test_past_its_deadline_a_job_fails() -> None:
    running = job({"startTime": at(0)}, activeDeadlineSeconds=60)
    early = after(59, running, pod("a"))
    assert (conditions(early), early.wake_at) == ({}, NOW + timedelta(seconds=60))
    late = after(60, running, pod("a"))
    assert conditions(late) == {"FailureTarget": "DeadlineExceeded"}
    assert late.delete == ("a",)


def test_a_finished_job_is_removed_when_its_time_is_over() -> None:
    status = after(0, job(), pod("a", "Succeeded")).status
    over = job(status, ttlSecondsAfterFinished=30)
    assert after(29, over).wake_at == NOW + timedelta(seconds=30)
    assert not after(29, over).remove
    assert after(30, over).remove


def test_a_job_that_is_being_deleted_starts_nothing() -> None:
    dying = job()
    dying["metadata"]["deletionTimestamp"] = at(0)
    assert after(0, dying).create == ()


@pytest.mark.parametrize("field", ["backoffLimitPerIndex", "successPolicy", "managedBy"])
def test_what_is_not_supported_is_said(field: str) -> None:
    unsupported = job()
    unsupported["spec"][field] = 1
    actions = after(0, unsupported)
    assert actions.create == ()
    assert f"spec.{field} is not supported" in actions.status["conditions"][-1]["message"]


@pytest.mark.parametrize(
    ("indexes", "text"),
    [([], ""), ([3], "3"), ([1, 0], "0,1"), ([0, 1, 2, 4, 7, 8, 9], "0-2,4,7-9")],
)
def test_indexes_are_written_as_kubernetes_writes_them(indexes: list[int], text: str) -> None:
    assert job_pods.format_indexes(indexes) == text
    assert job_pods.parse_indexes(text) == set(indexes)
