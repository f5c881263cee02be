"""One file's bytes to pixels: every kind that there is, and every way to be none."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import PIL
import pytest
from PIL import Image
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from distill.data import decode as module
from distill.data.decode import Undecodable, decode, read_file
from distill.errors import DataError
from tests.data.pictures import noise, png, saved

CORNERS = [
    (250, 10, 10),
    (10, 250, 10),
    (10, 10, 250),
    (240, 240, 10),
]  # top left, top right, bottom left, bottom right


def test_the_versions_of_the_decoders() -> None:
    found = module.decoders()
    assert found["Pillow"] == PIL.__version__
    assert found["libjpeg"] != "none"
    assert all(found.values())


def corners(width: int = 64, height: int = 64) -> Image.Image:
    """Four colours, so that every turn and mirror image can be told."""
    image = Image.new("RGB", (2, 2))
    image.putdata(CORNERS)
    return image.resize((width, height), Image.Resampling.NEAREST)


def seen(pixels: np.ndarray) -> list[tuple[int, int, int]]:
    """The corners of the result, each as the nearest of the colours."""
    found = []
    for y, x in ((1, 1), (1, -2), (-2, 1), (-2, -2)):
        distances = [np.abs(pixels[y, x].astype(int) - color).sum() for color in CORNERS]
        found.append(CORNERS[int(np.argmin(distances))])
    return found


@pytest.mark.parametrize("size", [(32, 32), (48, 32), (32, 80), (8, 8), (60, 60), (33, 47)])
def test_decode_equals_resize_and_centre_crop(size: tuple[int, int]) -> None:
    image = noise(size)
    expected = tv.resize(image, [16], interpolation=InterpolationMode.BICUBIC, antialias=True)
    expected = tv.pil_to_tensor(tv.center_crop(expected, [16, 16])).permute(1, 2, 0).numpy()
    pixels = decode(saved(image, "PNG"), 16)
    assert pixels.shape == (16, 16, 3)
    assert pixels.dtype == np.uint8
    # An odd margin is cut half a pixel further left by torchvision, which rounds; then only even ones can be compared.
    if size != (33, 47):
        assert np.abs(pixels.astype(int) - expected).max() <= 1


def test_an_image_of_the_right_size_is_left_as_it_is() -> None:
    image = noise((16, 16))
    assert np.array_equal(decode(saved(image, "PNG"), 16), np.asarray(image))


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (200_000, 1), (3, 2)])
def test_small_and_thin_images(size: tuple[int, int]) -> None:
    pixels = decode(saved(Image.new("RGB", size, (200, 100, 50)), "PNG"), 24)
    assert np.array_equal(pixels, np.full((24, 24, 3), (200, 100, 50), np.uint8))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I;16B"])
def test_every_kind_of_pixel_becomes_rgb(mode: str) -> None:
    kind = "TIFF" if mode in ("CMYK", "YCbCr", "I;16B", "PA") else "PNG"
    if mode in ("I;16", "I;16B"):
        dtype = {"I;16": "<u2", "I;16B": ">u2"}[mode]
        image = Image.fromarray(np.full((6, 6), 0x8000, dtype))
    else:
        image = Image.new("RGB", (6, 6), (128, 128, 128)).convert("P" if mode == "PA" else mode)
    if mode == "PA":
        image = image.convert("PA")
    content = saved(image, kind, **({"transparency": b"\x00\x80\xff"} if mode == "P" else {}))
    pixels = decode(content, 6)
    assert pixels.shape == (6, 6, 3)
    if mode not in ("1", "P", "PA"):  # these are dithered
        assert np.abs(pixels.astype(int) - 128).max() <= 2


@pytest.mark.parametrize("dtype", [np.int32, np.int16])
def test_integers_of_no_known_range_are_refused(dtype: type) -> None:
    """Signed or of 32 bits: they may go to 255, to 32,767, to anywhere."""
    file = io.BytesIO()
    Image.fromarray(np.arange(256, dtype=np.int32).reshape(16, 16)).save(file, "TIFF")
    content = file.getvalue()
    if dtype is np.int16:  # of which Pillow can read files and not make them
        tags = struct.unpack_from("<H", content, offset := struct.unpack_from("<I", content, 4)[0])[0]
        content = bytearray(content)
        for tag in range(offset + 2, offset + 2 + 12 * tags, 12):
            if struct.unpack_from("<H", content, tag)[0] == 258:  # BitsPerSample
                struct.pack_into("<H", content, tag + 8, 16)
        content = bytes(content)
    with pytest.raises(Undecodable, match="no known range"):
        decode(content, 16)


def tiff(pixels: bytes, width: int, *, bits: int, white: int = 1, signed: bool = False, packed: bool = False) -> bytes:
    """A grey TIFF of one strip, little-endian. `white` 1: the largest value is white; 0: zero is."""
    height, strip = len(pixels) * 8 // (width * bits), zlib.compress(pixels) if packed else pixels
    tags = {256: width, 257: height, 258: bits, 259: 8 if packed else 1, 262: white, 273: 8, 277: 1, 278: height}
    tags |= {279: len(strip), 339: 2 if signed else 1}
    strip += b"\0" * (len(strip) % 2)
    entries = b"".join(struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, n) for tag, n in tags.items())
    return b"II*\0" + struct.pack("<I", 8 + len(strip)) + strip + struct.pack("<H", len(tags)) + entries + bytes(4)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_grey_tiffs_of_any_depth_look_the_same(bits: int, packed: bool) -> None:
    """Also where 0 is white, and with 12 bits, two pixels in three bytes."""
    ramp = np.arange(256).reshape(16, 16)
    if bits == 12:
        pairs = (ramp.reshape(-1, 2) << 4 | 0xF).tolist()
        pixels = b"".join((first << 12 | second).to_bytes(3, "big") for first, second in pairs)
    else:
        pixels = (ramp << (bits - 8)).astype(f"<u{bits // 8}").tobytes()
    content = tiff(pixels, 16, bits=bits, packed=packed)
    assert np.array_equal(decode(content, 16)[..., 0], ramp)
    if bits != 12:  # of which Pillow reads no negatives
        assert np.array_equal(decode(tiff(pixels, 16, bits=bits, white=0, packed=packed), 16)[..., 0], 255 - ramp)


def test_signed_8_bit_tiffs_are_refused() -> None:
    with pytest.raises(Undecodable, match="signed integer pixels have no known range"):
        decode(tiff(bytes(range(256)), 16, bits=8, signed=True), 16)


def test_16_bit_grey_keeps_its_range() -> None:
    ramp = np.arange(0, 2**16, 2**8, dtype=np.uint16).reshape(16, 16)
    pixels = decode(saved(Image.fromarray(ramp), "PNG"), 16)
    assert np.array_equal(pixels[..., 0], (ramp >> 8).astype(np.uint8))


def test_colours_of_a_cmyk_jpeg_are_not_inverted() -> None:
    content = saved(Image.new("RGB", (32, 32), (220, 40, 30)).convert("CMYK"), "JPEG", quality=95)
    assert np.abs(decode(content, 8).astype(int) - (220, 40, 30)).max() <= 6


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(kind: str, orientation: int) -> None:
    turn = module._UPRIGHT.get(orientation)
    upright = corners(96, 64)
    # The inverse of the turn, so that turning gives the upright picture back.
    back = {
        Image.Transpose.ROTATE_90: Image.Transpose.ROTATE_270,
        Image.Transpose.ROTATE_270: Image.Transpose.ROTATE_90,
    }
    stored = upright if turn is None else upright.transpose(back.get(turn, turn))
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = saved(stored, kind, exif=exif.tobytes(), **({"lossless": True} if kind == "WEBP" else {}))
    pixels = decode(content, 32)
    assert seen(pixels) == CORNERS
    difference = np.abs(pixels.astype(int) - decode(saved(upright, "PNG"), 32))
    assert difference.mean() < 3 if kind == "JPEG" else difference.max() <= 1


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_is_none(value: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = value
    assert seen(decode(saved(corners(), "JPEG", exif=exif.tobytes()), 32)) == CORNERS


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "exif", [b"Exif\0\0", b"Exif\0\0II*\0\x08\0\0\0\xff\xff", b"Exif\0\0garbage, not TIFF", b"\0" * 50]
)
def test_damaged_exif_makes_no_image_unreadable(exif: bytes) -> None:
    assert seen(decode(saved(corners(), "JPEG", exif=b"Exif\0\0" + exif), 32)) == CORNERS


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF", "PNG", "MPO"])
def test_of_several_frames_the_first_is_taken(kind: str) -> None:
    frames = [Image.new("RGB", (24, 24), (red, 10, 10)) for red in (200, 100, 0)]
    content = saved(frames[0], kind, save_all=True, append_images=frames[1:])
    with Image.open(io.BytesIO(content)) as image:
        assert image.n_frames == 3
    assert np.abs(decode(content, 8).astype(int) - (200, 10, 10)).max() <= 8


def smooth(width: int, height: int) -> Image.Image:
    """Coloured noise with photographs' spectrum."""
    draws = np.random.default_rng(3)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    frequency[0, 0] = 1.0
    fields = [np.fft.irfft2(np.fft.rfft2(draws.standard_normal((height, width))) / frequency, s=(height, width))]
    fields += [np.roll(fields[0], (40, 20), (0, 1)), -fields[0]]
    return Image.fromarray(np.stack([128 + 40 * f / f.std() for f in fields], -1).clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("size", [(800, 640), (641, 803), (1000, 417)])
def test_a_large_jpeg_is_decoded_small_and_looks_the_same(
    monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]
) -> None:
    content = saved(smooth(*size), "JPEG", quality=92)
    fast = decode(content, 32)
    assert np.array_equal(fast, decode(content, 32))
    monkeypatch.setattr(module, "_DRAFT", 10**6)  # never smaller: the definition
    slow = decode(content, 32)
    assert not np.array_equal(fast, slow)  # else this tests nothing
    difference = np.abs(fast.astype(int) - slow)
    assert difference.mean() < 1
    assert difference.max() <= 10


@pytest.mark.parametrize("size", [(96, 96), (150, 130), (191, 400)])
def test_a_jpeg_below_six_times_the_size_is_decoded_whole(
    monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]
) -> None:
    content = saved(noise(size), "JPEG")
    fast = decode(content, 32)
    monkeypatch.setattr(module, "_DRAFT", 10**6)
    assert np.array_equal(fast, decode(content, 32))


def test_a_photograph_of_108_megapixels_is_decoded_without_a_warning(tmp_path: Path) -> None:
    """In a process of its own, as pytest sets filters for warnings anew."""
    path = tmp_path / "a.jpg"
    Image.new("L", (12_000, 9_000), 200).save(path)
    code = "import sys; from distill.data.decode import decode; print(decode(open(sys.argv[1], 'rb').read(), 8).mean())"
    found = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert (found.stdout, found.stderr) == ("200.0\n", "")


def flipped(content: bytes, at: float = 0.5) -> bytes:
    changed = bytearray(content)
    changed[int(len(content) * at)] ^= 0xFF
    return bytes(changed)


GOOD = saved(noise((64, 64)), "PNG")
JPEG = saved(noise((64, 64)), "JPEG")
BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "none of JPEG"),
    "text": (b"no image", "none of JPEG"),
    "only a signature": (GOOD[:8], "."),
    "cut png": (GOOD[: len(GOOD) // 2], "."),
    "cut jpeg": (JPEG[: len(JPEG) // 2], "truncated"),
    "jpeg without its end": (JPEG[:-40], "truncated"),
    "cut tiff": (saved(noise((64, 64)), "TIFF")[:5000], "."),
    "cut webp": (saved(noise((64, 64)), "WEBP")[:500], "."),
    "cut gif": (saved(noise((64, 64)), "GIF")[:900], "."),
    "flipped": (flipped(GOOD), "."),
    "bomb": (png(60_000, 60_000), r"^more pixels than the 178956970 that are accepted: save it smaller$"),
    "just too large": (png(178_956_971, 1), "more pixels than the 178956970 that are accepted"),
    "float": (saved(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"), "floating-point"),
    "double": (tiff(bytes(128), 4, bits=64), "or a kind of it that cannot be read, or its header is damaged$"),
    "postscript": (saved(noise((8, 8)), "EPS"), "none of JPEG"),
    "icon": (saved(noise((16, 16)), "ICO"), "none of JPEG"),
    "pdf": (saved(noise((8, 8)), "PDF"), "none of JPEG"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("size", [8, 64])
def test_bytes_that_are_no_image(case: str, size: int) -> None:
    content, said = BAD[case]
    with pytest.raises(Undecodable, match=said) as first:
        decode(content, size)
    with pytest.raises(Undecodable) as second:
        decode(content, size)
    assert str(first.value) == str(second.value)
    assert "0x" not in str(first.value)


def test_a_lack_of_memory_is_no_fault_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: object, **named: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Image.Image, "resize", refuse)
    with pytest.raises(MemoryError):
        decode(GOOD, 8)


def test_the_ending_of_the_name_does_not_matter() -> None:
    assert np.array_equal(decode(saved(noise((9, 9)), "BMP"), 9), decode(saved(noise((9, 9)), "PPM"), 9))


def test_read_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(GOOD)
    assert read_file(path) == GOOD
    monkeypatch.setattr(module, "MAX_FILE_BYTES", 100)
    with pytest.raises(DataError, match="at most 100"):
        read_file(path)
    os.mkfifo(tmp_path / "pipe.png")
    for name, said in (("gone.png", "No such file"), ("pipe.png", "no regular file"), ("", "directory|regular")):
        with pytest.raises(DataError, match=said) as found:
            read_file(tmp_path / name)
        assert str(tmp_path / name) in str(found.value)


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: object, flags: int) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(DataError, match=r"a\.png: cannot be read: Permission denied"):
        read_file(tmp_path / "a.png")
