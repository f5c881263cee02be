"""Draws of numpy on the CPU and of torch on a device are the same numbers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.seeding import _logical_shift, _mix, _state, draw, draw_bytes

WHOLE = st.integers(-(2**63), 2**63 - 1)


@settings(deadline=None, max_examples=100)
@given(key=st.integers(0, 2**63 - 1), i=st.lists(WHOLE, max_size=5), k=WHOLE)
def test_both_forms_draw_the_same(key: int, i: list[int], k: int) -> None:
    indices, number = torch.tensor(i, dtype=torch.int64), torch.tensor(k)
    expected = _logical_shift(_state(key, indices, number), 1)
    assert torch.equal(draw(key, indices, number), expected)
    assert torch.equal(draw(key, indices, number.expand(len(i))), expected)
    assert (expected >= 0).all()
    words = torch.arange(1, 4) * -7046029254386353131
    noise = _mix(_state(key, indices, number.expand(len(i)))[:, None] + words).view(torch.uint8)
    assert torch.equal(draw_bytes(key, indices, number.expand(len(i)), 19), noise[:, :19])


def test_known_numbers() -> None:
    """The stored views of every user hang on these."""
    drawn = draw(5, torch.tensor([0, 1, 2**40, -1]), torch.tensor([0, 7, 3, 0]))
    assert drawn.tolist() == [3843813214554478215, 6340739842237366186, 8634777240719044016, 5276964393556558261]
    # SplitMix64 from seed 0, as published: its first output is 16294208416658607535.
    assert int(_mix(torch.tensor(-7046029254386353131))) % 2**64 == 16294208416658607535


@pytest.mark.parametrize("shape", [(), (1,), (3, 4), (0,)])
def test_shapes_are_broadcast(shape: tuple[int, ...]) -> None:
    i, k = torch.zeros(shape, dtype=torch.int64), torch.arange(4)[:, None, None]
    assert draw(1, i, k).shape == torch.broadcast_shapes(i.shape, k.shape)
    assert draw(1, i, torch.tensor(3)).shape == shape
