"""Mixup and CutMix. The torch form is in `distill.data.mixing`."""

from __future__ import annotations

import numpy as np

from distill.data.compiled.kernel import Bytes, Integers, kernel

_SHARES = 4096
_WHOLE, _SHARE = np.float32(_SHARES), np.float32(1 / _SHARES)


@kernel
def mix(
    images: Bytes,
    partners: Bytes,
    number: Integers,
    weight: Integers,
    boxes: Integers,
    shape: tuple[int, ...],
    made: Bytes,
) -> None:
    """Mixes images, in one row each, with their partners: images, made [B, S]; partners [M, S]; S = ch * H * W.

    Args:
        images: to mix.
        partners: of the M images that are mixed.
        number: of each image's partner, [B]; -1: none.
        weight: of the images that are mixed, in 4096ths, [M].
        boxes: top, left, height and width of what is taken from the partner, [4, M].
        shape: channels, height and width.
        made: the result.
    """
    channels, height, width = shape
    for n in range(len(images)):
        m = number[n]
        if m < 0 or weight[m] == _SHARES:
            _copy(images[n], made[n])
        else:
            _blend(images[n], partners[m], np.float32(weight[m]), made[n])
        if m >= 0:
            top, left, tall, wide = boxes[0, m], boxes[1, m], boxes[2, m], boxes[3, m]
            assert 0 <= top <= top + tall <= height
            assert 0 <= left <= left + wide <= width
            for c in range(channels):
                for y in range(top, top + tall):
                    first = (c * height + y) * width + left
                    _copy(partners[m, first : first + wide], made[n, first : first + wide])


@kernel
def _copy(old: Bytes, new: Bytes) -> None:
    for x in range(len(new)):
        new[x] = old[x]


@kernel
def _blend(own: Bytes, other: Bytes, weight: np.float32, new: Bytes) -> None:
    """Rounded to whole grey levels."""
    rest = _WHOLE - weight
    for x in range(len(new)):
        new[x] = np.uint8(np.rint((np.float32(own[x]) * weight + np.float32(other[x]) * rest) * _SHARE))
