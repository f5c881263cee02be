"""What a learned label is drawn to besides what the judges say: the start, the answers, their posterior, softness."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

TINY = 1e-30
"""Below any probability that matters, above 0."""


@dataclass(frozen=True)
class Pulls:
    """What a label is drawn to besides what the meta images say. Each is the weight of a loss of the label y itself.

    Args:
        start: of KL(y_0 || y), towards the label that it started from.
        answers: of KL(p || y), p the network's answer in the training forward: towards what the network believes.
            Without a meta gradient it would be how PENCIL learns its labels (Yi and Wu, arXiv 1903.07788).
        posterior: of KL(q || y), q = p l / sum of p l: towards what the network believes once the given label has had
            its say, l its likelihood: y_0, or learned `Confusions`. It is the E step of expectation maximisation for
            wrong labels (Bekker and Goldberger, ICASSP 2016).
        entropy: of -H(y), towards softness.
        proximal: their step is taken from where it ends (`proximal.py`), so that no label overshoots.
        repeats: how many times as strong the posterior's pull gets at most, by once for each time in a row that q has
            the same likeliest class (`streaks.py`); proximal ones of a row for each image only.
    """

    start: float = 0.0
    answers: float = 0.0
    posterior: float = 0.0
    entropy: float = 0.0
    proximal: bool = False
    repeats: float = 1.0

    @property
    def read_answers(self) -> bool:
        """Whether `derivative` wants the network's answers."""
        return self.answers > 0 or self.posterior > 0

    def towards(self, start: Tensor, answers: Tensor | None, q: Tensor | None, times: Tensor | None = None) -> Tensor:
        """The labels that they draw to, times their weights: y_0, p and q, [B, C] each -> [B, C].

        `times` [B]: in a row that q has had the same likeliest class; None: once.
        """
        total = self.start * start
        if answers is None or q is None:
            return total
        strength = 1.0 if times is None else times.clamp_max(self.repeats).unsqueeze(1).to(q.dtype)
        return total + self.answers * answers + self.posterior * strength * q

    def derivative(self, labels: Tensor, start: Tensor, answers: Tensor | None, q: Tensor | None) -> Tensor:
        """dL/dy of their sum: y, y_0, p and q, [B, C] each -> [B, C]. KL(q || y) has -q / y."""
        y = labels.clamp_min(TINY)
        total = self.entropy * (y.log() + 1) - self.start * start / y
        if answers is None or q is None:
            return total
        return total - (self.answers * answers + self.posterior * q) / y


def posterior(answers: Tensor, likelihood: Tensor) -> Tensor:
    """q = p l / sum of p l: [B, C], [B, C] -> [B, C]."""
    joint = answers * likelihood
    return joint / joint.sum(-1, keepdim=True).clamp_min(TINY)
