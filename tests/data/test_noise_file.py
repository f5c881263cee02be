from pathlib import Path

import numpy as np
import pytest
import torch

from distill.data.noise import plant_noise
from distill.data.noise_file import read_noise_file
from distill.data.split import Splits, split
from distill.errors import DataError
from distill.recipe.schema import DataRecipe, NoiseRecipe

CLASSES = ("cat", "dog", "frog")
TRUE = torch.arange(30) % 3


def wrong_everywhere() -> np.ndarray:
    return ((TRUE + 1) % 3).numpy()


def divide(test_start: int | None) -> Splits:
    return split(TRUE, test_start, DataRecipe(meta=4, validation=4), CLASSES, 0)


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.int32, np.uint64])
@pytest.mark.parametrize("test_start", [None, 20])
def test_npy_applies_to_the_parts_that_may_be_touched(tmp_path: Path, test_start: int | None, dtype: type) -> None:
    path = tmp_path / "labels.npy"
    for length in {30, test_start or 30}:
        np.save(path, wrong_everywhere()[:length].astype(dtype))
        recipe = NoiseRecipe(kind="file", file=str(path), clean=("validation",))
        splits = divide(test_start)
        noisy = plant_noise(TRUE, splits, CLASSES, recipe, 0, test_start).is_noisy
        assert noisy[splits.train].all()
        assert noisy[splits.meta].all()
        assert not noisy[splits.validation].any()
        assert not noisy[splits.test].any()


def test_csv_changes_what_it_lists(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_bytes(b'\xef\xbb\xbfindex,label\r\n0,dog\r\n 4 , 2\r\n7,"frog"\r\n')
    labels = read_noise_file(str(path), TRUE, CLASSES, None)
    changed = {index: int(label) for index, label in enumerate(labels) if label != TRUE[index]}
    assert changed == {0: 1, 4: 2, 7: 2}


def test_a_class_name_may_begin_and_end_with_spaces(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("index,label\n0, cat\n1,cat\n2,cat  \n")
    assert read_noise_file(str(path), TRUE, ("dog", " cat", "cat"), None)[:3].tolist() == [1, 2, 2]


def test_a_class_name_comes_before_a_number(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("index,label\n0,2\n")
    assert int(read_noise_file(str(path), TRUE, ("1", "2", "3"), None)[0]) == 1
    path.write_text("index,label\n0,2\n1,0\n")  # 0 is no class's name there, and nobody's number
    with pytest.raises(DataError, match=r"csv:3: label '0', expected a class name$"):
        read_noise_file(str(path), TRUE, ("1", "2", "3"), None)
    assert read_noise_file(str(path), TRUE, ("0", "1", "2"), None)[:2].tolist() == [2, 0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "csv:1: header 'nothing'"),
        ("label,index\n0,1\n", "csv:1: header 'label,index'"),
        ("index,label\n0,cow\n", "csv:2: label 'cow'"),
        ("index,label\n0,3\n", "csv:2: label '3'"),
        ("index,label\n0,-1\n", "csv:2: label '-1'"),
        ("index,label\n0,dog\n30,dog\n", "csv:3: index '30', expected 0 to 29"),
        ("index,label\n-1,dog\n", "csv:2: index '-1'"),
        ("index,label\n1.0,dog\n", "csv:2: index '1.0'"),
        ("index,label\n٣,dog\n", "csv:2: index"),
        (f"index,label\n{'9' * 30},dog\n", "csv:2: index"),
        ("index,label\n5,dog\n6,dog\n5,cat\n", "csv:4: index 5 again, it is also in line 2"),
        ("index,label\n5\n", "csv:2: 1 fields"),
        ("index,label\n5,dog,1\n", "csv:2: 3 fields"),
        ("index,label\n\n5,dog\n", "csv:2: 0 fields"),
        ('index,label\n5,"dog\n', "csv: cannot be read"),
    ],
)
def test_csv_is_read_strictly(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_noise_file(str(path), TRUE, CLASSES, None)


def test_csv_that_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot be read"):
        read_noise_file(str(path), TRUE, CLASSES, None)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(29, np.int64), "29 labels, expected 30, the whole source or 20, the training part"),
        (np.zeros((30, 1), np.int64), r"int64 \[30, 1\]"),
        (np.zeros(30), "float64"),
        (np.zeros(30, bool), "bool"),
        (np.full(30, 3), "label 3 at index 0, expected 0 to 2"),
        (np.full(30, -1), "label -1"),
        (np.full(30, 2**64 - 1, np.uint64), "label 18446744073709551615"),
        (np.array([{}] * 30, dtype=object), "cannot be read"),
    ],
)
def test_npy_is_read_strictly(tmp_path: Path, array: np.ndarray, message: str) -> None:
    path = tmp_path / "labels.npy"
    np.save(path, array, allow_pickle=True)
    with pytest.raises(DataError, match=message):
        read_noise_file(str(path), TRUE, CLASSES, 20)


@pytest.mark.parametrize(
    "content", [b"", b"\x93NUMPY", b"PK\x03\x04", b"\x93NUMPY\x01\x00\x10\x00{'descr': (((((((", b"x" * 999]
)
def test_damaged_npy(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "labels.npy"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"labels\.npy"):
        read_noise_file(str(path), TRUE, CLASSES, None)


def test_truncated_npy(tmp_path: Path) -> None:
    path = tmp_path / "labels.npy"
    np.save(path, wrong_everywhere())
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"labels\.npy"):
        read_noise_file(str(path), TRUE, CLASSES, None)


@pytest.mark.parametrize(("name", "message"), [("", "is empty"), ("gone.npy", "is not there"), ("x.pt", "ends in .pt")])
def test_which_files_are_taken(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "x.pt").write_bytes(b"")
    with pytest.raises(DataError, match=message) as caught:
        read_noise_file(str(tmp_path / name) if name else "", TRUE, CLASSES, None)
    assert "index,label" in caught.value.cure


def test_a_home_that_nobody_knows() -> None:
    with pytest.raises(DataError, match="no home folder of ~nosuchuser is known here") as caught:
        read_noise_file("~nosuchuser/x.csv", TRUE, CLASSES, None)
    assert "from / on" in caught.value.cure
