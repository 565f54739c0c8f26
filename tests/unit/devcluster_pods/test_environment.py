"""A container's variables and command: where they come from, and how they refer to each other."""

from __future__ import annotations

import base64
import sys
from pathlib import Path
from typing import Any

import pytest

from latticeforge_operator.devcluster.controllers.objects import CONFIG_MAPS, SECRETS
from latticeforge_operator.devcluster.kubelet.environment import (
    ConfigError,
    Values,
    base_environment,
    command_line,
    expand,
)
from latticeforge_operator.devcluster.store import Store

POD = {
    "metadata": {
        "name": "p",
        "namespace": "default",
        "uid": "u",
        "labels": {"app": "x"},
        "annotations": {"a/b": "y"},
    },
    "spec": {"nodeName": "devcluster"},
}


@pytest.fixture
def values() -> Values:
    store = Store()
    settings = {"metadata": {"name": "settings"}, "data": {"LEVEL": "high", "MODE": "fast"}}
    store.create(CONFIG_MAPS, "default", settings)
    token = base64.b64encode(b"hf_secret").decode()
    store.create(SECRETS, "default", {"metadata": {"name": "hub"}, "data": {"TOKEN": token}})
    return Values(store, POD)


def resolve(values: Values, *env: dict[str, Any], **container: Any) -> dict[str, str]:
    return values.environment({"name": "main", "env": list(env), **container}, {"HOST": "h"})


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("$(A)", "1"),
        ("x$(A)y$(B)", "x1y2"),
        ("$(UNKNOWN)", "$(UNKNOWN)"),
        ("$$(A)", "$(A)"),
        ("$$$(A)", "$1"),
        ("$A ${A} $", "$A ${A} $"),
    ],
)
def test_expansion(text: str, expanded: str) -> None:
    assert expand(text, {"A": "1", "B": "2"}) == expanded


def test_values_refer_to_what_stands_before_them(values: Values) -> None:
    env = resolve(
        values,
        {"name": "A", "value": "1"},
        {"name": "B", "value": "$(A)$(C)$(HOST)"},
        {"name": "C", "value": "3"},
    )
    assert env == {"A": "1", "B": "1$(C)h", "C": "3"}


def test_a_secret_and_a_config_map_give_values(values: Values) -> None:
    secret = {"secretKeyRef": {"name": "hub", "key": "TOKEN"}}
    setting = {"configMapKeyRef": {"name": "settings", "key": "LEVEL"}}
    env = resolve(values, {"name": "T", "valueFrom": secret}, {"name": "L", "valueFrom": setting})
    assert env == {"T": "hf_secret", "L": "high"}


def test_env_from_comes_first_and_env_wins(values: Values) -> None:
    sources = [{"configMapRef": {"name": "settings"}, "prefix": "S_"}]
    env = resolve(values, {"name": "S_MODE", "value": "$(S_LEVEL)"}, envFrom=sources)
    assert env == {"S_LEVEL": "high", "S_MODE": "high"}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("metadata.name", "p"),
        ("metadata.uid", "u"),
        ("metadata.labels['app']", "x"),
        ("metadata.annotations['a/b']", "y"),
        ("metadata.labels['none']", ""),
        ("spec.nodeName", "devcluster"),
        ("status.podIP", "127.0.0.1"),
    ],
)
def test_the_downward_api(values: Values, field: str, value: str) -> None:
    reference = {"fieldRef": {"fieldPath": field}}
    assert resolve(values, {"name": "F", "valueFrom": reference}) == {"F": value}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"secretKeyRef": {"name": "none", "key": "K"}}, 'secret "none" not found'),
        (
            {"secretKeyRef": {"name": "hub", "key": "K"}},
            "couldn't find key K in Secret default/hub",
        ),
        ({"configMapKeyRef": {"name": "none", "key": "K"}}, 'configmap "none" not found'),
        ({"fieldRef": {"fieldPath": "spec.volumes"}}, "'spec.volumes' is not supported"),
        ({"resourceFieldRef": {"resource": "limits.cpu"}}, "resourceFieldRef is not supported"),
    ],
)
def test_a_reference_to_nothing_is_said(
    values: Values, source: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve(values, {"name": "X", "valueFrom": source})


def test_an_optional_reference_to_nothing_sets_nothing(values: Values) -> None:
    gone = {"secretKeyRef": {"name": "none", "key": "K", "optional": True}}
    no_key = {"configMapKeyRef": {"name": "settings", "key": "K", "optional": True}}
    sources = [{"secretRef": {"name": "none", "optional": True}}]
    env = ({"name": "X", "valueFrom": gone}, {"name": "Y", "valueFrom": no_key})
    assert resolve(values, *env, envFrom=sources) == {}


def test_the_machine_brings_little_and_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:1")
    env = base_environment(Path("/home"), "train-0")
    assert env["PATH"].split(":")[0] == str(Path(sys.executable).parent)
    assert (env["HOME"], env["HOSTNAME"], env["HTTPS_PROXY"]) == (
        "/home",
        "train-0",
        "http://proxy:1",
    )
    assert "HF_TOKEN" not in env


def test_a_command_is_expanded() -> None:
    container = {"name": "main", "command": ["echo", "$(A)"], "args": ["$(B)", "$$(A)"]}
    assert command_line(container, {"A": "1"}) == ["echo", "1", "$(B)", "$(A)"]


def test_a_container_without_a_command_is_told_what_to_do() -> None:
    with pytest.raises(ConfigError, match=r"container main has no command.*; set command"):
        command_line({"name": "main", "args": ["x"]}, {})
