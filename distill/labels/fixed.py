"""Rules that keep nothing: the label follows from the given one, and for `bootstrap` from the answer of the moment."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from distill.kernels import reference
from distill.labels.phases import Phases
from distill.labels.rules import check_logits, entropy, onehot
from distill.losses.logit import log_probabilities
from distill.losses.soft import cross_entropy, tf_kd
from distill.store.labels import LearnedLabels


class Fixed:
    """What all of them share: nothing to keep."""

    def __init__(self, classes: int) -> None:
        self.classes = classes

    def end_epoch(self, epoch: int, epochs: int) -> None:
        """See `LabelRule`."""

    def kept(self) -> LearnedLabels | None:
        """See `LabelRule`."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """See `LabelRule`."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `LabelRule`."""


class Smoothing(Fixed):
    """(1 - eps) * onehot + eps / C: the mass eps goes to *every* class, as in timm. eps = 0 is one-hot.

    Szegedy et al., "Rethinking the Inception Architecture", arXiv 1512.00567, section 7.
    """

    def __init__(self, classes: int, eps: float) -> None:
        super().__init__(classes)
        self.eps = eps

    def labels(self, given: Tensor) -> Tensor:
        """[B] -> [B, C]."""
        return onehot(given, self.classes) * (1.0 - self.eps) + self.eps / self.classes

    def loss(self, logits: Tensor, indices: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
        """See `LabelRule`."""
        check_logits(logits, given, self.classes)
        labels = self.labels(given)
        return reference.soft_cross_entropy(logits, labels), labels


class VirtualTeacher(Fixed):
    """(1 - weight) CE + weight T^2 KL(u^T || p^T), u a virtual teacher that is nearly sure of the given class.

    Yuan et al., "Revisiting Knowledge Distillation via Label Smoothing Regularization", arXiv 1909.11723, section 4;
    the factor T^2, and how the published code differs, are told in `losses.soft.tf_kd`. The labels are what the network
    is told of an image, (1 - weight) onehot + weight u; at T != 1 the loss is no soft cross-entropy with them.

    Args:
        classes: C, at least 2.
        mass: of u on the given class; the rest is spread evenly.
        temperature: T.
        weight: of the virtual teacher, the paper's alpha.
    """

    def __init__(self, classes: int, *, mass: float, temperature: float, weight: float) -> None:
        super().__init__(classes)
        self.mass = mass
        self.temperature = temperature
        self.weight = weight

    def labels(self, given: Tensor) -> Tensor:
        """[B] -> [B, C]."""
        hard, rest = onehot(given, self.classes), (1.0 - self.mass) / (self.classes - 1)
        virtual = hard * (self.mass - rest) + rest
        return hard * (1.0 - self.weight) + virtual * self.weight

    def loss(self, logits: Tensor, indices: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
        """See `LabelRule`."""
        check_logits(logits, given, self.classes)
        virtual = tf_kd(logits, given, temperature=self.temperature, mass=self.mass)
        return (1.0 - self.weight) * cross_entropy(logits, given) + self.weight * virtual, self.labels(given)


Target = Literal["hard", "soft"]
PAPER_SHARES: dict[Target, float] = {"hard": 0.8, "soft": 0.95}  # beta, the given label's


class Bootstrap(Fixed):
    """The given label mixed with what the network answers, p: beta onehot + (1 - beta) q.

        hard    CE with q = onehot(argmax p)
        soft    CE with q = p: beta CE(given) + (1 - beta) H(p)

    The gradient of soft goes through the p in the label too, which makes it the paper's minimum entropy; were p
    detached, H would have no gradient. Reed et al., "Training Deep Neural Networks on Noisy Labels with Bootstrapping",
    arXiv 1412.6596, section 3. In the first epochs, which are ours,
    plain cross-entropy with the given label: an answer of untrained weights says nothing.

    Args:
        classes: C.
        phases: of the training; only its warm-up counts.
        target: which q.
        given: share of the given label, beta; None: the paper's.
    """

    def __init__(self, classes: int, phases: Phases, *, target: Target, given: float | None = None) -> None:
        super().__init__(classes)
        self.phases = phases
        self.target = target
        self.given = PAPER_SHARES[target] if given is None else given

    def loss(self, logits: Tensor, indices: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
        """See `LabelRule`."""
        check_logits(logits, given, self.classes)
        hard = onehot(given, self.classes)
        if self.phases.warming:
            return cross_entropy(logits, given), hard
        log_p = log_probabilities(logits, 1.0)
        if self.target == "soft":
            own, answers = entropy(log_p), log_p.detach().exp()
        else:
            likeliest = log_p.argmax(-1)
            own, answers = cross_entropy(logits, likeliest), onehot(likeliest, self.classes)
        loss = self.given * cross_entropy(logits, given) + (1.0 - self.given) * own
        return loss, hard * self.given + answers * (1.0 - self.given)

    def end_epoch(self, epoch: int, epochs: int) -> None:
        """See `LabelRule`."""
        self.phases.end_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """See `LabelRule`."""
        return {"phases": self.phases.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `LabelRule`."""
        self.phases.load_state_dict(state.get("phases"))
