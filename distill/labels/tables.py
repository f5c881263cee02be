"""Label tables: labels as parameters, y = softmax(phi), or y = phi kept on the simplex.

A class table [C, C] has a row for each given class, an instance table [N, C] one for each training image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["class", "instance"]
Parametrisation = Literal["softmax", "projected"]


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
    """The rows phi [R, C] and how an image finds its row."""

    kind: Kind
    phi: Tensor  # [R, C]
    given: Tensor  # int64 [R]: the label that each row started from
    images: Tensor  # int64 [R]: source index of each row's image; for a class table 0..C-1
    position: Tensor  # int64: source index -> row, -1 where there is none; empty for a class table
    parametrisation: Parametrisation = "softmax"  # "projected": phi are the labels themselves

    def rows(self, indices: Tensor, given: Tensor) -> Tensor:
        """The row of each image: int64 source indices [B] and given labels [B] -> int64 [B]."""
        return given if self.kind == "class" else self.position[indices]

    def labels(self, rows: Tensor) -> Tensor:
        """Labels of some rows: int64 [B] -> [B, C]."""
        return self._probabilities(self.phi[rows])

    def all_labels(self) -> Tensor:
        """Every row's label, [R, C]."""
        return self._probabilities(self.phi)

    def _probabilities(self, phi: Tensor) -> Tensor:
        return torch.softmax(phi, dim=-1) if self.parametrisation == "softmax" else phi.clone()


def class_table(
    classes: int, true_class_mass: float, device: torch.device, parametrisation: Parametrisation = "softmax"
) -> LabelTable:
    """One row for each class, [C, C]."""
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
        given: their labels, int64 [N].
        classes: C.
        true_class_mass: probability on the given class.
        device: where the table lives.
        parametrisation: of the labels.
    """
    images, given = images.to(device), given.to(device)
    position = torch.full((int(images.max()) + 1,), -1, dtype=torch.int64, device=device)
    position[images] = torch.arange(images.numel(), device=device)
    phi = _initial(given, classes, true_class_mass, parametrisation)
    return LabelTable("instance", phi, given, images, position, parametrisation)


def _initial(given: Tensor, classes: int, true_class_mass: float, parametrisation: Parametrisation) -> Tensor:
    phi = initial_logits(given, classes, true_class_mass)
    return phi if parametrisation == "softmax" else torch.softmax(phi, dim=-1)
