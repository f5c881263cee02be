"""Colour jitter and RandAugment, image by image; an image is uint8 [ch, P], P = H * W pixels.

The torch forms are in `distill.data.color` and `distill.data.randaugment`, and say where the formulas are from.
"""

from __future__ import annotations

import numpy as np

from distill.data.compiled.kernel import Bools, Bytes, Floats, Integers, Places, kernel

_ZERO, _ONE, _TWO, _THREE, _FOUR, _SIX = (np.float32(number) for number in (0, 1, 2, 3, 4, 6))
_THIRTEEN, _WHITE, _PART = np.float32(13), np.float32(255), np.float32(1 / 255)
_RED, _GREEN, _BLUE = np.float32(0.2989), np.float32(0.587), np.float32(0.114)
_TO_BYTES = np.float32(255.999 / 255)

# Numbers of operations in `distill.data.randaugment.OPERATIONS`. 0 changes nothing.
_FIRST_MOVE, _FIRST_TABLE = 1, 6
_CONTRAST, _AUTOCONTRAST, _EQUALIZE, _COLOR, _SHARPNESS = 9, 10, 11, 12, 13


@kernel
def jitter(images: Bytes, factors: Floats, wanted: Bools, made: Bytes) -> None:
    """Brightness, contrast, saturation and hue, in this order: images, made [B, ch, P].

    Args:
        images: what to change.
        factors: of each image, [4, B].
        wanted: which of the four to do, [4].
        made: the result.
    """
    for n in range(len(images)):
        new = made[n]
        _copy(images[n], new)
        if wanted[0]:
            _brighten(new, factors[0, n])
        if wanted[1]:
            _contrast(new, factors[1, n])
        if wanted[2] and len(new) == 3:
            _saturate(new, factors[2, n])
        if wanted[3] and len(new) == 3:
            _turn(new, factors[3, n])


@kernel
def _copy(old: Bytes, new: Bytes) -> None:
    for c in range(len(old)):
        source, target = old[c], new[c]
        for p in range(len(target)):
            target[p] = source[p]


@kernel
def _level(value: np.float32) -> np.uint8:
    """Cut off to a whole grey level."""
    return np.uint8(min(max(value, _ZERO), _WHITE))


@kernel
def _brighten(image: Bytes, factor: np.float32) -> None:
    for c in range(len(image)):
        row = image[c]
        for p in range(len(row)):
            row[p] = _level(np.float32(row[p]) * factor)


@kernel
def _contrast(image: Bytes, factor: np.float32) -> None:
    offset = _mean_grey(image) * (_ONE - factor)
    for c in range(len(image)):
        row = image[c]
        for p in range(len(row)):
            row[p] = _level(np.float32(row[p]) * factor + offset)


@kernel
def _grey(red: np.uint8, green: np.uint8, blue: np.uint8) -> np.int32:
    """Cut off to a whole grey level."""
    return np.int32(np.float32(red) * _RED + np.float32(green) * _GREEN + np.float32(blue) * _BLUE)


@kernel
def _mean_grey(image: Bytes) -> np.float32:
    """Of the grey image, or of all values where there are not three channels. The sum is of whole numbers."""
    total = np.int64(0)
    if len(image) == 3:
        red, green, blue = image[0], image[1], image[2]
        for p in range(len(red)):
            total += _grey(red[p], green[p], blue[p])
        return np.float32(np.float64(total) / np.float64(len(red)))
    for c in range(len(image)):
        row = image[c]
        for p in range(len(row)):
            total += row[p]
    return np.float32(np.float64(total) / np.float64(image.size))


@kernel
def _saturate(image: Bytes, factor: np.float32) -> None:
    others = _ONE - factor
    red, green, blue = image[0], image[1], image[2]
    for p in range(len(red)):
        r, g, b = red[p], green[p], blue[p]
        grey = np.float32(_grey(r, g, b)) * others
        red[p] = _level(np.float32(r) * factor + grey)
        green[p] = _level(np.float32(g) * factor + grey)
        blue[p] = _level(np.float32(b) * factor + grey)


@kernel
def _turn(image: Bytes, shift: np.float32) -> None:
    """Turns the hue."""
    sixths = shift * _SIX
    red, green, blue = image[0], image[1], image[2]
    for p in range(len(red)):
        r, g, b = np.float32(red[p]), np.float32(green[p]), np.float32(blue[p])
        largest = max(max(r, g), b)
        chroma = largest - min(min(r, g), b)
        sixth = _FOUR * chroma + (r - g)
        sixth = _TWO * chroma + (b - r) if g == largest else sixth
        sixth = g - b if r == largest else sixth
        sixth = sixth / max(chroma, _ONE) + sixths
        sixth -= np.floor(sixth / _SIX) * _SIX
        red[p] = _channel(sixth, chroma, largest)
        green[p] = _channel(sixth - _TWO, chroma, largest)
        blue[p] = _channel(sixth - _FOUR, chroma, largest)


@kernel
def _channel(sixth: np.float32, chroma: np.float32, largest: np.float32) -> np.uint8:
    """How far `sixth` is from where a channel is smallest decides how much of the chroma it lacks."""
    lack = min(max(abs(abs(sixth) - _THREE) - _TWO, -_ONE), _ZERO)
    return np.uint8((lack * chroma + largest) * _TO_BYTES)


@kernel
def randaugment(
    images: Bytes, steps: Integers, sources: Places, tables: Bytes, factors: Floats, width: int, made: Bytes
) -> None:
    """Each image's operations, one after the other: images, made [B, ch, P].

    Args:
        images: what to change.
        steps: what to do, [B, layers]: twice the operation's number, and 1 more against the magnitude.
        sources: which pixel each pixel comes from, for every movement and sign, [10, P]; P stands for black.
        tables: for every operation with a fixed table and sign, [6, 256].
        factors: at the magnitude, and against it, [2].
        width: of the images.
        made: the result.
    """
    layers = steps.shape[1]
    spare = np.empty(images.shape[1:], np.uint8)
    for n in range(len(images)):
        old = images[n]
        for layer in range(layers):
            new = made[n] if (layers - layer) % 2 == 1 else spare  # the last one ends in `made`
            code = steps[n, layer]
            assert 0 <= code < 2 * (_SHARPNESS + 1)
            operation, factor = code // 2, factors[code % 2]
            if _FIRST_MOVE <= operation < _FIRST_TABLE:
                _move(old, sources[code - 2 * _FIRST_MOVE], new)
            elif _FIRST_TABLE <= operation < _CONTRAST:
                for c in range(len(old)):
                    _look_up(old[c], tables[code - 2 * _FIRST_TABLE], new[c])
            elif operation == _AUTOCONTRAST:
                for c in range(len(old)):
                    _look_up(old[c], _stretched(old[c]), new[c])
            elif operation == _EQUALIZE:
                for c in range(len(old)):
                    _look_up(old[c], _equalized(old[c]), new[c])
            elif operation == _SHARPNESS and width > 2 and old.shape[1] > 2 * width:
                for c in range(len(old)):
                    _sharpen(old[c], factor, width, new[c])
            else:
                _copy(old, new)
                if operation == _CONTRAST:
                    _contrast(new, factor)
                elif operation == _COLOR and len(old) == 3:
                    _saturate(new, factor)
            old = new


@kernel
def _move(old: Bytes, source: Places, new: Bytes) -> None:
    for c in range(len(old)):
        row, target = old[c], new[c]
        for p in range(len(target)):
            place = source[p]
            target[p] = row[place] if place < len(row) else 0


@kernel
def _look_up(old: Bytes, table: Bytes, new: Bytes) -> None:
    for p in range(len(new)):
        new[p] = table[old[p]]


@kernel
def _stretched(values: Bytes) -> Bytes:
    """The table that spreads one channel from 0 to 255, unless it is of one level."""
    darkest, brightest = values[0], values[0]
    for value in values:
        darkest, brightest = min(darkest, value), max(brightest, value)
    scale, start = _ONE, _ZERO
    if darkest != brightest:
        start = np.float32(darkest)
        scale = (np.float32(brightest) - start) * _PART
    table = np.empty(256, np.uint8)
    for level in range(256):
        table[level] = _level((np.float32(level) - start) / scale)
    return table


@kernel
def _equalized(values: Bytes) -> Bytes:
    """The table that spreads one channel's levels by their cumulative histogram."""
    histogram = np.zeros(256, np.int64)
    for value in values:
        histogram[value] += 1
    brightest = 255
    while histogram[brightest] == 0:
        brightest -= 1
    step = (len(values) - histogram[brightest]) // 255
    table = np.empty(256, np.uint8)
    before = 0  # pixels that are darker
    for level in range(256):
        table[level] = min((before + step // 2) // step, 255) if step > 0 else level
        before += histogram[level]
    return table


@kernel
def _sharpen(old: Bytes, factor: np.float32, width: int, new: Bytes) -> None:
    """Blends one channel with its smoothed form; the outermost pixels stay."""
    sums = np.empty(width, np.float32)
    height = len(old) // width
    for y in range(height):
        centre, row = old[y * width : (y + 1) * width], new[y * width : (y + 1) * width]
        for x in range(width):
            row[x] = centre[x]
        if 0 < y < height - 1:
            above, below = old[(y - 1) * width : y * width], old[(y + 1) * width : (y + 2) * width]
            for x in range(width):
                sums[x] = np.float32(above[x]) + np.float32(centre[x]) + np.float32(below[x])
            for x in range(1, width - 1):
                own = np.float32(centre[x])
                smooth = np.rint((sums[x - 1] + sums[x] + sums[x + 1] + own * _FOUR) / _THIRTEEN)
                row[x] = _level((smooth - own) * (_ONE - factor) + own)
