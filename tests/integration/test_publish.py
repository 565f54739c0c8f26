"""The publish step end to end: to the protocol Hub with injected faults, and to folders."""

from __future__ import annotations

import json
import logging
import os
import time
from pathlib import Path
from typing import Any

import httpx2
import pytest
from huggingface_hub import ModelCard
from tests.fixtures.hub_server import Fault, HubServer
from tests.fixtures.hub_state import File, Repo
from tests.unit.publishing.samples import ADAPTER_FILES, MERGED_FILES, make_config

from latticeforge_trainer.artifacts import Store
from latticeforge_trainer.contract import Progress, PublishConfig, PublishResult, StepKind
from latticeforge_trainer.errors import Interrupted, NetworkError, UserError
from latticeforge_trainer.progress import Reporter
from latticeforge_trainer.publishing import curve
from latticeforge_trainer.publishing import hub as hub_module
from latticeforge_trainer.steps import publish

REPOSITORY = "me/elle"
GENERATED = {"README.md", "loss_curve.png", "latticeforge.json"}
PUBLISHED = r"POST /api/models/me/elle/commit/main"


class Killed(BaseException):
    """The process ends here."""


class Recorder:
    """A progress sink that keeps what it is sent."""

    def __init__(self) -> None:
        self.sent: list[Progress] = []

    def send(self, progress: Progress) -> None:
        self.sent.append(progress)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture(autouse=True)
def picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the loss curve, whose drawing has tests of its own."""

    def draw(_: object, path: Path) -> bool:
        path.write_bytes(b"\x89PNG")
        return True

    monkeypatch.setattr(curve, "draw", draw)


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits between tries, which take no time."""
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    return waits


def run(
    config: PublishConfig, store: Store, sink: Recorder | None = None
) -> tuple[PublishResult, bool]:
    reporter = Reporter(StepKind.PUBLISH, config.digest, sink or Recorder(), interval=0)
    return publish.run(config, store, reporter)


def repo(hub: HubServer) -> Repo:
    return hub.repos["models", REPOSITORY]


def commits(hub: HubServer) -> int:
    """Commits after the one that creates a repository."""
    return len(repo(hub).history) - 1


# --- to the Hub -------------------------------------------------------------------------------


def test_a_model_is_published_whole_in_one_private_commit(hub: HubServer, store: Store) -> None:
    config = make_config(store, REPOSITORY)
    sink = Recorder()
    result, reused = run(config, store, sink)
    assert not reused
    assert commits(hub) == 1
    assert repo(hub).private
    assert f"LatticeForge-Digest: {config.digest}" in repo(hub).at("main").message  # type: ignore[union-attr]  # main exists
    assert repo(hub).files.keys() == MERGED_FILES.keys() | GENERATED
    assert all(repo(hub).files[name] == content for name, content in MERGED_FILES.items())
    assert result.commit == repo(hub).branches["main"]
    assert result.url == f"{hub.url}/{REPOSITORY}"
    assert result.files == len(repo(hub).files)
    assert result.bytes == sum(map(len, repo(hub).files.values()))
    assert store.manifest(config.digest).files.keys() == GENERATED  # type: ignore[union-attr]  # sealed
    assert store.verify(config.digest) == []
    uploads = [progress for progress in sink.sent if progress.message.startswith("uploading model")]
    assert uploads[-1].fraction == pytest.approx(1)
    assert uploads[0].eta_seconds is not None


def test_the_card_is_one_that_the_hub_accepts(hub: HubServer, store: Store) -> None:
    run(make_config(store, REPOSITORY), store)
    assert hub.requests("POST /api/validate-yaml")
    card = ModelCard(repo(hub).files["README.md"].decode())
    assert card.data.get("base_model") == "me/base"


def test_nothing_is_sent_the_second_time(hub: HubServer, store: Store) -> None:
    config = make_config(store, REPOSITORY)
    first, _ = run(config, store)
    hub.log.clear()
    second, reused = run(config, store)
    assert (second, reused) == (first, True)
    assert not hub.requests("POST|PUT")


def test_what_people_write_on_the_card_afterwards_stays(hub: HubServer, store: Store) -> None:
    config = make_config(store, REPOSITORY)
    run(config, store)
    hub.put(REPOSITORY, {"README.md": b"edited"})
    run(config, store)
    assert repo(hub).files["README.md"] == b"edited"


def test_a_hub_that_holds_the_model_is_left_as_it_is_by_a_fresh_store(
    hub: HubServer, store: Store, tmp_path: Path
) -> None:
    first, _ = run(make_config(store, REPOSITORY), store)
    other = Store(tmp_path / "other")
    second, reused = run(make_config(other, REPOSITORY), other)
    assert (second, reused) == (first, True)
    assert commits(hub) == 1


def test_a_deleted_repository_is_published_again(hub: HubServer, store: Store) -> None:
    config = make_config(store, REPOSITORY)
    run(config, store)
    del hub.repos["models", REPOSITORY]
    _, reused = run(config, store)
    assert not reused
    assert commits(hub) == 1


def test_a_changed_model_replaces_the_old_one_and_nothing_else(
    hub: HubServer, store: Store
) -> None:
    run(make_config(store, REPOSITORY), store)
    theirs = {"notes.md": b"theirs", "q4.gguf": b"quantized", "onnx/a.safetensors": b"{}"}
    hub.put(REPOSITORY, theirs | {"pytorch_model.bin": b"stale", ".gitattributes": b"lfs"})
    smaller = {"config.json": b"{}", "tokenizer_config.json": b"{}", "model.safetensors": b"new"}
    result, reused = run(make_config(store, REPOSITORY, files=smaller), store)
    assert not reused
    assert commits(hub) == 3  # ours, theirs, ours
    assert result.commit == repo(hub).branches["main"]
    expected = smaller.keys() | GENERATED | theirs.keys() | {".gitattributes", "LICENSE"}
    assert repo(hub).files.keys() == expected


def test_an_adapter_names_its_public_base(hub: HubServer, store: Store) -> None:
    run(make_config(store, REPOSITORY, artifact="Adapter"), store)
    files = repo(hub).files
    assert files.keys() == ADAPTER_FILES.keys() | GENERATED
    adapter = json.loads(files["adapter_config.json"])
    assert adapter["base_model_name_or_path"] == "me/base"
    assert adapter["r"] == 8
    assert files["README.md"].startswith(b"---\n")


# --- when the Hub fails ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        Fault(PUBLISHED, status=503),
        Fault(PUBLISHED, lose_reply=True),
        Fault(PUBLISHED, status=504, times=3),
        Fault(r"PUT /lfs/", status=500, times=2),
        Fault(r"PUT /lfs/", status=403),
        Fault(r"PUT /lfs/", lose_reply=True),
        Fault(r"objects/batch", status=502),
        Fault(r"GET /api/models/me/elle/tree", status=500, times=2),
        Fault(r"POST /api/repos/create", lose_reply=True),
        Fault(r"GET /api/models/me/elle($|\?)", status=429),
    ],
    ids=lambda fault: f"{fault.pattern}-{fault.status or 'lost'}",
)
def test_a_passing_fault_leaves_one_commit(
    hub: HubServer, store: Store, naps: list[float], fault: Fault
) -> None:
    hub.faults.append(fault)
    result, _ = run(make_config(store, REPOSITORY), store)
    assert fault.times == 0
    assert commits(hub) == 1
    assert result.commit == repo(hub).branches["main"]


def test_a_lost_commit_reply_is_found_and_not_repeated(
    hub: HubServer, store: Store, naps: list[float]
) -> None:
    hub.faults.append(Fault(PUBLISHED, lose_reply=True))
    run(make_config(store, REPOSITORY), store)
    assert len(hub.requests(PUBLISHED)) == 1


def test_the_hub_says_how_long_to_wait(hub: HubServer, store: Store, naps: list[float]) -> None:
    hub.faults.append(Fault(PUBLISHED, status=429, headers={"Retry-After": "37"}))
    run(make_config(store, REPOSITORY), store)
    assert naps == [37.0]


def test_a_hub_that_does_not_answer_is_given_up_and_asked_again(
    hub: HubServer, store: Store, naps: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_module, "TIMEOUT", httpx2.Timeout(30, read=1))
    hub.faults.append(Fault(PUBLISHED, delay=3))
    run(make_config(store, REPOSITORY), store)
    assert len(hub.requests(PUBLISHED)) == 2
    assert commits(hub) == 1


def test_a_hub_that_stays_down_ends_in_a_network_error(
    hub: HubServer, store: Store, naps: list[float]
) -> None:
    hub.faults.append(Fault(PUBLISHED, status=503, times=1000))
    config = make_config(store, REPOSITORY)
    with pytest.raises(NetworkError, match=r"^me/elle: the Hub answers 503$"):
        run(config, store)
    assert commits(hub) == 0
    assert len(naps) > 4
    assert store.manifest(config.digest) is None


def test_a_commit_by_someone_else_in_between_is_kept(
    hub: HubServer, store: Store, naps: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.put(REPOSITORY, {"notes.md": b"1"}, private=True)
    send = httpx2.Client.send
    raced: list[str] = []

    def race(self: httpx2.Client, request: httpx2.Request, **kwargs: Any) -> httpx2.Response:
        if "/commit/" in request.url.path and not raced:
            raced.append(hub.put(REPOSITORY, {"notes.md": b"2", "config.json": b"other"}))
        return send(self, request, **kwargs)

    monkeypatch.setattr(httpx2.Client, "send", race)
    run(make_config(store, REPOSITORY), store)
    assert raced
    assert repo(hub).files["notes.md"] == b"2"
    assert repo(hub).files["config.json"] == MERGED_FILES["config.json"]
    assert len(hub.requests(PUBLISHED)) == 2


def test_content_that_arrives_damaged_is_noticed(
    hub: HubServer, store: Store, naps: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    def tamper(self: HubServer, files: dict[str, File], key: str, value: dict[str, Any]) -> None:
        apply(self, files, key, value)
        if value["path"] == "config.json":
            del files["config.json"]

    apply = HubServer._apply
    monkeypatch.setattr(HubServer, "_apply", tamper)
    with pytest.raises(NetworkError, match=r"is not what was sent: config\.json"):
        run(make_config(store, REPOSITORY), store)


# --- killed ------------------------------------------------------------------------------------


class Fuse:
    """Kills the process when the Hub has served a request, before the answer is read.

    To the Hub that is the same as a kill just before the request that would have come next.
    """

    left = 0
    """Requests until then; 0: never."""

    def burn(self) -> None:
        if self.left:
            self.left -= 1
            if self.left == 0:
                raise Killed


@pytest.fixture
def fuse(monkeypatch: pytest.MonkeyPatch) -> Fuse:
    fuse, send = Fuse(), httpx2.Client.send

    def burn(self: httpx2.Client, request: httpx2.Request, **kwargs: Any) -> httpx2.Response:
        response = send(self, request, **kwargs)
        fuse.burn()
        return response

    monkeypatch.setattr(httpx2.Client, "send", burn)
    return fuse


def test_killed_at_any_request_and_started_again_makes_one_commit(
    hub: HubServer, tmp_path: Path, naps: list[float], fuse: Fuse
) -> None:
    kills = 0
    while kills < 100:
        hub.repos.clear()
        hub._blobs.clear()
        store = Store(tmp_path / f"store-{kills}")
        fuse.left = kills + 1
        try:
            run(make_config(store, REPOSITORY, cost="1 USD"), store)
        except Killed:
            kills += 1
        else:
            break
        fuse.left = 0
        # What it cost went on counting: the card must not become another one for that.
        result, _ = run(make_config(store, REPOSITORY, cost="2 USD"), store)
        assert commits(hub) == 1, f"killed at request {kills}"
        assert result.commit == repo(hub).branches["main"]
    assert kills > 12


def test_what_the_hub_has_is_not_sent_again_after_a_restart(
    hub: HubServer, store: Store, naps: list[float]
) -> None:
    config = make_config(store, REPOSITORY)
    hub.faults.append(Fault(PUBLISHED, status=503, times=8))
    with pytest.raises(NetworkError):
        run(config, store)
    run(config, store)
    assert len(hub.requests("PUT /lfs/")) == 2


def test_being_asked_to_stop_in_an_upload_is_no_failure_of_the_hub(
    hub: HubServer, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(self: hub_module._Meter, name: str, count: int) -> None:
        raise Interrupted("asked to stop")

    monkeypatch.setattr(hub_module._Meter, "sent", interrupt)
    with pytest.raises(Interrupted):
        run(make_config(store, REPOSITORY), store)


# --- refused -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        (("me/elle", "wrong"), "refuses the token in HF_TOKEN"),
        (("me/elle", "hf_read"), "may not write to me/elle"),
        (("stranger/elle", "hf_write"), "may not write to stranger/elle"),
        (("me/elle", ""), "HF_TOKEN is not set"),
        (("elle", "hf_write"), "expected owner/name"),
        (("me/el--le", "hf_write"), "no valid name"),
    ],
)
def test_a_refusal_is_one_sentence_that_says_what_to_do(
    hub: HubServer,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    target: tuple[str, str],
    sentence: str,
) -> None:
    repository, token = target
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(UserError, match=sentence) as caught:
        run(make_config(store, repository), store)
    assert "\n" not in str(caught.value)
    assert not (token and token in str(caught.value).replace("HF_TOKEN", ""))


def test_a_repository_that_is_lost_meanwhile_is_a_404_in_words(
    hub: HubServer, store: Store
) -> None:
    hub.faults.append(Fault(r"POST .*/preupload/", status=404))
    with pytest.raises(UserError, match="knows no me/elle"):
        run(make_config(store, REPOSITORY), store)


def test_a_private_model_never_goes_into_a_public_repository(hub: HubServer, store: Store) -> None:
    hub.put(REPOSITORY, {"README.md": b"hello"})
    with pytest.raises(UserError, match=r"is public, but publish\.private is true"):
        run(make_config(store, REPOSITORY), store)
    run(make_config(store, REPOSITORY, private=False), store)
    assert not repo(hub).private


def test_the_token_is_nowhere(
    hub: HubServer, store: Store, naps: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    sink = Recorder()
    hub.faults.append(Fault(PUBLISHED, status=503))
    run(make_config(store, REPOSITORY), store, sink)
    written = b"".join(path.read_bytes() for path in store.root.rglob("*") if path.is_file())
    public = b"".join(repo(hub).files.values())
    reports = "".join(progress.model_dump_json() for progress in sink.sent)
    assert hub.token not in caplog.text + reports
    assert hub.token.encode() not in written + public


@pytest.mark.parametrize("name", ["pytorch_model.bin", "modeling_custom.py", "state.pt"])
def test_what_may_run_code_is_never_published(hub: HubServer, store: Store, name: str) -> None:
    with pytest.raises(UserError, match=f"{name} is not published"):
        run(make_config(store, REPOSITORY, files=MERGED_FILES | {name: b"x"}), store)
    assert not hub.repos


def test_damaged_weights_are_never_published(hub: HubServer, store: Store) -> None:
    config = make_config(store, REPOSITORY)
    weights = store.path(str(config.runtime.model.artifact)) / "model/config.json"
    weights.write_bytes(weights.read_bytes()[::-1])
    with pytest.raises(UserError, match=r"config\.json in the store is not what was written"):
        run(config, store)
    assert not hub.repos


def test_files_are_streamed_not_read_whole(
    hub: HubServer, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, largest = hub_module._Watched.read, [0]

    def watch(self: hub_module._Watched, size: int | None = -1, /) -> bytes:
        data = read(self, size)
        largest[0] = max(largest[0], len(data))
        return data

    monkeypatch.setattr(hub_module._Watched, "read", watch)
    big = MERGED_FILES | {"model-00001-of-00002.safetensors": os.urandom(1000) * 8000}
    run(make_config(store, REPOSITORY, files=big), store)
    assert 0 < largest[0] <= 1 << 20


# --- to a folder -------------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_a_folder_gets_what_the_hub_would(hub: HubServer, store: Store) -> None:
    run(make_config(store, REPOSITORY), store)
    config = make_config(store, "./published/elle")
    result, reused = run(config, store)
    folder = store.root / "published/elle"
    assert not reused
    assert contents(folder).keys() == repo(hub).files.keys()
    assert all(contents(folder)[name] == data for name, data in MERGED_FILES.items())
    assert result.url == folder.as_uri()
    assert [path.name for path in folder.parent.iterdir()] == ["elle"]
    assert run(config, store) == (result, True)


def test_a_folder_that_was_changed_is_published_again(store: Store) -> None:
    config = make_config(store, "./published")
    first, _ = run(config, store)
    (store.root / "published/config.json").write_bytes(b"edited")
    (store.root / "published/notes.txt").write_bytes(b"theirs")
    second, reused = run(config, store)
    assert not reused
    assert second.commit == first.commit
    assert (store.root / "published/config.json").read_bytes() == MERGED_FILES["config.json"]
    assert (store.root / "published/notes.txt").read_bytes() == b"theirs"


def test_a_smaller_model_leaves_no_shard_of_the_larger_one(store: Store) -> None:
    run(make_config(store, "./published"), store)
    smaller = {"config.json": b"{}", "tokenizer_config.json": b"{}", "model.safetensors": b"new"}
    run(make_config(store, "./published", files=smaller), store)
    assert contents(store.root / "published").keys() == smaller.keys() | GENERATED


def test_a_folder_of_someone_else_is_left_alone(store: Store) -> None:
    folder = store.root / "published"
    folder.mkdir(parents=True)
    (folder / "thesis.tex").write_bytes(b"years of work")
    with pytest.raises(UserError, match="did not publish; nothing was changed"):
        run(make_config(store, "./published"), store)
    assert contents(folder) == {"thesis.tex": b"years of work"}


def test_writing_to_the_published_weights_cannot_reach_the_store(store: Store) -> None:
    config = make_config(store, "./published")
    run(config, store)
    weights = store.root / "published/model-00001-of-00002.safetensors"
    original = store.path(str(config.runtime.model.artifact)) / "model" / weights.name
    shared = weights.stat().st_ino == original.stat().st_ino
    assert not shared or weights.stat().st_mode & 0o222 == 0
