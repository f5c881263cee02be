"""What learning the labels costs: each estimator and meta source against a plain step of the same model and batch.

Paired and interleaved in one process: every round times every variant on the same batches, a ratio is taken in each
round, and the median of the ratios is reported, so that a machine whose speed drifts does not decide.
"""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from distill.bilevel.contract import Estimator
from distill.bilevel.estimators import ESTIMATORS
from distill.bilevel.label_step import LabelStep
from distill.bilevel.probe import agreement, in_double, suits, trial_step, tuned
from distill.bilevel.step import HeldOutStep, NextBatchStep, PlainStep, Step, Training
from distill.bilevel.unrolled import Unrolled
from distill.data.loader import Batch, open_data
from distill.errors import BilevelError
from distill.labels.learned import Learned
from distill.recipe.schema import LEARNED_RULES, Recipe
from distill.stages.run_grid import duration
from distill.stages.teacher_task import TeacherTask
from distill.training.device import prepare_device
from distill.training.events import Listener, Notice
from distill.training.memory import peak_bytes

GROUP = 4  # steps that are timed together: as many as the rarest variant needs for one label update
META_SOURCES = ("next-batch", "held-out")


@dataclass(frozen=True)
class VariantCost:
    """One variant against the plain step."""

    name: str  # meta source / estimator, or meta source / every-4
    ratio: float  # of times, median over the rounds
    peak_ratio: float  # of peak bytes of live tensors above the floor (weights, optimiser, data)
    cosine: float  # of the label gradient with the float64 unrolled one, same batch and weights; NaN for every-k


@dataclass(frozen=True)
class BenchReport:
    """All variants."""

    model: str
    batch_size: int
    plain_ms: float
    variants: tuple[VariantCost, ...]
    refused: dict[str, str]

    def record(self) -> dict[str, Any]:
        """For `--json`, which has no NaN: None where there is no number."""
        variants = [
            {name: _finite(value) if isinstance(value, float) else value for name, value in asdict(variant).items()}
            for variant in self.variants
        ]
        return {**asdict(self), "variants": variants}

    def text(self) -> str:
        """For people."""
        lines = [f"{self.model}, batch {self.batch_size}: a plain step takes {self.plain_ms:.1f} ms (median)"]
        lines.append(f"  {'variant':26}{'time':>8}{'peak memory':>14}{'cosine':>12}")
        for variant in self.variants:
            cosine = "-" if variant.cosine != variant.cosine else f"{variant.cosine:.7f}"
            lines.append(f"  {variant.name:26}{variant.ratio:>7.2f}x{variant.peak_ratio:>13.2f}x{cosine:>12}")
        lines += [f"  {name}: refused: {reason}" for name, reason in self.refused.items()]
        return "\n".join(lines)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


@dataclass
class _Variant:
    name: str
    step: Step
    training: Training
    every: int = 1


def bench(recipe: Recipe, listener: Listener, *, rounds: int = 9) -> BenchReport:
    """Measures the recipe's teacher.

    Args:
        recipe: its labels need not be learned ones: instance labels stand in.
        listener: is told how far it has come.
        rounds: how often every variant is timed, on four steps each time.
    """
    device = prepare_device(recipe)
    if recipe.teacher.labels.rule not in LEARNED_RULES:
        labels = recipe.teacher.labels.model_copy(update={"rule": "instance", "meta": "next-batch"})
        recipe = recipe.model_copy(update={"teacher": recipe.teacher.model_copy(update={"labels": labels})})
    data = open_data(recipe)
    task = TeacherTask(recipe, data, device, lambda event: None)
    batches = list(_some_batches(task, GROUP + 2))
    listener(Notice(f"{task.spec.architecture}: which estimators can take it"))
    variants, refused = _variants(task, batches)
    times: dict[str, list[float]] = {variant.name: [] for variant in variants}
    for round_number in range(-1, rounds):  # the first is a warm-up
        began = time.monotonic()
        for variant in variants:
            seconds = _timed(variant, batches, round_number, device)
            if round_number >= 0:
                times[variant.name].append(seconds)
        left = (time.monotonic() - began) * (rounds - 1 - round_number)
        done = "warmed up" if round_number < 0 else f"round {round_number + 1} of {rounds}"
        listener(Notice(f"{done}; {duration(left)} left, then memory and agreement"))
    peaks = {variant.name: _peak(variant, batches) for variant in variants}
    cosines = _cosines(variants[0], batches, refused)
    costs = [
        VariantCost(
            name=variant.name,
            ratio=statistics.median(a / b for a, b in zip(times[variant.name], times["plain"], strict=True)),
            peak_ratio=peaks[variant.name] / max(peaks["plain"], 1),
            cosine=cosines.get(variant.name.split("/")[-1], float("nan")),
        )
        for variant in variants
        if variant.name != "plain"
    ]
    plain_ms = 1e3 * statistics.median(times["plain"])
    return BenchReport(task.spec.architecture, len(batches[0].rows), plain_ms, tuple(costs), refused)


def _some_batches(task: TeacherTask, count: int) -> Iterator[Batch]:
    epoch = 0
    while count > 0:
        for batch in task.batches(epoch, 0):
            if count <= 0:
                return
            yield batch
            count -= 1
        epoch += 1


def _variants(task: TeacherTask, batches: list[Batch]) -> tuple[list[_Variant], dict[str, str]]:
    """A plain step, every estimator with both meta sources, and the cheapest with updates every fourth step."""
    found = [_variant("plain", task, "plain", ESTIMATORS["one-sided"], batches)]
    refused: dict[str, str] = {}
    for name, estimator in ESTIMATORS.items():
        if not suits(name, task.rule):
            refused[name] = "it unrolls a step of the forward divergence"
            continue
        for source in META_SOURCES:
            variant = _variant(f"{source}/{name}", task, source, estimator, batches)
            try:
                _timed(variant, batches, -2, batches[0].images.device)
            except BilevelError as error:
                refused[name] = error.message
                break
            found.append(variant)
    if "one-sided" not in refused:
        for source in META_SOURCES:
            rare = _variant(f"{source}/every-{GROUP}", task, source, ESTIMATORS["one-sided"], batches)
            found.append(replace(rare, every=GROUP))
    return found, refused


def _variant(name: str, task: TeacherTask, source: str, estimator: Estimator, batches: list[Batch]) -> _Variant:
    """Copies of the model, optimiser and labels, so that no variant trains another's."""
    slow = task.label_step.slow if task.label_step else None
    model, optimizer, rule, slow = copy.deepcopy((task.model, task.optimizer, task.rule, slow))
    assert isinstance(rule, Learned)
    training = Training(
        model,
        optimizer,
        rule,
        seed=0,
        precision=task.recipe.teacher.precision,
        clip_norm=task.recipe.teacher.clip_norm,
    )
    label_step = LabelStep(rule, estimator, task.recipe.teacher.labels.meta_gradient_mean, slow)
    steps: dict[str, Step] = {
        "plain": PlainStep(training),
        "held-out": HeldOutStep(training, label_step, lambda number: batches[-1]),
        "next-batch": NextBatchStep(training, label_step),
    }
    return _Variant(name, steps[source], training)


def _timed(variant: _Variant, batches: list[Batch], round_number: int, device: torch.device) -> float:
    """Seconds a step, over a group of steps."""
    variant.training.model.train()
    _wait(device)
    began = time.perf_counter()
    for number in range(GROUP):
        variant.step(batches[number], (round_number + 2) * GROUP + number, learn=number % variant.every == 0)
    _wait(device)
    return (time.perf_counter() - began) / GROUP


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _peak(variant: _Variant, batches: list[Batch]) -> int:
    """Peak bytes of a step in the middle of training, above what is there between steps of a plain loop.

    Two steps are counted: what the first leaves for the second to judge is part of the price.
    """
    with peak_bytes() as counter:
        for number in range(2):
            variant.step(batches[number], 10_000 + number, learn=True)
    return counter.peak


def _cosines(variant: _Variant, batches: list[Batch], refused: dict[str, str]) -> dict[str, float]:
    """Of each estimator's label gradient with the float64 unrolled one: same weights, batch and meta gradient.

    Taken from the plain variant after it was timed, so at weights that have been trained a little: at the initial ones
    of a deep ReLU network even float32 double backward strays from float64.
    """
    model = variant.training.model
    inner, r = trial_step(variant.training, batches[0], batches[1], keep_features="last-layer" not in refused)
    exact = Unrolled()(*in_double(model, inner, r))
    # A reach is chosen on other batches, as the start-up probe does it.
    names = [name for name in ESTIMATORS if name not in refused]
    estimators = tuned(names, variant.training, batches[2], batches[3])
    return {name: agreement(estimator(model, inner, r), exact)[0] for name, estimator in estimators.items()}
