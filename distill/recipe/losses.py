"""The student's losses as a recipe names them: what each one reads, its paper's settings, and what is left open.

`losses/criterion.py` makes a loss of what is settled here. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

from distill.recipe.base import Table
from distill.recipe.ranges import Count, Share, Temperature

LossName = Literal[
    "kd",
    "reverse-kd",
    "jsd",
    "logits",
    "dkd",
    "dist",
    "nkd",
    "ttm",
    "wttm",
    "mlkd",
    "ctkd",
    "labels",
    "fitnet",
    "rkd",
    "crd",
    "attention",
    "ce",
    "smoothing",
    "ols",
    "tf-kd",
]
Need = Literal["logits", "labels", "features", "maps"]
Weight = Annotated[float, Field(ge=0, le=1e6)]


class TermRecipe(Table):
    """The settings of one loss; what is left out is its paper's, see `CATALOGUE`."""

    temperature: Temperature | None = Field(
        default=None,
        description="Temperature of teacher and student; none: the loss's own, and 1 for teachers with soft labels.",
    )
    standardise: bool | None = Field(
        default=None, description="Bring each row of logits to mean 0 and deviation 1 first (LSKD), for any logit loss."
    )
    alpha: Weight | None = Field(default=None, description="dkd: weight of the part about the given class.")
    beta: Weight | None = Field(
        default=None, description="dkd: weight of the part about the other classes; dist: of the rows' correlation."
    )
    gamma: Weight | None = Field(
        default=None, description="nkd: weight of the other classes; dist: of the columns' correlation."
    )
    distance: Weight | None = Field(default=None, description="rkd: weight of the distances.")
    angle: Weight | None = Field(default=None, description="rkd: weight of the angles.")
    temperatures: Annotated[tuple[Temperature, ...], Field(strict=False, min_length=1)] | None = Field(
        default=None, description="mlkd: the temperatures that it aligns at."
    )
    negatives: Count | None = Field(default=None, description="crd: stored images that each batch is contrasted with.")
    smoothing: Share | None = Field(default=None, description="smoothing: eps; eps/C goes to every class.")
    mass: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None, description="tf-kd: probability of the given class."
    )
    warmup_epochs: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="Epochs in which the weight grows from 0 in equal steps."
    )
    cooldown_epochs: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="Last epochs, in which the weight falls back to 0 in equal steps."
    )


class PlusRecipe(TermRecipe):
    """A further loss, added to the first: `[student.loss.plus.NAME]`."""

    weight: Weight | None = Field(default=None, description="Its weight; none: what it has when it is the first.")


class LossRecipe(TermRecipe):
    """What the student learns from: hard_weight * cross-entropy + soft_weight * the loss + each of `plus`."""

    name: LossName = Field(default="kd", description="The loss; `distill list losses` has a line about each.")
    hard_weight: Weight | None = Field(
        default=None, description="Weight of the cross-entropy with the given labels; none: the loss's own."
    )
    soft_weight: Weight | None = Field(default=None, description="Weight of the loss; none: its own.")
    plus: dict[LossName, PlusRecipe] = Field(
        default_factory=dict, description="Further losses by name, added to the first."
    )
    allow_topk: bool = Field(
        default=False,
        description="Learn from a top-k store also where its evenly spread tail is wrong: at T above 1, and by losses "
        "that read it at any T.",
    )


@dataclass(frozen=True)
class LossInfo:
    """What is known of a loss before anything is trained.

    Attributes:
        sentence: for people, with its source.
        hard: weight of the cross-entropy beside it.
        soft: its own weight.
        reads: the settings it has, and their defaults; () is none.
        needs: what a teacher's store has to hold.
        tail: whether it reads the logits that a top-k store makes up: never, above T = 1, or always.
        warmup: share of the epochs in which its weight grows, where nothing else is asked for.
    """

    sentence: str
    hard: float
    soft: float
    reads: Mapping[str, Any] = field(default_factory=dict)
    needs: frozenset[Need] = frozenset()
    tail: Literal["never", "hot", "always"] = "never"
    warmup: float = 0.0

    @property
    def takes_share(self) -> bool:
        """Whether its weight may be a share w, beside 1 - w of the cross-entropy, as `[compare] weights` give them.

        A loss that asks no teacher is a control, with nothing to weigh against the given labels. Of those that do,
        fitnet and attention are left out: theirs are small squared differences, whose own weights are 100 and 1000.
        """
        return bool(self.needs) and self.soft <= 1


HARD_RULES = ("onehot", "imported")  # of teachers whose outputs no soft label has made soft
_LOGITS: frozenset[Need] = frozenset({"logits"})
_FEATURES: frozenset[Need] = frozenset({"features"})


def _soft(temperature: float, **more: Any) -> dict[str, Any]:
    return {"temperature": temperature, "standardise": False, **more}


# Weights and settings are the papers', or their published code's, where these give them. Ours are the weights of
# reverse-kd, jsd, logits, ttm, wttm, mlkd and ctkd, which are kd's, that of labels, and crd's number of negatives.
CATALOGUE: Mapping[LossName, LossInfo] = {
    "kd": LossInfo("T^2 KL(teacher || student) (Hinton 2015)", 0.1, 0.9, _soft(4.0), _LOGITS, "hot"),
    "reverse-kd": LossInfo("T^2 KL(student || teacher)", 0.1, 0.9, _soft(4.0), _LOGITS, "always"),
    "jsd": LossInfo("T^2 Jensen-Shannon divergence", 0.1, 0.9, _soft(4.0), _LOGITS, "always"),
    "logits": LossInfo(
        "squared differences of centred logits, kd's limit for large T (Ba and Caruana 2014)",
        0.1,
        0.9,
        {"standardise": False},
        _LOGITS,
        "always",
    ),
    "dkd": LossInfo(
        "given class and other classes apart (Zhao 2022)",
        1.0,
        1.0,
        _soft(4.0, alpha=1.0, beta=8.0),
        _LOGITS,
        "always",
        warmup=1 / 12,  # 20 of 240 epochs
    ),
    "dist": LossInfo(
        "correlations of rows and columns (Huang 2022)", 1.0, 1.0, _soft(4.0, beta=2.0, gamma=2.0), _LOGITS, "always"
    ),
    "nkd": LossInfo("normalised other classes (Yang 2023)", 1.0, 1.0, _soft(1.0, gamma=1.5), _LOGITS, "always"),
    "ttm": LossInfo(
        "the teacher's powers, an untempered student (Zheng and Yang 2024)", 0.1, 0.9, _soft(4.0), _LOGITS, "hot"
    ),
    "wttm": LossInfo("ttm, each image weighted by its uncertainty (same)", 0.1, 0.9, _soft(4.0), _LOGITS, "hot"),
    "mlkd": LossInfo(
        "rows, classes and images at several T (Jin 2023)",
        0.1,
        0.9,
        {"standardise": False, "temperatures": (2.0, 3.0, 4.0, 5.0, 6.0)},
        _LOGITS,
        "always",
    ),
    "ctkd": LossInfo(
        "kd with a learned T, made harder step by step (Li 2023)", 0.1, 0.9, {"standardise": False}, _LOGITS, "always"
    ),
    "labels": LossInfo(
        "soft cross-entropy on the labels that the teacher learned", 0.0, 1.0, {}, frozenset({"labels"})
    ),
    "fitnet": LossInfo("squared differences of features (Romero 2015)", 1.0, 100.0, {}, _FEATURES),
    "rkd": LossInfo(
        "distances and angles between images' features (Park 2019)",
        1.0,
        1.0,
        {"distance": 25.0, "angle": 50.0},
        _FEATURES,
    ),
    "crd": LossInfo("contrast of features (Tian 2020)", 1.0, 0.8, {"negatives": 1024}, _FEATURES),
    "attention": LossInfo("attention maps (Zagoruyko and Komodakis 2017)", 1.0, 1000.0, {}, frozenset({"maps"})),
    "ce": LossInfo("cross-entropy with the given labels only: a control", 1.0, 0.0),
    "smoothing": LossInfo("label smoothing, no teacher: a control", 0.0, 1.0, {"smoothing": 0.1}),
    "ols": LossInfo("online label smoothing, no teacher: a control (Zhang 2021)", 0.5, 0.5),
    "tf-kd": LossInfo("a virtual teacher: a control (Yuan 2020)", 0.1, 0.9, {"temperature": 20.0, "mass": 0.99}),
}
RAMPS = ("warmup_epochs", "cooldown_epochs")
SETTINGS = tuple(name for name in TermRecipe.model_fields if name not in RAMPS)


def terms(loss: LossRecipe) -> Iterator[tuple[LossName, TermRecipe]]:
    """The first loss and the further ones, with their settings."""
    yield loss.name, loss
    yield from loss.plus.items()


def in_use(loss: LossRecipe) -> Iterator[tuple[LossName, TermRecipe, float]]:
    """The losses whose weight is not 0, with settings and weight; not the plain cross-entropy."""
    for name, term in terms(loss):
        given = loss.soft_weight if term is loss else loss.plus[name].weight
        weight = CATALOGUE[name].soft if given is None else given
        if weight and name != "ce":
            yield name, term, weight


def needs(loss: LossRecipe) -> frozenset[Need]:
    """What a teacher's store has to hold for a student with this loss."""
    return frozenset().union(*(CATALOGUE[name].needs for name, _, _ in in_use(loss)))


@dataclass(frozen=True)
class Settled:
    """A loss with nothing left open that it reads, and why what was open is as it is, a sentence each."""

    loss: LossRecipe
    reasons: tuple[str, ...]


def settle(loss: LossRecipe, label_rule: str, epochs: int) -> Settled:
    """Fills in what the recipe leaves open.

    A teacher that was trained on soft labels has soft outputs already: raising its temperature too cost 2.6 points at
    T = 2 with smoothed labels on ImageNet (ResNet50 to ResNet18), where T = 1 lost nothing. So higher temperatures are
    for teachers of one-hot labels, unless the recipe says otherwise.

    Args:
        loss: as in the recipe.
        label_rule: what the teacher's labels were: "onehot", ..., or "imported".
        epochs: of the student.
    """
    reasons: list[str] = []
    info = CATALOGUE[loss.name]
    own = _settled_term(loss.name, loss, label_rule, epochs, reasons)
    own |= {"hard_weight": info.hard if loss.hard_weight is None else loss.hard_weight}
    own |= {"soft_weight": info.soft if loss.soft_weight is None else loss.soft_weight}
    plus = {}
    for name, term in loss.plus.items():
        filled = _settled_term(name, term, label_rule, epochs, reasons)
        filled["weight"] = CATALOGUE[name].soft if term.weight is None else term.weight
        plus[name] = term.model_copy(update=filled)
    return Settled(loss.model_copy(update={**own, "plus": plus}), tuple(reasons))


def _settled_term(name: LossName, term: TermRecipe, label_rule: str, epochs: int, reasons: list[str]) -> dict[str, Any]:
    info = CATALOGUE[name]
    filled = {key: default for key, default in info.reads.items() if getattr(term, key) is None}
    if name == "kd" and term.standardise and "temperature" in filled:
        filled["temperature"] = 2.0  # LSKD's; standardised logits do not depend on how soft the teacher is
        reasons.append("kd: temperature 2, LSKD's, as logits are standardised")
    elif "logits" in info.needs and "temperature" in filled:
        filled["temperature"] = _temperature(name, filled["temperature"], label_rule, reasons)
    if term.warmup_epochs is None:
        filled["warmup_epochs"] = round(info.warmup * epochs)
        if filled["warmup_epochs"]:
            reasons.append(
                f"{name}: its weight grows over the first {filled['warmup_epochs']} epochs, the paper's share"
            )
    if term.cooldown_epochs is None:
        filled["cooldown_epochs"] = 0
    return filled


def _temperature(name: str, own: float, label_rule: str, reasons: list[str]) -> float:
    if own <= 1:
        return own
    if label_rule in HARD_RULES:
        reasons.append(f"{name}: temperature {own:g}, the loss's own, as the teacher's labels were {label_rule}")
        return own
    chosen = 2.0 if name in ("ttm", "wttm") else 1.0  # these two are kd at T = 1
    reasons.append(
        f"{name}: temperature {chosen:g} and not {own:g}, as the teacher's labels were {label_rule} and not one-hot"
    )
    return chosen


def without_unread(loss: LossRecipe) -> LossRecipe:
    """The loss without the settings that it does not read."""
    unread = [key for key in SETTINGS if key not in CATALOGUE[loss.name].reads]
    unread += ["hard_weight", "soft_weight", *RAMPS] if loss.name == "ce" else []
    return loss.model_copy(update=dict.fromkeys(unread))


def needs_all_logits(loss: LossRecipe) -> str:
    """Why a settled loss may not learn from what a top-k store makes up for the classes it did not keep; "": it may.

    The kept logits and the tail's mass make softmax right at T = 1; below 1 the tail weighs less still. That serves
    losses in which the teacher's probability weighs each class: kd, ttm, wttm. Where the student's does (reverse-kd,
    jsd), or what is left without the given class is made whole (dkd, nkd), or classes count alike (dist), it does not.
    """
    for name, term, _ in in_use(loss):
        tail = CATALOGUE[name].tail
        hot = term.temperature is not None and term.temperature > 1
        if tail == "always" or (tail == "hot" and (hot or term.standardise)):
            at = f" at T = {term.temperature:g}" if term.temperature is not None else ""
            return f'the loss "{name}"{at} reads the tail, which a top-k store has spread evenly'
    return ""
