"""The data sets: what each gives, and how one is opened."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Protocol

from torch import Tensor
from torchvision.datasets import FashionMNIST
from torchvision.datasets.utils import download_and_extract_archive

from distill.data.cifar import CIFAR_LAYOUTS, CifarLayout, cifar_cure, find_cifar, read_cifar
from distill.data.contents import Progress
from distill.data.folder import DEFAULT_SIZE, open_folder
from distill.data.idx import DEBIAN_FOLDER, fashion_cure, find_fashion, read_fashion
from distill.data.memory import open_digits
from distill.errors import DataError
from distill.recipe.paths import expanded
from distill.recipe.schema import DataRecipe

DEFAULT_ROOT = Path("data")


class Source(Protocol):
    """Images in a fixed order with their true labels: the official training part, then the official test part."""

    @property
    def name(self) -> str:
        """Name of the data set."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The C class names, in the order of the targets."""

    @property
    def targets(self) -> Tensor:
        """True labels, int64 [N]."""

    @property
    def test_start(self) -> int | None:
        """Index of the first official test image; None when the source has no test part of its own."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""

    @property
    def decodes(self) -> bool:
        """Whether `fetch` opens files, so that it takes its time."""

    @property
    def unreadable(self) -> dict[int, str]:
        """Images that are to be in no part: index -> file and reason, ascending."""

    @property
    def ignored(self) -> dict[str, int]:
        """Files in a folder that are no images by their names: ending -> how many."""

    @property
    def unused(self) -> tuple[str, ...]:
        """A line for each kind of place in a folder that holds images which are in no part."""

    @property
    def undecided(self) -> int:
        """Files of which a source that was opened quickly does not know whether they are readable."""

    def fetch(self, indices: Tensor) -> Tensor:
        """int64 [B] -> uint8 [B, ch, H, W], in any order, repeated or not."""

    def prepare(self, indices: Tensor) -> None:
        """Begins, where that takes its time, what the next `fetch` is expected to ask for: int64 [B]."""

    def stream(self, chunks: Iterable[Tensor]) -> Generator[Tensor, None, None]:
        """The images of each chunk in turn, as `fetch` gives them; ahead of the caller where that takes its time."""

    def fingerprint(self) -> str:
        """sha256 over the ordered content, as 64 hex digits."""


def open_source(recipe: DataRecipe, *, progress: Progress | None = None, quick: bool = False) -> Source:
    """Opens the data set that the recipe names, downloading it only when the recipe says so.

    Args:
        recipe: which one.
        progress: told how many files of a folder were read, of how many, when they have to be.
        quick: for a plan only: read no more files of a folder than takes seconds.

    Raises:
        DataError: when it is missing, damaged, or given a field that it has no use for.
    """
    if recipe.source != "folder" and recipe.image_size:
        raise DataError(
            f"data.image_size = {recipe.image_size}, but the images of {recipe.source} have a size of their own",
            cure="Remove data.image_size; it is for data.source = 'folder'.",
        )
    if recipe.source == "digits":
        if recipe.root:
            raise DataError(
                f"data.root = {recipe.root!r}, but digits is part of the package",
                cure="Remove data.root, or set data.source.",
            )
        return open_digits()
    if recipe.source == "folder":
        if not recipe.root:
            raise DataError("data.root is empty", cure="Name the folder of images in data.root.")
        root, size = _root(recipe), recipe.image_size or DEFAULT_SIZE
        return open_folder(root, size, recipe.unreadable, progress=progress, quick=quick)
    if recipe.source == "fashion-mnist":
        return _open_fashion(recipe)
    return _open_cifar(CIFAR_LAYOUTS[recipe.source], recipe)


def _root(recipe: DataRecipe) -> Path:
    """Where the images are; torchvision's files lie, or go, in a folder of our own where none is named.

    Raises:
        DataError: in the home of a user that nobody knows.
    """
    return expanded(recipe.root, "data.root", DataError) if recipe.root else DEFAULT_ROOT


def _download(name: str, folder: Path, files: list[tuple[str, str, str]], cure: str) -> None:
    """Lets torchvision download, check and unpack archives, each (address, file name, md5)."""
    try:
        for address, file, md5 in files:
            download_and_extract_archive(address, str(folder), filename=file, md5=md5)
    except (OSError, RuntimeError) as error:
        raise DataError(f"{name}: torchvision's download failed: {error}", cure=cure) from error


def _open_fashion(recipe: DataRecipe) -> Source:
    roots = [_root(recipe)] if recipe.root else [DEFAULT_ROOT, DEBIAN_FOLDER]
    folder = find_fashion(roots)
    if folder is None and recipe.download:
        # Not FashionMNIST(download=True): where an old torchvision has left its pickled files, it loads those.
        address = FashionMNIST.mirrors[0]
        files = [(address + name, name, md5) for name, md5 in FashionMNIST.resources]
        _download(recipe.source, _root(recipe) / "FashionMNIST" / "raw", files, fashion_cure())
        folder = find_fashion(roots)
    if folder is None:
        raise DataError(f"fashion-mnist: not found in {_listed(roots)}", cure=fashion_cure())
    return read_fashion(folder)


def _open_cifar(layout: CifarLayout, recipe: DataRecipe) -> Source:
    root = _root(recipe)
    found = find_cifar(layout, [root])
    if found is None and recipe.download:
        # Not CIFAR10(download=True): that would also unpickle the files.
        archive = (layout.torchvision.url, layout.torchvision.filename, layout.torchvision.tgz_md5)
        _download(layout.name, root, [archive], cifar_cure(layout))
        found = find_cifar(layout, [root])
    if found is None:
        raise DataError(f"{layout.name}: not found in {_listed([root])}", cure=cifar_cure(layout))
    folder, binary = found
    return read_cifar(layout, folder, binary=binary)


def _listed(roots: list[Path]) -> str:
    return " or ".join(f"{root}/" for root in roots)


def list_sources() -> list[tuple[str, str]]:
    """Name and one sentence for each data set: where it comes from, and whether it is present here."""
    fashion = find_fashion([DEFAULT_ROOT, DEBIAN_FOLDER])
    place = f"present in {fashion}" if fashion else "not found here"
    rows = [
        ("digits", "1,797 handwritten digits, 1x8x8, 10 classes, UCI, CC BY 4.0; part of the package."),
        (
            "fashion-mnist",
            "70,000 pictures of clothes, 1x28x28, 10 classes, from Debian's dataset-fashion-mnist or torchvision; "
            f"{place}.",
        ),
    ]
    for layout in CIFAR_LAYOUTS.values():
        found = find_cifar(layout, [DEFAULT_ROOT])
        place = f"present in {found[0]}" if found else f"not found in {DEFAULT_ROOT}/"
        facts = f"60,000 photographs, 3x32x32, {layout.num_classes} classes"
        rows.append((layout.name, f"{facts}, from torchvision or in the binary version; {place}."))
    rows.append(("folder", "Your own images, one folder a class, of any size; named by data.root."))
    return rows
