import hashlib
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distill.data.cifar import CIFAR_LAYOUTS, CifarLayout, find_cifar, read_cifar
from distill.data.memory import MemorySource
from distill.errors import DataError

RNG = np.random.default_rng(0)


@pytest.fixture(params=["cifar10", "cifar100"])
def layout(request: pytest.FixtureRequest) -> CifarLayout:
    return CIFAR_LAYOUTS[request.param]


def part(layout: CifarLayout, count: int) -> tuple[np.ndarray, list[int]]:
    pixels = RNG.integers(0, 256, (count, 3072), dtype=np.uint8)
    return pixels, RNG.integers(0, layout.num_classes, count).tolist()


def write_binary(layout: CifarLayout, root: Path) -> list[tuple[np.ndarray, list[int]]]:
    folder = root / layout.binary_folder
    folder.mkdir(parents=True)
    parts = []
    for name in (*layout.binary_train, layout.binary_test):
        pixels, labels = part(layout, 3)
        coarse = b"\x05" if layout.label_bytes == 2 else b""
        content = b"".join(coarse + bytes([label]) + row.tobytes() for row, label in zip(pixels, labels, strict=True))
        (folder / name).write_bytes(content)
        parts.append((pixels, labels))
    names = "".join(f"class {number}\n" for number in range(layout.num_classes))
    (folder / layout.binary_names).write_text(names + "\n")
    return parts


def write_python(
    layout: CifarLayout, root: Path, monkeypatch: pytest.MonkeyPatch, **change: Any
) -> list[tuple[np.ndarray, list[int]]]:
    """Files as published, but few images, and torchvision's md5 sums set to theirs."""
    published = layout.torchvision
    folder = root / published.base_folder
    folder.mkdir(parents=True)
    parts = []
    for files in ("train_list", "test_list"):
        sums = []
        for name, _ in getattr(published, files):
            pixels, labels = part(layout, 4)
            content = pickle.dumps({"data": pixels, layout.labels_key: labels, **change}, protocol=3)
            (folder / name).write_bytes(content)
            sums.append([name, hashlib.md5(content).hexdigest()])
            parts.append((pixels, labels))
        monkeypatch.setattr(published, files, sums)
    names = [f"class {number}" for number in range(layout.num_classes)]
    content = pickle.dumps({published.meta["key"]: names}, protocol=2)
    (folder / published.meta["filename"]).write_bytes(content)
    monkeypatch.setattr(published, "meta", {**published.meta, "md5": hashlib.md5(content).hexdigest()})
    return parts


def open_cifar(layout: CifarLayout, root: Path) -> MemorySource:
    found = find_cifar(layout, [root])
    assert found is not None
    return read_cifar(layout, found[0], binary=found[1])


def check(source: MemorySource, layout: CifarLayout, parts: list[tuple[np.ndarray, list[int]]]) -> None:
    pixels = np.concatenate([pixels for pixels, _ in parts]).reshape(-1, 3, 32, 32)
    assert torch.equal(source.images, torch.from_numpy(pixels))
    assert source.targets.tolist() == [label for _, labels in parts for label in labels]
    assert source.targets.dtype == torch.int64
    assert source.test_start == len(source.targets) - len(parts[-1][1])
    assert source.shape == (3, 32, 32)
    assert len(source.classes) == layout.num_classes
    assert source.classes[1] == "class 1"


def test_binary(layout: CifarLayout, tmp_path: Path) -> None:
    parts = write_binary(layout, tmp_path)
    check(open_cifar(layout, tmp_path), layout, parts)
    check(open_cifar(layout, tmp_path / layout.binary_folder), layout, parts)


def test_python(layout: CifarLayout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = write_python(layout, tmp_path, monkeypatch)
    check(open_cifar(layout, tmp_path), layout, parts)


def test_binary_comes_first(layout: CifarLayout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_python(layout, tmp_path, monkeypatch)
    parts = write_binary(layout, tmp_path)
    check(open_cifar(layout, tmp_path), layout, parts)


def test_nothing_is_found(layout: CifarLayout, tmp_path: Path) -> None:
    assert find_cifar(layout, [tmp_path]) is None


@pytest.mark.parametrize("damage", ["cut", "empty", "label", "missing", "names", "names not text"])
def test_damaged_binary_is_named(layout: CifarLayout, tmp_path: Path, damage: str) -> None:
    write_binary(layout, tmp_path)
    path = tmp_path / layout.binary_folder / (layout.binary_names if "names" in damage else layout.binary_test)
    content = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "label":
        content[layout.label_bytes - 1] = layout.num_classes
        path.write_bytes(content)
    else:
        path.write_bytes({"cut": content[:-1], "names": content[:20], "names not text": b"\xff\xfe"}.get(damage, b""))
    with pytest.raises(DataError, match=path.name):
        open_cifar(layout, tmp_path)


def test_python_with_another_md5_is_not_opened(
    layout: CifarLayout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_python(layout, tmp_path, monkeypatch)
    path = tmp_path / layout.torchvision.base_folder / layout.torchvision.test_list[0][0]
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(DataError, match="md5") as caught:
        open_cifar(layout, tmp_path)
    assert str(path) in caught.value.message


class Hostile:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_a_pickle_cannot_run_code_even_with_the_right_md5(
    layout: CifarLayout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = tmp_path / "trace"
    write_python(layout, tmp_path, monkeypatch, batch_label=Hostile(trace))
    with pytest.raises(DataError, match="mkdir"):
        open_cifar(layout, tmp_path)
    assert not trace.exists()


@pytest.mark.parametrize(
    "change",
    [
        {"data": np.zeros((4, 3071), np.uint8)},
        {"data": np.zeros((4, 3072), np.int16)},
        {"data": [1, 2, 3]},
        {"labels": [0, 1], "fine_labels": [0, 1]},
        {"labels": [0, 1, 2, 100], "fine_labels": [0, 1, 2, 100]},
        {"labels": [0, 1, 2, -1], "fine_labels": [0, 1, 2, -1]},
        {"labels": [0, 1, 2, "3"], "fine_labels": [0, 1, 2, "3"]},
    ],
)
def test_python_of_another_shape_is_refused(
    layout: CifarLayout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    write_python(layout, tmp_path, monkeypatch, **change)
    with pytest.raises(DataError, match=str(layout.torchvision.train_list[0][0])):
        open_cifar(layout, tmp_path)
