"""Label tables: labels as parameters, y = softmax(phi), or y = phi kept on the simplex.

A class table [C, C] has a row for each given class, an instance table [N, C] one for each training image. Whatever is
wrong with one is said where it is made: later the host does not look at it, since looking waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from distill.errors import DataError, StoreError

Kind = Literal["class", "instance"]
Parametrisation = Literal["softmax", "projected"]

SMALLEST = 1e-6  # probability that a projected label keeps on every class: from exactly 0 it would hardly return
_MADE_BY = "make tables with `class_table` and `instance_table`."


def initial_logits(given: Tensor, classes: int, true_class_mass: float) -> Tensor:
    """phi [R, C] such that softmax(phi) has `true_class_mass` on the given class and the rest spread evenly.

    By mass and not by a raw logit, because softmax(5 * onehot) is .94 at C = 10 and .60 at C = 100.

    Args:
        given: int64 [R].
        classes: C, at least 2.
        true_class_mass: in (0, 1).
    """
    rest = math.log((1.0 - true_class_mass) / (classes - 1))
    phi = torch.full((given.numel(), classes), rest, device=given.device)
    return phi.scatter_(1, given.unsqueeze(1), math.log(true_class_mass))


@dataclass
class LabelTable:
    """The rows phi [R, C] and how an image finds its row.

    Raises:
        DataError: shapes, types or devices that do not fit each other.
    """

    kind: Kind
    phi: Tensor  # [R, C]
    given: Tensor  # int64 [R]: the label that each row started from
    images: Tensor  # int64 [R]: source index of each row's image; for a class table 0..C-1
    position: Tensor  # int64: source index -> row, R where there is none; empty for a class table
    parametrisation: Parametrisation = "softmax"  # "projected": phi are the labels themselves

    def __post_init__(self) -> None:
        phi = self.phi
        if phi.ndim != 2 or phi.shape[1] < 2 or not phi.is_floating_point() or not phi.is_contiguous():
            raise DataError(
                f"label table: phi is {phi.dtype} {list(phi.shape)}, expected contiguous floating-point rows [R, C] "
                "of two classes or more",
                cure=_MADE_BY,
            )
        if self.kind == "class" and phi.shape[0] != phi.shape[1]:
            raise DataError(f"label table: phi is {list(phi.shape)}, expected [C, C] of a class table", cure=_MADE_BY)
        for name in ("given", "images", "position"):
            tensor: Tensor = getattr(self, name)
            shape = list(tensor.shape) if name == "position" else [phi.shape[0]]
            if tensor.dtype != torch.int64 or tensor.ndim != 1 or list(tensor.shape) != shape:
                found = f"{tensor.dtype} {list(tensor.shape)}"
                raise DataError(f"label table: {name} is {found}, expected int64 {shape}", cure=_MADE_BY)
            if tensor.device != phi.device:
                raise DataError(f"label table: {name} is on {tensor.device}, phi on {phi.device}", cure=_MADE_BY)

    @property
    def classes(self) -> int:
        """C."""
        return self.phi.shape[1]

    def rows(self, indices: Tensor, given: Tensor) -> Tensor:
        """The row of each image: int64 source indices [B] and given labels [B] -> int64 [B]."""
        return given if self.kind == "class" else self.position[indices]

    def labels(self, rows: Tensor) -> Tensor:
        """Labels of some rows: int64 [B] -> [B, C]."""
        return self._probabilities(self.phi[rows])

    def all_labels(self) -> Tensor:
        """Every row's label, [R, C]."""
        return self._probabilities(self.phi)

    def project_(self, rows: Tensor) -> None:
        """Puts rows int64 [B], repeats allowed, back on the simplex, which a step leaves if they are labels themselves.

        Clamped and divided by their sum, in place; rows that are logits stay as they are.
        """
        if self.parametrisation == "projected":
            moved = self.phi[rows].clamp_min(SMALLEST)
            self.phi[rows] = moved / moved.sum(-1, keepdim=True)  # repeats write the same value

    def _probabilities(self, phi: Tensor) -> Tensor:
        return torch.softmax(phi, dim=-1) if self.parametrisation == "softmax" else phi.clone()


def class_table(
    classes: int, true_class_mass: float, device: torch.device, parametrisation: Parametrisation = "softmax"
) -> LabelTable:
    """One row for each class, [C, C].

    Raises:
        DataError: fewer than two classes, or a mass outside (0, 1).
    """
    _check_start(classes, true_class_mass)
    every = torch.arange(classes, device=device)
    phi = _initial(every, classes, true_class_mass, parametrisation)
    nowhere = torch.empty(0, dtype=torch.int64, device=device)
    return LabelTable("class", phi, every, every, nowhere, parametrisation)


def instance_table(
    images: Tensor,
    given: Tensor,
    classes: int,
    true_class_mass: float,
    device: torch.device,
    parametrisation: Parametrisation = "softmax",
) -> LabelTable:
    """One row for each training image, [N, C].

    Args:
        images: distinct source indices, int64 [N].
        given: their labels, int64 [N], in [0, C).
        classes: C, at least 2.
        true_class_mass: probability on the given class, in (0, 1).
        device: where the table lives.
        parametrisation: of the labels.

    Raises:
        DataError: one of these is not so.
    """
    _check_start(classes, true_class_mass)
    for name, tensor in (("images", images), ("given", given)):
        if tensor.dtype != torch.int64 or tensor.shape != (images.numel(),) or tensor.numel() == 0:
            found = f"{tensor.dtype} {list(tensor.shape)}"
            raise DataError(
                f"instance labels: {name} are {found}, expected int64 [N], the same N of one or more for images "
                "and given labels",
                cure="pass the source indices of the training images and their given labels.",
            )
    images, given = images.to(device), given.to(device)
    _check_range("given labels", given, classes, "check the number of classes, and that labels count from 0.")
    _check_range("source indices", images, None, "pass each training image's place in the data source.")
    every = torch.arange(images.numel(), device=device)
    # Past the end where there is none: -1 would be the last row.
    position = torch.full((int(images.max()) + 1,), images.numel(), dtype=torch.int64, device=device)
    position[images] = every
    repeated = position[images] != every
    if repeated.any():
        raise DataError(
            f"instance labels: image {int(images[repeated][0])} is named more than once, expected distinct images",
            cure="name each training image once.",
        )
    phi = _initial(given, classes, true_class_mass, parametrisation)
    return LabelTable("instance", phi, given, images, position, parametrisation)


def _initial(given: Tensor, classes: int, true_class_mass: float, parametrisation: Parametrisation) -> Tensor:
    phi = initial_logits(given, classes, true_class_mass)
    return phi if parametrisation == "softmax" else torch.softmax(phi, dim=-1)


def _check_start(classes: int, true_class_mass: float) -> None:
    if classes < 2:
        raise DataError(
            f"learned labels: found {classes} classes, expected 2 or more", cure="use data of more than one class."
        )
    if not 0 < true_class_mass < 1:
        raise DataError(
            f"learned labels: true_class_mass is {true_class_mass:g}, expected a number between 0 and 1, without them",
            cure='0.9, say; labels that stay at 1 are the rule "onehot".',
        )


def _check_range(name: str, values: Tensor, end: int | None, cure: str) -> None:
    low, high = int(values.min()), int(values.max())
    if low < 0 or (end is not None and high >= end):
        expected = "0 or more" if end is None else f"0 to {end - 1}"
        raise DataError(f"instance labels: {name} go from {low} to {high}, expected {expected}", cure=cure)


def restore(tensors: Mapping[str, Tensor], state: Mapping[str, object]) -> None:
    """Copies saved tensors back in place, by name; all are checked before the first is written.

    Raises:
        StoreError: one is missing or unknown, or has another shape or type: the state belongs to other labels.
    """
    for name in {**tensors, **state}:
        found, expected = (_described(group.get(name)) for group in (state, tensors))
        if found != expected:
            raise StoreError(
                f"saved labels: {name} is {found}, expected {expected}",
                cure="go on with the recipe that they were saved with, or delete the resume state to start again.",
            )
    for name, tensor in tensors.items():
        saved = state[name]
        assert isinstance(saved, Tensor)
        tensor.copy_(saved)


def _described(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype} {list(value.shape)}"
    return "none" if value is None else type(value).__name__
