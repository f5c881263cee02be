"""Where pixels come from: crops with padding, resized crops, flips. The torch forms are in `distill.data.geometry`."""

from __future__ import annotations

import numpy as np

from distill.data.compiled.kernel import Bools, Bytes, Floats, Integers, Places, Words, kernel

_WEIGHT_BITS = 11
_FIRST = np.float32(2.0**-8)  # 2048ths to eighths of a grey level
_SECOND = np.float32(2.0**-14)  # 2048ths of eighths to whole levels


@kernel
def crop_and_flip(images: Bytes, top: Integers, left: Integers, flip: Bools, padding: int, made: Bytes) -> None:
    """Crops from the padded image to the old size, and mirrors: images, made [B, ch, H, W]; top, left, flip [B]."""
    count, channels, height, width = images.shape
    for n in range(count):
        for c in range(channels):
            old, new = images[n, c].reshape(height * width), made[n, c].reshape(height * width)
            _shift(old, top[n] - padding, left[n] - padding, height, width, flip[n], new)


@kernel
def _shift(old: Bytes, down: int, right: int, height: int, width: int, flip: bool, new: Bytes) -> None:
    """One channel, [H * W], from `down` and `right`, with black around."""
    first, last = max(0, -right), min(width, width - right)  # columns of the new one, before it is mirrored
    above, below = max(0, -down), min(height, height - down)  # and rows, that the old one has
    if first >= last or above >= below:
        _blacken(new)
        return
    _blacken(new[: above * width])
    _blacken(new[below * width :])
    if not flip:
        # All rows in one go; what runs over their edges is blackened afterwards.
        begin, end = above * width + first, (below - 1) * width + last
        start = down * width + right
        _copy(old[begin + start : end + start], new[begin:end])
    for y in range(above, below):
        row = y * width
        if flip:
            # Unsigned, so that numba does not ask of each index whether it counts from the end.
            source, target = np.uint64(row + down * width + first + right), np.uint64(row + width - 1 - first)
            for x in range(np.uint64(last - first)):
                new[target - x] = old[source + x]
        for x in range(width - last if flip else first):
            new[row + x] = 0
        for x in range(last if not flip else width - first, width):
            new[row + x] = 0


@kernel
def _blacken(pixels: Bytes) -> None:
    for p in range(len(pixels)):
        pixels[p] = 0


@kernel
def _copy(old: Bytes, new: Bytes) -> None:
    for p in range(len(new)):
        new[p] = old[p]


@kernel
def _find_taps(
    start: int, size: int, length: int, reverse: bool, low: Places, high: Places, rest: Floats, weight: Floats
) -> None:
    """The two pixels that each one along an axis is made of, and their weights; see `Taps`. All [length]."""
    for place in range(length):
        # (place + 1/2) * size / length - 1/2, in 2048ths, rounded
        position = (((2 * place + 1) * size - length) * (1 << _WEIGHT_BITS) + length) // (2 * length)
        position = max(position, 0)
        first = min(position >> _WEIGHT_BITS, size - 1)
        share = 0 if first == size - 1 else position & ((1 << _WEIGHT_BITS) - 1)
        at = length - 1 - place if reverse else place
        low[at] = start + first
        high[at] = start + min(first + 1, size - 1)
        weight[at] = share
        rest[at] = (1 << _WEIGHT_BITS) - share


@kernel
def resized_crop(
    images: Bytes, top: Integers, left: Integers, tall: Integers, wide: Integers, flip: Bools, made: Bytes
) -> None:
    """Crops boxes and resizes them to the old size: images, made [B, ch, H, W]; top, left, tall, wide, flip [B]."""
    count, channels, height, width = images.shape
    x_low, x_high = np.empty(width, np.uint32), np.empty(width, np.uint32)
    y_low, y_high = np.empty(height, np.uint32), np.empty(height, np.uint32)
    x_rest, x_weight = np.empty(width, np.float32), np.empty(width, np.float32)
    y_rest, y_weight = np.empty(height, np.float32), np.empty(height, np.float32)
    pairs, taken = np.empty(width, np.uint16), np.empty(width, np.uint16)
    across = np.empty((height, width), np.float32)
    for n in range(count):
        assert 0 <= top[n] < top[n] + tall[n] <= height
        assert 0 <= left[n] < left[n] + wide[n] <= width
        _find_taps(left[n], wide[n], width, flip[n], x_low, x_high, x_rest, x_weight)
        _find_taps(0, tall[n], height, False, y_low, y_high, y_rest, y_weight)
        for c in range(channels):
            for y in range(tall[n]):
                _pair(images[n, c, top[n] + y], pairs)
                _take(pairs, x_low, taken)
                _blend_pairs(taken, x_rest, x_weight, across[y])
            for y in range(height):
                _blend_rows(across[y_low[y]], across[y_high[y]], y_rest[y], y_weight[y], made[n, c, y])


@kernel
def _pair(row: Bytes, pairs: Words) -> None:
    """Each pixel with the one on its right, which has weight 0 where it is not in the image: [W] -> [W]."""
    last = len(row) - 1
    for x in range(last):
        pairs[x] = row[x] | np.uint16(row[x + 1]) << 8
    pairs[last] = row[last]


@kernel
def _take(pairs: Words, low: Places, taken: Words) -> None:
    """In a loop of its own, or it would keep the rest of the work from being done on many pixels at once."""
    for x in range(len(taken)):
        taken[x] = pairs[low[x]]


@kernel
def _blend_pairs(taken: Words, rest: Floats, weight: Floats, new: Floats) -> None:
    """To eighths of a level."""
    for x in range(len(new)):
        pair = np.int32(taken[x])
        low, high = np.float32(np.int32(pair & 255)), np.float32(np.int32(pair >> 8))
        new[x] = np.rint((low * rest[x] + high * weight[x]) * _FIRST)


@kernel
def _blend_rows(low: Floats, high: Floats, rest: np.float32, weight: np.float32, new: Bytes) -> None:
    """Two rows, to whole levels."""
    for x in range(len(new)):
        new[x] = np.uint8(np.rint((low[x] * rest + high[x] * weight) * _SECOND))
