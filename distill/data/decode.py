"""One image file: its bytes, then its pixels. What is hashed is what is decoded, because the file is read once."""

from __future__ import annotations

import io
import os
import stat
import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt
import PIL

# Each plugin registers its format; MPO, several JPEGs in one file, is opened as JPEG. Imported here, not by a thread.
from PIL import (  # noqa: F401
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    MpoImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
    features,
)

from distill.errors import DataError

# Raised by one whenever the same file would give other pixels than before; part of a folder's fingerprint.
DECODER = 3
MAX_FILE_BYTES = 2**30
# Above it Pillow refuses too. Above half of it Pillow warns of a bomb; phones take such photographs (12000x9000).
MAX_PIXELS = 178_956_970
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif")
# No other is ever asked, whatever a file's name ends in: some of Pillow's start programs (EPS starts Ghostscript).
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "PPM", "TIFF")
# A JPEG is decoded at 1/2, 1/4 or 1/8 of its size where that leaves three times the pixels that are wanted: "the
# result is indistinguishable from fair resampling in most cases", says Pillow of this gap in `Image.thumbnail`. On four
# photographs (512x600 to 720x477, to 16, 32 and 64) the mean difference was .2 to 1.2 of 255, at a gap of 1 up to 3.3.
_DRAFT = 3
_SIGNED = 2  # in TIFF's SampleFormat
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# For the whole process, because threads decode: what `warnings.catch_warnings` sets is not a thread's own.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def decoders() -> dict[str, str]:
    """Versions of what turns a file's bytes into pixels: with others, the same file may give other pixels.

    Lossless formats cannot, but Pillow itself resizes, and which formats a folder holds is not asked.
    """
    libraries = {"libjpeg-turbo": "libjpeg_turbo", "libjpeg": "jpg", "libtiff": "libtiff", "libwebp": "webp"}
    return {"Pillow": PIL.__version__} | {name: features.version(key) or "none" for name, key in libraries.items()}


class Undecodable(ValueError):  # noqa: N818 - what it says of the file is its name
    """These bytes are no image, cut short, damaged, or larger than is accepted: a fact about the bytes alone."""


def read_file(path: str | Path) -> bytes:
    """The whole of a regular file.

    Raises:
        DataError: it is missing, may not be read, is no regular file, or is larger than 1 GiB.
    """
    try:
        # A pipe put in the file's place would otherwise be waited for.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(handle, "rb", buffering=0) as file:  # noqa: PTH123
            found = os.fstat(handle)
            if not stat.S_ISREG(found.st_mode):
                raise DataError(f"{path}: is no regular file", cure="The folder has changed; put the image back.")
            if found.st_size > MAX_FILE_BYTES:
                raise DataError(f"{path}: {found.st_size} bytes, at most {MAX_FILE_BYTES} are accepted of an image")
            return file.read()
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read: {error.strerror or error}",
            cure="Give it back, or the right to read it; no other image is put in its place.",
        ) from error


def decode(content: bytes, size: int) -> npt.NDArray[np.uint8]:
    """A file's bytes -> uint8 [size, size, 3], RGB: the centre square, upright, resized (bicubic, antialiased).

    This is 'resize the shorter side, then crop the centre' in one step, so that a long thin image costs no memory.
    Of several frames or pages the first is taken. The result depends on nothing but the bytes and the size.

    Raises:
        Undecodable: with the reason.
    """
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise Image.DecompressionBombError  # which Pillow has done already, unless its limit was changed
            drafted = image.draft(None, (_DRAFT * size, _DRAFT * size))  # a no-op but for JPEG
            image.load()
            # A TIFF turns itself upright while it is loaded. A draft's last row or column may be half outside.
            full = drafted[1][2:] if drafted is not None else image.size
            side = min(full)
            left, top = (full[0] - side) / 2, (full[1] - side) / 2
            square = _to_rgb(image).resize(
                (size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side)
            )
            turn = _UPRIGHT.get(_orientation(image))
            return np.asarray(square if turn is None else square.transpose(turn))
    except MemoryError:
        raise  # says something about the machine, not about the file
    except UnidentifiedImageError as error:
        # Pillow's own message holds an address in memory.
        damage = "or a kind of it that cannot be read, or its header is damaged"
        raise Undecodable(f"none of {', '.join(_FORMATS)}, {damage}") from error
    except Image.DecompressionBombError as error:
        raise Undecodable(f"more pixels than the {MAX_PIXELS} that are accepted: save it smaller") from error
    except Exception as error:  # Pillow's decoders raise whatever a damaged file makes them stumble over
        reason = f"{type(error).__name__}: {error}".encode("utf-8", "backslashreplace").decode()
        raise Undecodable(reason) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    """Any image as 8-bit RGB; of 12 or 16-bit grey the upper 8 bits, where PIL's own conversion would clip to white."""
    if image.mode == "RGB":
        return image
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range")
    bits, negative = 16, False
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        tags = image.tag_v2
        if image.mode == "I" or _SIGNED in tags.get(TiffImagePlugin.SAMPLEFORMAT, ()):
            raise ValueError(
                "32-bit or signed integer pixels have no known range: save them with 8 bits, or 16 unsigned"
            )
        # Of grey above 8 bits Pillow knows neither how many bits are used, nor that 0 may be white (as TIFF's 0 says).
        bits = tags.get(TiffImagePlugin.BITSPERSAMPLE, (bits,))[0]
        negative = tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION, 0) == 0
    if image.mode.startswith("I"):
        grey = (np.asarray(image) >> (bits - 8)).clip(0, 255).astype(np.uint8)
        return Image.fromarray(255 - grey if negative else grey).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")


def _orientation(image: Image.Image) -> int:
    """EXIF's, 1 to 8; 1 where there is none, or it cannot be read: that alone makes no image undecodable."""
    if "exif" not in image.info and "Raw profile type exif" not in image.info:
        return 1
    try:
        found = image.getexif().get(_ORIENTATION)
    except Exception:
        return 1
    return found if isinstance(found, int) else 1
