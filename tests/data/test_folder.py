import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from distill.data.folder import decode, open_folder
from distill.errors import DataError


def picture(path: Path, color: tuple[int, int, int] = (10, 20, 30), size: tuple[int, int] = (12, 9)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)
    return path


def noise_picture(path: Path, size: tuple[int, int]) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_classes_without_a_test_part(tmp_path: Path) -> None:
    picture(tmp_path / "dog" / "b.png", (1, 1, 1))
    picture(tmp_path / "dog" / "a.JPG", (0, 0, 0))
    picture(tmp_path / "cat" / "deep" / "er" / "z.png", (2, 2, 2))
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "cat" / ".hidden.png").write_bytes(b"")
    (tmp_path / ".git").mkdir()
    (tmp_path / "readme.md").write_text("")
    source = open_folder(tmp_path, 8)
    assert source.classes == ("cat", "dog")
    assert source.files == ("cat/deep/er/z.png", "dog/a.JPG", "dog/b.png")
    assert source.targets.tolist() == [0, 1, 1]
    assert source.test_start is None
    assert source.shape == (3, 8, 8)
    images = source.fetch(torch.tensor([2, 0, 2, 1]))
    assert images.shape == (4, 3, 8, 8)
    assert images.dtype == torch.uint8
    assert images[:, 0, 0, 0].tolist() == [1, 2, 1, 0]
    assert source.fetch(torch.empty(0, dtype=torch.int64)).shape == (0, 3, 8, 8)


@pytest.mark.parametrize(
    ("present", "chosen"),
    [(("test", "val"), "test"), (("val", "validation"), "val"), (("validation",), "validation"), ((), None)],
)
def test_which_folder_is_the_test_part(tmp_path: Path, present: tuple[str, ...], chosen: str | None) -> None:
    for part in ("train", *present):
        for name in ("a", "b"):
            picture(tmp_path / part / name / "0.png")
    source = open_folder(tmp_path)
    assert source.shape == (3, 224, 224)
    assert source.classes == ("a", "b")
    assert source.test_start == (None if chosen is None else 2)
    assert source.files[2:] == (() if chosen is None else (f"{chosen}/a/0.png", f"{chosen}/b/0.png"))


def test_a_test_folder_of_unlabelled_images_is_not_the_test_part(tmp_path: Path) -> None:
    for part in ("train", "val"):
        picture(tmp_path / part / "a" / "0.png")
        picture(tmp_path / part / "b" / "0.png")
    picture(tmp_path / "test" / "0.png")
    assert open_folder(tmp_path).files[2] == "val/a/0.png"


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    for name in ("train", "bus", "test"):
        picture(tmp_path / name / "0.png")
    source = open_folder(tmp_path)
    assert source.classes == ("bus", "test", "train")
    assert source.test_start is None


def test_classes_of_the_parts_must_be_equal(tmp_path: Path) -> None:
    for name in ("train/a", "train/b", "val/b", "val/c"):
        picture(tmp_path / name / "0.png")
    with pytest.raises(DataError, match="only in train: a; only in val: c"):
        open_folder(tmp_path)


def test_a_class_without_images_is_an_error(tmp_path: Path) -> None:
    picture(tmp_path / "a" / "0.png")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "0.gif").write_bytes(b"")
    with pytest.raises(DataError, match=r"b: no image"):
        open_folder(tmp_path)


@pytest.mark.parametrize("make", ["nothing", "file", "empty", "one class", "flat"])
def test_no_image_folder(tmp_path: Path, make: str) -> None:
    root = tmp_path / "root"
    if make == "file":
        root.write_bytes(b"")
    elif make != "nothing":
        root.mkdir()
    if make == "one class":
        picture(root / "a" / "0.png")
    if make == "flat":
        picture(root / "0.png")
    with pytest.raises(DataError, match="root"):
        open_folder(root)


def test_links_are_followed(tmp_path: Path) -> None:
    picture(tmp_path / "store" / "one" / "0.png")
    root = tmp_path / "root"
    (root / "b").mkdir(parents=True)
    (root / "a").symlink_to(tmp_path / "store" / "one")
    (root / "b" / "1.png").symlink_to(tmp_path / "store" / "one" / "0.png")
    source = open_folder(root, 4)
    assert source.files == ("a/0.png", "b/1.png")
    assert source.fetch(torch.tensor([0, 1])).shape == (2, 3, 4, 4)


@pytest.mark.parametrize("kind", ["circle", "broken", "pipe"])
def test_bad_links_are_named(tmp_path: Path, kind: str) -> None:
    picture(tmp_path / "a" / "0.png")
    picture(tmp_path / "b" / "0.png")
    bad = tmp_path / "b" / "bad.png"
    if kind == "circle":
        bad.symlink_to(tmp_path / "b")
    elif kind == "broken":
        bad.symlink_to(tmp_path / "gone.png")
    else:
        os.mkfifo(bad)
    with pytest.raises(DataError, match=r"bad\.png"):
        open_folder(tmp_path)


def test_scan_opens_no_image(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.jpg").write_bytes(b"")
    source = open_folder(tmp_path)
    assert len(source.files) == 2
    source.fingerprint()
    with pytest.raises(DataError):
        source.fetch(torch.tensor([0]))


def test_fingerprint(tmp_path: Path) -> None:
    for name in ("a/0.png", "a/1.png", "b/0.png"):
        picture(tmp_path / name)
    prints = [open_folder(tmp_path, 8).fingerprint(), open_folder(tmp_path, 9).fingerprint()]
    assert open_folder(tmp_path, 8).fingerprint() == prints[0]
    moved = tmp_path.with_name("moved")
    tmp_path.rename(moved)
    assert open_folder(moved, 8).fingerprint() == prints[0]
    with (moved / "a" / "1.png").open("ab") as file:
        file.write(b"\0")
    prints.append(open_folder(moved, 8).fingerprint())
    (moved / "a" / "1.png").rename(moved / "a" / "2.png")
    prints.append(open_folder(moved, 8).fingerprint())
    (moved / "a" / "2.png").rename(moved / "b" / "2.png")
    prints.append(open_folder(moved, 8).fingerprint())
    assert len(set(prints)) == len(prints)
    gone = open_folder(moved, 8)
    (moved / "b" / "2.png").unlink()
    with pytest.raises(DataError, match=r"2\.png"):
        gone.fingerprint()


@pytest.mark.parametrize("size", [(32, 32), (48, 32), (32, 80), (8, 8), (60, 60)])
def test_decode_equals_resize_and_centre_crop(tmp_path: Path, size: tuple[int, int]) -> None:
    path = noise_picture(tmp_path / "x.png", size)
    with Image.open(path) as image:
        expected = tv.resize(image, [16], interpolation=InterpolationMode.BICUBIC, antialias=True)
        expected = tv.pil_to_tensor(tv.center_crop(expected, [16, 16]))
    assert (decode(path, 16).int() - expected.int()).abs().max() <= 1


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I"])
def test_every_kind_of_pixel_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("x.tif" if mode in ("CMYK", "I") else "x.png")
    if mode in ("I;16", "I"):
        dtype = np.uint16 if mode == "I;16" else np.int32
        image = Image.fromarray(np.full((6, 6), 0x8000, dtype))
    else:
        image = Image.new("RGB", (6, 6), (128, 128, 128)).convert(mode)
    if mode == "P":
        image.save(path, transparency=b"\x00\x80\xff")
    else:
        image.save(path)
    pixels = decode(path, 6)
    assert pixels.shape == (3, 6, 6)
    if mode not in ("1", "P"):  # these are dithered
        assert (pixels.int() - 128).abs().max() <= 2


def png(width: int, height: int) -> bytes:
    """A PNG that promises a size and holds no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "case", ["empty", "text", "cut jpeg", "cut png", "cut tiff", "bomb", "large", "float", "flipped"]
)
def test_a_bad_image_is_named_and_never_replaced(tmp_path: Path, case: str) -> None:
    good = noise_picture(tmp_path / "good.png", (64, 64)).read_bytes()
    name = {"cut tiff": "bad.tif", "float": "bad.tif", "cut jpeg": "bad.jpg"}.get(case, "bad.png")
    bad = tmp_path / "a" / name
    bad.parent.mkdir()
    picture(tmp_path / "b" / "0.png")
    if case in ("cut jpeg", "cut tiff"):
        noise_picture(bad, (64, 64))
        bad.write_bytes(bad.read_bytes()[: bad.stat().st_size // 2])
    elif case == "float":
        Image.fromarray(np.zeros((4, 4), np.float32)).save(bad)
    else:
        flipped = bytearray(good)
        flipped[len(good) // 2] ^= 0xFF
        content = {
            "text": b"no image",
            "cut png": good[: len(good) // 2],
            "bomb": png(60_000, 60_000),
            "large": png(10_000, 10_000),
            "flipped": bytes(flipped),
        }
        bad.write_bytes(content.get(case, b""))
    source = open_folder(tmp_path, 8)
    with pytest.raises(DataError, match=name.replace(".", r"\.")):
        source.fetch(torch.tensor([1, 0, 1]))


def test_a_long_thin_image_costs_no_memory(tmp_path: Path) -> None:
    picture(tmp_path / "x.png", size=(200_000, 1))
    assert decode(tmp_path / "x.png", 224).shape == (3, 224, 224)


def test_the_first_bad_image_in_order_is_named(tmp_path: Path) -> None:
    for name in ("a/0.png", "a/1.png", "b/0.png"):
        picture(tmp_path / name)
    for name in ("a/1.png", "b/0.png"):
        (tmp_path / name).write_bytes(b"")
    source = open_folder(tmp_path, 8)
    with pytest.raises(DataError, match=r"b/0\.png"):
        source.fetch(torch.tensor([0, 2, 1]))
