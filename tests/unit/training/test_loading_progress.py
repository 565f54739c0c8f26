"""Who waits for a large model sees how much of it is there."""

from __future__ import annotations

from latticeforge_trainer.contract import Progress, StepKind
from latticeforge_trainer.progress import Reporter
from latticeforge_trainer.training.attempt import loading_report


class Kept:
    def __init__(self) -> None:
        self.sent: list[Progress] = []

    def send(self, progress: Progress) -> None:
        self.sent.append(progress)


def test_loading_tells_its_bytes_and_claims_no_share_of_the_step() -> None:
    kept = Kept()
    report = loading_report(Reporter(StepKind.TRAIN, "0" * 64, kept, interval=0))

    report(13 * 2**30, 145 * 2**30 + 2**29)

    [progress] = kept.sent
    assert progress.message == "loading the model: 13.0 of 145.5 GiB"
    assert progress.fraction == 0
