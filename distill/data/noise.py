"""Wrong labels, planted on purpose. The true labels stay beside them, for evaluation only."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

import torch
from torch import Tensor

from distill.data.noise_file import read_noise_file
from distill.data.split import Splits
from distill.errors import DataError
from distill.recipe.schema import NoiseRecipe
from distill.seeding import derive, draw


@dataclass(frozen=True)
class Labels:
    """Labels of all N images of a source, int64 [N]: those given for training, and the true ones."""

    given: Tensor
    true: Tensor

    @property
    def is_noisy(self) -> Tensor:
        """Where the given label is wrong, bool [N]."""
        return self.given != self.true


def plant_noise(
    true: Tensor,
    splits: Splits,
    classes: tuple[str, ...],
    recipe: NoiseRecipe,
    seed: int,
    test_start: int | None = None,
) -> Labels:
    """Makes labels wrong, in the training part and in those of meta and validation that `recipe.clean` does not name.

    symmetric: exactly round(rate * n) labels of each part are drawn again, uniformly, from all classes or from the
    others. asymmetric: round(rate * n) labels of each source class of each part become the class it is paired with.
    file: the file's labels. The test part is never touched.

    Args:
        true: int64 [N].
        splits: the parts.
        classes: the C class names.
        recipe: what noise.
        seed: the recipe's seed.
        test_start: index of the first official test image; a .npy file may then cover the images before it only.

    Raises:
        DataError: for class names that do not exist, and for a file that does not fit the data.
    """
    if recipe.kind == "none":
        return Labels(given=true.clone(), true=true)
    if len(classes) < 2:
        raise DataError(f"data.noise.kind = {recipe.kind!r} needs two classes or more, the data have {len(classes)}")
    given = true.clone()
    parts = {"train": splits.train, "meta": splits.meta, "validation": splits.validation}
    touched = [indices for name, indices in parts.items() if name not in recipe.clean]
    if recipe.kind == "file":
        from_file = read_noise_file(recipe.file, true, classes, test_start)
        for indices in touched:
            given[indices] = from_file[indices]
    elif recipe.kind == "symmetric":
        for indices in touched:
            chosen = _chosen(indices, recipe.rate, seed)
            given[chosen] = _drawn_again(chosen, true, len(classes), recipe.redraw == "others", seed)
    else:
        pairs = _pairs(classes, recipe.pairs)
        for indices in touched:
            for source, target in pairs.items():
                given[_chosen(indices[true[indices] == source], recipe.rate, seed)] = target
    return Labels(given=given, true=true)


def _chosen(indices: Tensor, rate: float, seed: int) -> Tensor:
    """Exactly round(rate * n) of `indices` [n], those whose hash is smallest."""
    order = torch.argsort(draw(derive(seed, "noise-rows"), indices, torch.zeros_like(indices)), stable=True)
    return indices[order[: round(rate * len(indices))]]


def _drawn_again(indices: Tensor, true: Tensor, num_classes: int, others: bool, seed: int) -> Tensor:
    """New labels [n], uniform over all classes or over those that are not the true one."""
    drawn = draw(derive(seed, "noise-labels"), indices, torch.zeros_like(indices))
    if not others:
        return drawn % num_classes
    return (true[indices] + 1 + drawn % (num_classes - 1)) % num_classes


def _pairs(classes: tuple[str, ...], named: dict[str, str]) -> dict[int, int]:
    """Which class becomes which, by number; each the next when none is named."""
    if not named:
        return {source: (source + 1) % len(classes) for source in range(len(classes))}
    numbers = {name: number for number, name in enumerate(classes)}
    for name in [*named.keys(), *named.values()]:
        if name not in numbers:
            close = difflib.get_close_matches(name, classes, n=3, cutoff=0.5)
            hint = f"Did you mean {' or '.join(map(repr, close))}?" if close else f"Classes: {', '.join(classes[:20])}."
            raise DataError(f"data.noise.pairs: {name!r} is not a class", cure=hint)
    for source, target in named.items():
        if source == target:
            raise DataError(f"data.noise.pairs: {source!r} becomes itself", cure="Name another class, or leave it out.")
    return {numbers[source]: numbers[target] for source, target in named.items()}
