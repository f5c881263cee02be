"""What cannot be built is said before anything is trained: by `check`, `compare` and `run`, arm by arm."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distill.errors import DataError, ModelError, RecipeError, RunError, UserError
from distill.recipe.checks import check_recipe
from distill.recipe.grid import grid
from distill.recipe.schema import ImportedRecipe, Recipe
from distill.report.runs import Run
from distill.stages import trial
from distill.stages.check import check_plan
from distill.stages.compare import compare, run_one
from distill.stages.grid import finished_cells
from distill.stages.pipeline import run_pipeline, run_teacher
from distill.stages.plan import plan_grid
from distill.training.events import Event

# What an arm assigns, the error, and what is said of it after the arm's name.
FAULTS: dict[str, tuple[str, type[UserError], str]] = {
    "network": ("teacher.model=nope", ModelError, "[teacher] model: model 'nope' is neither"),
    "data": ("data.train=5000", DataError, "data: asked for 100 (test) + 60 (validation) + 60 (meta) + 5000"),
    "optimiser": ("teacher.optimizer.name=foo", RecipeError, "[teacher.optimizer] name: found 'foo'"),
    "student": ("student.model=nope2", ModelError, "[student] model: model 'nope2' is neither"),
    "pupil": ("student.optimizer.name=bar", RecipeError, "[student.optimizer] name: found 'bar'"),
    "arguments": ("student.model_args={wdth=2}", ModelError, "[student] model: model 'resnet8' cannot be built with"),
    "weights": ("student.pretrained=true", ModelError, "[student] pretrained: model 'resnet8': no pretrained weights"),
    "mean": ('student.more_teachers=["gone"]', RunError, "[student] more_teachers: gone: no such run folder"),
}


def ignore(event: Event) -> None:
    pass


def armed(tiny: Callable[..., Recipe], arms: dict[str, tuple[str, ...]], *fields: str) -> Recipe:
    """A comparison of onehot teachers that differ in what their arms assign."""
    recipe = tiny("teacher.labels.rule=onehot", "compare.teachers=onehot,smoothing,instance", *fields)
    return recipe.model_copy(update={"compare": recipe.compare.model_copy(update={"arms": arms})})


def test_check_names_every_arm_that_cannot_be_run(tiny: Callable[..., Recipe]) -> None:
    arms = {"plain": (), **{name: (field,) for name, (field, _, _) in FAULTS.items()}}
    again = {"again": ("teacher.model=nope", "student.model=nope2")}  # is not said twice
    problems = check_plan(armed(tiny, {**arms, **again}), "tiny.toml").problems
    assert len(problems) == len(FAULTS)
    for name, (_, _, said) in FAULTS.items():
        assert any(problem.startswith(f"[compare.arms] {name}: {said}") for problem in problems), name


def test_two_problems_of_an_arm_are_both_told(tiny: Callable[..., Recipe]) -> None:
    """One that the recipe alone shows, one that needs the network; and the base's own on the same field beside it."""
    bad = ("teacher.epochs=2", "teacher.optimizer.warmup_epochs=2", "teacher.model=nope", "student.model=nope2")
    problems = check_plan(armed(tiny, {"plain": (), "bad": bad}, "student.model=nope3"), "tiny.toml").problems
    assert [problem.partition(": found")[0].partition(" is neither")[0] for problem in problems] == [
        "[compare.arms] bad: [teacher.optimizer] warmup_epochs",
        "[student] model: model 'nope3'",
        "[compare.arms] bad: [teacher] model: model 'nope'",
        "[compare.arms] bad: [student] model: model 'nope2'",
    ]


def test_arms_that_ask_for_the_same_are_tried_once(
    tiny: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def counted(name: str) -> None:
        real = getattr(trial, name)

        def call(*given: Any, **named: Any) -> Any:
            asked.append(name)
            return real(*given, **named)

        monkeypatch.setattr(trial, name, call)

    for name in ("open_data", "fit_model", "build_optimizer"):
        counted(name)
    arms = {"a": (), "b": ("teacher.epochs=1",), "c": ("teacher.labels.rule=class",), "d": ("teacher.model=resnet14",)}
    recipe = armed(tiny, arms, "compare.seeds=0,1", "compare.temperatures=1,4", "compare.controls=true")
    assert check_plan(recipe, "tiny.toml").problems == []
    # Of the recipe itself both optimisers and networks; of the arms the one network that is not the recipe's; no data.
    assert sorted(asked) == [*["build_optimizer"] * 2, *["fit_model"] * 3]
    asked.clear()
    plan_grid(recipe, ignore)
    assert sorted(asked) == [*["build_optimizer"] * 2, *["fit_model"] * 3, "open_data"]


@pytest.mark.parametrize("name", FAULTS)
def test_a_comparison_is_refused_before_its_first_cell(tiny: Callable[..., Recipe], tmp_path: Path, name: str) -> None:
    field, error, said = FAULTS[name]
    recipe = armed(tiny, {"plain": (), name: (field,)})
    for run in (compare, plan_grid, lambda recipe, listener: run_one(recipe, 0, listener)):
        with pytest.raises(error) as found:
            run(recipe, ignore)
        assert found.value.message.startswith(f"[compare.arms] {name}: {said}")
        assert found.value.cure
    assert not list(tmp_path.iterdir())


def test_what_all_arms_have_in_common_is_said_without_their_names(tiny: Callable[..., Recipe]) -> None:
    recipe = armed(tiny, {"a": (), "b": ("teacher.epochs=1",)}, "student.model=nope")
    with pytest.raises(ModelError, match=r"^\[student\] model: model 'nope'"):
        plan_grid(recipe, ignore)
    (problem,) = check_plan(recipe, "tiny.toml").problems
    assert problem.startswith("[student] model: ")


def test_a_teacher_of_the_comparison_may_be_another_s_second(tiny: Callable[..., Recipe]) -> None:
    second = 'student.more_teachers=["a-s0"]'
    assert check_plan(armed(tiny, {"a": (), "b": (second,)}), "tiny.toml").problems == []
    (problem,) = check_plan(armed(tiny, {"b": (second,), "a": ()}), "tiny.toml").problems  # which comes too late
    assert problem.startswith("[compare.arms] b: [student] more_teachers: a-s0: no such run folder")


def test_data_that_a_cell_cannot_open_come_with_its_arm(tiny: Callable[..., Recipe]) -> None:
    recipe = armed(tiny, {"plain": (), "many": ("data.train=5000",)})
    with pytest.raises(DataError, match=r"^\[compare\.arms\] many: data: asked for .* 5000"):
        finished_cells(grid(recipe), ignore)


@pytest.mark.parametrize("name", [name for name, (field, _, _) in FAULTS.items() if field.startswith("student")])
def test_a_run_with_no_possible_student_trains_no_teacher(
    tiny: Callable[..., Recipe], tmp_path: Path, name: str
) -> None:
    field, error, said = FAULTS[name]
    with pytest.raises(error) as found:
        run_pipeline(tiny(field), ignore)
    assert found.value.message.startswith(said)
    assert not list(tmp_path.iterdir())
    (problem,) = check_plan(tiny(field), "tiny.toml").problems
    assert problem.startswith(said)


def test_weights_are_not_asked_for_again_once_a_run_is_begun(
    tiny: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    def begun(*_: Any) -> Run:
        raise AssertionError("begun")

    recipe = tiny("student.pretrained=true")
    run_teacher(tiny("teacher.epochs=1"), ignore, export=False)
    monkeypatch.setattr("distill.stages.pipeline.train_teacher", begun)
    with pytest.raises(AssertionError, match="begun"):
        run_pipeline(recipe, ignore)


def test_names_are_looked_up_where_the_images_are_unknown(tiny: Callable[..., Recipe], tmp_path: Path) -> None:
    noise = ("data.noise.kind=none", "data.noise.rate=0", "data.noise.redraw=all")
    folder = ("data.source=folder", f'data.root="{tmp_path}/nowhere"', *noise)
    recipe = tiny(*folder, "teacher.model=nope", "student.model_args={num_classes=3}")
    told = json.dumps(check_plan(recipe, "tiny.toml").problems)
    for word in (
        "nowhere",
        "[teacher] model: model 'nope'",
        "[student] model: model 'resnet8': argument 'num_classes'",
    ):
        assert word in told


# Networks whose last layer, or whose stages, cannot be looked at, with what is said of them.
BLIND = {
    "fitnet": ("student.model=efficientvim_m1", "[student] model: the last layer (ModuleList) was given 0 inputs"),
    "attention": (
        "student.model=efficientvim_m1",
        "[student] model: EfficientViM: none of its stages",
    ),
    "rkd": ("teacher.model=efficientvim_m1", "[export] features: EfficientViM"),
}


@pytest.mark.parametrize("loss", BLIND)
@pytest.mark.parametrize("online", [False, True])
def test_a_network_that_a_loss_cannot_look_into_is_refused_before_any_is_trained(
    tiny: Callable[..., Recipe], tmp_path: Path, loss: str, online: bool
) -> None:
    field, said = BLIND[loss]
    inside = (f"student.loss.name={loss}", f"student.online={str(online).lower()}")
    stored = () if online else ("export.features=true", "export.maps=true")
    if field.startswith("teacher"):
        said, stored = ("[teacher] model: ", ()) if online else (said, ("export.features=true",))
    assert check_plan(tiny(*inside, *stored), "tiny.toml").problems == []
    recipe = tiny(field, *inside, *stored)
    with pytest.raises(ModelError) as found:
        run_pipeline(recipe, ignore)
    assert found.value.message.startswith(said)
    assert found.value.cure
    assert not list(tmp_path.iterdir())
    (problem,) = check_plan(recipe, "tiny.toml").problems
    assert problem.startswith(said)
    (problem,) = check_plan(armed(tiny, {"a": (), "b": (field,)}, *inside, *stored), "tiny.toml").problems
    assert problem.startswith(f"[compare.arms] b: {said}")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (("export.format=topk", "export.k=11"), "[export] k: found 11, but digits has 10 classes"),
        (("teacher.model=efficientvim_m1", "export.features=true"), "[export] features: EfficientViM"),
        (("teacher.model=efficientvim_m1", "export.maps=true"), "[export] maps: EfficientViM: none of its stages"),
    ],
)
def test_a_teacher_whose_store_cannot_be_written_is_not_trained(
    tiny: Callable[..., Recipe], tmp_path: Path, fields: tuple[str, ...], said: str
) -> None:
    with pytest.raises(UserError) as found:
        run_teacher(tiny(*fields, "student.loss.temperature=1"), ignore)
    assert found.value.message.startswith(said)
    assert not list(tmp_path.iterdir())


def test_check_refuses_the_last_layer_of_a_network_without_a_single_one(tiny: Callable[..., Recipe]) -> None:
    """The network itself is named, not what enlarges its images."""
    fields = ("teacher.model=efficientvim_m1", "teacher.labels.rule=class", "teacher.labels.estimator=last-layer")
    problems = check_plan(tiny(*fields), "tiny.toml").problems
    said = "[teacher.labels] estimator: last-layer: the classifier of EfficientViM is "
    assert [problem[: len(said)] for problem in problems] == [said]


def test_what_the_losses_of_a_grid_have_in_common_is_said_without_an_arm(tiny: Callable[..., Recipe]) -> None:
    fields = ("student.model=efficientvim_m1", 'compare.losses=["fitnet"]', "export.features=true")
    recipe = armed(tiny, {"a": (), "b": ("teacher.epochs=1",)}, *fields)
    (problem,) = check_plan(recipe, "tiny.toml").problems
    assert problem.startswith("[student] model: the last layer")


def test_a_recipe_with_arms_can_import_its_teacher(tiny: Callable[..., Recipe]) -> None:
    """Its arms have the imported teacher too, and are for nothing: only a comparison refuses them."""
    told = {"source": "timm:resnet18", "channels": 1, "image_size": 8, "mean": (0.5,), "std": (0.5,)}
    recipe = armed(tiny, {"a": (), "b": ("teacher.labels.rule=smoothing",)})
    teacher = recipe.teacher.model_copy(update={"imported": ImportedRecipe(**told)})
    recipe = recipe.model_copy(update={"teacher": teacher})
    check_recipe(recipe, "tiny.toml")
    with pytest.raises(RecipeError, match=r"\[teacher\.imported\] source: found \"timm:resnet18\", but the teachers"):
        compare(recipe, ignore)


def test_an_arm_may_not_import_its_teacher(tiny: Callable[..., Recipe]) -> None:
    told = ("channels=1", "mean=[0.5]", "std=[0.5]", "image_size=8", "source=timm:resnet18")
    arm = tuple(f"teacher.imported.{field}" for field in told)
    recipe = armed(tiny, {"plain": (), "other": arm})
    (problem,) = check_plan(recipe, "tiny.toml").problems
    assert problem.startswith("[compare.arms] other: [teacher.imported] source: found")
    with pytest.raises(RecipeError, match=r"\[compare\.arms\] other: \[teacher\.imported\] source: found"):
        compare(recipe, ignore)
