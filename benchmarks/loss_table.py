"""One student by every loss of the catalogue, with several seeds: which loss does what, on one pair of networks.

A seed decides the split, the teacher, the student and the order; each loss has its own settled weights and temperature
(`distill list losses`), and nothing is tuned. Validation chooses the best epoch, test reports. Intervals are Student's
t over the seeds; differences are paired by seed. Cells that are done are not run again, so the command may be stopped
and given again: run folders remember them here, and --results anywhere.

Run: python benchmarks/loss_table.py recipes/fashion.toml --results docs/losses.json --out docs/losses.md
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import fmean, stdev

from scipy import stats

from distill.errors import UserError
from distill.recipe.digest import digest
from distill.recipe.load import load_recipe, override, override_run
from distill.recipe.losses import CATALOGUE, in_use
from distill.recipe.schema import Recipe
from distill.report.runs import Run, host, open_run
from distill.training.events import Event

REFERENCES = ("kd", "ce")
VARIANTS = {"lskd": ("student.loss.name=kd", "student.loss.standardise=true")}


@dataclass(frozen=True)
class Cell:
    """A student, or the teacher, at one seed; what a row of the table is made of, and what made it."""

    loss: str  # "teacher" for a teacher
    seed: int
    settings: str
    metrics: dict[str, float]
    seconds: float
    commit: str
    inputs: str  # digest of recipe, seed and loss: a cell of other inputs is run again


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
    names = [str(name) for name in CATALOGUE if name != "labels" or learned]
    return {**{name: (f"student.loss.name={name}",) for name in names}, **VARIANTS}


def train_teacher(path: Path, seed: int, overrides: Sequence[str]) -> Cell:
    """The teacher and its store; what is on disk is not made again."""
    from distill.stages.pipeline import run_teacher

    recipe = teacher_recipe(path, seed, overrides)
    return as_cell(run_teacher(recipe, nothing), "teacher", "teacher", "", inputs_of(recipe, "teacher"))


def train_student(path: Path, seed: int, name: str, loss: Sequence[str], overrides: Sequence[str]) -> Cell:
    """A student of the teacher of that seed."""
    from distill.stages.student import train_student as train

    recipe = teacher_recipe(path, seed, overrides)
    teacher = open_run(Path(recipe.checkpoints) / recipe.name)
    run = train(teacher, override_run(recipe, loss), nothing)
    return as_cell(run, "student", name, settings(run), inputs_of(override_run(recipe, loss), name))


def inputs_of(recipe: Recipe, name: str) -> str:
    """Of all that the recipe sets and that decides a cell. What it leaves alone is left out: a program that has learned
    one more field would otherwise run hours of cells again that it does not touch."""
    set_here = recipe.model_dump(mode="json", exclude={"name", "checkpoints"}, exclude_defaults=True)
    return digest({"loss": name, "recipe": set_here})


def as_cell(run: Run, stage: str, name: str, told: str, inputs: str) -> Cell:
    """What is kept of a run."""
    record = run.record.stages[stage]
    return Cell(name, run.record.seed, told, dict(record.metrics), record.seconds, record.commit, inputs)


def table(cells: Sequence[Cell], seeds: Sequence[int]) -> list[str]:
    """Markdown: a row a loss, the best mean accuracy first."""
    rows: dict[str, dict[int, Cell]] = {}
    for cell in cells:
        if cell.seed in seeds:
            rows.setdefault(cell.loss, {})[cell.seed] = cell
    lines = [
        "| loss | settings | seeds | accuracy % | best epoch % | NLL | ECE % | agreement % | less kd | less ce | s |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    order = sorted(rows, key=lambda name: (name != "teacher", -fmean(values(rows[name], "test_accuracy", 1))))
    for name in order:
        found = rows[name]
        less = [
            difference(found, rows.get(other, {})) if name not in (other, "teacher") else "" for other in REFERENCES
        ]
        columns = (
            interval(values(found, "test_accuracy", 100), 1),
            interval(values(found, "best_test_accuracy", 100), 1),
            interval(values(found, "test_nll", 1), 3),
            interval(values(found, "test_ece", 100), 1),
            interval(values(found, "agreement", 100), 1),
            *less,
            f"{fmean(cell.seconds for cell in found.values()):.0f}",
        )
        told = next(iter(found.values())).settings
        lines.append(f"| {name} | {told} | {len(found)} | {' | '.join(columns)} |")
    return lines


def settings(run: Run) -> str:
    """`.1 CE + .9 kd, T 4`."""
    loss = run.recipe.student.loss
    parts = [f"{loss.hard_weight:g} CE"] if loss.hard_weight else []
    for name, term, weight in in_use(loss):
        temperature = "" if term.temperature is None else f" (T {term.temperature:g})"
        parts.append(f"{weight:g} {name}{temperature}")
    return " + ".join(parts)


def values(cells: Mapping[int, Cell], metric: str, scale: float) -> list[float]:
    """Over the seeds."""
    return [scale * cells[seed].metrics[metric] for seed in sorted(cells) if metric in cells[seed].metrics]


def difference(cells: Mapping[int, Cell], others: Mapping[int, Cell]) -> str:
    """In accuracy, paired by seed."""
    both = sorted(cells.keys() & others.keys())
    pairs = ((cells[seed].metrics["test_accuracy"], others[seed].metrics["test_accuracy"]) for seed in both)
    return interval([100 * (one - other) for one, other in pairs], 1, sign="+")


def interval(values: Sequence[float], digits: int, sign: str = "") -> str:
    """`88.4 ± 0.3`; no interval for one value."""
    if not values:
        return ""
    mean = f"{fmean(values):{sign}.{digits}f}"
    if len(values) < 2:
        return mean
    half = stats.t.ppf(0.975, len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return f"{mean} ± {half:.{digits}f}"


def page(
    cells: Sequence[Cell], recipe: Path, seeds: Sequence[int], overrides: Sequence[str], failed: Sequence[str]
) -> str:
    """The document."""
    machine = host()
    given = "".join(f" --set {override}" for override in overrides)
    commits = ", ".join(sorted({cell.commit for cell in cells}))
    head = [
        f"# One pair of networks, every loss: {recipe}",
        "",
        f"Made by `python benchmarks/loss_table.py {recipe} --seeds {','.join(map(str, seeds))}{given}`. Test part of "
        "the recipe's data, mean and 95 % interval (Student's t) over the seeds; each seed has its own split, teacher "
        "and student. Accuracy, NLL and ECE after the last epoch; *best epoch* is the test accuracy of the epoch that "
        "validation chose; agreement with the teacher is that of the last epoch, on the training views. Differences in "
        "accuracy are paired by seed. Each loss has its own default settings (`distill list losses`), kd with the "
        "recipe's temperature; none was tuned. "
        "s: seconds of a training.",
        "",
        f"Commits {commits}; {machine['platform']}, one thread a student.",
        "",
    ]
    return "\n".join([*head, *table(cells, seeds), "", *failed]).rstrip() + "\n"


def read(path: Path | None) -> dict[tuple[str, int], Cell]:
    """Cells that were run before, wherever."""
    if path is None or not path.exists():
        return {}
    cells = [Cell(**entry) for entry in json.loads(path.read_text())]
    return {(cell.loss, cell.seed): cell for cell in cells}


def write(path: Path | None, cells: Mapping[tuple[str, int], Cell]) -> None:
    """All of them, in one order."""
    if path is not None:
        entries = [asdict(cells[key]) for key in sorted(cells)]
        path.write_text(json.dumps(entries, indent=1, sort_keys=True) + "\n")


def main() -> None:
    """Trains what is missing and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", default="", help="losses, separated by commas; default: all")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="TABLE.FIELD=VALUE")
    parser.add_argument("--results", type=Path, help="JSON of the cells: those in it are not run again")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    seeds = [int(seed) for seed in given.seeds.split(",")]
    losses = losses_of(teacher_recipe(given.recipe, seeds[0], given.overrides))
    wanted = given.only.split(",") if given.only else list(losses)
    cells = read(given.results)
    failed = run(given, cells, seeds, {name: losses[name] for name in wanted})
    text = page(list(cells.values()), given.recipe, seeds, given.overrides, failed)
    print(text)
    if given.out:
        given.out.write_text(text)


def run(
    given: argparse.Namespace,
    cells: dict[tuple[str, int], Cell],
    seeds: Sequence[int],
    losses: Mapping[str, Sequence[str]],
) -> list[str]:
    """Trains what `cells` lacks, teachers first, and keeps each cell as soon as it is there; what failed, and why."""
    failed: list[str] = []
    began = time.monotonic()
    recipes = {seed: teacher_recipe(given.recipe, seed, given.overrides) for seed in seeds}
    wanted = {
        (n, seed): inputs_of(override_run(recipes[seed], loss), n) for seed in seeds for n, loss in losses.items()
    }
    missing = [key for key, inputs in wanted.items() if key not in cells or cells[key].inputs != inputs]
    with ProcessPoolExecutor(given.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        for cell in pool.map(
            partial(train_teacher, given.recipe, overrides=given.overrides), {s: 0 for _, s in missing}
        ):
            cells[cell.loss, cell.seed] = cell
            write(given.results, cells)
        waiting = {
            pool.submit(train_student, given.recipe, seed, name, losses[name], given.overrides): (name, seed)
            for name, seed in missing
        }
        for number, future in enumerate(as_completed(waiting), start=1):
            name, seed = waiting[future]
            try:
                cells[name, seed] = future.result()
                told = f"{100 * cells[name, seed].metrics['test_accuracy']:.1f} %"
            except UserError as error:
                failed.append(f"{name}, seed {seed}: {error.message}")
                told = error.message
            write(given.results, cells)
            minutes = (time.monotonic() - began) / 60
            print(f"{number} of {len(waiting)}, {minutes:.1f} min: {name}, seed {seed}: {told}", flush=True)
    return failed


if __name__ == "__main__":
    main()
