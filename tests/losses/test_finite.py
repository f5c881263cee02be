"""No infinity and no NaN, in value or gradient, for logits that are up to 1e4 from each other, or equal."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from distill.losses.learned_temperature import LearnedTemperature
from distill.losses.logit import kd
from tests.losses.catalogue import CASES

SIZES = (0.0, 1e-30, 1e-7, 1e-3, 1.0, 20.0, 120.0, 1e3, 5e3)  # of logits on both sides of 0: gaps up to 1e4
FORMS = ("one", "two", "steps", "noise")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)

logits = st.tuples(st.sampled_from(SIZES), st.sampled_from(FORMS), st.integers(0, 9), st.sampled_from((0.0, 7.3, -4e3)))
batches = st.tuples(st.sampled_from((1, 2, 3, 8)), st.sampled_from((1, 2, 3, 10)))


def made(shape: tuple[int, int], kind: tuple[float, str, int, float]) -> Tensor:
    """Logits [B, C] of a size, in a form, shifted. Rows of "one" and "two" are constant but for one or two classes."""
    size, form, seed, shift = kind
    batch, classes = shape
    rows, columns = np.arange(batch)[:, None], np.arange(classes)[None, :]
    if form == "noise":
        z = np.random.default_rng(seed).uniform(-1, 1, shape)
    elif form == "steps":
        z = 2 * ((columns + seed * rows) % classes) / max(1, classes - 1) - 1
    else:
        z = np.where(columns == (seed + rows * (form == "two")) % classes, 1.0, -1.0)
        z = np.where((form == "two") & (columns == (seed + 1) % classes), 1.0, z)
    return torch.from_numpy(size * z + shift)


@pytest.mark.parametrize("name", CASES)
@settings(deadline=None, derandomize=True, max_examples=40, database=None)
@given(shape=batches, student=logits, teacher=logits, dtype=st.sampled_from(DTYPES))
@example((1, 1), (5e3, "one", 0, 0.0), (5e3, "one", 0, 0.0), torch.float32)
@example((2, 2), (5e3, "one", 0, 0.0), (5e3, "one", 1, 0.0), torch.float16)
@example((3, 10), (5e3, "steps", 0, 0.0), (5e3, "steps", 1, 0.0), torch.bfloat16)
@example((8, 10), (0.0, "one", 0, 7.3), (5e3, "noise", 1, 0.0), torch.float32)
@example((8, 10), (1e-7, "noise", 0, 0.0), (1e-30, "noise", 1, 0.0), torch.float32)
def test_values_and_gradients_are_finite(name: str, shape, student, teacher, dtype: torch.dtype) -> None:
    student, teacher = (made(shape, kind).to(dtype) for kind in (student, teacher))
    student.requires_grad_()
    targets = torch.arange(shape[0]) % shape[1]
    loss = CASES[name].loss(student, teacher, targets)
    assert loss.dtype == torch.float32
    assert loss.isfinite().all()
    # In half precision a gradient may be too large for its type: the widened one is meant.
    wide = student.detach().float().requires_grad_()
    (gradient,) = torch.autograd.grad(CASES[name].loss(wide, teacher, targets).sum(), wide)
    assert gradient.isfinite().all()
    if shape[1] == 1:
        assert gradient.abs().max() == 0
    (gradient,) = torch.autograd.grad(loss.mean(), student)
    assert not gradient.isnan().any()


@settings(deadline=None, derandomize=True, max_examples=60, database=None)
@given(shape=batches, student=logits, teacher=logits, raw=st.sampled_from((-1e4, -3.0, 0.0, 1.0, 1e4)))
def test_a_learned_temperature_s_gradient_is_finite(shape, student, teacher, raw: float) -> None:
    learned = LearnedTemperature(raw=raw)
    loss = kd(made(shape, student).float(), made(shape, teacher).float(), learned(1.0))
    loss.sum().backward()
    assert loss.isfinite().all()
    assert learned.raw.grad is not None
    assert learned.raw.grad.isfinite()
