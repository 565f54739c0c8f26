"""Specs as users may write them, for Hypothesis."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from tests.unit.core.builders import spec, stage

ADAPTERS = ("LoRA", "QLoRA")
SUITES = st.sampled_from(["json", "cic", "math"])
RATES = st.sampled_from(["1e-5", "2e-6", "0.001"])


@st.composite
def gates(draw: st.DrawFn) -> dict[str, Any]:
    """A gate that some model can pass."""
    asks = draw(st.sampled_from(["minimum", "drop", "both"]))
    gate: dict[str, Any] = {"suite": draw(SUITES)}
    if asks != "drop":
        gate["minimum"] = draw(st.sampled_from(["0.1", "0.5", "0.9"]))
    if asks != "minimum":
        gate |= {"maximumDrop": "0.1", "against": draw(st.sampled_from(["Base", "Previous"]))}
    if draw(st.booleans()):
        gate["samples"] = draw(st.sampled_from([64, 128]))
    return gate


@st.composite
def stages(draw: st.DrawFn, name: str, before: dict[str, Any] | None) -> dict[str, Any]:
    """A stage that may follow another."""
    method = draw(st.sampled_from(["Full", *ADAPTERS]))
    fields: dict[str, Any] = {
        "method": method,
        "hyperparameters": {"learningRate": draw(RATES)},
        "evaluate": draw(st.lists(gates(), max_size=2)),
        "onGateFailure": draw(st.sampled_from(["Stop", "Warn", "RequireApproval"])),
    }
    adapter = before if before is not None and before["method"] in ADAPTERS else None
    if adapter is not None and method in ADAPTERS and draw(st.booleans()):
        fields["handoff"] = "ContinueAdapter"
        if "lora" in adapter:
            fields["lora"] = adapter["lora"]
    elif method in ADAPTERS and draw(st.booleans()):
        fields["lora"] = {"rank": 8, "dropout": draw(st.sampled_from(["0", "0.1"]))}
    return stage(name, **fields)


@st.composite
def specs(draw: st.DrawFn) -> dict[str, Any]:
    """A whole spec."""
    line: list[dict[str, Any]] = []
    for name in draw(st.sampled_from([("a",), ("a", "b"), ("a", "b", "c"), ("b", "c")])):
        line.append(draw(stages(name, line[-1] if line else None)))
    fields: dict[str, Any] = {
        "suspend": draw(st.sampled_from([False, False, False, True])),
        "mode": draw(st.sampled_from(["Run", "Run", "Run", "Plan"])),
        "compute": draw(st.sampled_from([{}, {"gpus": 8}, {"gpus": 16}, {"pool": "h200"}])),
        "failure": {"maxRestarts": draw(st.integers(0, 2))},
    }
    if draw(st.booleans()):
        fields["budget"] = {
            "limit": draw(st.sampled_from(["0.1", "1", "1000"])),
            "onExceed": draw(st.sampled_from(["Suspend", "Fail", "Warn"])),
        }
    if draw(st.booleans()):
        fields["publish"] = None
    else:
        fields["publish"] = {"repository": "owner/x", "artifact": draw(artifacts(line))}
    return {key: value for key, value in spec(*line, **fields).items() if value is not None}


def artifacts(line: list[dict[str, Any]]) -> st.SearchStrategy[str]:
    """What may be published of these stages."""
    continued = all(later.get("handoff") == "ContinueAdapter" for later in line[1:])
    fits = line[-1]["method"] in ADAPTERS and continued
    return st.sampled_from(["Auto", "Merged", *(["Adapter"] if fits else [])])
