"""Labels of single images that follow the network's own answers: what learned labels are compared with.

An answer p is the softmax of the training forward, detached. y is an image's label; its row is in a table [N, C].
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from distill.kernels import dispatch
from distill.kernels.reference import combine_repeats
from distill.labels.answers import Answers
from distill.labels.history import History
from distill.labels.optim import RowSGD
from distill.labels.phases import Phases
from distill.labels.rules import check_logits, entropy, onehot
from distill.labels.tables import LabelTable, restore, rows_exist
from distill.losses.logit import divergence, log_probabilities
from distill.losses.soft import cross_entropy
from distill.store.labels import LearnedLabels

SMALLEST_LEFT = 1e-4  # of 1 - <p, t> in `Elr`


class Predicted:
    """What they share: rows, a count of epochs, memory and state.

    Args:
        table: a row for each training image; what is in it is the rule's business.
        phases: of the training.
        history: of the labels [N, C].

    Attributes:
        touched: whether an image's row was ever moved, bool [N].
    """

    def __init__(self, table: LabelTable, phases: Phases, history: History) -> None:
        self.table = table
        self.phases = phases
        self.history = history
        self.touched = torch.zeros(table.phi.shape[0], dtype=torch.bool, device=table.phi.device)

    def labels(self) -> Tensor:
        """As they stand, [N, C]."""
        return self.table.all_labels()

    def end_epoch(self, epoch: int, epochs: int) -> None:
        """See `LabelRule`."""
        self.phases.end_epoch(epoch)
        self.history.end_epoch(epoch, epochs, self.labels())

    def kept(self) -> LearnedLabels:
        """See `LabelRule`."""
        return self.history.kept(self.table, self.labels(), self.touched)

    def state_dict(self) -> dict[str, Any]:
        """See `LabelRule`."""
        return {**self._tensors(), "phases": self.phases.state_dict(), "history": self.history.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `LabelRule`."""
        self.history.load_state_dict(state.get("history", {}))
        self.phases.load_state_dict(state.get("phases"))
        restore(self._tensors(), {name: state.get(name) for name in self._tensors()})

    def _tensors(self) -> dict[str, Tensor]:
        return {"phi": self.table.phi, "touched": self.touched}


class Joint(Predicted):
    """KL(y || p) + balance KL(prior || mean p) + entropy H(p), y the mean of p over some epochs.

    Tanaka et al., "Joint Optimization Framework for Learning with Noisy Labels", arXiv 1803.11364, section 3;
    balance and entropy are its alpha and beta, y its soft labels. mean p is the batch's, and its term is added to every
    image's loss. The prior is ours: the given labels' frequencies over the training images; the paper takes those of
    the true ones, which nobody knows.

    y is the given label, as one-hot, until the warm-up is over; both regularisers are on already. After its last epoch
    and each later one, y <- mean of the network's answers over the last `window` epochs, warm-up included, fewer at
    first. An image that was not answered in them keeps what it had. In the last epochs, `phases.frozen`, labels stay
    and the loss is KL(y || p) alone: the paper's second stage, which trains on the labels that were found, but from
    fresh weights.

    Memory: y and its history's mean, and up to `window` tables of answers (see `Answers`), [N, C] each.

    Args:
        table: instance rows, "projected": a row is y. They are set to the given labels here.
        phases: of the training.
        history: of the labels.
        balance: weight of the batch's term.
        entropy: weight of the answers' entropy.
        window: epochs whose answers a label is the mean of.
    """

    def __init__(
        self, table: LabelTable, phases: Phases, history: History, *, balance: float, entropy: float, window: int
    ) -> None:
        super().__init__(table, phases, history)
        table.phi.copy_(onehot(table.given, table.classes))
        self.balance = balance
        self.entropy = entropy
        self.answers = Answers(table.phi, window=window, first=phases.warmup_epochs, last=phases.moving_until)
        self.prior = table.phi.mean(0)

    def loss(self, logits: Tensor, indices: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
        """See `LabelRule`. An image without a row is a DataError on the CPU."""
        check_logits(logits, given, self.table.classes)
        with rows_exist():
            rows = self.table.rows(indices, given)
            labels = self.table.labels(rows)
        log_p = log_probabilities(logits, 1.0)
        loss = _divergence(labels, log_p)
        if self.phases.frozen:
            return loss, labels
        self.answers.add(self.phases.ended + 1, rows, log_p.detach().exp())
        log_mean = torch.logsumexp(log_p - math.log(len(rows)), dim=0)  # a class may have no mass in a batch
        return loss + self.balance * _divergence(self.prior, log_mean) + self.entropy * entropy(log_p), labels

    def end_epoch(self, epoch: int, epochs: int) -> None:
        """See `LabelRule`."""
        if (moved := self.answers.end_epoch(epoch, self.table.phi)) is not None:
            labels, answered = moved
            self.table.phi.copy_(labels)
            self.touched |= answered
        super().end_epoch(epoch, epochs)

    def _tensors(self) -> dict[str, Tensor]:
        return {**super()._tensors(), "sums": self.answers.sums, "counts": self.answers.counts}


class Pencil(Predicted):
    """KL(p || y) + entropy H(p) for the network; phi <- phi - step ((y - p) + compatibility (y - onehot)) for labels.

    Yi and Wu, "Probabilistic End-to-end Noise Correction for Learning with Noisy Labels", arXiv 1903.07788, section 3.
    The paper's loss, a batch's mean, is (1/C) KL(p || y) + alpha L_o + (beta/C) H(p), L_o = -log y_given and
    y = softmax(phi). Times C it is this one for the network, with entropy = beta and 1/C of the paper's learning rate.
    Its derivative in phi is ((y - p) + alpha C (y - onehot)) / (B C): with the paper's lambda for the labels,
    step = lambda / (B C) and compatibility = alpha C.

    Labels rest where y = (p + compatibility onehot) / (1 + compatibility), so from compatibility 1 on none comes to
    prefer another class than the given one for good. The published code has a second softmax in L_o, of y, which
    halves its pull where the given class and another one are equally likely.

    In the warm-up the loss is the cross-entropy with the given label, and in the last epochs, `phases.frozen`, it is
    KL(p || y) alone; labels stay in both. A batch's labels are read before they move; repeats of an image add up.

    Args:
        table: instance rows of logits phi, which start with nearly all mass on the given class; those that are still
            stay there (ours: the paper knows of no label that it is right).
        phases: of the training.
        history: of the labels.
        step: label step.
        compatibility: pull towards the given label.
        entropy: weight of the answers' entropy.
        backend: which code moves the rows.
    """

    def __init__(
        self,
        table: LabelTable,
        phases: Phases,
        history: History,
        *,
        step: float,
        compatibility: float,
        entropy: float,
        backend: dispatch.Backend = "auto",
    ) -> None:
        super().__init__(table, phases, history)
        self.compatibility = compatibility
        self.entropy = entropy
        self.optimizer = RowSGD(table, step=step, backend=dispatch.choose(backend, table.phi))
        self.touched = self.optimizer.touched

    def loss(self, logits: Tensor, indices: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
        """See `LabelRule`. An image without a row is a DataError on the CPU."""
        check_logits(logits, given, self.table.classes)
        with rows_exist():
            rows = self.table.rows(indices, given)
            log_y = torch.log_softmax(self.table.phi[rows], dim=-1)
        hard = onehot(given, self.table.classes)
        if self.phases.warming:
            return cross_entropy(logits, given), hard
        log_p, labels = log_probabilities(logits, 1.0), log_y.exp()
        loss = divergence(log_p, log_y)
        if self.phases.frozen:
            return loss, labels
        gradient = (labels - log_p.detach().exp()) + self.compatibility * (labels - hard)
        if self.table.still is not None:
            gradient = gradient.masked_fill(self.table.still[rows].unsqueeze(1), 0.0)
        self.optimizer.update(rows, gradient)
        return loss + self.entropy * entropy(log_p), labels


class Elr(Predicted):
    """CE + weight log(1 - <p, t>), where t <- decay t + (1 - decay) p comes first, detached, from 0 on.

    Liu et al., "Early-Learning Regularization Prevents Memorization of Noisy Labels", arXiv 2007.00151, section 4;
    weight and decay are its lambda and beta. The labels are t, normalised to sum 1; where an image was never answered,
    the given one. They are what the loss draws to besides the given label, not what it is a cross-entropy with.
    Repeats of an image in a batch count as one answer, their mean.

    The formula has no lower bound: 1 - <p, t> goes to 0 as answers become sure and stay so, in float32 to 0 itself. It
    is therefore held at `SMALLEST_LEFT` or more, below which it has no gradient; everywhere else it is the paper's. The
    published code gets there by another change: it clamps p to [1e-4, 1 - 1e-4], and normalises that for t, which at
    many classes takes mass from every answer (9 % at 1,000).

    Args:
        table: instance rows, "projected": a row is t. They are set to 0 here.
        phases: of the training; not looked at.
        history: of the labels.
        weight: of the regulariser.
        decay: of the running mean t.
    """

    def __init__(self, table: LabelTable, phases: Phases, history: History, *, weight: float, decay: float) -> None:
        super().__init__(table, phases, history)
        table.phi.zero_()
        self.weight = weight
        self.decay = decay

    def labels(self) -> Tensor:
        """See `Predicted`."""
        t = self.table.phi
        never = onehot(self.table.given, self.table.classes).to(t.dtype)
        return torch.where(self.touched.unsqueeze(1), t / t.sum(-1, keepdim=True), never)

    def loss(self, logits: Tensor, indices: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
        """See `LabelRule`. An image without a row is a DataError on the CPU."""
        check_logits(logits, given, self.table.classes)
        with rows_exist():
            rows = self.table.rows(indices, given)
            before = self.table.phi[rows]
        p = log_probabilities(logits, 1.0).exp()
        answers = combine_repeats(rows, p.detach(), mean=True).to(before.dtype)
        t = self.decay * before + (1.0 - self.decay) * answers
        self.table.phi[rows] = t  # repeats write the same value
        self.touched.index_fill_(0, rows, True)
        left = (p * (1.0 - t)).sum(-1)  # 1 - <p, t> without its cancellation, since p sums to 1
        loss = cross_entropy(logits, given) + self.weight * left.clamp_min(SMALLEST_LEFT).log()
        return loss, t / t.sum(-1, keepdim=True)


def _divergence(labels: Tensor, log_p: Tensor) -> Tensor:
    """KL(y || p) of labels that may be 0: [..., C], finite [..., C] -> [...]."""
    negative: Tensor = torch.special.entr(labels) + labels * log_p
    return -negative.sum(-1)
