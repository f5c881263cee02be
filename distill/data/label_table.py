"""Tables that people write of images and their labels: a .csv file with the columns index and label."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from distill.errors import DataError

_COLUMNS = ["index", "label"]


def _number(text: str) -> int | None:
    """A non-negative integer in plain digits, or None."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None


class Names:
    """Images and classes as a person's table names them.

    Args:
        classes: the C class names.
    """

    def __init__(self, classes: tuple[str, ...]) -> None:
        self._numbers = {name: number for number, name in enumerate(classes)}
        # Where a class is named by a number that is not its own, a number is a name and nothing else.
        self._named = any(_number(name) not in (None, number) for name, number in self._numbers.items())
        self._expected = "a class name" if self._named else f"a class name or 0 to {len(classes) - 1}"

    def index(self, text: str, images: int, place: str) -> int:
        """The image's index; a `DataError` that begins with the place, where it is none of so many images."""
        index = _number(text)
        if index is None or index >= images:
            raise DataError(f"{place}: index {text!r}, expected 0 to {images - 1}")
        return index

    def label(self, text: str, place: str) -> int:
        """The class's number; a `DataError` that begins with the place, where there is no such class."""
        # A name may begin or end with spaces; where none is just so, they are those of the file's writer.
        bare = text.strip()
        label = self._numbers.get(text, self._numbers.get(bare, None if self._named else _number(bare)))
        if label is None or label >= len(self._numbers):
            raise DataError(f"{place}: label {bare!r}, expected {self._expected}")
        return label


def labelled_rows(
    path: Path, names: Names, images: int, *, cure: str, more: bool = False
) -> Iterator[tuple[str, int, dict[str, str]]]:
    """The place of each row (`file:line`), its image's index, and its fields by the columns' names.

    Args:
        path: of the table.
        names: of the images and classes.
        images: how many there are.
        cure: of errors on the table as a whole.
        more: whether it may have other columns too, and rows without a label, which are passed over. Fields may then be
            paths, which need not be UTF-8.

    Raises:
        DataError: naming the file and the line; also where an image has two rows.
    """
    line_of: dict[int, int] = {}
    for line, row in _rows(path, cure, more):
        if more and not row["label"].strip():
            continue
        place = f"{path}:{line}"
        index = names.index(row["index"].strip(), images, place)
        if index in line_of:
            raise DataError(f"{place}: index {index} again, it is also in line {line_of[index]}")
        line_of[index] = line
        yield place, index, row


def _rows(path: Path, cure: str, more: bool) -> Iterator[tuple[int, dict[str, str]]]:
    """Line numbers and the fields of each line below the header."""
    try:
        with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape" if more else "strict") as file:
            reader = csv.reader(file, strict=True)
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read: {error}", cure=cure) from error
    header = [name.strip() for name in rows[0][1]] if rows else []
    if expected := _lacking(header, more):
        found = ",".join(header)[:80] or "nothing"
        between = "" if len(header) > 1 else _separated(found)
        raise DataError(f"{path}:1: header {found!r}, expected {expected}{between}", cure=cure)
    for line, row in rows[1:]:
        if len(row) != len(header):
            raise DataError(f"{path}:{line}: {len(row)} fields, expected {len(header)}: {','.join(header)}")
        yield line, dict(zip(header, row, strict=True))


def _separated(header: str) -> str:
    """What a spreadsheet may have put between the columns, for the end of an error."""
    other = next((name for sign, name in ((";", "semicolons"), ("\t", "tabs")) if sign in header), "")
    return f", with commas between the columns and not {other}" if other else ""


def _lacking(header: list[str], more: bool) -> str:
    """What a header should have, or ""."""
    if not more:
        return "" if header == _COLUMNS else f"'{','.join(_COLUMNS)}'"
    return next((f"one column {name!r}" for name in _COLUMNS if header.count(name) != 1), "")
