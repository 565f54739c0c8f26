"""What a stage's model is refused for before anything is loaded."""

from __future__ import annotations

import pytest
import torch

from latticeforge_trainer.errors import UserError
from latticeforge_trainer.training.start import refuse_without_fp8

GPU = torch.device("cuda", 0)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    name, capability = request.param
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)


@pytest.mark.parametrize("card", [("NVIDIA A100-SXM4-80GB", (8, 0))], indirect=True)
def test_a_gpu_without_fp8_is_named(card: None) -> None:
    with pytest.raises(UserError, match="this is an NVIDIA A100-SXM4-80GB: use H100, H200 or L40S"):
        refuse_without_fp8(GPU)
    refuse_without_fp8(torch.device("cpu"))


@pytest.mark.parametrize(
    "card", [("NVIDIA L40S", (8, 9)), ("NVIDIA H200", (9, 0)), ("B200", (10, 0))], indirect=True
)
def test_gpus_with_fp8_train_with_it(card: None) -> None:
    refuse_without_fp8(GPU)
