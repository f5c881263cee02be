"""Every recipe with its data; the literature's CIFAR-100 pairs from teacher to student, their schedule, their sizes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from benchmarks import shapes
from distill.data.cifar import CIFAR_LAYOUTS
from distill.data.sources import open_source
from distill.errors import DataError
from distill.recipe.checks import check_recipe
from distill.recipe.load import load_recipe, override_run
from distill.recipe.schema import DataRecipe, StageRecipe
from distill.stages.check import check_plan
from distill.stages.pipeline import run_pipeline
from distill.store.logits import LogitStore
from distill.training.events import Event
from distill.training.schedule import build_optimizer, build_schedule

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
LITERATURE = sorted((RECIPES / "literature").glob("*.toml"))
IMAGES, CLASSES = 50_000, 100

# Millions of parameters at 100 classes, as the literature's tables print them; tests/models/test_cifar.py has them all.
PUBLISHED = {
    "resnet32x4": 7.43,
    "resnet8x4": 1.23,
    "wrn_40_2": 2.26,
    "wrn_16_2": 0.70,
    "vgg13_cifar": 9.46,
    "vgg8": 3.97,
    "resnet56": 0.86,
    "resnet20": 0.28,
}
# What makes a pair's recipe small: two steps each, two of the 162 views. Seconds all the same, so one pair is enough
# for every day.
SMALL = (
    "threads=1",
    "teacher.epochs=1",
    "teacher.optimizer.milestones=[]",
    "teacher.optimizer.schedule=constant",
    "teacher.batch_size=50",
    "views.count=2",
    "student.epochs=1",
    "student.optimizer.milestones=[]",
    "student.optimizer.schedule=constant",
    "student.batch_size=50",
)

each_pair = pytest.mark.parametrize("path", LITERATURE, ids=lambda path: path.stem)


def ignore(event: Event) -> None:
    pass


@pytest.fixture(scope="module")
def cifar100(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files as published (the binary version), but with one training image of each class, and four to test."""
    layout, root = CIFAR_LAYOUTS["cifar100"], tmp_path_factory.mktemp("cifar100")
    folder = root / layout.binary_folder
    folder.mkdir()
    generator = np.random.default_rng(0)
    for name, labels in ((*layout.binary_train, range(CLASSES)), (layout.binary_test, range(4))):
        records = generator.integers(0, 256, (len(labels), 2 + 3072), dtype=np.uint8)
        records[:, 1] = labels
        (folder / name).write_bytes(records.tobytes())
    (folder / layout.binary_names).write_text("".join(f"class {number}\n" for number in range(CLASSES)))
    return root


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shapes that one recipe is of, fewer of each."""
    folder = tmp_path_factory.mktemp("shapes")
    shapes.make(folder, 100)
    return folder


def missing(data: DataRecipe) -> str:
    """Why the data are not here; "": they are. Damaged ones are an error."""
    try:
        open_source(data)
    except DataError as error:
        if "not found" not in error.message:
            raise
        return error.message
    return ""


@pytest.mark.parametrize("path", sorted(RECIPES.glob("**/*.toml")), ids=lambda path: path.stem)
def test_a_recipe_is_sound_with_its_data(path: Path, cifar100: Path, drawn: Path) -> None:
    recipe = load_recipe(path)
    check_recipe(recipe, path.name, comparing=True)
    few = {"cifar100": [f'data.root="{cifar100}"', "data.validation=0"], "folder": [f'data.root="{drawn}"']}
    assert recipe.name == path.stem
    recipe = load_recipe(path, few.get(recipe.data.source, []))
    report = check_plan(recipe, path.name)
    assert [problem for problem in report.problems if "not found" not in problem] == []
    if reason := missing(recipe.data):
        pytest.skip(f"all but the data: {reason}")
    assert report.problems == []
    assert {"data", "views", "teacher", "export", "student", "compare"} <= report.plan.keys()


@pytest.mark.parametrize(
    "path",
    [pytest.param(p, marks=() if p.stem == "resnet56_resnet20" else pytest.mark.slow, id=p.stem) for p in LITERATURE],
)
def test_a_pair_from_teacher_to_student(path: Path, cifar100: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path, [*SMALL, f'data.root="{cifar100}"', f'checkpoints="{tmp_path}"'])
    teacher, student = run_pipeline(recipe, ignore)
    store = LogitStore.open(teacher.folder / "logits")
    assert (store.views, store.classes, store.indices.numel()) == (2, CLASSES, CLASSES)
    assert timm.create_model(f"local-dir:{student.folder}", pretrained=True)(torch.zeros(2, 3, 32, 32)).shape == (
        2,
        100,
    )
    assert not list(tmp_path.glob("**/best.safetensors"))  # there is nothing to choose by


@each_pair
def test_another_loss_keeps_nothing_of_the_first(path: Path) -> None:
    loss = override_run(load_recipe(path), ["student.loss.name=dkd", "student.loss.beta=2"]).student.loss
    assert (loss.temperature, loss.hard_weight, loss.soft_weight, loss.beta) == (None, None, None, 2.0)


@each_pair
def test_the_recipe_is_the_literature_s(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.data == DataRecipe(source="cifar100", validation=0)
    assert (recipe.views.crop_padding, recipe.views.flip, recipe.views.count, recipe.views.drawn) == (
        4,
        True,
        "orbit",
        (),
    )
    assert recipe.teacher.labels.rule == "onehot"
    loss = recipe.student.loss
    assert (loss.name, loss.temperature, loss.hard_weight, loss.soft_weight, loss.plus) == ("kd", 4.0, 0.1, 0.9, {})
    for stage in (recipe.teacher, recipe.student):
        assert (stage.epochs, stage.batch_size, stage.select, stage.clip_norm) == (240, 64, "last", 0.0)


@each_pair
def test_the_learning_rate_is_the_literature_s(path: Path) -> None:
    recipe = load_recipe(path)
    for stage in (recipe.teacher, recipe.student):
        assert learning_rates(stage) == pytest.approx({1: 0.05, 150: 0.05, 151: 5e-3, 180: 5e-3, 181: 5e-4, 211: 5e-5})


def learning_rates(stage: StageRecipe) -> dict[int, float]:
    """In some epochs, counted from 1; asserts that it is the same in the first and the last step of each."""
    steps = IMAGES // stage.batch_size
    optimizer = build_optimizer(torch.nn.Linear(1, 1), stage.optimizer, "optimizer")
    schedule = build_schedule(optimizer, stage.optimizer, epochs=stage.epochs, steps=steps)
    rates = {}
    for epoch in (1, 150, 151, 180, 181, 211):
        schedule.step_update((epoch - 1) * steps)
        rates[epoch] = optimizer.param_groups[0]["lr"]
        schedule.step_update(epoch * steps - 1)
        assert optimizer.param_groups[0]["lr"] == rates[epoch]
    return rates


@each_pair
def test_the_optimiser_is_plain_momentum_with_decay_on_everything(path: Path) -> None:
    recipe = load_recipe(path)
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1), torch.nn.BatchNorm2d(1))
    for stage in (recipe.teacher, recipe.student):
        optimizer = build_optimizer(network, stage.optimizer, "optimizer")
        assert type(optimizer) is torch.optim.SGD
        for group in optimizer.param_groups:
            assert (group["momentum"], group["nesterov"], group["dampening"]) == (0.9, False, 0)
            assert group["weight_decay"] == 5e-4
        assert sum(len(group["params"]) for group in optimizer.param_groups) == 4


@each_pair
def test_the_networks_have_the_published_sizes(path: Path, cifar100: Path) -> None:
    recipe = load_recipe(path, [f'data.root="{cifar100}"'])
    plan = check_plan(recipe, path.name).plan
    for table in ("teacher", "student"):
        model = plan[table]["model"]  # as it is, without arguments
        assert plan[table]["parameters"] / 1e6 == pytest.approx(PUBLISHED[model], abs=0.005)


@each_pair
def test_the_head_tells_what_is_on_disk(path: Path) -> None:
    size = IMAGES * 162 * CLASSES * 2 / 1e9
    text = path.read_text()
    assert f"{size:.2f} GB" in text
    assert "Published, not ours; not run with this program." in text
