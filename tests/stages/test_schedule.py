"""Which cell is next: order, budget, failures. No process and no training."""

from __future__ import annotations

import pytest

from distill.recipe.grid import Cell, grid
from distill.recipe.load import override, parse_recipe
from distill.stages.cells import Outcome
from distill.stages.plan import GridPlan
from distill.stages.schedule import Costs, Schedule

RECIPE = parse_recipe(
    'name = "r"\n[compare]\nteachers = ["onehot", "instance"]\nseeds = [0, 1]\ncontrols = false\n'
    "temperatures = [1.0, 4.0]",
    "r.toml",
)
CELLS = grid(RECIPE)
SECONDS = {"teacher": 100.0, "student": 10.0}


class Clock:
    """Time that goes on when it is told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def worked(schedule: Schedule, clock: Clock, *, jobs: int = 1) -> list[int]:
    """Runs everything that the schedule gives, `jobs` at a time; the numbers in the order of their beginning."""
    begun: list[int] = []
    busy: list[tuple[float, Cell]] = []
    while not schedule.over():
        while len(busy) < jobs and (cell := schedule.take()) is not None:
            begun.append(cell.number)
            busy.append((clock.now + SECONDS[cell.kind], cell))
        busy.sort(key=lambda each: each[0])
        clock.now, cell = busy.pop(0)
        schedule.done(Outcome(cell.number, "finished", SECONDS[cell.kind]))
    return begun


def test_one_at_a_time_goes_by_the_numbers() -> None:
    clock = Clock()
    assert worked(Schedule(CELLS, {}, clock=clock), clock) == list(range(12))
    assert clock.now == 4 * 100 + 8 * 10


def test_several_at_a_time_begin_no_student_before_its_teacher() -> None:
    clock = Clock()
    begun = worked(Schedule(CELLS, {}, clock=clock), clock, jobs=3)
    assert sorted(begun) == list(range(12))
    assert begun[:3] == [0, 3, 6]  # teachers: nothing else is ready
    assert begun[3:7] == [1, 2, 4, 5]  # then students, seed by seed
    assert clock.now < 480


def test_finished_cells_are_not_run_again() -> None:
    clock = Clock()
    finished = {0: 100.0, 1: 10.0, 3: 100.0}
    assert worked(Schedule(CELLS, finished, clock=clock), clock) == [2, 4, 5, 6, 7, 8, 9, 10, 11]


def test_a_budget_runs_all_arms_at_one_seed_first() -> None:
    clock = Clock()
    schedule = Schedule(CELLS, {}, budget=250, clock=clock)
    assert worked(schedule, clock) == [0, 1, 2, 3, 4, 5]  # at 240 s a teacher of the next seed would end at 340
    assert [cell.number for cell in schedule.waiting()] == [6, 7, 8, 9, 10, 11]


def test_a_budget_begins_what_nothing_is_known_of() -> None:
    clock = Clock()
    schedule = Schedule(CELLS, {}, budget=1, clock=clock)
    assert worked(schedule, clock) == [0]  # it ended long after the budget did


def test_a_cell_that_does_not_fit_is_looked_at_again() -> None:
    """Two students were slow, at first; then one took a second."""
    clock = Clock()
    schedule = Schedule(CELLS, {0: 1.0, 3: 1.0, 1: 90.0}, budget=50, clock=clock)
    first = schedule.take()
    assert first is not None
    assert first.number == 6  # a teacher of the next seed: the students of this one are expected to take too long
    for number in (2, 4, 5):
        schedule.costs.add(CELLS[number], 1.0)
    schedule.done(Outcome(6, "finished", 1.0))
    second = schedule.take()
    assert second is not None
    assert second.number == 2


def test_a_failed_teacher_takes_its_students_with_it() -> None:
    schedule = Schedule(CELLS, {})
    assert schedule.take() == CELLS[0]
    blocked = schedule.done(Outcome(0, "failed", reason="no memory"))
    assert [(each.number, each.reason) for each in blocked] == [
        (1, "its teacher, cell 0, failed"), (2, "its teacher, cell 0, failed")
    ]  # fmt: skip
    assert schedule.take() == CELLS[3]
    schedule.done(Outcome(3, "interrupted"))
    assert schedule.take() == CELLS[3]  # again
    schedule.done(Outcome(3, "failed"))
    assert not schedule.over()


def test_costs_are_those_of_the_most_similar_cells() -> None:
    costs = Costs()
    assert costs.of(CELLS[0]) is None
    costs.add(CELLS[0], 10.0)
    assert costs.of(CELLS[3]) == 10.0  # another arm's teacher, but nothing is nearer
    costs.add(CELLS[3], 30.0)
    assert [costs.of(CELLS[number]) for number in (6, 9)] == [10.0, 30.0]
    assert costs.of(CELLS[1]) is None
    assert costs.total(CELLS) is None
    costs.add(CELLS[1], 1.0)
    assert costs.total(CELLS) == 2 * (10 + 30) + 8 * 1


def test_an_untrained_teacher_says_nothing_of_trained_ones() -> None:
    cells = grid(parse_recipe('name = "r"', "r.toml"))
    untrained = next(cell for cell in cells if cell.arm == "untrained")
    costs = Costs()
    costs.add(untrained, 0.1)
    assert costs.of(cells[0]) is None
    assert costs.of(untrained) == 0.1


def test_a_plan_tells_weights_apart_where_there_are_any() -> None:
    weighed = grid(override(RECIPE, ["compare.weights=0.5,0.9", "compare.seeds=0"]))
    plan = GridPlan("r", weighed, {})
    assert plan.text().splitlines()[0] == "r: 10 cells, 2 teachers and 8 students; 0 finished"
    assert "  student of onehot, kd, T 4, w 0.9: 1 cell, 0 finished, cost not known" in plan.text()
    assert plan.lines().splitlines()[4].split() == ["4", "student", "open", "0", "onehot-s0-kd-T4-w0.9"]
    cells = plan.lines_record()["cells"]
    assert [cell["weight"] for cell in cells[:3]] == [None, 0.5, 0.9]
    assert not any("weight" in cell for cell in GridPlan("r", CELLS, {}).lines_record()["cells"])


def test_a_plan_in_words() -> None:
    finished = {0: 100.0, 1: 10.0, 2: 10.0}
    assert "cost: not known" in GridPlan("r", CELLS, {}).text()
    plan = GridPlan("r", CELLS, finished, jobs=2, budget=100)
    assert plan.text().splitlines()[0] == "r: 12 cells, 4 teachers and 8 students; 3 finished"
    assert "  teacher onehot: 2 cells, 1 finished, about 2 min each" in plan.text()
    assert "cost: about 3 min by the finished cells, 2 cells at a time" in plan.text()
    assert plan.record()["seconds_left"] == pytest.approx((3 * 100 + 6 * 10) / 2)
    assert plan.record()["left_out"] == [6, 7, 8, 9, 10, 11]
    assert "left out by the budget: 6 cells, the first of them teacher onehot, seed 1" in plan.text()
    assert "nothing left to run" in GridPlan("r", CELLS, dict.fromkeys(range(12), 1.0)).text()
    lines = plan.lines().splitlines()
    assert len(lines) == 12
    assert lines[4].split() == ["4", "student", "open", "3", "instance-s0-kd-T1"]
    assert lines[0].split() == ["0", "teacher", "finished", "-", "onehot-s0"]
