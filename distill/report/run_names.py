"""What a run is called by: its folder, or its name under the checkpoints folder. No torch."""

from __future__ import annotations

from pathlib import Path

from distill.errors import RunError
from distill.recipe.importing import is_elsewhere
from distill.recipe.paths import expanded
from distill.report.runs import RECORD, known_runs


def find_run(text: str, checkpoints: Path) -> Path:
    """The folder that `--teacher RUN` means: a path, or the name of a run under the checkpoints folder.

    Raises:
        RunError: there is none, or no name was given.
    """
    if run := run_named(text, checkpoints):
        return run
    path, named = given_path(text), checkpoints / text
    if path.is_dir():
        return path
    if named.is_dir():
        return named
    if path.suffix == ".toml" and path.is_file():
        raise RunError(f"{text}: is a recipe, expected a run folder", cure=known_runs(checkpoints))
    if is_elsewhere(text):
        raise RunError(
            f"{text}: no run folder yet",
            cure=f"import it first: `distill export --teacher {text}` names the run folder.",
        )
    raise RunError(f"{text}: no such run folder", cure=known_runs(checkpoints))


def given_path(text: str) -> Path:
    """The path that a run was named by, with `~` spelled out.

    Raises:
        RunError: it is empty, which would mean the current folder and is a script's unset variable; or it is in the
            home of a user that nobody knows.
    """
    if not text:
        raise RunError(
            "RUN: found an empty name, expected a folder or the name of a run",
            cure="name one; . is the current folder.",
        )
    return expanded(text, "RUN", RunError)


def run_named(text: str, checkpoints: Path) -> Path | None:
    """The run of a bare name, which it means before any other file or folder: images in `pets/` may have made run pets.

    None: there is no such run, or there is one at the path too.
    """
    path, named = Path(text), checkpoints / text
    is_run = path.name == text and (named / RECORD).is_file() and not (path / RECORD).is_file()
    return named if is_run else None
