"""Label tables: labels as parameters.

    softmax      y = softmax(phi + prior)
    projected    y = phi, put back on the simplex after each step
    fixed-mass   y = m onehot(given) + (1 - m) softmax of phi over the other classes

A class table [C, C] has a row for each given class, an instance table [N, C] one for each training image; an instance
table may stand on a class prior [C, C], whose row of the given class is added to its own. Whatever is wrong with one is
said where it is made: later the host does not look at it, since looking waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from distill.errors import DataError, StoreError
from distill.kernels import reference

Kind = Literal["class", "instance"]
Parametrisation = Literal["softmax", "projected", "fixed-mass"]

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
    parametrisation: Parametrisation = "softmax"
    mass: float = 0.0  # on the given class at first; m of "fixed-mass"
    prior: Tensor | None = None  # [C, C]: what the rows of a given class share, added to phi; of "softmax" only
    still: Tensor | None = None  # bool [R]: rows that stay as they are, and stand on no prior; None: all learn

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

        if self.prior is not None and (self.parametrisation != "softmax" or self.kind != "instance"):
            raise DataError(
                f"label table: a class prior with {self.kind} rows, {self.parametrisation}; expected instance rows "
                "that are logits",
                cure=_MADE_BY,
            )

    @property
    def classes(self) -> int:
        """C."""
        return self.phi.shape[1]

    @property
    def plain(self) -> bool:
        """Whether a label is the softmax of its row and nothing else, as the kernels take it."""
        return self.parametrisation == "softmax" and self.prior is None

    def of_prior(self) -> LabelTable:
        """The class prior as a class table of its own, in the same memory."""
        assert self.prior is not None
        every = torch.arange(self.classes, device=self.phi.device)
        nowhere = torch.empty(0, dtype=torch.int64, device=self.phi.device)
        return LabelTable("class", self.prior, every, every, nowhere)

    def rows(self, indices: Tensor, given: Tensor) -> Tensor:
        """The row of each image: int64 source indices [B] and given labels [B] -> int64 [B]."""
        return given if self.kind == "class" else self.position[indices]

    def labels(self, rows: Tensor) -> Tensor:
        """Labels of some rows: int64 [B] -> [B, C]."""
        still = None if self.still is None else self.still[rows]
        return self._probabilities(self.phi[rows], self.given[rows], still)

    def logits(self, rows: Tensor) -> Tensor:
        """What a label is the softmax of, the prior's part included: int64 [B] -> [B, C]. "softmax" only."""
        return self._with_prior(self.phi[rows], self.given[rows], None if self.still is None else self.still[rows])

    def all_labels(self) -> Tensor:
        """Every row's label, [R, C]."""
        return self._probabilities(self.phi, self.given, self.still)

    def gradient(self, labels: Tensor, given: Tensor, derivative: Tensor) -> Tensor:
        """dL/dphi from dL/dy: labels y [B, C], given labels of the rows int64 [B], dL/dy [B, C] -> [B, C]."""
        if self.parametrisation == "projected":
            return derivative
        if self.parametrisation == "fixed-mass":
            # The rest y of mass 1 - m is (1 - m) softmax: dy_c = y_c (dphi_c - sum_k y_k dphi_k / (1 - m)).
            y = labels.scatter(1, given.unsqueeze(1), 0.0)
            return y * (derivative - (y * derivative).sum(-1, keepdim=True) / (1.0 - self.mass))
        return reference.row_gradient(labels, derivative, torch.ones((), device=labels.device))

    def project_(self, rows: Tensor) -> None:
        """Puts rows int64 [B], repeats allowed, back on the simplex, which a step leaves if they are labels themselves.

        Clamped and divided by their sum, in place; rows that are logits stay as they are.
        """
        if self.parametrisation == "projected":
            moved = self.phi[rows].clamp_min(SMALLEST)
            self.phi[rows] = moved / moved.sum(-1, keepdim=True)  # repeats write the same value

    def _probabilities(self, phi: Tensor, given: Tensor, still: Tensor | None) -> Tensor:
        """phi [B, C], the rows' given labels [B] and which of them stay as they are [B] -> [B, C]."""
        if self.parametrisation == "projected":
            return phi.clone()
        if self.parametrisation == "fixed-mass":
            at = given.unsqueeze(1)
            rest = torch.softmax(phi.scatter(1, at, -math.inf), dim=-1) * (1.0 - self.mass)
            return rest.scatter(1, at, self.mass)
        return torch.softmax(self._with_prior(phi, given, still), dim=-1)

    def _with_prior(self, phi: Tensor, given: Tensor, still: Tensor | None) -> Tensor:
        if self.prior is None:
            return phi
        prior = self.prior[given]
        return phi + (prior if still is None else prior.masked_fill(still.unsqueeze(1), 0.0))


def class_table(
    classes: int, true_class_mass: float, device: torch.device, parametrisation: Parametrisation = "softmax"
) -> LabelTable:
    """One row for each class, [C, C].

    Args:
        classes: C, at least 2.
        true_class_mass: probability on the given class, in (0, 1), at first or, "fixed-mass", for good.
        device: where the table lives.
        parametrisation: of the labels.

    Raises:
        DataError: fewer than two classes (three of "fixed-mass"), or a mass outside (0, 1).
    """
    check_start(classes, true_class_mass, parametrisation)
    every = torch.arange(classes, device=device)
    phi = _initial(every, classes, true_class_mass, parametrisation)
    nowhere = torch.empty(0, dtype=torch.int64, device=device)
    return LabelTable("class", phi, every, every, nowhere, parametrisation, true_class_mass)


def instance_table(
    images: Tensor,
    given: Tensor,
    classes: int,
    true_class_mass: float,
    device: torch.device,
    parametrisation: Parametrisation = "softmax",
    *,
    with_prior: bool = False,
    still: Tensor | None = None,
    still_mass: float | None = None,
) -> LabelTable:
    """One row for each training image, [N, C].

    Args:
        images: distinct source indices, int64 [N].
        given: their labels, int64 [N], in [0, C).
        classes: C, at least 2.
        true_class_mass: probability on the given class, in (0, 1), at first or, "fixed-mass", for good.
        device: where the table lives.
        parametrisation: of the labels.
        with_prior: rows stand on a class prior, which starts at 0.
        still: images whose rows stay as they are, int64 [K], of any that are no training images too; None: none.
        still_mass: probability on their given class; None: `true_class_mass`, as is always that of "fixed-mass".

    Raises:
        DataError: one of these is not so.
    """
    check_start(classes, true_class_mass, parametrisation)
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
    prior = torch.zeros(classes, classes, device=device) if with_prior else None
    fixed = None if still is None else torch.isin(images, still.to(device))
    if fixed is not None and still_mass is not None:
        phi[fixed] = _initial(given[fixed], classes, still_mass, parametrisation)
    return LabelTable("instance", phi, given, images, position, parametrisation, true_class_mass, prior, fixed)


def _initial(given: Tensor, classes: int, true_class_mass: float, parametrisation: Parametrisation) -> Tensor:
    phi = initial_logits(given, classes, true_class_mass)
    return torch.softmax(phi, dim=-1) if parametrisation == "projected" else phi


def check_start(classes: int, true_class_mass: float, parametrisation: Parametrisation) -> None:
    """Refuses labels that could not learn anything.

    Raises:
        DataError: too few classes, or no mass that labels can move.
    """
    fewest = 3 if parametrisation == "fixed-mass" else 2
    if classes < fewest:
        raise DataError(
            f"learned labels: found {classes} classes, expected {fewest} or more",
            cure="a fixed mass leaves the other class no choice; leave it out of [teacher.labels], be it as "
            'parametrisation = "fixed-mass" or as settings = "trusted".'
            if fewest == 3
            else "use data of more than one class.",
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


def initial_labels(table: LabelTable, rows: Tensor) -> Tensor:
    """The labels that some rows started from: int64 [B] -> float32 [B, C]."""
    return torch.softmax(initial_logits(table.given[rows], table.classes, table.mass), dim=-1)


@contextmanager
def rows_exist() -> Iterator[None]:
    """On the CPU torch looks at row numbers while it indexes: an image without a row is a DataError there."""
    try:
        yield
    except IndexError as error:
        raise DataError(
            f"labels: an image of the batch has no row in the label table: {error}",
            cure="make the table of all images and classes that are trained on.",
        ) from error


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
