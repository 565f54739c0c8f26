"""A container's paths and names become this machine's, and nothing else does."""

from __future__ import annotations

from pathlib import Path

import pytest

from latticeforge_operator.devcluster.kubelet.paths import Translator

translate = Translator(
    {
        "/data": Path("/host/data"),
        "/data/cache/": Path("/host/cache"),
        "/etc/latticeforge": Path("/host/config"),
    },
    subdomain="train",
    namespace="ml",
)


@pytest.mark.parametrize(
    ("text", "translated"),
    [
        ("/data", "/host/data"),
        ("/data/x/y", "/host/data/x/y"),
        ("--out=/data/x", "--out=/host/data/x"),
        ("/data:/data/x", "/host/data:/host/data/x"),
        ("cat '/data/x' > \"/data/y\"", "cat '/host/data/x' > \"/host/data/y\""),
        ("file:///data/x", "file:///host/data/x"),
        ('{"path": "/data"}', '{"path": "/host/data"}'),
        ("/data/cache/x", "/host/cache/x"),
        ("/data/cached", "/host/data/cached"),
        ("/etc/latticeforge/step.json", "/host/config/step.json"),
        ("/database", "/database"),
        ("/data.old", "/data.old"),
        ("/srv/data", "/srv/data"),
        ("./data", "./data"),
        ("~/data", "~/data"),
        ("https://data.example/data", "https://data.example/data"),
        ("/etc", "/etc"),
    ],
)
def test_mount_paths(text: str, translated: str) -> None:
    assert translate(text) == translated


def test_a_folder_of_this_machine_is_not_translated_twice() -> None:
    nested = Translator({"/a": Path("/b/a"), "/b": Path("/c")}, "", "ml")
    assert nested("/a /b") == "/b/a /c"


@pytest.mark.parametrize(
    ("text", "translated"),
    [
        ("j-0.train", "127.0.0.1"),
        ("j-0.train:29500", "127.0.0.1:29500"),
        ("tcp://j-0.train.ml.svc.cluster.local:29500", "tcp://127.0.0.1:29500"),
        ("j-0.train.ml.svc", "127.0.0.1"),
        ("--rdzv-endpoint=j-0.train.ml", "--rdzv-endpoint=127.0.0.1"),
        ("j-0.train.", "127.0.0.1."),
        ("j-0.train.py", "j-0.train.py"),
        ("j-0.trainer", "j-0.trainer"),
        ("j-0.train-x", "j-0.train-x"),
        ("train", "train"),
        ("j-0.train.other.svc", "j-0.train.other.svc"),
    ],
)
def test_names_of_peers(text: str, translated: str) -> None:
    assert translate(text) == translated


@pytest.mark.parametrize(
    ("text", "translated"),
    [
        ("hub.ml.svc", "127.0.0.1"),
        ("http://hub.ml.svc:8080/x", "http://127.0.0.1:8080/x"),
        ("hub.other.svc.cluster.local", "127.0.0.1"),
        ("hub.ml.svc.example", "hub.ml.svc.example"),
        ("hub.ml.svcs", "hub.ml.svcs"),
        ("www.hub.ml.svc", "www.hub.ml.svc"),
    ],
)
def test_services_are_on_this_machine_too(text: str, translated: str) -> None:
    assert translate(text) == translated
    assert Translator({}, "", "ml")(text) == translated


def test_a_pod_without_a_subdomain_has_no_peers() -> None:
    assert Translator({}, "", "ml")("j-0.train") == "j-0.train"
