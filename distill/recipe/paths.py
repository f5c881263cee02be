"""What a path in a recipe means: `~` is spelled out. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from distill.errors import RecipeError, UserError


def expanded(text: str, where: str, kind: type[UserError]) -> Path:
    """A path with `~` and `~somebody` spelled out, as a shell does only where they begin a word.

    Args:
        text: as it was written.
        where: what it was given for, which opens the message.
        kind: what to raise.

    Raises:
        UserError: of this kind: nobody knows that home folder.
    """
    # Not Path.expanduser: for that, ./~folder is ~folder, and there would be no way to say it.
    path = os.path.expanduser(text)  # noqa: PTH111
    if text.startswith("~") and path == text:
        raise kind(
            f"{where}: found {text!r}, but no home folder of {text.split('/')[0]} is known here, expected a whole path",
            cure="Write it from / on; or ./~... for a folder whose name begins so.",
        )
    return Path(path)


def spell_out_homes(raw: dict[str, Any], places: Mapping[tuple[str | int, ...], str], where: str) -> Iterator[str]:
    """Spells `~` out where runs are named, so that whoever makes their paths need not; yields a problem where it can't.

    Run folders keep the recipe, and mean the same then whoever reads it. Paths of data stay as they were written: those
    are expanded where they are opened, as each reader has data of their own.

    Args:
        raw: the recipe as it was read, changed in place.
        places: where a field was assigned, if it was.
        where: the recipe's name, for the fields that were not.
    """
    student = raw.get("student")
    for table, location, shown in (
        (raw, ("checkpoints",), "checkpoints"),
        (student, ("student", "more_teachers"), "[student] more_teachers"),
    ):
        if not isinstance(table, dict) or location[-1] not in table:
            continue
        found = table[location[-1]]
        try:
            if isinstance(found, list | tuple):
                table[location[-1]] = [_spelled_out(item, shown) for item in found]
            else:
                table[location[-1]] = _spelled_out(found, shown)
        except RecipeError as error:
            yield f"{places.get(location, where)}: {error.message}"


def _spelled_out(value: Any, where: str) -> Any:
    return str(expanded(value, where, RecipeError)) if isinstance(value, str) and value.startswith("~") else value
