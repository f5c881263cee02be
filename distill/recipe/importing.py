"""Teachers that were trained elsewhere: how `--teacher` names one, and which recipe it is imported with. No torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from distill.errors import RecipeError
from distill.recipe.load import load_recipe, override, parse_recipe
from distill.recipe.paths import expanded
from distill.recipe.schema import ImportedRecipe, Recipe, TeacherRecipe

TIMM, LOCAL_DIR, SAFETENSORS = "timm:", "local-dir:", ".safetensors"
PICKLED = (".pth", ".pth.tar", ".pt", ".bin", ".ckpt", ".pkl", ".tar")

# What may be said about a teacher that is not trained here, beside `--model`.
_SETTABLE = ("teacher.imported.mean", "teacher.imported.std", "teacher.imported.image_size", "teacher.model_args.")


def is_elsewhere(text: str) -> bool:
    """Whether `--teacher` means weights from elsewhere (timm:NAME, local-dir:FOLDER, a file) and not a run folder.

    Raises:
        RecipeError: it is in the home of a user that nobody knows.
    """
    if text.startswith((TIMM, LOCAL_DIR)):
        return True
    path = expanded(text, "--teacher", RecipeError)
    return not path.is_dir() and (path.is_file() or text.lower().endswith((SAFETENSORS, *PICKLED)))


def import_recipe(text: str, path: Path | None, overrides: Sequence[str]) -> Recipe:
    """The recipe for data, views, export and student; what it says about training a teacher is left out.

    Args:
        text: as given to `--teacher`; names the run where neither recipe nor overrides do.
        path: a recipe; None: every field at its default.
        overrides: assignments such as `data.source=folder`.

    Raises:
        RecipeError: no recipe, or an override that would do nothing for a teacher that is not trained here.
    """
    for assignment in overrides:
        name = assignment.partition("=")[0].strip()
        if name.startswith("teacher.") and not name.startswith(_SETTABLE):
            cure = "Name the network with --model" if name == "teacher.model" else "Leave it out"
            raise RecipeError(
                f"override {assignment}: {text} is imported, not trained: [teacher] does nothing for it, except "
                "[teacher.imported] mean, std, image_size and [teacher.model_args]",
                cure=f"{cure}.",
            )
    base = load_recipe(path) if path is not None else parse_recipe(f'name = "{_run_name(text)}"', "defaults")
    told = base.teacher.imported
    kept = ImportedRecipe(mean=told.mean, std=told.std, image_size=told.image_size)
    return override(base.model_copy(update={"teacher": TeacherRecipe(imported=kept)}), overrides)


def _run_name(text: str) -> str:
    """`resnet18` of timm:resnet18, the folder's name, or the file's stem; `model.safetensors` goes by its folder."""
    path = expanded(text.removeprefix(TIMM).removeprefix(LOCAL_DIR), "--teacher", RecipeError)
    name = path.name.removesuffix(SAFETENSORS)
    if not text.startswith((TIMM, LOCAL_DIR)) and name == "model":
        name = path.absolute().parent.name
    if name in ("", ".", ".."):
        name = path.resolve().name
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).lstrip("-._")[:100] or "imported"


def refuse_for_a_run(text: str, path: Path | None, model: str | None) -> None:
    """Raises a `RecipeError` where a run folder is given options that are for teachers from elsewhere."""
    given = [name for name, value in (("--recipe", path), ("--model", model)) if value is not None]
    if given:
        raise RecipeError(
            f"{text}: {' and '.join(given)} given, but a run folder has its own recipe and network",
            cure=f"Leave {' and '.join(given)} out; change [export] or views.count with --set (other [views] only of a "
            "teacher that was imported). "
            f"Teachers from elsewhere are {TIMM}NAME, {LOCAL_DIR}FOLDER or a file that ends in {SAFETENSORS}.",
        )
