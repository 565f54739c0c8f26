"""Under ZeRO 1 to 3 every process goes on from its own share, as if nothing had happened."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors import safe_open
from tests.fixtures.sharded_training import SAVED, Case, train_and_resume

pytestmark = pytest.mark.slow

CASES = [
    *(Case(stage, precision) for stage in (1, 2, 3) for precision in ("bf16", "fp32")),
    Case(2, "bf16", offload=True),
    Case(3, "bf16", offload=True),
]


def test_what_was_saved_goes_on_exactly(tmp_path: Path) -> None:
    answers = train_and_resume(CASES, tmp_path, processes=2)

    for answer in answers:
        for case, found in zip(CASES, answer, strict=True):
            assert found.step == SAVED, case
            assert found.resumed == found.undisturbed, case
            assert found.same_state, case
    for number in range(len(CASES)):
        (step,) = (tmp_path / f"case-{number}").iterdir()
        shares = [sorted(p.name for p in share.iterdir()) for share in sorted(step.glob("share-*"))]
        assert shares == 2 * [["training-state-00001.safetensors"]]
        kinds = set()
        with safe_open(step / "share-00001" / shares[1][0], "pt") as file:
            kinds = {key.partition("/")[0] for key in file.keys()}  # noqa: SIM118  (not a dictionary)
        assert kinds == {"master", "exp_avg", "exp_avg_sq"}
