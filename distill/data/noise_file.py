"""Labels from a file of one's own: .npy of all labels, or .csv of some."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from distill.errors import DataError
from distill.recipe.paths import expanded

_FORMATS = "Give a .npy file of integers, one for each image, or a .csv file with the columns index,label."


def read_noise_file(file: str, true: Tensor, classes: tuple[str, ...], test_start: int | None) -> Tensor:
    """The labels that a file gives; images that it does not list keep their true label.

    A .npy file has N integers, or as many as the official training part has images. A .csv file has the header
    index,label; an index counts from 0 over the whole source, and a label is a class name or, failing that, a number.

    Args:
        file: path, relative to the working directory.
        true: int64 [N].
        classes: the C class names.
        test_start: index of the first official test image, or None.

    Returns:
        int64 [N].

    Raises:
        DataError: naming the file, and the line of a .csv file.
    """
    if not file:
        raise DataError("data.noise.file is empty", cure=_FORMATS)
    path = expanded(file, "data.noise.file", DataError)
    if not path.is_file():
        raise DataError(f"data.noise.file: {path} is not there", cure=_FORMATS)
    if path.suffix.lower() == ".npy":
        return _read_npy(path, true, len(classes), test_start)
    if path.suffix.lower() == ".csv":
        return _read_csv(path, true, classes)
    raise DataError(f"data.noise.file: {path} ends in {path.suffix or 'nothing'}", cure=_FORMATS)


def _read_npy(path: Path, true: Tensor, num_classes: int, test_start: int | None) -> Tensor:
    try:
        with path.open("rb") as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
    except Exception as error:  # a damaged header can raise anything
        raise DataError(f"{path}: cannot be read: {error}", cure=_FORMATS) from error
    if array.dtype.kind not in "iu" or array.ndim != 1:
        raise DataError(f"{path}: {array.dtype} {list(array.shape)}, expected integers [{len(true)}]", cure=_FORMATS)
    if len(array) not in (len(true), test_start):
        part = "" if test_start is None else f" or {test_start}, the training part"
        raise DataError(f"{path}: {len(array)} labels, expected {len(true)}, the whole source{part}", cure=_FORMATS)
    wrong = np.flatnonzero((array < 0) | (array >= num_classes))
    if len(wrong):
        raise DataError(f"{path}: label {array[wrong[0]]} at index {wrong[0]}, expected 0 to {num_classes - 1}")
    labels = true.clone()
    labels[: len(array)] = torch.from_numpy(array.astype(np.int64))
    return labels


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


def _read_csv(path: Path, true: Tensor, classes: tuple[str, ...]) -> Tensor:
    names, labels = Names(classes), true.clone()
    line_of: dict[int, int] = {}
    for line, (index_text, label_text) in _csv_rows(path):
        index = names.index(index_text, len(true), f"{path}:{line}")
        if index in line_of:
            raise DataError(f"{path}:{line}: index {index} again, it is also in line {line_of[index]}")
        line_of[index], labels[index] = line, names.label(label_text, f"{path}:{line}")
    return labels


def _csv_rows(path: Path) -> list[tuple[int, tuple[str, str]]]:
    """Line numbers and the two fields of each line below the header."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read: {error}", cure=_FORMATS) from error
    header = [field.strip() for field in rows[0][1]] if rows else ["nothing"]
    if header != ["index", "label"]:
        found = ",".join(header)
        raise DataError(f"{path}:1: header {found!r}, expected 'index,label'", cure=_FORMATS)
    pairs = []
    for line, row in rows[1:]:
        if len(row) != 2:
            raise DataError(f"{path}:{line}: {len(row)} fields, expected 2: index,label")
        pairs.append((line, (row[0].strip(), row[1])))
    return pairs
