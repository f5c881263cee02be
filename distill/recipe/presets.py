"""`teacher.labels.settings`: a word for several fields, which it is replaced by before a recipe is checked.

What is written down, digested and compared are the fields; so a word can come to mean something better, and runs that
were made by it stay what they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distill.recipe.labels import SETTINGS

SETTINGS_FIELD = ("teacher", "labels", "settings")


def spell_out(raw: dict[str, Any], *, over: bool) -> None:
    """Replaces the word in a recipe's plain values by its fields; one that stands for nothing is left to the schema.

    Args:
        raw: changed in place.
        over: whether the fields win over what is there, as an assignment does; else they fill what is not given.
    """
    labels: Any = raw
    for part in SETTINGS_FIELD[:-1]:
        labels = labels.get(part) if isinstance(labels, dict) else None
    word = labels.get(SETTINGS_FIELD[-1]) if isinstance(labels, dict) else None
    if isinstance(word, str) and word in SETTINGS:
        del labels[SETTINGS_FIELD[-1]]
        _put(labels, SETTINGS[word], over=over)


def _put(table: dict[str, Any], values: Mapping[str, Any], *, over: bool) -> None:
    for name, value in values.items():
        if isinstance(value, Mapping):
            inner = table.setdefault(name, {})
            if isinstance(inner, dict):  # else the schema reports it
                _put(inner, value, over=over)
        elif over or name not in table:
            table[name] = value
