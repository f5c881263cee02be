"""What does not fit the schema, a line a field: what was found, what was expected, and what was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from distill.recipe import fields
from distill.recipe.schema import Recipe

_DEEPEST = 16  # levels of nesting that a free table may have; pydantic and json give up at some hundreds

Location = tuple[str | int, ...]


def mismatches(locations: Sequence[Location], raw: dict[str, Any]) -> dict[Location, str]:
    """One line a field: pydantic reports every member of a union, we report the field and all that it takes."""
    lines: dict[Location, str] = {}
    for location in locations:
        table, rest, model = descend(location)
        if not rest:
            lines[table] = f"{fields.label(table[:-1], table[-1])}: {_mismatch(raw, table, 'a table')}"
            continue
        name = str(rest[0])
        info = model.model_fields.get(name)
        place: Location = (*table, name)
        if name == "[key]":  # pydantic's word for a free name that is none of those there are
            lines[table] = _no_entry(table)
        elif info is None:
            lines[place] = unknown(table, name, model, is_table=isinstance(_dig(raw, place), Mapping))
        elif _dig(raw, place) is _MISSING:
            lines[place] = f"{fields.label(table, name)} is missing, expected {taken(info)}"
        else:
            inside = _inside(info, rest[1:])
            if not inside and any(known[: len(place)] == place for known in lines):
                continue  # an array is also called too short when its items are wrong
            wanted = fields.expected(_item(info)) if inside else taken(info)
            place = (*place, *inside)
            lines[place] = f"{_shown(place)}: {_mismatch(raw, place, wanted)}"
    return lines


def descend(location: Location) -> tuple[tuple[str, ...], Location, type[BaseModel]]:
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


def taken(info: FieldInfo) -> str:
    """What a field takes, in words."""
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


def unknown(table: Sequence[str], name: str, model: type[BaseModel], *, is_table: bool = False) -> str:
    """That a table has no field, or table, of this name, and what may have been meant."""
    if is_table:
        shown = fields.label((*table, name))
        hint = fields.suggest(table, name, is_table=True)
        return f"{shown} is not a table{hint}" if hint else f"{shown} is not a table of a recipe"
    return f"{fields.label(table, fields.key(name))} is not a field{fields.suggest(table, name, model=model)}"


def unstorable(value: object, location: Location = ()) -> Iterator[tuple[Location, str]]:
    """Values that the schema lets through, but that a digest, a written recipe or a path cannot hold."""
    reason = fields.unstorable(value)
    if len(location) > _DEEPEST:
        yield location, f"{_shown(location[:2])}: expected at most {_DEEPEST} levels of nesting"
    elif reason:
        yield location, f"{_shown(location)}: found {fields.found(value)}, {reason}"
    elif isinstance(value, Mapping | list):
        for key, inner in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from unstorable(inner if not fields.unstorable(key) else key, (*location, key))


def _shown(location: Location) -> str:
    """`[student] model_args.sizes[1]`."""
    table, rest, _ = descend(location)
    return fields.label(table, "".join(_index(part) for part in rest).removeprefix("."))
