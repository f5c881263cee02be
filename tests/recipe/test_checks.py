"""The rules between fields: each is broken once, and a recipe that breaks none is let through."""

from __future__ import annotations

import itertools
from typing import get_args

import pytest

from distill.errors import RecipeError
from distill.recipe.checks import check_recipe, problems
from distill.recipe.load import override, parse_recipe
from distill.recipe.schema import LabelRule, Recipe

DEFAULT = parse_recipe("", "r.toml")
LEARNED = ("teacher.labels.rule=instance",)
POSTERIOR = (*LEARNED, "teacher.labels.pulls.posterior=1")
CALIBRATED = (*POSTERIOR, "teacher.labels.pulls.calibrated=true", "data.validation=50")
PROXIMAL = (*POSTERIOR, "teacher.labels.pulls.proximal=true")
HELD_OUT = (*LEARNED, "teacher.labels.meta=held-out")
JOINED = (*HELD_OUT, "teacher.labels.meta_joins=always", "data.meta=20")


def changed(*assignments: str) -> Recipe:
    return override(DEFAULT, assignments)


TOP_K = ("export.format=topk", "export.k=5")

# (assignments, the field that is named)
BROKEN: list[tuple[tuple[str, ...], str]] = [
    (("data.validation=1.0",), "[data] validation"),
    (("data.meta=2.5",), "[data] meta"),
    (("data.test=1.5",), "[data] test"),
    (("data.test=0",), "[data] test"),
    (("data.source=folder",), "[data] root"),
    (("data.image_size=64",), "[data] image_size"),
    (("data.download=true",), "[data] download"),
    (("data.noise.kind=file",), "[data.noise] file"),
    (("data.noise.file=x.npy",), "[data.noise] file"),
    (("data.noise.kind=symmetric",), "[data.noise] rate"),
    (("data.noise.rate=0.2",), "[data.noise] rate"),
    (("data.noise.kind=file", "data.noise.file=x.npy", "data.noise.rate=0.2"), "[data.noise] rate"),
    (("data.noise.pairs.a=b",), "[data.noise] pairs"),
    (("data.noise.kind=asymmetric", "data.noise.rate=0.2", "data.noise.pairs.a=a"), "[data.noise] pairs"),
    (("data.noise.redraw=others",), "[data.noise] redraw"),
    (("views.count=2",), "[views] count"),
    (("views.count=163", "views.crop_padding=4", "views.flip=true"), "[views] count"),
    (("teacher.select=best", "data.validation=0"), "[teacher] select"),
    (("student.select=best", "data.validation=0.0"), "[student] select"),
    (("teacher.optimizer.warmup_epochs=30",), "[teacher.optimizer] warmup_epochs"),
    (("student.epochs=2", "student.optimizer.warmup_epochs=2"), "[student.optimizer] warmup_epochs"),
    (("teacher.optimizer.schedule=constant", "teacher.optimizer.min_lr=0.01"), "[teacher.optimizer] min_lr"),
    (("teacher.optimizer.min_lr=1",), "[teacher.optimizer] min_lr"),
    (("teacher.optimizer.milestones=3",), "[teacher.optimizer] milestones"),
    (("teacher.optimizer.schedule=multistep",), "[teacher.optimizer] milestones"),
    (("teacher.optimizer.schedule=multistep", "teacher.optimizer.milestones=5,3"), "[teacher.optimizer] milestones"),
    (("teacher.optimizer.schedule=multistep", "teacher.optimizer.milestones=3,3"), "[teacher.optimizer] milestones"),
    (("student.optimizer.schedule=multistep", "student.optimizer.milestones=3,30"), "[student.optimizer] milestones"),
    ((*LEARNED, "teacher.labels.warmup_epochs=30"), "[teacher.labels] warmup_epochs"),
    (("compare.teachers=onehot", "teacher.labels.warmup_epochs=3"), "[teacher.labels] warmup_epochs"),
    (("teacher.labels.average_epochs=31",), "[teacher.labels] average_epochs"),
    (HELD_OUT, "[data] meta"),
    ((*LEARNED, "teacher.labels.estimator=one-sided", "teacher.precision=bfloat16"), "[teacher.labels] estimator"),
    ((*LEARNED, "teacher.labels.estimator=one-sided", "teacher.precision=bfloat16"), "[teacher.labels] estimator"),
    ((*LEARNED, "teacher.labels.optimizer=adam", "teacher.labels.momentum=0.9"), "[teacher.labels] momentum"),
    ((*LEARNED, "teacher.labels.optimizer=normalised", "teacher.labels.momentum=0.9"), "[teacher.labels] momentum"),
    (
        (*LEARNED, "teacher.labels.warmup_epochs=20", "teacher.labels.freeze_epochs=10"),
        "[teacher.labels] freeze_epochs",
    ),
    (("compare.teachers=onehot", "teacher.labels.freeze_epochs=3"), "[teacher.labels] freeze_epochs"),
    (("compare.teachers=onehot", "teacher.labels.pulls.start=3"), "[teacher.labels] pulls"),
    (("teacher.labels.joint.history=3",), "[teacher.labels] joint"),
    (
        ("teacher.labels.rule=pencil", "teacher.labels.pencil.keep_meta=true", "data.meta=0"),
        "[teacher.labels.pencil] keep_meta",
    ),
    ((*LEARNED, "teacher.labels.known_mass=0.98"), "[teacher.labels] known_mass"),
    ((*JOINED, "teacher.labels.rule=class", "teacher.labels.known_mass=0.98"), "[teacher.labels] known_mass"),
    (
        (*JOINED, "teacher.labels.parametrisation=fixed-mass", "teacher.labels.known_mass=0.98"),
        "[teacher.labels] known_mass",
    ),
    (("teacher.labels.rule=pencil", "teacher.labels.known_mass=0.98"), "[teacher.labels] known_mass"),
    (("teacher.labels.rule=joint", "teacher.labels.elr.decay=0.3"), "[teacher.labels] elr"),
    (("teacher.labels.rule=elr", "views.mixup=0.2"), "[teacher.labels] rule"),
    ((*LEARNED, "teacher.labels.pulls.answers=0.2", "views.cutmix=1"), "[teacher.labels.pulls] answers"),
    ((*LEARNED, "teacher.labels.pulls.posterior=0.2", "views.mixup=1"), "[teacher.labels.pulls] posterior"),
    ((*LEARNED, "teacher.labels.pulls.ema_decay=0.9"), "[teacher.labels.pulls] ema_decay"),
    ((*LEARNED, "teacher.labels.pulls.learn_confusions=true"), "[teacher.labels.pulls] learn_confusions"),
    ((*LEARNED, "teacher.labels.pulls.learn_temperature=true"), "[teacher.labels.pulls] learn_temperature"),
    ((*LEARNED, "teacher.labels.pulls.calibrated=true"), "[teacher.labels.pulls] calibrated"),
    ((*CALIBRATED, "teacher.labels.pulls.learn_temperature=true"), "[teacher.labels.pulls] calibrated"),
    ((*CALIBRATED, "teacher.labels.pulls.ema_decay=0.9"), "[teacher.labels.pulls] calibrated"),
    ((*POSTERIOR, "teacher.labels.pulls.calibrated=true", "data.validation=0"), "[teacher.labels.pulls] calibrated"),
    ((*LEARNED, "teacher.labels.pulls.proximal=true"), "[teacher.labels.pulls] proximal"),
    ((*LEARNED, "teacher.labels.pulls.repeats=3"), "[teacher.labels.pulls] repeats"),
    ((*POSTERIOR, "teacher.labels.pulls.repeats=3"), "[teacher.labels.pulls] repeats"),
    ((*PROXIMAL, "teacher.labels.pulls.entropy=0.1"), "[teacher.labels.pulls] proximal"),
    ((*PROXIMAL, "teacher.labels.momentum=0.5"), "[teacher.labels.pulls] proximal"),
    ((*PROXIMAL, "teacher.labels.optimizer=adam"), "[teacher.labels.pulls] proximal"),
    ((*PROXIMAL, "teacher.labels.parametrisation=fixed-mass"), "[teacher.labels.pulls] proximal"),
    ((*LEARNED, "teacher.labels.divergence=reverse", "views.mixup=1"), "[teacher.labels] divergence"),
    (
        (*LEARNED, "teacher.labels.divergence=reverse", "teacher.labels.estimator=unrolled"),
        "[teacher.labels] estimator",
    ),
    (
        (*LEARNED, "teacher.labels.answer_entropy=0.4", "teacher.labels.estimator=unrolled"),
        "[teacher.labels] estimator",
    ),
    (
        (*LEARNED, "teacher.labels.pulls.answers=0.2", "teacher.labels.parametrisation=projected"),
        "[teacher.labels.pulls]",
    ),
    (
        ("teacher.labels.rule=class+instance", "teacher.labels.parametrisation=fixed-mass"),
        "[teacher.labels] parametrisation",
    ),
    ((*LEARNED, "teacher.labels.backend=triton", "device=cpu"), "[teacher.labels] backend"),
    ((*LEARNED, "teacher.optimizer.name=lamb"), "[teacher.optimizer] name"),
    ((*LEARNED, "teacher.optimizer.name=adamw"), "[teacher.labels] warmup_epochs"),
    (("student.loss.soft_weight=0", "student.loss.hard_weight=0"), "[student.loss] soft_weight"),
    (("student.loss.name=ce", "student.loss.temperature=3"), "[student.loss] temperature"),
    (("student.loss.name=ce", "student.loss.soft_weight=0"), "[student.loss] soft_weight"),
    (("compare.seeds=1,1",), "[compare] seeds"),
    (("compare.seeds=-1,2",), "[compare] seeds"),
    (("compare.teachers=class,class",), "[compare] teachers"),
    (("compare.temperatures=1,4,4",), "[compare] temperatures"),
    (("compare.weights=0.5,0.5",), "[compare] weights"),
    (("export.format=topk", "student.loss.temperature=1"), "[export] k"),
    (("export.k=5",), "[export] k"),
    (TOP_K, "[export] format"),
    ((*TOP_K, "student.loss.temperature=1.5"), "[export] format"),
    (("student.loss.allow_topk=true",), "[student.loss] allow_topk"),
    (("views.count=orbit", "views.erasing=0.5"), "[views] count"),
    (("views.count=orbit", "views.crop_padding=4", "views.mixup=0.2"), "[views] count"),
    (("views.crop_padding=4", "views.resized_crop=0.08,1"), "[views] crop_padding"),
    (("views.resized_crop=1,0.08",), "[views] resized_crop"),
    (("views.resized_crop=0.1,1", "views.resized_crop_ratio=2,0.5"), "[views] resized_crop_ratio"),
    (("views.resized_crop_ratio=0.5,2",), "[views] resized_crop_ratio"),
    (("views.randaugment_magnitude=5",), "[views] randaugment_magnitude"),
    (("views.erasing_area=0.1,0.2",), "[views] erasing_area"),
    (("views.erasing_ratio=1,1",), "[views] erasing_ratio"),
    (("views.mix_probability=0.5",), "[views] mix_probability"),
    (("views.mixup=0.2", "views.mix_probability=0"), "[views] mix_probability"),
    ((*LEARNED, "teacher.labels.meta_loss_q=1e-300"), "[teacher.labels] meta_loss_q"),
]


@pytest.mark.parametrize(("assignments", "place"), BROKEN)
def test_each_rule_names_its_field(assignments: tuple[str, ...], place: str) -> None:
    (line,) = problems(changed(*assignments))
    assert line.startswith(f"{place}: ")
    assert len(line) < 260


def test_a_word_is_named_where_one_of_its_fields_does_not_fit() -> None:
    """Who gave `settings` has not written the field that is refused."""
    (line,) = problems(changed("teacher.labels.rule=class+instance", "teacher.labels.settings=trusted"))
    assert 'settings = "trusted"' in line
    (line,) = problems(changed("teacher.labels.rule=class+instance", "teacher.labels.parametrisation=projected"))
    assert "settings" not in line


@pytest.mark.parametrize(
    "assignments",
    [
        (),
        LEARNED,
        (*HELD_OUT, "data.meta=100"),
        (*HELD_OUT, "data.meta=0.1", "teacher.labels.warmup_epochs=4", "teacher.labels.average_epochs=5"),
        (*LEARNED, "teacher.precision=bfloat16"),
        (*LEARNED, "teacher.precision=bfloat16", "teacher.labels.estimator=forward-mode"),
        (*LEARNED, "teacher.optimizer.name=SGD"),
        (*LEARNED, "teacher.labels.optimizer=adam", "teacher.labels.parametrisation=projected"),
        (*LEARNED, "teacher.labels.backend=triton"),
        (*LEARNED, "teacher.labels.backend=reference", "device=cpu"),
        ("teacher.optimizer.name=adamw",),
        ("teacher.labels.estimator=one-sided", "teacher.precision=bfloat16"),
        ("views.count=orbit",),
        ("views.mixup=0.2", "views.cutmix=1", "views.mix_probability=0.5", "views.count=1000"),
        (*LEARNED, "views.randaugment=2", "views.erasing=0.25", "views.resized_crop=0.08,1", "views.count=4"),
        ("views.brightness=0.4", "views.hue=0.5", "views.count=3"),
        ("views.count=162", "views.crop_padding=4", "views.flip=true"),
        ("data.source=folder", "data.root=x", "data.image_size=64", "data.test=0"),
        ("data.source=cifar10", "data.download=true"),
        ("data.noise.kind=asymmetric", "data.noise.rate=0.2", "data.noise.pairs.a=b"),
        ("data.noise.kind=file", "data.noise.file=x.npy"),
        ("teacher.optimizer.schedule=multistep", "teacher.optimizer.milestones=3,29"),
        ("student.loss.hard_weight=0",),
        ("compare.temperatures=1,2,4",),
        ("data.validation=1",),
        ("student.loss.name=ce",),
        ("student.seed=3", "compare.seeds=0,1"),
        ("export.format=int8", "export.features=true"),
        (*TOP_K, "student.loss.temperature=1"),
        (*TOP_K, "student.loss.temperature=0.5"),
        (*TOP_K, "student.loss.name=ce"),
        (*TOP_K, "student.loss.allow_topk=true"),
    ],
)
def test_sound_recipes_are_let_through(assignments: tuple[str, ...]) -> None:
    assert problems(changed(*assignments)) == []


@pytest.mark.parametrize(
    ("assignment", "wanted"),
    [
        ("views.resized_crop=0.5", "[views] resized_crop: found an array of 1 items, expected two numbers"),
        ("views.resized_crop=0,1", "[views] resized_crop[0]: found 0 (an integer), expected a number from 0.0001 to 1"),
        ("views.erasing_area=[]", "[views] erasing_area: found an empty array, expected two numbers"),
        ("views.erasing_ratio=1,2,3", "[views] erasing_ratio: found an array of 3 items, expected two numbers"),
        ("views.hue=0.6", "[views] hue: found 0.6 (a number), expected a number from 0 to 0.5"),
        ("views.randaugment_magnitude=31", "expected an integer from 0 to 30"),
        ("views.mixup=-1", "[views] mixup: found -1 (an integer), expected a number from 0 to 100"),
        ("views.erasing=1.5", "[views] erasing: found 1.5 (a number), expected a number from 0 to 1"),
        ("views.jitter=1", "[views] jitter is not a field"),
    ],
)
def test_ranges_of_views_are_named(assignment: str, wanted: str) -> None:
    with pytest.raises(RecipeError) as caught:
        changed(assignment)
    assert wanted in caught.value.message


def test_learned_teachers_of_a_comparison_count_when_it_is_made() -> None:
    recipe = changed("teacher.optimizer.name=lamb", "teacher.labels.meta=held-out")
    assert problems(recipe) == []
    assert [line.split(":")[0] for line in problems(recipe, comparing=True)] == [
        "[data] meta",
        "[teacher.optimizer] name",
    ]
    assert problems(override(recipe, ["compare.teachers=onehot,smoothing"]), comparing=True) == []


def test_a_comparison_s_temperatures_count_when_it_is_made() -> None:
    recipe = changed(*TOP_K, "student.loss.temperature=1", "compare.temperatures=1,4")
    assert problems(recipe) == []
    (line,) = problems(recipe, comparing=True)
    assert "at T = 4" in line
    assert problems(override(recipe, ["compare.temperatures=1", "student.loss.temperature=4"]), comparing=True) == []


def test_a_comparison_over_seeds_needs_students_of_each() -> None:
    recipe = changed("student.seed=3", "compare.seeds=0,1")
    (line,) = problems(recipe, comparing=True)
    assert line.startswith("[student] seed: found 3")
    assert problems(override(recipe, ["compare.seeds=1"]), comparing=True) == []


@pytest.mark.parametrize("rule", get_args(LabelRule))
def test_every_rule_has_a_sound_recipe(rule: str) -> None:
    assert problems(changed(f"teacher.labels.rule={rule}"), comparing=True) == []


def test_all_are_told_at_once() -> None:
    recipe = changed("data.test=0", "data.noise.rate=0.2", "compare.seeds=1,1")
    with pytest.raises(RecipeError) as caught:
        check_recipe(recipe, "recipes/r18.toml")
    lines = caught.value.message.split("\n")
    assert [line.split(": ")[:2] for line in lines] == [
        ["recipes/r18.toml", place] for place in ("[data] test", "[data.noise] rate", "[compare] seeds")
    ]
    assert caught.value.cure
    check_recipe(DEFAULT, "recipes/r18.toml")


def test_rules_do_not_hide_each_other() -> None:
    """Two problems in different tables give both lines."""
    apart = [BROKEN[i] for i in (3, 12, 15, 19, 26, 35)]
    for (first, one), (second, two) in itertools.combinations(apart, 2):
        assert {line.split(":")[0] for line in problems(changed(*first, *second))} >= {one, two}


@pytest.mark.parametrize(
    "assignments",
    [("compare.temperatures=1,4", "data.validation=0"), ("compare.temperatures=4", "student.loss.name=ce")],
)
def test_what_a_comparison_cannot_do_does_not_stop_a_student(assignments: tuple[str, ...]) -> None:
    recipe = changed(*assignments)
    assert problems(recipe) == []
    (line,) = problems(recipe, comparing=True)
    assert line.startswith("[compare] temperatures")
