"""Models, pools and requests for the tests of planning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.unit.core.builders import pool, spec, stack, stage

from latticeforge_operator.api import GPUPool, StackedTrainingSpec
from latticeforge_operator.core.planning import StageData
from latticeforge_operator.core.planning.options import Request
from latticeforge_trainer.estimate.base_model import BaseModel, read_base_model

ROOT = Path(__file__).parents[4]
QWEN_72B: dict[str, Any] = json.loads((ROOT / "examples/configs/qwen2.5-72b.json").read_text())
QWEN_7B = QWEN_72B | {
    "hidden_size": 3584,
    "intermediate_size": 18_944,
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
}
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "quant_method": "bitsandbytes"}
NF4_72B = QWEN_72B | {"quantization_config": NF4}
INT4_72B = QWEN_72B | {"quantization_config": {"quant_method": "gptq", "bits": 4}}

SMALL, LARGE = read_base_model(QWEN_7B), read_base_model(QWEN_72B)
_OF_STAGE = ("method", "hyperparameters", "lora", "evaluate")
TOKENS = StageData(tokens=10_000_000, exact=True)


def asked(**fields: Any) -> StackedTrainingSpec:
    """A stack of one stage; `method`, `hyperparameters`, `lora` and `evaluate` are the stage's."""
    own = {key: fields.pop(key) for key in _OF_STAGE if key in fields}
    return stack(spec(stage("one", **own), **fields)).spec


def h200(**fields: Any) -> GPUPool:
    """Nodes of eight, with host memory."""
    return pool(**({"hostMemory": "1900Gi"} | fields))


def request(model: BaseModel = SMALL, **fields: Any) -> Request:
    """One stage whose tokens are known."""
    headroom = fields.pop("headroom", 0.0)
    return Request(asked(**fields), model, {"one": TOKENS}, headroom=headroom)
