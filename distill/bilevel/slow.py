"""A running mean of the network's weights, asked what it believes of the images whose labels are learned.

The idea is that a temporal average is better than the network itself while the learning rate is high (Tarvainen and
Valpola, "Mean teachers", arXiv 1703.01780). In the one trial that was made, it made no difference (docs/log.md).
"""

from __future__ import annotations

from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from distill.bilevel.hygiene import AUTOCAST


class SlowNetwork:
    """The mean of a network's weights over the last steps, in eval mode.

    Args:
        model: the network, whose weights of today it starts from.
        decay: of the mean, a step; less in the first steps, of which there are few.
        precision: of its forward pass.
    """

    def __init__(self, model: nn.Module, decay: float, precision: str = "float32") -> None:
        self.ema = ModelEmaV3(model, decay=decay, use_warmup=True)
        self.precision = precision
        self.updates = 0

    def follow(self, model: nn.Module) -> None:
        """Takes in the weights of the network after one of its steps."""
        self.updates += 1
        self.ema.update(model, step=self.updates)

    @torch.no_grad()
    def answers(self, images: Tensor) -> Tensor:
        """Probabilities of images [B, ch, H, W]: [B, C]."""
        half = AUTOCAST.get(self.precision)
        with torch.autocast(images.device.type, dtype=half, enabled=half is not None, cache_enabled=False):
            logits: Tensor = self.ema.module(images)
        wide = logits if logits.dtype == torch.float64 else logits.float()
        return wide.softmax(-1)

    def state_dict(self) -> dict[str, Any]:
        """The mean, and how many steps it is of."""
        return {"weights": dict(self.ema.module.state_dict()), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.ema.module.load_state_dict(state["weights"])
        self.updates = int(state["updates"])
