"""What labels look like after an epoch, and whether they have collapsed. True labels report here, and never teach."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from distill.data.noise import Labels
from distill.labels.temperature import TEMPERATURES
from distill.recipe.labels import LEARNED_RULES, LabelsRecipe
from distill.store.labels import LearnedLabels

SATURATED = 0.999  # a label this sure hardly moves any more: its gradient is y (1 - y)
_MOST_SATURATED, _MOST_MOVED, _NEARLY_UNIFORM, _CROWDED, _LEAST_LEFT = 0.5, 0.5, 0.95, 2.0, 0.1
_COLLAPSES = {"moved", "uniform", "crowded", "left"}
ENOUGH = 10  # labels of a class that may be said to have been left, or crowded into: fewer can all be wrong, or right


def label_metrics(
    labels: Labels, train: Tensor, kept: LearnedLabels | None, *, truth_known: bool = True
) -> dict[str, float]:
    """Of the training images: shares of right, moved and saturated labels, entropy in nats, crowding, what is left.

    `labels_crowding` is how many times as many labels as given ones the class has that gained most, of those with ten
    labels or more by now, `labels_left` the one that lost most, of those that were given ten or more. Both are 1 where
    nothing moved, C and 0 where all of balanced classes' labels have become one class. Where given labels are wrong,
    `suspects_precision` is the share of moved labels that were, `suspects_recall` the share of wrong ones that moved.

    Args:
        labels: given and true ones, of all images of the source.
        train: source indices of the training images, int64 [N].
        kept: the labels that move; None: there are none.
        truth_known: False leaves out what compares with true labels.
    """
    given, true = labels.given[train], labels.true[train]
    against = {"given_right": float((given == true).double().mean())} if truth_known else {}
    if kept is None:
        return against
    rows = given if kept.kind == "class" else torch.searchsorted(kept.indices, train)
    likeliest = kept.argmax[rows]
    classes = kept.averaged.shape[1]
    counts, at_first = (torch.bincount(each, minlength=classes).double() for each in (likeliest, given))
    # Of the table's rows, not of the images', and never all of them in float64 at once.
    parts = [torch.special.entr(part.double()).sum(-1) for part in torch.split(kept.averaged, 2**14)]
    moved, wrong = likeliest != given, given != true
    if truth_known:
        found = float((moved & wrong).sum())
        against |= {
            f"suspects_{name}": found / int(of.sum())
            for name, of in (("precision", moved), ("recall", wrong))
            if wrong.any() and of.any()
        }
        against["labels_right"] = float((likeliest == true).double().mean())
    return against | {
        "labels_moved": float(moved.double().mean()),
        "labels_saturated": float((kept.confidence[rows] > SATURATED).double().mean()),
        "labels_crowding": max((counts / at_first.clamp(min=1))[counts >= ENOUGH].tolist(), default=1.0),
        "labels_left": min((counts / at_first)[at_first >= ENOUGH].tolist(), default=1.0),
        "label_entropy": float(torch.cat(parts)[rows].mean()),
    }


def cure_for(labels: LabelsRecipe) -> str:
    """What to try where labels collapse."""
    rule = labels.rule
    if rule in LEARNED_RULES:
        pulled = labels.pulls.answers or labels.pulls.posterior or labels.pulls.entropy or labels.pulls.start
        more = "weaker [teacher.labels.pulls]" if pulled else "a pull towards the start"
        return f"a smaller [teacher.labels] step, a longer warmup_epochs or {more}"
    if rule == "pencil":
        return "a larger [teacher.labels.pencil] compatibility, a smaller step or a longer warmup_epochs"
    if rule == "joint":
        return "a larger [teacher.labels.joint] balance, a smaller entropy or a longer warmup_epochs"
    if rule == "elr":
        return "a smaller [teacher.labels.elr] weight"
    return "a larger [teacher.labels.online_smoothing] given"


class Watch:
    """Notices when labels collapse, and says each thing once.

    Args:
        classes: C.
        cure: what to try, of the rule's own fields.
        saturated_at_first: whether labels start so sure that their saturation says nothing.
    """

    def __init__(self, classes: int, cure: str, *, saturated_at_first: bool = False) -> None:
        self.classes, self.cure = classes, cure
        self.told: set[str] = {"saturated"} if saturated_at_first else set()

    def __call__(self, metrics: Mapping[str, float]) -> list[str]:
        """What is new and wrong after an epoch, a sentence each; metrics as `label_metrics` gives them."""
        if "labels_moved" not in metrics:
            return []
        found = [(name, sentence) for name, sentence in self._problems(metrics) if name not in self.told]
        self.told |= {name for name, _ in found}
        return [sentence for _, sentence in found]

    def collapsed(self, metrics: Mapping[str, float]) -> bool:
        """Whether labels look after an epoch as if they had left what they say for good, told before or not."""
        ill = {name for name, _ in self._problems(metrics)} if "labels_moved" in metrics else set()
        return bool(ill & _COLLAPSES)

    def _problems(self, metrics: Mapping[str, float]) -> Iterator[tuple[str, str]]:
        if metrics["labels_saturated"] > _MOST_SATURATED:
            yield (
                "saturated",
                f"labels saturate: {metrics['labels_saturated']:.0%} of them are above {SATURATED} for one class and "
                f"hardly learn any more; try {self.cure}",
            )
        if metrics["labels_moved"] > _MOST_MOVED:
            yield (
                "moved",
                f"labels run away: {metrics['labels_moved']:.0%} of them have left the given class; unless so many "
                f"given labels are wrong, try {self.cure}",
            )
        if metrics["label_entropy"] > _NEARLY_UNIFORM * math.log(self.classes):
            yield (
                "uniform",
                f"labels have become nearly uniform: their mean entropy is {metrics['label_entropy']:.2f} of at most "
                f"{math.log(self.classes):.2f} nats; try {self.cure}",
            )
        if metrics["labels_crowding"] > _CROWDED and self.classes > 2:
            yield (
                "crowded",
                f"labels crowd into one class: it has {metrics['labels_crowding']:.1f} times its given labels; try "
                f"{self.cure}",
            )
        if metrics.get("labels_left", 1.0) < _LEAST_LEFT:
            yield (
                "left",
                f"labels leave a class: it has {metrics['labels_left']:.0%} of as many as were given; unless so many "
                f"of them are wrong, try {self.cure}",
            )
        if metrics.get("answers_temperature", 1.0) >= TEMPERATURES[-1]:
            yield (
                "unsure",
                f"answers are taken at a temperature of {TEMPERATURES[-1]:g}, the highest: they explain the given "
                "labels so badly that labels are hardly pulled to them; if it stays so, try a longer warmup_epochs, "
                "more epochs, or pulls.learn_temperature = false",
            )

    def state_dict(self) -> dict[str, list[str]]:
        """What was told, so that a resumed run does not say it again."""
        return {"told": sorted(self.told)}

    def load_state_dict(self, state: Mapping[str, list[str]]) -> None:
        """The inverse of `state_dict`."""
        self.told = set(state["told"])
