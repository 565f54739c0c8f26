"""What holds for every Job whatever happens to its pods, found out by Hypothesis."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from itertools import count
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from tests.unit.devcluster_pods.builders import NOW, at, job

from latticeforge_operator.devcluster.controllers.job_pods import FINALIZER, index_of
from latticeforge_operator.devcluster.controllers.jobs import decide, is_over
from latticeforge_operator.devcluster.controllers.objects import (
    is_active,
    is_deleted,
    is_finished,
    is_true,
)

POLICY = {
    "rules": [
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]},
        {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [42]}},
    ]
}


class JobLife(RuleBasedStateMachine):
    """A Job and a world in which pods start, end, are deleted and are evicted at any time."""

    @initialize(
        completions=st.integers(1, 4),
        parallelism=st.integers(0, 4),
        is_indexed=st.booleans(),
        policy=st.sampled_from([{}, {"podFailurePolicy": POLICY}]),
        limit=st.integers(0, 3),
    )
    def begin(
        self,
        completions: int,
        parallelism: int,
        is_indexed: bool,
        policy: dict[str, Any],
        limit: int,
    ) -> None:
        self.job = job(
            completions=completions, parallelism=parallelism, backoffLimit=limit, **policy
        )
        if is_indexed:
            self.job["spec"]["completionMode"] = "Indexed"
        self.pods: dict[str, dict[str, Any]] = {}
        self.names = count()
        self.now = NOW
        self.waits_for_end = bool(policy)

    @rule(seconds=st.sampled_from([0, 1, 700]))
    def reconcile(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)
        was_over = is_over(self.job)
        pods = list(self.pods.values())
        actions = decide(self.job, pods, self.now)
        again = decide(self.job, pods, self.now)
        assert actions == again
        assert not (was_over and actions.create)
        self.job["status"] = actions.status
        for name in (*actions.release, *actions.discard):
            finalizers = self.pods[name]["metadata"]["finalizers"]
            finalizers.remove(FINALIZER)
            self._settle(name)
        for name in (*actions.discard, *actions.delete):
            self._delete(name)
        for made in actions.create:
            self._admit(made)

    def _admit(self, made: dict[str, Any]) -> None:
        name = f"p{next(self.names)}"
        metadata = {**made["metadata"], "name": name, "namespace": "n"}
        metadata["creationTimestamp"] = at(0)
        self.pods[name] = {**made, "metadata": metadata, "status": {"phase": "Pending"}}

    def _delete(self, name: str) -> None:
        if name in self.pods:
            self.pods[name]["metadata"]["deletionTimestamp"] = at(0)
            self._settle(name)

    def _settle(self, name: str) -> None:
        """Removes what is deleted, has ended (or never ran), and is held by no finalizer."""
        found = self.pods[name]
        ended = is_finished(found) or not found["spec"].get("nodeName")
        if is_deleted(found) and ended and not found["metadata"]["finalizers"]:
            del self.pods[name]

    def _choose(self, data: st.DataObject) -> dict[str, Any] | None:
        running = [pod for pod in self.pods.values() if not is_finished(pod)]
        return data.draw(st.sampled_from(running)) if running else None

    @rule(data=st.data())
    def bind(self, data: st.DataObject) -> None:
        if (found := self._choose(data)) and not is_deleted(found):
            found["spec"]["nodeName"] = "devcluster"
            found["status"]["phase"] = "Running"

    @rule(data=st.data(), code=st.sampled_from([0, 0, 1, 42]))
    def end(self, data: st.DataObject, code: int) -> None:
        found = self._choose(data)
        if found is None or not found["spec"].get("nodeName"):
            return
        terminated = {"exitCode": code, "finishedAt": at((self.now - NOW).total_seconds())}
        found["status"]["phase"] = "Failed" if code else "Succeeded"
        found["status"]["containerStatuses"] = [
            {"name": "main", "state": {"terminated": terminated}}
        ]
        self._settle(found["metadata"]["name"])

    @rule(data=st.data(), evicted=st.booleans())
    def delete(self, data: st.DataObject, evicted: bool) -> None:
        if found := self._choose(data):
            if evicted:
                target = {"type": "DisruptionTarget", "status": "True"}
                found["status"]["conditions"] = [target]
            self._delete(found["metadata"]["name"])

    @rule(suspend=st.booleans(), parallelism=st.integers(0, 4))
    def edit(self, suspend: bool, parallelism: int) -> None:
        self.job["spec"] |= {"suspend": suspend, "parallelism": parallelism}
        self.reconcile(0)

    def _live(self) -> list[dict[str, Any]]:
        def holds_its_place(pod: dict[str, Any]) -> bool:
            placed = bool(pod["spec"].get("nodeName"))
            return is_active(pod) or (self.waits_for_end and placed and not is_finished(pod))

        return [pod for pod in self.pods.values() if holds_its_place(pod)]

    @invariant()
    def an_index_has_at_most_one_live_pod(self) -> None:
        if self.job["spec"].get("completionMode") == "Indexed":
            counts = Counter(index_of(pod) for pod in self._live())
            assert not counts or max(counts.values()) == 1

    @rule()
    def parallelism_is_kept(self) -> None:
        self.reconcile(0)
        active = [pod for pod in self.pods.values() if is_active(pod)]
        assert len(active) <= self.job["spec"]["parallelism"]

    @invariant()
    def completions_are_reached_when_complete(self) -> None:
        if is_true(self.job, "Complete"):
            assert self.job["status"]["succeeded"] >= self.job["spec"]["completions"]

    @invariant()
    def nothing_runs_when_it_is_over(self) -> None:
        if is_over(self.job):
            assert all(
                is_finished(pod) for pod in self.pods.values() if pod["spec"].get("nodeName")
            )
            assert not any(is_active(pod) for pod in self.pods.values())

    def teardown(self) -> None:
        """Left alone, with pods that succeed from now on, the Job ends, well or not."""
        if not hasattr(self, "job"):
            return
        self.job["spec"] |= {"suspend": False, "parallelism": 2}
        for _ in range(40):
            if is_over(self.job):
                break
            self.reconcile(700)
            for found in [pod for pod in self.pods.values() if not is_finished(pod)]:
                found["spec"]["nodeName"] = "devcluster"
                found["status"]["phase"] = "Succeeded"
                self._settle(found["metadata"]["name"])
        assert is_over(self.job)


TestJobLife = JobLife.TestCase
TestJobLife.settings = settings(max_examples=200, stateful_step_count=25, deadline=None)
