"""What comes straight from the hash of (seed, image, view number): see `distill.seeding`, which defines it.

splitmix64's arithmetic is modulo 2^64, so every number here is unsigned.
"""

from __future__ import annotations

import numpy as np

from distill.data.compiled.kernel import Bytes, Doubles, Integers, kernel

_GOLDEN = np.uint64(-7046029254386353131 % 2**64)
_MIX_1 = np.uint64(-4658895280553007687 % 2**64)
_MIX_2 = np.uint64(-7723592293110705685 % 2**64)
_1, _8, _10, _27, _30, _31 = (np.uint64(number) for number in (1, 8, 10, 27, 30, 31))


@kernel
def _mix(x: np.uint64) -> np.uint64:
    x = (x ^ (x >> _30)) * _MIX_1
    x = (x ^ (x >> _27)) * _MIX_2
    return x ^ (x >> _31)


@kernel
def _state(key: np.uint64, i: int, k: int) -> np.uint64:
    state = _mix(np.uint64(i) * _GOLDEN + key)
    return _mix(state + (np.uint64(k) + _1) * _GOLDEN)


@kernel
def draw(key: np.uint64, i: Integers, k: Integers, made: Integers) -> None:
    """Integers in [0, 2^63): i, k, made [B]."""
    for n in range(len(i)):
        made[n] = np.int64(_state(key, i[n], k[n]) >> _1)


@kernel
def find_boxes(
    keys: tuple[np.uint64, np.uint64],
    i: Integers,
    k: Integers,
    attempts: int,
    area: tuple[float, float],
    ratios: Doubles,
    shape: tuple[int, int],
    smaller: bool,
    made: Integers,
) -> None:
    """Heights and widths of the first boxes that fit, of some attempts; 0 where none does.

    Args:
        keys: of the areas and of the ratios.
        i: source indices, [B].
        k: view numbers, [B].
        attempts: how many.
        area: the range of areas, in shares of the image's.
        ratios: what ratios are drawn from, [2^m].
        shape: H and W.
        smaller: whether a box has to be smaller than the image both ways.
        made: heights and widths, [2, B].
    """
    height, width = shape
    for n in range(len(i)):
        made[0, n], made[1, n] = 0, 0
        for attempt in range(attempts):
            number = k[n] * attempts + attempt
            unit = np.float64(_state(keys[0], i[n], number) >> (_1 + _10)) * 2.0**-53
            pixels = (unit * (area[1] - area[0]) + area[0]) * np.float64(height * width)
            ratio = ratios[np.int64(_state(keys[1], i[n], number) >> _1) % len(ratios)]
            tall, wide = np.int64(np.rint(np.sqrt(pixels / ratio))), np.int64(np.rint(np.sqrt(pixels * ratio)))
            if 0 < tall <= height - smaller and 0 < wide <= width - smaller:
                made[0, n], made[1, n] = tall, wide
                break


@kernel
def erase(
    images: Bytes,
    key: np.uint64,
    i: Integers,
    k: Integers,
    top: Integers,
    left: Integers,
    tall: Integers,
    wide: Integers,
) -> None:
    """Fills boxes with noise, in place: images [B, ch, H, W], all others [B].

    Byte b of an image's noise is byte b % 8 of its word b // 8, as `seeding.draw_bytes` has it.
    """
    channels, height, width = images.shape[1:]
    for n in range(len(images)):
        if tall[n] == 0:
            continue
        assert 0 <= top[n] <= top[n] + tall[n] <= height
        assert 0 <= left[n] <= left[n] + wide[n] <= width
        state = _state(key, i[n], k[n])
        for c in range(channels):
            for y in range(top[n], top[n] + tall[n]):
                first = (c * height + y) * width + left[n]
                row = images[n, c, y, left[n] : left[n] + wide[n]]
                word, bits = _mix(state + np.uint64(first // 8 + 1) * _GOLDEN), np.uint64(first % 8) * _8
                for x in range(len(row)):
                    row[x] = np.uint8(word >> bits & np.uint64(255))
                    bits += _8
                    if bits == np.uint64(64):
                        bits = np.uint64(0)
                        word = _mix(state + np.uint64((first + x + 1) // 8 + 1) * _GOLDEN)
