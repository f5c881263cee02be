"""Image files, and folders of them, for the tests."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def picture(path: Path, color: tuple[int, int, int] = (10, 20, 30), size: tuple[int, int] = (12, 9)) -> Path:
    """One colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)
    return path


def noise(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """Independent pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    """The file's bytes."""
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def folder_of(root: Path, count: int = 12, classes: str = "ab", size: tuple[int, int] = (8, 8)) -> Path:
    """`count` PNGs, number n with red n, dealt to the classes in turn."""
    for number in range(count):
        picture(root / classes[number % len(classes)] / f"{number:03}.png", (number % 256, 0, 0), size)
    return root


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG that promises a size and holds no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, data) for kind, data in parts)
