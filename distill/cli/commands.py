"""The commands. Thin: parse, call one function, print. torch is imported inside the commands that need it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from distill.cli.opened import found_folder, found_run, load, named_run, teacher_run
from distill.cli.output import print_json

if TYPE_CHECKING:
    from distill.report.runs import Run
    from distill.training.events import Listener

app = typer.Typer(
    name="distill",
    help="Knowledge distillation with learned labels, for image classification with timm.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="A TOML file; see recipes/.")]
Overrides = Annotated[
    list[str], typer.Option("--set", metavar="TABLE.FIELD=VALUE", help="Override a field of the recipe; repeatable.")
]
TeacherRuns = Annotated[
    list[str],
    typer.Option("--teacher", metavar="RUN", help="Run folder of a teacher, or its name; several are averaged."),
]
AnyTeacher = Annotated[
    str,
    typer.Option(
        "--teacher", metavar="RUN", help="A run folder or its name; timm:NAME, local-dir:FOLDER, FILE.safetensors."
    ),
]
ForRecipe = Annotated[
    Path | None,
    typer.Option("--recipe", metavar="RECIPE", help="For a teacher from elsewhere: data, views, student."),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")]
Curves = Annotated[bool, typer.Option("--tensorboard", help="Write curves to tensorboard/ in each run folder too.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout; progress goes to stderr.")]


@app.command()
def check(recipe: RecipeFile, overrides: Overrides = [], as_json: AsJson = False) -> None:  # noqa: B006
    """Validate a recipe and print the plan and the sizes; no training."""
    from distill.recipe.load import load_recipe

    loaded = load_recipe(recipe, overrides)
    from distill.stages.check import check_plan

    report = check_plan(loaded, str(recipe))
    if as_json:
        print_json(report.record())
    else:
        print(report.text())
    if report.problems:  # a failure's error, cure and exit code are part of the record
        raise typer.Exit(2)


@app.command()
def teacher(
    recipe: RecipeFile,
    overrides: Overrides = [],  # noqa: B006
    no_export: Annotated[bool, typer.Option("--no-export", help="Stop before the logits are written.")] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
    tensorboard: Curves = False,
) -> None:
    """Stage one: train a teacher, then export its logits."""
    loaded = load(recipe, overrides)
    from distill.stages.pipeline import run_teacher

    with _console(quiet, as_json, tensorboard) as listener:
        run = run_teacher(loaded, listener, export=not no_export)
    _report([run], quiet, as_json, [*_look(run), f"distill student --teacher {run.folder}"])


@app.command()
def export(
    teacher: AnyTeacher,
    recipe: ForRecipe = None,
    model: Annotated[str | None, typer.Option("--model", help="For a file of weights: timm's name of it.")] = None,
    overrides: Overrides = [],  # noqa: B006
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Stage two: write a teacher's logits to its store; one that was trained elsewhere gets a run folder first."""
    from distill.recipe.importing import import_recipe, is_elsewhere, refuse_for_a_run

    if is_elsewhere(teacher) and named_run(teacher) is None:
        to_import = import_recipe(teacher, recipe, overrides)
        from distill.stages.pipeline import run_imported

        with _console(quiet, as_json) as listener:
            run = run_imported(teacher, to_import, listener, model=model)
    else:
        refuse_for_a_run(teacher, recipe, model)
        run, its_recipe = teacher_run(teacher, overrides)
        from distill.stages.export import export_teacher

        with _console(quiet, as_json) as listener:
            export_teacher(run, its_recipe, listener)
    _report([run], quiet, as_json, [f"distill student --teacher {run.folder}"])


@app.command()
def student(
    teacher: TeacherRuns,
    model: Annotated[str | None, typer.Option("--model", help="A timm model or a CIFAR net.")] = None,
    loss: Annotated[str | None, typer.Option("--loss", help="`distill list losses` names them.")] = None,
    temperature: Annotated[float | None, typer.Option("--temperature", "-T", help="Temperature.")] = None,
    overrides: Overrides = [],  # noqa: B006
    for_use: Annotated[
        Literal["onnx", "torch-export"] | None, typer.Option("--export", help="Write the student for other programs.")
    ] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
    tensorboard: Curves = False,
) -> None:
    """Stage three: train a student on a teacher's store. Needs no recipe: the run folder holds one."""
    short = {"model": model, "loss.name": loss, "loss.temperature": temperature}
    given = [f"student.{field}={value}" for field, value in short.items() if value is not None]
    if more := [str(found_run(name)) for name in teacher[1:]]:
        given.append(f"student.more_teachers={json.dumps(more)}")
    run, recipe = teacher_run(teacher[0], [*given, *overrides])
    from distill.stages.exported import export_student, require
    from distill.stages.student import train_student

    if for_use is not None:
        require(for_use)
    with _console(quiet, as_json, tensorboard) as listener:
        trained = train_student(run, recipe, listener)
    exported = export_student(trained, for_use) if for_use is not None else None
    _report([trained], quiet, as_json, [f"distill verify {run.folder}"])
    if exported is not None and not quiet and not as_json:
        print(exported)


@app.command()
def run(
    recipe: RecipeFile,
    overrides: Overrides = [],  # noqa: B006
    quiet: Quiet = False,
    as_json: AsJson = False,
    tensorboard: Curves = False,
) -> None:
    """All stages; what is already on disk is not done again."""
    loaded = load(recipe, overrides)
    from distill.stages.pipeline import run_pipeline

    with _console(quiet, as_json, tensorboard) as listener:
        runs = run_pipeline(loaded, listener)
    _report(list(runs), quiet, as_json, [*_look(runs[0]), f"distill verify {runs[0].folder}"])


@app.command()
def compare(
    paths: Annotated[list[Path], typer.Argument(metavar="RECIPE", help="A TOML file; with --report-only: folders.")],
    overrides: Overrides = [],  # noqa: B006
    jobs: Annotated[int, typer.Option("--jobs", min=1, max=256, help="Cells side by side, with threads divided.")] = 1,
    budget: Annotated[
        str | None, typer.Option("--budget", metavar="TIME", help="90s, 30m, 2h: start no cell that would end later.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan with its cost; run nothing.")] = False,
    list_cells: Annotated[bool, typer.Option("--list-cells", help="Print a line for each cell; run nothing.")] = False,
    cell: Annotated[int | None, typer.Option("--cell", min=0, metavar="K", help="Run this cell only.")] = None,
    report_only: Annotated[
        bool, typer.Option("--report-only", help="Read runs or results.json; write the tables.")
    ] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
    tensorboard: Curves = False,
) -> None:
    """Train the teachers of [compare], students of each, and print the table with intervals and verdicts."""
    from distill.cli import comparing

    comparing.refuse_together(dry_run=dry_run, list_cells=list_cells, cell=cell is not None, report_only=report_only)
    of_several = {"jobs": jobs > 1, "budget": budget}
    if report_only:
        why = "runs nothing and reads the recipes in the folders"
        comparing.refuse_beside("--report-only", why, set=overrides, **of_several, tensorboard=tensorboard)
        comparing.report(paths, quiet, as_json)
        return
    if list_cells:
        comparing.refuse_beside("--list-cells", "names every cell and runs none", **of_several, tensorboard=tensorboard)
    if cell is not None:
        comparing.refuse_beside("--cell", "runs one cell to its end", **of_several)
    asked = comparing.Asked(jobs, comparing.seconds(budget), quiet, as_json, curves=tensorboard)
    loaded = load(comparing.one_recipe(paths), overrides, comparing=True)
    with _console(quiet, as_json, tensorboard) as listener:
        if dry_run or list_cells:
            tell = comparing.plan(loaded, listener, asked, every_cell=list_cells)
        elif cell is None:
            tell = comparing.compare(loaded, listener, asked)
        else:
            tell = comparing.one_cell(loaded, listener, asked, cell)
    tell()  # when the progress display is gone


@app.command()
def bench(
    recipe: RecipeFile,
    overrides: Overrides = [],  # noqa: B006
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="How often each variant is timed.")] = 9,
    as_json: AsJson = False,
) -> None:
    """Cost of the bilevel step: each estimator and meta source against a plain step."""
    loaded = load(recipe, overrides)
    from distill.stages.bench import bench as measure

    with _console(False, as_json) as listener:
        report = measure(loaded, listener, rounds=rounds)
    if as_json:
        print_json(report.record())
    else:
        print(report.text())


@app.command()
def labels(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Run folder of a teacher, or its name.")],
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Where the files go; RUN/figures.")] = None,
    top: Annotated[int, typer.Option("--top", min=1, max=400, help="Rows of a table, images of a sheet.")] = 24,
    against: Annotated[
        str | None, typer.Option("--against", metavar="RUN", help="A teacher of another seed: its confusions.")
    ] = None,
    overrides: Overrides = [],  # noqa: B006
    as_json: AsJson = False,
) -> None:
    """Look at learned labels: confused classes, suspected label errors (tables, pictures, CSV)."""
    found, recipe = teacher_run(run, overrides)
    other = None if against is None else teacher_run(against, [])[0]
    from distill.stages.labels import look_at_labels

    with _console(False, as_json) as listener:
        report = look_at_labels(found, recipe, listener, out=out, top=top, against=other)
    if as_json:
        print_json(report.record())
    else:
        from distill.report.console import console, print_labels

        print_labels(console(), report)


@app.command()
def verify(
    folder: Annotated[
        str, typer.Argument(help="A run folder or its name, a folder of runs, a store or learned labels.")
    ],
    again: Annotated[
        int | None,
        typer.Option("--recompute", min=1, metavar="ROWS", help="Of a run: make so many rows again and compare."),
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Of the draw of these rows; by default 0.")] = None,
) -> None:
    """Check every digest of a run or a store, and whether its logits are the teacher's."""
    if seed is not None and again is None:
        raise typer.BadParameter("found --seed without --recompute, whose rows it draws; add that, or leave it out")
    from distill.stages.verify import recompute_run, verify_path

    path = found_folder(folder)
    checked = verify_path(path, print)
    print(f"{path}: sound ({checked} files)" if checked else f"{path}: nothing in it is finished, nothing to check")
    if again is not None:
        print(f"{path}: {recompute_run(path, again, seed or 0)}")


@app.command()
def calibrate(
    folder: Annotated[str, typer.Argument(metavar="RUN", help="A run folder or its name, or a folder of runs.")],
    as_json: AsJson = False,
) -> None:
    """NLL and ECE after temperature scaling, of teachers and students; fitted where a run was finished without."""
    from distill.stages.calibrate import calibrate as measure

    with _console(False, as_json) as listener:
        found = measure(found_folder(folder), listener)
    if as_json:
        print_json({"networks": [each.record() for each in found]})
    else:
        from distill.report.console import console, print_scaling

        print_scaling(console(), [each.record() for each in found])


@app.command("list")
def list_(
    kind: Annotated[Literal["models", "losses", "labels", "data", "fields"], typer.Argument(help="What to list.")],
    pattern: Annotated[str, typer.Argument(help="Of names, such as '*resnet*' or 'student.*'.")] = "*",
) -> None:
    """List what a recipe can name."""
    from distill.stages.listing import listing

    for line in listing(kind, pattern):
        print(line)


@contextmanager
def _console(quiet: bool, as_json: bool, tensorboard: bool = False) -> Iterator[Listener]:
    from distill.training.console import choose_mode, console_listener
    from distill.training.events import fan_out
    from distill.training.tensorboard import tensorboard_listener

    stream = sys.stderr if as_json else sys.stdout
    with ExitStack() as stack:
        listeners = [stack.enter_context(tensorboard_listener())] if tensorboard else []
        listeners.append(stack.enter_context(console_listener(choose_mode(stream, quiet), stream)))
        yield fan_out(*listeners)


def _look(teacher: Run) -> list[str]:
    """The command that shows a teacher's labels, where it has learned some."""
    from distill.store.manifest import LABELS_FILE

    learned = LABELS_FILE in teacher.record.stages["teacher"].files
    return [f"distill labels {teacher.folder}"] if learned else []


def _report(runs: list[Run], quiet: bool, as_json: bool, next_commands: list[str]) -> None:
    if as_json:
        print_json({"runs": [{"folder": str(run.folder), **run.record.model_dump(mode="json")} for run in runs]})
    elif not quiet:
        from distill.report.console import console, print_runs

        print_runs(console(), runs, next_commands)
