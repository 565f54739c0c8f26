"""Folds a LoRA adapter into 16-bit weights, shard by shard, and checks what came out.

W' = W + (alpha / r) B A, computed in fp32 and rounded once; what was trained in full beside the
adapter takes the place of the base's own. Neither the base nor the merged model is ever whole in
memory while it is written; the check loads one after the other.
"""

from __future__ import annotations

import gc
import json
import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors import safe_open

from latticeforge_trainer.errors import UserError
from latticeforge_trainer.models.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from latticeforge_trainer.models.loading import load_model, quantization_of
from latticeforge_trainer.models.shards import ShardWriter, copy_companions

PREFIX = "base_model.model."

IRRELEVANT = frozenset(
    {
        "r",
        "lora_alpha",
        "lora_dropout",
        "use_rslora",
        "target_modules",
        "exclude_modules",
        "layers_to_transform",
        "layers_pattern",
        "modules_to_save",
        "ensure_weight_tying",
        "init_lora_weights",
        "task_type",
        "inference_mode",
        "base_model_name_or_path",
        "revision",
        "peft_version",
        "auto_mapping",
        "runtime_config",
    }
)
"""Fields of an adapter's config that do not change the formula above, or are in it."""

PROMPTS = (
    "The capital of France is Paris, and the capital of Italy is",
    "Question: A train travels 60 miles in 1.5 hours. What is its average speed?\nAnswer:",
    "If x + 3 = 10 and y = 2x, then y equals 14, because x equals 7 and twice seven is fourteen.",
    '{"phase": "crystalline", "confidence": 0.82, "risks": ["supply", "escalation"], "summary": ',
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return fibonacci(n - 1) + ",
    "Dear committee, I write to report the results of the second quarter, in which revenue rose by",
    "Die Katze sitzt auf der Matte und schaut aus dem Fenster. Draußen regnet es, und",
    "1, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233, 377, 610, 987, 1597, 2584, 4181",
)
"""Held-out text of several kinds; every position of it is compared."""

NEAR_TIE = 0.1
"""Nats by which the unmerged model must prefer its own token for another choice to count as wrong.

Rounding W' to bf16 moves each weight by up to 2⁻⁹ of itself, which moves log-probabilities of
likely tokens by hundredths of a nat: two tokens closer than that may change places.
"""

MOST_WRONG = 0.02
"""Share of positions that may be wrong. A wrong scale or a forgotten layer costs far more."""


@dataclass(frozen=True)
class Parity:
    """How a merged model compares with base plus adapter, over all positions of `PROMPTS`."""

    max_difference: float
    """Largest difference of log-probabilities."""
    top1_agreement: float
    """Share of positions whose most likely token is the same."""
    wrong: float
    """Share of positions where the choice differs by more than a near tie."""


class Updates:
    """An adapter's updates of weights, by the weight's name in the base.

    Args:
        folder: The adapter, in PEFT's format.

    Attributes:
        pending: Weights that must have one applied, and have not yet.

    Raises:
        UserError: It uses a feature that is not merged here.
    """

    def __init__(self, folder: Path) -> None:
        config = json.loads((folder / ADAPTER_CONFIG).read_text())
        refuse_unknown_features(config)
        rank = config["r"]
        self._scale = config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank)
        self._saved = tuple(config.get("modules_to_save") or ())
        open_file: Any = safe_open  # untyped
        self._file = open_file(folder / ADAPTER_WEIGHTS, framework="pt")
        self._keys = set(self._file.keys())
        self._names = {self._weight_name(key) for key in self._keys}
        # What is tied to a saved module is in the file too; the base need not hold it twice.
        self.pending = {name for name in self._names if not self._is_tied(name)}

    def apply(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """The weight with its update, in its own type; itself if it has none."""
        if name not in self._names:
            return weight
        self.pending.discard(name)
        if PREFIX + name in self._keys:
            return self._tensor(name).to(weight.dtype)
        module = name.removesuffix(".weight")
        a, b = (self._tensor(f"{module}.lora_{half}.weight").float() for half in "AB")
        # [out, in] + [out, r] [r, in]
        return torch.addmm(weight.float(), b, a, alpha=self._scale).to(weight.dtype)

    def _tensor(self, key: str) -> torch.Tensor:
        tensor: torch.Tensor = self._file.get_tensor(PREFIX + key)
        return tensor

    def _weight_name(self, key: str) -> str:
        name = key.removeprefix(PREFIX)
        for suffix in (".lora_A.weight", ".lora_B.weight"):
            if name != key and name.endswith(suffix):
                return name.removesuffix(suffix) + ".weight"
        if name != key and self._saved:
            return name
        raise UserError(f"the adapter holds {key}, which is no low-rank update of a linear layer")

    def _is_tied(self, name: str) -> bool:
        """Whether a whole weight is there only because it is one with a saved module's."""
        whole = PREFIX + name in self._keys
        return whole and not name.removesuffix(".weight").endswith(self._saved)


def refuse_unknown_features(config: dict[str, Any]) -> None:
    """Refuse an adapter whose config says more than rank, alpha and targets.

    Raises:
        UserError: Naming the feature.
    """
    if config.get("peft_type") != "LORA":
        raise UserError(f"only LoRA adapters are merged, not {config.get('peft_type')}")
    default: Any = LoraConfig()  # untyped
    plain = default.to_dict()
    for key, value in config.items():
        if key not in IRRELEVANT and value and value != plain.get(key):
            raise UserError(
                f"the adapter sets {key} to {value}, which is not merged here: train it without, "
                "or publish it as an adapter (publish.artifact: Adapter)"
            )


def merge_adapter(
    base: Path, adapter: Path, target: Path, progress: Callable[[float], None]
) -> int:
    """Write the merged model.

    Args:
        base: Folder of the 16-bit model.
        adapter: Folder of the adapter.
        target: Where to; made if missing.
        progress: Called with the share that is done.

    Returns:
        Bytes of the merged weights.

    Raises:
        UserError: The base is quantized, or the adapter does not fit it.
    """
    quantization = quantization_of(base)
    if quantization is not None:
        raise UserError(
            f"an adapter is never merged into {quantization} weights, which would round it away: "
            "give the 16-bit base, or publish the adapter (publish.artifact: Adapter)"
        )
    updates = Updates(adapter)
    copy_companions(base, target)
    shutil.copyfile(base / "config.json", target / "config.json")
    writer = ShardWriter(target)
    for done, (name, weight) in stored_tensors(base):
        writer.add(name, updates.apply(name, weight))
        progress(done)
    if updates.pending:
        raise UserError(
            f"the adapter changes {min(updates.pending)}, which the base {base.name} does not "
            "hold: was it trained on another model?"
        )
    return writer.finish()


def stored_tensors(folder: Path) -> Iterator[tuple[float, tuple[str, torch.Tensor]]]:
    """A model's tensors in the order of its files, each with the share that is then done."""
    paths = sorted(folder.glob("*.safetensors"))
    with ExitStack() as stack:
        files = [stack.enter_context(safe_open(path, framework="pt")) for path in paths]
        total = sum(len(file.keys()) for file in files)
        number = 0
        for file in files:
            for name in file.keys():  # noqa: SIM118  (safe_open is no dict)
                number += 1
                yield number / total, (name, file.get_tensor(name))


def compare(base: Path, adapter: Path, merged: Path) -> Parity:
    """Compare a merged model with base plus adapter on held-out prompts.

    Raises:
        UserError: They differ by more than rounding explains.
    """
    expected = log_probabilities(base, adapter)
    actual = log_probabilities(merged, None)
    choice, other = expected.argmax(-1), actual.argmax(-1)  # [positions]
    lead = expected.gather(1, choice[:, None]) - expected.gather(1, other[:, None])
    parity = Parity(
        max_difference=float((expected - actual).abs().max()),
        top1_agreement=float((choice == other).float().mean()),
        wrong=float((lead > NEAR_TIE).float().mean()),
    )
    if not (parity.wrong <= MOST_WRONG and math.isfinite(parity.max_difference)):
        raise UserError(
            f"the merged model is not the adapter's: its most likely token is the same at "
            f"{parity.top1_agreement:.1%} of positions, log-probabilities differ by up to "
            f"{parity.max_difference:.3g}: publish the adapter instead (publish.artifact: Adapter)"
        )
    return parity


@torch.inference_mode()
def log_probabilities(folder: Path, adapter: Path | None) -> torch.Tensor:
    """Log-probabilities after every position of `PROMPTS`, fp32 [positions, vocabulary]."""
    model, tokenizer = load_model(folder, adapter=adapter)
    rows = []
    for prompt in PROMPTS:
        tokens = torch.tensor([tokenizer.encode(prompt)], device=model.device)
        rows.append(model(input_ids=tokens, use_cache=False).logits[0].float().log_softmax(-1))
    del model
    gc.collect()  # the next one is as large
    return torch.cat(rows).cpu()
