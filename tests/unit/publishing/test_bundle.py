"""What goes into a published repository, and what never does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.unit.publishing.samples import (
    ADAPTER_FILES,
    BASE_REVISION,
    MERGED_FILES,
    base_folder,
    make_config,
)

from latticeforge_trainer.artifacts import Store
from latticeforge_trainer.contract import ModelSource, PublishConfig
from latticeforge_trainer.errors import UserError
from latticeforge_trainer.publishing.bundle import GENERATED, Bundle, build


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def silent(message: str, fraction: float = 0.0, *, eta_seconds: float | None = None) -> None:
    """Reports nothing."""


def bundle_of(config: PublishConfig, store: Store) -> Bundle:
    return build(config, store, "me/elle", silent)


def with_model(config: PublishConfig, **fields: Any) -> PublishConfig:
    model = config.runtime.model.model_copy(update=fields)
    return config.model_copy(update={"runtime": config.runtime.model_copy(update={"model": model})})


def test_the_record_lists_every_other_file(store: Store) -> None:
    bundle = bundle_of(make_config(store, "me/elle"), store)
    record = json.loads(bundle.files["latticeforge.json"].path.read_bytes())
    others = bundle.files.keys() - {"latticeforge.json"}
    assert record["files"] == {name: bundle.files[name].sha256 for name in sorted(others)}
    assert [stage["name"] for stage in record["stages"]] == ["math", "cic"]
    assert record["base"] == {"model": "me/base", "revision": BASE_REVISION}


def test_a_second_attempt_makes_the_same_bytes(store: Store) -> None:
    first = bundle_of(make_config(store, "me/elle", cost="1 USD"), store)
    second = bundle_of(make_config(store, "me/elle", cost="2 USD"), store)
    assert second.digest == first.digest


def test_a_half_made_card_is_made_again(store: Store) -> None:
    config = make_config(store, "me/elle")
    whole = bundle_of(config, store)
    whole.files["latticeforge.json"].path.unlink()
    whole.files["README.md"].path.write_bytes(b"half")
    (whole.files["README.md"].path.parent / "loss_curve.old").write_bytes(b"left behind")
    assert bundle_of(config, store).digest == whole.digest


def test_the_tokenizer_comes_from_the_base_when_the_artifact_has_none(store: Store) -> None:
    base_folder(
        store,
        {
            "tokenizer_config.json": b"base",
            "chat_template.jinja": b"base",
            "generation_config.json": b"base",
            "model.safetensors": b"base",
            "evil.py": b"base",
        },
    )
    bare = {"config.json": b"{}", "model.safetensors": b"weights"}
    merged = bundle_of(make_config(store, "me/elle", files=bare), store)
    tokenizer = {"tokenizer_config.json", "chat_template.jinja"}
    assert merged.files.keys() == bare.keys() | GENERATED | tokenizer | {"generation_config.json"}
    bare = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"weights"}
    config = make_config(store, "me/other", files=bare, artifact="Adapter")
    adapter = bundle_of(config, store)
    assert adapter.files.keys() == bare.keys() | GENERATED | tokenizer


def test_a_tokenizer_of_its_own_is_not_mixed_with_the_bases(store: Store) -> None:
    base_folder(store, {"tokenizer_config.json": b"base", "vocab.json": b"base"})
    bundle = bundle_of(make_config(store, "me/elle"), store)
    assert bundle.files.keys() == MERGED_FILES.keys() | GENERATED


def test_an_adapter_over_a_local_base_names_its_folder(store: Store) -> None:
    config = make_config(store, "me/e", artifact="Adapter", base=ModelSource(model="./base"))
    bundle = bundle_of(config, store)
    assert bundle.files.keys() == ADAPTER_FILES.keys() | GENERATED
    written = json.loads(bundle.files["adapter_config.json"].path.read_bytes())
    assert written["base_model_name_or_path"] == str(store.root / "base")
    assert written["revision"] is None


@pytest.mark.parametrize(
    ("artifact", "model", "sentence"),
    [
        ("Merged", {"adapter": "a" * 64}, "ends in an adapter that is not merged"),
        ("Merged", {"artifact": None}, "set handoff: Merge"),
        ("Adapter", {"adapter": None}, "leaves no adapter behind"),
        ("Adapter", {"artifact": "a" * 64}, "sits on the weights of an earlier stage"),
    ],
)
def test_what_cannot_be_published_says_what_can(
    store: Store, artifact: Any, model: dict[str, str | None], sentence: str
) -> None:
    config = with_model(make_config(store, "me/elle", artifact=artifact), **model)
    with pytest.raises(UserError, match=sentence):
        bundle_of(config, store)


def test_a_model_that_is_gone_is_named(store: Store) -> None:
    config = with_model(make_config(store, "me/elle"), artifact="0" * 64)
    with pytest.raises(UserError, match="the model to publish"):
        bundle_of(config, store)


def test_an_artifact_without_weights_is_refused(store: Store) -> None:
    with pytest.raises(UserError, match="holds no weights in model/"):
        bundle_of(make_config(store, "me/elle", files={"config.json": b"{}"}), store)
