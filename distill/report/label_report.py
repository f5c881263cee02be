"""What `distill labels` tells: the numbers, the suspected label errors by name, and their CSV file. No torch."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from distill.report.labels import Judged


@dataclass(frozen=True)
class Confusion:
    """Two classes that are confused, by name; see `report.labels.Pair`."""

    given: str
    learned: str
    mass: float
    images: int | None  # None: labels of classes name no image


@dataclass(frozen=True)
class Suspect:
    """A training image whose learned label is not the given one."""

    index: int  # in the source
    path: str  # of its file below data.root, as the system names it; empty where the source has no files
    given: str
    learned: str
    confidence: float  # probability of the learned class
    given_probability: float
    true: str | None = None  # where labels were made wrong on purpose


@dataclass(frozen=True)
class RelationReport:
    """Whether the classes that labels hold alike are those that another network confuses; see `report.relations`."""

    other: str  # run folder of that network
    correlation: float | None  # Spearman's rho over the pairs of classes; None: a table is constant
    p_value: float | None
    pairs: int
    picture: str | None  # None: there is nothing to draw
    missing: str  # why there is no correlation; "" where there is one


@dataclass(frozen=True)
class LabelReport:
    """The labels that a teacher learned."""

    run: str
    kind: str  # "class" or "instance"
    rows: int
    classes: int
    differing: float  # share of the rows whose likeliest class is not the given one
    entropy: float  # mean, in nats
    saturated: float  # share of the rows that are so sure that they hardly move any more
    touched: float  # share of the rows that were ever updated
    suspected: int  # images whose likeliest class is not the given one; 0 for a class table
    confusions: tuple[Confusion, ...]
    suspects: tuple[Suspect, ...]  # the most confident of them
    judged: Judged | None  # where labels of images were made wrong on purpose
    files: dict[str, str]  # what was written: what it is -> path
    notes: tuple[str, ...]  # what was left out, and why
    relation: RelationReport | None = None  # where another run was named

    def record(self) -> dict[str, Any]:
        """For `--json`."""
        suspects = [{**asdict(suspect), "path": printable(suspect.path)} for suspect in self.suspects]
        return {**asdict(self), "suspects": suspects}


def printable(text: str) -> str:
    """A name on one line, in characters that can be shown, whatever bytes it is made of."""
    text = os.fsencode(text).decode("utf-8", "backslashreplace")
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


def suspects_csv(suspects: Iterable[Suspect], *, true: bool) -> Iterator[bytes]:
    """A CSV file as RFC 4180 has it, in UTF-8; names of files keep their bytes, whatever these are.

    Args:
        suspects: the rows, in their order.
        true: whether there is a column of true labels.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    columns = ["index", "path", "given", "learned", "confidence", "given_probability"]
    writer.writerow([*columns, "true"] if true else columns)
    for suspect in suspects:
        yield _taken(text)
        shares = [f"{suspect.confidence:.6g}", f"{suspect.given_probability:.6g}"]
        row = [suspect.index, suspect.path, suspect.given, suspect.learned, *shares]
        writer.writerow([*row, suspect.true] if true else row)
    yield _taken(text)


def _taken(text: io.StringIO) -> bytes:
    data = text.getvalue().encode("utf-8", "surrogateescape")
    text.seek(0)
    text.truncate()
    return data
