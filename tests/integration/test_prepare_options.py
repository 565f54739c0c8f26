"""What a stack may say of its data, its steps and its tokenizer, through the prepare step."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tests.fixtures.preparing import CHATS, config_of, make_store, run, write_rows
from transformers import AutoTokenizer

from latticeforge_trainer.artifacts import Store
from latticeforge_trainer.contract import (
    ChatTemplate,
    DataFormat,
    DataSource,
    ExcessLength,
    ModelRef,
    ModelSource,
    PrepareResult,
    SpecialTokens,
    TokenizerChanges,
)
from latticeforge_trainer.data.packed import VALIDATION, PackedData
from latticeforge_trainer.errors import UserError
from latticeforge_trainer.models.loading import load_for_inference

TEMPLATE = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{{ eos_token }}{% endfor %}"
TEMPLATE += "{% if add_generation_prompt %}[assistant]{% endif %}"


@pytest.fixture
def store(tmp_path: Path, tiny_model: Path) -> Store:
    return make_store(tmp_path / "store", tiny_model)


def data_of(store: Store, result: PrepareResult) -> PackedData:
    return PackedData(store.require(result.artifact, "data"))


def text_of(data: PackedData, row: int, tokenizer: Any) -> str:
    ids = data.batch([row])["input_ids"][0][: data.lengths[row]]
    return str(tokenizer.decode(ids))


def changed(store: Store, changes: TokenizerChanges, **fields: Any) -> tuple[PrepareResult, Any]:
    """The result of a prepare step with a changed tokenizer, and that tokenizer."""
    result, _ = run(store, config_of(more={"tokenizer": changes}, **fields))
    folder = store.resolve(result.base.path)
    return result, AutoTokenizer.from_pretrained(folder)


def test_a_slice_of_named_files_is_read(store: Store) -> None:
    write_rows(store.root / "d" / "a.jsonl", [{"body": f"{n:03}"} for n in range(30)])
    write_rows(store.root / "d" / "b.jsonl", [{"body": f"{n:03}"} for n in range(30, 40)])
    write_rows(store.root / "d" / "c.jsonl", [{"other": 1}])
    spec = DataSource(
        source="./d",
        split="train[50%:55%]",
        files=["[ab].jsonl", "*b.jsonl", "a.jsonl"],
        format=DataFormat.TEXT,
        fields={"text": "body"},
    )
    with pytest.raises(UserError, match=r"no data file matches \[ab\]\.jsonl"):
        run(store, config_of(spec))
    result, _ = run(store, config_of(spec.model_copy(update={"files": ["a.jsonl", "b.jsonl"]})))
    (facts,) = result.data
    assert (facts.samples, facts.tokens) == (2, 8)
    text = text_of(data_of(store, result), 0, AutoTokenizer.from_pretrained(store.root / "base"))
    assert sorted(text.removesuffix("<|im_end|>").split("<|im_end|>")) == ["020", "021"]


def test_an_empty_slice_is_refused(store: Store) -> None:
    spec = DataSource(source="./chats.jsonl", split="train[:1%]")
    with pytest.raises(UserError, match=r"chats\.jsonl holds no samples in train\[:1%\]"):
        run(store, config_of(spec))


def test_long_samples_are_dropped_and_counted(store: Store) -> None:
    write_rows(store.root / "t.jsonl", [{"text": "x" * n} for n in (5, 63, 64, 200)])
    spec = DataSource(source="./t.jsonl", excess_length=ExcessLength.DROP)
    result, _ = run(store, config_of(spec))
    (facts,) = result.data
    assert (facts.samples, facts.dropped, facts.truncated) == (2, 2, 0)
    assert facts.tokens == 6 + 64
    fail = spec.model_copy(update={"excess_length": ExcessLength.FAIL})
    with pytest.raises(UserError, match=r"^\./t\.jsonl, line 3: 65 tokens, more than"):
        run(store, config_of(fail))


def test_steps_of_samples_and_so_many_steps(store: Store) -> None:
    result, _ = run(store, config_of(more={"step_samples": 8, "steps": 4}))
    data = data_of(store, result)
    assert data.step_ends is not None
    assert len(data.step_ends) == 4
    begins = (data.batch(range(len(data)))["position_ids"] == 0).sum(1)
    padded = [length < 64 for length in data.lengths]  # padding begins a document of its own
    per_row = [int(b) - p for b, p in zip(begins, padded, strict=True)]
    per_step = [sum(per_row[start:end]) for start, end in pairwise([0, *data.step_ends])]
    assert per_step == [8, 8, 4, 8]  # 20 samples an epoch
    assert len(data.epoch_ends) == 2


def test_held_out_samples_are_packed_apart(store: Store) -> None:
    plain, _ = run(store, config_of())
    result, _ = run(store, config_of(more={"validation_share": 0.2}))
    (facts,) = result.data
    assert (facts.samples, facts.held_out) == (16, 4)
    held = PackedData(store.require(result.artifact, "data") / VALIDATION)
    assert result.validation_tokens == held.lengths.sum()
    assert result.tokens + int(held.lengths.sum()) == plain.tokens
    assert plain.validation_tokens is None
    assert plain.artifact != result.artifact
    one = DataSource(source="./chats.jsonl", split="train[:1]")
    with pytest.raises(UserError, match="validationShare: no source has two samples"):
        run(store, config_of(one, more={"validation_share": 0.2}))


def tokenizer_config(folder: Path) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads((folder / "tokenizer_config.json").read_text())
    return fields


# --- a changed tokenizer -----------------------------------------------------------------------


def test_another_template_and_end_are_rendered_and_handed_on(store: Store) -> None:
    changes = TokenizerChanges(
        chat_template=ChatTemplate(jinja=TEMPLATE),
        special_tokens=SpecialTokens(eos="<|endoftext|>", pad="<|im_end|>"),
    )
    result, tokenizer = changed(store, changes)
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|endoftext|>", "<|im_end|>")
    assert tokenizer.chat_template == TEMPLATE
    text = text_of(data_of(store, result), 0, tokenizer)
    assert text.startswith("[user]")
    assert "<|im_end|>" not in text
    folder = store.resolve(result.base.path)
    assert folder is not None
    assert not {"is_local", "local_files_only"} & tokenizer_config(folder).keys()
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [256, 258]
    # Everything else is the base's own, and loads.
    reference = ModelRef(
        name="base", base_path=result.base.path, base_revision=result.base.revision
    )
    model, own = load_for_inference(reference, store)
    assert model.num_parameters() == result.base.parameters
    assert own.chat_template == TEMPLATE
    again, reused = run(store, config_of(more={"tokenizer": changes}))
    assert (again, reused) == (result, True)


def test_a_changed_tokenizer_is_another_model_to_evaluate(store: Store) -> None:
    plain, _ = run(store, config_of())
    first, _ = changed(store, TokenizerChanges(chat_template=ChatTemplate(preset="ChatML")))
    second, _ = changed(store, TokenizerChanges(chat_template=ChatTemplate(jinja=TEMPLATE)))
    identities = {
        ModelRef(
            name="base",
            base_path=result.base.path,
            base_revision=result.base.revision,
            tokenizer=result.base.tokenizer,
        ).identity
        for result in (plain, first, second)
    }
    assert plain.base.tokenizer is None
    assert len(identities) == 3


def test_a_preset_renders_as_the_models_own_of_that_kind(store: Store) -> None:
    preset, tokenizer = changed(
        store, TokenizerChanges(chat_template=ChatTemplate(preset="ChatML"))
    )
    own, _ = run(store, config_of())
    assert (
        tokenizer.chat_template != AutoTokenizer.from_pretrained(store.root / "base").chat_template
    )
    pair = [data_of(store, result).batch([0]) for result in (preset, own)]
    assert pair[0]["input_ids"].equal(pair[1]["input_ids"])
    assert pair[0]["loss_mask"].equal(pair[1]["loss_mask"])


def test_another_models_template_is_taken_at_its_revision(store: Store, tiny_model: Path) -> None:
    other = store.root / "other"
    other.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (other / name).write_bytes((tiny_model / name).read_bytes())
    changes = TokenizerChanges(chat_template=ChatTemplate(model=ModelSource(model="./other")))
    with pytest.raises(UserError, match=r"chatTemplate\.model \./other: its tokenizer has no chat"):
        changed(store, changes)
    (other / "chat_template.jinja").write_text(TEMPLATE)
    first, tokenizer = changed(store, changes)
    assert tokenizer.chat_template == TEMPLATE
    (other / "chat_template.jinja").write_text(TEMPLATE + "{# changed #}")
    second, tokenizer = changed(store, changes)
    assert tokenizer.chat_template.endswith("{# changed #}")
    assert second.artifact != first.artifact
    assert second.base.path != first.base.path


def test_a_base_that_was_removed_is_made_again(store: Store) -> None:
    changes = TokenizerChanges(chat_template=ChatTemplate(preset="ChatML"))
    result, _ = changed(store, changes)
    folder = store.resolve(result.base.path)
    assert folder is not None
    for path in folder.iterdir():
        path.unlink()
    again, reused = run(store, config_of(more={"tokenizer": changes}))
    assert not reused
    assert again == result
    assert (folder / "model.safetensors").resolve() == store.root / "base" / "model.safetensors"


def test_the_bases_own_files_are_never_written_to(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = TokenizerChanges(chat_template=ChatTemplate(preset="ChatML"))
    (store.root / "base" / "merges.txt").write_text("the base's")
    result, tokenizer = changed(store, changes)
    folder = store.resolve(result.base.path)
    assert folder is not None
    assert (folder / "merges.txt").read_text() == "the base's"
    save = type(tokenizer).save_pretrained

    def save_more(self: Any, target: str) -> None:
        save(self, target)
        (Path(target) / "merges.txt").write_text("the tokenizer's")

    monkeypatch.setattr(type(tokenizer), "save_pretrained", save_more)
    shutil.rmtree(store.path(result.artifact))
    assert not run(store, config_of(more={"tokenizer": changes}))[1]
    assert (folder / "merges.txt").read_text() == "the tokenizer's"
    assert (store.root / "base" / "merges.txt").read_text() == "the base's"


def test_a_special_token_must_be_in_the_vocabulary(store: Store) -> None:
    changes = TokenizerChanges(special_tokens=SpecialTokens(eos="<|eot_id|>"))
    with pytest.raises(
        UserError, match=r"specialTokens\.eos '<\|eot_id\|>' is not in the vocabulary"
    ):
        changed(store, changes)


def test_chats_of_a_base_without_a_template_need_one(store: Store) -> None:
    (store.root / "base" / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match=r"has no chat template: set base\.chatTemplate"):
        run(store, config_of())
    result, _ = changed(store, TokenizerChanges(chat_template=ChatTemplate(preset="ChatML")))
    assert result.data[0].samples == len(CHATS)
