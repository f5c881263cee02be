"""What the student's fields ask of each other and of the teacher's; see `checks.py`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from distill.recipe.labels import KEPT_RULES, LabelRule
from distill.recipe.losses import (
    CATALOGUE,
    RAMPS,
    SETTINGS,
    LossName,
    LossRecipe,
    TermRecipe,
    in_use,
    needs,
    needs_all_logits,
    settle,
    terms,
)
from distill.recipe.schema import Recipe


def student_problems(recipe: Recipe, compared: Sequence[LabelRule] = ()) -> Iterator[str]:
    """Every rule about the student that the recipe breaks, one line each.

    Args:
        recipe: one that fits the schema.
        compared: the label rules of the teachers of a comparison, each with a student at each of its temperatures;
            empty: there is no comparison, but one teacher, the recipe's own.
    """
    yield from _student(recipe)
    yield from _loss(recipe, compared)
    yield from _top_k(recipe, compared)


def label_rule(recipe: Recipe) -> str:
    """What the teacher's labels were; "imported" for a teacher that was trained elsewhere."""
    return "imported" if recipe.teacher.imported.source else recipe.teacher.labels.rule


def _student(recipe: Recipe) -> Iterator[str]:
    student = recipe.student
    if student.patience and recipe.data.validation == 0:
        yield "[student] patience: found some with no validation images, expected [data] validation above 0, or 0"
    if student.micro_batches > student.batch_size // 2:
        yield (
            f"[student] micro_batches: found {student.micro_batches}, expected at most {student.batch_size // 2}: "
            f"two images of the {student.batch_size} in each"
        )
    count = 1 + len(student.more_teachers)
    if student.teacher_weights and len(student.teacher_weights) != count:
        yield (
            f"[student] teacher_weights: found {len(student.teacher_weights)} numbers, expected one for each of the "
            f"{count} teachers, the run's own first"
        )
    if student.teacher_weights and not any(student.teacher_weights):
        yield "[student] teacher_weights: found nothing but 0, expected one of them above 0"
    if student.combine != "logits" and count == 1:
        yield f'[student] combine: found "{student.combine}" with one teacher; leave it out, or name more_teachers'
    if student.online and not needs(student.loss):
        yield f'[student] online: found true with the loss "{student.loss.name}", which asks no teacher; leave it out'
    if student.online and student.more_teachers:
        yield "[student] online: found true with more_teachers, whose stores are read; leave one of them out"


def _loss(recipe: Recipe, compared: Sequence[LabelRule]) -> Iterator[str]:
    loss, teacher = recipe.student.loss, recipe.teacher
    yield from problems_of_loss(loss, recipe.student.epochs)
    wanted = needs(loss)
    for need, field in (("features", "features"), ("maps", "maps")):
        names = [name for name, _, _ in in_use(loss) if need in CATALOGUE[name].needs]
        if names and not getattr(recipe.export, field) and not recipe.student.online:
            yield (
                f'[export] {field}: found false, but the loss "{names[0]}" learns from them; expected true (for a '
                f"teacher that is there: distill export --teacher RUN --set export.{field}=true)"
            )
    names = [name for name, _, _ in in_use(loss)]
    if "ols" in names and recipe.views.mixes:
        yield '[student.loss] name: found "ols" with mixed views, of which no answer is right; leave one of them out'
    if "crd" in names and recipe.views.mixes:
        yield (
            '[student.loss] name: found "crd" with mixed views, whose stored ones are of two classes and would be '
            "negatives of one of them; leave one of them out"
        )
    if "crd" in names and recipe.student.online:
        yield '[student] online: found true with the loss "crd", which draws from a store; leave one of them out'
    if "labels" in wanted and recipe.student.online:
        yield '[student] online: found true with the loss "labels", which lie in a store; leave one of them out'
    inside = [name for name in names if CATALOGUE[name].needs & {"features", "maps"}]
    if recipe.student.compile and inside:
        yield f'[student] compile: found true, but the loss "{inside[0]}" looks inside; leave one of them out'
    rules = {teacher.labels.rule, *compared}
    if "labels" in wanted and (teacher.imported.source or not rules & KEPT_RULES):
        rule = label_rule(recipe)
        yield (
            f'[student.loss] name: found "labels", but the teacher learns no labels ({rule}); '
            f"expected [teacher.labels] rule = {' or '.join(map(json.dumps, sorted(KEPT_RULES)))}"
        )


def _top_k(recipe: Recipe, compared: Sequence[LabelRule]) -> Iterator[str]:
    loss, export = recipe.student.loss, recipe.export
    several = compared and "temperature" in CATALOGUE[loss.name].reads
    temperatures = (recipe.compare.temperatures if several else ()) or (loss.temperature,)
    losses = [loss.model_copy(update={"temperature": temperature}) for temperature in temperatures]
    rules = compared or (label_rule(recipe),)
    settled = [settle(each, rule, recipe.student.epochs).loss for each in losses for rule in rules]
    reason = next(filter(None, map(needs_all_logits, settled)), "")
    if loss.allow_topk and export.format != "topk" and not recipe.student.more_teachers:
        yield (
            f'[student.loss] allow_topk: found true, but [export] format is "{export.format}", which holds '
            "every logit; leave it out"
        )
    elif export.format == "topk" and reason and not loss.allow_topk and not recipe.student.online:
        yield (
            f'[export] format: found "topk", but {reason}; expected kd, ttm or wttm at T <= 1, '
            'format = "int8", or [student.loss] allow_topk = true (top-10 of 1,000 at T = 4: .5 nats; docs/formats.md)'
        )


def problems_of_loss(loss: LossRecipe, epochs: int) -> Iterator[str]:
    """What the fields of `[student.loss]` ask of each other."""
    if loss.name in loss.plus:
        yield f'[student.loss.plus] {loss.name}: found beside name = "{loss.name}", expected another loss'
    for name, term in terms(loss):
        place = "[student.loss]" if term is loss else f"[student.loss.plus.{name}]"
        yield from _unread(place, name, term)
        ramps = (term.warmup_epochs or 0) + (term.cooldown_epochs or 0)
        if ramps > epochs:
            yield (
                f"{place} warmup_epochs: found {ramps} with cooldown_epochs, expected at most the {epochs} epochs of "
                "[student]"
            )
    if "ce" in loss.plus:
        yield "[student.loss.plus] ce: its weight is [student.loss] hard_weight; leave it out"
    info = CATALOGUE[loss.name]
    given = (loss.hard_weight, loss.soft_weight)
    if loss.name == "ce" and given != (info.hard, info.soft):  # which `settle` fills in
        for key in ("hard_weight", "soft_weight"):
            if (value := getattr(loss, key)) is not None:
                yield f'[student.loss] {key}: found {value:g}, but the loss "ce" has none; leave it out'
    hard = info.hard if loss.hard_weight is None else loss.hard_weight
    if not hard and not list(in_use(loss)):
        yield "[student.loss] soft_weight: found 0 with hard_weight = 0, expected one of them above 0"


def _unread(place: str, name: LossName, term: TermRecipe) -> Iterator[str]:
    for key in SETTINGS:
        value = getattr(term, key)
        if value is not None and key not in CATALOGUE[name].reads:
            shown = f"{value:g}" if isinstance(value, float) else str(value).lower()
            yield f'{place} {key}: found {shown}, but the loss "{name}" has none; leave it out'
    for key in RAMPS if name == "ce" else ():
        if value := getattr(term, key):
            yield f'{place} {key}: found {value}, but the loss "ce" has no weight that could grow; leave it out'
