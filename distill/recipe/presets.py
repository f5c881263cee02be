"""`teacher.labels.settings`: a word for several fields, which it is replaced by before a recipe is checked.

What is written down, digested and compared are the fields; so a word can come to mean something better, and runs that
were made by it stay what they are.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from distill.recipe.labels import SETTINGS

SETTINGS_FIELD = ("teacher", "labels", "settings")


def spell_out(raw: dict[str, Any], *, assigned: Collection[tuple[str | int, ...]] | None = None) -> None:
    """Replaces the word in a recipe's plain values by its fields; one that stands for nothing is left to the schema.

    Args:
        raw: changed in place.
        assigned: where assignments have put something; the fields of an assigned word win over what is there but for
            these. None: the word and what is there are of one file, and the fields fill what is not given.
    """
    labels: Any = raw
    for part in SETTINGS_FIELD[:-1]:
        labels = labels.get(part) if isinstance(labels, dict) else None
    word = labels.get(SETTINGS_FIELD[-1]) if isinstance(labels, dict) else None
    if isinstance(word, str) and word in SETTINGS:
        del labels[SETTINGS_FIELD[-1]]
        if assigned is not None:
            for other in SETTINGS.keys() - {word}:
                _take_back(labels, _leaves(SETTINGS[other]), assigned)
        _put(labels, SETTINGS[word], SETTINGS_FIELD[:-1], assigned)


def _leaves(values: Mapping[str, Any], place: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """A word's fields by their places below the labels."""
    found: dict[tuple[str, ...], Any] = {}
    for name, value in values.items():
        found |= _leaves(value, (*place, name)) if isinstance(value, Mapping) else {(*place, name): value}
    return found


def _take_back(
    labels: dict[str, Any], word: Mapping[tuple[str, ...], Any], assigned: Collection[tuple[str | int, ...]]
) -> None:
    """Takes another word's fields out, as if it had not been said: two words are no third one.

    What is written down are its fields, so that it was said is told by more than half of them being as it has them.
    """
    said = []
    for place, value in word.items():
        table: Any = labels if len(place) == 1 else labels.get(place[0])
        if isinstance(table, dict) and table.get(place[-1]) == value:
            said.append((place, table))
    if 2 * len(said) > len(word):
        for place, table in said:
            if (*SETTINGS_FIELD[:-1], *place) not in assigned:
                del table[place[-1]]


def _put(
    table: dict[str, Any],
    values: Mapping[str, Any],
    place: tuple[str, ...],
    assigned: Collection[tuple[str | int, ...]] | None,
) -> None:
    for name, value in values.items():
        if isinstance(value, Mapping):
            inner = table.setdefault(name, {})
            if isinstance(inner, dict):  # else the schema reports it
                _put(inner, value, (*place, name), assigned)
        elif name not in table or (assigned is not None and (*place, name) not in assigned):
            table[name] = value
