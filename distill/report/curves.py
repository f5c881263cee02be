"""How teachers came along, epoch by epoch: from a run, and in curves.csv, which a comparison keeps. No torch."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from distill.errors import RunError
from distill.report.runs import Run
from distill.store.atomic import write_bytes

CURVES = "curves.csv"
QUANTITIES = ("validation_accuracy", "labels_right")  # shares of images, of labels
CellCurves: TypeAlias = Mapping[str, tuple[float, ...]]  # quantity -> its value after each epoch
_COLUMNS = ("cell", "epoch", *QUANTITIES)
_DIGITS = 5


def run_curves(run: Run, epochs: int) -> CellCurves:
    """Of a teacher's run: the quantities that its metrics.jsonl has of every epoch.

    Args:
        run: a finished one.
        epochs: how many it was trained for.
    """
    told = run.epochs("teacher")
    every = [told.get(epoch, {}) for epoch in range(epochs)]
    return {
        name: tuple(round(epoch[name], _DIGITS) for epoch in every)
        for name in QUANTITIES
        if every and all(_is_share(epoch.get(name)) for epoch in every)
    }


def write_curves(known: Mapping[str, CellCurves], folder: Path) -> None:
    """curves.csv: a line for each epoch of each cell. Not written where no curve is known.

    Args:
        known: by the cells' keys.
        folder: the comparison's.
    """
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(_COLUMNS)
    for key, each in known.items():
        for epoch in range(max(map(len, each.values()), default=0)):
            rows.writerow([key, epoch + 1, *(_shown(each.get(name, ()), epoch) for name in QUANTITIES)])
    if any(known.values()):
        write_bytes(folder / CURVES, text.getvalue().encode())


def read_curves(folder: Path) -> Mapping[str, CellCurves]:
    """curves.csv of a comparison that is kept without its runs, by cell; empty where there is none.

    Raises:
        RunError: the file is damaged.
    """
    path = folder / CURVES
    if not path.is_file():
        return {}
    try:
        lines = list(csv.reader(io.StringIO(path.read_bytes().decode()), strict=True))
        found = ", ".join(lines[0]) if lines else "none"
        if found != ", ".join(_COLUMNS):
            raise ValueError(f"found the columns {found}, expected {', '.join(_COLUMNS)}")
        return _by_cell(lines[1:])
    except (ValueError, csv.Error) as error:
        raise RunError(f"{path}: damaged: {error}", cure="Take it again from where it came, or remove it.") from error


def _by_cell(rows: Sequence[Sequence[str]]) -> Mapping[str, CellCurves]:
    found: dict[str, dict[str, list[float]]] = {}
    lengths: dict[str, int] = {}
    for number, row in enumerate(rows, start=2):
        if len(row) != len(_COLUMNS):
            raise ValueError(f"line {number}: found {len(row)} columns, expected {len(_COLUMNS)}")
        key, epoch, *values = row
        lengths[key] = lengths.get(key, 0) + 1
        if epoch != str(lengths[key]):
            raise ValueError(f"line {number}: found epoch {epoch!r} of {key}, expected {lengths[key]}")
        for name, value in zip(QUANTITIES, values, strict=True):
            if value:
                found.setdefault(key, {}).setdefault(name, []).append(_share(value, number))
    return {
        key: {name: tuple(values) for name, values in each.items() if len(values) == lengths[key]}
        for key, each in found.items()
    }


def _share(text: str, number: int) -> float:
    value = float(text)
    if not _is_share(value):
        raise ValueError(f"line {number}: found {text}, expected a share from 0 to 1")
    return value


def _is_share(value: float | None) -> bool:
    return value is not None and 0 <= value <= 1  # NaN is not, nor an integer that no float holds


def _shown(values: Sequence[float], epoch: int) -> str:
    return f"{values[epoch]:.{_DIGITS}f}".rstrip("0").rstrip(".") if epoch < len(values) else ""
