"""What a person sees of a stack, as text at a width of 100."""

from __future__ import annotations

from itertools import pairwise

from rich.console import Console, RenderableType
from tests.unit.cli.stacks import NOW, at, attempt, done, running, step, succeeded, trained, view

from latticeforge_operator.cli.plain import changes
from latticeforge_operator.cli.summary import summarize
from latticeforge_operator.cli.view import render


def text(picture: RenderableType) -> list[str]:
    console = Console(width=100, color_system=None, force_terminal=False)
    with console.capture() as capture:
        console.print(picture)
    return [line.rstrip() for line in capture.get().splitlines()]


def test_picture_of_a_running_stack() -> None:
    # The events stand in local time, which a test must not depend on.
    lines = text(render(running(), NOW))
    assert lines[:13] == [
        "demo   Running   57 %   ETA 2m 10s   cost 0.42 of 5 USD",
        "cic/train: step 12 of 40",
        "",
        "math  LoRA",
        "  ✔ prepare   ━━━━━━━━━━━━━━━━      4s  512 samples, 61,040 tokens",
        "  ✔ train     ━━━━━━━━━━━━━━━━  1m 05s  loss 2.100 → 0.900, 40 steps, 1,052 tokens/s",
        "  ✔ merge     ━━━━━━━━━━━━━━━━     12s  269 MB, top-1 agreement 99.8 %",
        "  ✔ evaluate  ━━━━━━━━━━━━━━━━     39s  json 0.50, math 0.50",
        "cic  Full",
        "  ↺ prepare   ━━━━━━━━━━━━━━━━          reused · 640 samples, 90,210 tokens",
        (
            "  ▶ train     ━━━━╸             1m 00s  "
            "attempt 2 · 30 % · loss 0.812 · 412 tokens/s · ETA 2m 20s"
        ),
        "  ○ evaluate",
        "○ publish",
    ]
    assert [line.split(maxsplit=1)[1] for line in lines[14:]] == [
        "StepStarted  cic/train starts",
        "Killed       cic/train: [it] was killed",
    ]


def test_notes_stand_below_the_picture() -> None:
    assert text(render(running(), NOW, notes=("checkpointing",)))[-1] == "checkpointing"


def test_a_stack_without_a_status_has_a_picture() -> None:
    assert text(render(view({}), NOW))[0] == "demo   Pending   0 %   cost 0.00 of 5 USD"


def test_a_failed_step_says_why() -> None:
    failed = view({"steps": [step("math/train", "Failed", message="NaN at step 3")]})
    (line,) = [line for line in text(render(failed, NOW)) if "train" in line]
    assert line.split() == ["✘", "train", "NaN", "at", "step", "3"]


def test_summary_of_a_published_stack() -> None:
    assert text(summarize(succeeded())) == [
        "",
        "suite   n  base                math                cic",
        "json   48  0.000 [0.00, 0.07]  0.500 [0.36, 0.64]  0.979 [0.89, 1.00]  ✔",
        "math   48  0.250 [0.15, 0.39]  0.500 [0.36, 0.64]  0.500 [0.36, 0.64]  ✘",
        "Share of held-out problems answered right [95 % interval]; ✔ and ✘ are the gates.",
        "✘ cic: math fell by 0.2",
        "",
        "time 4m 40s: math/evaluate 39s, cic/train 1m 00s, cic/evaluate 1m 30s, publish 10s",
        "1 of 5 steps reused",
        "cost 0.61 of 5 USD",
        "",
        "published: /work/published/model  (ffffffffffff)",
        "load it:",
        "    from transformers import AutoModelForCausalLM",
        '    model = AutoModelForCausalLM.from_pretrained("/work/published/model")',
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
