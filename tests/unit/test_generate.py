"""Generation: the same answers as transformers' own greedy search, in any batch and any order."""

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
)

from latticeforge_trainer.domain.samples import Message, user
from latticeforge_trainer.generate import COMPACT_SHARE, Answer, generate

TEXTS = ("a", "12 + 30 = ", "x" * 60, "Φ 0.81", "tell me more, please", "b", "c", "dd", "e f g")
PROMPTS: list[list[Message]] = [[user(text)] for text in (*TEXTS, *("h" * n for n in range(2, 9)))]
LIMIT = 12
END = 258
"""The tokenizer's end of turn."""


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> PreTrainedModel:
    """The tiny model with sharper weights and many end tokens: its answers differ in length."""
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.2)
    cast("Any", model).generation_config.eos_token_id = [END, *range(0, 256, 8)]
    return model


@pytest.fixture(scope="module")
def expected(model: PreTrainedModel, tokenizer: Any) -> list[Answer]:
    """What `generate` of transformers writes to each prompt alone."""
    answers = []
    for prompt in PROMPTS:
        ids = tokenizer.apply_chat_template(
            prompt, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
        output = cast("Any", model).generate(**ids, max_new_tokens=LIMIT, do_sample=False)
        tokens = output[0, ids["input_ids"].shape[1] :].tolist()
        finished = tokens[-1] == END or (tokens[-1] < 256 and tokens[-1] % 8 == 0)
        text = tokenizer.decode(tokens, skip_special_tokens=True)
        answers.append(Answer(text, len(tokens), finished))
    return answers


def test_the_fixture_tests_something(expected: list[Answer]) -> None:
    assert len({answer.text for answer in expected}) > 5
    assert len({answer.tokens for answer in expected}) > 3
    assert {answer.finished for answer in expected} == {True, False}


@pytest.mark.parametrize("batch_size", [1, 3, 16, 100])
def test_as_transformers(
    model: PreTrainedModel, tokenizer: Any, expected: list[Answer], batch_size: int
) -> None:
    assert (
        generate(model, tokenizer, PROMPTS, max_new_tokens=LIMIT, batch_size=batch_size) == expected
    )


def test_order_of_prompts_does_not_matter(
    model: PreTrainedModel, tokenizer: Any, expected: list[Answer]
) -> None:
    answers = generate(model, tokenizer, PROMPTS[::-1], max_new_tokens=LIMIT, batch_size=3)
    assert answers[::-1] == expected


# peft asks transformers for a name that it has since changed.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_with_an_adapter(model: PreTrainedModel, tokenizer: Any, expected: list[Answer]) -> None:
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"], r=2))
    try:
        answers = generate(
            cast("PreTrainedModel", adapted),
            tokenizer,
            PROMPTS,
            max_new_tokens=LIMIT,
            batch_size=16,
        )
    finally:
        adapted.unload()
    assert answers == expected  # a fresh adapter changes nothing


def test_training_mode_does_not_show(
    model: PreTrainedModel, tokenizer: Any, expected: list[Answer]
) -> None:
    model.train()
    assert generate(model, tokenizer, PROMPTS, max_new_tokens=LIMIT, batch_size=16) == expected
    assert not model.training


def test_a_cut_answer_is_marked(model: PreTrainedModel, tokenizer: Any) -> None:
    answers = generate(model, tokenizer, PROMPTS, max_new_tokens=2, batch_size=16)
    assert {answer.tokens for answer in answers if not answer.finished} == {2}
    assert not all(answer.finished for answer in answers)


def test_rows_that_ended_stop_computing(
    model: PreTrainedModel, tokenizer: Any, expected: list[Answer]
) -> None:
    rows: list[int] = []
    hook = model.get_input_embeddings().register_forward_pre_hook(
        lambda _, inputs: rows.append(inputs[0].shape[0])
    )
    try:
        generate(model, tokenizer, PROMPTS, max_new_tokens=LIMIT, batch_size=16)
    finally:
        hook.remove()
    live = [sum(answer.tokens > step for answer in expected) for step in range(len(rows))]
    assert rows[0] == len(PROMPTS)
    assert all(
        row * (1 - COMPACT_SHARE) < alive <= row for row, alive in zip(rows, live, strict=True)
    )


def test_no_step_after_the_last_answer_has_ended(
    model: PreTrainedModel, tokenizer: Any, expected: list[Answer]
) -> None:
    calls: list[int] = []
    answer = next(answer for answer in expected if answer.finished)
    prompt = PROMPTS[expected.index(answer)]
    hook = model.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        generate(model, tokenizer, [prompt] * 2, max_new_tokens=400, batch_size=2)
    finally:
        hook.remove()
    assert len(calls) == answer.tokens


def test_positions_count_from_the_first_token(tokenizer: Any) -> None:
    """Padding moves a row: rotary positions would not mind, learned ones do."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=288, n_positions=256, n_embd=32, n_layer=1, n_head=2)
    config.update({"bos_token_id": None, "eos_token_id": END, "initializer_range": 0.3})
    absolute = GPT2LMHeadModel(config)
    alone, padded = (
        generate(absolute, tokenizer, PROMPTS, max_new_tokens=LIMIT, batch_size=size)
        for size in (1, 16)
    )
    assert alone == padded


def test_progress_counts_ended_answers(model: PreTrainedModel, tokenizer: Any) -> None:
    reports: list[tuple[int, int]] = []
    generate(
        model,
        tokenizer,
        PROMPTS,
        max_new_tokens=LIMIT,
        batch_size=3,
        on_progress=lambda done, total: reports.append((done, total)),
    )
    done = [report[0] for report in reports]
    assert done == sorted(set(done))
    assert {3, 6, 9, 12, 15, 16} <= set(done)
    assert {total for _, total in reports} == {16}


def test_no_prompts(model: PreTrainedModel, tokenizer: Any) -> None:
    assert generate(model, tokenizer, [], max_new_tokens=4, batch_size=2) == []


@pytest.mark.parametrize("limits", [(0, 1), (1, 0)])
def test_limits_are_checked(
    model: PreTrainedModel, tokenizer: Any, limits: tuple[int, int]
) -> None:
    with pytest.raises(ValueError, match="expected at least 1"):
        generate(model, tokenizer, PROMPTS, max_new_tokens=limits[0], batch_size=limits[1])
