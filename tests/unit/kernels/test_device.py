"""The Triton kernels, run by Triton's interpreter on the CPU; `tests/gpu` runs them compiled."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.skipif(
    find_spec("triton") is None, reason="no Triton: install it to interpret the kernels"
)
def test_every_kernel_computes_what_the_plain_path_does() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.fixtures.interpreted_kernels"],
        cwd=ROOT,
        env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": f"{ROOT / 'trainer'}:{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    results: dict[str, str | None] = json.loads(done.stdout)
    assert len(results) > 20
    wrong = [f"{name}: {error}" for name, error in results.items() if error is not None]
    assert not wrong, "\n".join(wrong)
