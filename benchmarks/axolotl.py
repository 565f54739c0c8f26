"""How many of the configs that Axolotl ships import, and why the others do not.

    git clone https://github.com/axolotl-ai-cloud/axolotl
    python -m benchmarks.axolotl axolotl/examples

Counted are the full, LoRA and QLoRA fine-tunes of Llama, Qwen, Mistral and Gemma on text. What
LatticeForge does not set out to do (preference learning, vision, pretraining, …) and methods of
their own (quantization-aware training, ReLoRA, …) are listed apart.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from latticeforge_operator.api import StackedTrainingSpec
from latticeforge_operator.axolotl.lines import Verdict
from latticeforge_operator.axolotl.registry import lines_of, read_settings
from latticeforge_operator.axolotl.scope import OUT_OF_SCOPE
from latticeforge_operator.axolotl.settings import ConfigError
from latticeforge_operator.axolotl.stack import Config, Options, build_stack

FAMILIES = ("llama", "qwen", "mistral", "gemma")
METHODS = {
    "qat": "quantization-aware training",
    "relora": "ReLoRA",
    "lisa_n_layers": "LISA",
    "llmcompressor": "sparse fine-tuning",
    "fp8": "FP8 training",
    "use_eaft": "entropy-weighted loss",
    "gptq": "LoRA over GPTQ",
    "nvfp4_merge_aware": "LoRA over NVFP4",
    "peft": "LoftQ",
    "lora_target_parameters": "adapters on fused experts",
    "llama4_linearized_experts": "Llama 4 with linearized experts, which only Axolotl loads",
}
"""Keys that make a config another method than a full, LoRA or QLoRA fine-tune."""


PARTIAL = "fine-tuning of some layers"


def configs(examples: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The configs of the four families."""
    for path in sorted([*examples.rglob("*.yml"), *examples.rglob("*.yaml")]):
        config = yaml.safe_load(path.read_text())
        if not isinstance(config, dict) or "base_model" not in config:
            continue
        name = f"{path.relative_to(examples)} {config['base_model']}".lower()
        if any(family in name for family in FAMILIES):
            yield path.relative_to(examples), config


def apart(config: dict[str, Any]) -> str | None:
    """Why a config is not counted; None when it is."""
    for key, sentence in OUT_OF_SCOPE.items():
        if config.get(key):
            return re.sub(r" \(.*\)| (is|are) out of scope.*", "", sentence)
    if any(fault.startswith("unfrozen_parameters") for fault in faults(config)):
        return PARTIAL
    return next((method for key, method in METHODS.items() if config.get(key)), None)


def faults(config: dict[str, Any]) -> list[str]:
    """What keeps a config from being imported as a stack that the API accepts."""
    try:
        settings = read_settings(config, gpus=1)
        lines = lines_of(config, settings)
        unsupported = [line for line in lines if line.verdict is Verdict.UNSUPPORTED]
        if not unsupported:
            stack = build_stack([Config("sft", settings, lines)], Options())
            StackedTrainingSpec.model_validate(stack.manifest["spec"])
    except (ConfigError, ValidationError) as error:
        return [str(error)]
    return [f"{line.key}: {line.sentence}" for line in unsupported]


def main() -> None:
    """Print the share, the reasons, and what is not counted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("examples", type=Path, help="examples/ of a checkout of Axolotl")
    examples = parser.parse_args().examples
    uncounted: Counter[str] = Counter()
    failing: dict[Path, list[str]] = {}
    total = 0
    for path, config in configs(examples):
        reason = apart(config)
        if reason is not None:
            uncounted[reason] += 1
            continue
        total += 1
        if found := faults(config):
            failing[path] = found
    good = total - len(failing)
    text = total + sum(uncounted[method] for method in {*METHODS.values(), PARTIAL})
    print(f"{good} of {total} import ({good / total:.1%}); of all {text} on text {good / text:.1%}")
    for path, found in failing.items():
        print(f"  {path}: {'; '.join(found)}")
    print(f"not counted: {sum(uncounted.values())}")
    for reason, count in uncounted.most_common():
        print(f"  {count:>3}  {reason}")


if __name__ == "__main__":
    main()
