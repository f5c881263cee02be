"""A tiny recipe on the shipped digits, for whole stages in a second or two."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from distill.recipe.load import override, parse_recipe
from distill.recipe.schema import Recipe
from distill.report.runs import Run, open_run

TINY = """
name = "tiny"
threads = 1
[data]
source = "digits"
train = 200
validation = 60
meta = 60
test = 100
[data.noise]
kind = "symmetric"
rate = 0.3
redraw = "others"
[views]
crop_padding = 1
count = 3
[teacher]
model = "resnet8"
epochs = 3
batch_size = 50
[teacher.labels]
rule = "instance"
meta = "held-out"
meta_batch_size = 32
step = 5.0
[export]
shard_rows = 100
[student]
model = "resnet8"
epochs = 2
batch_size = 64
[compare]
teachers = ["onehot", "class"]
controls = false
"""


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[..., Recipe]:
    """`tiny("teacher.epochs=1")`: the recipe with overrides, its runs in the test's own folder."""

    def make(*overrides: str) -> Recipe:
        recipe = parse_recipe(TINY, "tiny.toml", [f'checkpoints="{tmp_path}"'])
        return override(recipe, overrides)

    return make


@pytest.fixture
def teacher(trained: Path, tmp_path: Path) -> Run:
    """A copy of the module's `trained` run folder."""
    return open_run(Path(shutil.copytree(trained, tmp_path / "tiny")))
