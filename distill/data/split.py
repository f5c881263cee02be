"""One seeded division of a data set into parts that cannot overlap.

All parts are consecutive cuts of one order of the pool, so they are disjoint by construction. The order interleaves the
classes, so every part has its share of each.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from distill.errors import DataError
from distill.recipe.schema import DataRecipe
from distill.seeding import derive, draw


@dataclass(frozen=True)
class Splits:
    """Source indices of each part, int64, each sorted ascending; no index is in two of them."""

    train: Tensor
    validation: Tensor
    meta: Tensor
    test: Tensor

    @property
    def teachable(self) -> Tensor:
        """The training and the meta images, [N], ascending: all that a network may be trained on."""
        return torch.cat([self.train, self.meta]).sort().values


def shuffled(indices: Tensor, seed: int, purpose: str, *numbers: int) -> Tensor:
    """`indices` [n] in an order that depends only on the seed, the purpose, the numbers and n."""
    positions = torch.arange(len(indices))
    keys = draw(derive(seed, purpose, *numbers), positions, torch.zeros_like(positions))
    return indices[torch.argsort(keys, stable=True)]


def _interleaved(pool: Tensor, targets: Tensor, seed: int) -> Tensor:
    """The pool in random order, each class spread evenly: any stretch holds the classes in proportion.

    The r-th of a class's n images is put at (r + 1/2) / n; ties stand in random order.
    """
    order = shuffled(pool, seed, "split")
    labels = targets[order]
    counts = torch.bincount(labels)
    by_class = torch.argsort(labels, stable=True)
    first_of_class = torch.cumsum(counts, 0) - counts
    rank = torch.empty_like(order)
    rank[by_class] = torch.arange(len(order)) - first_of_class[labels[by_class]]
    place = (rank.double() + 0.5) / counts[labels].double()
    return order[torch.argsort(place, stable=True)]


def _amount(field: str, value: int | float, pool: int) -> int:
    """Images that `value` asks for: an int is a count, a float a share of the pool; no share above 0 is empty."""
    if isinstance(value, bool) or not math.isfinite(value) or value < 0 or (isinstance(value, float) and value > 1):
        raise DataError(
            f"data.{field} = {value}, expected a number of images (0, 1, 2, ...) or a share of them (0.0 to 1.0)"
        )
    if isinstance(value, int):
        return value
    return max(1, round(value * pool)) if value > 0 else 0


def _check_classes(targets: Tensor, train: Tensor, classes: Sequence[str]) -> None:
    counts = torch.bincount(targets[train], minlength=len(classes))
    missing = [name for name, count in zip(classes, counts.tolist(), strict=True) if count == 0]
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise DataError(
            f"{len(train)} training images of {len(classes)} classes, but none of {', '.join(missing[:5])}{more}",
            cure="Raise data.train, lower data.test, data.validation or data.meta, or add images.",
        )


def split(targets: Tensor, test_start: int | None, recipe: DataRecipe, classes: tuple[str, ...], seed: int) -> Splits:
    """Divides the images of a source.

    The pool is the official training part, or everything when there is no official test part; then the test part is
    cut from it first. Validation and meta part follow, and what is left is for training; `data.train` may take less.
    Integers are counts; floats are shares of the whole pool, whatever else is cut from it.

    Args:
        targets: true labels, int64 [N].
        test_start: index of the first official test image, or None.
        recipe: the sizes.
        classes: the C class names.
        seed: the recipe's seed.

    Raises:
        DataError: when a size is out of range, the parts do not fit, or a class is left without a training image.
    """
    pool = len(targets) if test_start is None else test_start
    test_size = _amount("test", recipe.test, pool) if test_start is None else 0
    sizes = [test_size, _amount("validation", recipe.validation, pool), _amount("meta", recipe.meta, pool)]
    left = pool - sum(sizes)
    train_size = left if recipe.train is None else recipe.train
    if train_size < 1 or train_size > left:
        wanted = "at least 1" if recipe.train is None else f"{recipe.train}"
        asked = f"{sizes[1]} (validation) + {sizes[2]} (meta) + {wanted} (train)"
        asked = f"{sizes[0]} (test) + {asked}" if test_start is None else asked
        raise DataError(f"data: asked for {asked}, the pool has {pool} images", cure="Lower one of them.")
    if test_start is None and test_size == 0:
        raise DataError(
            "data.test = 0, but the source has no test part of its own", cure="Set data.test to a number or a share."
        )
    if test_start is not None and test_start >= len(targets):
        raise DataError(f"the official test part is empty: {len(targets)} images, all for training")
    order = _interleaved(torch.arange(pool), targets[:pool], seed)
    cuts = torch.split(order[: sum(sizes) + train_size], [*sizes, train_size])
    test, validation, meta, train = (part.sort().values for part in cuts)
    if test_start is not None:
        test = torch.arange(test_start, len(targets))
    _check_classes(targets, train, classes)
    return Splits(train=train, validation=validation, meta=meta, test=test)


def without(splits: Splits, left_out: Collection[int], targets: Tensor, classes: tuple[str, ...]) -> Splits:
    """The parts without some images; every other image stays where it is.

    Args:
        splits: the parts.
        left_out: source indices.
        targets: true labels, int64 [N].
        classes: the C class names.

    Raises:
        DataError: when nothing is left of a part, or of a class in the training part.
    """
    if not left_out:
        return splits
    gone = torch.tensor(sorted(left_out), dtype=torch.int64)
    parts = {name: getattr(splits, name) for name in ("train", "validation", "meta", "test")}
    rest = {name: part[~torch.isin(part, gone)] for name, part in parts.items()}
    for name, part in parts.items():
        if len(part) and not len(rest[name]):
            raise DataError(
                f"none of the {len(part)} images of the {name} part can be decoded",
                cure="Mend or remove the files, or make that part larger.",
            )
    _check_classes(targets, rest["train"], classes)
    return Splits(**rest)
