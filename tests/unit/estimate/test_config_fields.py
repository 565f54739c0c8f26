"""What travels of a config is all that is read of it, and no more."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from tests.unit.estimate.test_shapes import MIXTRAL, QWEN_30B_A3B, QWEN_72B

from latticeforge_trainer.estimate.base_model import read_base_model
from latticeforge_trainer.estimate.config_fields import SIZE_FIELDS, size_fields
from latticeforge_trainer.estimate.shapes import FAMILIES

NF4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}


class Read(Mapping[str, Any]):
    """A config that notes which of its fields are read."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._config, self.fields = config, set[str]()

    def __getitem__(self, name: str) -> Any:
        self.fields.add(name)
        return self._config[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._config)

    def __len__(self) -> int:
        return len(self._config)


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_else_is_read(family: str) -> None:
    config = Read(QWEN_30B_A3B | {"num_local_experts": 8, "model_type": family})
    assert read_base_model(config).shape.hidden == 2048
    assert config.fields - {"text_config", "quantization_config"} <= SIZE_FIELDS


@pytest.mark.parametrize("config", [QWEN_72B, MIXTRAL, QWEN_30B_A3B, {"text_config": QWEN_72B}])
def test_it_is_read_like_the_whole(config: dict[str, Any]) -> None:
    noise = {"auto_map": {"x": "y"}, "id2label": {"0": "no"}, "bos_token_id": 1}
    assert read_base_model(size_fields(config | noise)) == read_base_model(config)
    assert not noise.keys() & size_fields(config | noise).keys()


def test_it_is_small_however_many_modules_a_quantization_spares() -> None:
    spared = [f"model.layers.{n}.mlp.down_proj" for n in range(10_000)]
    quantization = NF4 | {"llm_int8_skip_modules": spared}
    kept = size_fields(QWEN_72B | {"quantization_config": quantization})
    assert kept["quantization_config"] == NF4
    assert len(json.dumps(kept)) < 1000
