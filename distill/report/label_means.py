"""Mean learned labels of each given class, from a run's labels/ folder. No torch.

Tables are read in chunks and only class means are kept, so a table may be larger than memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from distill.errors import StoreError, UserError
from distill.report.calibration import run_folder
from distill.report.comparison import Comparison
from distill.report.labels import Pair, most_confused
from distill.report.results import CellResult
from distill.report.runs import open_run
from distill.store.atomic import sha256_of
from distill.store.manifest import LABELS_FILE, read_manifest

SHOWN = 16  # classes of a heat map
_MOST_CLASSES = 5_000  # a matrix of so many by so many is 200 MB
_CHUNK = 2**22  # values that are read together
_STORE = "logits"  # in a run folder

Means = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class LabelMap:
    """What one teacher's labels have learned."""

    arm: str
    means: Means  # [K, K], of the classes that are shown: row given, column learned


@dataclass(frozen=True, eq=False)
class LabelMaps:
    """The teachers of one seed that learned labels."""

    seed: int
    names: tuple[str, ...]  # of the K classes that are shown
    classes: int  # C
    maps: tuple[LabelMap, ...]


def label_maps(comparison: Comparison, folder: Path) -> tuple[LabelMaps | None, list[str]]:
    """Class means of all arms at the first seed that has any; None where no arm learned labels.

    Returns:
        The maps, of the classes that are confused most where there are many; a sentence for each table left out.
    """
    for seed in comparison.seeds:
        problems: list[str] = []
        found: dict[str, Means] = {}
        names: tuple[str, ...] = ()
        for arm in comparison.recipe.compare.names:
            result = comparison.row(arm, "teacher").results.get(seed)
            try:
                means = _of_run(run_folder(folder, result)) if result is not None and result.run else None
            except (UserError, OSError) as error:
                problems.append(str(error).splitlines()[0])
                continue
            if means is not None and result is not None and all(len(means) == len(other) for other in found.values()):
                found[arm] = means
                names = names or _class_names(folder, result, len(means))
        if found or problems:
            return (_shown(seed, names, found) if found else None), problems
    return None, []


def _shown(seed: int, names: tuple[str, ...], found: dict[str, Means]) -> LabelMaps:
    chosen = _confused(list(found.values()), len(names))
    maps = (LabelMap(arm, means[np.ix_(chosen, chosen)]) for arm, means in found.items())
    return LabelMaps(seed, tuple(names[k] for k in chosen), len(names), tuple(maps))


def _confused(means: Sequence[Means], classes: int) -> NDArray[np.int64]:
    """Those that all the tables together confuse most, in order."""
    total = np.sum(means, axis=0)
    np.fill_diagonal(total, 0.0)
    best = np.argsort(-total, axis=None, kind="stable")[: 4 * SHOWN**2]
    pairs = [Pair(k // classes, k % classes, float(total.flat[k]), 0) for k in best.tolist()]
    return most_confused(pairs, classes, SHOWN)


def _class_names(folder: Path, result: CellResult, classes: int) -> tuple[str, ...]:
    """As the store has them; their numbers where there is none."""
    try:
        names = read_manifest(run_folder(folder, result) / _STORE).origin.class_names
    except UserError:
        names = ()
    return tuple(names) if len(names) == classes else tuple(map(str, range(classes)))


def _of_run(folder: Path) -> Means | None:
    """[C, C]; None where the teacher's labels are fixed.

    Raises:
        StoreError: the file is missing, or not what the teacher wrote.
    """
    written = open_run(folder).record.stages["teacher"].files.get(LABELS_FILE)
    if written is None:
        return None
    path = folder / LABELS_FILE
    if sha256_of(path) != written:
        raise StoreError(f"{path}: sha256 differs from what the teacher wrote")
    try:
        return _class_means(path)
    except (SafetensorError, ValueError, IndexError) as error:
        raise StoreError(f"{path}: {error}") from error


def _class_means(path: Path) -> Means:
    with safe_open(path, framework="numpy") as file:
        given, table = file.get_tensor("given"), file.get_slice("averaged")
        rows, classes = table.get_shape()
        if classes > _MOST_CLASSES:
            raise ValueError(f"labels of {classes:,} classes are too many for a picture")
        if given.shape != (rows,) or given.min() < 0 or given.max() >= classes:
            raise ValueError(f"given labels {given.shape} do not fit a table of {rows} rows and {classes} classes")
        sums = np.zeros((classes, classes))
        step = max(1, _CHUNK // classes)
        for start in range(0, rows, step):
            stop = min(start + step, rows)
            np.add.at(sums, given[start:stop], table[start:stop].astype(np.float64))
    means: Means = sums / np.maximum(np.bincount(given, minlength=classes), 1)[:, None]
    return means
