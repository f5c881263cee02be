"""What counts as an image folder, and what is in it."""

import os
from pathlib import Path

import pytest

from distill.data.scan import Scan, scan
from distill.errors import DataError
from tests.data.pictures import picture


def test_classes_without_a_test_part(tmp_path: Path) -> None:
    picture(tmp_path / "dog" / "b.png", (1, 1, 1))
    picture(tmp_path / "dog" / "a.JPG", (0, 0, 0))
    picture(tmp_path / "cat" / "deep" / "er" / "z.png", (2, 2, 2))
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "cat" / ".hidden.png").write_bytes(b"")
    (tmp_path / ".git").mkdir()
    (tmp_path / "readme.md").write_text("")
    assert scan(tmp_path) == Scan(
        classes=("cat", "dog"),
        files=("cat/deep/er/z.png", "dog/a.JPG", "dog/b.png"),
        targets=(0, 1, 1),
        test_start=None,
        ignored={".txt": 1},
    )


@pytest.mark.parametrize(
    ("present", "chosen"),
    [(("test", "val"), "test"), (("val", "validation"), "val"), (("validation",), "validation"), ((), None)],
)
def test_which_folder_is_the_test_part(tmp_path: Path, present: tuple[str, ...], chosen: str | None) -> None:
    for part in ("train", *present):
        for name in ("a", "b"):
            picture(tmp_path / part / name / "0.png")
    source = scan(tmp_path)
    assert source.classes == ("a", "b")
    assert source.test_start == (None if chosen is None else 2)
    assert source.files[2:] == (() if chosen is None else (f"{chosen}/a/0.png", f"{chosen}/b/0.png"))


@pytest.mark.parametrize(
    ("train", "test"),
    [("Train", "Test"), ("training", "validation"), ("TRAINING", "testing"), ("train", "valid"), ("train", "Val")],
)
def test_parts_by_other_names(tmp_path: Path, train: str, test: str) -> None:
    for part in (train, test):
        for name in ("a", "b"):
            picture(tmp_path / part / name / "0.png")
    source = scan(tmp_path)
    assert source.classes == ("a", "b")
    assert source.files == (f"{train}/a/0.png", f"{train}/b/0.png", f"{test}/a/0.png", f"{test}/b/0.png")
    assert source.test_start == 2


def test_parts_without_a_training_part_are_no_classes(tmp_path: Path) -> None:
    for part in ("test", "val"):
        picture(tmp_path / part / "a" / "0.png")
        picture(tmp_path / part / "b" / "0.png")
    with pytest.raises(DataError, match=r"test and val hold folders themselves.* none of them is called train"):
        scan(tmp_path)


def test_a_test_folder_of_unlabelled_images_is_not_the_test_part(tmp_path: Path) -> None:
    for part in ("train", "val"):
        picture(tmp_path / part / "a" / "0.png")
        picture(tmp_path / part / "b" / "0.png")
    picture(tmp_path / "test" / "0.png")
    assert scan(tmp_path).files[2] == "val/a/0.png"


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    for name in ("train", "bus", "test"):
        picture(tmp_path / name / "0.png")
    source = scan(tmp_path)
    assert source.classes == ("bus", "test", "train")
    assert source.test_start is None


def test_classes_of_the_parts_must_be_equal(tmp_path: Path) -> None:
    for name in ("train/a", "train/b", "val/b", "val/c"):
        picture(tmp_path / name / "0.png")
    with pytest.raises(DataError, match="only in train: a; only in val: c") as caught:
        scan(tmp_path)
    assert "train and val must have the same class folders" in caught.value.cure


def test_class_names_that_differ_in_their_unicode_form_alone(tmp_path: Path) -> None:
    composed, decomposed = "\u00e9t\u00e9", "e\u0301te\u0301"
    for name in ("train/a", f"train/{composed}", "test/a", f"test/{decomposed}"):
        picture(tmp_path / name / "0.png")
    with pytest.raises(DataError, match=f"only in test: {decomposed}; the two of {composed} differ only in the Unic"):
        scan(tmp_path)
    picture(tmp_path / "train" / decomposed / "0.png")
    with pytest.raises(DataError, match=f"train: two class folders are called {composed}, and differ only in the Unic"):
        scan(tmp_path)


def test_a_class_without_images_is_an_error(tmp_path: Path) -> None:
    picture(tmp_path / "a" / "0.png")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "0.txt").write_bytes(b"")
    with pytest.raises(DataError, match=r"b: no image"):
        scan(tmp_path)


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
        scan(root)


def test_links_are_followed(tmp_path: Path) -> None:
    picture(tmp_path / "store" / "one" / "0.png")
    root = tmp_path / "root"
    (root / "b").mkdir(parents=True)
    (root / "a").symlink_to(tmp_path / "store" / "one")
    (root / "b" / "1.png").symlink_to(tmp_path / "store" / "one" / "0.png")
    assert scan(root).files == ("a/0.png", "b/1.png")


@pytest.mark.parametrize("kind", ["circle", "broken", "itself", "pipe"])
def test_bad_links_are_named(tmp_path: Path, kind: str) -> None:
    picture(tmp_path / "a" / "0.png")
    picture(tmp_path / "b" / "0.png")
    bad = tmp_path / "b" / "bad.png"
    if kind == "circle":
        bad.symlink_to(tmp_path / "b")
    elif kind == "broken":
        bad.symlink_to(tmp_path / "gone.png")
    elif kind == "itself":
        bad.symlink_to(bad)
    else:
        os.mkfifo(bad)
    with pytest.raises(DataError, match=r"bad\.png"):
        scan(tmp_path)


def test_other_files_are_counted_in_both_parts(tmp_path: Path) -> None:
    for part in ("train", "test"):
        for name in ("a", "b"):
            picture(tmp_path / part / name / "0.png")
    for name in ("train/a/x.HEIC", "train/a/deep/y.heic", "test/b/README", "test/b/.hidden", "train/top.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert scan(tmp_path).ignored == {"": 1, ".heic": 2}


def test_images_that_are_in_no_part_are_told(tmp_path: Path) -> None:
    for name in ("train/a", "train/b", "test/a", "test/b", "val/a", "extra/deep", "train/.c", ".cache", "notes/.d"):
        picture(tmp_path / name / "0.png")
    for name in ("0.png", "1.JPG", "train/0.png", "train/.hidden.png"):
        picture(tmp_path / name)
    (tmp_path / "test" / "gone.png").symlink_to("nothing")
    (tmp_path / "extra" / "deep" / "itself.png").symlink_to("itself.png")
    (tmp_path / ".git").mkdir()
    (tmp_path / "readme.md").touch()
    (tmp_path / "notes" / ".d" / "0.png").rename(tmp_path / "notes" / ".d" / "._0.png")
    assert scan(tmp_path).unused == (
        "[data] root: images that lie in no class folder are not used: 1 in root/train, 2 in root",
        "[data] root: hidden folders with images are not used: root/.cache, root/train/.c",
        "[data] root: beside train/ and test/ these are not used: extra, val; validation is cut from train/",
    )
    assert scan(tmp_path / "train").unused == (
        "[data] root: images that lie in no class folder are not used: 1 in root",
        "[data] root: hidden folders with images are not used: root/.c",
    )


def test_odd_names(tmp_path: Path) -> None:
    names = ["white space", "dög ü 猫", "-rf", "a\nb", "100%", "'quoted\""]
    for number, name in enumerate(names):
        picture(tmp_path / name / f"{names[-1 - number]} .x.PnG")
    found = scan(tmp_path)
    assert found.classes == tuple(sorted(names))
    assert sorted(found.files) == sorted(f"{name}/{names[-1 - n]} .x.PnG" for n, name in enumerate(names))


def test_file_names_may_be_any_bytes_but_class_names_are_text(tmp_path: Path) -> None:
    for name in ("a", "b"):
        picture(tmp_path / name / "0.png")
    os.rename(tmp_path / "a" / "0.png", os.fsencode(tmp_path) + b"/a/\xff.png")  # noqa: PTH104
    assert [os.fsencode(file) for file in scan(tmp_path).files] == [b"a/\xff.png", b"b/0.png"]
    os.rename(tmp_path / "b", os.fsencode(tmp_path) + b"/\xff")  # noqa: PTH104
    with pytest.raises(DataError, match="not UTF-8"):
        scan(tmp_path)


def test_a_folder_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        picture(tmp_path / name / "deep" / "0.png")
    real = os.scandir

    def scandir(path: str) -> object:
        if path.endswith("deep"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(DataError, match="a/deep: cannot be read: Permission denied"):
        scan(tmp_path)


def test_a_class_called_train_hides_no_other(tmp_path: Path) -> None:
    for name in ("car", "train/steam", "train/electric", "notes"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("train/steam", "train/electric"):
        picture(tmp_path / name / "0.png")
    (tmp_path / "notes" / "read.txt").touch()
    assert scan(tmp_path).classes == ("electric", "steam")
    picture(tmp_path / "car" / "0.png")
    with pytest.raises(DataError, match="is train a class like car") as caught:
        scan(tmp_path)
    assert caught.value.cure == f"Rename the class, or set data.root to {tmp_path / 'train'}."
    assert scan(tmp_path / "train").classes == ("electric", "steam")
