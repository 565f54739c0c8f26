"""The objects of one attempt: valid, restricted, owned, and no more than it needs."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import kubernetes_validate
import pytest
from tests.unit.core.builders import pool, spec, stack, stage
from tests.unit.core.simulation import Cluster, Operator

from latticeforge_operator.api import GPUPool, StackedTraining
from latticeforge_operator.cluster.manifests import (
    attempt_objects,
    first_claim,
    merged,
    shared_objects,
    volume_claim,
)
from latticeforge_operator.cluster.mirror import job_view
from latticeforge_operator.cluster.names import TRAINING_LABEL, UID_LABEL
from latticeforge_operator.cluster.settings import Settings
from latticeforge_operator.core.values import Launch

SETTINGS = Settings(trainer_image="trainer:1")
SECRET = {"name": "hf-token", "key": "HF_TOKEN"}
POOL_WITH_EXTRAS = pool(
    nodeSelector={"gpu": "h200"},
    tolerations=[{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
    podTemplate={
        "metadata": {"labels": {"team": "research"}},
        "spec": {
            "runtimeClassName": "nvidia",
            "containers": [
                {
                    "env": [{"name": "NCCL_DEBUG", "value": "WARN"}],
                    "resources": {"limits": {"rdma/ib": "1"}},
                },
                {"name": "sidecar", "image": "metrics:1"},
            ],
            "volumes": [{"name": "models", "emptyDir": {}}],
        },
    },
)
STACKS = {
    "plain": (spec(), pool()),
    "dots": (spec(storage={"size": "1Ti", "storageClassName": "fast"}), pool()),
    "nodes": (spec(compute={"gpus": 16, "queue": "research"}), pool()),
    "token": (spec(publish={"repository": "owner/x", "tokenSecret": SECRET}), pool()),
    "cpu": (spec(), pool(accelerator="CPU", gpusPerNode=0, pricePerGPUHour="0")),
    "extras": (spec(budget={"limit": "100"}), POOL_WITH_EXTRAS),
    "gated": (spec(stage("s" * 40, evaluate=[{"suite": "json", "minimum": "0.5"}])), pool()),
}
NAMES = {"dots": "7b.math-" + "x" * 55}


def attempts(case: str) -> tuple[StackedTraining, list[Launch]]:
    """Every launch of a stack that runs to its end."""
    fields, gpus = STACKS[case]
    return run(fields, gpus, NAMES.get(case, "elle"))


def run(fields: dict[str, Any], gpus: GPUPool, name: str) -> tuple[StackedTraining, list[Launch]]:
    operator = Operator(stack(fields, name=name), Cluster(pools=(gpus,)))
    operator.look()
    operator.step()
    operator.run()
    return operator.training, list(operator.cluster.launches.values())


def made(case: str) -> list[tuple[Launch, dict[str, dict[str, Any]]]]:
    """The launches with their objects by kind; the two ConfigMaps under their purpose."""
    training, launches = attempts(case)
    return [(launch, by_kind(objects(training, launch, SETTINGS))) for launch in launches]


def objects(training: StackedTraining, launch: Launch, settings: Settings) -> list[dict[str, Any]]:
    """Everything that an attempt needs, the Job last."""
    claim = volume_claim(training, launch, settings)
    return [
        *([first_claim(claim, settings)] if claim is not None else []),
        *shared_objects(training, launch, settings),
        *attempt_objects(training, launch, settings),
    ]


def by_kind(manifests: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {
        m["kind"] + ("/config" if m["kind"] == "ConfigMap" and "data" in m else ""): m
        for m in manifests
    }


def pod_spec(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    spec_: dict[str, Any] = found["Job"]["spec"]["template"]["spec"]
    return spec_


CASES = pytest.mark.parametrize("case", STACKS)


@CASES
def test_every_object_is_valid(case: str) -> None:
    for _, found in made(case):
        for manifest in found.values():
            kubernetes_validate.validate(manifest, "1.37", strict=True)


@CASES
def test_every_object_is_owned_and_labelled(case: str) -> None:
    training, _ = attempts(case)
    for _, found in made(case):
        for manifest in found.values():
            meta = manifest["metadata"]
            assert meta["ownerReferences"] == [
                {
                    "apiVersion": "latticeforge.dev/v1alpha1",
                    "kind": "StackedTraining",
                    "name": training.name,
                    "uid": training.uid,
                    "controller": True,
                    "blockOwnerDeletion": False,
                }
            ]
            assert meta["namespace"] == "default"
            labels = [meta["labels"]]
            if manifest["kind"] == "Job":
                labels.append(manifest["spec"]["template"]["metadata"]["labels"])
            for found_labels in labels:
                assert found_labels[TRAINING_LABEL] == training.name
                assert found_labels[UID_LABEL] == training.uid
                assert all(len(value) <= 63 for value in found_labels.values())


@CASES
def test_the_role_is_limited_to_the_stacks_own_reports(case: str) -> None:
    for launch, found in made(case):
        assert found["Role"]["rules"] == [
            {
                "apiGroups": [""],
                "resources": ["configmaps"],
                "resourceNames": [launch.stack],
                "verbs": ["get", "patch"],
            }
        ]
        assert found["ConfigMap"]["metadata"]["name"] == launch.stack
        assert found["RoleBinding"]["roleRef"]["name"] == launch.stack
        (subject,) = found["RoleBinding"]["subjects"]
        assert subject["name"] == found["ServiceAccount"]["metadata"]["name"]
        assert pod_spec(found)["serviceAccountName"] == subject["name"]


def test_only_prepare_and_publish_see_the_token_and_only_by_reference() -> None:
    for launch, found in made("token"):
        env = {entry["name"]: entry for entry in pod_spec(found)["containers"][0]["env"]}
        if launch.config.step in {"prepare", "publish"}:
            assert env["HF_TOKEN"] == {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": SECRET}}
        else:
            assert "hf-token" not in json.dumps(found)


@CASES
def test_no_token_unless_one_is_named(case: str) -> None:
    if case != "token":
        assert all("secretKeyRef" not in json.dumps(found) for _, found in made(case))


@CASES
def test_a_service_only_where_pods_must_find_each_other(case: str) -> None:
    for launch, found in made(case):
        assert ("Service" in found) == (launch.placement.pods > 1)
        assert ("subdomain" in pod_spec(found)) == (launch.placement.pods > 1)
    several = [found for launch, found in made(case) if launch.placement.pods > 1]
    assert bool(several) == (case == "nodes")


def test_several_pods_meet_at_the_first() -> None:
    launch, found = next((x, f) for x, f in made("nodes") if x.config.step == "train")
    service, job = found["Service"], found["Job"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": launch.job}
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", service["metadata"]["name"])
    spec_ = pod_spec(found)
    env = {entry["name"]: entry.get("value") for entry in spec_["containers"][0]["env"]}
    assert spec_["subdomain"] == launch.job
    assert env["MASTER_ADDR"] == f"{launch.job}-0.{launch.job}"
    assert (job["spec"]["completions"], job["spec"]["parallelism"]) == (2, 2)
    assert spec_["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": "8"}


@CASES
def test_jobs_are_indexed_and_never_retry_by_themselves(case: str) -> None:
    for launch, found in made(case):
        job = found["Job"]["spec"]
        assert job["completionMode"] == "Indexed"
        assert job["backoffLimit"] == 0
        assert job["podReplacementPolicy"] == "Failed"
        assert [rule["action"] for rule in job["podFailurePolicy"]["rules"]] == ["Ignore"]
        assert pod_spec(found)["restartPolicy"] == "Never"
        assert job.get("activeDeadlineSeconds") == launch.deadline_seconds
        assert "suspend" not in job  # Kueue's and the user's, not an apply's
        host = f"{launch.job}-{launch.placement.pods - 1}"
        assert re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", host)


def test_the_budget_bounds_what_costs_money() -> None:
    deadlines = {
        launch.step: found["Job"]["spec"].get("activeDeadlineSeconds")
        for launch, found in made("extras")
    }
    assert {step for step, seconds in deadlines.items() if seconds} == {"math/train", "cic/train"}


def test_training_has_time_to_write_a_checkpoint() -> None:
    grace = {
        launch.config.step: pod_spec(found)["terminationGracePeriodSeconds"]
        for launch, found in made("gated")
    }
    assert grace.pop("train") == 300
    assert set(grace.values()) == {30}


def test_the_pools_extras_reach_gpu_pods_alone() -> None:
    for launch, found in made("extras"):
        template = found["Job"]["spec"]["template"]
        spec_ = template["spec"]
        if not launch.placement.on_pool:
            assert not {"runtimeClassName", "nodeSelector", "tolerations"} & spec_.keys()
            assert len(spec_["containers"]) == 1
            continue
        assert template["metadata"]["labels"]["team"] == "research"
        assert spec_["runtimeClassName"] == "nvidia"
        assert spec_["nodeSelector"] == {"gpu": "h200"}
        (toleration,) = spec_["tolerations"]
        assert toleration["effect"] == "NoSchedule"
        trainer, sidecar = spec_["containers"]
        assert sidecar["name"] == "sidecar"
        assert trainer["resources"]["limits"] == {"nvidia.com/gpu": "1", "rdma/ib": "1"}
        assert {"name": "NCCL_DEBUG", "value": "WARN"} in trainer["env"]
        assert trainer["env"][0]["name"] == "HOME"
        assert "models" in [volume["name"] for volume in spec_["volumes"]]
        assert trainer["image"] == "trainer:1"


def test_nodes_where_a_step_stalled_are_the_last_choice() -> None:
    training, launches = attempts("plain")
    launch = next(launch for launch in launches if launch.step == "math/train")
    assert "affinity" not in pod_spec(by_kind(objects(training, launch, SETTINGS)))
    avoiding = replace(launch, avoided_nodes=("n1",))
    manifests = objects(training, avoiding, SETTINGS)
    kubernetes_validate.validate(manifests[-1], "1.37", strict=True)
    (term,) = pod_spec(by_kind(manifests))["affinity"]["nodeAffinity"][
        "preferredDuringSchedulingIgnoredDuringExecution"
    ]
    (expression,) = term["preference"]["matchExpressions"]
    assert (expression["operator"], expression["values"]) == ("NotIn", ["n1"])


def test_a_queue_is_a_label_of_the_jobs_it_admits() -> None:
    label = "kueue.x-k8s.io/queue-name"
    queues = {x.config.step: f["Job"]["metadata"]["labels"].get(label) for x, f in made("nodes")}
    assert queues == {"prepare": None, "train": "research", "merge": None, "publish": None}


def test_what_the_steps_share_is_the_same_for_every_step() -> None:
    fields = spec(storage={"size": "1Ti"}, compute={"gpus": 16})
    training, launches = run(fields, pool(), "elle")
    shared = [shared_objects(training, launch, SETTINGS) for launch in launches]
    assert shared == [shared[0]] * len(launches)
    claims = [
        by_kind(objects(training, launch, SETTINGS))["PersistentVolumeClaim"]["spec"]
        for launch in launches
    ]
    assert claims == [claims[0]] * len(launches)
    assert claims[0]["accessModes"] == ["ReadWriteMany"]
    single = made("dots")[0][1]["PersistentVolumeClaim"]["spec"]
    assert (single["accessModes"], single["storageClassName"]) == (["ReadWriteOnce"], "fast")


CLASSES = Settings(storage_class="block", shared_storage_class="files")


@pytest.mark.parametrize(
    ("storage", "gpus", "settings", "expected"),
    [
        ({"size": "1Ti"}, 8, Settings(), None),
        ({"size": "1Ti"}, 8, CLASSES, "block"),
        ({"size": "1Ti"}, 16, CLASSES, "files"),
        ({"size": "1Ti"}, 16, Settings(storage_class="block"), "block"),
        ({"size": "1Ti"}, 8, Settings(shared_storage_class="files"), None),
        ({"size": "1Ti", "storageClassName": "fast"}, 16, CLASSES, "fast"),
    ],
)
def test_the_platforms_storage_class_is_for_new_volumes_of_stacks_that_name_none(
    storage: dict[str, str], gpus: int, settings: Settings, expected: str | None
) -> None:
    training, launches = run(spec(storage=storage, compute={"gpus": gpus}), pool(), "elle")
    claim = volume_claim(training, launches[0], settings)
    assert claim is not None
    assert claim["spec"].get("storageClassName") == storage.get("storageClassName")
    first = first_claim(claim, settings)
    assert first["spec"].get("storageClassName") == expected


def test_images_are_pulled_with_the_platforms_secrets() -> None:
    training, launches = attempts("plain")
    settings = Settings(pull_secrets=("a", "b"))
    spec_ = pod_spec(by_kind(objects(training, launches[0], settings)))
    assert spec_["imagePullSecrets"] == [{"name": "a"}, {"name": "b"}]
    assert "imagePullSecrets" not in pod_spec(by_kind(objects(training, launches[0], SETTINGS)))


def test_a_named_claim_is_used_and_not_made() -> None:
    _, found = made("plain")[0]
    assert "PersistentVolumeClaim" not in found
    store = next(v for v in pod_spec(found)["volumes"] if v["name"] == "store")
    assert store["persistentVolumeClaim"] == {"claimName": "store"}


@CASES
def test_the_config_is_what_was_decided_and_the_job_says_whose_attempt_it_is(case: str) -> None:
    for launch, found in made(case):
        assert json.loads(found["ConfigMap/config"]["data"]["step.json"]) == launch.config.to_json()
        job = found["Job"] | {
            "metadata": found["Job"]["metadata"] | {"creationTimestamp": "2026-01-01T00:00:00Z"}
        }
        view = job_view(job)
        assert (view.name, view.step, view.digest) == (launch.job, launch.step, launch.digest)
        assert view.attempt == launch.attempt


def test_settings_reach_the_trainer() -> None:
    training, launches = attempts("plain")
    settings = Settings("image:2", progress_interval="1", hub_endpoint="http://hub")
    found = by_kind(objects(training, launches[0], settings))
    env = {e["name"]: e.get("value") for e in pod_spec(found)["containers"][0]["env"]}
    assert env["LATTICEFORGE_PROGRESS"] == f"default/{launches[0].stack}/math.prepare.progress.json"
    assert (env["LATTICEFORGE_PROGRESS_INTERVAL"], env["HF_ENDPOINT"]) == ("1", "http://hub")
    plain = pod_spec(by_kind(objects(training, launches[0], SETTINGS)))["containers"][0]["env"]
    assert "HF_ENDPOINT" not in {entry["name"] for entry in plain}


@pytest.mark.parametrize(
    ("base", "overlay", "result"),
    [
        ({"a": 1}, {}, {"a": 1}),
        ({"a": 1}, {"a": 2, "b": 3}, {"a": 2, "b": 3}),
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}}, {"a": {"b": 3, "c": 2}}),
        ({"a": [1]}, {"a": [2]}, {"a": [1, 2]}),
        (
            {"containers": [{"name": "trainer", "env": [1]}]},
            {"containers": [{"env": [2]}, {"name": "more"}]},
            {"containers": [{"name": "trainer", "env": [1, 2]}, {"name": "more"}]},
        ),
        (
            {"containers": [{"name": "trainer"}]},
            {"containers": []},
            {"containers": [{"name": "trainer"}]},
        ),
    ],
)
def test_merged(base: Any, overlay: Any, result: Any) -> None:
    before = json.dumps([base, overlay])
    assert merged(base, overlay) == result
    assert json.dumps([base, overlay]) == before


def test_a_priority_class_is_for_pods_on_the_pool() -> None:
    training, launches = run(spec(compute={"priorityClassName": "urgent"}), pool(), "elle")
    found = {
        x.config.step: pod_spec(by_kind(objects(training, x, SETTINGS))).get("priorityClassName")
        for x in launches
    }
    assert found == {"prepare": None, "train": "urgent", "merge": None, "publish": None}
