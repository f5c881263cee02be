"""The numbers that a recipe's fields are made of, each with its range.

Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator, Field


@dataclass(frozen=True)
class Words:
    """What a field expects, where its type and bounds do not say it well."""

    words: str


Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveShare = Annotated[float, Field(gt=0.0, le=1.0)]
Part = Annotated[int | float, Words("a number of images, or a share below 1")]
Temperature = Annotated[float, Field(ge=0.01, le=1000)]
Strength = Annotated[float, Field(ge=0.0, le=10.0)]
Concentration = Annotated[float, Field(ge=0.0, le=100.0)]


def _none_or_two(values: tuple[float, ...]) -> tuple[float, ...]:
    if len(values) not in (0, 2):
        raise ValueError("expected two numbers")
    return values


def _two(values: tuple[float, ...]) -> tuple[float, ...]:
    if len(values) != 2:
        raise ValueError("expected two numbers")
    return values


# From the least to the most; `checks.py` sees to the order.
AreaRange = Annotated[
    tuple[Annotated[float, Field(ge=1e-4, le=1)], ...],
    Field(strict=False),
    AfterValidator(_none_or_two),
    Words("two numbers from 0.0001 to 1, the least and the most, such as [0.08, 1.0]; or [] for none"),
]
ErasingRange = Annotated[
    tuple[Annotated[float, Field(ge=1e-4, le=1)], ...],
    Field(strict=False),
    AfterValidator(_two),
    Words("two numbers from 0.0001 to 1, the least and the most, such as [0.02, 0.33]"),
]
RatioRange = Annotated[
    tuple[Annotated[float, Field(ge=0.01, le=100)], ...],
    Field(strict=False),
    AfterValidator(_two),
    Words("two numbers from 0.01 to 100, the least and the most, such as [0.75, 1.33]"),
]
