"""Settings that cannot be meant together, or not without another; Axolotl refuses them too."""

from __future__ import annotations

from latticeforge_operator.axolotl.settings import ConfigError, Settings

_PAIRS = (
    ("batch_size", "gradient_accumulation_steps"),
    ("warmup_steps", "warmup_ratio"),
    ("save_steps", "saves_per_epoch"),
    ("eval_steps", "evals_per_epoch"),
    ("val_set_size", "test_datasets"),
    ("neftune_noise_alpha", "noisy_embedding_alpha"),
    ("max_memory", "gpu_memory_limit"),
    ("load_in_4bit", "load_in_8bit"),
    ("deepspeed", "fsdp"),
    ("deepspeed", "fsdp_config"),
    ("model_type", "type_of_model"),
    ("model_revision", "revision_of_model"),
)
"""Two keys that say the same thing, or exclude each other."""

_REQUIRED = ("base_model", "datasets", "learning_rate")


def check_contradictions(settings: Settings) -> None:
    """Check what no key can see by itself.

    Raises:
        ConfigError: A key is missing, or two contradict each other.
    """
    for key in _REQUIRED:
        if key not in settings.values:
            raise ConfigError(key, "is missing")
    for one, other in _PAIRS:
        if settings.values.get(one) and settings.values.get(other):
            raise ConfigError(other, f"contradicts {one}; keep one of them")
    _check_adapter(settings)
    if settings["chat_template"] == "jinja" and not settings["chat_template_jinja"]:
        raise ConfigError("chat_template", "jinja needs the template in chat_template_jinja")


def _check_adapter(settings: Settings) -> None:
    adapter = settings["adapter"]
    if adapter is None:
        for key in ("load_in_4bit", "load_in_8bit"):
            if settings[key]:
                raise ConfigError(
                    key, "a quantized base needs an adapter; add adapter: qlora, or remove it"
                )
        return
    if adapter == "qlora" and not settings["load_in_4bit"]:
        wrong = "load_in_8bit" if settings["load_in_8bit"] else "load_in_4bit"
        raise ConfigError(wrong, "adapter: qlora needs load_in_4bit: true; or write adapter: lora")
    if adapter not in {"lora", "qlora"}:
        return
    for key in ("lora_r", "lora_alpha"):
        if settings[key] is None:
            raise ConfigError(key, f"is missing; adapter: {adapter} needs it")
    targets = ("lora_target_linear", "lora_target_modules", "lora_target_parameters")
    if not any(settings[key] for key in targets):
        raise ConfigError(
            "lora_target_linear", f"adapter: {adapter} needs it, or lora_target_modules"
        )
