"""What a person sees of a stack, as text."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console, RenderableType
from tests.unit.cli.stacks import (
    NOW,
    at,
    attempt,
    done,
    evaluated,
    obj,
    running,
    step,
    succeeded,
    trained,
    view,
)

from latticeforge_operator.cli.plain import changes
from latticeforge_operator.cli.stacktable import stack_table
from latticeforge_operator.cli.stackview import stack_view
from latticeforge_operator.cli.summary import summarize
from latticeforge_operator.cli.view import render


def text(picture: RenderableType, width: int = 100) -> list[str]:
    console = Console(width=width, color_system=None, force_terminal=False)
    with console.capture() as capture:
        console.print(picture)
    return [line.rstrip() for line in capture.get().replace("\u00a0", " ").splitlines()]


def test_picture_of_a_running_stack() -> None:
    # The events stand in local time, which a test must not depend on.
    lines = text(render(running(), NOW))
    assert lines[:-2] == [
        "demo   Running   57 %   ETA 2m 10s   after 3m 00s",
        "cic/train: step 12 of 40",
        "",
        "./models/base",
        "├── ✔ math  LoRA",
        "│   ├── ✔ prepare        4s  512 samples, 61,040 tokens",
        "│   ├── ✔ train      1m 05s  loss 2.100 → 0.900, 40 steps, 1,052 tokens/s",
        "│   ├── ✔ merge         12s  269 MB, top-1 agreement 99.8 %",
        "│   └── ✔ evaluate      39s  json 0.50, math 0.50",
        "├── ▶ cic  Full",
        "│   ├── ↺ prepare            reused · 640 samples, 90,210 tokens",
        (
            "│   ├── ▶ train      1m 00s  ━━━━━━━                   "
            "30 % · ETA 2m 20s · loss 0.812 · 412 tokens/s"
        ),
        "│   │   └── attempt 1  Failed: its process was killed → started again after a pause",
        "│   └── ○ evaluate",
        "└── ○ publish  → ./published/model",
        "1 of 8 steps reused",
        "",
        "suite   n  base                math                gate",
        "json   48  0.000 [0.00, 0.07]  0.500 [0.36, 0.64]  ≥ 0.8",
        "math   48  0.250 [0.15, 0.39]  0.500 [0.36, 0.64]  drop ≤ 0.1 from Base",
        "Share of held-out problems answered right [95 % interval]; ✔ and ✘ are the gates.",
        "",
        "cost  █▓······················  0.42 of 5 USD",
        "      █ useful 0.30  ▓ waiting 0.02  ▒ lost 0.10",
        "",
    ]
    assert [line.split(maxsplit=1)[1] for line in lines[-2:]] == [
        "StepStarted  cic/train starts",
        "Killed       cic/train: [it] was killed",
    ]


def test_a_narrow_picture_has_the_same_figures_below_each_other() -> None:
    lines = text(render(running(), NOW), 60)
    start = next(n for n, line in enumerate(lines) if "▶ train" in line)
    assert lines[start : start + 5] == [
        "│   ├── ▶ train      1m 00s  ━━━╸          30 % · ETA 2m 20s",
        "│   │                        loss 0.812 · 412 tokens/s",
        "│   │   └── attempt 1  Failed: its process was killed →",
        "│   │       started again after a pause",
        "│   └── ○ evaluate",
    ]


@settings(max_examples=20)
@given(width=st.integers(60, 200), compact=st.booleans())
def test_no_picture_is_wider_than_the_terminal(width: int, compact: bool) -> None:
    for shown in (running(), view({})):
        assert max(map(len, text(render(shown, NOW, compact=compact), width))) <= width


def test_on_a_low_screen_a_stage_that_is_done_takes_a_line() -> None:
    lines = text(render(running(), NOW, compact=True))
    assert lines[3:6] == ["./models/base", "├── ✔ math  LoRA  2m 00s", "├── ▶ cic  Full"]


def test_notes_stand_below_the_picture() -> None:
    assert text(render(running(), NOW, notes=("checkpointing",)))[-1] == "checkpointing"


def test_a_stack_without_a_status_has_a_picture() -> None:
    assert text(render(view({}), NOW)) == [
        "demo   Pending   0 %",
        "",
        "./models/base",
        "├── ○ math  LoRA",
        "└── ○ cic  Full",
        "",
        "cost  ························  0.00 of 5 USD",
        "      █ useful 0.00  ▓ waiting 0.00  ▒ lost 0.00",
    ]


def test_an_edit_that_nobody_has_looked_at_is_told() -> None:
    assert "the operator has not looked at the latest edit yet" in text(
        render(view({"observedGeneration": 0}), NOW)
    )


def test_what_a_step_tells_of_itself_is_told_once() -> None:
    waits = step("math/train", "Running", message="waiting: no GPU", startedAt=at(2))
    lines = text(render(view({"steps": [waits], "message": "math/train: waiting: no GPU"}), NOW))
    assert [line for line in lines if "no GPU" in line] == [
        "│   └── ▶ train      1m 00s  waiting: no GPU"
    ]


@pytest.mark.parametrize("phase", ["Suspended", "AwaitingApproval", "Failed"])
def test_what_stands_still_has_neither_a_time_nor_an_eta(phase: str) -> None:
    doing = step("math/train", "Running", fraction=0.5, startedAt=at(0), message="step 2 of 4")
    lines = text(render(view({"phase": phase, "steps": [doing]}), NOW))
    assert lines[3:5] == [
        "├── ‖ math  LoRA",
        "│   └── ‖ train              ━━━━━━━━━━━━              50 %",
    ]


def failed(**fields: Any) -> dict[str, Any]:
    reason = "NaN at step 3"
    last = attempt(0, outcome="Numerical", reason=reason, remedy="rolled back", endedAt=at(1))
    return step("math/train", "Failed", message=reason, startedAt=at(0), attempts=[last], **fields)


def test_a_failed_step_says_why_once_and_for_how_long_it_ran() -> None:
    event = {"type": "Warning", "reason": "Numerical", "message": "math/train: NaN at step 3"}
    status = {"steps": [failed()], "message": "math/train failed: NaN at step 3"}
    lines = text(render(view(status, [event]), NOW))
    assert [line for line in lines if "math/train" in line or "train" in line] == [
        "math/train failed: NaN at step 3",
        "│   └── ✘ train      1m 00s",
    ]
    assert "│       └── attempt 1  Numerical: NaN at step 3 → rolled back" in lines


def test_a_failed_step_without_an_attempt_says_why() -> None:
    lines = text(render(view({"steps": [step("math/train", "Failed", message="why")]}), NOW))
    assert "│   └── ✘ train              why" in lines


def test_of_many_attempts_the_last_are_shown_and_the_others_counted() -> None:
    outcomes = ["Preempted", "Network", "Preempted", "Stalled", "Stalled", "Failed"]
    attempts = [attempt(n, outcome=outcome) for n, outcome in enumerate(outcomes)]
    doing = step("math/train", "Running", attempts=[*attempts, attempt(6)])
    lines = [line[12:] for line in text(render(view({"steps": [doing]}), NOW)) if "ttempt" in line]
    assert [line.strip() for line in lines] == [
        "earlier attempts: 2 × Preempted, 1 × Network",
        "attempt 4  Stalled",
        "attempt 5  Stalled",
        "attempt 6  Failed",
    ]


SPREAD = {"low": "1.50", "expected": "1.70", "high": "2.10"}
PLAN = {
    "pool": "h200",
    "gpus": 8,
    "steps": [],
    "hours": SPREAD,
    "cost": {"low": "43.10", "expected": "48.81", "high": "60.30"},
    "currency": "USD",
    "tradeoff": "exact AdamW",
    "stages": [
        {"name": "cic", "words": "ZeRO-3", "memory": "101.2", "capacity": "137.8",
         "tokensPerSecond": 9000.4}
    ],
}  # fmt: skip


def test_the_plan_says_where_how_long_how_much_and_how() -> None:
    lines = text(render(view({"plan": PLAN}), NOW))
    assert lines[6:9] == [
        "plan  pool h200, 8 GPUs · 1.70 h (1.50 to 2.10) · 48.81 USD (43.10 to 60.30)",
        "      cic  ZeRO-3 · 101.2 of 137.8 GiB per GPU · 9,000 tokens/s",
        "      exact AdamW",
    ]


@pytest.mark.parametrize(
    ("cost", "limit", "bar"),
    [
        ({"spent": "4.00", "useful": "4.00"}, "8", "████████████············"),
        ({"spent": "4.00", "useful": "2.00", "waiting": "1.00", "lost": "1.00"}, "8",
         "██████▓▓▓▒▒▒············"),
        ({"spent": "4.00", "useful": "4.00", "forecast": "6.00"}, "8", "████████████░░░░░░······"),
        ({"spent": "4.00", "useful": "4.00", "forecast": "16.00"}, "8", "██████░░░░░░░░░░░░░░░░░░"),
        ({"spent": "4.00", "useful": "4.00", "forecast": "3.00"}, None, "████████████████████████"),
        ({"spent": "0.00"}, None, ""),
    ],
)  # fmt: skip
def test_the_cost_is_a_bar_to_the_budget(cost: dict[str, str], limit: str | None, bar: str) -> None:
    shown = stack_view(obj({"cost": cost}, budget={"limit": limit}), [])
    (line,) = [line for line in text(render(shown, NOW)) if line.startswith("cost")]
    assert line.removeprefix("cost").partition(cost["spent"])[0].strip() == bar


def test_money_that_is_not_to_come_is_written_like_the_rest() -> None:
    lines = text(render(view({"cost": {"forecast": "0.00"}}), NOW))
    assert lines[-1].endswith("▒ lost 0.00  ░ to come 0.00")


def test_scores_stand_beside_those_before_with_their_gates() -> None:
    lines = text(render(succeeded(), NOW), 160)
    start = lines.index(
        "suite   n  base                math                cic                    gate"
    )
    assert lines[start + 1 : start + 5] == [
        "json   48  0.000 [0.00, 0.07]  0.500 [0.36, 0.64]  0.979 [0.89, 1.00]  ✔  ≥ 0.8",
        (
            "math   48  0.250 [0.15, 0.39]  0.500 [0.36, 0.64]  0.500 [0.36, 0.64]  ✘  "
            "drop ≤ 0.1 from Base"
        ),
        "Share of held-out problems answered right [95 % interval]; ✔ and ✘ are the gates.",
        "✘ cic: math fell by 0.2",
    ]
    narrow = text(render(succeeded(), NOW), 60)
    assert "json   48  0.000  0.500  0.979  ✔  ≥ 0.8" in narrow


def test_gates_that_differ_between_stages_name_them() -> None:
    stages = [
        {"name": "math", "evaluate": [{"suite": "json", "minimum": "0.5"}]},
        {"name": "cic", "evaluate": [{"suite": "json", "minimum": "0.9", "maximumDrop": "0.1"}]},
    ]
    scored = done("math/evaluate", at(0), at(1), evaluated("math", (0.5, 0.4, 0.6)))
    shown = stack_view(obj({"steps": [scored]}, stages=stages), [])
    gate = "math ≥ 0.5; cic ≥ 0.9, drop ≤ 0.1 from Previous"
    assert any(line.endswith(gate) for line in text(render(shown, NOW), 160))


def test_a_published_stack_says_how_to_load_it() -> None:
    assert text(render(succeeded(), NOW))[-4:] == [
        "published: /store/published/model  (ffffffffffff)",
        "load it:",
        "    from transformers import AutoModelForCausalLM",
        '    model = AutoModelForCausalLM.from_pretrained("/store/published/model")',
    ]


def test_events_that_repeat_are_counted_and_those_unread_explained() -> None:
    event = {"reason": "Waits", "message": "for quota", "count": 3, "lastTimestamp": at(1)}
    assert text(render(view({}, [event]), NOW))[-1].endswith("Waits  for quota (× 3)")
    unread = stack_view(obj({}), [], unread="no events: events is forbidden")
    assert text(render(unread, NOW))[-1] == "no events: events is forbidden"


def test_the_table_of_stacks_fits_into_its_terminal() -> None:
    two = [running(), stack_view(obj({"stage": "math/prepare", "message": "waits"}, "other"), [])]
    assert text(stack_table(two, NOW, namespaces=True), 120) == [
        "NAMESPACE  NAME   PHASE    STEP          PROGRESS  ETA     COST           AGE     MESSAGE",
        (
            "default    demo   Running  cic/train     57 %      2m 10s  0.42 of 5 USD  3m 00s  "
            "cic/train: step 12 of 40"
        ),
        "default    other  Pending  math/prepare  0 %               0.00 of 5 USD  3m 00s  waits",
    ]
    assert text(stack_table(two, NOW, namespaces=False), 60) == [
        "NAME   PHASE    PROGRESS  ETA     COST",
        "demo   Running  57 %      2m 10s  0.42 of 5 USD",
        "other  Pending  0 %               0.00 of 5 USD",
    ]


def test_summary_of_a_published_stack() -> None:
    assert text(summarize(succeeded())) == [
        "",
        "suite   n  base                math                cic                    gate",
        "json   48  0.000 [0.00, 0.07]  0.500 [0.36, 0.64]  0.979 [0.89, 1.00]  ✔  ≥ 0.8",
        (
            "math   48  0.250 [0.15, 0.39]  0.500 [0.36, 0.64]  0.500 [0.36, 0.64]  ✘  "
            "drop ≤ 0.1 from Base"
        ),
        "Share of held-out problems answered right [95 % interval]; ✔ and ✘ are the gates.",
        "✘ cic: math fell by 0.2",
        "",
        "time 4m 40s: math/evaluate 39s, cic/train 1m 00s, cic/evaluate 1m 30s, publish 10s",
        "1 of 5 steps reused",
        "cost 0.61 of 5 USD",
        "",
        "published: /store/published/model  (ffffffffffff)",
        "load it:",
        "    from transformers import AutoModelForCausalLM",
        '    model = AutoModelForCausalLM.from_pretrained("/store/published/model")',
    ]


def test_plain_lines_tell_every_change_once() -> None:
    assert changes(None, running(), NOW) == [
        "math/prepare: done in 4s: 512 samples, 61,040 tokens",
        "cic/prepare: reused: 640 samples, 90,210 tokens",
        "math/train: done in 1m 05s: loss 2.100 → 0.900, 40 steps, 1,052 tokens/s",
        "math/merge: done in 12s: 269 MB, top-1 agreement 99.8 %",
        "math/evaluate: done in 39s: json 0.50, math 0.50",
        "cic/train: attempt 2, after: its process was killed",
        "cic/train: started",
        "Killed: cic/train: [it] was killed",
        "demo is Running: cic/train: step 12 of 40",
    ]
    assert changes(running(), running(), NOW) == []


def test_plain_lines_tell_each_quarter_of_a_running_step_once() -> None:
    def trains(fraction: float) -> dict[str, object]:
        gauges = {"step": 1, "totalSteps": 4, "loss": 0.5, "tokensPerSecond": 100}
        doing = step("math/train", "Running", fraction=fraction, meters=gauges)
        return {"phase": "Running", "steps": [doing | {"attempts": [attempt(0)]}]}

    shares = [0.0, 0.1, 0.26, 0.3, 0.49, 0.8, 0.99, 1.0]
    views = [view(trains(share)) for share in shares]
    lines = [line for a, b in pairwise(views) for line in changes(a, b, NOW)]
    assert lines == [
        "math/train: 26 %  loss 0.500 · 100 tokens/s",
        "math/train: 80 %  loss 0.500 · 100 tokens/s",
    ]


def test_of_a_gpu_it_is_told_how_well_it_is_used() -> None:
    gauges = {
        "step": 1,
        "totalSteps": 4,
        "loss": 0.5,
        "tokensPerSecond": 18_940.2,
        "mfu": 0.5912,
        "peakMemoryAllocatedBytes": 83 * 2**30,
        "peakMemoryReservedBytes": 84 * 2**30,
    }
    result = trained(2.1, 0.9) | {"mfu": 0.51, "gpu": "NVIDIA H200", "processes": 8}
    steps = [step("math/train", "Running", fraction=0.3, meters=gauges)]
    before, after = (view({"steps": [s]}) for s in (step("math/train", "Running"), *steps))
    assert changes(before, after, NOW) == [
        "math/train: 30 %  loss 0.500 · 18,940 tokens/s · MFU 59.1 % · 84.0 GiB",
    ]
    held_out = result | {"validationLoss": 1.234}
    with_held_out = view({"steps": [done("math/train", at(0), at(1), held_out)]})
    assert "loss 2.100 → 0.900, held out 1.234, 40 steps" in changes(after, with_held_out, NOW)[0]
    done_now = view({"steps": [done("math/train", at(0), at(1), result)]})
    assert changes(after, done_now, NOW) == [
        "math/train: done in 1m 00s: loss 2.100 → 0.900, 40 steps, 1,052 tokens/s, MFU 51.0 %",
    ]


def test_a_step_that_changed_its_digest_is_news() -> None:
    before = view({"steps": [step("math/train", "Done", result=None)]})
    after = view({"steps": [step("math/train", "Done") | {"digest": "e" * 64}]})
    assert changes(before, after, NOW) == ["math/train: done"]


def test_a_stack_has_ended_only_when_its_status_speaks_of_the_last_edit() -> None:
    assert succeeded().ended
    assert not running().ended
    assert not view({"phase": "Succeeded", "observedGeneration": 0}).ended
