"""A model without its weights: built from its config, and finished when they are in their places.

What belongs where is transformers' own knowledge, and is asked of it: which layers are quantized,
what a checkpoint's tensors are called in the model, how buffers are computed, which weights are
tied. Where an architecture stores its weights in another layout (fused experts, for example),
`detour` says so, and transformers loads it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedConfig
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import PrefixChange, WeightRenaming, rename_source_key
from transformers.pytorch_utils import Conv1D

from latticeforge_trainer.errors import UserError
from latticeforge_trainer.models.headers import StoredTensor, nf4_weight_of, nf4_weights
from latticeforge_trainer.models.streaming import Group

log = logging.getLogger(__name__)

GENERATION = "generation_config.json"


class Skeleton:
    """A model on the meta device, and how a checkpoint fills it.

    Args:
        folder: The model's folder.
        config: Its config.
        dtype: Type of the weights that are not quantized.
        quantizer: A transformers `HfQuantizer` that is to replace layers by its own.

    Raises:
        ValueError: The config is of no causal language model.
    """

    def __init__(
        self, folder: Path, config: PreTrainedConfig, dtype: torch.dtype, quantizer: Any = None
    ) -> None:
        self.folder, self.dtype, self.quantizer = folder, dtype, quantizer
        build: Any = AutoModelForCausalLM.from_config  # untyped
        with torch.device("meta"), default_dtype(dtype):
            self.model: Any = build(config, dtype=dtype, trust_remote_code=False)
            if quantizer is not None:
                quantizer.preprocess_model(
                    model=self.model,
                    dtype=dtype,
                    device_map=None,
                    checkpoint_files=None,
                    use_kernels=False,
                )
        self._expected: dict[str, torch.Tensor] = self.model.state_dict()
        self._absent: set[str] = set()

    def detour(self) -> str | None:
        """Why transformers itself must load this architecture; None if it need not."""
        for transform in get_model_conversion_mapping(self.model):
            if type(transform) not in {WeightRenaming, PrefixChange}:
                return f"{transform.source_patterns[0]} is stored in another layout"
        strict = self.model._keep_in_fp32_modules_strict  # noqa: SLF001  (as from_pretrained asks)
        if strict and self.dtype != torch.float32:
            return f"{min(strict)} stays in 32 bits"
        for name, module in self.model.named_modules():
            if getattr(module, "source_cls", None) is Conv1D:  # made bitsandbytes' by the quantizer
                return f"{name} is quantized transposed"
        return None

    def plan(self, stored: Mapping[str, StoredTensor]) -> list[Group]:
        """Which stored tensors go into which module, in the order of the files.

        Raises:
            UserError: One is missing, or has another shape than the config says.
        """
        groups: dict[str, dict[str, StoredTensor]] = {}
        found, unexpected = set(), []
        renamings = get_model_conversion_mapping(self.model)
        packed = nf4_weights(stored)
        for name, tensor in sorted(stored.items(), key=_place):
            weight = nf4_weight_of(name) if nf4_weight_of(name) in packed else name
            target = self._name_of(weight, renamings)
            if target is None:
                unexpected.append(name)
                continue
            if weight not in packed:
                self._check_shape(target, tensor)
            found.add(target)
            module, _, leaf = target.rpartition(".")
            groups.setdefault(module, {})[leaf + name.removeprefix(weight)] = tensor
        if unexpected:
            count, first = len(unexpected), min(unexpected)
            log.info("%s: %d tensors are not the model's, %s is one", self.folder, count, first)
        self._settle_absent(found)
        return [Group(module, tensors) for module, tensors in groups.items()]

    def finish(self, device: torch.device) -> Any:
        """Compute what no file holds, and tie what is tied, once every group is in its place.

        Returns:
            The model, in evaluation mode.
        """
        tied = self._tied()
        for name, tensor in [*self.model.named_parameters(), *self.model.named_buffers()]:
            if tensor.is_meta and name not in tied:
                module, leaf = owner(self.model, name)
                put(module, leaf, torch.empty_like(tensor, device=device), loaded=False)
        self.model.initialize_weights()  # passes over what was loaded
        self.model.tie_weights(missing_keys=self._absent, recompute_mapping=False)
        if self.quantizer is not None:
            self.model.hf_quantizer = self.quantizer
            self.quantizer.postprocess_model(self.model)
        if (self.folder / GENERATION).is_file():
            self.model.generation_config = GenerationConfig.from_pretrained(
                self.folder, local_files_only=True
            )
        return self.model.eval()

    def _name_of(self, name: str, renamings: list[Any]) -> str | None:
        for rules in (renamings, []):
            new, _ = rename_source_key(
                name, rules, [], self.model.base_model_prefix, self._expected
            )
            if new in self._expected:
                return new
        return None

    def _check_shape(self, name: str, tensor: StoredTensor) -> None:
        expected = tuple(self._expected[name].shape)
        if tensor.info.shape != expected:
            raise UserError(
                f"model {self.folder}: {name} is stored as {list(tensor.info.shape)}, but the "
                f"config makes it {list(expected)}: they are of different models"
            )

    def _settle_absent(self, found: set[str]) -> None:
        self._absent = self._expected.keys() - found
        optional = self.model._keys_to_ignore_on_load_missing or ()  # noqa: SLF001  (as above)
        missing = {
            name
            for name in self._absent - self._tied()
            if not any(re.search(pattern, name) for pattern in optional)
        }
        if missing:
            raise UserError(f"model {self.folder}: weights are missing: {min(missing)}")

    def _tied(self) -> set[str]:
        """Absent weights that are other names of one that is there."""
        families: dict[str, set[str]] = {}
        for name, source in self.model.all_tied_weights_keys.items():
            families.setdefault(source, {source}).add(name)
        whole = [family for family in families.values() if family - self._absent]
        return set().union(*whole) & self._absent


def _place(item: tuple[str, StoredTensor]) -> tuple[Path, int]:
    _, tensor = item
    return tensor.path, tensor.start


def owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that holds a parameter or buffer, and its name there."""
    module, _, leaf = name.rpartition(".")
    return model.get_submodule(module), leaf


def put(module: nn.Module, leaf: str, value: torch.Tensor, *, loaded: bool = True) -> None:
    """Set a module's parameter or buffer.

    Args:
        module: The module.
        leaf: The name in it.
        value: The new value; becomes a parameter unless it is a buffer.
        loaded: Whether it holds what it shall: what does not is computed at the end.
    """
    if leaf not in module._buffers and not isinstance(value, nn.Parameter):  # noqa: SLF001
        value = nn.Parameter(value, requires_grad=value.is_floating_point())
    if loaded:
        mark_loaded(value)
    setattr(module, leaf, value)


def mark_loaded(tensor: torch.Tensor) -> None:
    """Have transformers' `initialize_weights` pass over a tensor."""
    tensor._is_hf_initialized = True  # type: ignore[attr-defined]  # noqa: SLF001  (its own mark)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """In the block, tensors are made in a type unless told otherwise."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
