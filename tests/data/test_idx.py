import gzip
import struct
from pathlib import Path

import pytest
import torch
from torch import Tensor

from distill.data.idx import DEBIAN_FOLDER, find_fashion, read_fashion, read_idx
from distill.errors import DataError

STEMS = {
    "train-images-idx3-ubyte": torch.arange(3 * 28 * 28).view(3, 28, 28).to(torch.uint8),
    "train-labels-idx1-ubyte": torch.tensor([0, 9, 4], dtype=torch.uint8),
    "t10k-images-idx3-ubyte": torch.full((2, 28, 28), 7, dtype=torch.uint8),
    "t10k-labels-idx1-ubyte": torch.tensor([1, 2], dtype=torch.uint8),
}


def idx_bytes(values: Tensor) -> bytes:
    header = bytes((0, 0, 8, values.dim())) + struct.pack(f">{values.dim()}I", *values.shape)
    return header + bytes(values.flatten().tolist())


def write_fashion(folder: Path, *, zipped: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for stem, values in STEMS.items():
        content = idx_bytes(values)
        path = folder / (f"{stem}.gz" if zipped else stem)
        path.write_bytes(gzip.compress(content) if zipped else content)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("below", ["", "FashionMNIST/raw", "raw"])
def test_reads_every_layout(tmp_path: Path, below: str, zipped: bool) -> None:
    write_fashion(tmp_path / below, zipped=zipped)
    folder = find_fashion([tmp_path / "absent", tmp_path])
    assert folder == tmp_path / below
    source = read_fashion(folder)
    assert source.shape == (1, 28, 28)
    assert source.test_start == 3
    assert source.targets.tolist() == [0, 9, 4, 1, 2]
    assert torch.equal(source.images[:3, 0], STEMS["train-images-idx3-ubyte"])
    assert source.classes[0] == "T-shirt/top"
    assert source.classes[9] == "Ankle boot"


def test_finds_nothing_in_an_empty_folder(tmp_path: Path) -> None:
    assert find_fashion([tmp_path]) is None


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    write_fashion(tmp_path, zipped=True)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match="t10k-labels-idx1-ubyte") as caught:
        read_fashion(tmp_path)
    assert "apt-get install dataset-fashion-mnist" in caught.value.cure


GOOD = idx_bytes(STEMS["train-labels-idx1-ubyte"])
HOSTILE = {
    "empty": b"",
    "cut in the header": GOOD[:6],
    "cut short": GOOD[:-1],
    "too long": GOOD + b"\0",
    "other type": bytes((0, 0, 13, 1)) + GOOD[4:],
    "other axes": bytes((0, 0, 8, 2)) + GOOD[4:],
    "size of 4 GiB": GOOD[:4] + b"\xff\xff\xff\xff" + GOOD[8:],
    "a web page": b"<!doctype html><html>not found</html>",
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("case", HOSTILE)
def test_a_damaged_file_is_named(tmp_path: Path, case: str, zipped: bool) -> None:
    path = tmp_path / ("labels.gz" if zipped else "labels")
    path.write_bytes(gzip.compress(HOSTILE[case]) if zipped else HOSTILE[case])
    with pytest.raises(DataError, match="labels"):
        read_idx(path, 1)


ZIPPED = gzip.compress(GOOD, mtime=0)  # without a time, which would be in the names of the tests


@pytest.mark.parametrize("content", [b"", b"no gzip", ZIPPED[:-9], ZIPPED[:-8] + b"\0" * 8])
def test_a_damaged_gzip_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "labels.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"labels\.gz"):
        read_idx(path, 1)


@pytest.mark.parametrize(
    ("stem", "values", "message"),
    [
        ("train-labels-idx1-ubyte", torch.tensor([0, 1]), "3 images.*2 labels"),
        ("train-labels-idx1-ubyte", torch.tensor([0, 1, 10]), "label 10"),
        ("train-images-idx3-ubyte", torch.zeros(3, 27, 28, dtype=torch.uint8), "27x28"),
    ],
)
def test_parts_that_do_not_fit_are_refused(tmp_path: Path, stem: str, values: Tensor, message: str) -> None:
    write_fashion(tmp_path, zipped=False)
    (tmp_path / stem).write_bytes(idx_bytes(values))
    with pytest.raises(DataError, match=message):
        read_fashion(tmp_path)


@pytest.mark.skipif(not DEBIAN_FOLDER.is_dir(), reason="needs the package dataset-fashion-mnist")
def test_reads_the_debian_package() -> None:
    source = read_fashion(DEBIAN_FOLDER)
    assert source.images.shape == (70_000, 1, 28, 28)
    assert source.test_start == 60_000
    assert torch.bincount(source.targets[60_000:]).tolist() == [1000] * 10
    assert source.targets[:4].tolist() == [9, 0, 0, 3]
