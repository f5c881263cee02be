"""Labels that somebody has looked at and found wrong, from a table such as `distill labels` writes of its suspects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from distill.data.label_table import Names, labelled_rows
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
    if not path.is_file():
        raise DataError(f"data.corrections: {path} is not there", cure=_FORMAT)
    names, labels = Names(classes), given.clone()
    for place, index, row in labelled_rows(path, names, len(given), cure=_FORMAT, more=True):
        _refuse_another(row, "path", paths[index] if paths else None, place)
        _refuse_another(row, "given", classes[int(given[index])], place)
        labels[index] = names.label(row["label"], place)
    return labels


def _refuse_another(row: Mapping[str, str], column: str, found: str | None, place: str) -> None:
    told = row.get(column)
    if told and found is not None and told != found:
        raise DataError(
            f"{place}: {column} is {told!r}, but the data have {found!r} at index {row['index'].strip()}",
            cure="The table is of other data or given labels: have it written anew, or leave that column out.",
        )
