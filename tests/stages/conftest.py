"""A tiny recipe on the shipped digits, for whole stages in a second or two."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
def close(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """`close(folder)`: nobody may look into it from then on, not even root, for whom modes do not bind."""

    def shut(folder: Path) -> None:
        def within(path: Any) -> bool:
            return not isinstance(path, int) and folder in Path(path).absolute().parents

        def closed(path: Any) -> bool:
            return within(path) or Path(path).absolute() == folder

        def refusing(name: str, refused: Callable[[Any], bool]) -> None:
            real = getattr(os, name)

            def call(path: Any = ".", *args: Any, **named: Any) -> Any:
                if refused(path):
                    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
                return real(path, *args, **named)

            monkeypatch.setattr(os, name, call)

        refusing("stat", within)
        refusing("listdir", closed)
        refusing("scandir", closed)
        access = os.access
        monkeypatch.setattr(os, "access", lambda path, mode: not closed(path) and access(path, mode))

    return shut


@pytest.fixture
def teacher(trained: Path, tmp_path: Path) -> Run:
    """A copy of the module's `trained` run folder."""
    return open_run(Path(shutil.copytree(trained, tmp_path / "tiny")))
