"""`distill check`: what a recipe will do and what it will cost, with every problem at once. Trains nothing."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from distill.data.loader import ImageData, open_data, steps_per_epoch
from distill.data.views import in_words, view_count
from distill.errors import RecipeError, UserError
from distill.models import zoo
from distill.models.zoo import Fit
from distill.recipe.checks import cell_problems
from distill.recipe.checks import problems as cross_field_problems
from distill.recipe.compare import CompareRecipe
from distill.recipe.grid import Cell, grid
from distill.recipe.labels import LEARNED_RULES, reads
from distill.recipe.schema import Recipe, StageRecipe
from distill.stages.arms import Tried, grid_errors, trials
from distill.stages.bare import bare_classes
from distill.stages.common import fit_model
from distill.stages.finished import stored_rows
from distill.stages.settling import settle_student
from distill.stages.teacher_task import training_rows
from distill.stages.trial import KNOWN, beside_logits
from distill.store.atomic import check_place
from distill.store.formats.layout import half_columns, logit_columns, row_bytes
from distill.training.device import emulated_precision, prepare_device


@dataclass
class PlanReport:
    """The plan as named values, table by table, and what is wrong with it."""

    where: str
    plan: dict[str, dict[str, Any]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what will not be done quite as it is written

    def record(self) -> dict[str, Any]:
        """For `--json`; with problems also what every failed command gives: error, cure, exit_code."""
        found = {"recipe": self.where, "plan": self.plan, "notes": self.notes, "problems": self.problems}
        if not self.problems:
            return found
        return found | {"error": "\n".join(self.problems), "cure": "Mend the recipe.", "exit_code": 2}

    def add(self, error: UserError) -> None:
        """Notes a problem. Of two reports on the same field the later one stays: it has seen more than the recipe."""
        place = _field_of(error.message)
        if place:
            self.problems = [problem for problem in self.problems if _field_of(problem) != place]
        self.problems.append(" -> ".join(part for part in (error.message, error.cure) if part))

    def told(self) -> frozenset[str]:
        """The problems without their cures."""
        return frozenset(problem.partition(" -> ")[0] for problem in self.problems)

    def text(self) -> str:
        """For people."""
        lines = [f"{self.where}: {'sound' if not self.problems else _counted(len(self.problems))}"]
        for table, values in self.plan.items():
            lines.append(f"  {table:8} " + ", ".join(f"{name} {value}" for name, value in values.items()))
        lines += [f"  note: {note}" for note in self.notes]
        lines += [f"  problem: {problem}" for problem in self.problems]
        return "\n".join(lines)


def check_plan(recipe: Recipe, where: str) -> PlanReport:
    """Opens the data, fits the models and adds up the sizes; collects every problem, not only the first."""
    report, written, fit = PlanReport(where), recipe, zoo.fit_once()
    comparing = recipe.compare != CompareRecipe()  # else a comparison of the defaults is nothing that it asks for
    report.problems += cross_field_problems(recipe, comparing=comparing)
    cells: tuple[Cell, ...] = ()
    with suppress(RecipeError):  # an arm that does not fit is among the problems already
        cells = grid(recipe)
    if comparing and not report.problems:
        report.problems += cell_problems(cells)
    data: ImageData | None = None
    shape = KNOWN.get(recipe.data.source)
    with _collected(report):
        report.notes += _emulated(recipe, prepare_device(recipe))
    with _collected(report):
        check_place(Path(recipe.checkpoints) / recipe.name)
    with _collected(report):
        data = open_data(recipe, quick=True)
        channels, side, _ = data.shape
        shape = (channels, side, data.num_classes)
        report.plan["data"] = _data_plan(recipe, data)
        if ignored := data.source.ignored:
            kinds = ", ".join(f"{count} {ending or 'without an ending'}" for ending, count in ignored.items())
            report.notes.append(f"[data] root: files that are not taken for images: {kinds}")
        report.notes += data.source.unused
        report.notes += (*_colourless(recipe, data), *bare_classes(recipe, data), *_kept(recipe, data))
    count = "the whole orbit" if recipe.views.count == "orbit" else f"{recipe.views.count}"
    report.plan["views"] = {"made of": in_words(recipe.views), "stored": count}
    if shape is not None:
        with suppress(UserError):
            settled = settle_student(recipe, channels=shape[0], image_size=shape[1], classes=shape[2], fit=fit)
            recipe = settled.recipe
            report.notes += settled.reasons
    report.notes += _idle(recipe)
    for table, stage in (("teacher", recipe.teacher), ("student", recipe.student)):
        if shape is not None:
            with suppress(UserError):
                report.plan[table] = _stage_plan(recipe, table, stage, shape, data, fit)
        if data is not None:
            report.notes += _lowered(recipe, table, stage, data)
    if data is not None:
        with suppress(UserError):
            report.plan["export"] = _export_plan(recipe, data, fit)
    for trial in trials(written, shape, fit=fit).values():  # which tells what was suppressed above
        with _collected(report):
            trial()
    if comparing:
        for error in grid_errors(written, cells, Tried(shape, report.told(), fit)):
            report.add(error)
    report.plan["compare"] = _compare_plan(recipe.compare, cells)
    return report


class _collected:  # noqa: N801
    """Turns a UserError of the body into a problem of the report."""

    def __init__(self, report: PlanReport) -> None:
        self.report = report

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, UserError):
            self.report.add(error)
            return True
        return False


def _field_of(problem: str) -> str:
    """`data.image_size` of `[data] image_size: ...` and of `data.image_size = 3, ...`; "" where no field is named.

    Of an arm's problem, the arm comes first: what is wrong there says nothing about the same field elsewhere.
    """
    arm = found[0] if (found := re.match(r"\[compare\.arms\] [^:]+: ", problem)) else ""
    found = re.match(r"(?:\[([a-z_.]+)\] ([a-z_]+):|([a-z]+\.[a-z_.]+) (?:=|is) )", problem[len(arm) :])
    if found is None:
        return ""
    return arm + (found[3] or f"{found[1]}.{found[2]}")


def _counted(problems: int) -> str:
    return f"{problems} problem{'' if problems == 1 else 's'}"


def _data_plan(recipe: Recipe, data: ImageData) -> dict[str, Any]:
    parts = data.splits
    noisy, known = int(data.labels.is_noisy[parts.train].sum()), recipe.data.truth_known
    unreadable: dict[str, Any] = {}
    if recipe.data.unreadable == "leave-out":
        unknown, count = data.source.undecided, len(data.source.unreadable)
        unreadable["unreadable"] = f"not known before {unknown} files were decoded" if unknown else count
    return {
        "source": data.source.name,
        "images": "x".join(map(str, data.shape)),
        "classes": data.num_classes,
        "train": parts.train.numel(),
        "validation": parts.validation.numel(),
        "meta": parts.meta.numel(),
        "test": parts.test.numel(),
        **unreadable,
        **({"corrected labels": data.corrected} if recipe.data.corrections else {}),
        "wrong training labels": f"{noisy} ({noisy / parts.train.numel():.1%})" if known else "not known",
    }


def _stage_plan(
    recipe: Recipe, table: str, stage: StageRecipe, shape: tuple[int, int, int], data: ImageData | None, fit: Fit
) -> dict[str, Any]:
    channels, side, classes = shape
    spec = fit_model(stage, table, channels=channels, image_size=side, classes=classes, fit=fit)
    extra = {name: v for name, v in spec.arguments.items() if name not in ("num_classes", "in_chans")}
    plan: dict[str, Any] = {
        "model": spec.architecture + (f" {extra}" if extra else ""),
        "parameters": zoo.parameter_count(spec),
    }
    if table == "teacher" and recipe.teacher.imported.source:
        return plan | {"imported": recipe.teacher.imported.source}
    plan["epochs"] = stage.epochs
    if data is not None:
        rows = _rows(recipe, table, data)
        steps = steps_per_epoch(rows.numel(), stage.batch_size)
        plan |= {"training images": rows.numel(), "steps": f"{stage.epochs} x {steps} = {stage.epochs * steps}"}
    labels = recipe.teacher.labels
    if table == "teacher":
        learned = labels.rule in LEARNED_RULES
        plan["labels"] = f"{labels.rule}, {labels.meta} meta, {labels.estimator}" if learned else labels.rule
    return plan


def _emulated(recipe: Recipe, device: torch.device) -> Iterator[str]:
    """Half precision that the device only emulates, in the stages that train."""
    for table, stage in (("teacher", recipe.teacher), ("student", recipe.student)):
        idle = table == "teacher" and recipe.teacher.imported.source
        if not idle and (note := emulated_precision(device, stage, table)):
            yield note


def _colourless(recipe: Recipe, data: ImageData) -> Iterator[str]:
    """Colour jitter that images of one channel have no colour for."""
    for name in ("saturation", "hue"):
        if getattr(recipe.views, name) and data.shape[0] != 3:
            yield f"[views] {name}: images of {data.shape[0]} channel have no colour, so it changes nothing"


def _idle(recipe: Recipe) -> Iterator[str]:
    """Fields of the labels that are set, and that no rule reads: the teacher's, and those of arms or named teachers."""
    labels, compare = recipe.teacher.labels, recipe.compare
    asked = compare.arms or compare.teachers != CompareRecipe.model_fields["teachers"].default
    rules = {labels.rule, *(compare.rules(labels.rule) if asked else ())}
    names = set(labels.model_dump(exclude_defaults=True)).difference(*map(reads, rules))
    if names:
        them = "it" if len(names) == 1 else "them"
        yield f'[teacher.labels] {", ".join(sorted(names))}: the rule "{labels.rule}" has no use for {them}'


def _kept(recipe: Recipe, data: ImageData) -> Iterator[str]:
    """Wrong labels that cannot leave their class."""
    labels, wrong = recipe.teacher.labels, int(data.labels.is_noisy[data.splits.train].sum())
    if labels.rule in LEARNED_RULES and labels.parametrisation == "fixed-mass" and wrong and recipe.data.truth_known:
        kept = f"the given class keeps a probability of {labels.true_class_mass:g}"
        yield f"[teacher.labels] parametrisation: {kept}, so that none of {wrong} wrong labels is corrected"


def _lowered(recipe: Recipe, table: str, stage: StageRecipe, data: ImageData) -> Iterator[str]:
    """Batch sizes above the number of images that there are."""
    if table == "teacher" and recipe.teacher.imported.source:
        return  # nothing trains it
    images = _rows(recipe, table, data).numel()
    if stage.batch_size > images:
        yield f"[{table}] batch_size: {stage.batch_size} is lowered to {images}, the number of its training images"
    labels, meta = recipe.teacher.labels, data.splits.meta.numel()
    learned = {labels.rule, *recipe.compare.rules(labels.rule)} & LEARNED_RULES
    if table == "teacher" and learned and labels.meta == "held-out" and 0 < meta < labels.meta_batch_size:
        yield f"[teacher.labels] meta_batch_size: {labels.meta_batch_size} is lowered to {meta}, all meta images"


def _rows(recipe: Recipe, table: str, data: ImageData) -> torch.Tensor:
    """Source indices that a stage is trained on, int64 [N]."""
    return training_rows(data, recipe.teacher.labels) if table == "teacher" else stored_rows(data)


def _export_plan(recipe: Recipe, data: ImageData, fit: Fit) -> dict[str, Any]:
    rows, views = stored_rows(data).numel(), view_count(recipe.views)
    export = recipe.export
    features, sizes = beside_logits(recipe, (*data.shape[:2], data.num_classes), fit)
    columns = logit_columns(export.format, data.num_classes, export.k or 1)
    columns += half_columns("features", features) if features else ()
    columns += half_columns("maps", sum(map(math.prod, sizes))) if sizes else ()
    return {
        "rows": rows,
        "views": views,
        "format": export.format if export.k is None else f"{export.format} {export.k}",
        "megabytes": round(rows * views * row_bytes(columns) / 1e6, 2),
        **({"features": f"{features} x float16"} if features else {}),
        **({"maps": " ".join([*(f"{height}x{width}" for height, width in sizes), "float16"])} if sizes else {}),
    }


def _compare_plan(compare: CompareRecipe, cells: Sequence[Cell]) -> dict[str, Any]:
    if not cells:
        return {}
    kinds = Counter(cell.kind for cell in cells)
    return {
        "teachers": "/".join(compare.names),
        "seeds": len(compare.seeds),
        "trainings": f"{kinds['teacher']} teachers + {kinds['student']} students",
    }
