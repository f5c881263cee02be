"""Labels that somebody has looked at and found wrong, from a table such as `distill labels` writes of its suspects."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from distill.data.noise_file import Names
from distill.errors import DataError
from distill.recipe.paths import expanded

_FORMAT = (
    "Give a .csv file with the columns index and label (others are allowed): suspected_errors.csv with a column label, "
    "filled where a label is to be another."
)


def corrected(file: str, given: Tensor, classes: tuple[str, ...], paths: Sequence[str] = ()) -> Tensor:
    """Given labels, but for those that a file corrects.

    Args:
        file: path, relative to the working directory. A row has the image's index over the whole source and its new
            label, a class name or, failing that, a number; one without a label corrects nothing. Where there are
            columns `path` and `given`, they have to be what the data have there: an index alone would hit another
            image once a file was added.
        given: int64 [N].
        classes: the C class names.
        paths: of the images, where they are files.

    Returns:
        int64 [N].

    Raises:
        DataError: naming the file and the line.
    """
    path = expanded(file, "data.corrections", DataError)
    names, labels = Names(classes), given.clone()
    line_of: dict[int, int] = {}
    for line, row in _rows(path):
        if not row["label"].strip():
            continue
        index = names.index(row["index"].strip(), len(given), f"{path}:{line}")
        if index in line_of:
            raise DataError(f"{path}:{line}: index {index} again, it is also in line {line_of[index]}")
        _refuse_another(row, "path", paths[index] if paths else None, f"{path}:{line}")
        _refuse_another(row, "given", classes[int(given[index])], f"{path}:{line}")
        line_of[index], labels[index] = line, names.label(row["label"], f"{path}:{line}")
    return labels


def _refuse_another(row: Mapping[str, str], column: str, found: str | None, place: str) -> None:
    told = row.get(column)
    if told and found is not None and told != found:
        raise DataError(
            f"{place}: {column} is {told!r}, but the data have {found!r} at index {row['index'].strip()}",
            cure="The table is of other data or given labels: have it written anew, or leave that column out.",
        )


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Line numbers and the fields of each line below the header, by their names."""
    if not path.is_file():
        raise DataError(f"data.corrections: {path} is not there", cure=_FORMAT)
    try:
        with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            reader = csv.reader(file, strict=True)
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read: {error}", cure=_FORMAT) from error
    header = [name.strip() for name in rows[0][1]] if rows else []
    for name in ("index", "label"):
        if header.count(name) != 1:
            found = ",".join(header)[:80] or "nothing"
            raise DataError(f"{path}:1: header {found!r}, expected one column {name!r}", cure=_FORMAT)
    for line, row in rows[1:]:
        if len(row) != len(header):
            raise DataError(f"{path}:{line}: {len(row)} fields, expected {len(header)}: {','.join(header)}")
        yield line, dict(zip(header, row, strict=True))
