"""What every table of a recipe is: frozen and closed; and what a path in it means. Imports no torch."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from distill.errors import UserError


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


class Table(BaseModel):
    """A table of a recipe: frozen, no unknown field, no silent conversion ("3" is not 3)."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())
