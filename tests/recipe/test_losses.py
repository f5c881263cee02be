"""`[student.loss]`: what is left open, what adds up, and what is refused."""

from __future__ import annotations

from typing import get_args

import pytest

from distill.errors import RecipeError
from distill.recipe.checks import problems
from distill.recipe.load import override, override_run, parse_recipe
from distill.recipe.losses import (
    CATALOGUE,
    LossName,
    LossRecipe,
    TermRecipe,
    in_use,
    needs,
    needs_all_logits,
    settle,
)
from distill.recipe.student_checks import problems_of_loss

RULES = ("onehot", "smoothing", "class", "instance", "imported")


def loss(**fields: object) -> LossRecipe:
    return LossRecipe.model_validate(fields)


def test_the_catalogue_has_a_line_for_each_name_and_no_other() -> None:
    assert tuple(CATALOGUE) == get_args(LossName)
    settings = {name for name in TermRecipe.model_fields if not name.endswith("_epochs")}
    assert {key for info in CATALOGUE.values() for key in info.reads} == settings


@pytest.mark.parametrize("name", CATALOGUE)
@pytest.mark.parametrize("rule", RULES)
def test_nothing_that_a_loss_reads_is_left_open(name: LossName, rule: str) -> None:
    settled = settle(loss(name=name), rule, 240).loss
    assert all(getattr(settled, key) is not None for key in CATALOGUE[name].reads)
    assert None not in (settled.hard_weight, settled.soft_weight, settled.warmup_epochs, settled.cooldown_epochs)
    assert settle(settled, rule, 240) == settle(settled, "onehot", 240)  # settled once, settled for good
    assert list(problems_of_loss(loss(name=name), 240)) == []
    assert list(problems_of_loss(settled, 240)) == []  # a student's own recipe.toml is sound


@pytest.mark.parametrize(
    ("fields", "rule", "temperature"),
    [
        ({}, "onehot", 4.0),
        ({}, "imported", 4.0),
        ({}, "smoothing", 1.0),
        ({}, "instance", 1.0),
        ({"temperature": 3.0}, "instance", 3.0),
        ({"standardise": True}, "instance", 2.0),
        ({"name": "nkd"}, "onehot", 1.0),
        ({"name": "wttm"}, "class", 2.0),
        ({"name": "tf-kd"}, "class", 20.0),
        ({"name": "mlkd"}, "class", None),
    ],
)
def test_the_temperature_follows_the_teachers_labels_and_says_why(fields, rule, temperature) -> None:
    settled = settle(loss(**fields), rule, 10)
    assert settled.loss.temperature == temperature
    assert bool(settled.reasons) == (fields.get("name", "kd") in ("kd", "wttm") and "temperature" not in fields)
    why = "LSKD" if "standardise" in fields else rule
    assert all(why in reason and f"temperature {temperature:g}" in reason for reason in settled.reasons)


@pytest.mark.parametrize(("epochs", "warmup"), [(240, 20), (12, 1), (15, 1), (3, 0)])
def test_dkd_s_warm_up_is_a_twelfth_of_the_epochs(epochs: int, warmup: int) -> None:
    settled = settle(loss(name="dkd"), "onehot", epochs)
    assert settled.loss.warmup_epochs == warmup
    assert any(f"over the first {warmup} epochs" in reason for reason in settled.reasons) == bool(warmup)


def test_tables_add_up() -> None:
    recipe = parse_recipe(
        "[student.loss]\nname='dkd'\n[student.loss.plus.rkd]\nweight=0.5\n[student.loss.plus.ols]", "x"
    )
    settled = settle(recipe.student.loss, "onehot", 240).loss
    assert [(name, weight) for name, _, weight in in_use(settled)] == [("dkd", 1.0), ("rkd", 0.5), ("ols", 0.5)]
    assert (settled.plus["rkd"].distance, settled.plus["rkd"].angle) == (25.0, 50.0)
    assert needs(settled) == {"logits", "features"}
    assert needs(loss(name="kd", soft_weight=0.0, plus={"labels": {}})) == {"labels"}


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"name": "ce", "temperature": 3.0}, '[student.loss] temperature: found 3, but the loss "ce" has none'),
        ({"name": "ce", "hard_weight": 1.0}, '[student.loss] hard_weight: found 1, but the loss "ce" has none'),
        ({"alpha": 3.0}, '[student.loss] alpha: found 3, but the loss "kd" has none'),
        ({"plus": {"rkd": {"temperature": 2.0}}}, '[student.loss.plus.rkd] temperature: found 2, but the loss "rkd"'),
        ({"plus": {"kd": {}}}, '[student.loss.plus] kd: found beside name = "kd"'),
        ({"name": "ce", "warmup_epochs": 2}, '[student.loss] warmup_epochs: found 2, but the loss "ce" has no weight'),
        ({"plus": {"ce": {}}}, "[student.loss.plus] ce: its weight is [student.loss] hard_weight"),
        ({"hard_weight": 0.0, "soft_weight": 0.0}, "[student.loss] soft_weight: found 0 with hard_weight = 0"),
        ({"warmup_epochs": 6, "cooldown_epochs": 5}, "[student.loss] warmup_epochs: found 11 with cooldown_epochs"),
        ({"name": "rkd", "standardise": True}, '[student.loss] standardise: found true, but the loss "rkd" has none'),
    ],
)
def test_what_does_nothing_is_refused(fields: dict[str, object], line: str) -> None:
    found = list(problems_of_loss(loss(**fields), 10))
    assert len(found) == 1
    assert found[0].startswith(line)


@pytest.mark.parametrize(
    ("fields", "reads"),
    [
        ({"temperature": 1.0}, False),
        ({"temperature": 1.5}, True),
        ({"temperature": 1.0, "standardise": True}, True),
        ({"name": "mlkd"}, True),
        ({"name": "logits"}, True),
        ({"name": "ctkd"}, True),
        ({"name": "labels"}, False),
        ({"name": "ttm", "temperature": 1.0}, False),
        ({"name": "wttm", "temperature": 1.0}, False),
        ({"name": "reverse-kd", "temperature": 1.0}, True),
        ({"name": "jsd", "temperature": 1.0}, True),
        ({"name": "dkd", "temperature": 1.0}, True),
        ({"name": "nkd", "temperature": 1.0}, True),
        ({"name": "dist", "temperature": 1.0}, True),
        ({"name": "ce", "plus": {"kd": {"temperature": 2.0}}}, True),
        ({"name": "ce", "plus": {"kd": {"temperature": 2.0, "weight": 0.0}}}, False),
    ],
)
def test_who_reads_the_tail(fields: dict[str, object], reads: bool) -> None:
    assert bool(needs_all_logits(settle(loss(**fields), "onehot", 10).loss)) == reads


@pytest.mark.parametrize(
    ("assignments", "line"),
    [
        (["student.loss.name=fitnet"], "[export] features: found false"),
        (["student.loss.plus.attention.weight=3"], "[export] maps: found false"),
        (["student.loss.name=labels"], '[student.loss] name: found "labels", but the teacher learns no labels'),
        (["student.loss.name=ols", "views.mixup=0.2"], '[student.loss] name: found "ols" with mixed views'),
        (
            ["student.loss.name=crd", "export.features=true", "views.cutmix=1"],
            '[student.loss] name: found "crd" with mixed views',
        ),
        (["student.loss.name=crd", "student.online=true"], "[student] online: found true"),
        (["student.online=true", 'student.more_teachers=["a"]'], "[student] online: found true with more_teachers"),
        (["student.online=true", "student.loss.name=ce"], '[student] online: found true with the loss "ce"'),
        (["student.teacher_weights=1,2"], "[student] teacher_weights: found 2 numbers"),
        (["student.combine=probabilities"], '[student] combine: found "probabilities" with one teacher'),
        (["student.micro_batches=40"], "[student] micro_batches: found 40"),
        (["student.patience=2", "data.validation=0"], "[student] patience: found some"),
        (["teacher.epochs=0", "teacher.labels.rule=class"], '[teacher] epochs: found 0, but "class" labels'),
        (["student.compile=true", "student.loss.name=rkd", "export.features=true"], "[student] compile: found true"),
        (
            ["student.compile=true", "student.loss.plus.rkd.weight=1", "export.features=true"],
            '[student] compile: found true, but the loss "rkd" looks inside',
        ),
    ],
)
def test_what_the_tables_ask_of_each_other(assignments: list[str], line: str) -> None:
    found = problems(override(parse_recipe("", "x.toml"), assignments))
    assert [problem.startswith(line) for problem in found] == [True], found


@pytest.mark.parametrize("assignment", ["student.loss.mass=1", "student.loss.mass=0", "student.teacher_weights=1e308"])
def test_numbers_that_no_loss_can_use(assignment: str) -> None:
    with pytest.raises(RecipeError, match=r"\[student(\.loss)?\] (mass|teacher_weights)"):
        override(parse_recipe("", "x.toml"), ["student.loss.name=tf-kd", assignment])


def test_labels_are_for_comparisons_with_a_teacher_that_learns_them() -> None:
    recipe = override(parse_recipe("", "x.toml"), ["student.loss.name=labels", "compare.teachers=class,onehot"])
    assert problems(recipe, comparing=True) == []
    assert problems(override(recipe, ["compare.teachers=onehot"]), comparing=True)


def test_a_further_teacher_s_top_k_store_may_be_insisted_on() -> None:
    insists = override(parse_recipe("", "x.toml"), ["student.loss.allow_topk=true"])
    assert problems(insists)
    assert problems(override(insists, ['student.more_teachers=["a"]'])) == []


def test_errors_in_a_further_loss_name_their_table() -> None:
    for text, message in (
        ("[student.loss.plus.rkd]\nwieght=2", r"\[student.loss.plus.rkd\] wieght is not a field; did you mean weight"),
        ("[student.loss.plus.rkdd]\nweight=2", r"\[student.loss.plus\] rkdd is not one of kd, .*; did you mean rkd"),
        ("[student.loss.plus]\nrkd=2", r"\[student.loss.plus\] rkd: found 2 \(an integer\), expected a table"),
        ('[student.loss.plus.rkd]\nweight="a"', r'\[student.loss.plus.rkd\] weight: found "a" \(a string\), expected'),
    ):
        with pytest.raises(RecipeError, match=message):
            parse_recipe(text, "x.toml")
    with pytest.raises(RecipeError, match=r"\[student.loss.plus.rkd\] is a table; set its fields one by one"):
        override(parse_recipe("", "x.toml"), ["student.loss.plus.rkd=3"])
    assert override(parse_recipe("", "x.toml"), ["student.loss.plus.rkd.weight=3"]).student.loss.plus["rkd"].weight == 3


def test_another_loss_starts_from_its_own_settings() -> None:
    recipe = parse_recipe("[student.loss]\nname='kd'\ntemperature=7.0\nhard_weight=0.3", "x.toml")
    assert override_run(recipe, ["student.loss.name=dkd"]).student.loss == loss(name="dkd")
    assert override_run(recipe, ["student.loss.name=kd"]).student.loss.temperature == 7
    kept = override_run(recipe, ["student.loss.name=dkd", "student.loss.temperature=2"])
    assert kept.student.loss == loss(name="dkd", temperature=2.0)


def test_an_older_run_s_settings_that_its_loss_does_not_read_are_left_out() -> None:
    text = "[student.loss]\nname='ce'\ntemperature=4.0\nhard_weight=0.1\nsoft_weight=0.9"
    old = parse_recipe(text, "recipe.toml")
    assert problems(old)
    assert problems(override_run(old, [])) == []
    assert override_run(old, ["student.loss.name=kd"]).student.loss == loss(name="kd")
    kept = override_run(parse_recipe("[student.loss]\ntemperature=3.0\nhard_weight=0.5", "recipe.toml"), [])
    assert (kept.student.loss.temperature, kept.student.loss.hard_weight) == (3.0, 0.5)
