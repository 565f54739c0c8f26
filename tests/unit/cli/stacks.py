"""A stack in the middle of its second stage, and what becomes of it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from latticeforge_operator.cli.stackview import StackView, stack_view

NOW = datetime(2026, 1, 2, 12, 3, 0, tzinfo=UTC)


def at(minute: int, second: int = 0) -> str:
    return f"2026-01-02T12:{minute:02d}:{second:02d}Z"


def score(suite: str, value: float, low: float, high: float) -> dict[str, Any]:
    return {"suite": suite, "value": value, "low": low, "high": high, "n": 48}


def prepared(samples: int, tokens: int) -> dict[str, Any]:
    return {
        "kind": "prepare",
        "artifact": "a" * 64,
        "base": {
            "path": "models/base",
            "revision": "r",
            "architecture": "LlamaForCausalLM",
            "parameters": 135_000_000,
            "hiddenSize": 576,
            "layers": 30,
            "vocabulary": 49_152,
        },
        "data": [{"source": "./x.jsonl", "revision": "r", "samples": samples, "tokens": tokens}],
        "sequences": 20,
        "tokens": tokens,
        "targetTokens": tokens // 2,
    }


def trained(first: float, last: float) -> dict[str, Any]:
    return {
        "kind": "train",
        "steps": 40,
        "tokens": 61_040,
        "firstLoss": first,
        "finalLoss": last,
        "seconds": 58.0,
        "tokensPerSecond": 1052.4,
    }


MERGED = {
    "kind": "merge",
    "bytes": 269_000_000,
    "maxLogitDifference": 0.1,
    "top1Agreement": 0.998,
}
PUBLISHED = {
    "kind": "publish",
    "url": "file:///store/published/model",
    "commit": "f" * 40,
    "bytes": 272_000_000,
    "files": 9,
}
BASE_ROW = {
    "model": "base",
    "scores": [score("json", 0.0, 0.0, 0.074), score("math", 0.25, 0.15, 0.39)],
}


def evaluated(name: str, json: tuple[float, float, float]) -> dict[str, Any]:
    own = {"model": name, "scores": [score("json", *json), score("math", 0.5, 0.36, 0.64)]}
    return {"kind": "evaluate", "table": [own, BASE_ROW]}


def attempt(number: int, **fields: Any) -> dict[str, Any]:
    return {"number": number, "job": f"demo-{number}", **fields}


def step(name: str, phase: str = "Pending", **fields: Any) -> dict[str, Any]:
    return {"name": name, "digest": name.ljust(64, "0"), "phase": phase, **fields}


def done(name: str, start: str, end: str, result: dict[str, Any]) -> dict[str, Any]:
    times = {"startedAt": start, "finishedAt": end}
    return step(name, "Done", fraction=1, result=result, attempts=[attempt(0)], **times)


def reused(name: str, result: dict[str, Any]) -> dict[str, Any]:
    return step(name, "Reused", fraction=1, result=result)


GATES = [
    {"suite": "json", "minimum": "0.8"},
    {"suite": "math", "maximumDrop": "0.1", "against": "Base"},
]


def obj(status: dict[str, Any], name: str = "demo", **spec: Any) -> dict[str, Any]:
    """The stack `demo`, stages math and cic, with a status, as the API has it."""
    whole = {
        "base": {"model": "./models/base"},
        "stages": [
            {"name": "math", "method": "LoRA"},
            {"name": "cic", "method": "Full", "evaluate": GATES},
        ],
        "budget": {"limit": "5"},
        "publish": {"repository": "./published/model"},
        **spec,
    }
    meta = {"name": name, "namespace": "default", "generation": 1, "creationTimestamp": at(0)}
    return {"metadata": meta, "spec": whole, "status": {"observedGeneration": 1, **status}}


def view(status: dict[str, Any], events: list[dict[str, Any]] | None = None) -> StackView:
    """What is shown of it."""
    return stack_view(obj(status), events or [])


def running() -> StackView:
    """The second stage trains, at its second attempt; its prepare step was reused."""
    gauges = {"step": 12, "totalSteps": 40, "loss": 0.8123, "tokensPerSecond": 412.4}
    return view(
        {
            "phase": "Running",
            "message": "cic/train: step 12 of 40",
            "stage": "cic/train",
            "progress": {"percent": 57, "eta": at(5, 10)},
            "cost": {
                "spent": "0.42",
                "currency": "USD",
                "useful": "0.30",
                "waiting": "0.02",
                "lost": "0.10",
            },
            "startedAt": at(0),
            "steps": [
                done("math/prepare", at(0), at(0, 4), prepared(512, 61_040)),
                reused("cic/prepare", prepared(640, 90_210)),
                done("math/train", at(0, 4), at(1, 9), trained(2.1, 0.9)),
                done("math/merge", at(1, 9), at(1, 21), MERGED),
                done("math/evaluate", at(1, 21), at(2), evaluated("math", (0.5, 0.36, 0.64))),
                step(
                    "cic/train",
                    "Running",
                    fraction=0.3,
                    startedAt=at(2),
                    meters=gauges,
                    attempts=[
                        attempt(
                            0,
                            outcome="Failed",
                            reason="its process was killed",
                            remedy="started again after a pause",
                            counted=True,
                        ),
                        attempt(1),
                    ],
                ),
                step("cic/evaluate"),
                step("publish"),
            ],
        },
        [
            {"type": "Normal", "reason": "StepStarted", "message": "cic/train starts",
             "lastTimestamp": at(2)},
            {"type": "Warning", "reason": "Killed", "message": "cic/train: [it] was killed",
             "lastTimestamp": at(2, 30)},
        ],
    )  # fmt: skip


def succeeded() -> StackView:
    """Both stages passed and the model is published."""

    def row(suite: str, value: str, passed: bool = True) -> dict[str, Any]:
        return {
            "suite": suite,
            "value": value,
            "low": value,
            "high": value,
            "samples": 48,
            "passed": passed,
            "message": "" if passed else f"{suite} fell by 0.2",
        }

    cic_scores = [row("json", "0.979"), row("math", "0.500", passed=False)]
    return view(
        {
            "phase": "Succeeded",
            "message": "published at file:///store/published/model",
            "progress": {"percent": 100},
            "cost": {"spent": "0.61", "currency": "USD"},
            "startedAt": at(0),
            "finishedAt": at(4, 40),
            "published": {"url": "file:///store/published/model", "commit": "f" * 40},
            "stages": [
                {"name": "math", "phase": "Done", "scores": [], "model": ["b" * 64]},
                {"name": "cic", "phase": "Done", "scores": cic_scores, "model": ["c" * 64]},
            ],
            "steps": [
                reused("math/train", trained(2.1, 0.9)),
                done("math/evaluate", at(1, 21), at(2), evaluated("math", (0.5, 0.36, 0.64))),
                done("cic/train", at(2), at(3), trained(1.2, 0.3)),
                done("cic/evaluate", at(3), at(4, 30), evaluated("cic", (0.979, 0.891, 0.996))),
                done("publish", at(4, 30), at(4, 40), PUBLISHED),
            ],
        }
    )
