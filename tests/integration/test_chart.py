"""The chart as real Helm renders it: valid, restricted, and refusing nonsense."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from tests.fixtures.chart import (
    CHART,
    DIGEST,
    KNOWN_POOLS,
    MATRIX,
    NAMESPACE,
    POOLS,
    RELEASE,
    ROOT,
    Manifest,
    RenderError,
    Values,
    helm,
    of_kind,
    pod_specs,
    render,
)
from tests.fixtures.pod_security import CONTROLS, READ_ONLY_ROOT, violations
from tests.integration.real_clients import Client, running_server
from tests.tools import tool

from latticeforge_operator.api.crds import all_crds
from latticeforge_operator.cluster.__main__ import main
from latticeforge_operator.cluster.settings import Settings
from latticeforge_operator.devcluster.resources import ResourceKey
from latticeforge_operator.devcluster.store import Store

FIXTURES = Path(__file__).parents[1] / "fixtures" / "crds"
CRDS = ResourceKey("apiextensions.k8s.io/v1", "customresourcedefinitions")
OURS = {"GPUPool", "ServiceMonitor", "PrometheusRule"}
"""Custom kinds: their own definitions are their schemas."""
CASES = pytest.mark.parametrize("case", MATRIX)


@CASES
def test_every_manifest_fits_the_schema_of_kubernetes(case: str) -> None:
    for manifest in render(MATRIX[case]):
        if manifest["kind"] not in OURS:
            kubernetes_validate.validate(manifest, "1.37", strict=True)


@CASES
async def test_an_api_server_takes_every_manifest(case: str, tmp_path: Path) -> None:
    """Definitions, pools and monitoring objects against their own schemas, unknown fields too."""
    async with running_server(tmp_path) as (store, kubeconfig):
        for path in FIXTURES.iterdir():
            store.create(CRDS, "", yaml.safe_load(path.read_text()))
        _make_namespaces(store, NAMESPACE, "team-a", "team-b")
        values = tmp_path / "values.yaml"
        values.write_text(yaml.safe_dump(MATRIX[case]))
        install = ("install", RELEASE, str(CHART), f"-n={NAMESPACE}", f"-f={values}")
        await Client(tool("helm"), kubeconfig)(*install)
        for manifest in render(MATRIX[case]):
            if "helm.sh/hook" not in (manifest["metadata"].get("annotations") or {}):
                assert _kept_whole(store, manifest)


def _make_namespaces(store: Store, *names: str) -> None:
    for name in names:
        store.create(ResourceKey("v1", "namespaces"), "", {"metadata": {"name": name}})


def _kept_whole(store: Store, manifest: Manifest) -> bool:
    resource = store.registry.for_kind(manifest["apiVersion"], manifest["kind"])
    assert resource is not None
    meta = manifest["metadata"]
    found = store.get(resource.key, meta.get("namespace", ""), meta["name"])
    return _within(manifest.get("spec"), found.get("spec"))


def _within(part: Any, whole: Any) -> bool:
    """Whether everything in a value stands in another, which may say more."""
    if isinstance(part, dict):
        return all(key in whole and _within(value, whole[key]) for key, value in part.items())
    if isinstance(part, list):
        return len(part) == len(whole) and all(map(_within, part, whole))
    return bool(part == whole)


@CASES
def test_every_pod_fits_the_restricted_profile(case: str) -> None:
    specs = list(pod_specs(render(MATRIX[case])))
    assert len(specs) == 2, "the operator's and that of `helm test`"
    for spec in specs:
        assert violations(spec, (*CONTROLS, READ_ONLY_ROOT)) == []


# --- the operator


def operator(values: Values) -> tuple[Manifest, dict[str, str]]:
    """The operator's container and its environment."""
    (deployment,) = of_kind(render(values), "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    return container, {item["name"]: item["value"] for item in container["env"]}


@CASES
def test_the_operator_understands_its_arguments(case: str) -> None:
    container, _ = operator(MATRIX[case])
    with main.make_context("operator", list(container["args"])) as context:
        assert list(context.params["namespaces"]) == MATRIX[case].get("watchNamespaces", [])
        assert context.params["metrics_port"] == container["ports"][0]["containerPort"]


def test_the_operator_is_set_as_the_values_say(monkeypatch: pytest.MonkeyPatch) -> None:
    container, environment = operator(MATRIX["everything"])
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert Settings.from_environment() == Settings(
        trainer_image="registry:5000/team/trainer:2",
        pull_secrets=("one", "two"),
        progress_interval="5",
        hub_endpoint="https://hub.example",
        storage_class="block",
        shared_storage_class="files",
        queue="research",
    )
    assert environment["HTTPS_PROXY"] == "http://proxy:3128"
    assert container["image"] == f"ghcr.io/latticeforge/operator@{DIGEST}"


def test_the_trainer_is_the_operators_own_version() -> None:
    _, environment = operator({})
    assert environment == {"LATTICEFORGE_TRAINER_IMAGE": Settings().trainer_image}


def test_one_operator_at_a_time() -> None:
    (deployment,) = of_kind(render({}), "Deployment")
    assert deployment["spec"]["replicas"] == 1
    assert deployment["spec"]["strategy"] == {"type": "Recreate"}


# --- definitions and pools


def test_the_definitions_are_those_of_the_api() -> None:
    rendered = {m["metadata"]["name"]: m for m in of_kind(render({}), "CustomResourceDefinition")}
    made = {crd["metadata"]["name"]: crd["spec"] for crd in all_crds().values()}
    assert {name: crd["spec"] for name, crd in rendered.items()} == made
    kept = {"helm.sh/resource-policy": "keep"}
    assert [crd["metadata"]["annotations"] for crd in rendered.values()] == [kept, kept]


@pytest.mark.parametrize(("case", "annotations"), [("bare", []), ("leaves-nothing", [None, None])])
def test_definitions_are_left_out_or_not_kept_on_demand(case: str, annotations: list[None]) -> None:
    found = of_kind(render(MATRIX[case]), "CustomResourceDefinition")
    assert [crd["metadata"].get("annotations") for crd in found] == annotations


@pytest.mark.parametrize("known", [False, True])
def test_pools_are_made_after_their_definition_and_belong_to_the_release(*, known: bool) -> None:
    options = [KNOWN_POOLS] if known else []
    pools = of_kind(render({"gpuPools": POOLS}, *options), "GPUPool")
    assert {pool["metadata"]["name"]: pool["spec"] for pool in pools} == POOLS
    for pool in pools:
        notes = pool["metadata"]["annotations"]
        assert notes["helm.sh/resource-policy"] == "keep"
        assert ("helm.sh/hook" in notes) is not known
        assert (notes.get("meta.helm.sh/release-name") == RELEASE) is not known


# --- values


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"watchNamespace": ["a"]}, "additional properties 'watchNamespace' not allowed"),
        ({"watchNamespaces": "a"}, "at '/watchNamespaces': got string, want array"),
        ({"watchNamespaces": ["a", "a"]}, "at '/watchNamespaces': items at 0 and 1 are equal"),
        ({"watchNamespaces": ["A b"]}, "at '/watchNamespaces/0': 'A b' does not match pattern"),
        ({"metrics": {"port": 80}}, "at '/metrics/port': minimum: got 80, want 1,024"),
        ({"image": {"digest": "sha256:1"}}, "at '/image/digest': 'sha256:1' does not match"),
        ({"image": {"repository": "a b"}}, "at '/image/repository': 'a b' does not match"),
        ({"image": {"pullPolicy": "Maybe"}}, "at '/image/pullPolicy': value must be one of"),
        ({"trainer": {"hubEndpoint": "hub"}}, "at '/trainer/hubEndpoint': 'hub' does not match"),
        ({"trainer": {"progressInterval": 5}}, "at '/trainer/progressInterval': got number"),
        ({"gpuPools": {"x": {}}}, "at '/gpuPools/x': missing property 'accelerator'"),
        ({"gpuPools": {"x": {"accelerator": "B9"}}}, "value must be one of 'H200', 'H100'"),
        (
            {"gpuPools": {"x": {"accelerator": "H200", "price": "1"}}},
            "at '/gpuPools/x': additional properties 'price' not allowed",
        ),
        ({"gpuPools": {"X_": {"accelerator": "H200"}}}, "does not match pattern"),
        ({"logFormat": "xml"}, "at '/logFormat': value must be one of 'text', 'json'"),
        ({"serviceAccount": {"create": False}}, "at '/serviceAccount/name'"),
        ({"serviceMonitor": {"interval": "often"}}, "at '/serviceMonitor/interval': 'often'"),
        ({"networkPolicy": {"apiServerPorts": []}}, "at '/networkPolicy/apiServerPorts': minItems"),
        ({"networkPolicy": {"hubPorts": [70000]}}, "at '/networkPolicy/hubPorts/0': maximum"),
        (
            {"podLabels": {"app.kubernetes.io/name": "x"}},
            "io~1name': value must be 'left to the chart'",
        ),
        ({"replicas": 2}, "additional properties 'replicas' not allowed"),
    ],
)
def test_nonsense_is_refused_with_what_and_where(values: Values, sentence: str) -> None:
    with pytest.raises(RenderError, match=re.escape(sentence)):
        render(values)


def test_every_value_is_in_the_schema() -> None:
    """And so is every default, or no release without values would be possible."""
    schema = yaml.safe_load((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert {*values, "global"} == set(schema["properties"])


def test_helm_finds_no_fault() -> None:
    assert "0 chart(s) failed" in helm("lint", "--strict", str(CHART))


COMMAND = re.compile(r"^    helm (install|template) (.*)$", re.MULTILINE)


def test_the_commands_of_the_readme_render() -> None:
    commands = COMMAND.findall((ROOT / "README.md").read_text().replace("\\\n", " "))
    assert {verb for verb, _ in commands} == {"install", "template"}
    for verb, rest in commands:
        offline = ["--dry-run=client"] if verb == "install" else []
        assert "kind: ClusterRole" in helm(verb, *shlex.split(rest), *offline)


# --- networks


def test_pods_of_steps_reach_each_other_and_the_way_out_only() -> None:
    policies = of_kind(render(MATRIX["everything"]), "NetworkPolicy")
    steps = {
        p["metadata"]["namespace"]: p["spec"]
        for p in policies
        if "training" in p["metadata"]["name"]
    }
    assert set(steps) == {"team-a", "team-b"}
    peers = [
        {
            "podSelector": {
                "matchExpressions": [{"key": "latticeforge.dev/training", "operator": "Exists"}]
            }
        }
    ]
    for spec in steps.values():
        assert spec["ingress"] == [{"from": peers}]
        among, *out = spec["egress"]
        assert among == {"to": peers}
        assert {port["port"] for rule in out for port in rule["ports"]} == {53, 443, 6443, 8443}


def test_the_operator_is_asked_for_metrics_only() -> None:
    policies = of_kind(render(MATRIX["everything"]), "NetworkPolicy")
    (spec,) = [p["spec"] for p in policies if p["metadata"]["namespace"] == NAMESPACE]
    (ingress,) = spec["ingress"]
    assert [port["port"] for port in ingress["ports"]] == [9090]
    assert ingress["from"] == MATRIX["everything"]["networkPolicy"]["metricsFrom"]
    assert {port["port"] for rule in spec["egress"] for port in rule["ports"]} == {
        53,
        443,
        6443,
        8443,
    }
    (deployment,) = of_kind(render(MATRIX["everything"]), "Deployment")
    chosen = spec["podSelector"]["matchLabels"].items()
    assert chosen <= deployment["spec"]["template"]["metadata"]["labels"].items()
