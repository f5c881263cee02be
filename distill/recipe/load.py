"""TOML to `Recipe` and back, with every problem named at once.

A refused recipe gives one line for each problem: file, table, field, what was found, what was expected, and the name
that was probably meant. Imports no torch, so the refusal takes a fraction of a second.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import ValidationError

from distill.errors import RecipeError
from distill.recipe import fields
from distill.recipe.faults import Location, descend, mismatches, taken, unknown, unstorable
from distill.recipe.fields import FieldLine, describe_fields
from distill.recipe.losses import LossRecipe, without_unread
from distill.recipe.paths import spell_out_homes
from distill.recipe.presets import SETTINGS_FIELD, spell_out
from distill.recipe.schema import Recipe

__all__ = ["FieldLine", "describe_fields", "dump_recipe", "load_recipe", "override", "override_run", "parse_recipe"]

LARGEST_FILE = 1 << 20
"""Bytes; a recipe has a few hundred, so a larger file is something else."""

_CURE = "`distill list fields` lists every field with its type, range and default."
_ESCAPE_ERRORS = ("Invalid hex value", "Unescaped '\\' in a string")  # tomllib's words for one that is none


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe; `name` is the file's stem when the file gives none.

    Args:
        path: a TOML file in UTF-8 of at most 1 MiB.
        overrides: assignments such as `teacher.epochs=3`, which win over the file.

    Raises:
        RecipeError: no such file, not a TOML file, or not a recipe. Names every problem, one a line.
    """
    return parse_recipe(_read(path), str(path), overrides)


def parse_recipe(text: str, where: str, overrides: Sequence[str] = ()) -> Recipe:
    """Like `load_recipe`, from text; `where` stands in the errors and names the recipe when the text does not.

    Raises:
        RecipeError: not TOML, or not a recipe. Names every problem, one a line.
    """
    try:
        raw = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: also an integer of thousands of digits
        reason = str(error) if isinstance(error, ValueError) else "arrays or tables are nested too deeply"
        raise RecipeError(f"{where}: {reason}", cure=_toml_cure(reason)) from None
    if "name" not in raw:
        stem = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(where).stem).lstrip("-._")[:100]
        raw |= {"name": stem} if stem else {}
    return _validate(raw, where, overrides)


def override(recipe: Recipe, assignments: Sequence[str]) -> Recipe:
    """The recipe with some fields changed.

    Args:
        recipe: where to start from.
        assignments: `table.field=value`. The value is read as TOML when it is TOML and as a plain string when not, so
            `teacher.model=resnet20` needs no quotes; an array may be written `compare.seeds=0,1,2`; `none` clears an
            optional field.

    Raises:
        RecipeError: an unknown field or a value that does not fit. Names every problem, one a line.
    """
    return _validate(recipe.model_dump(exclude_none=True), "override", assignments)


def dump_recipe(recipe: Recipe) -> str:
    """TOML that reads back as the same recipe; fields that are none are left out."""
    return tomli_w.dumps(recipe.model_dump(exclude_none=True))


def _toml_cure(reason: str) -> str:
    """What to do about text that is no TOML; `reason` is the parser's. A backslash is mostly one of Windows' paths."""
    if reason.startswith(_ESCAPE_ERRORS):
        return "A backslash within double quotes starts an escape: write 'C:\\photos' in single quotes, or C:/photos."
    return "Recipes are written in TOML: https://toml.io."


def _read(path: Path) -> str:
    cure = "Give the path of a recipe, a TOML file."
    try:
        if path.is_dir():
            raise RecipeError(f"{path}: found a folder, expected a TOML file", cure=cure)
        if not path.is_file():
            found = "found no regular file, expected a TOML file" if path.exists() else "no such file"
            raise RecipeError(f"{path}: {found}", cure=cure)
        with path.open("rb") as file:
            data = file.read(LARGEST_FILE + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise RecipeError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}", cure=cure) from None
    if len(data) > LARGEST_FILE:
        raise RecipeError(f"{path}: found more than {LARGEST_FILE} bytes, expected a recipe", cure=cure)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        message = f"{path}: not UTF-8: found byte 0x{data[error.start]:02x} in line {line}"
        raise RecipeError(message, cure="Save the file as UTF-8 text.") from None


def _validate(raw: dict[str, Any], where: str, assignments: Sequence[str]) -> Recipe:
    places: dict[Location, str] = {}
    spell_out(raw)
    problems = [problem for text in assignments for problem in _assign(raw, text, places)]
    spell_out(raw, assigned=places)
    problems += spell_out_homes(raw, places, where)
    lines: dict[Location, str] = {}
    recipe = None
    try:
        recipe = Recipe.model_validate(raw)
    except ValidationError as error:
        lines = mismatches([entry["loc"] for entry in error.errors(include_url=False, include_input=False)], raw)
    for location, line in unstorable(raw):
        if not any(location[: len(known)] == known for known in lines):
            lines[location] = line
    for location, line in lines.items():
        origin = next((places[location[:n]] for n in range(len(location), 0, -1) if location[:n] in places), where)
        problems.append(f"{origin}: {line}")
    if problems or recipe is None:
        raise RecipeError("\n".join(problems), cure=_CURE)
    return recipe


def _assign(raw: dict[str, Any], text: str, places: dict[Location, str]) -> Iterator[str]:
    """Puts one assignment into `raw` and remembers its place; yields a problem when it cannot."""
    origin = f"override {text.encode('utf-8', 'backslashreplace').decode()}"
    key, equals, value = text.partition("=")
    parts = tuple(part.strip() for part in key.strip().split("."))
    if not equals:
        yield f"{origin}: found no '=', expected table.field=value, such as teacher.epochs=3"
        return
    if not all(parts):
        yield f"{origin}: found no name before '=', expected table.field=value, such as teacher.epochs=3"
        return
    table, rest, model = descend(parts)
    if not rest:
        example = f"{'.'.join(parts)}.{next(iter(model.model_fields))}=..."
        yield f"{origin}: {fields.label(parts)} is a table; set its fields one by one: {example}"
        return
    name, inner = str(rest[0]), tuple(map(str, rest[1:]))
    info = model.model_fields.get(name)
    if info is None:
        yield f"{origin}: {unknown(table, name, model, is_table=bool(inner))}"
        return
    if inner and not fields.is_dict(info.annotation):
        yield f"{origin}: {fields.label(table, name)} takes {taken(info)}, so nothing can be set inside it"
        return
    cursor: Any = raw
    for part in (*table, *((name,) if inner else ())):
        cursor = cursor.setdefault(part, {})
        if not isinstance(cursor, dict):
            return  # the file has no table there, which the schema reports
    place, takes = (".".join(inner), fields.item_of(info.annotation)) if inner else (name, info.annotation)
    cursor[place] = _value(value.strip(), takes)
    if (*table, place) == SETTINGS_FIELD and cursor[place] is None:
        yield f"{origin}: the fields that a word stood for cannot be told from others; set them one by one"
    places[(*table, name, place) if inner else (*table, name)] = origin


def _value(text: str, annotation: Any) -> Any:
    """A value as TOML, or as a plain string when it is not TOML or the field takes only strings."""
    if fields.is_optional(annotation) and text.lower() == "none":
        return None
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        parsed = {}
    # More than one key: the text holds a line break and a second assignment.
    value = parsed["value"] if parsed.keys() == {"value"} else text
    if fields.is_array(annotation) and not isinstance(value, list):
        item = fields.item_of(annotation)
        return [_value(part.strip(), item) for part in text.split(",")] if text else []
    return text if fields.is_text(annotation) and not isinstance(value, str) else value


def override_run(recipe: Recipe, assignments: Sequence[str]) -> Recipe:
    """`override` for a run's own recipe: a loss of another name starts from its own settings, not the old loss's.

    What the run's own loss does not read is left out first: older run folders have it written down.
    """
    loss = without_unread(recipe.student.loss)
    recipe = recipe.model_copy(update={"student": recipe.student.model_copy(update={"loss": loss})})
    changed = override(recipe, assignments)
    if changed.student.loss.name == recipe.student.loss.name:
        return changed
    student = recipe.student.model_copy(update={"loss": LossRecipe(allow_topk=recipe.student.loss.allow_topk)})
    return override(recipe.model_copy(update={"student": student}), assignments)
