"""What the fields of `[teacher.labels]` ask of each other and of the rest of the recipe; see `checks.py`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from distill.recipe.labels import ANSWER_RULES, LEARNED_RULES, SETTINGS, LabelsRecipe, PullsRecipe, reads
from distill.recipe.schema import Recipe

# timm's names for torch's SGD, Adam and AdamW, the optimisers that the look-ahead of learned labels has a rule for.
_LOOK_AHEAD = ("momentum", "sgd", "nesterov", "adam", "adamw")
_LEAST_Q = 0.001  # of the judges' loss: below it float32 has few digits left of what is divided by q
# Fields that say nothing unless a rule that reads them is in use. Those that all learned rules read may stand idle in a
# recipe: its rule is often changed on the command line.
_TOLD = (
    "warmup_epochs",
    "freeze_epochs",
    "pulls",
    "online_smoothing",
    "tf_kd",
    "bootstrap",
    "joint",
    "pencil",
    "elr",
)


def label_problems(recipe: Recipe, learned: Sequence[str]) -> Iterator[str]:
    """Every rule about `[teacher.labels]` that the recipe breaks, one line each.

    Args:
        recipe: one that fits the schema.
        learned: the rules in use whose labels the bilevel step moves.
    """
    yield from _unread(recipe)
    yield from _epochs(recipe)
    yield from _mixed(recipe)
    yield from _known(recipe)
    if learned:
        yield from _learned(recipe, " and ".join(f'"{rule}"' for rule in learned))
        yield from _rows(recipe.teacher.labels, learned)


def _unread(recipe: Recipe) -> Iterator[str]:
    labels = recipe.teacher.labels
    rules = {labels.rule, *recipe.compare.rules(labels.rule)}
    for name in _TOLD:
        given = getattr(labels, name) != LabelsRecipe.model_fields[name].get_default(call_default_factory=True)
        if given and not any(name in reads(rule) for rule in rules):
            yield f'[teacher.labels] {name}: given, but the rule "{labels.rule}" has no use for it; leave it out'
    if labels.pencil.keep_meta and not recipe.data.meta:
        yield "[teacher.labels.pencil] keep_meta: found true with data.meta = 0, so that there is none to keep"


def _epochs(recipe: Recipe) -> Iterator[str]:
    teacher, labels = recipe.teacher, recipe.teacher.labels
    still = labels.warmup_epochs + labels.freeze_epochs
    if still and still >= teacher.epochs:
        name = "freeze_epochs" if labels.freeze_epochs else "warmup_epochs"
        found = f"{still} with warmup_epochs" if labels.freeze_epochs and labels.warmup_epochs else f"{still}"
        yield (f"[teacher.labels] {name}: found {found}, expected fewer than the {teacher.epochs} epochs of [teacher]")
    if labels.average_epochs > max(teacher.epochs, 1):
        yield (
            f"[teacher.labels] average_epochs: found {labels.average_epochs}, "
            f"expected at most the {teacher.epochs} epochs of [teacher]"
        )


def _mixed(recipe: Recipe) -> Iterator[str]:
    labels = recipe.teacher.labels
    if not recipe.views.mixes:
        return
    if labels.rule in ANSWER_RULES:
        yield (
            f'[teacher.labels] rule: found "{labels.rule}" with mixup or cutmix; it reads the network\'s answer to an '
            "image, which views of two images do not give; leave one of them out"
        )
    if labels.rule in LEARNED_RULES and labels.divergence == "reverse":
        yield (
            '[teacher.labels] divergence: found "reverse" with mixup or cutmix, but it is not linear in the labels '
            "that they mix; leave one of them out"
        )
    for name in ("answers", "posterior"):
        if labels.rule in LEARNED_RULES and (weight := getattr(labels.pulls, name)):
            yield (
                f"[teacher.labels.pulls] {name}: found {weight:g} with mixup or cutmix, whose views are "
                "not of one image; leave one of them out"
            )


def _known(recipe: Recipe) -> Iterator[str]:
    labels = recipe.teacher.labels
    if labels.known_mass is None:
        return
    found = f"[teacher.labels] known_mass: found {labels.known_mass:g}"
    if labels.rule in ("instance", "class+instance"):
        if labels.meta_joins == "never":
            yield f'{found} with meta_joins = "never", so that no meta image is trained on; leave it out'
        if labels.parametrisation == "fixed-mass":
            yield f'{found} with parametrisation = "fixed-mass", where all rows keep true_class_mass; leave it out'
    elif labels.rule == "class":
        yield f'{found} with rule = "class", which has no row for an image; leave it out'
    elif labels.rule == "pencil" and not labels.pencil.keep_meta:
        yield f"{found} with pencil.keep_meta = false, so that meta images are learned as others are; leave it out"


def _learned(recipe: Recipe, rules: str) -> Iterator[str]:
    teacher, labels = recipe.teacher, recipe.teacher.labels
    if not teacher.epochs and labels.rule in LEARNED_RULES:
        yield f'[teacher] epochs: found 0, but "{labels.rule}" labels are learned in training; expected 1 or more'
    if labels.pulls.calibrated and recipe.data.validation == 0:
        yield (
            "[teacher.labels.pulls] calibrated: found true with no validation images, which say how far the network is "
            "right; expected [data] validation above 0"
        )
    if labels.meta == "held-out" and recipe.data.meta == 0:
        yield (
            f"[data] meta: found 0, expected some images to judge {rules} labels with, "
            'or [teacher.labels] meta = "next-batch"'
        )
    if labels.meta_joins != "never" and labels.meta != "held-out":
        yield (
            f'[teacher.labels] meta_joins: found "{labels.meta_joins}" with meta = "{labels.meta}", which holds no '
            "images out; leave it out"
        )
    elif labels.meta_joins == "frozen" and not labels.freeze_epochs and not labels.freeze_patience:
        yield (
            '[teacher.labels] meta_joins: found "frozen" with freeze_epochs = 0 and freeze_patience = 0; the images '
            'can join when labels are frozen, for 1 epoch or more; expected "always", or one of the two'
        )
    if labels.estimator == "one-sided" and teacher.precision != "float32":
        yield (
            f'[teacher.labels] estimator: found "{labels.estimator}" with precision = "{teacher.precision}", where '
            'one-sided differences drown in rounding; expected "auto", "central" or "forward-mode"'
        )
    if labels.backend == "triton" and recipe.device == "cpu":
        yield '[teacher.labels] backend: found "triton" with device = "cpu", expected "auto" or "reference", or a GPU'
    if teacher.optimizer.name.lower() not in _LOOK_AHEAD:
        names = ", ".join(f'"{name}"' for name in _LOOK_AHEAD)
        yield (
            f'[teacher.optimizer] name: found "{teacher.optimizer.name}", expected one of {names}: '
            f"{rules} labels look through the optimiser's step, which is known for these"
        )
    if teacher.optimizer.name.lower() in ("adam", "adamw") and labels.warmup_epochs == 0:
        yield (
            f'[teacher.labels] warmup_epochs: found 0 with name = "{teacher.optimizer.name}", expected 1 or more: '
            "its first steps hardly depend on the gradient's size, so they say nothing about labels"
        )


def _rows(labels: LabelsRecipe, learned: Sequence[str]) -> Iterator[str]:
    """What the label rows can be."""
    if labels.optimizer != "sgd" and labels.momentum > 0:
        yield (
            f'[teacher.labels] momentum: found {labels.momentum:g} with optimizer = "{labels.optimizer}", which has '
            'none, or moments of its own; leave it out, or set optimizer = "sgd"'
        )
    if labels.estimator == "unrolled" and (labels.divergence == "reverse" or labels.answer_entropy):
        beside = 'divergence = "reverse"' if labels.divergence == "reverse" else "answer_entropy"
        yield (
            f'[teacher.labels] estimator: found "unrolled" with {beside}, but it unrolls a step of plain soft '
            'cross-entropy; expected "auto"'
        )
    if 0 < labels.meta_loss_q < _LEAST_Q:
        yield (
            f"[teacher.labels] meta_loss_q: found {labels.meta_loss_q:g}, where (1 - p^q) / q drowns in rounding; "
            f"expected 0, the cross-entropy, or {_LEAST_Q:g} to 1"
        )
    yield from _pulls(labels)
    if labels.parametrisation == "projected" and labels.pulls != PullsRecipe():
        yield (
            '[teacher.labels.pulls]: given with parametrisation = "projected", where their KL has no bound; '
            'expected "softmax" or "fixed-mass"'
        )
    if labels.parametrisation != "softmax" and "class+instance" in learned:
        yield (
            f'[teacher.labels] parametrisation: found "{labels.parametrisation}", expected "softmax" for the rule '
            f'"class+instance", whose rows are sums of logits{_said(labels)}'
        )


def _said(labels: LabelsRecipe) -> str:
    """What else may have set the parametrisation: a word is replaced by its fields before they are looked at."""
    if labels.parametrisation != SETTINGS["trusted"]["parametrisation"]:
        return ""
    return '; settings = "trusted" stands for it too, which is for "class" and "instance"'


def _pulls(labels: LabelsRecipe) -> Iterator[str]:
    """What pulls ask of each other and of the label rows."""
    pulls = labels.pulls
    place = "[teacher.labels.pulls]"
    if pulls.ema_decay and not (pulls.answers or pulls.posterior):
        yield (
            f"{place} ema_decay: found {pulls.ema_decay:g}, but labels are pulled to no answers; give "
            "answers or posterior a weight, or leave it out"
        )
    for name, reads_it in (("learn_confusions", "them"), ("learn_temperature", "it"), ("calibrated", "it")):
        if getattr(pulls, name) and not pulls.posterior:
            yield (
                f"{place} {name}: found true, but labels are pulled to no posterior, which alone "
                f"reads {reads_it}; give posterior a weight, or leave it out"
            )
    if pulls.calibrated and pulls.learn_temperature:
        yield f"{place} calibrated: found true beside learn_temperature, which is fitted to the same; leave one out"
    if pulls.calibrated and pulls.ema_decay:
        yield (
            f"{place} calibrated: found true beside ema_decay = {pulls.ema_decay:g}, but it is the network itself that "
            "validation is asked of; leave one out"
        )
    if pulls.repeats > 1 and not (pulls.proximal and pulls.posterior):
        yield (
            f"{place} repeats: found {pulls.repeats:g}, expected proximal = true and a weight of posterior beside it, "
            "whose pull is what grows"
        )
    if not pulls.proximal:
        return
    needs = (("parametrisation", "softmax"), ("optimizer", "sgd"), ("momentum", 0))
    for name, expected in needs:
        if (found := getattr(labels, name)) != expected:
            yield (
                f"{place} proximal: found true beside [teacher.labels] {name} = {json.dumps(found)}, expected "
                f"{name} = {json.dumps(expected)}: it knows where such steps end"
            )
    if pulls.entropy:
        yield f"{place} proximal: found true with entropy = {pulls.entropy:g}, which draws to no label; leave one out"
    if not (pulls.start or pulls.answers or pulls.posterior):
        yield f"{place} proximal: found true, but labels are pulled to none; give one a weight, or leave it out"
