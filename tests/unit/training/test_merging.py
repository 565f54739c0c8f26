"""Which adapters are merged, by their config alone."""

from __future__ import annotations

from typing import Any

import pytest

from latticeforge_trainer.errors import UserError
from latticeforge_trainer.models.merging import refuse_unknown_features

PLAIN: dict[str, Any] = {
    "peft_type": "LORA",
    "r": 16,
    "lora_alpha": 32,
    "target_modules": ["q_proj"],
    "bias": "none",
    "use_dora": False,
    "use_rslora": False,
    "modules_to_save": None,
    "rank_pattern": {},
}


@pytest.mark.parametrize("rank_stabilized", [False, True])
def test_plain_lora_is_merged(rank_stabilized: bool) -> None:
    refuse_unknown_features(PLAIN | {"use_rslora": rank_stabilized})
    tied = {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}
    refuse_unknown_features(PLAIN | tied)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("use_dora", True),
        ("rank_pattern", {"q_proj": 2}),
        ("alpha_pattern", {"q_proj": 2}),
        ("bias", "all"),
        ("fan_in_fan_out", True),
        ("something_of_next_year", 1),
    ],
)
def test_a_feature_that_changes_the_formula_is_named(key: str, value: Any) -> None:
    with pytest.raises(UserError, match=key):
        refuse_unknown_features(PLAIN | {key: value})


def test_another_kind_of_adapter_is_named() -> None:
    with pytest.raises(UserError, match="IA3"):
        refuse_unknown_features(PLAIN | {"peft_type": "IA3"})
