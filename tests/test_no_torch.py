"""What has to answer at once must not import torch, which takes about three seconds."""

from __future__ import annotations

import pkgutil
import subprocess
import sys

import pytest

import distill.report

LIGHT = [
    "distill",
    "distill.cli",
    "distill.errors",
    "distill.recipe.schema",
    "distill.recipe.fields",
    "distill.recipe.load",
    "distill.recipe.digest",
    "distill.recipe.checks",
    "distill.store.atomic",
    "distill.store.json_files",
    "distill.training.events",
    "distill.training.console",
    *(module.name for module in pkgutil.walk_packages(distill.report.__path__, "distill.report.")),
]

_LOOK = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
    heavy = sorted({"torch", "torchvision", "timm", "triton"} & set(sys.modules))
    if heavy:
        sys.exit(f"{name} imports {', '.join(heavy)}")
"""


def test_light_modules_import_no_torch() -> None:
    done = subprocess.run([sys.executable, "-c", _LOOK, *LIGHT], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_the_judge_sees_torch() -> None:
    done = subprocess.run([sys.executable, "-c", _LOOK, "distill.seeding"], capture_output=True, text=True, timeout=120)
    assert "distill.seeding imports torch" in done.stderr


_RECIPE = """
import sys
from pathlib import Path
from distill.errors import RecipeError
from distill.recipe.checks import check_recipe
from distill.recipe.load import dump_recipe, load_recipe
from distill.recipe.digest import teacher_digest
try:
    recipe = load_recipe(Path(sys.argv[1]))
    check_recipe(recipe, sys.argv[1])
    teacher_digest(recipe), dump_recipe(recipe)
    print("accepted")
except RecipeError as error:
    print(error)
sys.exit("torch was imported" if "torch" in sys.modules else 0)
"""


@pytest.mark.parametrize(
    ("text", "answer"),
    [("seed = 1\n", "accepted"), ("sed = 1\n", "did you mean seed?"), ("[data]\ntest = 0", "[data] test")],
)
def test_a_recipe_is_judged_without_torch(tmp_path_factory: pytest.TempPathFactory, text: str, answer: str) -> None:
    path = tmp_path_factory.mktemp("recipes") / "r.toml"
    path.write_text(text)
    done = subprocess.run([sys.executable, "-c", _RECIPE, str(path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert answer in done.stdout
