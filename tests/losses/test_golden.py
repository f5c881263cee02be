"""Values and gradients that must not move. `python -m tests.losses.test_golden` writes the file anew.

Inputs are halves of small whole numbers, by a formula, so that no generator and no mathematical library makes them.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.losses.catalogue import CASES

FILE = Path(__file__).parents[1] / "golden" / "losses.json"
BATCH, CLASSES = 4, 5


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Student and teacher logits [4, 5] in [-3, 3] and [-4, 4], targets [4]."""
    i, c = torch.arange(BATCH).unsqueeze(1), torch.arange(CLASSES)
    student = ((5 * i + 3 * c * c + 7 * i * c + 2) % 13 - 6).double() / 2
    teacher = ((7 * i + 2 * c * c + 3 * i * c + 5) % 17 - 8).double() / 2
    return student, teacher, torch.arange(BATCH) * 3 % CLASSES


def outcome(name: str) -> dict[str, list[object]]:
    """The loss [4], and the gradient of its mean [4, 5], in float64."""
    student, teacher, targets = inputs()
    student.requires_grad_()
    loss = CASES[name].loss(student, teacher, targets)
    (gradient,) = torch.autograd.grad(loss.mean(), student)
    return {"loss": loss.tolist(), "gradient": gradient.tolist()}


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    golden = json.loads(FILE.read_text())
    assert name in golden, f"{FILE.name} has no {name!r}; look at what the loss gives, then write the file anew"
    for part, found in outcome(name).items():
        expected = torch.tensor(golden[name][part], dtype=torch.float64)
        torch.testing.assert_close(torch.tensor(found, dtype=torch.float64), expected, rtol=1e-11, atol=1e-12)


def test_no_golden_value_is_left_over() -> None:
    assert json.loads(FILE.read_text()).keys() == CASES.keys()


if __name__ == "__main__":
    entries = [f"  {json.dumps(name)}: {json.dumps(outcome(name))}" for name in CASES]
    FILE.write_text("{\n" + ",\n".join(entries) + "\n}\n")
