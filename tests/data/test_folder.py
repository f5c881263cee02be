"""A folder as a source: pixels, errors, what it is bound to, and what is left out."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from distill.data import contents, folder
from distill.data.decode import decode
from distill.data.folder import FolderSource, open_folder
from distill.data.scan import scan
from distill.errors import DataError
from tests.data.pictures import folder_of, noise, picture


def red(images: torch.Tensor) -> list[int]:
    return images[:, 0, 0, 0].tolist()


def test_images_are_those_of_the_files(tmp_path: Path) -> None:
    for number in range(20):
        path = tmp_path / "ab"[number % 2] / f"{number:02}.png"
        path.parent.mkdir(exist_ok=True)
        noise((11 + number, 17), seed=number).save(path)
    source = open_folder(tmp_path, 8)
    assert source.shape == (3, 8, 8)
    indices = torch.tensor([2, 19, 2, 0, *range(20), 7])
    slow = [decode((tmp_path / source.files[index]).read_bytes(), 8) for index in indices.tolist()]
    expected = torch.stack([torch.from_numpy(pixels.copy()) for pixels in slow]).permute(0, 3, 1, 2)
    for _ in range(2):  # the second time they come from memory
        images = source.fetch(indices)
        assert images.dtype == torch.uint8
        assert images.is_contiguous()
        assert torch.equal(images, expected)
    assert source.fetch(indices[:0]).shape == (0, 3, 8, 8)
    assert open_folder(tmp_path).shape == (3, 224, 224)


@pytest.mark.parametrize("workers", [1, 2, 7])
@pytest.mark.parametrize("keeps", [True, False])
def test_results_do_not_depend_on_workers_chunks_or_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int, keeps: bool
) -> None:
    found = scan(folder_of(tmp_path, 40))
    monkeypatch.setattr(folder, "_KEPT_BYTES", 2**20 if keeps else 0)
    monkeypatch.setattr(folder, "_SMALL", 0)  # else these would all be decoded by one thread
    source = FolderSource(tmp_path, found, 8, "error", workers=workers)
    assert (source._kept.pixels is not None) == keeps
    assert source.workers == workers
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    for size in (1, 7, 40):
        chunks = torch.split(order, size)
        for chunk, images in zip(chunks, source.stream(chunks), strict=True):
            assert red(images) == [int(Path(found.files[index]).stem) for index in chunk.tolist()]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def test_what_was_prepared_is_what_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "_KEPT_BYTES", 0)
    source = open_folder(folder_of(tmp_path, 12), 8)
    first, second = torch.tensor([3, 0, 3]), torch.tensor([5, 1])
    expected = [source.fetch(first), source.fetch(second)]
    with monkeypatch.context() as patch:
        decoded: list[int] = []
        real = FolderSource._decoded
        patch.setattr(FolderSource, "_decoded", lambda source, index: decoded.append(index) or real(source, index))
        source.prepare(second)
        assert torch.equal(source.fetch(second), expected[1])
        assert sorted(decoded) == [1, 5]
    assert torch.equal(source.fetch(second), expected[1])  # no longer prepared
    source.prepare(second)
    assert torch.equal(source.fetch(first), expected[0])  # something else was prepared
    source.prepare(first)
    source.prepare(second)
    assert torch.equal(source.fetch(second), expected[1])
    (tmp_path / source.files[5]).write_bytes(b"")
    source.prepare(second)
    with pytest.raises(DataError, match=source.files[5]):
        source.fetch(second)
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("prepare")]
    assert threads
    del source
    gc.collect()  # the error's traceback holds the source in a circle
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


def test_memory_ahead_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_folder(folder_of(tmp_path, 40), 8)
    asked: list[int] = []
    real = source._job
    monkeypatch.setattr(source, "_job", lambda indices: asked.append(1) or real(indices))
    for most, ahead in ((folder._AHEAD_BYTES, 4), (2 * 4 * 3 * 64, 2), (1, 1)):
        monkeypatch.setattr(folder, "_AHEAD_BYTES", most)
        asked.clear()
        chunks = iter(torch.split(torch.arange(40), 4))
        stream = source.stream(chunks)
        next(stream)
        assert len(asked) == 1 + ahead
        stream.close()
        assert len(list(chunks)) == 10 - 1 - ahead  # the others were not even asked for
    assert list(source.stream(iter([]))) == []


def test_the_first_bad_image_in_order_is_named(tmp_path: Path) -> None:
    for name in ("a/0.png", "a/1.png", "b/0.png"):
        picture(tmp_path / name)
    for name in ("a/1.png", "b/0.png"):
        (tmp_path / name).write_bytes(b"no image")
    source = open_folder(tmp_path, 8)
    for order, named in (([0, 2, 1], r"b/0\.png"), ([0, 1, 2], r"a/1\.png")):
        with pytest.raises(DataError, match=named + ": cannot be decoded"):
            source.fetch(torch.tensor(order))
    # A good chunk before the bad one is handed over first.
    stream = source.stream([torch.tensor([0]), torch.tensor([1])])
    assert next(stream).shape == (1, 3, 8, 8)
    with pytest.raises(DataError, match=r"a/1\.png"):
        next(stream)


def test_a_file_that_changes_after_opening_is_an_error(tmp_path: Path) -> None:
    source = open_folder(folder_of(tmp_path, 4), 8)
    changed = tmp_path / "a" / "000.png"
    before = changed.read_bytes()
    picture(changed, (77, 0, 0), (8, 8))
    with pytest.raises(DataError, match=r"000\.png: has changed since"):
        source.fetch(torch.tensor([1, 0]))
    changed.unlink()
    with pytest.raises(DataError, match=r"000\.png: cannot be read: No such file"):
        source.fetch(torch.tensor([0]))
    changed.write_bytes(before)
    assert red(source.fetch(torch.tensor([0]))) == [0]


def swap(a: Path, b: Path) -> None:
    a.rename(a.with_suffix(".old"))
    b.rename(a)
    a.with_suffix(".old").rename(b)


def test_fingerprint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "SETTLED_NS", 0)  # everything is remembered at once
    root = folder_of(tmp_path / "root", 6, size=(12, 9))
    prints = [open_folder(root, 8).fingerprint(), open_folder(root, 9).fingerprint()]
    assert open_folder(root, 8).fingerprint() == prints[0]
    assert open_folder(root, 8, "leave-out").fingerprint() == prints[0]
    assert open_folder(root, 8, quick=True).fingerprint() == prints[0]
    root = root.rename(tmp_path / "moved")
    assert open_folder(root, 8).fingerprint() == prints[0]
    os.utime(root / "a" / "002.png", (1, 1))
    assert open_folder(root, 8).fingerprint() == prints[0]

    def changed() -> str:
        prints.append(open_folder(root, 8).fingerprint())
        return prints[-1]

    a, b = root / "a" / "002.png", root / "a" / "004.png"
    size = max(a.stat().st_size, b.stat().st_size)
    for path in (a, b):  # what follows a PNG's end is not read
        path.write_bytes(path.read_bytes().ljust(size, b"\0"))
    prints.append(open_folder(root, 8).fingerprint())
    swap(a, b)
    changed()
    swap(a, b)
    assert open_folder(root, 8).fingerprint() == prints[-2]
    with a.open("r+b") as file:  # one byte, the size stays, and the times are put back
        times = a.stat()
        file.seek(-5, os.SEEK_END)
        file.write(b"\0")
    os.utime(a, ns=(times.st_atime_ns, times.st_mtime_ns))
    changed()
    a.rename(root / "a" / "008.png")
    changed()
    (root / "a" / "008.png").rename(root / "b" / "008.png")
    changed()
    (root / "b" / "008.png").unlink()
    changed()
    assert len(set(prints)) == len(prints)


def test_a_quick_look_opens_no_image(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        os.mkfifo(tmp_path / name / "0.jpg.fifo")
        (tmp_path / name / "0.jpg").write_bytes(b"")
    source = open_folder(tmp_path, 8, quick=True)
    assert len(source.files) == 2
    assert source.unreadable == {}
    with pytest.raises(DataError, match="cannot be decoded"):
        source.fetch(torch.tensor([0]))


@pytest.fixture
def damaged(tmp_path: Path) -> Iterator[Path]:
    """Twelve pictures, of which 1, 4 and 5 (a/002, a/008, a/010) are damaged in one way each."""
    folder_of(tmp_path, 12)
    (tmp_path / "a" / "002.png").write_bytes(b"")
    (tmp_path / "a" / "008.png").write_bytes(b"no image")
    path = tmp_path / "a" / "010.png"
    path.write_bytes(path.read_bytes()[:-30])
    return tmp_path


def test_unreadable_images_are_left_out_and_keep_their_index(damaged: Path) -> None:
    source = open_folder(damaged, 8, "leave-out")
    assert list(source.unreadable) == [1, 4, 5]
    assert source.unreadable[1].startswith("a/002.png: none of JPEG")
    assert len(source.targets) == len(source.files) == 12
    good = [0, 2, 3, *range(6, 12)]
    assert red(source.fetch(torch.tensor(good))) == [int(Path(source.files[index]).stem) for index in good]
    with pytest.raises(DataError, match=r"a/002\.png"):
        source.fetch(torch.tensor([1]))
    assert open_folder(damaged, 8, "leave-out").unreadable == source.unreadable
    assert open_folder(damaged, 8).unreadable == {}
    assert open_folder(damaged, 8).fingerprint() != source.fingerprint()


def test_mending_and_breaking_change_the_fingerprint(damaged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "SETTLED_NS", 0)
    first = open_folder(damaged, 8, "leave-out")
    picture(damaged / "a" / "002.png")
    mended = open_folder(damaged, 8, "leave-out")
    assert list(mended.unreadable) == [4, 5]
    (damaged / "b" / "001.png").write_bytes(b"broken")
    broken = open_folder(damaged, 8, "leave-out")
    assert list(broken.unreadable) == [4, 5, 6]
    assert len({source.fingerprint() for source in (first, mended, broken)}) == 3


def test_a_name_of_any_bytes_is_told_in_text(tmp_path: Path) -> None:
    folder_of(tmp_path, 4)
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/a/\xff.png")).write_bytes(b"")
    source = open_folder(tmp_path, 8, "leave-out")
    (told,) = source.unreadable.values()
    assert told.startswith("a/\\xff.png: ")


def test_a_quick_look_does_not_decode_thousands(damaged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "SETTLED_NS", 0)
    monkeypatch.setattr(folder, "_QUICKLY", 11)
    source = open_folder(damaged, 8, "leave-out", quick=True)
    assert (source.undecided, source.unreadable) == (12, {})
    assert len(open_folder(damaged, 8, "leave-out").unreadable) == 3
    source = open_folder(damaged, 8, "leave-out", quick=True)  # nine are remembered, three are tried
    assert (source.undecided, len(source.unreadable)) == (0, 3)
