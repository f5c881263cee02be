"""Every byte of a store counts: one that is flipped, in any file, is found at the first opening and by `verify`."""

from __future__ import annotations

import dataclasses
import itertools
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import pad

from distill.errors import StoreError
from distill.stages.verify import verify_path
from distill.store import seen, shards
from distill.store.labels import verify_labels, write_labels
from distill.store.logits import LogitStore
from distill.store.manifest import read_manifest
from distill.store.sound import verify_store
from tests.store import cases

HEADER = 8  # bytes of a safetensors file that say how long its header is


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stores")


@cache
def made(folder: Path, kind: str) -> Path:
    """A store of this kind; each test leaves it as it was."""
    return cases.export(folder / kind.replace(" ", "-"), **cases.KINDS[kind])


@contextmanager
def written(path: Path, content: bytes) -> Iterator[None]:
    """A file with another content, in a file of its own (the teacher's labels are links), and back again."""
    before = path.read_bytes()
    try:
        path.unlink()
        path.write_bytes(content)
        yield
    finally:
        path.unlink()
        path.write_bytes(before)


def found(store: Path, name: str) -> None:
    """Refused when opened, named by `verify`, and nothing else is blamed."""
    with pytest.raises(StoreError) as caught:
        LogitStore.open(store)
    assert str(store / name) in caught.value.message
    problems = verify_store(store)
    assert problems
    assert all(str(store / name) in line for line in problems), problems
    with pytest.raises(StoreError) as caught:
        verify_path(store)
    assert str(store / name) in caught.value.message


def flip(store: Path, name: str, at: int, bit: int) -> None:
    content = (store / name).read_bytes()
    changed = bytes([content[at] ^ 1 << bit])
    with written(store / name, content[:at] + changed + content[at + 1 :]):
        if name == "manifest.json":
            # A digest in it that is wrong blames the file that has another.
            with pytest.raises(StoreError):
                LogitStore.open(store)
            assert verify_store(store)
            with pytest.raises(StoreError):
                verify_path(store)
        else:
            found(store, name)


@pytest.mark.parametrize("kind", cases.KINDS)
@given(data=st.data())
@settings(deadline=None, max_examples=40)
def test_one_flipped_bit_anywhere_is_found(folder: Path, kind: str, data: st.DataObject) -> None:
    store = made(folder, kind)
    files = cases.contents(store)
    name = data.draw(st.sampled_from(sorted(files)))
    flip(store, name, data.draw(st.integers(0, len(files[name]) - 1)), data.draw(st.integers(0, 7)))


def test_a_changed_manifest_is_blamed_once(tmp_path: Path) -> None:
    """Not each of the shards that it no longer fits."""
    store = cases.export(tmp_path / "s", **cases.KINDS["everything"])
    path = store / "manifest.json"
    path.write_text(path.read_text().replace('"view_seed": 7', '"view_seed": 8'))
    (problem,) = verify_store(store)
    assert problem.startswith(f"{path}: was changed after the shards were written")
    with pytest.raises(StoreError, match="belongs to another store, or to other rows"):
        LogitStore.open(store)


def test_every_byte_of_a_manifest_counts(tmp_path: Path) -> None:
    store = cases.export(tmp_path / "s", **cases.KINDS["everything"] | {"shard_rows": 100})
    path, content = store / "manifest.json", (store / "manifest.json").read_bytes()
    for at in range(len(content)):
        with written(path, content[:at] + bytes([content[at] ^ 1 << at % 8]) + content[at + 1 :]):
            assert verify_store(store), f"byte {at}: {content[max(0, at - 20) : at + 20]!r}"


@pytest.mark.parametrize(
    "name", ["view0001-rows000000004.safetensors", "labels/labels.safetensors", "indices.safetensors"]
)
def test_each_part_of_a_file_counts(folder: Path, name: str) -> None:
    """The length of the header, the header with its facts, the padding, the first and the last value."""
    store = made(folder, "everything")
    content = (store / name).read_bytes()
    length = int.from_bytes(content[:HEADER], "little")
    for at in (0, HEADER - 1, HEADER, HEADER + length // 2, HEADER + length - 1, HEADER + length, len(content) - 1):
        flip(store, name, at, 0)


@pytest.mark.parametrize("kind", ["topk", "everything"])
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "longer", "folder", "pipe"])
def test_files_that_are_not_whole(folder: Path, tmp_path: Path, kind: str, damage: str) -> None:
    store = Path(shutil.copytree(made(folder, kind), tmp_path / "s"))
    for name, content in cases.contents(store).items():
        path = store / name
        path.unlink()
        if damage == "folder":
            path.mkdir()
        elif damage == "pipe":
            os.mkfifo(path)
        elif damage != "missing":
            path.write_bytes({"empty": b"", "cut": content[:-1], "longer": content + b"\0"}[damage])
        if name == "manifest.json":
            with pytest.raises(StoreError):
                LogitStore.open(store)
            assert verify_store(store)
        else:
            found(store, name)
        path.rmdir() if damage == "folder" else path.unlink(missing_ok=True)
        path.write_bytes(content)
    assert verify_store(store) == []


def test_files_that_changed_places(folder: Path, tmp_path: Path) -> None:
    store = Path(shutil.copytree(made(folder, "everything"), tmp_path / "s"))
    names = sorted(path.name for path in store.glob("*view*"))
    for one, other in itertools.pairwise(names):
        contents = [(store / name).read_bytes() for name in (one, other)]
        for name, content in zip((one, other), reversed(contents), strict=True):
            (store / name).write_bytes(content)
        problems = verify_store(store)
        assert {one, other} == {name for name in names if any(f"/{name}" in line for line in problems)}
        with pytest.raises(StoreError):
            LogitStore.open(store)
        # Even unverified, a shard says itself what it holds.
        opened = LogitStore.open(store, verify=False) if len(contents[0]) == len(contents[1]) else None
        for number, shard in enumerate(opened.manifest.shards if opened else ()):
            if shard.file in (one, other):
                with pytest.raises(StoreError, match="belongs to another store, or to other rows"):
                    opened._map("logits", number)
        for name, content in zip((one, other), contents, strict=True):
            (store / name).write_bytes(content)
    assert verify_store(store) == []


def test_files_that_nobody_named(folder: Path, tmp_path: Path) -> None:
    store = Path(shutil.copytree(made(folder, "everything"), tmp_path / "s"))
    for name in ("notes.txt", "view0009-rows000000000.safetensors", "labels/more.safetensors"):
        (store / name).write_bytes(b"x")
        assert verify_store(store) == [f"{store / name}: the manifest does not name this file"]
        (store / name).unlink()
    plain = Path(shutil.copytree(made(folder, "float16"), tmp_path / "t"))
    (plain / "labels").mkdir()
    assert verify_store(plain) == [f"{plain / 'labels'}: the manifest does not name this file"]


def test_the_labels_of_another_teacher(folder: Path, tmp_path: Path) -> None:
    """Sound in themselves, and refused: the manifest names the teacher's own."""
    store = Path(shutil.copytree(made(folder, "labels"), tmp_path / "s"))
    other = dataclasses.replace(cases.learned(), given=torch.zeros(cases.ROWS, dtype=torch.int64))
    write_labels(store / "labels", other, {"teacher_digest": "t"})
    assert verify_labels(store / "labels") == []
    with pytest.raises(StoreError, match=r"labels/manifest\.json: is damaged"):
        LogitStore.open(store)
    assert len(verify_store(store)) == 2


def test_an_unchanged_store_is_read_once(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Path(shutil.copytree(made(folder, "everything"), tmp_path / "s"))
    hashed: list[str] = []
    real = shards.sha256_of
    monkeypatch.setattr(shards, "sha256_of", lambda path: (hashed.append(path.name), real(path))[1])
    LogitStore.open(store)
    files = len(hashed)
    assert files == len(cases.contents(store)) - 1
    # These files are too young to be believed by their times: nothing was noted.
    assert not (store / seen.SEEN).exists()
    monkeypatch.setattr(seen, "_SETTLED", -1e9)
    LogitStore.open(store)
    assert len(hashed) == 2 * files
    LogitStore.open(store)
    assert len(hashed) == 2 * files
    # What was noted is no part of the store.
    assert verify_store(store) == []
    assert len(hashed) >= 3 * files
    hashed.clear()
    shutil.copytree(store, tmp_path / "copy")
    LogitStore.open(tmp_path / "copy")
    assert len(hashed) == files


@pytest.mark.parametrize("name", ["manifest.json", "view0002-rows000000008.safetensors", "labels/labels.safetensors"])
@pytest.mark.parametrize("touched", [False, True])
def test_a_store_that_changed_is_read_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, touched: bool
) -> None:
    """In place, same size, with the old time of change put back or not."""
    store = Path(shutil.copytree(made(folder, "everything"), tmp_path / "s"))
    monkeypatch.setattr(seen, "_SETTLED", -1e9)
    LogitStore.open(store)
    assert (store / seen.SEEN).exists()
    path = store / name
    times = path.stat()
    time.sleep(0.05)  # a file system's clock has ticks; that is what `_SETTLED` is for
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    with path.open("r+b") as file:
        file.write(content)
    if not touched:
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(StoreError):
        LogitStore.open(store)


@pytest.mark.parametrize("content", [b"", b"{", b"null", b"[]", b"{}", b'{"manifest.json": [1, 2, 3, 4]}'])
def test_a_note_that_is_none(folder: Path, tmp_path: Path, content: bytes) -> None:
    store = Path(shutil.copytree(made(folder, "float16"), tmp_path / "s"))
    (store / seen.SEEN).write_bytes(content)
    shard = store / read_manifest(store).shards[2].file
    LogitStore.open(store)
    with written(shard, shard.read_bytes()[:-1] + b"x"), pytest.raises(StoreError, match="is damaged"):
        LogitStore.open(store)


def test_labels_of_other_classes(tmp_path: Path) -> None:
    """Right digests throughout, and a student would have met rows that do not fit its logits."""
    labels = cases.learned()
    wider = {name: pad(getattr(labels, name), (0, 1)) for name in ("labels", "averaged")}
    trajectory = {epoch: pad(table, (0, 1)) for epoch, table in labels.trajectory.items()}
    classes = labels.labels.shape[1]
    write_labels(tmp_path / "labels", dataclasses.replace(labels, **wider, trajectory=trajectory), {})
    store = cases.export(tmp_path / "s", labels=tmp_path / "labels")
    message = f"{store / 'labels'}: labels of {classes + 1} classes beside logits of {classes}"
    with pytest.raises(StoreError, match=re.escape(message)):
        LogitStore.open(store).labels()
    assert verify_store(store) == [message]
