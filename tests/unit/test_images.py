"""What images, locks, chart, operator and workflows promise each other.

What only a Docker engine can show, `make images` does.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from tests.cluster.objects import HUB_SOURCES
from tests.cluster.sites import OPERATOR_IMAGE, TRAINER_IMAGE
from tests.fixtures.chart import of_kind, pod_specs, render
from tests.unit.cluster.test_manifests import made, pod_spec

from latticeforge_operator import __version__
from latticeforge_operator.cluster.__main__ import main
from latticeforge_operator.cluster.settings import DEFAULT_TRAINER_IMAGE
from latticeforge_trainer import smoke

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]
LOCKED = {
    "build": PROJECT["dependency-groups"]["build"] + PROJECT["build-system"]["requires"],
    "operator": PROJECT["project"]["dependencies"] + EXTRAS["operator"],
    "trainer": PROJECT["project"]["dependencies"] + EXTRAS["trainer"] + EXTRAS["mistral"],
}
"""What each lock must satisfy."""
IMAGES = pytest.mark.parametrize("image", ["operator", "trainer"])


@cache
def instructions(image: str) -> list[tuple[str, str]]:
    """The Dockerfile of an image, as instructions and their arguments."""
    text = (ROOT / image / "Dockerfile").read_text()
    joined = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE))
    lines = [line.split(maxsplit=1) for line in joined.splitlines() if line]
    return [(name, rest) for name, rest in lines]


def found(image: str, name: str) -> list[str]:
    """The arguments of every instruction of a name; the last one is the image's own."""
    return [rest for found, rest in instructions(image) if found == name]


def lock(name: str) -> dict[str, list[str]]:
    """Every `name==version` of a lock, with its hashes."""
    text = (ROOT / "requirements" / f"{name}.txt").read_text().replace("\\\n", "")
    lines = [line.split() for line in text.splitlines() if not line.startswith("#")]
    return {requirement: hashes for requirement, *hashes in lines}


def versions(pins: list[str]) -> dict[str, str]:
    """Version by canonical name."""
    pairs = (pin.split("==") for pin in pins)
    return {canonicalize_name(name): version for name, version in pairs}


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return versions([line for line in lines if not line.startswith("#")])


def recipe(target: str) -> str:
    """What make would run for a target."""
    command = ["make", "--dry-run", "--no-print-directory", target]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def pods(image: str) -> list[dict[str, Any]]:
    """Specs of pods that run an image, as the chart or the operator makes them."""
    if image == "trainer":
        return [pod_spec(objects) for _, objects in made("plain")]
    return list(pod_specs(render({})))


# --- image and pod


@IMAGES
def test_the_images_user_is_the_pods(image: str) -> None:
    contexts = [pod["securityContext"] for pod in pods(image)]
    users = {f"{context['runAsUser']}:{context['runAsGroup']}" for context in contexts}
    assert users == {found(image, "USER")[-1]}


@IMAGES
def test_pods_run_the_images_entrypoint(image: str) -> None:
    entrypoint = json.loads(found(image, "ENTRYPOINT")[-1])
    main = [container for pod in pods(image) for container in pod["containers"]]
    commands = [container["command"] for container in main if container["name"] != "ready"]
    assert commands
    assert [command[: len(entrypoint)] for command in commands] == [entrypoint] * len(commands)


@IMAGES
def test_home_is_where_pods_can_write(image: str) -> None:
    variables = dict(pair.split("=", 1) for pair in found(image, "ENV")[-1].split())
    (pod,) = [pod for pod in pods(image) if pod["containers"][0]["name"] != "ready"][:1]
    mounts = {m["name"]: m["mountPath"] for m in pod["containers"][0]["volumeMounts"]}
    writable = {mounts[volume["name"]] for volume in pod["volumes"] if "emptyDir" in volume}
    assert variables["HOME"] in writable
    assert found(image, "WORKDIR")[-1] in writable
    assert f"--home-dir {variables['HOME']} " in " ".join(found(image, "RUN"))


def test_make_calls_the_images_as_chart_and_operator_do() -> None:
    built = re.findall(r"--tag (\S+)", recipe("images"))
    (deployment,) = of_kind(render({}), "Deployment")
    (operator,) = deployment["spec"]["template"]["spec"]["containers"]
    trainer = {entry["name"]: entry.get("value") for entry in operator["env"]}
    assert built == [operator["image"], trainer["LATTICEFORGE_TRAINER_IMAGE"]]
    assert built[1] == DEFAULT_TRAINER_IMAGE


def test_make_starts_what_it_built_and_what_it_starts_exists() -> None:
    built = re.findall(r"--tag (\S+)", recipe("images"))
    started = re.findall(r"docker run .* (\S+) -m (\S+)", recipe("images"))
    assert [image for image, _ in started] == built
    assert [module for _, module in started if find_spec(module) is None] == []


def test_the_operator_says_its_version() -> None:
    said = CliRunner().invoke(main, ["--version"])
    assert (said.exit_code, said.output.split()[-1]) == (0, __version__)


def test_the_kind_tests_get_the_images_under_the_names_that_they_read() -> None:
    commands = recipe("kind-test")
    operator, trainer = re.findall(r"--tag (\S+)", commands)
    assert f"{OPERATOR_IMAGE}={operator} {TRAINER_IMAGE}={trainer} " in commands


def test_the_operators_image_can_serve_the_tests_hub() -> None:
    trees = [ast.parse(path.read_text()) for path in HUB_SOURCES.values()]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    imported = {alias.name for n in nodes if isinstance(n, ast.Import) for alias in n.names}
    imported |= {n.module for n in nodes if isinstance(n, ast.ImportFrom) and n.module}
    roots = {name.partition(".")[0] for name in imported} - {"tests"} - sys.stdlib_module_names
    assert roots
    assert roots <= versions(list(lock("operator"))).keys()


# --- image and sources


@IMAGES
def test_bases_are_versions(image: str) -> None:
    arguments = dict(rest.split("=", 1) for rest in found(image, "ARG") if "=" in rest)
    assert re.fullmatch(r"[a-z/]+:\d+\.\d+\.\d+-[a-z0-9.-]+", arguments["BASE"])
    stages = [words.split() for words in found(image, "FROM")]
    named = {stage[2] for stage in stages if len(stage) == 3}
    bases = {
        stage[0].replace("${ACCELERATOR}", arguments.get("ACCELERATOR", "")) for stage in stages
    }
    assert bases - named == {"${BASE}"}


@IMAGES
def test_everything_that_is_copied_is_there_and_not_ignored(image: str) -> None:
    rules = (ROOT / ".dockerignore").read_text().splitlines()
    kept = [rule[1:] for rule in rules if rule.startswith("!")]
    copied = [words.split()[:-1] for words in found(image, "COPY") if "--from" not in words]
    sources = [source for sources in copied for source in sources]
    assert sources
    assert [source for source in sources if not (ROOT / source).exists()] == []
    assert [
        s for s in sources if not any(s == rule or fnmatch(s, f"{rule}/*") for rule in kept)
    ] == []
    assert found(image, "ADD") == []


def test_the_base_has_the_cuda_of_pytorch() -> None:
    base = next(rest for rest in found("trainer", "ARG") if rest.startswith("BASE="))
    cuda = re.search(r"nvidia/cuda:(\d+\.\d+)\.", base)
    assert cuda is not None
    assert versions(list(lock("trainer")))["cuda-toolkit"].startswith(f"{cuda[1]}.")


def test_the_operators_lock_is_for_the_python_of_its_base() -> None:
    base = next(rest for rest in found("operator", "ARG") if rest.startswith("BASE="))
    locked = re.search(r"--python-version (\S+) .*requirements/operator\.txt", recipe("locks"))
    assert locked is not None
    assert base.startswith(f"BASE=python:{locked[1]}.")


# --- locks


@pytest.mark.parametrize("name", LOCKED)
def test_a_lock_satisfies_the_project(name: str) -> None:
    pinned = versions(list(lock(name)))
    wanted = {text: Requirement(text) for text in LOCKED[name]}
    got = {text: pinned.get(canonicalize_name(need.name)) for text, need in wanted.items()}
    unmet = [t for t, version in got.items() if not version or version not in wanted[t].specifier]
    assert unmet == [], "run: make locks"


@pytest.mark.parametrize("name", LOCKED)
def test_a_lock_is_what_the_tests_run_with(name: str) -> None:
    pinned, tested = versions(list(lock(name))), constraints()
    common = pinned.keys() & tested.keys()
    assert common
    assert {n: pinned[n] for n in common} == {n: tested[n] for n in common}, "run: make locks"


def test_only_libraries_of_cuda_are_locked_and_not_tested() -> None:
    untested = versions([*lock("operator"), *lock("trainer")]).keys() - constraints().keys()
    assert {name for name in untested if not name.startswith(("cuda-", "nvidia-"))} == set()


@pytest.mark.parametrize("name", LOCKED)
def test_a_lock_says_what_every_file_hashes_to(name: str) -> None:
    loose = [pin for pin, hashes in lock(name).items() if not hashes]
    assert loose == []
    assert all(h.startswith("--hash=sha256:") for hashes in lock(name).values() for h in hashes)


def test_the_operators_image_has_no_ml_stack() -> None:
    contracts = {c["name"]: c for c in PROJECT["tool"]["importlinter"]["contracts"]}
    forbidden = contracts["The operator image has no ML stack"]["forbidden_modules"]
    assert forbidden
    assert set(forbidden) & versions(list(lock("operator"))).keys() == set()


def test_the_smoke_test_imports_every_package_that_the_trainer_asks_for() -> None:
    extras = (name for extra in smoke.EXTRAS for name in EXTRAS[extra])
    assert sorted(smoke.required()) == sorted(
        canonicalize_name(Requirement(text).name) for text in extras
    )


# --- workflows

WORKFLOWS = {
    path.name: yaml.safe_load(path.read_text())
    for path in (ROOT / ".github" / "workflows").glob("*.yml")
}
JOBS = {f"{file}-{name}": job for file, w in WORKFLOWS.items() for name, job in w["jobs"].items()}
STEPS = [step for job in JOBS.values() for step in job["steps"]]


def test_workflows_run_targets_that_exist() -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = re.findall(r"\bmake ([a-z-]+)", "\n".join(step.get("run", "") for step in STEPS))
    assert {"check", "kind-test", "audit"} <= set(named) <= set(targets)


def test_workflows_may_only_read() -> None:
    assert [w["permissions"] for w in WORKFLOWS.values()] == [{"contents": "read"}] * len(WORKFLOWS)
    assert [name for name, job in JOBS.items() if "permissions" in job] == []
    texts = [path.read_text() for path in (ROOT / ".github").rglob("*.yml")]
    assert [text for text in texts if "secrets." in text] == []


def test_workflows_pin_their_actions_and_end() -> None:
    actions = [step["uses"] for step in STEPS if "uses" in step]
    assert actions
    assert [action for action in actions if not re.search(r"@[0-9a-f]{40}$", action)] == []
    assert [name for name, job in JOBS.items() if "timeout-minutes" not in job] == []
