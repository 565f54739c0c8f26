"""The devcluster as a whole: what survives it, what does not, and who gets which device."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.unit.devcluster_pods.polling import alive, text_of, until

from latticeforge_operator.devcluster import authorization
from latticeforge_operator.devcluster.cluster import Backoff, DataFolderInUseError, DevCluster
from latticeforge_operator.devcluster.controllers.nodes import NodeCapacity
from latticeforge_operator.devcluster.controllers.objects import (
    CLAIMS,
    DEPLOYMENTS,
    JOBS,
    NODES,
    PODS,
    VOLUMES,
    is_finished,
    is_true,
    phase,
)

CAPACITY = NodeCapacity(cpu=2, memory_bytes=8 << 30, gpus=2, gpu_names=("GPU-a", "GPU-b"))
QUICK = Backoff(timedelta(milliseconds=20), timedelta(milliseconds=20))
CLAIM: dict[str, Any] = {
    "metadata": {"name": "store"},
    "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}},
}
STORE = [{"name": "store", "persistentVolumeClaim": {"claimName": "store"}}]
MOUNT: dict[str, Any] = {"volumeMounts": [{"name": "store", "mountPath": "/store"}]}


@asynccontextmanager
async def cluster(folder: Path, **options: Any) -> AsyncIterator[DevCluster]:
    options = {"capacity": CAPACITY, "backoff": QUICK, **options}
    started = await DevCluster.start(data_dir=folder, **options)
    try:
        yield started
    finally:
        await started.aclose()


def container(script: str, name: str = "main", gpus: int = 0, **fields: Any) -> dict[str, Any]:
    limits = {"limits": {"nvidia.com/gpu": str(gpus)}} if gpus else {}
    command = ["sh", "-c", script]
    return {"name": name, "image": "local", "command": command, "resources": limits, **fields}


def pod(name: str, *containers: dict[str, Any], **spec: Any) -> dict[str, Any]:
    spec = {"restartPolicy": "Never", "terminationGracePeriodSeconds": 5, **spec}
    return {"metadata": {"name": name}, "spec": {"containers": list(containers), **spec}}


def in_phase(of: DevCluster, name: str, *phases: str) -> Callable[[], bool]:
    return lambda: phase(of.store.get(PODS, "default", name)) in phases


async def run(on: DevCluster, obj: dict[str, Any]) -> str:
    """Runs a pod to its end; returns its first container's log."""
    name = on.store.create(PODS, "default", obj)["metadata"]["name"]
    await until(in_phase(on, name, "Succeeded", "Failed"))
    return log_of(on, name)


def log_of(of: DevCluster, name: str, container: str = "main") -> str:
    uid = of.store.get(PODS, "default", name)["metadata"]["uid"]
    folder = of.kubeconfig.parent / "pods" / uid / "containers" / container
    return text_of(folder / "0.log")


async def test_devices_are_given_by_name_and_never_twice(tmp_path: Path) -> None:
    async with cluster(tmp_path) as one:
        hold = container("echo $CUDA_VISIBLE_DEVICES; sleep 60", gpus=1)
        for name in ("a", "b"):
            one.store.create(PODS, "default", pod(name, hold, terminationGracePeriodSeconds=0))
            await until(lambda name=name: log_of(one, name))  # type: ignore[misc]  # bound above
        assert {log_of(one, "a"), log_of(one, "b")} == {"GPU-a", "GPU-b"}
        late = container("echo $CUDA_VISIBLE_DEVICES", gpus=1)
        one.store.create(PODS, "default", pod("c", late))
        freed = log_of(one, "a")
        one.store.delete(PODS, "default", "a")
        await until(in_phase(one, "c", "Succeeded"))
        assert log_of(one, "c") == freed


async def test_a_pod_that_asks_for_no_device_sees_none(tmp_path: Path) -> None:
    async with cluster(tmp_path) as one:
        env = [{"name": "CUDA_VISIBLE_DEVICES", "value": "GPU-a"}]
        assert await run(one, pod("p", container("echo [$CUDA_VISIBLE_DEVICES]", env=env))) == "[]"


def grant(on: DevCluster, account: str, rule: dict[str, Any]) -> None:
    """Binds a role with one rule to a ServiceAccount."""
    name = {"metadata": {"name": account}}
    on.store.create(authorization.ROLES, "default", {**name, "rules": [rule]})
    reference = {"apiGroup": authorization.GROUP, "kind": "Role", "name": account}
    subjects = [{"kind": "ServiceAccount", "name": account, "namespace": "default"}]
    binding = {**name, "roleRef": reference, "subjects": subjects}
    on.store.create(authorization.ROLE_BINDINGS, "default", binding)


async def test_a_pod_may_do_what_its_account_is_granted(tmp_path: Path) -> None:
    script = (
        "import json, os, urllib.error, urllib.request\n"
        "config = json.load(open(os.environ['KUBECONFIG']))\n"
        "url = config['clusters'][0]['cluster']['server']\n"
        "for kind in ('pods', 'secrets'):\n"
        "    try:\n"
        "        urllib.request.urlopen(f'{url}/api/v1/namespaces/default/{kind}').close()\n"
        "        print(kind)\n"
        "    except urllib.error.HTTPError as error:\n"
        "        print(json.load(error)['message'])\n"
    )
    main = {"name": "main", "image": "local", "command": ["python", "-c", script]}
    async with cluster(tmp_path) as one:
        grant(one, "reader", {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]})
        allowed, refused = (
            await run(one, pod("p", main, serviceAccountName="reader"))
        ).splitlines()
        assert allowed == "pods"
        assert refused == (
            'secrets is forbidden: User "system:serviceaccount:default:reader" cannot list '
            'resource "secrets" in API group "" in the namespace "default"'
        )


async def test_a_pod_without_a_token_knows_nothing_of_the_api(tmp_path: Path) -> None:
    async with cluster(tmp_path) as one:
        main = container('echo "[$KUBECONFIG$KUBERNETES_SERVICE_HOST]"')
        assert await run(one, pod("p", main, automountServiceAccountToken=False)) == "[]"


async def test_the_account_folder_is_where_clusters_mount_it(tmp_path: Path) -> None:
    async with cluster(tmp_path) as one:
        main = container("cat /var/run/secrets/kubernetes.io/serviceaccount/token")
        token = await run(one, pod("p", main))
        assert len(token) > 40
        assert token != one.token


async def test_peers_of_an_indexed_job_are_on_loopback(tmp_path: Path) -> None:
    async with cluster(tmp_path) as one:
        main = container("echo $0 $MASTER", args=["j-0.peers:29500"])
        main["env"] = [{"name": "MASTER", "value": "j-0.peers.default.svc.cluster.local"}]
        assert await run(one, pod("p", main, subdomain="peers")) == "127.0.0.1:29500 127.0.0.1"


async def test_what_the_kubelet_says_itself_is_not_translated(tmp_path: Path) -> None:
    async with cluster(tmp_path) as one:
        main = container('cat "$0" > /dev/null && ls "$COPY" && pwd', args=["$(KUBECONFIG)"])
        main["env"] = [{"name": "COPY", "value": "$(KUBECONFIG)"}]
        main["volumeMounts"] = [{"name": "tmp", "mountPath": f"/{tmp_path.parts[1]}"}]
        lines = (await run(one, pod("p", main, volumes=[{"name": "tmp", "emptyDir": {}}]))).split()
        assert all(line.startswith(str(tmp_path / "pods")) for line in lines)
        assert len(lines) == 2


async def test_claimed_files_outlive_the_devcluster_but_not_the_claim(tmp_path: Path) -> None:
    async with cluster(tmp_path) as one:
        one.store.create(CLAIMS, "default", CLAIM)
        await run(one, pod("p", container("echo kept > /store/file", **MOUNT), volumes=STORE))
    async with cluster(tmp_path) as two:
        two.store.create(CLAIMS, "default", CLAIM)
        log = await run(two, pod("p", container("cat /store/file", **MOUNT), volumes=STORE))
        assert log == "kept"
        two.store.delete(CLAIMS, "default", "store")
        await until(lambda: not two.store.list(VOLUMES))
        assert not (tmp_path / "volumes" / "default" / "store").exists()


async def test_a_claim_in_use_is_kept_until_its_pod_has_ended(tmp_path: Path) -> None:
    async with cluster(tmp_path) as one:
        one.store.create(CLAIMS, "default", CLAIM)
        script = "until [ -e /store/go ]; do sleep 0.02; done; ls /store"
        one.store.create(PODS, "default", pod("p", container(script, **MOUNT), volumes=STORE))
        await until(in_phase(one, "p", "Running"))
        one.store.delete(CLAIMS, "default", "store")
        assert one.store.list(CLAIMS)
        (tmp_path / "volumes" / "default" / "store" / "go").touch()
        await until(lambda: not one.store.list(CLAIMS))
        assert log_of(one, "p") == "go"


async def test_a_named_volume_is_a_folder_of_this_machine_and_kept(tmp_path: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    (models / "base").touch()
    volume = {
        "metadata": {"name": "models"},
        "spec": {
            "hostPath": {"path": str(models)},
            "persistentVolumeReclaimPolicy": "Retain",
            "capacity": {"storage": "1Gi"},
            "accessModes": ["ReadWriteMany"],
        },
    }
    async with cluster(tmp_path / "data") as one:
        one.store.create(VOLUMES, "", volume)
        claim = {**CLAIM, "spec": {**CLAIM["spec"], "volumeName": "models"}}
        one.store.create(CLAIMS, "default", claim)
        log = await run(one, pod("p", container("ls /store", **MOUNT), volumes=STORE))
        assert log == "base"
        one.store.delete(CLAIMS, "default", "store")
        await until(lambda: one.store.get(VOLUMES, "", "models")["status"]["phase"] == "Released")
        assert (models / "base").exists()


async def test_the_end_of_the_devcluster_is_the_end_of_its_pods(tmp_path: Path) -> None:
    script = "trap 'echo saving; exit 0' TERM; echo $$$$; while :; do sleep 0.02; done"
    async with cluster(tmp_path) as one:
        one.store.create(
            JOBS,
            "default",
            {"metadata": {"name": "j"}, "spec": {"template": pod("", container(script))}},
        )
        await until(lambda: [p for p in one.store.list(PODS) if log_of(one, p["metadata"]["name"])])
        [found] = one.store.list(PODS)
        pid = int(log_of(one, found["metadata"]["name"]))
    assert not alive(pid)
    assert "saving" in log_of(one, found["metadata"]["name"])
    # The Job controller ended first, or it would have replaced the pod.
    assert len(one.store.list(PODS)) == 1
    assert not one.kubeconfig.exists()


async def test_a_pod_removed_by_force_is_killed(tmp_path: Path) -> None:
    async with cluster(tmp_path) as one:
        one.store.create(
            PODS,
            "default",
            pod("p", container("trap '' TERM; echo $$$$; while :; do sleep 0.02; done")),
        )
        pid = int(await until(lambda: log_of(one, "p")))
        one.store.delete(PODS, "default", "p", grace_period_seconds=0)
        assert not one.store.list(PODS)
        await until(lambda: not alive(pid))
        await until(lambda: not list((tmp_path / "pods").iterdir()))


async def test_a_folder_belongs_to_one_devcluster(tmp_path: Path) -> None:
    async with cluster(tmp_path):
        with pytest.raises(DataFolderInUseError, match=f"is using {tmp_path}; end it, or"):
            await DevCluster.start(data_dir=tmp_path)


async def test_a_deployment_is_rolled_out_and_its_pod_replaced(tmp_path: Path) -> None:
    async with cluster(tmp_path) as one:
        template = pod("", container("trap 'exit 0' TERM; while :; do sleep 0.02; done"))
        template["spec"]["restartPolicy"] = "Always"
        labels = {"app": "operator"}
        template = {"metadata": {"labels": labels}, "spec": template["spec"]}
        spec = {"replicas": 1, "selector": {"matchLabels": labels}, "template": template}
        one.store.create(DEPLOYMENTS, "default", {"metadata": {"name": "d"}, "spec": spec})

        def is_available() -> bool:
            return is_true(one.store.get(DEPLOYMENTS, "default", "d"), "Available")

        await until(is_available)
        [first] = one.store.list(PODS)
        one.store.delete(PODS, "default", first["metadata"]["name"])
        await until(
            lambda: (
                first["metadata"]["uid"] not in {p["metadata"]["uid"] for p in one.store.list(PODS)}
            )
        )
        await until(is_available)
        one.store.delete(DEPLOYMENTS, "default", "d")
        await until(lambda: not one.store.list(PODS))


async def test_without_pods_there_is_no_node(tmp_path: Path) -> None:
    async with cluster(tmp_path, run_pods=False) as one:
        template = pod("", container("true"))
        one.store.create(
            JOBS, "default", {"metadata": {"name": "j"}, "spec": {"template": template}}
        )
        await until(lambda: one.store.list(PODS))
        assert one.store.list(NODES) == []
        one.store.delete(JOBS, "default", "j")
        await until(lambda: not one.store.list(PODS))


DEVCLUSTER = """
import asyncio, json, sys
from pathlib import Path
from latticeforge_operator.devcluster.cluster import DevCluster
from latticeforge_operator.devcluster.controllers.objects import PODS

async def main():
    cluster = await DevCluster.start(data_dir=Path(sys.argv[1]))
    cluster.store.create(PODS, "default", json.loads(sys.argv[2]))
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="uses setsid(1)")
async def test_a_killed_devcluster_leaves_no_process_behind(tmp_path: Path) -> None:
    script = (
        "setsid sh -c 'echo $$$$ > /store/grandchild; sleep 60' & echo $$$$ > /store/child; wait"
    )
    mount: dict[str, Any] = {"volumeMounts": [{"name": "out", "mountPath": "/store"}]}
    volumes = [{"name": "out", "hostPath": {"path": str(tmp_path)}}]
    obj = json.dumps(pod("p", container(script, **mount), volumes=volumes))
    devcluster = await asyncio.create_subprocess_exec(
        sys.executable, "-c", DEVCLUSTER, str(tmp_path / "data"), obj
    )
    files = [tmp_path / "child", tmp_path / "grandchild"]
    try:
        await until(lambda: all(text_of(file) for file in files), seconds=20)
        pids = [int(text_of(file)) for file in files]
        pids += [child.pid for child in psutil.Process(devcluster.pid).children(recursive=True)]
    finally:
        os.kill(devcluster.pid, signal.SIGKILL)
        await devcluster.wait()
    await until(lambda: not any(alive(pid) for pid in pids))

    async with cluster(tmp_path / "data") as next_one:
        assert list((tmp_path / "data" / "pods").iterdir()) == []
        assert await run(next_one, pod("p", container("echo hi"))) == "hi"
        assert all(is_finished(found) for found in next_one.store.list(PODS))
