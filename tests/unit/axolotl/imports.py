"""Configs for the tests, and what they become."""

from __future__ import annotations

from typing import Any

from latticeforge_operator.api import StackedTrainingSpec
from latticeforge_operator.axolotl.lines import Line
from latticeforge_operator.axolotl.registry import lines_of, read_settings
from latticeforge_operator.axolotl.stack import Config, Options, Stack, build_stack

LORA: dict[str, Any] = {
    "base_model": "owner/model",
    "adapter": "lora",
    "lora_r": 8,
    "lora_alpha": 16,
    "lora_target_linear": True,
    "datasets": [{"path": "owner/data", "type": "alpaca"}],
    "sequence_len": 1024,
    "sample_packing": True,
    "micro_batch_size": 2,
    "learning_rate": "1e-4",
}
FULL: dict[str, Any] = {
    key: value for key, value in LORA.items() if not key.startswith(("lora", "adapter"))
}


def read(config: dict[str, Any], *, gpus: int = 1, name: str = "one") -> Config:
    """A config, read."""
    settings = read_settings(config, gpus)
    return Config(name, settings, lines_of(config, settings))


def stack_of(*configs: dict[str, Any], gpus: int | None = None, **options: Any) -> Stack:
    """A stack whose stages are called `one`, `two` and so on, that the API accepts."""
    names = ("one", "two", "three")
    parts = [read(c, gpus=gpus or 1, name=n) for c, n in zip(configs, names, strict=False)]
    stack = build_stack(parts, Options(gpus=gpus, **options))
    StackedTrainingSpec.model_validate(stack.manifest["spec"])
    return stack


def stage_of(config: dict[str, Any], *, gpus: int | None = None) -> dict[str, Any]:
    """The stage that a config becomes."""
    stage: dict[str, Any] = stack_of(config, gpus=gpus).manifest["spec"]["stages"][0]
    return stage


def line_of(config: dict[str, Any], key: str) -> Line:
    """What became of a key."""
    [line] = [line for line in read(config).lines if line.key == key]
    return line
