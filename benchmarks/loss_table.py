"""One student by every loss of the catalogue, with several seeds: which loss does what, on one pair of networks.

A seed decides the split, the teacher, the student and the order; each loss has its own settled weights and temperature
(`distill list losses`), and nothing is tuned. Validation chooses the best epoch, test reports. Cells that are done are
not run again, so the command may be stopped and given again. Intervals are Student's t over the seeds; differences are
paired by seed.

Run: python benchmarks/loss_table.py recipes/fashion.toml --seeds 0,1,2 --jobs 2 --out docs/losses.md
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from scipy import stats

from distill.errors import UserError
from distill.recipe.load import load_recipe, override, override_run
from distill.recipe.losses import CATALOGUE, in_use
from distill.recipe.schema import Recipe
from distill.report.runs import Run, host, open_run, program_commit
from distill.training.events import Event

Scores = Mapping[str, float]
REFERENCES = ("kd", "ce")
VARIANTS = {"lskd": ("student.loss.name=kd", "student.loss.standardise=true")}


def nothing(event: Event) -> None:
    """Listens."""


def teacher_recipe(path: Path, seed: int, overrides: Sequence[str]) -> Recipe:
    """The recipe at one seed, on one thread, with all that a loss may ask of the store."""
    recipe = load_recipe(path)
    own = (f"name={recipe.name}-losses-s{seed}", f"seed={seed}", "threads=1")
    return override(recipe, [*own, "export.features=true", "export.maps=true", *overrides])


def losses_of(recipe: Recipe) -> dict[str, tuple[str, ...]]:
    """Every loss that the teacher's labels allow, and LSKD."""
    learned = recipe.teacher.labels.rule in ("class", "instance")
    names = [name for name in CATALOGUE if name != "labels" or learned]
    return {name: (f"student.loss.name={name}",) for name in names} | VARIANTS


def train_teacher(path: Path, seed: int, overrides: Sequence[str]) -> Path:
    """The teacher's run folder, with its store."""
    from distill.stages.pipeline import run_teacher

    return run_teacher(teacher_recipe(path, seed, overrides), nothing).folder


def train_student(folder: Path, loss: Sequence[str], overrides: Sequence[str]) -> Path:
    """The student's run folder."""
    from distill.stages.student import train_student as train

    run = open_run(folder)
    return train(run, override_run(run.recipe, [*loss, *overrides]), nothing).folder


def table(cells: Mapping[tuple[str, int], Run], teachers: Mapping[int, Run], seeds: Sequence[int]) -> list[str]:
    """Markdown: a row a loss, the best mean accuracy first."""
    teacher = [teachers[seed].metrics("teacher") for seed in seeds if seed in teachers]
    lines = [
        "| loss | settings | accuracy % | best epoch % | NLL | ECE % | agreement % | less kd | less ce | s |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
        f"| *teacher* | | {spread(teacher, 'test_accuracy', 100)} | {spread(teacher, 'best_test_accuracy', 100)} | "
        f"{spread(teacher, 'test_nll', 1, 3)} | {spread(teacher, 'test_ece', 100)} | | | | |",
    ]
    names = dict.fromkeys(name for name, _ in cells)
    found = {name: {seed: run for (cell, seed), run in cells.items() if cell == name} for name in names}
    for name in sorted(found, key=lambda each: -mean_of(found[each], "test_accuracy")):
        runs = found[name]
        scores = [run.metrics("student") for run in runs.values()]
        seconds = statistics.fmean(run.record.stages["student"].seconds for run in runs.values())
        less = [difference(runs, found.get(reference, {})) if name != reference else "" for reference in REFERENCES]
        lines.append(
            f"| {name} | {settings(next(iter(runs.values())))} | {spread(scores, 'test_accuracy', 100)} | "
            f"{spread(scores, 'best_test_accuracy', 100)} | {spread(scores, 'test_nll', 1, 3)} | "
            f"{spread(scores, 'test_ece', 100)} | {spread(scores, 'agreement', 100)} | {less[0]} | {less[1]} | "
            f"{seconds:.0f} |"
        )
    return lines


def settings(run: Run) -> str:
    """`.1 CE + .9 kd, T 4`."""
    loss = run.recipe.student.loss
    parts = [f"{loss.hard_weight:g} CE"] if loss.hard_weight else []
    for name, term, weight in in_use(loss):
        temperature = "" if term.temperature is None else f" (T {term.temperature:g})"
        parts.append(f"{weight:g} {name}{temperature}")
    return " + ".join(parts)


def mean_of(runs: Mapping[int, Run], metric: str) -> float:
    """Over the seeds."""
    return statistics.fmean(run.metrics("student")[metric] for run in runs.values())


def spread(scores: Sequence[Scores], metric: str, scale: float, digits: int = 1) -> str:
    """Mean and half the 95 % interval, over the seeds."""
    return interval([scale * each[metric] for each in scores if metric in each], digits)


def difference(runs: Mapping[int, Run], others: Mapping[int, Run]) -> str:
    """In accuracy, paired by seed."""
    both = sorted(runs.keys() & others.keys())
    pairs = [(runs[seed].metrics("student"), others[seed].metrics("student")) for seed in both]
    return interval([100 * (one["test_accuracy"] - other["test_accuracy"]) for one, other in pairs], 1, sign="+")


def interval(values: Sequence[float], digits: int, sign: str = "") -> str:
    """`88.4 ± 0.3`; no interval for one value."""
    if not values:
        return ""
    mean = f"{statistics.fmean(values):{sign}.{digits}f}"
    if len(values) < 2:
        return mean
    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean} ± {half:.{digits}f}"


def page(lines: Sequence[str], command: str, seeds: Sequence[int], minutes: float, failed: Sequence[str]) -> str:
    """The document."""
    machine = host()
    head = [
        "# One pair of networks, every loss",
        "",
        f"Made by `{command}`. Test part of the recipe's data, mean and 95 % interval (Student's "
        f"t) over the seeds {', '.join(map(str, seeds))}; each seed has its own split, teacher and student. Accuracy, "
        "NLL and ECE after the last epoch; *best epoch* is the test accuracy of the epoch that validation chose; "
        "agreement with the teacher is that of the last epoch, on the training views. Differences in accuracy are "
        "paired by seed. Each loss has its own default settings (`distill list losses`); none was tuned. s: seconds of "
        "a student's training.",
        "",
        f"Commit {program_commit()}, {machine['platform']}, one thread each; this call took {minutes:.0f} min.",
        "",
    ]
    return "\n".join([*head, *lines, "", *failed]) + "\n"


def main() -> None:
    """Trains what is missing and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", default="", help="losses, separated by commas; default: all")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="TABLE.FIELD=VALUE")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    began, seeds = time.monotonic(), [int(seed) for seed in given.seeds.split(",")]
    losses = losses_of(teacher_recipe(given.recipe, seeds[0], given.overrides))
    wanted = given.only.split(",") if given.only else list(losses)
    teachers: dict[int, Run] = {}
    cells: dict[tuple[str, int], Run] = {}
    failed: list[str] = []
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(given.jobs, mp_context=spawn) as pool:
        waiting = {pool.submit(train_teacher, given.recipe, seed, given.overrides): seed for seed in seeds}
        students = {}
        for future in as_completed(waiting):
            seed = waiting[future]
            teachers[seed] = open_run(future.result())
            for name in wanted:
                cell = pool.submit(train_student, teachers[seed].folder, losses[name], given.overrides)
                students[cell] = (name, seed)
        for number, future in enumerate(as_completed(students), start=1):
            name, seed = students[future]
            try:
                cells[name, seed] = open_run(future.result())
                told = f"{100 * cells[name, seed].metrics('student')['test_accuracy']:.1f} %"
            except UserError as error:
                failed.append(f"{name}, seed {seed}: {error.message}")
                told = error.message
            minutes = (time.monotonic() - began) / 60
            print(f"{number} of {len(students)}, {minutes:.1f} min: {name}, seed {seed}: {told}", flush=True)
    lines = table(cells, teachers, seeds)
    command = " ".join(["python", *sys.argv])
    text = page(lines, command, seeds, (time.monotonic() - began) / 60, failed)
    print(text)
    if given.out:
        given.out.write_text(text)


if __name__ == "__main__":
    main()
