"""`vocabulary: Tekken` gives the tokens that mistral-common gives, with the answers as targets."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.fixtures.tiny_model import make_tokenizer

from latticeforge_trainer.data.rendering import Renderer
from latticeforge_trainer.data.samples import Chat, Located
from latticeforge_trainer.errors import UserError
from latticeforge_trainer.models.tokenizers import TEKKEN, open_tekken, open_tokenizer

TURNS = [
    {"role": "user", "content": "1 + 1? Straße, 漢字"},
    {"role": "assistant", "content": "It's 2.\n\n\tReally"},
    {"role": "user", "content": "2 + 2?"},
    {"role": "assistant", "content": "4"},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the vocabulary of Mistral's 12 B and larger models."""
    missing = "needs mistral-common 1.13: pip install 'latticeforge[mistral]'"
    package = pytest.importorskip("mistral_common.integrations", reason=missing)
    data = Path(package.__file__).parents[1] / "data" / "tekken_240911.json"
    shutil.copyfile(data, tmp_path / TEKKEN)
    return tmp_path


@pytest.mark.slow
def test_its_tokens_are_those_of_mistral_common(folder: Path) -> None:
    from mistral_common.protocol.instruct import request, validator  # noqa: PLC0415
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer  # noqa: PLC0415

    mode = validator.ValidationMode.finetuning
    theirs = MistralTokenizer.from_file(str(folder / TEKKEN), mode=mode)
    conversation: Any = request.ChatCompletionRequest(messages=TURNS, model="any")
    tokenizer = open_tekken(folder, "owner/model")
    [tokens] = Renderer(tokenizer).tokenize([Located("here", Chat(TURNS))])
    assert tokens.ids.tolist() == theirs.encode_chat_completion(conversation).tokens
    learned = tokenizer.decode(tokens.ids[np.flatnonzero(tokens.targets)])
    assert learned == "It's 2.\n\n\tReally</s>4</s>"


@pytest.mark.slow
def test_what_it_is_saved_as_opens_as_any_other(folder: Path) -> None:
    tokenizer = open_tekken(folder, "owner/model")
    tokenizer.save_pretrained(folder)
    again = open_tokenizer(folder, "owner/model")
    assert type(again) is type(tokenizer)
    text = str(tokenizer.apply_chat_template(TURNS, tokenize=False))
    assert again.apply_chat_template(TURNS, tokenize=False) == text
    assert again(text)["input_ids"] == tokenizer(text)["input_ids"]


def test_a_base_without_it_is_refused(tmp_path: Path) -> None:
    make_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"owner/model holds no tekken.json; leave vocabulary out"):
        open_tekken(tmp_path, "owner/model")
