"""TOML to `Recipe` and back, with every problem named at once.

A refused recipe gives one line for each problem: file, table, field, what was found, what was expected, and the name
that was probably meant. Imports no torch, so the refusal takes a fraction of a second.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from distill.errors import RecipeError
from distill.recipe import fields
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
_DEEPEST = 16  # levels of nesting that a free table may have; pydantic and json give up at some hundreds

Location = tuple[str | int, ...]


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
        lines = _lines([entry["loc"] for entry in error.errors(include_url=False, include_input=False)], raw)
    for location, line in _unstorable(raw):
        if not any(location[: len(known)] == known for known in lines):
            lines[location] = line
    for location, line in lines.items():
        origin = next((places[location[:n]] for n in range(len(location), 0, -1) if location[:n] in places), where)
        problems.append(f"{origin}: {line}")
    if problems or recipe is None:
        raise RecipeError("\n".join(problems), cure=_CURE)
    return recipe


def _lines(locations: Sequence[Location], raw: dict[str, Any]) -> dict[Location, str]:
    """One line a field: pydantic reports every member of a union, we report the field and all that it takes."""
    lines: dict[Location, str] = {}
    for location in locations:
        table, rest, model = _descend(location)
        if not rest:
            lines[table] = f"{fields.label(table[:-1], table[-1])}: {_mismatch(raw, table, 'a table')}"
            continue
        name = str(rest[0])
        info = model.model_fields.get(name)
        place: Location = (*table, name)
        if name == "[key]":  # pydantic's word for a free name that is none of those there are
            lines[table] = _no_entry(table)
        elif info is None:
            lines[place] = _unknown(table, name, model, is_table=isinstance(_dig(raw, place), Mapping))
        elif _dig(raw, place) is _MISSING:
            lines[place] = f"{fields.label(table, name)} is missing, expected {_takes(info)}"
        else:
            inside = _inside(info, rest[1:])
            if not inside and any(known[: len(place)] == place for known in lines):
                continue  # an array is also called too short when its items are wrong
            wanted = fields.expected(_item(info)) if inside else _takes(info)
            place = (*place, *inside)
            lines[place] = f"{_shown(place)}: {_mismatch(raw, place, wanted)}"
    return lines


def _descend(location: Location) -> tuple[tuple[str, ...], Location, type[BaseModel]]:
    """Splits a location into the path of its table, the rest, and the table's model."""
    model: type[BaseModel] = Recipe
    entry: type[BaseModel] | None = None  # of the table under a free name that the next part is
    for depth, part in enumerate(location):
        info = None if entry else model.model_fields.get(str(part))
        inner = entry or (fields.table_of(info) if info is not None else None)
        more = fields.entry_of(info) if info is not None and depth + 1 < len(location) else None
        if inner is None and more is None:
            return tuple(map(str, location[:depth])), location[depth:], model
        model, entry = inner or model, more
    return tuple(map(str, location)), (), model


def _inside(info: FieldInfo, rest: Location) -> Location:
    """The index or key within an array or free table; what else pydantic appends are tags of union members."""
    wanted = int if fields.is_array(info.annotation) else str if fields.is_dict(info.annotation) else None
    return rest[:1] if wanted and rest and isinstance(rest[0], wanted) else ()


def _takes(info: FieldInfo) -> str:
    return fields.expected(info.annotation, info.metadata)


def _item(info: FieldInfo) -> Any:
    return fields.item_of(info.annotation)


def _index(key: str | int) -> str:
    return f"[{key}]" if isinstance(key, int) else f".{fields.key(key)}"


class _Missing:
    """What `_dig` gives for a field that is not there; None is a value."""


_MISSING = _Missing()


def _dig(raw: Any, location: Location) -> Any:
    for part in location:
        try:
            raw = raw[part]
        except (KeyError, IndexError, TypeError):
            return _MISSING
    return raw


def _mismatch(raw: dict[str, Any], location: Location, wanted: str) -> str:
    value = _dig(raw, location)
    if isinstance(value, float) and value - value != 0:  # infinite or not a number
        wanted = wanted.replace("a number", "a finite number")
    return f"found {fields.found(value)}, expected {wanted}"


def _no_entry(table: Sequence[str]) -> str:
    """A table under a name that its place does not have, such as `[student.loss.plus.rkdd]`."""
    names = fields.names_of(table[:-1])
    near = difflib.get_close_matches(table[-1], names, n=3)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    return f"{fields.label(table[:-1], fields.key(table[-1]))} is not one of {', '.join(names)}{hint}"


def _unknown(table: Sequence[str], name: str, model: type[BaseModel], *, is_table: bool = False) -> str:
    if is_table:
        shown = fields.label((*table, name))
        hint = fields.suggest(table, name, is_table=True)
        return f"{shown} is not a table{hint}" if hint else f"{shown} is not a table of a recipe"
    return f"{fields.label(table, fields.key(name))} is not a field{fields.suggest(table, name, model=model)}"


def _unstorable(value: object, location: Location = ()) -> Iterator[tuple[Location, str]]:
    """Values that the schema lets through, but that a digest, a written recipe or a path cannot hold."""
    reason = fields.unstorable(value)
    if len(location) > _DEEPEST:
        yield location, f"{_shown(location[:2])}: expected at most {_DEEPEST} levels of nesting"
    elif reason:
        yield location, f"{_shown(location)}: found {fields.found(value)}, {reason}"
    elif isinstance(value, Mapping | list):
        for key, inner in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _unstorable(inner if not fields.unstorable(key) else key, (*location, key))


def _shown(location: Location) -> str:
    """`[student] model_args.sizes[1]`."""
    table, rest, _ = _descend(location)
    return fields.label(table, "".join(_index(part) for part in rest).removeprefix("."))


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
    table, rest, model = _descend(parts)
    if not rest:
        example = f"{'.'.join(parts)}.{next(iter(model.model_fields))}=..."
        yield f"{origin}: {fields.label(parts)} is a table; set its fields one by one: {example}"
        return
    name, inner = str(rest[0]), tuple(map(str, rest[1:]))
    info = model.model_fields.get(name)
    if info is None:
        yield f"{origin}: {_unknown(table, name, model, is_table=bool(inner))}"
        return
    if inner and not fields.is_dict(info.annotation):
        yield f"{origin}: {fields.label(table, name)} takes {_takes(info)}, so nothing can be set inside it"
        return
    cursor: Any = raw
    for part in (*table, *((name,) if inner else ())):
        cursor = cursor.setdefault(part, {})
        if not isinstance(cursor, dict):
            return  # the file has no table there, which the schema reports
    place, takes = (".".join(inner), _item(info)) if inner else (name, info.annotation)
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
