"""Every loss on logits with its oracle and what is true of it. `test_catalogue.py` fails for one that is not here.

A case takes student logits [B, C], teacher logits [B, C] and targets [B], whether or not its loss wants all three.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from distill.kernels.reference import wide
from distill.losses import decoupled, logit, relational, soft, transformed
from tests.losses import oracles


@dataclass(frozen=True)
class Case:
    """A loss with its settings."""

    covers: str  # module.name of what is judged
    loss: Callable[[Tensor, Tensor, Tensor], Tensor]
    oracle: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
    factor: float = 1.0  # T^2 and the like, which multiplies rounding errors of the logits
    company: str = ""  # why an image's value depends on the rest of its batch; empty: it does not
    agreed: str = ""  # why there is a gradient where student and teacher agree; empty: there is none


def _kd(function: Callable[..., Tensor], temperature: float) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    return lambda s, t, y: function(s, t, temperature)


def _learned(s: Tensor, t: Tensor, y: Tensor) -> Tensor:
    return logit.kd(s, t, torch.tensor(3.0, dtype=torch.float64))


def _lskd(s: Tensor, t: Tensor, y: Tensor) -> Tensor:
    return logit.kd(logit.standardised(s), logit.standardised(t), 2.0)


def _online(s: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """Labels that the teacher's answers to this very batch have made."""
    labels = soft.OnlineLabels(s.shape[1]).to(torch.promote_types(s.dtype, torch.float32))
    labels.labels.fill_(1 / s.shape[1])  # once more, in float64 where the logits are
    labels.loss(t, y)
    labels.end_epoch()
    return labels.eval().loss(s, y)


NO_TEACHER = "it has no teacher"
T_APART = "the student, at T = 1, is to match the teacher at another T"

CASES: dict[str, Case] = {
    "kd T 4": Case("logit.kd", _kd(logit.kd, 4.0), partial(oracles.kd, temperature=4.0), 16),
    "kd T 1": Case("logit.kd", _kd(logit.kd, 1.0), partial(oracles.kd, temperature=1.0)),
    "kd T .5": Case("logit.kd", _kd(logit.kd, 0.5), partial(oracles.kd, temperature=0.5)),
    "kd T 20": Case("logit.kd", _kd(logit.kd, 20.0), partial(oracles.kd, temperature=20.0), 400),
    "kd T learned": Case("learned_temperature.LearnedTemperature", _learned, partial(oracles.kd, temperature=3.0), 9),
    "reverse kd T 4": Case(
        "logit.reverse_kd", _kd(logit.reverse_kd, 4.0), partial(oracles.reverse_kd, temperature=4.0), 16
    ),
    "reverse kd T 1": Case(
        "logit.reverse_kd", _kd(logit.reverse_kd, 1.0), partial(oracles.reverse_kd, temperature=1.0)
    ),
    "jsd T 4": Case("logit.jsd", _kd(logit.jsd, 4.0), partial(oracles.jsd, temperature=4.0), 16),
    "jsd T 1": Case("logit.jsd", _kd(logit.jsd, 1.0), partial(oracles.jsd, temperature=1.0)),
    "logit matching": Case(
        "logit.logit_matching", lambda s, t, y: logit.logit_matching(s, t), oracles.logit_matching, 9
    ),
    "lskd": Case("logit.standardised", _lskd, partial(oracles.lskd, temperature=2.0), 16),
    "dkd": Case("decoupled.dkd", decoupled.dkd, partial(oracles.dkd, temperature=4.0, alpha=1.0, beta=8.0), 144),
    "dkd T 1": Case(
        "decoupled.dkd",
        partial(decoupled.dkd, temperature=1.0, alpha=0.5, beta=2.0),
        partial(oracles.dkd, temperature=1.0, alpha=0.5, beta=2.0),
        3,
    ),
    "nkd": Case(
        "decoupled.nkd",
        decoupled.nkd,
        partial(oracles.nkd, temperature=1.0, gamma=1.5),
        3,
        agreed="its target term is t_y times the hard cross-entropy",
    ),
    "nkd T 2": Case(
        "decoupled.nkd",
        partial(decoupled.nkd, temperature=2.0, gamma=1.0),
        partial(oracles.nkd, temperature=2.0, gamma=1.0),
        4,
        agreed="its target term is t_y times the hard cross-entropy",
    ),
    "dist": Case(
        "relational.dist",
        lambda s, t, y: relational.dist(s, t),
        partial(oracles.dist, temperature=4.0, inter=1.0, intra=1.0),
        256,
        company="columns run over the batch",
    ),
    "dist T 1": Case(
        "relational.dist",
        lambda s, t, y: relational.dist(s, t, temperature=1.0, inter=2.0, intra=0.5),
        partial(oracles.dist, temperature=1.0, inter=2.0, intra=0.5),
        8,
        company="columns run over the batch",
    ),
    "dist rows": Case(
        "relational.dist",
        lambda s, t, y: relational.dist(s, t, intra=0.0),
        partial(oracles.dist, temperature=4.0, inter=1.0, intra=0.0),
        256,
    ),
    "mlkd": Case(
        "relational.mlkd",
        lambda s, t, y: relational.mlkd(s, t),
        partial(oracles.mlkd, temperatures=(2.0, 3.0, 4.0, 5.0, 6.0)),
        90,
        company="Gram matrices run over the batch",
    ),
    "ttm": Case(
        "transformed.ttm", lambda s, t, y: transformed.ttm(s, t), partial(oracles.ttm, temperature=4.0), agreed=T_APART
    ),
    "ttm T 1": Case(
        "transformed.ttm", lambda s, t, y: transformed.ttm(s, t, temperature=1.0), partial(oracles.ttm, temperature=1.0)
    ),
    "wttm": Case(
        "transformed.wttm",
        lambda s, t, y: transformed.wttm(s, t),
        partial(oracles.wttm, temperature=4.0),
        32,
        agreed=T_APART,
    ),
    "wttm T .5": Case(
        "transformed.wttm",
        lambda s, t, y: transformed.wttm(s, t, temperature=0.5),
        partial(oracles.wttm, temperature=0.5),
        agreed=T_APART,
    ),
    "cross-entropy": Case(
        "soft.cross_entropy", lambda s, t, y: soft.cross_entropy(s, y), oracles.cross_entropy, agreed=NO_TEACHER
    ),
    "soft cross-entropy": Case(
        "soft.soft_cross_entropy",
        lambda s, t, y: soft.soft_cross_entropy(s, torch.softmax(wide(t.detach()), -1)),
        oracles.soft_cross_entropy,
    ),
    "label smoothing": Case(
        "soft.smoothed_cross_entropy",
        lambda s, t, y: soft.smoothed_cross_entropy(s, y, 0.1),
        partial(oracles.smoothed_cross_entropy, smoothing=0.1),
        agreed=NO_TEACHER,
    ),
    "tf-kd": Case(
        "soft.tf_kd",
        lambda s, t, y: soft.tf_kd(s, y),
        partial(oracles.tf_kd, temperature=20.0, mass=0.99),
        400,
        agreed=NO_TEACHER,
    ),
    "tf-kd T 1": Case(
        "soft.tf_kd",
        lambda s, t, y: soft.tf_kd(s, y, temperature=1.0, mass=0.9),
        partial(oracles.tf_kd, temperature=1.0, mass=0.9),
        agreed=NO_TEACHER,
    ),
    "online labels": Case(
        "soft.OnlineLabels",
        _online,
        oracles.online_labels,
        company="the labels of this case were made of the batch itself",
        agreed=NO_TEACHER,
    ),
}

# Public names of the modules that are no losses, and where they are tested.
OTHERS = {
    "logit.standardised": "in lskd; test_laws.py",
    "logit.log_probabilities": "in every loss",
    "logit.divergence": "in every loss",
    "learned_temperature.reversal_strength": "test_learned_temperature.py",
    "soft.mixed": "test_laws.py",
}
# Modules whose losses are judged elsewhere.
ELSEWHERE = ("feature", "criterion", "lesson", "terms")


def example(batch: int = 7, classes: int = 5, seed: int = 0, spread: float = 3.0) -> tuple[Tensor, Tensor, Tensor]:
    """Student logits, teacher logits (normal, times `spread`; exact in float32 too) and targets, in float64."""
    source = np.random.default_rng([seed, batch, classes])
    student, teacher = (source.normal(size=(batch, classes)) * spread for _ in range(2))
    targets = torch.from_numpy(source.integers(0, classes, batch))
    # A teacher that is right now and then, or online labels would learn nothing here.
    teacher[np.arange(0, batch, 2), targets[::2]] += 3 * spread
    return *(torch.from_numpy(z.astype(np.float32)).double() for z in (student, teacher)), targets
