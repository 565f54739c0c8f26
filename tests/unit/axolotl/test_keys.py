"""What becomes of each key, alone and beside others."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.axolotl.imports import FULL, LORA, line_of, read, stack_of, stage_of

from latticeforge_operator.axolotl.lines import Verdict
from latticeforge_operator.axolotl.registry import KEYS

MAPPED: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    # key, what the config says beside LORA, what the stage says
    ("sequence_len", {"sequence_len": 4096}, {"hyperparameters": {"sequenceLength": 4096}}),
    ("num_epochs", {"num_epochs": 3}, {"hyperparameters": {"epochs": 3}}),
    ("max_steps", {"max_steps": 50}, {"hyperparameters": {"maxSteps": 50}}),
    ("learning_rate", {"learning_rate": "2e-6"}, {"hyperparameters": {"learningRate": "2e-6"}}),
    ("learning_rate", {"learning_rate": 0.0003}, {"hyperparameters": {"learningRate": "0.0003"}}),
    (
        "lr_scheduler",
        {"lr_scheduler": "constant_with_warmup", "warmup_steps": 10},
        {"hyperparameters": {"schedule": "constant", "warmupSteps": 10}},
    ),
    (
        "lr_scheduler",
        {"lr_scheduler": "constant", "warmup_steps": 10},
        {"hyperparameters": {"schedule": "constant", "warmupRatio": "0"}},
    ),
    ("warmup_ratio", {"warmup_ratio": 0.05}, {"hyperparameters": {"warmupRatio": "0.05"}}),
    # transformers 5 reads a number of steps below one as a share of them, Axolotl makes two of one.
    ("warmup_steps", {"warmup_steps": 0.1}, {"hyperparameters": {"warmupRatio": "0.1"}}),
    ("warmup_steps", {"warmup_steps": 1}, {"hyperparameters": {"warmupSteps": 2}}),
    (
        "cosine_min_lr_ratio",
        {"cosine_min_lr_ratio": 0.1},
        {"hyperparameters": {"minLearningRateRatio": "0.1"}},
    ),
    (
        "lr_scheduler_kwargs",
        {"lr_scheduler": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": 0.2}},
        {"hyperparameters": {"schedule": "cosine", "minLearningRateRatio": "0.2"}},
    ),
    ("weight_decay", {"weight_decay": 0.1}, {"hyperparameters": {"weightDecay": "0.1"}}),
    ("max_grad_norm", {"max_grad_norm": 0.3}, {"hyperparameters": {"maxGradNorm": "0.3"}}),
    ("adam_beta1", {"adam_beta1": 0.8}, {"hyperparameters": {"adamBeta1": "0.8"}}),
    ("adam_beta2", {"adam_beta2": 0.95}, {"hyperparameters": {"adamBeta2": "0.95"}}),
    ("adam_epsilon", {"adam_epsilon": 1e-5}, {"hyperparameters": {"adamEpsilon": "1e-5"}}),
    ("optimizer", {"optimizer": "adamw_torch"}, {"hyperparameters": {"optimizerStates": "FP32"}}),
    (
        "optimizer",
        {"optimizer": "adamw_bnb_8bit", "adapter": None},
        {"hyperparameters": {"optimizerStates": "INT8"}},
    ),
    ("seed", {"seed": 42}, {"hyperparameters": {"seed": 42}}),
    ("val_set_size", {"val_set_size": 0.05}, {"hyperparameters": {"validationShare": "0.05"}}),
    (
        "neftune_noise_alpha",
        {"neftune_noise_alpha": 5},
        {"hyperparameters": {"neftuneNoiseAlpha": "5"}},
    ),
    ("adapter", {}, {"method": "LoRA"}),
    ("load_in_4bit", {"adapter": "qlora", "load_in_4bit": True}, {"method": "QLoRA"}),
    ("lora_r", {"lora_r": 64}, {"lora": {"rank": 64}}),
    ("lora_alpha", {"lora_alpha": 128}, {"lora": {"alpha": 128}}),
    ("lora_dropout", {"lora_dropout": 0.05}, {"lora": {"dropout": "0.05"}}),
    (
        "lora_target_modules",
        {"lora_target_linear": False, "lora_target_modules": ["q_proj", "self_attn.v_proj"]},
        {"lora": {"targetModules": ["q_proj", "self_attn.v_proj"]}},
    ),
    (
        "lora_target_modules",
        {"lora_target_linear": None, "lora_target_modules": r"model.layers.\d+.mlp.(up|down)_proj"},
        {"lora": {"targetPattern": r"model.layers.\d+.mlp.(up|down)_proj"}},
    ),
    (
        "peft_layers_to_transform",
        {"peft_layers_to_transform": [0, 3]},
        {"lora": {"layers": [0, 3]}},
    ),
    ("peft_use_rslora", {"peft_use_rslora": True}, {"lora": {"rankStabilized": True}}),
    (
        "lora_modules_to_save",
        {"lora_modules_to_save": ["lm_head", "model.embed_tokens"]},
        {"lora": {"modulesToSave": ["embed_tokens", "lm_head"]}},
    ),
    (
        "lora_modules_to_save",
        {"lora_modules_to_save": ["wte", "embed_tokens"]},
        {"lora": {"modulesToSave": ["embed_tokens"]}},
    ),
]

IMPLIED: list[tuple[str, Any]] = [
    ("load_in_8bit", True),
    ("optimizer", "adamw_bnb_8bit"),
    ("gradient_checkpointing", True),
    ("flash_attention", True),
    ("attn_implementation", "sdpa"),
    ("deepspeed", "deepspeed_configs/zero3_bf16.json"),
    ("fsdp", ["full_shard", "auto_wrap"]),
    ("bf16", "auto"),
    ("fp16", True),
    ("tf32", True),
    ("model_type", "LlamaForCausalLM"),
    ("tokenizer_config", "owner/model"),
    ("shuffle_merged_datasets", True),
    ("bnb_config_kwargs", {"bnb_4bit_use_double_quant": True}),
    ("unfrozen_parameters", ["^model.language_model.*", "lm_head", "embed_tokens"]),
    ("save_steps", 100),
    ("liger_rope", True),
    ("eot_tokens", ["<|eot_id|>"]),
]

IGNORED: list[tuple[str, Any]] = [
    ("wandb_project", "mine"),
    ("wandb_project", None),
    ("special_tokens", None),
    ("datasets_that_are", ""),
    ("load_in_4bit", False),
    ("strict", False),
    ("rl", None),
    ("early_stopping_patience", 0),
    ("trust_remote_code", True),
    ("output_dir", "./out"),
    ("test_datasets", []),
    ("lora_modules_to_save", []),
]

UNSUPPORTED: list[tuple[str, Any]] = [
    ("optimizer", "muon"),
    ("lr_scheduler", "rex"),
    ("num_epochs", 0.5),
    ("max_grad_norm", 0),
    ("val_set_size", 200),
    ("cosine_min_lr_ratio", 1.5),
    ("warmup_ratio", 2),
    ("lr_scheduler_kwargs", {"num_cycles": 2}),
    ("early_stopping_patience", 3),
    ("loraplus_lr_ratio", 16),
    ("tokens", ["<|new|>"]),
    ("lora_model_dir", "./elsewhere"),
    ("peft_use_dora", True),
    ("lora_target_modules", ["q_proj", "lm_head"]),
    ("lora_modules_to_save", ["lm_head", "norm"]),
    ("peft", {"loftq_config": {"loftq_bits": 4}}),
    ("bnb_config_kwargs", {"bnb_4bit_quant_type": "fp4"}),
    ("unfrozen_parameters", ["model.layers.4[0-9].*"]),
    ("model_config", {"output_router_logits": True}),
    ("model_type", "Qwen2ForSequenceClassification"),
    ("tokenizer_config", "other/model"),
    ("plugins", ["axolotl.integrations.kd.KDPlugin"]),
    ("chat_template", "metharme"),
    ("adapter", "llama-adapter"),
    ("qat", {"weight_dtype": "int4"}),
    ("fp8", True),
    ("bf16", False),
    ("shuffle_merged_datasets", False),
    ("dataset_exact_deduplication", True),
]


@pytest.mark.parametrize(("key", "says", "expected"), MAPPED, ids=lambda value: str(value)[:40])
def test_mapped(key: str, says: dict[str, Any], expected: dict[str, Any]) -> None:
    config = {**LORA, **says}
    assert line_of(config, key).verdict in {Verdict.MAPPED, Verdict.IMPLIED}
    stage = stage_of(config)
    for name, value in expected.items():
        assert (stage[name] | value if isinstance(value, dict) else value) == stage[name]


@pytest.mark.parametrize(("key", "value"), IMPLIED, ids=lambda value: str(value)[:40])
def test_implied(key: str, value: Any) -> None:
    assert line_of({**LORA, key: value}, key).verdict is Verdict.IMPLIED


@pytest.mark.parametrize(("key", "value"), IGNORED, ids=lambda value: str(value)[:40])
def test_ignored(key: str, value: Any) -> None:
    if key in KEYS:
        assert line_of({**LORA, key: value}, key).verdict is Verdict.IGNORED
    else:
        assert line_of({**LORA, key: value}, key).verdict is Verdict.UNSUPPORTED


@pytest.mark.parametrize(("key", "value"), UNSUPPORTED, ids=lambda value: str(value)[:40])
def test_unsupported(key: str, value: Any) -> None:
    lines = [x for x in read({**LORA, key: value}).lines if x.key.startswith(key) and x.given]
    assert [line.verdict for line in lines] == [Verdict.UNSUPPORTED]


def test_a_full_fine_tune_has_no_adapter() -> None:
    config = {**FULL, "lora_r": 8, "lora_target_linear": True, "adapter": None}
    stage = stage_of(config)
    assert stage["method"] == "Full"
    assert "lora" not in stage


@pytest.mark.parametrize(
    ("says", "gpus", "tokens"),
    [
        ({}, 1, 2 * 1024),
        ({"gradient_accumulation_steps": 4}, 8, 2 * 4 * 8 * 1024),
        ({"batch_size": 16}, 2, 16 * 2 * 1024),
        # Axolotl accumulates batch_size // micro_batch_size times.
        ({"batch_size": 7, "micro_batch_size": 2}, 1, 6 * 1024),
        ({"context_parallel_size": 4}, 8, 2 * 2 * 1024),
        ({"tensor_parallel_size": 2, "context_parallel_size": 2}, 8, 2 * 2 * 1024),
        ({"micro_batch_size": None}, 1, 1024),
    ],
)
def test_the_batch_is_that_of_axolotl(says: dict[str, Any], gpus: int, tokens: int) -> None:
    stage = stage_of({**LORA, **says}, gpus=gpus)
    assert stage["hyperparameters"]["globalBatchTokens"] == tokens


@pytest.mark.parametrize("packing", [False, None])
def test_without_packing_a_batch_is_of_samples(packing: bool | None) -> None:
    config = {**LORA, "sample_packing": packing, "gradient_accumulation_steps": 8}
    parameters = stage_of(config, gpus=4)["hyperparameters"]
    assert parameters["globalBatchSamples"] == 2 * 8 * 4
    assert "globalBatchTokens" not in parameters


def test_defaults_of_axolotl_are_written_out() -> None:
    config = {key: FULL[key] for key in ("base_model", "datasets", "learning_rate")}
    assert stage_of(config)["hyperparameters"] == {
        "globalBatchSamples": 1,
        "sequenceLength": 512,
        "epochs": 1,
        "schedule": "cosine",
        "warmupRatio": "0.03",
        "optimizerStates": "FP32",
        "learningRate": "0.0001",
    }


@pytest.mark.parametrize(
    ("says", "shown"),
    [({}, True), ({"warmup_steps": 5}, False), ({"lr_scheduler": "constant"}, False)],
)
def test_a_default_that_does_not_count_is_not_shown(says: dict[str, Any], shown: bool) -> None:
    keys = [line.key for line in read({**LORA, **says}).lines if not line.given]
    assert ("warmup_ratio" in keys) is shown


@pytest.mark.parametrize(
    ("misspelt", "meant"),
    [
        ("learning_rat", "learning_rate"),
        ("sampel_packing", "sample_packing"),
    ],
)
def test_an_unknown_key_is_said_with_the_nearest(misspelt: str, meant: str) -> None:
    line = line_of({**LORA, misspelt: 1}, misspelt)
    assert line.verdict is Verdict.UNSUPPORTED
    assert f"did you mean {meant}?" in line.sentence


def test_every_key_has_one_line() -> None:
    config = {**LORA, "wandb_name": None, "bf16": True, "liger_rope": True, "seed": 1}
    given = [line.key for line in read(config).lines if line.given]
    nested = {key for key in given if key.startswith("datasets[0].")}
    assert nested == {"datasets[0].path", "datasets[0].type"}
    assert sorted(set(given) - nested) == sorted(set(config) - {"datasets"})
    assert len(given) == len(set(given))


@pytest.mark.parametrize(
    ("says", "base"),
    [
        ({"base_model": "./models/mine"}, {"model": "./models/mine"}),
        ({"base_model": "models/mine/final"}, {"model": "./models/mine/final"}),
        ({"base_model": "/models/mine"}, {"model": "/models/mine"}),
        ({"model_revision": "v2"}, {"model": "owner/model", "revision": "v2"}),
        (
            {"chat_template": "chatml"},
            {"model": "owner/model", "chatTemplate": {"preset": "ChatML"}},
        ),
        (
            {"chat_template": "qwen3"},
            {"model": "owner/model", "chatTemplate": {"model": "Qwen/Qwen3-8B"}},
        ),
        (
            {"chat_template": "jinja", "chat_template_jinja": "{{ messages }}"},
            {"model": "owner/model", "chatTemplate": {"jinja": "{{ messages }}"}},
        ),
        (
            {"chat_template_jinja": "{{ messages }}"},
            {"model": "owner/model", "chatTemplate": {"jinja": "{{ messages }}"}},
        ),
        ({"chat_template": "tokenizer_default"}, {"model": "owner/model"}),
        (
            {"tokenizer_use_mistral_common": True},
            {"model": "owner/model", "vocabulary": "Tekken"},
        ),
        (
            {"special_tokens": {"pad_token": "<pad>", "eos_token": "<|im_end|>"}},
            {"model": "owner/model", "specialTokens": {"eos": "<|im_end|>"}},
        ),
    ],
    ids=lambda value: str(value)[:50],
)
def test_the_base(says: dict[str, Any], base: dict[str, Any]) -> None:
    assert stack_of({**LORA, **says}).manifest["spec"]["base"] == base
