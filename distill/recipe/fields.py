"""The schema in words: what each field expects, and which field a wrong name was meant to be.

Everything is read off `schema.py`, so a new field is listed, checked and suggested without a line here.
"""

from __future__ import annotations

import difflib
import json
import math
import re
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from distill.recipe.schema import Recipe

# Below this difflib ratio a name is a guess in the dark; a near table is worth that much more.
_CLOSE = 0.6
_SAME_TABLE = 0.15
_SAME_BRANCH = 0.05
_SAME_KIND = 0.1


_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_SURROGATE = re.compile("[\ud800-\udfff]")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")  # Unicode's category Cc, for good


class FieldLine(NamedTuple):
    """One field as `distill list fields` prints it."""

    name: str
    type: str
    default: str
    range: str
    sentence: str


def describe_fields() -> Iterator[FieldLine]:
    """Every field of a recipe in the schema's order: dotted name, type, default, range, sentence."""
    for table, model in tables():
        for name, info in model.model_fields.items():
            if table_of(info) is None:
                default = "the file's stem" if info.is_required() else _default(info)
                yield FieldLine(
                    name=".".join((*table, name)),
                    type=kind(info.annotation),
                    default=default,
                    range=_limits(info.annotation, info.metadata),
                    sentence=info.description or "",
                )


def tables(model: type[BaseModel] = Recipe, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every table, as (path, model), parents first; the recipe itself has the path ()."""
    yield path, model
    for name, info in model.model_fields.items():
        inner = table_of(info)
        if inner is not None:
            yield from tables(inner, (*path, name))


def table_of(info: FieldInfo) -> type[BaseModel] | None:
    """The model of a field that is a table of the schema, or None."""
    annotation = info.annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def entry_of(info: FieldInfo) -> type[BaseModel] | None:
    """The model of the tables that a field holds under free names (`student.loss.plus`), or None."""
    value = item_of(info.annotation) if is_dict(info.annotation) else None
    return value if isinstance(value, type) and issubclass(value, BaseModel) else None


def names_of(table: Sequence[str]) -> tuple[str, ...]:
    """The free names that a field takes, where they are a choice: those of `student.loss.plus`."""
    model: type[BaseModel] = Recipe
    for part in table[:-1]:
        model = table_of(model.model_fields[part]) or model
    annotation, _ = _unwrap(model.model_fields[table[-1]].annotation, ())
    return tuple(map(str, get_args(get_args(annotation)[0])))


def label(table: Sequence[str], field: str = "") -> str:
    """`[teacher.optimizer] lr`; a field of the recipe itself has no bracket."""
    return f"[{'.'.join(map(key, table))}] {field}".strip() if table else field


def key(name: str) -> str:
    """A key as TOML would write it: bare, or quoted when it holds anything unusual."""
    return name if _BARE_KEY.fullmatch(name) else _quoted(name)


def expected(annotation: Any, metadata: Iterable[object] = ()) -> str:
    """What a field takes, as the end of a sentence: "an integer of at least 1 or "orbit""."""
    annotation, metadata = _unwrap(annotation, metadata)
    if words := _bound(metadata, "words"):
        return str(words)
    if _is_union(annotation):
        members = [expected(arg, metadata) for arg in get_args(annotation) if arg is not type(None)]
        return " or ".join(dict.fromkeys(members))
    if get_origin(annotation) is Literal:
        return _choice(get_args(annotation))
    if get_origin(annotation) is tuple:
        shape = "an array that is not empty" if _bound(metadata, "min_length") else "an array"
        return f"{shape}, each item {expected(get_args(annotation)[0])}"
    if get_origin(annotation) is dict:
        value = get_args(annotation)[1]
        return "a table" if value is Any else f"a table, each value {expected(value)}"
    noun = {int: "an integer", float: "a number", bool: "true or false", str: "a string"}.get(annotation, "a table")
    return f"{noun} {_limits(annotation, metadata)}".strip()


def kind(annotation: Any) -> str:
    """A field's type in one or two words."""
    annotation, _ = _unwrap(annotation, ())
    if _is_union(annotation):
        names = [kind(arg) if arg is not type(None) else "none" for arg in get_args(annotation)]
        return " or ".join(dict.fromkeys(names))
    if get_origin(annotation) is Literal:
        return _choice(get_args(annotation))
    if get_origin(annotation) is tuple:
        return f"array of {_plural(kind(get_args(annotation)[0]))}"
    if get_origin(annotation) is dict:
        value = get_args(annotation)[1]
        return "table" if value is Any else f"table of {_plural(kind(value))}"
    return {int: "integer", float: "number", bool: "boolean", str: "string"}.get(annotation, "table")


def item_of(annotation: Any) -> Any:
    """The type of an array's items or a table's values, or None for anything else."""
    annotation, _ = _unwrap(annotation, ())
    if get_origin(annotation) is tuple:
        return get_args(annotation)[0]
    return get_args(annotation)[1] if get_origin(annotation) is dict else None


def is_dict(annotation: Any) -> bool:
    """Whether a field is a table with free keys (`model_args`, `pairs`)."""
    return get_origin(_unwrap(annotation, ())[0]) is dict


def is_array(annotation: Any) -> bool:
    """Whether a field is an array."""
    return get_origin(_unwrap(annotation, ())[0]) is tuple


def is_text(annotation: Any) -> bool:
    """Whether a field takes nothing but strings, so that `name=2024` needs no quotes."""
    annotation, _ = _unwrap(annotation, ())
    if get_origin(annotation) is Literal:
        return all(isinstance(choice, str) for choice in get_args(annotation))
    return annotation is str


def is_optional(annotation: Any) -> bool:
    """Whether a field may be none."""
    return _is_union(annotation) and type(None) in get_args(annotation)


def found(value: object) -> str:
    """A value as it was found: `"3" (a string)`."""
    match value:
        case None:
            return "none"
        case bool():
            return f"{str(value).lower()} (a boolean)"
        case str():
            return f"{_quoted(value)} (a string)"
        case int():
            return f"{value} (an integer)" if value.bit_length() <= 128 else f"an integer of {value.bit_length()} bits"
        case float():
            return f"{value!r} (a number)"
        case Mapping():
            return "a table"
        case list() | tuple():
            return f"an array of {len(value)} items" if value else "an empty array"
    return f"{value} (a date or time)"


def suggest(table: Sequence[str], name: str, *, model: type[BaseModel] = Recipe, is_table: bool = False) -> str:
    """ "; did you mean temperature?" or "" when no field comes close.

    Args:
        table: where the unknown name was found.
        name: the unknown name.
        model: of a table under a free name, which `tables` does not have.
        is_table: whether it holds a table, which makes a table the likelier meaning.

    Looks at every table of the recipe: fields of the same table are named alone, others with their table.
    """
    scores: dict[str, float] = {}
    own = [] if model is Recipe else [(tuple(table), model)]
    for path, its_model in (*own, *tables()):
        here = path == tuple(table)
        near = _SAME_TABLE if here else _SAME_BRANCH * (path[:1] == tuple(table)[:1])
        for field, info in its_model.model_fields.items():
            ratio = difflib.SequenceMatcher(None, name.lower(), field).ratio()
            if ratio < _CLOSE:
                continue
            holds_table = table_of(info) is not None
            place = label((*path, field)) if holds_table else label(() if here else path, field)
            # An exact name in another table beats a similar one nearby: it was put in the wrong place.
            scores[place] = (2 if ratio == 1 else ratio) + near + _SAME_KIND * (holds_table == is_table)
    best = max(scores.values(), default=0.0)
    close = [place for place, score in scores.items() if score >= best - 1e-9]
    return f"; did you mean {_either(close[:3])}?" if close else ""


def _default(info: FieldInfo) -> str:
    value = info.get_default(call_default_factory=True, validated_data={})
    if value is None:
        return "none"
    if isinstance(value, dict):
        return "{}"
    return json.dumps(value)


def _limits(annotation: Any, metadata: Iterable[object]) -> str:
    """The range in words, such as "from 0.0 to 1.0"; for an array that of its items."""
    annotation, metadata = _unwrap(annotation, metadata)
    if words := _bound(metadata, "words"):
        return str(words)
    if _is_union(annotation):
        limits = (_limits(arg, metadata) for arg in get_args(annotation) if get_origin(arg) is not Literal)
        return next(filter(None, limits), "")
    if get_origin(annotation) is tuple:
        return _limits(get_args(annotation)[0], ())
    if annotation not in (int, float, str):
        return ""
    if annotation is str:
        return "that is not empty" if _bound(metadata, "min_length") else ""
    at_least, above = _bound(metadata, "ge"), _bound(metadata, "gt")
    at_most, below = _bound(metadata, "le"), _bound(metadata, "lt")
    if at_least is not None and at_most is not None:
        return f"from {at_least:g} to {at_most:g}"
    words = [("of at least", at_least), ("above", above), ("of at most", at_most), ("below", below)]
    return " and ".join(f"{word} {bound:g}" for word, bound in words if bound is not None)


def _unwrap(annotation: Any, metadata: Iterable[object]) -> tuple[Any, list[object]]:
    """Takes `Annotated` off and gathers its constraints."""
    gathered = list(metadata)
    while get_origin(annotation) is Annotated:
        annotation, *more = get_args(annotation)
        for entry in more:
            gathered.extend(entry.metadata if isinstance(entry, FieldInfo) else [entry])
    return annotation, gathered


def _bound(metadata: Iterable[object], name: str) -> Any:
    values = (getattr(entry, name, None) for entry in metadata)
    return next((value for value in values if value is not None), None)


def _is_union(annotation: Any) -> bool:
    return get_origin(annotation) in (Union, types.UnionType)


def _choice(values: Sequence[object]) -> str:
    return _either([json.dumps(value) for value in values])


def _either(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _is_unicode(text: str) -> bool:
    """False for a byte of the command line that is no UTF-8: Python carries it as half a surrogate pair."""
    return not _SURROGATE.search(text)


def _quoted(text: str) -> str:
    return json.dumps(_short(text), ensure_ascii=not _is_unicode(text))


def _plural(noun: str) -> str:
    return f"{noun}s" if noun.isalpha() else noun


def _short(text: str, limit: int = 60) -> str:
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def unstorable(value: object) -> str:
    """Why a value cannot be digested, written again or printed, or ""."""
    if isinstance(value, str) and not _is_unicode(value):
        return "expected Unicode text"
    if isinstance(value, str) and _CONTROL.search(value):
        return "expected text without control characters"
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return "expected an integer of 64 bits"
    if isinstance(value, float) and not math.isfinite(value):
        return "expected a finite number"
    if value is not None and not isinstance(value, (bool, str, int, float, Mapping, list, tuple)):
        return "expected a string, a number, a boolean, an array or a table"
    return ""
