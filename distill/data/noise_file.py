"""Labels from a file of one's own: .npy of all labels, or .csv of some."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from distill.data.label_table import Names, labelled_rows
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


def _read_csv(path: Path, true: Tensor, classes: tuple[str, ...]) -> Tensor:
    names, labels = Names(classes), true.clone()
    for place, index, row in labelled_rows(path, names, len(true), cure=_FORMATS):
        labels[index] = names.label(row["label"], place)
    return labels
