"""Each loss of the catalogue as one module: from a student's outputs and a lesson to one value per image.

The formulae are in `logit.py` and its neighbours; here they are told what the recipe says, and which part of the lesson
they are about. What learns beside the student (a projector, a temperature) or remembers (online labels) lives here as
the module's parameters and buffers, so that it is optimised, saved and resumed with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from distill.losses import decoupled, feature, logit, relational, soft, transformed
from distill.losses.learned_temperature import LearnedTemperature, reversal_strength
from distill.losses.lesson import Lesson, Outputs, same_class, taught
from distill.losses.logit import standardised
from distill.recipe.losses import LossName, TermRecipe

OnLogits = Callable[[Tensor, Tensor], Tensor]
OnTargets = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Sizes:
    """What the terms' own parameters depend on.

    Args:
        classes: C.
        student_features: width of the student's features; 0: not asked for.
        teacher_features: likewise.
        images: rows of the store, N.
    """

    classes: int
    student_features: int = 0
    teacher_features: int = 0
    images: int = 0


class Term(nn.Module):
    """One loss. `forward` is for subclasses."""

    def forward(self, student: Outputs, lesson: Lesson, epoch: int) -> Tensor:
        """The loss of each image, [B]. `epoch` counts from 0."""
        raise NotImplementedError

    def end_epoch(self) -> dict[str, float]:
        """Called after each epoch; what a log should hold."""
        return {}


class OfLogits(Term):
    """A loss of both networks' logits; standardised first where the recipe says so."""

    def __init__(self, loss: OnLogits, term: TermRecipe) -> None:
        super().__init__()
        self.loss, self.standardise = loss, bool(term.standardise)

    def forward(self, student: Outputs, lesson: Lesson, epoch: int) -> Tensor:
        """See `Term`."""
        return self.loss(*_pair(student, lesson, self.standardise))


class OfTargets(Term):
    """A loss of both networks' logits and the given class."""

    def __init__(self, loss: OnTargets, term: TermRecipe) -> None:
        super().__init__()
        self.loss, self.standardise = loss, bool(term.standardise)

    def forward(self, student: Outputs, lesson: Lesson, epoch: int) -> Tensor:
        """See `Term`."""
        own, teachers = _pair(student, lesson, self.standardise)
        return lesson.over_targets(lambda targets: self.loss(own, teachers, targets))


class Curriculum(Term):
    """kd at a temperature that is learned against the student (CTKD)."""

    def __init__(self, term: TermRecipe) -> None:
        super().__init__()
        self.standardise = bool(term.standardise)
        self.temperature = LearnedTemperature()

    def forward(self, student: Outputs, lesson: Lesson, epoch: int) -> Tensor:
        """See `Term`."""
        return logit.kd(*_pair(student, lesson, self.standardise), self.temperature(reversal_strength(epoch)))

    def end_epoch(self) -> dict[str, float]:
        """See `Term`."""
        return {"temperature": float(self.temperature(0.0).detach())}


class OfTeachersLabels(Term):
    """Soft cross-entropy on the labels that the teacher learned."""

    def forward(self, student: Outputs, lesson: Lesson, epoch: int) -> Tensor:
        """See `Term`."""
        return soft.soft_cross_entropy(student.logits, taught(lesson.labels, "learned labels"))


class WithoutTeacher(Term):
    """A loss of the student's logits and the given class alone."""

    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, student: Outputs, lesson: Lesson, epoch: int) -> Tensor:
        """See `Term`."""
        return lesson.over_targets(partial(self.loss, student.logits))


class Online(Term):
    """Labels made of the student's own right answers in the epoch before (OLS)."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.online = soft.OnlineLabels(sizes.classes)

    def forward(self, student: Outputs, lesson: Lesson, epoch: int) -> Tensor:
        """See `Term`."""
        return self.online.loss(student.logits, lesson.given)

    def end_epoch(self) -> dict[str, float]:
        """See `Term`."""
        self.online.end_epoch()
        return {}


class Hints(Term):
    """Squared differences of features, through a projector (FitNet)."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.projector = feature.FitNet(sizes.student_features, sizes.teacher_features)

    def forward(self, student: Outputs, lesson: Lesson, epoch: int) -> Tensor:
        """See `Term`."""
        loss: Tensor = self.projector(*_features(student, lesson))
        return loss


class OfFeatures(Term):
    """A loss of both networks' features, of whatever widths (RKD)."""

    def __init__(self, loss: OnLogits) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, student: Outputs, lesson: Lesson, epoch: int) -> Tensor:
        """See `Term`."""
        return self.loss(*_features(student, lesson))


class Contrastive(Term):
    """Features held against those of other stored images (CRD)."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.heads = feature.CRD(sizes.student_features, sizes.teacher_features, sizes.images)

    def forward(self, student: Outputs, lesson: Lesson, epoch: int) -> Tensor:
        """See `Term`."""
        others = lesson.contrast
        assert others is not None, "the lesson holds nothing to contrast with"
        same = same_class(lesson.given, others.given)
        if lesson.partner is not None:
            same |= same_class(lesson.partner, others.given)
        loss: Tensor = self.heads(*_features(student, lesson), others.features, same)
        return loss


class Attention(Term):
    """Squared differences of attention maps."""

    def forward(self, student: Outputs, lesson: Lesson, epoch: int) -> Tensor:
        """See `Term`."""
        assert student.maps is not None, "the student gave no maps"
        assert lesson.teacher is not None, "the lesson holds no teacher"
        assert lesson.teacher.maps is not None, "the lesson holds no maps"
        return feature.attention_transfer(student.maps, lesson.teacher.maps)


def build_term(name: LossName, term: TermRecipe, sizes: Sizes) -> Term:
    """The module of a loss other than "ce", with settled settings."""
    return _BUILD[name](term, sizes)


def _pair(student: Outputs, lesson: Lesson, standardise: bool) -> tuple[Tensor, Tensor]:
    assert lesson.teacher is not None, "the lesson holds no teacher"
    own, teachers = student.logits, lesson.teacher.logits
    return (standardised(own), standardised(teachers)) if standardise else (own, teachers)


def _features(student: Outputs, lesson: Lesson) -> tuple[Tensor, Tensor]:
    assert lesson.teacher is not None, "the lesson holds no teacher"
    return taught(student.features, "features of the student"), taught(lesson.teacher.features, "features")


def _on_logits(loss: Callable[..., Tensor], *settings: str) -> Callable[[TermRecipe, Sizes], Term]:
    """`loss(student, teacher, temperature=..., ...)`, with these settings of the recipe."""
    return lambda term, sizes: OfLogits(partial(loss, **_read(term, settings)), term)


def _on_targets(loss: Callable[..., Tensor], *settings: str) -> Callable[[TermRecipe, Sizes], Term]:
    return lambda term, sizes: OfTargets(partial(loss, **_read(term, settings)), term)


def _read(term: TermRecipe, settings: tuple[str, ...]) -> dict[str, Any]:
    return {name: getattr(term, name) for name in settings}


def _dist(student: Tensor, teacher: Tensor, *, temperature: float, beta: float, gamma: float) -> Tensor:
    """DIST by the names that its paper has for its weights."""
    return relational.dist(student, teacher, temperature=temperature, inter=beta, intra=gamma)


_BUILD: Mapping[str, Callable[[TermRecipe, Sizes], Term]] = {
    "kd": _on_logits(logit.kd, "temperature"),
    "reverse-kd": _on_logits(logit.reverse_kd, "temperature"),
    "jsd": _on_logits(logit.jsd, "temperature"),
    "logits": _on_logits(logit.logit_matching),
    "dkd": _on_targets(decoupled.dkd, "temperature", "alpha", "beta"),
    "dist": _on_logits(_dist, "temperature", "beta", "gamma"),
    "nkd": _on_targets(decoupled.nkd, "temperature", "gamma"),
    "ttm": _on_logits(transformed.ttm, "temperature"),
    "wttm": _on_logits(transformed.wttm, "temperature"),
    "mlkd": _on_logits(relational.mlkd, "temperatures"),
    "ctkd": lambda term, sizes: Curriculum(term),
    "labels": lambda term, sizes: OfTeachersLabels(),
    "fitnet": lambda term, sizes: Hints(sizes),
    "rkd": lambda term, sizes: OfFeatures(partial(feature.rkd, **_read(term, ("distance", "angle")))),
    "crd": lambda term, sizes: Contrastive(sizes),
    "attention": lambda term, sizes: Attention(),
    "smoothing": lambda term, sizes: WithoutTeacher(
        partial(soft.smoothed_cross_entropy, **_read(term, ("smoothing",)))
    ),
    "ols": lambda term, sizes: Online(sizes),
    "tf-kd": lambda term, sizes: WithoutTeacher(partial(soft.tf_kd, **_read(term, ("temperature", "mass")))),
}
