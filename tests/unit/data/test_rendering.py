"""Masks: the assistant's tokens and their end, nothing else."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fixtures.tiny_model import CHATML, CHATML_MARKED, make_tokenizer

from latticeforge_trainer.data.rendering import Renderer
from latticeforge_trainer.data.samples import (
    ANSWERS,
    Chat,
    Completion,
    Learning,
    Located,
    Sample,
    Segment,
    Segments,
    Text,
)
from latticeforge_trainer.data.tokenized import Tokens, tokenize_source
from latticeforge_trainer.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PLAIN, MARKED = make_tokenizer(CHATML), make_tokenizer(CHATML_MARKED)
END = PLAIN.eos_token_id


def rendered(
    sample: Sample,
    tokenizer: PreTrainedTokenizerFast = PLAIN,
    learning: Learning = ANSWERS,
) -> Tokens:
    return Renderer(tokenizer).tokenize([Located("here", sample)], learning)[0]


def target_text(tokens: Tokens) -> list[str]:
    """The runs of target tokens, as text."""
    edges = np.flatnonzero(np.diff(tokens.targets, prepend=0, append=0))
    return [str(PLAIN.decode(tokens.ids[a:b])) for a, b in list(pairwise(edges))[::2]]


def chat(*turns: str, system: str | None = None) -> Chat:
    roles = ["user", "assistant"] * len(turns)
    head = [{"role": "system", "content": system}] if system else []
    return Chat(head + [{"role": r, "content": t} for r, t in zip(roles, turns, strict=False)])


def test_loss_is_on_the_assistants_turns_and_their_ends() -> None:
    tokens = rendered(chat("Hi", "Hé.\n", "More", "No", system="Be kind"))
    assert target_text(tokens) == ["Hé.\n<|im_end|>", "No<|im_end|>"]


def test_a_chat_that_ends_with_the_user_trains_its_earlier_answers() -> None:
    assert target_text(rendered(chat("Hi", "Ho", "And?"))) == ["Ho<|im_end|>"]


def test_a_first_turn_that_nobody_asked_for_is_context() -> None:
    messages = [{"role": "assistant", "content": "Hello"}, *chat("Hi", "Ho").messages]
    assert target_text(rendered(Chat(messages))) == ["Ho<|im_end|>"]


turns = st.lists(st.text(st.characters(codec="utf-8"), max_size=8), min_size=1, max_size=6)


@given(turns, st.none() | st.just("Be kind"))
def test_masks_equal_the_templates_own(contents: list[str], system: str | None) -> None:
    sample = chat(*contents, system=system)
    ours, own = rendered(sample, PLAIN), rendered(sample, MARKED)
    marked: Any = MARKED.apply_chat_template(
        sample.messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    assert ours.ids.tolist() == own.ids.tolist() == marked["input_ids"]
    assert ours.targets.tolist() == own.targets.tolist() == marked["assistant_masks"]


def test_a_mark_that_leaves_out_the_end_is_extended_to_it() -> None:
    template = CHATML_MARKED.replace("<|im_end|>{% endgen", "{% endgen").replace(
        "endgeneration %}", "endgeneration %}<|im_end|>"
    )
    tokens = rendered(chat("Hi", "Ho", "Hm", "Ha"), make_tokenizer(template))
    assert target_text(tokens) == ["Ho<|im_end|>", "Ha<|im_end|>"]


def test_a_mark_with_the_end_does_not_take_the_next_turns_beginning() -> None:
    template = CHATML_MARKED.replace("{% endgeneration %}{{ '\n' }}", "{% endgeneration %}")
    assert template != CHATML_MARKED
    tokens = rendered(chat("Hi", "Ho", "Hm", "Ha"), make_tokenizer(template))
    assert target_text(tokens) == ["Ho<|im_end|>", "Ha<|im_end|>"]


def test_a_template_without_an_end_gets_the_tokenizers() -> None:
    template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    template += "{% if add_generation_prompt %}assistant: {% endif %}"
    tokens = rendered(chat("Hi", "Ho"), make_tokenizer(template))
    assert target_text(tokens) == ["Ho\n<|im_end|>"]


def test_a_template_that_rewrites_history_is_refused() -> None:
    template = CHATML.replace(
        "{{ message['content'] }}", "{% if loop.last %}Last: {% endif %}{{ message['content'] }}"
    )
    with pytest.raises(UserError, match="here: the chat template renders message 2 differently"):
        rendered(chat("Hi", "Ho", "Hm", "Ha"), make_tokenizer(template))


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        (None, "here holds chats, but the base model's tokenizer has no chat template"),
        ("{{ raise_exception('no system, please') }}", "cannot render it: no system, please"),
        ("{{ messages[0]['content'] + 1 }}", "the chat template cannot render it"),
        ("{% for", "the chat template cannot render it"),
    ],
)
def test_a_template_that_fails_is_one_sentence(template: str | None, sentence: str) -> None:
    with pytest.raises(UserError, match=f"^.*{sentence}"):
        rendered(chat("Hi", "Ho"), make_tokenizer(template))


CONVERSATION = chat("Hi", "Ho", "Hm", "Ha", system="Be kind")


@pytest.mark.parametrize(
    ("roles", "end", "learned"),
    [
        ("assistant", "Turn", ["Ho<|im_end|>", "Ha<|im_end|>"]),
        ("assistant", "Never", ["Ho", "Ha"]),
        ("assistant", "Last", ["Ho", "Ha<|im_end|>"]),
        ("assistant", "All", ["<|im_end|>", "<|im_end|>", "Ho<|im_end|>", "<|im_end|>"]),
        ("user", "Turn", ["Hi<|im_end|>", "Hm<|im_end|>"]),
        ("user", "Last", ["Hi", "Hm", "<|im_end|>"]),
        ("system user", "Never", ["Be kind", "Hi", "Hm"]),
    ],
)
@pytest.mark.parametrize("template", [CHATML, CHATML_MARKED], ids=["plain", "marked"])
def test_whose_turns_and_ends_are_learned_can_be_chosen(
    template: str, roles: str, end: str, learned: list[str]
) -> None:
    learning = Learning(frozenset(roles.split()), end)
    tokens = rendered(CONVERSATION, make_tokenizer(template), learning)
    assert tokens.ids.tolist() == rendered(CONVERSATION).ids.tolist()
    expected = learned + ["Ha<|im_end|>"] * (roles == "assistant" and end == "All")
    assert target_text(tokens) == expected


@given(turns)
def test_learning_every_turn_leaves_out_what_the_template_adds(contents: list[str]) -> None:
    learning = Learning(frozenset({"user", "assistant"}), "Turn")
    tokens = rendered(chat(*contents), learning=learning)
    assert target_text(tokens) == [f"{content}<|im_end|>" for content in contents]


@pytest.mark.parametrize(
    "content",
    [
        "{{ message['content'] | upper }}",
        "{{ message['content'] | length }}: {{ message['content'] }}",
        "{{ message['content'] }} ({{ message['content'] | length }})",
    ],
    ids=["changed", "told before", "told after"],
)
def test_a_template_that_does_more_with_what_is_to_be_learned_is_refused(content: str) -> None:
    template = CHATML.replace("{{ message['content'] }}", content)
    learning = Learning(frozenset({"user"}))
    with pytest.raises(UserError, match="here: the chat template renders message 1 differently"):
        rendered(chat("Hi"), make_tokenizer(template), learning)


def test_segments_are_tokenized_one_by_one() -> None:
    tokenizer = merging_tokenizer()
    prompt, answer = Segment("ab", False), Segment("cd", True)
    apart = rendered(Segments((prompt, answer), whole=True), tokenizer)
    joined = rendered(Completion("ab", "cd"), tokenizer)
    assert tokenizer.convert_ids_to_tokens(apart.ids.tolist()) == ["a", "b", "c", "d", "<|im_end|>"]
    assert apart.targets.tolist() == [0, 0, 1, 1, 1]
    assert tokenizer.convert_ids_to_tokens(joined.ids.tolist()) == ["a", "bc", "d", "<|im_end|>"]


def merging_tokenizer() -> PreTrainedTokenizerFast:
    """The tiny one, which makes one token of `bc`."""
    from tokenizers import models  # noqa: PLC0415  (as in the fixture)

    tokenizer = make_tokenizer()
    letters = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["vocab"]
    tokenizer.backend_tokenizer.model = models.BPE(letters | {"bc": 300}, [("b", "c")])
    return tokenizer


@pytest.mark.parametrize(
    ("parts", "whole", "text", "learned"),
    [
        ([("a", False), ("b", True)], True, "ab<|im_end|>", ["b<|im_end|>"]),
        ([("a", True), ("b", False)], True, "ab<|im_end|>", []),
        ([("x", False), ("a", True), ("b", False)], False, "xab", ["a"]),
        ([("a", False), ("b<|im_end|>", True)], True, "ab<|im_end|>", ["b<|im_end|>"]),
        ([("a", False), ("", True)], True, "a", []),
    ],
)
def test_segments_learn_what_their_labels_say(
    parts: list[tuple[str, bool]], whole: bool, text: str, learned: list[str]
) -> None:
    sample = Segments(tuple(Segment(*part) for part in parts), whole=whole)
    tokens = rendered(sample)
    assert PLAIN.decode(tokens.ids) == text
    assert target_text(tokens) == learned


@pytest.mark.parametrize(
    ("roles", "learned"),
    [
        ({"assistant"}, ["2<|im_end|>"]),
        ({"user", "assistant"}, ["+1=2<|im_end|>"]),
        ({"user"}, ["+1="]),
    ],
)
def test_a_completions_prompt_is_the_users(roles: set[str], learned: list[str]) -> None:
    tokens = rendered(Completion("1+1=", "2"), learning=Learning(frozenset(roles)))
    assert target_text(tokens) == learned


def test_completions_learn_the_completion_and_to_stop() -> None:
    tokens = rendered(Completion("1+1=", "2"))
    assert PLAIN.decode(tokens.ids) == "1+1=2<|im_end|>"
    assert target_text(tokens) == ["2<|im_end|>"]
    assert not rendered(Completion("1+1=", "")).targets.any()


def test_an_end_that_is_there_is_not_doubled() -> None:
    for sample in (Completion("1+1=", "2<|im_end|>"), Completion("1+1=", "2<|im_end|>\n")):
        assert target_text(rendered(sample))[0].startswith("2<|im_end|>")
        assert rendered(sample).ids.tolist().count(END) == 1


def test_texts_learn_everything_but_their_first_token() -> None:
    assert target_text(rendered(Text("Once."))) == ["nce.<|im_end|>"]
    assert not rendered(Text("")).targets.any()


def test_a_tokenizer_that_opens_texts_does_so() -> None:
    from tokenizers.processors import TemplateProcessing  # noqa: PLC0415  (as in the fixture)

    tokenizer = make_tokenizer()
    tokenizer.bos_token = "<|endoftext|>"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 256)]
    )
    tokens = rendered(Text("Once."), tokenizer)
    assert tokens.ids[0] == tokenizer.bos_token_id
    assert target_text(tokens) == ["Once.<|im_end|>"]


def test_truncated_and_skipped_samples_are_counted() -> None:
    samples = [
        Located("1", Completion("ab", "cdefgh")),  # cut
        Located("2", Completion("abcdefgh", "i")),  # nothing left to learn
        Located("3", chat("x")),  # no assistant
        Located("4", Completion("a", "b")),
    ]
    seen: list[int] = []
    source = tokenize_source(samples, Renderer(PLAIN), 5, seen.append)
    assert (len(source), source.truncated, source.skipped) == (2, 1, 2)
    assert source.lengths.tolist() == [5, 3]
    assert PLAIN.decode(source.sample(0).ids) == "abcde"
    assert seen == [4]


def test_a_tokenizer_without_an_end_is_refused() -> None:
    tokenizer = make_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="names no eos_token"):
        Renderer(tokenizer)
