"""Learned labels: parameters that the bilevel step moves. Vyas, Saxena, Voice, arXiv 2009.09496."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from distill.errors import DataError
from distill.kernels import dispatch, reference
from distill.labels.confusions import Confusions
from distill.labels.history import History
from distill.labels.optim import OptimizerName, RowOptimizer, row_optimizer
from distill.labels.proximal import MOST, proximal_labels
from distill.labels.pulls import TINY, Pulls, posterior
from distill.labels.rules import check_logits, entropy
from distill.labels.streaks import Streaks
from distill.labels.tables import LabelTable, initial_labels, initial_logits, restore, rows_exist
from distill.labels.temperature import Temperature
from distill.store.labels import LearnedLabels

_AT_ONCE = 4096  # images that are tried at each temperature


class Learned:
    """Labels that are parameters. Vyas, Saxena, Voice, "Learning Soft Labels via Meta Learning", arXiv 2009.09496.

    Args:
        table: the rows.
        step: label step, on the derivative freed of the batch size and of the network's step.
        optimizer: of the label step.
        momentum: of the label step, for "sgd".
        prior_step: label step of the table's class prior, where it has one.
        pulls: what else draws the labels; None: nothing.
        confusions: the given labels' likelihoods in the posterior, learned as the labels are; None: y_0.
        temperature: of the answers in the posterior, learned as the labels are; None: 1.
        divergence: the network is trained by KL(y || p), as in the paper: "forward"; or by KL(p || y), as in PENCIL (Yi
            and Wu, arXiv 1903.07788): "reverse".
        answer_entropy: weight of H(p) in its loss, which is brought down; PENCIL's beta.
        backend: which code works on the rows; settled here, as `self.backend`, for the table's device.
        average_epochs: `averaged` is the mean of the labels at the ends of so many last epochs.
        snapshot_epochs: epochs (counted from 1) after which the labels are kept, to see how they moved.

    Raises:
        BilevelError: the backend cannot work on the table, or the optimiser has no momentum.
        DataError: pulls on labels that are parameters themselves, where KL has no bound; proximal ones on rows that
            are no logits, or whose step is not plain SGD's; repeats of pulls that are not proximal.
    """

    def __init__(
        self,
        table: LabelTable,
        *,
        step: float,
        optimizer: OptimizerName = "sgd",
        momentum: float = 0.0,
        prior_step: float = 0.0,
        pulls: Pulls | None = None,
        confusions: Confusions | None = None,
        temperature: Temperature | None = None,
        divergence: Literal["forward", "reverse"] = "forward",
        answer_entropy: float = 0.0,
        backend: dispatch.Backend = "auto",
        average_epochs: int = 1,
        snapshot_epochs: tuple[int, ...] = (),
    ) -> None:
        if pulls is not None and table.parametrisation == "projected":
            raise DataError(
                'learned labels: pulls on "projected" labels, whose KL has no bound',
                cure='leave them out, or set parametrisation = "softmax".',
            )
        known_step = table.parametrisation == "softmax" and optimizer == "sgd" and momentum == 0
        if pulls is not None and pulls.proximal and not (known_step and pulls.entropy == 0):
            raise DataError(
                "learned labels: proximal pulls, expected rows that are logits, plain SGD and no pull towards softness",
                cure="leave proximal out.",
            )
        if pulls is not None and pulls.repeats > 1 and not pulls.proximal:
            raise DataError("learned labels: repeats, expected proximal pulls", cure="leave repeats out.")
        self.table = table
        self.pulls = pulls
        self.confusions = confusions
        self.temperature = temperature
        grows = pulls is not None and pulls.repeats > 1 and table.kind == "instance"
        self.streaks = Streaks(table.phi.shape[0], table.phi.device) if grows else None
        self.divergence = divergence
        self.answer_entropy = answer_entropy
        self.backend = dispatch.choose(backend, table.phi)
        self.optimizer = row_optimizer(optimizer, table, step=step, momentum=momentum, backend=self.backend)
        self._steps = [(self.optimizer, step)]
        self.prior_optimizer = None
        if table.prior is not None:
            self.prior_optimizer = row_optimizer(
                optimizer, table.of_prior(), step=prior_step, momentum=momentum, backend=self.backend
            )
            self._steps.append((self.prior_optimizer, prior_step))
        self.history = History(table.phi, average_epochs=average_epochs, snapshot_epochs=snapshot_epochs)

    @property
    def reads_answers(self) -> bool:
        """Whether `learn` wants the network's answers."""
        return self.pulls is not None and self.pulls.read_answers

    def labels(self, indices: Tensor, given: Tensor) -> Tensor:
        """[B], [B] -> [B, C]."""
        with rows_exist():
            return self.table.labels(self.table.rows(indices, given))

    def loss(self, logits: Tensor, indices: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
        """See `LabelRule`. An image without a row is a DataError on the CPU; Triton makes its loss NaN."""
        check_logits(logits, given, self.table.classes)
        if not self.table.plain or self.divergence == "reverse":
            labels = self.labels(indices, given)
            return self._loss(logits, labels), labels
        with rows_exist():
            loss, kept = dispatch.soft_cross_entropy_rows(
                logits, self.table.phi, self.table.rows(indices, given), keep_labels=True, backend=self.backend
            )
        assert kept is not None
        return self._surer(loss, logits), kept

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self.divergence == "forward":
            return self._surer(reference.soft_cross_entropy(logits, labels), logits)
        wide = labels.dtype if labels.dtype == torch.float64 else torch.float32
        log_p = torch.log_softmax(logits.to(wide), dim=-1)
        crossed = -(log_p.exp() * labels.to(wide).clamp_min(TINY).log()).sum(-1)
        return crossed + (self.answer_entropy - 1) * entropy(log_p)

    def _surer(self, loss: Tensor, logits: Tensor) -> Tensor:
        if not self.answer_entropy:
            return loss
        return loss + self.answer_entropy * entropy(torch.log_softmax(logits.to(loss.dtype), dim=-1))

    def through_loss(self, gradient: Tensor, labels: Tensor, log_probabilities: Tensor) -> Tensor:
        """dL_meta/dy for the loss that the network was trained by, of the one for the cross-entropy -sum y log p.

        KL(p || y) has -p / y where the cross-entropy has -log p: its derivative by theta is p / y times as large.
        """
        if self.divergence == "forward":
            return gradient
        return gradient * log_probabilities.exp().to(gradient.dtype) / labels.to(gradient.dtype).clamp_min(TINY)

    def set_factor(self, factor: float) -> None:
        """Makes the label steps this part of what they are in full, from now on."""
        for optimizer, step in self._steps:
            optimizer.step.fill_(step * factor)

    def learn(
        self,
        indices: Tensor,
        given: Tensor,
        labels: Tensor,
        gradient: Tensor,
        *,
        scale: Tensor | float,
        shares: Tensor | None = None,
        answers: Tensor | None = None,
    ) -> None:
        """Takes one label step.

        Args:
            indices: source indices, int64 [B].
            given: given labels, int64 [B].
            labels: the labels that the gradient was taken at, [B, C].
            gradient: dL_meta/dy, [B, C].
            scale: B over the network's step (`LookAhead.gain`: lr with SGD), which frees the gradient from batch size,
                schedule and optimiser: a number, or [] on the device.
            shares: of each label in the one that the gradient is for, [B], where images were mixed; None: 1.
            answers: the network's probabilities in the training forward, [B, C], for the pull towards them.
        """
        rows = self.table.rows(indices, given)
        gradient = self._phi_gradient(rows, labels, gradient, scale)
        if self.pulls is not None:
            gradient = gradient + self._pull(rows, labels, gradient, answers)
        if (still := self.table.still) is not None:
            gradient = gradient.masked_fill(still[rows].unsqueeze(1), 0.0)
        self._update(self.optimizer, self.table.kind == "class", rows, gradient, shares)
        if self.prior_optimizer is not None:
            if still is not None:  # no part of the prior's mean over the images either
                moves = (~still[rows]).to(gradient.dtype)
                shares = moves if shares is None else shares * moves
            self._update(self.prior_optimizer, True, self.table.given[rows], gradient, shares)
        self.table.project_(rows)

    def _pull(self, rows: Tensor, labels: Tensor, judged: Tensor, answers: Tensor | None) -> Tensor:
        """dL/dphi of the pulls, [B, C]; proximal ones start where the judge's step, along `judged` [B, C], ends.

        Where a row is moved by several images of a batch, each is taken as if it came alone. Step times weight counts
        up to `MOST` only.
        """
        assert self.pulls is not None
        start = initial_labels(self.table, rows).to(labels.dtype)
        q = None if answers is None else self._posterior(rows, start, answers)
        if not self.pulls.proximal:
            derivative = self.pulls.derivative(labels, start, answers, q)
            return self.table.gradient(labels, self.table.given[rows], derivative)
        times = None if q is None or self.streaks is None else self.streaks.count(rows, q)
        towards = self.pulls.towards(start, answers, q, times)
        weight = towards.sum(-1, keepdim=True)
        step = torch.stack([optimizer.step for optimizer, _ in self._steps]).sum()  # its prior moves a label too
        begin, target = self.table.logits(rows) - step * judged, towards / weight.clamp_min(TINY)
        taken = torch.minimum(weight, MOST / step)
        return taken * proximal_labels(begin, target, step * taken) - towards * (taken / weight.clamp_min(TINY))

    def _posterior(self, rows: Tensor, start: Tensor, answers: Tensor) -> Tensor:
        """q, [B, C], by what is known by now of the given labels' likelihoods and of how sure answers may be.

        Both are learned from it, too; the rows of images that are known to be right do not count.
        """
        given = self.table.given[rows]
        counted = None if self.table.still is None else ~self.table.still[rows]
        likelihood = start if self.confusions is None else self.confusions.likelihood(given).to(start.dtype)
        if self.temperature is not None:
            if not self.temperature.calibrated:
                self.temperature.count(answers, likelihood, counted)
            answers = self.temperature(answers)
        q = posterior(answers, likelihood)
        if self.confusions is not None:
            self.confusions.count(q, given, counted)
        return q

    def _phi_gradient(self, rows: Tensor, labels: Tensor, gradient: Tensor, scale: Tensor | float) -> Tensor:
        """scale * dL_meta/dphi, [B, C]."""
        if isinstance(scale, Tensor):
            scale = scale.to(gradient.dtype)
        else:  # filled on the device; copying it there would wait
            scale = torch.full((), scale, dtype=gradient.dtype, device=gradient.device)
        if self.table.parametrisation == "softmax":
            return dispatch.row_gradient(labels, gradient, scale, backend=self.backend)
        return self.table.gradient(labels, self.table.given[rows], gradient * scale)

    def _update(
        self, optimizer: RowOptimizer, by_class: bool, rows: Tensor, gradient: Tensor, shares: Tensor | None
    ) -> None:
        if shares is not None:
            shares = shares.to(gradient.dtype)
            weights = self._class_weights(rows, shares) if by_class else shares
            gradient = gradient * weights.unsqueeze(1)
        optimizer.update(rows, gradient)

    def _class_weights(self, rows: Tensor, shares: Tensor) -> Tensor:
        """What mixed labels' gradients weigh in a class row's mean over its images, [B]: a share of one is a part."""
        # The optimiser divides by the number of entries; here by their number and not by their shares is undone.
        entries, total = torch.zeros(2, self.table.classes, dtype=shares.dtype, device=shares.device)
        entries.index_add_(0, rows, torch.ones_like(shares))
        total.index_add_(0, rows, shares)
        # A row whose images all have a share of 0 gets no gradient; dividing by next to nothing would make it NaN.
        mean = torch.where(total > 0, entries / total, 0.0)
        return shares * mean[rows]

    def end_epoch(self, epoch: int, epochs: int) -> None:
        """See `LabelRule`."""
        self.history.end_epoch(epoch, epochs, self.table.all_labels())
        for known in (self.confusions, self.temperature):
            if known is not None:
                known.end_epoch()

    @property
    def calibrated(self) -> bool:
        """Whether answers are believed as `calibrate` finds them."""
        return self.temperature is not None and self.temperature.calibrated

    def calibrate(self, answers: Tensor, given: Tensor) -> None:
        """Finds how far the network's answers may be believed, from images that nothing trains on.

        Args:
            answers: probabilities, [V, C].
            given: labels, int64 [V].
        """
        assert self.temperature is not None
        for p, g in zip(torch.split(answers, _AT_ONCE), torch.split(given, _AT_ONCE), strict=True):
            if self.confusions is None:
                likelihood = torch.softmax(initial_logits(g, self.table.classes, self.table.mass), dim=-1)
            else:
                likelihood = self.confusions.likelihood(g)
            self.temperature.count(p, likelihood.to(p.dtype))
        self.temperature.end_epoch()

    def averaged(self) -> Tensor:
        """Mean of the labels over the last epochs, [R, C]; today's labels before the first of them ended."""
        return self.history.averaged(self.table.all_labels())

    def metrics(self) -> dict[str, float]:
        """What is known of the answers by now, for an epoch's line."""
        return {} if self.temperature is None else {"answers_temperature": float(self.temperature.value)}

    def kept(self) -> LearnedLabels:
        """See `LabelRule`."""
        return self.history.kept(self.table, self.table.all_labels(), self.optimizer.touched)

    def state_dict(self) -> dict[str, Any]:
        """See `LabelRule`."""
        optimizers = [optimizer.state_dict() for optimizer, _ in self._steps]
        return {**self._tensors(), "optimizers": optimizers, "history": self.history.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `LabelRule`."""
        self.history.load_state_dict(state["history"])
        restore(self._tensors(), {name: state.get(name) for name in self._tensors()})
        for (optimizer, _), saved in zip(self._steps, state.get("optimizers", []), strict=True):
            optimizer.load_state_dict(saved)

    def _tensors(self) -> dict[str, Tensor]:
        own = {"phi": self.table.phi} | ({} if self.table.prior is None else {"prior": self.table.prior})
        for known in (self.confusions, self.temperature, self.streaks):
            own |= {} if known is None else known.tensors()
        return own
