"""How sure the network's answers may be: the temperature at which the given labels are likeliest.

A network that is more sure than it is right makes others believe what it has wrong. The likelihood of a given label g
of an image with the answer p is the sum over k of p_k T[k, g], T[k, g] how often class k is given as g
(`confusions.py`). Its answer at a temperature, p^(1/t) normalised (Guo et al., "On Calibration of Modern Neural
Networks", arXiv 1706.04599), is fitted to the given labels of an epoch as T is: one parameter more of the same
expectation maximisation.

To images that are trained on a network answers what it was told, and is sure of it; who it is asked of may be others.
"""

from __future__ import annotations

import torch
from torch import Tensor

TEMPERATURES = (1.0, 1.1, 1.25, 1.4, 1.6, 2.0, 2.5, 3.3, 5.0, 10.0)
"""Those tried. Never below 1: answers to labels that are learned by heart look as if they could be surer."""

UNHEARD = 1000.0
"""At it an answer says next to nothing: before other images have judged any, and where they find them worth it."""

_TINY = 1e-30


class Temperature:
    """1 at first, or `UNHEARD`; estimated anew after each epoch from the answers that were counted.

    Args:
        device: where it lives.
        calibrated: whether it is counted on images that nothing trains on: until then answers are not heard, and they
            may be found to be worth nothing.
    """

    def __init__(self, device: torch.device, *, calibrated: bool = False) -> None:
        self.calibrated = calibrated
        self.value = torch.full((), UNHEARD if calibrated else 1.0, device=device)
        self._tried = torch.tensor((*TEMPERATURES, 30.0, UNHEARD) if calibrated else TEMPERATURES, device=device)
        self._fit = torch.zeros(len(self._tried), dtype=torch.float64, device=device)

    def __call__(self, answers: Tensor) -> Tensor:
        """p at the temperature: [B, C] -> [B, C]."""
        return torch.softmax(answers.clamp_min(_TINY).log() / self.value.to(answers.dtype), dim=-1)

    def count(self, answers: Tensor, likelihood: Tensor, counted: Tensor | None = None) -> None:
        """Adds a batch.

        Args:
            answers: p, [B, C].
            likelihood: of the given labels for each true class, [B, C].
            counted: images that count, bool [B]; None: all.
        """
        log_p = answers.clamp_min(_TINY).log()
        at_each = torch.log_softmax(log_p / self._tried.to(log_p.dtype)[:, None, None], dim=-1)
        fit = torch.logsumexp(at_each + likelihood.clamp_min(_TINY).log(), dim=-1)
        if counted is not None:
            fit = fit * counted
        self._fit += fit.sum(-1, dtype=torch.float64)

    def end_epoch(self) -> None:
        """The likeliest from what was counted, which is then forgotten; the lower one where two are as likely."""
        likeliest = self._tried.take(self._fit.argmax())  # an index would wait for the device
        self.value.copy_(torch.where((self._fit != 0).any(), likeliest, self.value))
        self._fit.zero_()

    def tensors(self) -> dict[str, Tensor]:
        """What a resumed run needs, to be written into."""
        return {"temperature": self.value, "temperature_fit": self._fit}
