"""Reports: throttled, never in the way, and the last one delivered or said to be lost."""

from __future__ import annotations

import io
import json
import logging
from typing import Any

import pytest
from kubernetes import client, config

from latticeforge_trainer import progress as module
from latticeforge_trainer.contract import (
    ExitCode,
    MergeResult,
    ModelFacts,
    Progress,
    StepKind,
    StepState,
    TrainMeters,
)
from latticeforge_trainer.errors import NetworkError
from latticeforge_trainer.progress import (
    ConfigMapSink,
    LogSink,
    Reporter,
    log_line,
    sink_from_environment,
)

BASE = ModelFacts(
    path="models/base",
    revision="c0ffee",
    architecture="Qwen2ForCausalLM",
    parameters=1000,
    hidden_size=8,
    layers=2,
    vocabulary=256,
    config={"model_type": "qwen2"},
)
RESULT = MergeResult(bytes=3, max_logit_difference=0.1, top1_agreement=1)


class Sink:
    """Keeps reports, and fails as often as it is told."""

    def __init__(self, failures: int = 0) -> None:
        self.sent: list[Progress] = []
        self.failures = failures

    def send(self, progress: Progress) -> None:
        if self.failures:
            self.failures -= 1
            raise NetworkError("no route")
        self.sent.append(progress)


class Clock:
    """Seconds that pass when told to."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()

    def sleep(seconds: float) -> None:
        clock.now += seconds

    monkeypatch.setattr("tenacity.nap.time.sleep", sleep)
    monkeypatch.setattr("tenacity.time.monotonic", clock)
    return clock


def reporter(sink: Sink, clock: Clock) -> Reporter:
    return Reporter(StepKind.TRAIN, "d" * 64, sink, interval=10, clock=clock)


def test_reports_are_throttled_and_only_sent_when_something_moved(clock: Clock) -> None:
    sink = Sink()
    report = reporter(sink, clock)
    report.update("step 1", 0.1)
    report.update("step 2", 0.2)
    clock.now += 10
    report.update("step 1", 0.1)
    report.update("step 3", 0.3, eta_seconds=5, train=TrainMeters(step=3, total_steps=9))
    clock.now += 10
    report.update("step 3", 0.3, eta_seconds=4, train=TrainMeters(step=3, total_steps=9))
    assert [p.message for p in sink.sent] == ["step 1", "step 3"]
    assert sink.sent[1].eta_seconds == 5
    assert {(p.step, p.digest, p.state) for p in sink.sent} == {
        (StepKind.TRAIN, "d" * 64, StepState.RUNNING)
    }


def test_what_the_base_is_is_told_at_once_and_from_then_on(clock: Clock) -> None:
    sink = Sink()
    report = reporter(sink, clock)
    report.update("checked", 0.1)
    report.learned(BASE, "checked", 0.1)
    report.update("too soon", 0.2)
    clock.now += 10
    report.update("downloading", 0.3)
    assert [(p.message, p.base) for p in sink.sent] == [
        ("checked", None),
        ("checked", BASE),
        ("downloading", BASE),
    ]


def test_a_lost_report_does_not_reach_the_work(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    reporter(Sink(failures=1), clock).update("step 1")
    assert "progress not reported, training goes on: no route" in caplog.text


def test_the_result_is_delivered_at_once_and_tried_again(clock: Clock) -> None:
    sink = Sink(failures=3)
    report = reporter(sink, clock)
    report.done("train is done", RESULT, reused=True)
    (final,) = sink.sent
    assert (final.state, final.result, final.reused) == (StepState.DONE, RESULT, True)
    assert (final.fraction, final.exit_code) == (1.0, 0)


def test_a_result_that_cannot_be_delivered_is_an_error_after_a_minute(clock: Clock) -> None:
    start = clock.now
    with pytest.raises(NetworkError, match="no route"):
        reporter(Sink(failures=1000), clock).done("done", RESULT)
    assert 50 < clock.now - start < 80


def test_an_end_that_cannot_be_delivered_is_logged(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    sink = Sink()
    reporter(sink, clock).ended(StepState.INTERRUPTED, "asked to stop", ExitCode.INTERRUPTED)
    assert (sink.sent[0].state, sink.sent[0].exit_code) == (StepState.INTERRUPTED, 80)
    reporter(Sink(failures=1000), clock).ended(StepState.FAILED, "broken", 1)
    assert "the step's end was not reported: no route" in caplog.text


def test_without_a_cluster_reports_are_log_lines(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("LATTICEFORGE_PROGRESS", raising=False)
    monkeypatch.setenv("LATTICEFORGE_PROGRESS_INTERVAL", "0")
    caplog.set_level(logging.INFO)
    sink = sink_from_environment()
    assert isinstance(sink, LogSink)
    Reporter(StepKind.TRAIN, "d" * 64, sink).update("half way", 0.5)
    assert " 50 % half way" in caplog.text


def training(**gauges: Any) -> Progress:
    return Progress(
        step=StepKind.TRAIN,
        digest="d" * 64,
        state=StepState.RUNNING,
        message="training: step 20 of 400",
        updated_at="2026-01-01T00:00:00Z",
        train=TrainMeters(total_steps=400, **gauges),
    )


def test_training_is_a_line_of_gauges_in_columns() -> None:
    known = training(
        step=20,
        loss=0.5341,
        tokens_per_second=18_940.4,
        mfu=0.5912,
        peak_memory_allocated_bytes=83 * 2**30,
        peak_memory_reserved_bytes=842 * 2**30 // 10,
    )
    later = training(
        step=120, loss=11.2, tokens_per_second=950, mfu=0.07, peak_memory_reserved_bytes=2**37
    )
    assert [log_line(known), log_line(later)] == [
        "step  20/400  loss  0.534     18,940 tokens/s  MFU 59.1 %   84.2 GiB",
        "step 120/400  loss 11.200        950 tokens/s  MFU  7.0 %  128.0 GiB",
    ]
    assert log_line(training(step=1)) == "step   1/400"


@pytest.fixture
def patched(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The ConfigMap patches that a pod in a cluster makes; none of them leaves the process."""
    calls: list[dict[str, Any]] = []

    class Api:
        def patch_namespaced_config_map(
            self, name: str, namespace: str, body: dict[str, Any], **options: Any
        ) -> None:
            calls.append({"name": name, "namespace": namespace, "body": body, **options})
            if len(calls) == 2:
                raise client.ApiException(status=409, reason="Conflict")
            if len(calls) == 3:
                raise ConnectionResetError

    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setenv("LATTICEFORGE_PROGRESS", "lab/elle-0a1b2c3d/math.train.progress.json")
    monkeypatch.setattr(config, "load_incluster_config", lambda: None)
    monkeypatch.setattr(client, "CoreV1Api", Api)
    return calls


def test_in_a_cluster_one_configmap_is_patched(
    patched: list[dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    sink = sink_from_environment()
    assert isinstance(sink, ConfigMapSink)
    sent = Progress(
        step=StepKind.TRAIN,
        digest="d" * 64,
        state=StepState.RUNNING,
        message="Δ",
        updated_at="2026-01-01T00:00:00Z",
    )
    sink.send(sent)
    assert "  0 % Δ" in caplog.text  # and the pod's own log says it too
    (call,) = patched
    assert (call["namespace"], call["name"]) == ("lab", "elle-0a1b2c3d")
    assert call["_request_timeout"] == 10
    assert Progress.model_validate_json(call["body"]["data"]["math.train.progress.json"]) == sent
    for _ in range(2):
        with pytest.raises(NetworkError, match="progress ConfigMap elle-0a1b2c3d"):
            sink.send(sent)


def test_a_report_is_one_json_line(patched: list[dict[str, Any]]) -> None:
    Reporter(StepKind.TRAIN, "d" * 64, sink_from_environment(), interval=0).update("half", 0.5)
    document = json.load(io.StringIO(patched[0]["body"]["data"]["math.train.progress.json"]))
    assert document["updatedAt"].endswith("Z")
    assert "result" not in document
    assert module.MINIMUM_INTERVAL == 10
