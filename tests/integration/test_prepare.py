"""The prepare step: what it refuses, what it leaves behind, what it finds done."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.fixtures.hub_server import Fault, HubServer
from tests.fixtures.preparing import CHATS, Sent, config_of, make_store, run, write_rows

from latticeforge_trainer.artifacts import Store
from latticeforge_trainer.contract import (
    DataSource,
    ExitCode,
    Method,
    PrepareResult,
    Progress,
    PublishPayload,
    Recipe,
    StepKind,
    TrainResult,
    step_digest,
)
from latticeforge_trainer.data.packed import PackedData
from latticeforge_trainer.data.sources import locate_source
from latticeforge_trainer.errors import NetworkError, UserError
from latticeforge_trainer.hub import DOWNLOAD
from latticeforge_trainer.models.base import fingerprint, locate_base
from latticeforge_trainer.progress import Reporter
from latticeforge_trainer.publishing import failures
from latticeforge_trainer.steps import prepare

# Per layer: q, k and v with biases, o; gate, up, down; two norms.
_LAYER = 128 * 128 + 128 + 2 * (128 * 64 + 64) + 128 * 128 + 3 * 128 * 256 + 2 * 128
PARAMETERS = 2 * 288 * 128 + 2 * _LAYER + 128
TRAINED = TrainResult(steps=1, tokens=1, first_loss=2, final_loss=1, seconds=1, tokens_per_second=1)


@pytest.fixture
def store(tmp_path: Path, tiny_model: Path) -> Store:
    return make_store(tmp_path / "store", tiny_model)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "_backoff", lambda _: 0.01)


# --- what it leaves behind ---------------------------------------------------------------------


def test_it_leaves_packed_data_and_facts(store: Store) -> None:
    write_rows(store.root / "more.jsonl", [{"text": "x" * n} for n in (1, 10, 30, 100)])
    sink = Sent()
    config = config_of(
        DataSource(source="./chats.jsonl", weight=4), DataSource(source="./more.jsonl"), epochs=2
    )
    result, reused = run(store, config, sink)
    assert not reused
    assert result.base.architecture == "Qwen2ForCausalLM"
    assert result.base.path == "./base"
    assert (result.base.hidden_size, result.base.layers, result.base.vocabulary) == (128, 2, 288)
    assert result.base.parameters == PARAMETERS
    assert result.base.quantization is None
    chats, texts = result.data
    assert (chats.samples, chats.truncated, chats.skipped) == (20, 0, 0)
    assert (texts.samples, texts.truncated, texts.skipped) == (4, 1, 0)  # "x" and its end
    assert texts.tokens == 2 + 11 + 31 + 64
    data = PackedData(store.require(result.artifact, "data"))
    assert (len(data), data.sequence_length) == (result.sequences, 64)
    batch = data.batch(range(len(data)))
    assert int(data.lengths.sum()) == result.tokens
    assert int(batch["loss_mask"].sum()) == result.target_tokens
    assert result.tokens > 2 * chats.tokens
    assert store.verify(result.artifact) == []
    fractions = [progress.fraction for progress in sink.messages]
    assert fractions == sorted(fractions)
    assert any("tokenizing: 24 of 24 samples" in p.message for p in sink.messages)


def test_a_second_run_reuses_it_without_tokenizer_or_torch(store: Store) -> None:
    first, _ = run(store, config_of())
    path = store.root / "step.json"
    path.write_text(json.dumps(config_of().to_json()))
    code = (
        "import sys, time, pathlib; start = time.monotonic()\n"
        "from latticeforge_trainer.__main__ import load_config, run_step\n"
        "from latticeforge_trainer.artifacts import Store\n"
        "from latticeforge_trainer.progress import Reporter\n"
        "class Sink:\n"
        "    def send(self, p): print(p.model_dump_json(by_alias=True)) if p.result else None\n"
        f"config = load_config(pathlib.Path({str(path)!r}), 'prepare')\n"
        f"store = Store(pathlib.Path({str(store.root)!r}))\n"
        "run_step(config, store, Reporter('prepare', config.digest, Sink()))\n"
        "print({'torch', 'transformers', 'tokenizers'} & set(sys.modules))\n"
    )
    start = time.monotonic()
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds = time.monotonic() - start
    report, heavy = out.stdout.splitlines()
    progress = Progress.model_validate_json(report)
    assert progress.reused
    assert progress.result == first
    assert heavy == "set()"
    assert seconds < 10  # generous: the machine does other work


@pytest.mark.parametrize(
    "change",
    [
        lambda root: write_rows(root / "chats.jsonl", CHATS[:-1]),
        lambda root: (root / "base" / "tokenizer_config.json").write_text("{}"),
        lambda root: (root / "base" / "model.safetensors").touch(),
    ],
    ids=["data", "tokenizer", "weights"],
)
def test_what_it_read_decides_the_digest(store: Store, change: Callable[[Path], object]) -> None:
    config = config_of()
    base = locate_base(config.payload.base, store)
    sources = [locate_source(s, store) for s in config.payload.data]
    before = prepare.artifact_digest(config.payload, base, sources, None)
    change(store.root)
    base = locate_base(config.payload.base, store)
    sources = [locate_source(s, store) for s in config.payload.data]
    assert prepare.artifact_digest(config.payload, base, sources, None) != before


def test_a_readme_does_not_change_the_models_fingerprint(store: Store) -> None:
    before = fingerprint(store.root / "base")
    (store.root / "base" / "README.md").write_text("---\nlicense: mit\n---\n")
    assert fingerprint(store.root / "base") == before
    assert run(store, config_of())[0].base.licence == "mit"


def test_a_result_of_an_earlier_version_gets_the_bases_sizes(store: Store) -> None:
    first, _ = run(store, config_of())
    path = store.path(first.artifact) / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["result"]["base"]["config"]
    path.write_text(json.dumps(manifest))
    again, reused = run(store, config_of())
    assert reused
    assert again.base == first.base


def test_it_finds_later_results(store: Store) -> None:
    artifact = run(store, config_of())[0].artifact
    train = step_digest(StepKind.TRAIN, {"lr": 1}, [artifact])
    merge = step_digest(StepKind.MERGE, {}, [train, "e" * 64])
    with store.create(train) as staging:
        staging.seal(StepKind.TRAIN, TRAINED)
    with store.create(merge) as staging:
        staging.seal(StepKind.MERGE, TRAINED)
    lookup = [
        Recipe(name="train", kind=StepKind.TRAIN, payload={"lr": 1}, inputs=["prepare"]),
        Recipe(name="other", kind=StepKind.TRAIN, payload={"lr": 2}, inputs=["prepare"]),
        Recipe(name="merge", kind=StepKind.MERGE, payload={}, inputs=["train", "earlier"]),
        Recipe(name="later", kind=StepKind.TRAIN, payload={"lr": 1}, inputs=["unknown"]),
    ]
    config = config_of(step_name="prepare", known={"earlier": "e" * 64}, lookup=lookup)
    result, reused = run(store, config)
    assert reused
    assert result.found == {train: TRAINED, merge: TRAINED}
    manifest = store.manifest(artifact)
    assert isinstance(manifest and manifest.result, PrepareResult)
    assert manifest.result.found == {}  # type: ignore[union-attr]  # stated by the line above


# --- what it refuses ---------------------------------------------------------------------------


def edit_config(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def only_pickles(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def adapter(folder: Path) -> None:
    (folder / "config.json").rename(folder / "adapter_config.json")


NF4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}

BROKEN: list[tuple[str, Callable[[Path], object], str]] = [
    ("pickles", only_pickles, "holds no safetensors weights, only pytorch_model.bin, which can"),
    ("adapter", adapter, "is an adapter, not a model"),
    ("no-config", lambda f: (f / "config.json").unlink(), "holds no config.json"),
    ("bad-config", lambda f: (f / "config.json").write_text("{"), "config.json is no valid JSON"),
    ("list-config", lambda f: (f / "config.json").write_text("[]"), "config.json is not an object"),
    ("odd", lambda f: edit_config(f, model_type="odd", auto_map={}), "model type 'odd' is no"),
    ("code", lambda f: edit_config(f, model_type="odd", auto_map={"A": "b.C"}), "is never run"),
    ("rows", lambda f: edit_config(f, vocab_size=300), "300 tokens, but the embedding has 288"),
    ("weights", lambda f: (f / "model.safetensors").write_bytes(b"x"), "no valid safetensors file"),
    (
        "index",
        lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": "b"}}'),
        "b is missing, which model.safetensors.index.json names",
    ),
    ("no-tokenizer", lambda f: (f / "tokenizer.json").unlink(), "holds no tokenizer"),
    ("bad-tokenizer", lambda f: (f / "tokenizer.json").write_text("{"), "no usable tokenizer"),
    (
        "no-template",
        lambda f: (f / "chat_template.jinja").unlink(),
        "line 1 holds chats, but the base model's tokenizer has no chat template",
    ),
    (
        "gptq",
        lambda f: edit_config(f, quantization_config={"quant_method": "gptq", "bits": 4}),
        "holds gptq weights, which serve inference only",
    ),
    (
        "int4",
        lambda f: edit_config(f, quantization_config={"bits": 4}),
        "train on the 16-bit model it was made from (method Full, LoRA or QLoRA), or on an NF4",
    ),
    (
        "nf4",
        lambda f: edit_config(f, quantization_config=NF4),
        "holds NF4 weights, which method LoRA cannot train: use method QLoRA",
    ),
]


@pytest.mark.parametrize(
    ("breaking", "sentence"), [b[1:] for b in BROKEN], ids=[b[0] for b in BROKEN]
)
def test_a_base_that_cannot_be_trained_is_refused(
    store: Store, breaking: Callable[[Path], object], sentence: str
) -> None:
    breaking(store.root / "base")
    sink = Sent()
    with pytest.raises(UserError) as error:
        run(store, config_of(), sink)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)
    assert not any("tokenizing" in progress.message for progress in sink.messages)


def test_every_source_is_checked_before_the_first_is_tokenized(store: Store) -> None:
    (store.root / "base" / "chat_template.jinja").unlink()
    write_rows(store.root / "texts.jsonl", [{"text": "Once"}])
    sink = Sent()
    with pytest.raises(UserError, match=r"\./chats\.jsonl, line 1 holds chats"):
        run(store, config_of("./texts.jsonl", "./chats.jsonl"), sink)
    assert not any("tokenizing" in progress.message for progress in sink.messages)


def test_integers_without_a_declaration_are_refused(store: Store) -> None:
    import torch  # noqa: PLC0415  (slow; only here)
    from safetensors.torch import load_file, save_file  # noqa: PLC0415  (as above)

    path = store.root / "base" / "model.safetensors"
    save_file({name: tensor.to(torch.int8) for name, tensor in load_file(path).items()}, path)
    with pytest.raises(UserError, match="holds integer weights, which serve inference only"):
        run(store, config_of())


def test_an_nf4_base_is_for_qlora_without_merge(store: Store) -> None:
    edit_config(store.root / "base", quantization_config=NF4)
    with pytest.raises(UserError, match="merging an adapter into 4-bit weights"):
        run(store, config_of(method=Method.QLORA, merges=True))
    result, _ = run(store, config_of(method=Method.QLORA))
    assert result.base.quantization == "nf4"
    with pytest.raises(UserError, match="which method Full cannot train"):
        run(store, config_of(method=Method.FULL))  # the data is there, the check is made again


def test_a_tokenizer_larger_than_the_embedding_is_refused(store: Store) -> None:
    from transformers import AutoTokenizer  # noqa: PLC0415  (slow)

    tokenizer = AutoTokenizer.from_pretrained(store.root / "base")
    tokenizer.add_tokens([f"<extra {n}>" for n in range(40)])
    tokenizer.save_pretrained(store.root / "base")
    with pytest.raises(UserError, match="has 299 tokens, but the embedding only 288 rows"):
        run(store, config_of())


DATA: list[tuple[str, Mapping[str, bytes], str]] = [
    ("./none", {}, "there is no file or folder"),
    ("./none", {}, "relative paths are relative to the store's root"),
    ("./d", {"d/notes.txt": b"x"}, "no data files; known are .jsonl"),
    ("./d.txt", {"d.txt": b"x"}, "no data file; known are .jsonl"),
    ("./d.jsonl", {"d.jsonl": b""}, "./d.jsonl holds no samples"),
    ("./d", {"d/a.jsonl": b'{"text": "x"}\n{"text": 1}\n'}, "./d/a.jsonl, line 2: 'text' must be"),
    ("./d.jsonl", {"d.jsonl": b'{"prompt": "x", "completion": ""}'}, "none of its 1 samples has"),
    ("./d.jsonl", {"d.jsonl": b'{"text": "\xff"}'}, "line 1: not UTF-8"),
    ("../d.jsonl", {}, "relative paths stay below the store's root"),
    ("file://host/d.jsonl", {}, "a file URL has three slashes"),
]


@pytest.mark.parametrize(("source", "files", "sentence"), DATA)
def test_data_that_cannot_be_used_is_refused(
    store: Store, source: str, files: Mapping[str, bytes], sentence: str
) -> None:
    for name, content in files.items():
        (store.root / name).parent.mkdir(exist_ok=True)
        (store.root / name).write_bytes(content)
    with pytest.raises(UserError) as error:
        run(store, config_of("./chats.jsonl", source))
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_subsets_of_a_file_and_missing_bases_are_refused(store: Store) -> None:
    with pytest.raises(UserError, match="a single file has neither subsets nor splits"):
        run(store, config_of(DataSource(source="./chats.jsonl", subset="a")))
    with pytest.raises(UserError, match="there is no such folder"):
        run(store, config_of(base="./nowhere"))


def test_circles_of_links_and_impossible_names_are_refused(store: Store) -> None:
    (store.root / "circle").symlink_to(store.root / "circle")
    for reference in ("./circle", "./a\0b", "./" + "x" * 300, f"file://{store.root}/circle"):
        with pytest.raises(UserError) as error:
            run(store, config_of(reference))
        assert "\n" not in str(error.value)
        with pytest.raises(UserError) as error:
            run(store, config_of(base=reference))
        assert "\n" not in str(error.value)


def test_a_full_disk_is_noticed_before_anything_is_written(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(store.root)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(UserError, match=r"packed data needs .* MiB of disk, but .* enlarge"):
        run(store, config_of())
    assert not (store.root / ".latticeforge" / "artifacts").exists()


def test_a_destination_that_is_not_writable_is_refused(store: Store) -> None:
    (store.root / "file").touch()
    for repository in ("./file/model", f"file://{store.root}/file/deeper/model"):
        destination = PublishPayload(repository=repository, artifact="Merged")
        with pytest.raises(UserError, match=r"publish\.repository .*/model: .*/file is not"):
            run(store, config_of(destination=destination))
    destination = PublishPayload(repository="./new/model", artifact="Merged")
    run(store, config_of(destination=destination))
    assert not (store.root / "new").exists()


# --- the Hub -----------------------------------------------------------------------------------


@pytest.fixture
def published(hub: HubServer, tiny_model: Path) -> HubServer:
    """A Hub with the tiny model as me/tiny and chats as the data set me/chats."""
    files = {path.name: path.read_bytes() for path in tiny_model.iterdir()}
    files |= {
        "README.md": b"---\nlicense: apache-2.0\n---\n",
        "modeling_tiny.py": b"raise SystemExit",
        "pytorch_model.bin": b"pickle",
        "original/params.json": b"{}",
    }
    hub.put("me/tiny", files)
    rows = "".join(json.dumps(row) + "\n" for row in CHATS).encode()
    readme = b"---\nconfigs:\n- config_name: sums\n  data_files: sums/*.jsonl\n---\n"
    data = {"README.md": readme, "sums/a.jsonl": rows, "other/b.jsonl": b"broken"}
    hub.put("me/chats", data, kind="datasets")
    return hub


HUB_DATA = DataSource(source="me/chats", subset="sums")


def test_a_hub_model_and_data_set_are_brought(published: HubServer, store: Store) -> None:
    sink = Sent()
    result, _ = run(store, config_of(HUB_DATA, base="me/tiny"), sink)
    model, data = published.repos["models", "me/tiny"], published.repos["datasets", "me/chats"]
    assert result.base.revision == model.branches["main"]
    assert result.data[0].revision == data.branches["main"]
    assert result.base.licence == "apache-2.0"
    folder = store.resolve(result.base.path)
    assert folder is not None
    brought = {path.name for path in folder.iterdir() if path.is_file()}
    assert "model.safetensors" in brought
    assert not brought & {"modeling_tiny.py", "pytorch_model.bin"}
    assert not (folder / "original").exists()
    assert any("downloading me/tiny: 1.4 MiB" in p.message for p in sink.messages)
    seen = len(published.log)
    again, reused = run(store, config_of(HUB_DATA, base="me/tiny"))
    assert (again, reused) == (result, True)
    assert len(published.log) == seen + 2  # one question for each revision
    (folder / "model.safetensors").unlink()
    assert run(store, config_of(HUB_DATA, base="me/tiny"))[1] is False
    assert (folder / "model.safetensors").exists()


def test_a_new_commit_is_another_result(published: HubServer, store: Store) -> None:
    first, _ = run(store, config_of(HUB_DATA, base="me/tiny"))
    published.put("me/chats", {"sums/b.jsonl": json.dumps(CHATS[0]).encode()}, kind="datasets")
    second, reused = run(store, config_of(HUB_DATA, base="me/tiny"))
    assert not reused
    assert (first.data[0].samples, second.data[0].samples) == (20, 21)
    assert second.base == first.base


def test_the_base_is_told_before_data_and_weights_move(published: HubServer, store: Store) -> None:
    moved: list[int] = []

    class Counting(Sent):
        def send(self, progress: Progress) -> None:
            super().send(progress)
            moved.append(len(published.requests(r"GET /(lfs|datasets)/")))

    sink, config = Counting(), config_of(HUB_DATA, base="me/tiny")
    reporter = Reporter(StepKind.PREPARE, config.digest, sink, interval=3600)
    result, _ = prepare.run(config, store, reporter)
    assert [report.base for report in sink.messages] == [None, result.base]
    assert moved == [0, 1], "what moved first is the weights' header alone"
    assert result.base.config is not None
    assert result.base.config["model_type"] == "qwen2"


def test_everything_is_refused_before_the_weights_move(published: HubServer, store: Store) -> None:
    published.put("me/chats", {"sums/a.jsonl": b'{"messages": []}'}, kind="datasets")
    with pytest.raises(UserError, match=r"me/chats: sums/a\.jsonl, line 1: 'messages' is empty"):
        run(store, config_of(HUB_DATA, base="me/tiny"))
    moved = published.requests(r"GET /lfs/.*model\.safetensors")
    assert len(moved) == 1  # its header


@pytest.mark.parametrize(
    "fault",
    [
        Fault(r"GET /api/models/me/tiny/revision", status=503, times=2),
        Fault(r"GET /api/datasets/me/chats/tree", status=429, headers={"Retry-After": "0"}),
        Fault(r"GET /api/datasets/me/chats/revision", status=429, headers={"Retry-After": "0"}),
        Fault(r"HEAD .*model\.safetensors", status=500),
        Fault(r"GET /lfs/", after=1, status=503),
        Fault(r"GET /lfs/", after=1, cut_after=300_000),
        Fault(r"GET /api/models/me/tiny/tree", lose_reply=True),
    ],
    ids=["revision", "tree", "asked-to-wait", "head", "weights", "cut", "lost"],
)
def test_passing_faults_are_survived(published: HubServer, store: Store, fault: Fault) -> None:
    published.faults.append(fault)
    result, _ = run(store, config_of(HUB_DATA, base="me/tiny"))
    folder = store.resolve(result.base.path)
    assert folder is not None
    weights = published.repos["models", "me/tiny"].files["model.safetensors"]
    assert (folder / "model.safetensors").read_bytes() == weights
    assert fault.times == 0


def test_a_lasting_fault_is_a_network_error_and_what_was_brought_is_kept(
    published: HubServer, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failures, "ATTEMPTS", 2)
    published.put("me/tiny", split_weights(published.repos["models", "me/tiny"].files))
    fault = Fault(r"GET /lfs/.*file=model-00002", status=503, after=1, times=1000)
    published.faults.append(fault)
    with pytest.raises(NetworkError, match="Hub model me/tiny: the Hub answers 503"):
        run(store, config_of(HUB_DATA, base="me/tiny"))
    published.faults.clear()
    seen = len(published.log)
    result, _ = run(store, config_of(HUB_DATA, base="me/tiny"))
    moved = [line for line in published.log[seen:] if line.startswith("GET /lfs/")]
    first, second = (f"file=model-0000{n}-of-00002.safetensors" for n in (1, 2))
    # Each header once more; only the shard that was missing in full.
    assert [sum(name in line for line in moved) for name in (first, second)] == [1, 2]
    assert result.base.parameters == PARAMETERS


def split_weights(files: dict[str, bytes]) -> dict[str, bytes]:
    """The tiny model's weights as two shards with an index."""
    from safetensors.torch import load, save  # noqa: PLC0415  (brings torch)

    tensors = load(files["model.safetensors"])
    names = sorted(tensors)
    parts = [names[: len(names) // 2], names[len(names) // 2 :]]
    shards = {
        f"model-0000{n}-of-00002.safetensors": save({name: tensors[name] for name in part})
        for n, part in enumerate(parts, start=1)
    }
    owner = dict(zip(shards, parts, strict=True))
    index = {"weight_map": {name: shard for shard, part in owner.items() for name in part}}
    return {**shards, "model.safetensors.index.json": json.dumps(index).encode()}


def test_a_file_that_may_not_be_read_is_not_asked_for_again(
    published: HubServer, store: Store
) -> None:
    published.faults.append(Fault(r"HEAD .*tokenizer\.json", status=403, times=100))
    with pytest.raises(UserError, match=r"refuses to show Hub model me/tiny .* \(status 403\)"):
        run(store, config_of(base="me/tiny"))


def test_a_refused_file_ends_the_waiting_for_the_others(published: HubServer, store: Store) -> None:
    published.faults += [
        Fault(r"GET .*README", status=503, headers={"Retry-After": "600"}, times=100),
        Fault(r"HEAD .*tokenizer\.json", status=403, times=100),
    ]
    with pytest.raises(UserError, match=r"refuses to show Hub model me/tiny .* \(status 403\)"):
        run(store, config_of(base="me/tiny"))
    for thread in threading.enumerate():
        if thread.name == DOWNLOAD:
            thread.join(60)
    assert DOWNLOAD not in {thread.name for thread in threading.enumerate()}


def test_what_the_hub_refuses_is_said(
    published: HubServer, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    published.put("you/gated", {"config.json": b"{}"}, gated=True)
    cases = {
        "me/none": "Hub model me/none was not found: check the name; if it is private, the token",
        "you/gated": "Hub model you/gated is gated and the token in HF_TOKEN may not see it",
        "me/one/two": "neither a Hub repository (owner/name) nor a path",
    }
    for base, sentence in cases.items():
        with pytest.raises(UserError) as error:
            run(store, config_of(base=base))
        assert sentence in str(error.value)
        assert "\n" not in str(error.value)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UserError, match="if it is private, HF_TOKEN is not set"):
        run(store, config_of(base="me/none"))
    with pytest.raises(UserError, match=r"for the path below .* write \./base/config\.json"):
        run(store, config_of("base/config.json"))
    source = DataSource(source="me/chats", revision="v9")
    with pytest.raises(UserError, match="Hub dataset me/chats has no revision 'v9'"):
        run(store, config_of(source))


@pytest.mark.parametrize(
    ("repository", "token", "sentence"),
    [
        ("me/new", None, "needs a token with write access"),
        ("me/new", "hf_read", "may only read"),
        ("me/new", "wrong", "status 401"),
        ("you/new", "hf_write", "belongs to me, who may not create repositories of you"),
        ("you/theirs", "hf_write", "may not write to you/theirs"),
        ("me/new", "hf_write", None),
        ("lab/new", "hf_write", None),
        ("me/tiny", "hf_write", None),
    ],
)
def test_the_token_must_be_able_to_publish(
    published: HubServer,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    *,
    repository: str,
    token: str | None,
    sentence: str | None,
) -> None:
    published.put("you/theirs", {"a": b""})
    monkeypatch.delenv("HF_TOKEN") if token is None else monkeypatch.setenv("HF_TOKEN", token)
    destination = PublishPayload(repository=repository, artifact="Merged")
    before = set(published.repos)
    if sentence:
        with pytest.raises(UserError, match=sentence):
            run(store, config_of(destination=destination))
    else:
        run(store, config_of(destination=destination))
    assert set(published.repos) == before


def test_a_signal_ends_a_download_at_once(published: HubServer, store: Store) -> None:
    published.faults.append(Fault(r"GET /lfs/", after=1, delay=600))
    path = store.root / "step.json"
    path.write_text(json.dumps(config_of(HUB_DATA, base="me/tiny").to_json()))
    command = [sys.executable, "-m", "latticeforge_trainer", "prepare", "--config", str(path)]
    with subprocess.Popen(
        [*command, "--store", str(store.root)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stderr=subprocess.DEVNULL,
    ) as process:
        deadline = time.monotonic() + 60
        while len(published.requests("GET /lfs/")) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == ExitCode.INTERRUPTED
    published.faults.clear()
    assert run(store, config_of(HUB_DATA, base="me/tiny"))[1] is False
