"""A temperature that is learned against the student: curriculum temperature (CTKD).

Li et al., "Curriculum Temperature for Knowledge Distillation", arXiv 2211.16231. Used with `logit.kd`:

    temperature = learned(reversal_strength(epoch))
    loss = kd(student, teacher, temperature).mean()

The loss has one backward pass; the student goes down its gradient, and the temperature goes up.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class LearnedTemperature(nn.Module):
    """T = lowest + reach * sigmoid(raw), one for all images, whose gradient is reversed (the paper's Global-T).

    Its parameter belongs to the student's optimiser or to one of its own, without weight decay, which would pull T to
    the middle of its range. Section "Learnable Temperature Module"; defaults are those of the published code, where T
    starts at 15.6.

    Args:
        lowest: T is above it; at least 0.
        reach: T is below lowest + reach.
        raw: what the parameter starts at.
    """

    def __init__(self, *, lowest: float = 1.0, reach: float = 20.0, raw: float = 1.0) -> None:
        super().__init__()
        self.lowest, self.reach = lowest, reach
        self.raw = nn.Parameter(torch.tensor(raw))

    def forward(self, strength: float) -> Tensor:
        """T, [] in float32.

        Args:
            strength: lambda, at least 0: the parameter's gradient is multiplied by -lambda, the value is not changed.
        """
        temperature = self.lowest + self.reach * torch.sigmoid(self.raw)
        return temperature.detach() - strength * (temperature - temperature.detach())


def reversal_strength(epoch: float, *, epochs: float = 10.0, lowest: float = 0.0, highest: float = 1.0) -> float:
    """lambda of an epoch: a half cosine from `lowest` to `highest`, reached after `epochs` and kept.

        lambda_n = lowest + (highest - lowest) (1 + cos((1 + min(n, epochs) / epochs) pi)) / 2

    Li et al., arXiv 2211.16231, equation 11. Whether n starts at 0 or 1 is left open there; 0 is meant here, where the
    first epoch leaves the temperature alone.

    Args:
        epoch: n, the number of epochs that are done; fractions may be given.
        epochs: how many it takes, above 0.
        lowest: lambda at the start.
        highest: lambda at the end.
    """
    return lowest + (highest - lowest) * (1 + math.cos((1 + min(epoch, epochs) / epochs) * math.pi)) / 2
