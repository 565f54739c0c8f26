"""Packed sequences as the training loop reads them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

VALIDATION = "validation"
"""The folder, in a `prepare` artifact, of packed data that is held out from training."""


EPOCH_ENDS, STEP_ENDS = "epoch_ends.npy", "step_ends.npy"
"""int64: sequences up to the end of each epoch, and of each step if steps are not of equal size."""


class PackedData:
    """The packed data of a `prepare` artifact, memory-mapped.

    The order is final, and steps are cut from it by number, so all that a resumed run needs to know
    is its step.

    Args:
        folder: The artifact's folder; see `data.packing` for its arrays.

    Attributes:
        sequence_length: Tokens of a sequence, with padding.
        lengths: Real tokens of each sequence, int32 [N].
        epoch_ends: Sequences up to the end of each epoch; of held-out data, none.
        step_ends: Sequences up to the end of each step; None: steps are of equal size.
    """

    def __init__(self, folder: Path) -> None:
        self._input_ids = np.load(folder / "input_ids.npy", mmap_mode="r")
        self._loss_mask = np.load(folder / "loss_mask.npy", mmap_mode="r")
        self._position_ids = np.load(folder / "position_ids.npy", mmap_mode="r")
        self.lengths = np.load(folder / "lengths.npy")
        self.sequence_length = int(self._input_ids.shape[1])
        self.epoch_ends = _ends(folder / EPOCH_ENDS) or []
        self.step_ends = _ends(folder / STEP_ENDS)

    def __len__(self) -> int:
        return int(self._input_ids.shape[0])

    def batch(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """Sequences by number.

        Args:
            indices: B numbers below `len(self)`.

        Returns:
            `input_ids` int64 [B, L], `loss_mask` bool [B, L] (whether the loss of predicting this
            very token counts; never the first of a sample) and `position_ids` int64 [B, L].
        """
        import torch  # noqa: PLC0415  (prepare writes packed data without it)

        rows = list(indices)
        return {
            "input_ids": torch.from_numpy(self._input_ids[rows].astype(np.int64)),
            "loss_mask": torch.from_numpy(self._loss_mask[rows].astype(np.bool_)),
            "position_ids": torch.from_numpy(self._position_ids[rows].astype(np.int64)),
        }


def _ends(path: Path) -> list[int] | None:
    return np.load(path).tolist() if path.exists() else None
