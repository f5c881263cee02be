"""Which images a folder holds, and of which class each is. No image is opened.

Two layouts. `root/<class>/*.jpg` has no test part. `root/train/<class>/*.jpg` has one when `root/test`, or else
`root/val` or `root/validation`, has class folders too; of several, the first of that order is the test part and the
others are not used. These folders may be called `training`, `testing` and `valid` too, in capitals or not.
"""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from distill.data.decode import EXTENSIONS
from distill.errors import DataError

_TRAIN_FOLDERS = ("train", "training")
_TEST_FOLDERS = ("test", "testing", "val", "valid", "validation")
_LAYOUT = "Expected are <root>/<class>/ or <root>/train/<class>/ and <root>/test/<class>/, with images in them."


@dataclass(frozen=True)
class Scan:
    """What was found.

    Args:
        classes: the C class names, sorted.
        files: N paths relative to the root, with forward slashes; training part first, sorted within each class.
        targets: class number of each, N.
        test_start: index of the first official test image; None when there is no such part.
        ignored: how many other files lie among them, by ending; hidden ones do not count.
        unused: a line for each kind of place that holds images which are in no part.
    """

    classes: tuple[str, ...]
    files: tuple[str, ...]
    targets: tuple[int, ...]
    test_start: int | None
    ignored: dict[str, int]
    unused: tuple[str, ...] = ()


def scan(root: Path) -> Scan:
    """Looks through an image folder.

    Raises:
        DataError: when there is no such folder, a class has no image, or train and test differ in their classes.
    """
    if not root.is_dir():
        raise DataError(f"{root}: is not a folder", cure="Name a folder of class folders in data.root.")
    train_name, test_name = _train_and_test(root)
    ignored: Counter[str] = Counter()
    classes, files, targets = _scan_part(root, train_name, ignored)
    if len(classes) < 2:
        found = f"only the class folder {classes[0]!r}" if classes else "no class folder"
        raise DataError(f"{root / train_name}: {found}, expected two or more", cure=_LAYOUT)
    test_start = None
    if test_name is not None:
        test_classes, test_files, test_targets = _scan_part(root, test_name, ignored)
        if test_classes != classes:
            raise _difference(root, train_name, classes, test_name, test_classes)
        test_start = len(files)
        files, targets = files + test_files, targets + test_targets
    return Scan(
        classes,
        tuple(files),
        tuple(targets),
        test_start,
        dict(sorted(ignored.items())),
        _unused(root, train_name, test_name),
    )


def _train_and_test(root: Path) -> tuple[str, str | None]:
    """Names of the folders with the training and the test part, '' being root itself."""
    # Where names differ in capitals alone, the one without them.
    folders = sorted(_class_folders(root), key=str.islower)
    divided = {name.casefold(): name for name in folders if _class_folders(root / name)}
    train = next((divided[name] for name in _TRAIN_FOLDERS if name in divided), None)
    # A test folder without class folders holds unlabelled images, as ImageNet's does.
    tests = [divided[name] for name in _TEST_FOLDERS if name in divided]
    if train is None:
        if len(tests) > 1 and set(tests) == set(folders):
            raise DataError(
                f"{root}: {' and '.join(tests)} hold folders themselves, so that they are parts and not classes, and "
                "none of them is called train",
                cure="Rename the training part to train.",
            )
        return "", None
    if tests:
        return train, tests[0]
    for name in _class_folders(root):
        beside = str(root / name)
        if (
            name != train
            and name.casefold() not in _TEST_FOLDERS
            and next(_images_below(beside, name, Counter()), None)
        ):
            raise DataError(
                f"{root}: is {train} a class like {name}, or the training part? Both have images, and {train} has "
                "folders",
                cure=f"Rename the class, or set data.root to {root / train}.",
            )
    return train, None


def _scan_part(root: Path, part: str, ignored: Counter[str]) -> tuple[tuple[str, ...], list[str], list[int]]:
    """Classes, paths relative to root, and targets, sorted by path within each class."""
    folder = root / part
    classes = _class_folders(folder)
    if alike := _alike(classes):
        raise DataError(
            f"{folder}: two class folders are called {alike}, and differ only in the Unicode form of their names "
            "(composed and decomposed)",
            cure="Put the images of both into one of them, or rename one.",
        )
    files: list[str] = []
    targets: list[int] = []
    for target, name in enumerate(classes):
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"{folder}: the class folder {name!r} has a name that is not UTF-8", cure="Rename the folder."
            ) from error
        found = sorted(_images_below(str(folder / name), f"{part}/{name}" if part else name, ignored))
        if not found:
            raise DataError(
                f"{folder / name}: no image in this class folder",
                cure=f"Remove the folder, or add images ({' '.join(EXTENSIONS)}).",
            )
        files += found
        targets += [target] * len(found)
    return classes, files, targets


def _class_folders(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(entry.name for entry in _entries(str(folder)) if _is_folder(entry)))


def _images_below(
    folder: str, name: str, ignored: Counter[str], above: frozenset[tuple[int, int]] = frozenset()
) -> Iterator[str]:
    """`name`/... of the image files in a folder and its folders. Links are followed, but never in a circle."""
    status = os.stat(folder)  # noqa: PTH116
    identity = (status.st_dev, status.st_ino)
    if identity in above:
        raise DataError(f"{folder}: is a link to a folder that it is in", cure="Remove the link.")
    for entry in _entries(folder):
        if _is_folder(entry):
            yield from _images_below(entry.path, f"{name}/{entry.name}", ignored, above | {identity})
        elif entry.name.lower().endswith(EXTENSIONS):
            if not entry.is_file():
                raise DataError(f"{entry.path}: is a broken link, or no file", cure="Mend or remove it.")
            yield f"{name}/{entry.name}"
        else:
            ignored[os.path.splitext(entry.name)[1].lower()] += 1  # noqa: PTH122


def _unused(root: Path, train: str, test: str | None) -> tuple[str, ...]:
    """Where there are images that are in no part, in words: beside class folders, in hidden folders, beside parts."""
    parts = [train] if test is None else [train, test]
    loose: list[str] = []
    hidden: list[str] = []
    for level in dict.fromkeys(["", *parts]):
        place = f"root/{shown(level)}".rstrip("/")
        entries = _entries(str(root / level), hidden=True)
        images = [entry for entry in entries if _is_image(entry.name) and os.path.isfile(entry.path)]  # noqa: PTH113
        loose += [f"{len(images)} in {place}"] if images else []
        dotted = [entry for entry in entries if entry.name.startswith(".")]
        hidden += [f"{place}/{shown(entry.name)}" for entry in dotted if _has_images(entry.path)]
    found = [f"images that lie in no class folder are not used: {_listed(loose)}"] if loose else []
    found += [f"hidden folders with images are not used: {_listed(hidden)}"] if hidden else []
    others = [entry for entry in _entries(str(root)) if entry.name not in parts] if train else []
    if beside := [entry.name for entry in others if _has_images(entry.path)]:
        places = " and ".join(f"{shown(part)}/" for part in parts)
        cut = {"val", "valid", "validation"}.intersection(map(str.casefold, beside))
        where = f"; validation is cut from {shown(train)}/" if cut else ""
        found += [f"beside {places} these are not used: {_listed(map(shown, beside))}{where}"]
    return tuple(f"[data] root: {line}" for line in found)


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS) and not name.startswith(".")


def _has_images(folder: str) -> bool:
    """At any depth. What is not used is no reason for an error: what is no folder, or may not be read, has none."""
    return any(_is_image(name) for _, _, names in os.walk(folder) for name in names)


def _entries(folder: str, *, hidden: bool = False) -> list[os.DirEntry[str]]:
    """What is in a folder; hidden entries only when they are asked for."""
    try:
        with os.scandir(folder) as found:
            return [entry for entry in found if hidden or not entry.name.startswith(".")]
    except OSError as error:
        raise DataError(f"{folder}: cannot be read: {error.strerror}", cure=_LAYOUT) from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Also through a link; one that leads to itself, or where one may not look, is an error that names it."""
    try:
        return entry.is_dir()
    except OSError as error:
        raise DataError(f"{entry.path}: cannot be read: {error.strerror}", cure="Mend or remove it.") from error


def _difference(
    root: Path, train: str, train_classes: tuple[str, ...], test: str, test_classes: tuple[str, ...]
) -> DataError:
    only_train, only_test = set(train_classes) - set(test_classes), set(test_classes) - set(train_classes)
    found = f"{root}: class folders only in {train}: {_listed(only_train)}; only in {test}: {_listed(only_test)}"
    if alike := _alike([*only_train, *only_test]):
        found += f"; the two of {alike} differ only in the Unicode form of their names (composed and decomposed)"
        return DataError(found, cure=f"Give them one name: move the folder in {test} to the name it has in {train}.")
    return DataError(
        found,
        cure=f"{train} and {test} must have the same class folders: add images of what is missing, or remove the class "
        f"from both; or move {test} out of the folder: a test part is then cut from {train}.",
    )


def _alike(names: Iterable[str]) -> str:
    """The first, sorted, of different names that look the same, as an `é` does of one character or two; or ""."""
    counts = Counter(unicodedata.normalize("NFC", name) for name in names)
    return min((name for name, count in counts.items() if count > 1), default="")


def _listed(names: Iterable[str]) -> str:
    ordered = sorted(names)
    first = ", ".join(ordered[:5]) or "none"
    return f"{first} and {len(ordered) - 5} more" if len(ordered) > 5 else first


def shown(name: str) -> str:
    """A name that can be printed and written to JSON, whatever bytes it is made of."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
