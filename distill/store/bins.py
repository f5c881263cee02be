"""How sure a network was of the test images, and how often it was right: a small file in the run folder. No torch.

It has no digest of its own. Who reads it holds it against accuracy and ECE in run.json, which it must add up to.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from distill.errors import StoreError
from distill.store.atomic import writable_folder
from distill.store.json_files import read_json, write_json

BINS_FILE = "reliability.json"  # in a run folder
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Bin:
    """Images whose confidence, the largest probability, lies in one of K equal parts of (0, 1]."""

    count: int
    confidence: float  # their mean; 0 where there are none
    accuracy: float  # share of them that the network is right on


class _Record(BaseModel):
    """reliability.json: sums over the test images of each bin, of the last epoch that they were scored after."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    count: tuple[int, ...] = Field(min_length=1, max_length=1000)
    confidence: tuple[float, ...] = Field(description="Sum of the confidences.")
    correct: tuple[int, ...] = Field(description="Images that the network is right on.")

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        if not len(self.count) == len(self.confidence) == len(self.correct):
            raise ValueError("the lists are of different lengths")
        for count, confidence, correct in zip(self.count, self.confidence, self.correct, strict=True):
            if not (0 <= correct <= count and 0 <= confidence <= count * (1 + _ROUNDING)):
                raise ValueError(f"a bin of {count} images has {correct} right ones and confidence {confidence:g}")
        return self


def write_bins(folder: Path, count: list[int], confidence: list[float], correct: list[int]) -> None:
    """Sums of each bin, the least confident bin first.

    Raises:
        StoreError: the file cannot be written.
    """
    record = _Record(count=tuple(count), confidence=tuple(confidence), correct=tuple(correct))
    write_json(writable_folder(folder) / BINS_FILE, record.model_dump(mode="json"))


def read_bins(folder: Path, accuracy: float, ece: float) -> tuple[Bin, ...] | None:
    """The bins of a run, the least confident first; None where the run has none.

    Args:
        folder: the run's.
        accuracy: of its last epoch on test, as run.json has it.
        ece: the same.

    Raises:
        StoreError: the file is damaged, or another network's.
    """
    path = folder / BINS_FILE
    if not path.is_file():
        return None
    try:
        record = _Record.model_validate(read_json(path))
    except ValidationError as error:
        raise StoreError(f"{path}: {error.errors()[0]['msg']}", cure="The file is damaged.") from error
    total = sum(record.count)
    sums = list(zip(record.count, record.confidence, record.correct, strict=True))
    found = (sum(record.correct) / max(total, 1), sum(abs(sure - right) for _, sure, right in sums) / max(total, 1))
    if max(abs(found[0] - accuracy), abs(found[1] - ece)) > 1e-6:
        told = f"accuracy {found[0]:.4f} and ECE {found[1]:.4f}, expected {accuracy:.4f} and {ece:.4f} as in run.json"
        raise StoreError(f"{path}: is of another network: it makes {told}")
    return tuple(Bin(n, sure / n if n else 0.0, right / n if n else 0.0) for n, sure, right in sums)
