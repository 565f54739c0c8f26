"""The tests' own Hub, driven by the real client: what other tests rely on."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError
from tests.fixtures.hub_server import Fault, HubServer


def test_a_folder_goes_up_and_comes_down(hub: HubServer, tmp_path: Path) -> None:
    folder = tmp_path / "up"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"w" * 5000)
    api = HfApi(endpoint=hub.url, token=hub.token)
    api.create_repo("me/model", private=True)
    commit = api.upload_folder(repo_id="me/model", folder_path=folder)
    assert hub.repos["models", "me/model"].private
    assert hub.repos["models", "me/model"].files["model.safetensors"] == b"w" * 5000
    down = snapshot_download(
        "me/model", revision=commit.oid, endpoint=hub.url, token=hub.token, local_dir=tmp_path / "d"
    )
    assert (Path(down) / "model.safetensors").read_bytes() == b"w" * 5000
    assert (Path(down) / "config.json").read_text() == "{}"


def test_a_cut_download_is_resumed_by_the_client(hub: HubServer, tmp_path: Path) -> None:
    hub.put("me/model", {"model.safetensors": bytes(range(256)) * 400})
    hub.faults.append(Fault(r"GET /lfs/.*model\.safetensors", cut_after=70_000))
    path = HfApi(endpoint=hub.url, token=hub.token).hf_hub_download(
        "me/model", "model.safetensors", local_dir=tmp_path
    )
    assert Path(path).read_bytes() == bytes(range(256)) * 400
    assert len(hub.requests("GET /lfs/")) == 2


def test_tokens_decide_who_reads_and_writes(hub: HubServer) -> None:
    hub.put("me/private", {"a": b"1"}, private=True)
    hub.put("me/gated", {"a": b"1"}, gated=True)
    anonymous = HfApi(endpoint=hub.url, token=False)
    reader = HfApi(endpoint=hub.url, token=hub.read_token)
    with pytest.raises(RepositoryNotFoundError):
        anonymous.model_info("me/private")
    with pytest.raises(GatedRepoError):
        reader.auth_check("me/gated")
    with pytest.raises(HfHubHTTPError, match="403"):
        reader.auth_check("me/private", write=True)
    with pytest.raises(HfHubHTTPError, match="403"):
        reader.create_repo("me/other")
    HfApi(endpoint=hub.url, token=hub.token).auth_check("me/private", write=True)


def test_a_lost_reply_leaves_the_commit(hub: HubServer, tmp_path: Path) -> None:
    hub.put("me/model", {"a": b"1"})
    hub.faults.append(Fault(r"POST .*/commit/", lose_reply=True))
    with pytest.raises(Exception, match=r"disconnected|reset|closed"):
        HfApi(endpoint=hub.url, token=hub.token).upload_file(
            repo_id="me/model", path_or_fileobj=b"2", path_in_repo="b", commit_message="add b"
        )
    assert hub.repos["models", "me/model"].history[0] == "add b"
