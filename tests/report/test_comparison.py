"""What is chosen, paired, claimed and written of a comparison's cells, with made-up numbers."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Collection, Mapping
from pathlib import Path

import pytest

from distill.errors import RunError
from distill.recipe.grid import Cell, grid
from distill.recipe.load import parse_recipe
from distill.report.comparison import JUDGED, Comparison
from distill.report.comparison_folder import read_comparison, write_comparison, write_plan
from distill.report.comparison_markdown import markdown
from distill.report.comparison_parts import Choice
from distill.report.comparison_table import csv_text, scaled_lines
from distill.report.html import page
from distill.report.page.forest import forest
from distill.report.results import CELLS, CellResult, read_result, write_failed
from distill.report.stats import paired
from distill.report.verdicts import verdict
from tests.report.made import METRICS, made

SEEDS = "compare.seeds=0,1,2,3,4"


def accuracies(cell: Cell) -> Mapping[str, float]:
    """Instance is 2 points above onehot, with a little noise by seed."""
    gain = 0.02 if cell.arm == "instance" else 0.0
    wobble = [0.0, 0.003, -0.002, 0.001, -0.001][cell.seed] * (1 if cell.arm == "instance" else -1)
    network = 0.05 if cell.kind == "teacher" else 0.0
    return METRICS | {"test_accuracy": 0.8 + gain + wobble + network}


def by_validation(scores: Mapping[float, float]) -> Comparison:
    """Students whose validation accuracy depends on the temperature."""

    def metrics(cell: Cell) -> Mapping[str, float]:
        score = scores.get(cell.temperature or 0.0, 0.0)
        return METRICS | {"validation_accuracy": score, "test_accuracy": (cell.temperature or 0) / 10}

    temperatures = ",".join(map(str, scores))
    return made(f"compare.temperatures={temperatures}", metrics=metrics)


def test_validation_chooses_the_temperature_by_its_mean_over_the_seeds() -> None:
    found = by_validation({1.0: 0.5, 2.0: 0.7, 4.0: 0.6})
    assert found.chosen("onehot") == Choice("kd", 2.0)
    assert [arm.temperature for arm in found.arms] == [2.0] * 4
    assert found.row("onehot", "student").values("test_accuracy") == {0: 0.2, 1: 0.2}


def test_ties_go_to_the_lower_temperature_whatever_their_order() -> None:
    assert by_validation({4.0: 0.7, 1.0: 0.7, 2.0: 0.1}).chosen("instance") == Choice("kd", 1.0)
    # 0.1 + 0.2 is 0.3 but for rounding
    assert by_validation({4.0: 0.1 + 0.2, 2.0: 0.3}).chosen("instance") == Choice("kd", 2.0)


def test_a_missing_cell_does_not_choose() -> None:
    """At seed 1, which is easier, T 4 is missing: the seeds that all have are what counts."""

    def metrics(cell: Cell) -> Mapping[str, float]:
        score = (0.9 if cell.seed == 1 else 0.5) + (0.1 if cell.temperature == 4.0 else 0.0)
        return METRICS | {"validation_accuracy": score}

    found = made("compare.temperatures=1,4", metrics=metrics, missing=["onehot-s1-kd-T4"])
    assert found.chosen("onehot") == Choice("kd", 4.0)
    assert set(found.row("onehot", "student").results) == {0}
    assert [(arm.rule, arm.seed, arm.temperature) for arm in found.arms] == [
        ("onehot", 0, 4.0), ("instance", 0, 4.0), ("onehot", 1, None), ("instance", 1, 4.0)
    ]  # fmt: skip
    (less,) = [d for d in found.differences if (d.network, d.metric, d.family) == ("student", "test_accuracy", 1)]
    assert less.paired.seeds == (0,)
    assert "| 1 of 2 |" in markdown(found)
    assert "student of onehot, kd, T 4, seed 1: failed: the disk is full" in markdown(found)


def test_an_arm_without_any_cell_has_rows_without_numbers() -> None:
    every = {cell.key for cell in grid(made().recipe)}
    found = made(missing=every)
    assert found.arms == ()
    assert found.chosen("onehot") is None
    assert all(set(line.split("|")[4:8]) <= {" - "} for line in markdown(found).splitlines() if "| 0 of 2 |" in line)
    assert found.verdicts() == [
        f"{network}s: nothing can be said about onehot, instance, as no seed of them is finished"
        for network in ("teacher", "student")
    ]
    json.dumps(found.record(), allow_nan=False)
    assert csv_text(found).count("\n") == 5


ANSWERS = {"answers_entropy": 0.5, "answers_right": 0.8, "answers_separation": 0.6}


def test_what_the_teachers_answer_stands_beside_how_their_students_did() -> None:
    def metrics(cell: Cell) -> Mapping[str, float]:
        wrong = {"answers_repeated": 0.25} if cell.arm == "onehot" else {}
        told = {**ANSWERS, **wrong} if cell.kind == "teacher" else {"agreement": 0.75, "teacher_kl": 0.125}
        return METRICS | told

    text = markdown(made(metrics=metrics))
    assert "## The teachers' answers" in text
    assert (
        "| onehot | 0.500 ± 0.000 | 80.0 ± 0.0 | 25.0 ± 0.0 | 0.600 ± 0.000 | 98.8 ± 0.0 | 75.0 ± 0.0 | 0.125 ± 0"
        in text
    )
    assert "| instance | 0.500 ± 0.000 | 80.0 ± 0.0 | - | 0.600 ± 0.000 |" in text
    alone = markdown(made("compare.students=false", metrics=lambda cell: METRICS | ANSWERS))
    assert "| labels | entropy, nats | right % | class separation |\n" in alone
    assert "The teachers' answers" not in markdown(made())
    assert "answers_separation_mean" in csv_text(made(metrics=metrics))


def test_where_nobody_knows_the_truth_only_what_moved_is_told() -> None:
    unknown = {name: value for name, value in METRICS.items() if name not in ("given_right", "labels_right")}
    fixed = {name: value for name, value in unknown.items() if name != "labels_moved"}
    text = markdown(made("compare.students=false", metrics=lambda cell: fixed if cell.arm == "onehot" else unknown))
    assert "| 30.0 moved |" in text
    assert "| instance | - | - | 30.0 ± 0.0 | - | - |" in text
    assert "| onehot | -" not in text.partition("## Labels")[2]
    assert "that are true, given -> learned, or, where nobody knows, that moved. Less onehot" in text
    for known in (METRICS, fixed):
        plain = markdown(made("compare.students=false", metrics=lambda cell, known=known: known))
        assert "that are true, given -> learned. Less onehot" in plain


def test_only_what_is_not_run_goes_unsaid() -> None:
    every = {cell.key: cell for cell in grid(made("compare.controls=true").recipe)}
    unrun = [key for key, cell in every.items() if cell.arm == "instance" and cell.control == ""]
    found = made("compare.controls=true", missing=unrun)
    assert [line for line in found.verdicts() if "instance" in line] == [
        f"{network}s: nothing can be said about instance, as no seed of them is finished"
        for network in ("teacher", "student")
    ]
    assert any("untrained" in line for line in found.verdicts())
    apart = made(missing=[key for key, cell in every.items() if cell.seed == (cell.arm == "instance")])
    assert apart.verdicts()[0] == "teachers: instance and onehot have no seed in common, so nothing can be said"


def test_losses_are_chosen_too() -> None:
    def metrics(cell: Cell) -> Mapping[str, float]:
        return METRICS | {"validation_accuracy": 0.9 if (cell.loss, cell.temperature) == ("dkd", 2.0) else 0.8}

    found = made("compare.losses=kd,dkd,dist", "compare.temperatures=1,2", metrics=metrics)
    assert found.chosen("onehot") == Choice("dkd", 2.0)
    assert found.row("onehot", "student").choice == "dkd, T 2"
    assert "| onehot * | dkd | 2 |" in markdown(found)


WEIGHTS = ("compare.temperatures=1,4", "compare.weights=0.9,0.5")


def weighed(scores: Mapping[tuple[float, float], float], *more: str, missing: Collection[str] = ()) -> Comparison:
    """Students whose validation accuracy depends on temperature and weight."""

    def metrics(cell: Cell) -> Mapping[str, float]:
        return METRICS | {"validation_accuracy": scores.get((cell.temperature or 0.0, cell.weight or 0.0), 0.0)}

    return made(*WEIGHTS, *more, metrics=metrics, missing=missing)


def test_weights_are_chosen_too() -> None:
    found = weighed({(1.0, 0.5): 0.7, (1.0, 0.9): 0.8, (4.0, 0.5): 0.9, (4.0, 0.9): 0.6}, "compare.losses=kd,ce")
    assert found.chosen("onehot") == Choice("kd", 4.0, 0.5)
    assert [(arm.temperature, arm.weight) for arm in found.arms] == [(4.0, 0.5)] * 4
    assert found.row("onehot", "student").choice == "kd, T 4, w 0.5"
    text = markdown(found)
    assert "| labels | loss | T | weight | seeds | validation % | accuracy % | best epoch % |" in text
    assert "| onehot * | kd | 4 | 0.5 | 2 |" in text
    assert "| onehot | kd | 1 | 0.9 | 2 |" in text
    assert "| onehot | ce | - | - | 2 |" in text
    assert "temperature, loss and weight." in text
    assert '"kd, T 4, w 0.5"' in csv_text(found)
    record = found.record()
    assert record["chosen"]["instance"] == {"loss": "kd", "temperature": 4.0, "weight": 0.5}
    assert record["arms"][0]["weight"] == 0.5
    assert [cell["weight"] for cell in record["cells"]][:6] == [None, 0.9, 0.5, 0.9, 0.5, None]


def test_ties_go_to_the_lower_temperature_and_then_to_the_lower_weight() -> None:
    every = dict.fromkeys(((t, w) for t in (1.0, 4.0) for w in (0.5, 0.9)), 0.7)
    assert weighed(every).chosen("onehot") == Choice("kd", 1.0, 0.5)
    assert weighed(every | {(1.0, 0.5): 0.6}).chosen("onehot") == Choice("kd", 1.0, 0.9)
    assert weighed(dict.fromkeys(every, 0.3) | {(4.0, 0.9): 0.1 + 0.2}).chosen("onehot") == Choice("kd", 1.0, 0.5)


def test_a_missing_weight_does_not_choose() -> None:
    """At seed 1 one weight is missing: seed 0, which all have, is what counts."""
    found = weighed({(4.0, 0.9): 0.8, (4.0, 0.5): 0.7}, missing=["onehot-s1-kd-T4-w0.9"])
    assert found.chosen("onehot") == Choice("kd", 4.0, 0.9)
    assert set(found.row("onehot", "student").results) == {0}
    assert [(arm.rule, arm.seed, arm.weight) for arm in found.arms] == [
        ("onehot", 0, 0.9), ("instance", 0, 0.9), ("onehot", 1, None), ("instance", 1, 0.9)
    ]  # fmt: skip
    assert "student of onehot, kd, T 4, w 0.9, seed 1: failed: the disk is full" in markdown(found)


def test_without_weights_nothing_names_them() -> None:
    found = made("compare.temperatures=1,4", "compare.controls=true")
    record = found.record()
    assert not any("weight" in part for part in (*record["arms"], *record["cells"], *record["chosen"].values()))
    assert record["chosen"]["onehot"] == {"loss": "kd", "temperature": 1.0}
    assert "weight" not in markdown(found) + csv_text(found)
    assert "Validation chose each teacher's temperature and loss." in markdown(found)


def test_a_difference_is_claimed_with_its_interval() -> None:
    found = made(SEEDS, metrics=accuracies)
    teachers, students = found.verdicts()
    expected = paired(
        {s: 0.02 + 2 * w for s, w in enumerate([0.0, 0.003, -0.002, 0.001, -0.001])}, dict.fromkeys(range(5), 0.0)
    )
    assert expected.difference is not None
    assert expected.difference.interval is not None
    low, high = (100 * bound for bound in expected.difference.interval)
    assert teachers.startswith(
        f"teachers: instance beats onehot by 2.0 points, interval {low:.1f} to {high:.1f}, 5 seeds"
    )
    assert students.startswith("students: instance beats onehot by 2.0 points")
    turned = made(SEEDS, "compare.reference=instance", metrics=accuracies).verdicts()
    assert turned[0].startswith(f"teachers: onehot loses to instance by 2.0 points, interval {low:.1f} to {high:.1f}")


def test_one_seed_gives_no_interval_and_says_so() -> None:
    found = made("compare.seeds=3", metrics=lambda cell: METRICS)
    text = markdown(found)
    assert "one seed (3), so no interval can be given" in text
    assert "±" not in text
    assert found.verdicts()[0] == (
        "teachers: instance is level with onehot at the one seed that both have (3); one seed gives no interval, so no "
        "difference can be claimed"
    )
    assert [d.p_holm for d in found.differences] == [None] * 8


def test_holm_is_over_the_pairs_of_arms_and_not_over_the_controls() -> None:
    found = made(SEEDS, "compare.teachers=onehot,smoothing,instance", "compare.controls=true", metrics=accuracies)
    students = [d for d in found.differences if (d.network, d.metric) == ("student", "test_accuracy")]
    assert [(d.first, d.second, d.family) for d in students] == [
        ("smoothing", "onehot", 3), ("instance", "onehot", 3), ("instance", "smoothing", 3),
        ("student alone", "onehot", 0), ("smoothing alone", "onehot", 0), ("untrained", "onehot", 0),
    ]  # fmt: skip
    assert students[1].p_holm == pytest.approx(3 * (students[1].paired.p or 0))
    assert students[3].p_holm is None
    assert [row.name for row in found.rows if row.control] == [
        "student alone", "smoothing alone", "untrained", "untrained"
    ]  # fmt: skip


def test_half_of_a_comparison_claims_no_more_than_the_whole() -> None:
    """Smoothing is missing at all seeds but one, so that it has no p; its pairs count all the same."""
    missing = [f"smoothing-s{seed}" for seed in range(1, 5)]
    sets = (SEEDS, "compare.teachers=onehot,smoothing,instance", "compare.students=false")
    whole, half = made(*sets, metrics=accuracies), made(*sets, metrics=accuracies, missing=missing)
    (found,) = [d for d in half.differences if (d.first, d.second, d.metric) == ("instance", "onehot", "test_accuracy")]
    assert found.family == 3
    assert found.p_holm == pytest.approx(3 * (found.paired.p or 0))
    (same,) = [d for d in whole.differences if (d.first, d.second, d.metric) == ("instance", "onehot", "test_accuracy")]
    assert found.p_holm >= (same.p_holm or 0)


def test_pairs_with_the_reference_alone_are_a_smaller_family() -> None:
    sets = (SEEDS, "compare.teachers=onehot,smoothing,instance", "compare.reference=smoothing", "compare.controls=true")
    every = made(*sets, metrics=accuracies)
    found = made(*sets, "compare.pairs=reference", metrics=accuracies)
    students = [d for d in found.differences if (d.network, d.metric) == ("student", "test_accuracy")]
    assert [(d.first, d.second, d.family) for d in students] == [
        ("onehot", "smoothing", 2), ("instance", "smoothing", 2),
        ("student alone", "smoothing", 0), ("smoothing alone", "smoothing", 0), ("untrained", "smoothing", 0),
    ]  # fmt: skip
    assert students[1].p_holm == pytest.approx(2 * (students[1].paired.p or 0))
    assert len(every.pairs) - len(found.pairs) == 2  # instance and onehot, of both networks
    assert "after Holm's correction over 2 pairs" in " ".join(found.verdicts())
    assert "over the pairs of arms with smoothing, " in str(forest(found))
    assert "over the pairs of arms, " in str(forest(every))


def test_a_control_that_the_grid_has_is_its_own_cell() -> None:
    found = made("student.loss.name=ce", "compare.controls=true")
    assert len(found.row("student alone", "student").results) == 2
    assert found.row("student alone", "student").results == found.row("onehot", "student").results


def test_what_cannot_be_claimed_says_what_could_have_been_found() -> None:
    found = paired({0: 0.5, 1: 0.6, 2: 0.4}, {0: 0.5, 1: 0.5, 2: 0.45})
    sentence = verdict("student", "a", "b", found, 0.8, 3)
    assert sentence.startswith("students: no difference can be claimed between a and b: +1.7 points, interval ")
    assert f"less than {100 * (found.detectable or 0):.1f} points would mostly go unnoticed" in sentence


def test_the_same_difference_at_every_seed_has_no_interval() -> None:
    found = paired({0: 0.5, 1: 0.6}, {0: 0.4, 1: 0.5})
    assert verdict("student", "a", "b", found, found.p, 1) == (
        "students: no difference can be claimed between a and b: +10.0 points at every one of 2 seeds, so no interval "
        "can be given (p = .500)"
    )
    found = paired(dict.fromkeys(range(8), 0.4), dict.fromkeys(range(8), 0.5))
    assert "a loses to b: -10.0 points at every one of 8 seeds" in verdict("student", "a", "b", found, found.p, 1)


def test_the_csv_file_has_every_bound() -> None:
    rows = list(csv.DictReader(io.StringIO(csv_text(made(SEEDS, metrics=accuracies)))))
    assert [(row["labels"], row["network"], row["seeds"]) for row in rows][:2] == [
        ("onehot", "teacher", "0 1 2 3 4"), ("onehot", "student", "0 1 2 3 4")
    ]  # fmt: skip
    student = rows[3]
    assert float(student["test_accuracy_less_reference_t_low"]) > 0.01
    assert float(student["test_accuracy_mean"]) == pytest.approx(0.8202)
    assert student["agreement_mean"] == ""


def test_arms_are_told_with_what_they_assign() -> None:
    recipe = parse_recipe(
        'name = "r"\n[compare]\nstudents = false\n[compare.arms]\nplain = []\nsmall = ["data.train=100"]', "r.toml"
    )
    found = Comparison(recipe, tuple(CellResult(cell, "missing", "not run") for cell in grid(recipe)))
    assert found.networks == ("teacher",)
    text = markdown(found)
    assert "- plain: the recipe as it is\n- small: `data.train=100`" in text
    assert found.record()["recipe_arms"] == {"plain": [], "small": ["data.train=100"]}


def test_a_folder_says_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="not a comparison"):
        read_comparison([tmp_path])
    recipe = made("compare.teachers=onehot").recipe
    write_plan(recipe, tmp_path)
    first = grid(recipe)[0]
    write_failed(tmp_path, first, "the disk is full")
    found = read_comparison([tmp_path])
    assert found.recipe == recipe
    assert [result.state for result in found.results] == ["failed", "missing", "missing", "missing"]
    write_comparison(found, tmp_path)
    record = json.loads((tmp_path / "results.json").read_text())
    assert record["cells"][0]["reason"] == "the disk is full"
    assert {"table.md", "table.csv"} <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize(
    "text",
    ["{}", "[", '{"key": "onehot-s0", "state": "finished", "run": "../elsewhere", "digest": "0"}',
     '{"key": "onehot-s0", "state": "finished", "run": "gone", "digest": "0"}',
     '{"key": "onehot-s0", "state": "finished", "run": "a\\u0000", "digest": "0"}',
     '{"key": "onehot-s0", "state": "finished", "run": "round", "digest": "0"}'],
)  # fmt: skip
def test_a_damaged_cell_counts_as_missing(tmp_path: Path, text: str) -> None:
    (tmp_path / CELLS).mkdir()
    (tmp_path / CELLS / "onehot-s0.json").write_text(text)
    (tmp_path / "round").symlink_to("round")
    found = read_result(tmp_path, grid(made().recipe)[0])
    assert found.state == "missing"


def test_parts_of_a_comparison_are_reported_together(tmp_path: Path) -> None:
    one, two, other = (tmp_path / name for name in ("one", "two", "other"))
    for folder, changed in ((one, "compare.seeds=0,1"), (two, "compare.seeds=1,2"), (other, "teacher.epochs=3")):
        folder.mkdir()
        write_plan(made(changed).recipe, folder)
    last = next(cell for cell in grid(made("compare.seeds=2").recipe) if cell.key == "instance-s2")
    write_failed(two, last, "no memory")
    found = read_comparison([one, two])
    assert found.seeds == (0, 1, 2)
    assert [r.reason for r in found.results if r.cell.key == "instance-s2"] == ["no memory"]
    with pytest.raises(RunError, match=r"other: not a part of the comparison in .*one: teacher.epochs: 30 -> 3"):
        read_comparison([one, other])


def test_weights_of_parts_are_put_together(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder, weights in ((one, "0.5"), (two, "0.9,0.5")):
        folder.mkdir()
        write_plan(made(f"compare.weights={weights}").recipe, folder)
    assert read_comparison([one, two]).recipe.compare.weights == (0.5, 0.9)
    without = tmp_path / "without"
    without.mkdir()
    write_plan(made().recipe, without)
    with pytest.raises(RunError, match=r"compare.weights: \[0.5\] -> \[\]"):
        read_comparison([one, without])


def test_gains_are_in_every_metric_and_over_the_best_epoch() -> None:
    def metrics(cell: Cell) -> Mapping[str, float]:
        learned = cell.arm == "instance"
        own = {"suspects_precision": 0.9, "suspects_recall": 0.8} if learned else {}
        seed = 0.01 * cell.seed
        last = 0.9 + 2 * seed if learned else 0.7 + seed
        return METRICS | own | {"test_accuracy": last, "best_test_accuracy": 0.85, "test_nll": 0.4 if learned else 0.5}

    text = markdown(made(SEEDS, "compare.students=false", metrics=metrics))
    section = text.split("## Less onehot")[1].split("## Labels")[0]
    (line,) = [each for each in section.splitlines() if each.startswith("| instance |")]
    cells = [each.strip() for each in line.split("|")[1:-1]]
    assert cells[2].startswith("+22.0 (")
    assert cells[3:6] == ["+0.0 (0.0 to 0.0)", "-0.100 (-0.100 to -0.100)", "+0.0 (0.0 to 0.0)"]
    assert cells[6].startswith("+9.0 (")
    assert "| instance | 70.0 ± 0.0 | 100.0 ± 0.0 | 30.0 ± 0.0 | 90.0 ± 0.0 | 80.0 ± 0.0 |" in text


def test_probabilities_are_compared_after_temperature_scaling_where_temperatures_are_known() -> None:
    def metrics(cell: Cell) -> Mapping[str, float]:
        nll = 0.4 - (0.02 + 0.001 * cell.seed if cell.arm == "instance" else 0.0)
        return METRICS | {"scaling_temperature": 0.7, "test_nll_scaled": nll, "test_ece_scaled": 0.015}

    found, without = made(SEEDS, metrics=metrics), made(SEEDS)
    text = markdown(found)
    assert "## After temperature scaling" in text
    line = next(
        line
        for line in text.partition("## After temperature")[2].splitlines()
        if line.startswith("| instance | teacher")
    )
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[2:6] == ["5", "0.70 ± 0.00", "0.378 ± 0.002", "1.5 ± 0.0"]
    assert cells[6:] == ["-0.022 (-0.024 to -0.020)", "+0.0 (0.0 to 0.0)"]
    scaled = [d for d in found.differences if d.metric == "test_nll_scaled"]
    assert [(d.network, d.first, d.second) for d in scaled] == [
        ("teacher", "instance", "onehot"), ("student", "instance", "onehot")
    ]  # fmt: skip
    assert "After temperature scaling" in page(found, Path("none"))
    some = made(SEEDS, metrics=lambda cell: metrics(cell) if cell.seed else METRICS)  # an earlier version's
    assert [line[2] for line in scaled_lines(some)] == ["4 of 5"] * 4
    for written in (markdown(without), page(without, Path("none"))):
        assert "temperature scaling" not in written
    assert {d.metric for d in without.differences} == set(JUDGED)
    row = next(line for line in csv.DictReader(io.StringIO(csv_text(found))) if line["labels"] == "instance")
    assert float(row["test_nll_scaled_less_reference_mean"]) == pytest.approx(-0.022)
    assert float(row["scaling_temperature_mean"]) == pytest.approx(0.7)
