"""Comparisons run for real, on tiny recipes: arms, cells by themselves and side by side, failures, reports."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from distill.data.loader import open_data
from distill.errors import DataError, RunError
from distill.recipe.digest import another_student
from distill.recipe.grid import Cell, grid
from distill.recipe.load import dump_recipe, load_recipe, override
from distill.recipe.schema import Recipe
from distill.report.comparison_folder import read_comparison, write_plan
from distill.report.lock import locked
from distill.report.runs import open_run
from distill.stages import cells as cells_module
from distill.stages.compare import Compared, compare, run_one
from distill.stages.grid import finished_cells
from distill.stages.plan import plan_grid
from distill.stages.run_grid import Manner
from distill.stages.teacher import train_teacher
from distill.training.events import Event, Notice, StageStarted
from distill.training.interrupt import Interrupted
from tests.locks import busy

SHORT = ("teacher.epochs=1", "student.epochs=1", "teacher.labels.rule=onehot", "data.train=100", "views.count=1")
ARMS = (*SHORT, "compare.students=false", "compare.seeds=0,1")


class Told:
    """What a comparison told."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    @property
    def notices(self) -> list[str]:
        return [event.message for event in self.events if isinstance(event, Notice)]

    @property
    def trained(self) -> int:
        return sum(isinstance(event, StageStarted) for event in self.events)


@pytest.fixture
def arms(tiny: Callable[..., Recipe]) -> Callable[..., Recipe]:
    """Teachers alone: onehot, class labels, and half of the images; at two seeds."""

    def make(*more: str) -> Recipe:
        recipe = tiny(*ARMS)
        table = {"plain": (), "class": ("teacher.labels.rule=class",), "small": ("data.train=50",)}
        own = recipe.compare.model_copy(update={"arms": table, "teachers": ("onehot", "smoothing", "instance")})
        return override(recipe.model_copy(update={"compare": own}), more)

    return make


def weights(folder: Path) -> dict[str, bytes]:
    """Every network and table of labels under a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.safetensors"))}


def test_arms_of_teachers(arms: Callable[..., Recipe], tmp_path: Path) -> None:
    told = Told()
    found = compare(arms(), told)
    assert (found.exit_code, found.picture) == (0, None)
    assert told.trained == 6
    assert told.notices[0] == "cell 0, 1 of 6: teacher plain, seed 0"
    assert told.notices[-1].startswith("cell 5, 6 of 6: teacher small, seed 1; about ")
    folder = tmp_path / "tiny-compare"
    assert found.folder == folder
    assert {path.name for path in folder.glob("*-s*")} == {
        f"{a}-s{s}" for a in ("plain", "class", "small") for s in (0, 1)
    }
    assert not list(folder.glob("*/logits"))
    results = json.loads((folder / "results.json").read_text())
    assert [cell["key"] for cell in results["cells"]][:3] == ["plain-s0", "class-s0", "small-s0"]
    for cell in results["cells"]:
        assert {"digest", "commit", "machine", "versions", "seconds", "metrics"} <= cell.keys()
        assert "best_test_accuracy" in cell["metrics"]
    assert len(results["differences"]) == 6 * 3
    assert len(results["verdicts"]) == 3
    assert "| small | teacher | 2 |" in (folder / "table.md").read_text()

    again = Told()
    assert compare(arms(), again).comparison.record() == found.comparison.record()
    assert again.trained == 0
    assert again.notices == ["6 of 6 cells are finished already"]
    more = Told()
    compare(arms("compare.seeds=0,1,2"), more)
    assert more.trained == 3


def test_a_comparison_is_found_where_it_was_moved_to(arms: Callable[..., Recipe], tmp_path: Path) -> None:
    found = compare(arms("compare.seeds=0"), Told())
    moved = Path(shutil.move(found.folder, tmp_path / "elsewhere"))
    assert read_comparison([moved]).record() == found.comparison.record()


def test_changed_data_are_other_cells(arms: Callable[..., Recipe]) -> None:
    """Finished is what has the same digest, not what has the same name."""
    recipe = arms("compare.seeds=0")
    compare(recipe, Told())
    assert len(finished_cells(grid(recipe), Told())) == 3
    changed = override(recipe, ["data.noise.rate=0.4"])
    assert finished_cells(grid(changed), Told()) == {}


def test_a_changed_recipe_overwrites_no_comparison(arms: Callable[..., Recipe]) -> None:
    found = compare(arms(), Told())
    before = {path: path.read_bytes() for path in found.folder.rglob("*") if path.is_file()}
    changed = override(arms(), ["data.noise.rate=0.4"])
    told = "s0: holds a teacher of another recipe: data.noise.rate: 0.3 -> 0.4; and so do 5 more of the comparison"
    for run in (compare, partial(run_one, number=0), plan_grid):
        with pytest.raises(RunError, match=told):
            run(changed, listener=Told())
    assert {path: path.read_bytes() for path in found.folder.rglob("*") if path.is_file()} == before


def test_no_other_comparison_is_reported_in_ones_place(arms: Callable[..., Recipe]) -> None:
    """Another one of that name is begun while its cells are run."""
    recipe = arms("compare.seeds=0")

    def meanwhile(event: Event) -> None:
        if isinstance(event, StageStarted) and "small" in event.run:
            write_plan(arms("compare.seeds=1"), Path(event.run).parent)

    with pytest.raises(RunError, match=r"comparison\.toml: found another recipe than the one whose cells were run"):
        compare(recipe, meanwhile)
    again = Told()
    assert compare(recipe, again).exit_code == 0
    assert again.trained == 0


def test_no_teacher_is_trained_into_a_comparison(arms: Callable[..., Recipe]) -> None:
    found = compare(arms("compare.seeds=0"), Told())
    with pytest.raises(RunError, match=r"tiny-compare: holds a comparison \(comparison\.toml\)"):
        train_teacher(override(arms(), ["name=tiny-compare"]), Told())
    assert not (found.folder / "run.json").exists()


def test_a_damaged_run_fails_its_own_cell_alone(arms: Callable[..., Recipe]) -> None:
    found = compare(arms("compare.seeds=0"), Told())
    (found.folder / found.comparison.results[0].run / "run.json").write_text("{")
    again = compare(arms("compare.seeds=0"), Told())
    assert [result.state for result in again.comparison.results] == ["failed", "finished", "finished"]


def test_students_outlive_the_damage_of_their_teacher(finished: Compared, tiny: Callable[..., Recipe]) -> None:
    """What they say is in their own runs; the numbers that are in results.json alone by then are set aside."""
    before = (finished.folder / "results.json").read_bytes()
    record = finished.folder / "onehot-s0/run.json"
    whole = record.read_bytes()
    record.write_bytes(whole[:400])
    found = compare(finished.comparison.recipe, Told())
    assert found.exit_code == 2
    assert {r.cell.key: r.state for r in found.comparison.results} == {
        "onehot-s0": "failed", "onehot-s0-kd": "finished", "onehot-s1": "finished", "onehot-s1-kd": "finished"
    }  # fmt: skip
    assert [path.read_bytes() for path in finished.folder.glob("results-*.json")] == [before]
    record.write_bytes(whole)
    assert compare(finished.comparison.recipe, Told()).comparison.record() == finished.comparison.record()


def test_numbers_of_another_recipe_are_not_reported(arms: Callable[..., Recipe]) -> None:
    """Such as an earlier version left where it was stopped early."""
    found = compare(arms("compare.seeds=0"), Told())
    write_plan(override(found.comparison.recipe, ["teacher.epochs=30"]), found.folder)
    results = read_comparison([found.folder]).results
    assert {each.state for each in results} == {"missing"}
    assert all(each.reason.endswith("is of another recipe than the comparison's") for each in results)


def test_a_finished_cell_stays_so_while_another_process_is_at_work_there(arms: Callable[..., Recipe]) -> None:
    recipe = arms("compare.seeds=0")
    run = run_one(recipe, 0, Told())
    with locked(run.folder), pytest.raises(RunError, match="another process is at work"):
        run_one(recipe, 0, Told())
    assert read_comparison([run.folder.parent]).results[0].state == "finished"


def test_a_student_s_cell_beside_its_teacher_s_is_told_to_wait(tiny: Callable[..., Recipe]) -> None:
    """`--cell 0` by itself would be refused, as it is being run."""
    recipe = tiny(*SHORT, "compare.teachers=onehot")
    folder = Path(recipe.checkpoints) / "tiny-compare/onehot-s0"
    folder.mkdir(parents=True)
    with busy(folder), pytest.raises(RunError, match="cell 0, is not finished") as beside:
        run_one(recipe, 1, Told())
    assert beside.value.cure.startswith("wait for the process that is at work there; ")
    assert beside.value.cure.endswith("run that first: --cell 0")


def test_cells_by_themselves_are_those_of_the_grid(tiny: Callable[..., Recipe], tmp_path: Path) -> None:
    """To the bit, and the comparison then finds them all finished."""
    fields = (*SHORT, "compare.temperatures=1,4", "compare.teachers=onehot", "compare.controls=true")
    whole = tiny(*fields, f'checkpoints="{tmp_path}/whole"')
    apart = tiny(*fields, f'checkpoints="{tmp_path}/apart"')
    first = compare(whole, Told())
    assert [row.name for row in first.comparison.rows if row.control] == [
        "student alone", "smoothing alone", "untrained", "untrained"
    ]  # fmt: skip
    with pytest.raises(RunError, match="cell 1 is a student of onehot, kd, T 1, seed 0, whose teacher, cell 0, is not"):
        run_one(apart, 1, Told())
    with pytest.raises(RunError, match="found cell 99, expected one from 0 to 7"):
        run_one(apart, 99, Told())
    for number in (5, 0, 6, 1, 2, 3, 4, 7):
        run_one(apart, number, Told())
    told = Told()
    second = compare(apart, told)
    assert told.trained == 0
    assert weights(tmp_path / "whole") == weights(tmp_path / "apart")
    for one, other in zip(first.comparison.results, second.comparison.results, strict=True):
        assert dict(one.metrics) == dict(other.metrics)
        assert one.provenance["digest"] == other.provenance["digest"]


def test_cells_beside_each_other_are_those_of_one_process(tiny: Callable[..., Recipe], tmp_path: Path) -> None:
    fields = (*SHORT, "compare.teachers=onehot,class", "compare.temperatures=1,4")
    one = tiny(*fields, f'checkpoints="{tmp_path}/one"')
    two = tiny(*fields, f'checkpoints="{tmp_path}/two"')
    told = Told()
    found = compare(two, told, Manner(jobs=2))
    assert found.exit_code == 0, told.notices
    assert told.notices[0] == "2 cells at a time, 1 thread each"
    assert len(told.notices) == 1 + 6
    assert told.notices[-1].startswith("6 of 6: student of ")
    assert "validation" in told.notices[1]
    compare(one, Told())
    assert weights(tmp_path / "one") == weights(tmp_path / "two")
    machines = {result.provenance["machine"]["device"] for result in found.comparison.results}
    assert machines == {"cpu: 1 threads"}


def test_cells_beside_each_other_are_warned_of_too(tiny: Callable[..., Recipe]) -> None:
    """What all of them are warned of is said once, and with the cell that said it first; other lines are not shown."""
    recipe = tiny(*ARMS, "data.test=5", "compare.teachers=onehot,class", "teacher.labels.step=1e6")
    told = Told()
    assert compare(recipe, told, Manner(jobs=2)).exit_code == 0, told.notices
    warnings = [line for line in told.notices if "no test image" in line]
    assert len(warnings) == 1
    assert warnings[0].startswith("teacher ")
    assert ", seed 0: note: [data]: " in warnings[0]
    assert any("teacher class, seed" in line and "labels run away" in line for line in told.notices)
    assert not any("label rows" in line for line in told.notices)


def test_students_at_two_weights(tiny: Callable[..., Recipe]) -> None:
    """Each learns with its own, and the one that is kd's own is the student that a grid without weights has."""
    recipe = tiny(*SHORT, "compare.teachers=onehot", "compare.controls=true", "compare.weights=0.5,0.9")
    assert "student of untrained, kd, w 0.9: 1 cell, 0 finished" in plan_grid(recipe, Told()).text()
    found = compare(recipe, Told())
    assert found.exit_code == 0
    runs = {result.cell.key: open_run(found.folder / result.run) for result in found.comparison.results}
    losses = {key: run.recipe.student.loss for key, run in runs.items() if key.startswith("onehot-s0-kd")}
    assert {key: (loss.soft_weight, loss.hard_weight) for key, loss in losses.items()} == {
        "onehot-s0-kd-w0.5": (0.5, 0.5), "onehot-s0-kd-w0.9": (0.9, 0.1)
    }  # fmt: skip
    assert {loss.temperature for loss in losses.values()} == {4.0}
    metrics = {key: runs[key].metrics("student") for key in losses}
    for key, weight in (("onehot-s0-kd-w0.5", 0.5), ("onehot-s0-kd-w0.9", 0.9)):
        mixed = (1 - weight) * metrics[key]["hard"] + weight * metrics[key]["kd"]
        assert metrics[key]["loss"] == pytest.approx(mixed, rel=1e-5)
    chosen = found.comparison.chosen("onehot")
    assert chosen is not None
    best = max(each["validation_accuracy"] for each in metrics.values())
    assert metrics[f"onehot-s0-kd-w{chosen.weight}"]["validation_accuracy"] == best
    assert read_comparison([found.folder]).record() == found.comparison.record()
    assert json.loads((found.folder / "results.json").read_text())["chosen"]["onehot"]["weight"] == chosen.weight
    assert f"| onehot * | kd | - | {chosen.weight} | 1 |" in (found.folder / "table.md").read_text()

    told = Told()
    without = compare(override(recipe, ["compare.weights="]), told)
    assert told.trained == 0
    (student,) = (result for result in without.comparison.results if result.cell.key == "onehot-s0-kd")
    assert dict(student.metrics) == metrics["onehot-s0-kd-w0.9"]


def test_a_failing_cell_stops_no_other(arms: Callable[..., Recipe]) -> None:
    """A learning rate that no network survives: the user's to mend, hence exit code 2."""
    recipe = arms("compare.seeds=0", 'compare.arms.bad=["teacher.optimizer.lr=1e30"]')
    told = Told()
    found = compare(recipe, told)
    assert found.exit_code == 2
    states = {result.cell.key: result.state for result in found.comparison.results}
    assert states == {"plain-s0": "finished", "class-s0": "finished", "small-s0": "finished", "bad-s0": "failed"}
    assert any(notice.startswith("failed: cell 3, teacher bad, seed 0, after") for notice in told.notices)
    text = (found.folder / "table.md").read_text()
    assert "lower teacher.optimizer.lr" in text
    assert "| bad | teacher | 0 of 1 | - |" in text


def test_a_finished_cell_that_is_lost_again_is_no_success(arms: Callable[..., Recipe]) -> None:
    """Its run is removed, by whomever, while a later one is trained."""

    def removes(event: Event) -> None:
        if isinstance(event, StageStarted) and "small" in event.run:
            shutil.rmtree(Path(event.run).parent / "plain-s0")

    found = compare(arms("compare.seeds=0"), removes)
    assert [result.state for result in found.comparison.results] == ["missing", "finished", "finished"]
    assert found.exit_code == 2


def test_a_picture_that_cannot_be_drawn_costs_no_table(arms: Callable[..., Recipe]) -> None:
    found = compare(arms("compare.seeds=0"), Told())
    (found.folder / "class-s0/labels/labels.safetensors").write_bytes(b"")
    told = Told()
    again = compare(arms("compare.seeds=0"), told)
    assert again.comparison.record() == found.comparison.record()
    assert (again.exit_code, again.picture) == (2, None)
    assert "no picture of suspected label errors: " in told.notices[-1]
    assert "labels.safetensors: has 0 bytes" in told.notices[-1]


def test_a_fault_of_ours_is_told_with_its_traceback(
    arms: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = cells_module._trained

    def trained(cell: Cell, *given: Any) -> Any:
        if cell.arm == "class":
            raise MemoryError("no room for 3 TiB")
        return real(cell, *given)

    monkeypatch.setattr(cells_module, "_trained", trained)
    recipe = arms("compare.seeds=0")
    found = compare(recipe, Told())
    assert found.exit_code == 1
    record = json.loads((found.folder / "cells/class-s0.json").read_text())
    assert record["reason"] == "MemoryError: no room for 3 TiB"
    assert "in trained" in record["traceback"]
    monkeypatch.undo()
    assert compare(recipe, Told()).exit_code == 0


def test_students_of_a_failed_teacher_are_not_tried(tiny: Callable[..., Recipe]) -> None:
    arms = 'compare.arms.bad=["teacher.optimizer.lr=1e30"]'
    recipe = tiny(*SHORT, "compare.teachers=onehot,smoothing,instance", arms, "compare.temperatures=1,4")
    found = compare(recipe, Told())
    assert [(r.state, r.reason[:20]) for r in found.comparison.results][1:] == [("failed", "its teacher, cell 0,")] * 2
    assert found.example is None


def test_missing_data_are_said_before_the_first_cell(tiny: Callable[..., Recipe], tmp_path: Path) -> None:
    recipe = tiny(*ARMS, "data.noise.kind=none", "data.noise.rate=0", "data.noise.redraw=all", "data.source=cifar10")
    recipe = override(recipe, [f'data.root="{tmp_path}/nowhere"'])
    with pytest.raises(DataError, match="nowhere"):
        compare(recipe, Told())


def test_an_interrupted_comparison_goes_on(arms: Callable[..., Recipe], tmp_path: Path) -> None:
    """Stopped in its second cell; the bits are those of one that was not."""

    def stops(event: Event) -> None:
        if isinstance(event, StageStarted) and "class" in event.run:
            raise Interrupted("teacher", "by the test")

    recipe = arms("compare.seeds=0", f'checkpoints="{tmp_path}/stopped"')
    with pytest.raises(Interrupted):
        compare(recipe, stops)
    assert (tmp_path / "stopped/tiny-compare/cells/plain-s0.json").exists()
    assert not (tmp_path / "stopped/tiny-compare/cells/class-s0.json").exists()
    told = Told()
    compare(recipe, told)
    assert told.trained == 2
    compare(override(recipe, [f'checkpoints="{tmp_path}/whole"']), Told())
    assert weights(tmp_path / "stopped") == weights(tmp_path / "whole")


def test_a_budget_says_what_it_left_out(arms: Callable[..., Recipe]) -> None:
    told = Told()
    found = compare(arms(), told, Manner(budget=1e-9))
    assert [result.state for result in found.comparison.results] == ["missing"] * 6
    assert told.notices == ["budget: 6 cells left out; the same command goes on with them"]
    assert found.exit_code == 0


def test_a_plan_writes_nothing(arms: Callable[..., Recipe], tmp_path: Path) -> None:
    plan = plan_grid(arms(), Told())
    assert plan.text().startswith("tiny: 6 cells, 6 teachers and 0 students; 0 finished")
    assert list(tmp_path.iterdir()) == []


_LIGHT = """
import sys
from distill.cli.commands import app
sys.argv = ["distill", "compare", "--report-only", *sys.argv[1:]]
app(standalone_mode=False)
sys.exit(", ".join({"torch", "torchvision", "timm"} & set(sys.modules)) or 0)
"""


@pytest.fixture
def finished(tiny: Callable[..., Recipe]) -> Compared:
    return compare(tiny(*SHORT, "compare.teachers=onehot", "compare.seeds=0,1"), Told())


def test_a_report_needs_no_torch(finished: Compared) -> None:
    before = {name: (finished.folder / name).read_bytes() for name in ("results.json", "table.md", "table.csv")}
    for name in before:
        (finished.folder / name).unlink()
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", _LIGHT, str(finished.folder)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "student, T 4" in done.stdout
    assert {name: (finished.folder / name).read_bytes() for name in before} == before


def test_numbers_of_another_student_are_not_reported(finished: Compared) -> None:
    """A report of what a changed recipe's comparison has so far: the teachers stay, the students are other ones."""
    recipe = load_recipe(finished.folder / "comparison.toml")
    for field in (
        "student.model=resnet14",
        "student.epochs=2",
        "student.optimizer.lr=0.01",
        "student.loss.temperature=2",
    ):
        write_plan(override(recipe, [field]), finished.folder)
        found = {result.cell.key: result for result in read_comparison([finished.folder]).results}
        assert {result.state for result in found.values() if result.cell.kind == "teacher"} == {"finished"}
        students = [result for result in found.values() if result.cell.kind == "student"]
        assert {result.state for result in students} == {"missing"}, field
        assert students[0].reason.endswith("its student is of another recipe than the comparison's")
    write_plan(override(recipe, ["student.test_every_epoch=false"]), finished.folder)
    assert {result.state for result in read_comparison([finished.folder]).results} == {"finished"}


@pytest.mark.parametrize(
    ("given", "left_open"),
    [
        ("student.loss.hard_weight=0.9", "student.loss.hard_weight=none"),
        ("student.loss.temperature=2", "student.loss.temperature=none"),
        ("student.loss.plus.logits.weight=0.5", "student.loss.plus={}"),
    ],
)
def test_what_a_student_had_and_its_recipe_has_no_more_is_another(
    tiny: Callable[..., Recipe], given: str, left_open: str
) -> None:
    """The loss's own settings are what is asked for then, and nothing of the old ones."""
    before = tiny(*SHORT, "compare.teachers=onehot", "compare.seeds=0", given)
    found = compare(before, Told())
    after = override(before, [left_open])
    assert not another_student(before, open_run(found.folder / found.comparison.results[1].run).recipe)
    write_plan(after, found.folder)
    assert [each.state for each in read_comparison([found.folder]).results] == ["finished", "missing"]
    write_plan(before, found.folder)
    again = compare(after, Told(), Manner(budget=1e-9))
    assert [each.state for each in again.comparison.results] == ["finished", "missing"]


def test_a_network_that_is_left_open_by_now_is_another_one(tiny: Callable[..., Recipe]) -> None:
    """Which one it is says the images' size; a report alone cannot tell: what comes before it forgets the old."""
    before = tiny(*SHORT, "compare.teachers=onehot", "compare.seeds=0,1", "student.model=resnet14")
    found = compare(before, Told())
    after = override(before, ['student.model=""'])
    run_one(after, 0, Told())
    states = {each.cell.key: each.state for each in read_comparison([found.folder]).results}
    assert states == {
        "onehot-s0": "finished", "onehot-s0-kd": "missing", "onehot-s1": "finished", "onehot-s1-kd": "missing"
    }  # fmt: skip


def test_data_of_seeds_that_nothing_was_trained_at_are_not_opened(tiny: Callable[..., Recipe], monkeypatch) -> None:
    opened: list[int] = []

    def counted(recipe: Recipe, **more: object) -> object:
        opened.append(recipe.seed)
        return open_data(recipe, **more)  # type: ignore[arg-type]

    monkeypatch.setattr("distill.stages.grid.open_data", counted)
    recipe = tiny(*SHORT, "compare.teachers=onehot", "compare.seeds=0,1,2")
    assert finished_cells(grid(recipe), Told()) == {}
    assert opened == [0]


def test_students_of_other_given_labels_go_with_their_teachers(tiny: Callable[..., Recipe], tmp_path: Path) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text("index,label\n" + "".join(f"{row},3\n" for row in range(300)))
    noise = ("data.noise.kind=file", "data.noise.rate=0", "data.noise.redraw=all", f'data.noise.file="{labels}"')
    recipe = tiny(*SHORT, *noise, "compare.teachers=onehot", "compare.seeds=0")
    assert [each.state for each in compare(recipe, Told()).comparison.results] == ["finished", "finished"]
    labels.write_text("index,label\n" + "".join(f"{row},4\n" for row in range(300)))
    changed = compare(recipe, Told())
    assert [each.state for each in changed.comparison.results] == ["failed", "failed"]
    assert [each.state for each in read_comparison([changed.folder]).results] == ["failed", "failed"]


def test_a_run_that_became_another_s_is_missing(finished: Compared) -> None:
    record = finished.folder / "onehot-s0/run.json"
    digest = finished.comparison.results[0].provenance["digest"]
    record.write_text(record.read_text().replace(digest, "0" * 64))
    found = read_comparison([finished.folder])
    assert (found.results[0].state, found.results[1].state) == ("missing", "finished")
    assert found.results[0].reason.endswith("is another teacher's by now")


def test_the_command_line_lists_and_plans(tiny: Callable[..., Recipe], tmp_path: Path) -> None:
    path = tmp_path / "a recipe.toml"
    path.write_text(dump_recipe(tiny(*ARMS)))

    def distill(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-W", "error", "-m", "distill", "compare", *words]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=240)

    listed = json.loads(distill(str(path), "--list-cells", "--json").stdout)
    assert [cell["key"] for cell in listed["cells"]] == ["onehot-s0", "class-s0", "onehot-s1", "class-s1"]
    for words, wanted in (
        ((str(path), "--budget", "soon"), "--budget: found 'soon', expected a time such as 90s, 30m or 2h"),
        ((str(path), "--dry-run", "--cell", "3"), "found --dry-run and --cell, expected one of them"),
        (
            (str(path), "--cell", "3", "--jobs", "2", "--budget", "1h"),
            "found --jobs and --budget with --cell, which runs one cell to its end",
        ),
        (
            (str(path), "--list-cells", "--jobs", "2", "--tensorboard"),
            "found --jobs and --tensorboard with --list-cells, which names every cell and runs none",
        ),
        ((str(path), str(path)), "found 2 paths, expected one recipe"),
        (("--report-only", str(tmp_path)), "not a comparison, expected comparison.toml in it"),
    ):
        done = distill(*words)
        assert done.returncode == 2
        assert wanted in done.stderr
        assert "Traceback" not in done.stderr
