"""Selectors, JSONPath, ages, protobuf: text and bytes that clients send or read."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latticeforge_operator.devcluster import jsonpath, protobuf
from latticeforge_operator.devcluster.ages import human_duration
from latticeforge_operator.devcluster.errors import ApiError
from latticeforge_operator.devcluster.selectors import FieldSelector, LabelSelector


@pytest.mark.parametrize("text", ["a in b", "a=b=c", "=b", "a in (", "!a=b"])
def test_bad_label_selectors_are_refused(text: str) -> None:
    with pytest.raises(ApiError, match="requirement") as refused:
        LabelSelector.parse(text)
    assert refused.value.code == 400


def test_prefixed_labels_are_selected() -> None:
    selector = LabelSelector.parse("latticeforge.dev/step=train,a!=b")
    assert selector.matches({"latticeforge.dev/step": "train"})
    assert selector.exact == (("latticeforge.dev/step", "train"),)
    assert not selector.matches({"latticeforge.dev/step": "train", "a": "b"})


def test_field_selectors_compare_as_text() -> None:
    selectable = frozenset({"spec.unschedulable", "status.phase"})
    assert FieldSelector.parse("spec.unschedulable=true", selectable).matches(
        {"spec": {"unschedulable": True}}
    )
    assert FieldSelector.parse("status.phase!=Failed", selectable).matches({})


OBJECT = {
    "metadata": {"labels": {"app.kubernetes.io/name": "a"}},
    "status": {
        "steps": [{"name": "train", "loss": 1.5}, {"name": "merge"}],
        "conditions": [
            {"type": "Ready", "status": "True"},
            {"type": "Failed", "status": "False"},
        ],
    },
}


@pytest.mark.parametrize(
    ("path", "found"),
    [
        (".status.steps[0].loss", [1.5]),
        ("{.status.steps[-1].name}", ["merge"]),
        (".status.steps[*].name", ["train", "merge"]),
        ('.status.conditions[?(@.type=="Ready")].status', ["True"]),
        (".status.conditions[?(@.type=='Failed')].status", ["False"]),
        (".metadata.labels['app.kubernetes.io/name']", ["a"]),
        (".metadata.labels.app\\.kubernetes\\.io/name", ["a"]),
        (".status.steps[7].name", []),
        (".none.such", []),
        (".status.steps[", []),
    ],
)
def test_json_paths(path: str, found: list[Any]) -> None:
    assert jsonpath.find(path, OBJECT) == found


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (119, "119s"),
        (120, "2m"),
        (330, "5m30s"),
        (47 * 60, "47m"),
        (3 * 3600 + 720, "3h12m"),
        (12 * 3600, "12h"),
        (76 * 3600, "3d4h"),
        (40 * 86400, "40d"),
        (768 * 86400, "2y38d"),
        (-5, "<invalid>"),
    ],
)
def test_durations_are_short(seconds: float, text: str) -> None:
    assert human_duration(seconds) == text


def varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def field(number: int, payload: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def secret(name: str, data: dict[str, bytes]) -> bytes:
    entries = [field(1, key.encode()) + field(2, value) for key, value in data.items()]
    labels = field(11, field(1, b"owner") + field(2, b"helm"))
    message = field(1, field(1, name.encode()) + labels)
    message += b"".join(field(2, entry) for entry in entries) + field(3, b"helm.sh/release.v1")
    types = field(1, field(1, b"v1") + field(2, b"Secret"))
    return b"k8s\x00" + types + field(2, message)


@given(st.dictionaries(st.text("abc", min_size=1), st.binary(max_size=300), max_size=3))
def test_secrets_are_read_from_protobuf(data: dict[str, bytes]) -> None:
    decoded = protobuf.decode(secret("release", data))
    assert decoded["metadata"] == {"name": "release", "labels": {"owner": "helm"}}
    assert decoded["type"] == "helm.sh/release.v1"
    assert set(decoded["data"]) == set(data)


@given(st.binary(max_size=200))
def test_broken_protobuf_is_an_error_for_the_client(body: bytes) -> None:
    with contextlib.suppress(ApiError):
        protobuf.decode(b"k8s\x00" + body)


@given(st.integers(4, 60))
def test_cut_off_protobuf_is_an_error_for_the_client(length: int) -> None:
    with pytest.raises(ApiError):
        protobuf.decode(secret("release", {"key": b"value" * 9})[:length])
