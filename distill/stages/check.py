"""`distill check`: what a recipe will do and what it will cost, with every problem at once. Trains nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from distill.data.loader import ImageData, open_data, steps_per_epoch
from distill.data.views import view_count
from distill.errors import UserError
from distill.models import zoo
from distill.models.zoo import ModelSpec
from distill.recipe.checks import problems as cross_field_problems
from distill.recipe.schema import LEARNED_RULES, Recipe, StageRecipe
from distill.stages.common import fit_model
from distill.stages.export import stored_rows
from distill.stages.teacher import training_rows
from distill.store.manifest import ITEM_BYTES
from distill.training.device import prepare_device
from distill.training.schedule import build_optimizer

# channels, side, classes of the sources whose files may be missing: the models can be checked all the same.
_KNOWN = {"digits": (1, 8, 10), "fashion-mnist": (1, 28, 10), "cifar10": (3, 32, 10), "cifar100": (3, 32, 100)}


@dataclass
class PlanReport:
    """The plan as named values, table by table, and what is wrong with it."""

    where: str
    plan: dict[str, dict[str, Any]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def record(self) -> dict[str, Any]:
        """For `--json`."""
        return {"recipe": self.where, "plan": self.plan, "problems": self.problems}

    def text(self) -> str:
        """For people."""
        lines = [f"{self.where}: {'sound' if not self.problems else f'{len(self.problems)} problems'}"]
        for table, values in self.plan.items():
            lines.append(f"  {table:8} " + ", ".join(f"{name} {value}" for name, value in values.items()))
        lines += [f"  problem: {problem}" for problem in self.problems]
        return "\n".join(lines)


def check_plan(recipe: Recipe, where: str) -> PlanReport:
    """Opens the data, fits the models and adds up the sizes; collects every problem, not only the first."""
    report = PlanReport(where)
    report.problems += cross_field_problems(recipe, comparing=True)
    data: ImageData | None = None
    shape = _KNOWN.get(recipe.data.source)
    with _collected(report):
        prepare_device(recipe)
    with _collected(report):
        data = open_data(recipe)
        channels, side, _ = data.shape
        shape = (channels, side, data.num_classes)
        report.plan["data"] = _data_plan(recipe, data)
    for table, stage in (("teacher", recipe.teacher), ("student", recipe.student)):
        with _collected(report):
            if shape is not None:
                report.plan[table] = _stage_plan(recipe, table, stage, shape, data)
        with _collected(report):
            # Names and settings do not depend on the model, so a small one will do.
            build_optimizer(torch.nn.Linear(1, 1), stage.optimizer, f"{table}.optimizer")
    if data is not None:
        report.plan["export"] = _export_plan(recipe, data)
    report.plan["compare"] = _compare_plan(recipe)
    return report


class _collected:  # noqa: N801
    """Turns a UserError of the body into a problem of the report."""

    def __init__(self, report: PlanReport) -> None:
        self.report = report

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, UserError):
            self.report.problems.append(" -> ".join(part for part in (error.message, error.cure) if part))
            return True
        return False


def _data_plan(recipe: Recipe, data: ImageData) -> dict[str, Any]:
    parts = data.splits
    noisy = int(data.labels.is_noisy[parts.train].sum())
    return {
        "source": data.source.name,
        "images": "x".join(map(str, data.shape)),
        "classes": data.num_classes,
        "train": parts.train.numel(),
        "validation": parts.validation.numel(),
        "meta": parts.meta.numel(),
        "test": parts.test.numel(),
        "wrong training labels": f"{noisy} ({noisy / parts.train.numel():.1%})",
    }


def _stage_plan(
    recipe: Recipe, table: str, stage: StageRecipe, shape: tuple[int, int, int], data: ImageData | None
) -> dict[str, Any]:
    channels, side, classes = shape
    spec: ModelSpec = fit_model(stage, table, channels=channels, image_size=side, classes=classes)
    extra = {name: v for name, v in spec.arguments.items() if name not in ("num_classes", "in_chans")}
    plan: dict[str, Any] = {
        "model": spec.architecture + (f" {extra}" if extra else ""),
        "parameters": zoo.parameter_count(spec),
        "epochs": stage.epochs,
    }
    if data is not None:
        rows = training_rows(data, recipe.teacher.labels) if table == "teacher" else stored_rows(data)
        steps = steps_per_epoch(rows.numel(), stage.batch_size)
        plan |= {"training images": rows.numel(), "steps": f"{stage.epochs} x {steps} = {stage.epochs * steps}"}
    labels = recipe.teacher.labels
    if table == "teacher":
        learned = labels.rule in LEARNED_RULES
        plan["labels"] = f"{labels.rule}, {labels.meta} meta, {labels.estimator}" if learned else labels.rule
    return plan


def _export_plan(recipe: Recipe, data: ImageData) -> dict[str, Any]:
    rows, views = stored_rows(data).numel(), view_count(recipe.views)
    size = rows * views * data.num_classes * ITEM_BYTES[recipe.export.format]
    return {"rows": rows, "views": views, "format": recipe.export.format, "megabytes": round(size / 1e6, 2)}


def _compare_plan(recipe: Recipe) -> dict[str, Any]:
    compare = recipe.compare
    temperatures = compare.temperatures or (recipe.student.loss.temperature,)
    teachers = len(compare.teachers) * len(compare.seeds)
    return {
        "teachers": "/".join(compare.teachers),
        "seeds": len(compare.seeds),
        "trainings": f"{teachers} teachers + {teachers * len(temperatures)} students",
    }
