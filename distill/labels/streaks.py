"""Consistent evidence: how many times in a row each image has been believed to be of the same class.

What a network takes for another class in its first epochs it often takes for a third one in the next. Labels that go
there at once keep what it confused then, as the network learns from them; labels that go slowly everywhere come too
late where it is right early and learns wrong ones by heart. So a label's pull grows while its image's answers agree.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Streaks:
    """Counts for each row, which is looked at once an epoch.

    Args:
        rows: R.
        device: where they live.
    """

    def __init__(self, rows: int, device: torch.device) -> None:
        self._class = torch.full((rows,), -1, dtype=torch.int32, device=device)
        self._times = torch.zeros(rows, dtype=torch.int32, device=device)

    def count(self, rows: Tensor, belief: Tensor) -> Tensor:
        """Adds a look, without waiting for the device.

        Args:
            rows: int64 [B], none of them twice.
            belief: probabilities of each class, [B, C].

        Returns:
            How many times in a row its likeliest class has been that of this one, which counts, int32 [B].
        """
        likeliest = belief.argmax(-1).to(self._class.dtype)
        times = torch.where(likeliest == self._class[rows], self._times[rows] + 1, 1)
        self._class[rows], self._times[rows] = likeliest, times
        return times

    def tensors(self) -> dict[str, Tensor]:
        """What a resumed run needs, to be written into."""
        return {"streak_class": self._class, "streak_times": self._times}
