from __future__ import annotations

import dataclasses
import errno
import gc
import os
import pickle
import shutil
import time
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from distill.errors import StoreError
from distill.store.formats.encoding import logit_encoding
from distill.store.logits import LogitStore
from distill.store.origin import Origin
from distill.store.sound import verify_store
from tests.store import cases

PAIRS = st.lists(st.tuples(st.integers(0, 10), st.integers(0, 3)), max_size=30)


@pytest.fixture(params=["mapped", "read"])
def either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Small stores are indexed as maps, of large ones rows are read; here every store is either."""
    monkeypatch.setattr("distill.store.logits._MAPPED", 2**28 if request.param == "mapped" else 0)
    return str(request.param)


@given(pairs=PAIRS)
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_rows_in_any_order(
    store: Path, logits: Tensor, indices: Tensor, either_way: str, pairs: list[tuple[int, int]]
) -> None:
    positions, views = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).unbind(1)
    found = LogitStore.open(store, verify=False).rows(indices[positions], views)
    assert found.dtype == torch.float32
    assert torch.equal(found, logits[views, positions])


def test_every_row_of_every_view(store: Path, logits: Tensor, indices: Tensor) -> None:
    opened = LogitStore.open(store)
    assert (opened.views, opened.classes) == (4, 3)
    assert torch.equal(opened.indices, indices)
    for view in range(4):
        assert torch.equal(opened.rows(indices, torch.full_like(indices, view)), logits[view])


def test_other_integer_types(store: Path, logits: Tensor, indices: Tensor) -> None:
    found = LogitStore.open(store).rows(indices[:2].int(), torch.tensor([1, 3], dtype=torch.uint8))
    assert torch.equal(found, logits[[1, 3], [0, 1]])


@pytest.mark.parametrize("kind", cases.KINDS)
def test_every_kind_gives_what_its_format_says_of_each_row(tmp_path: Path, kind: str, either_way: str) -> None:
    """Shards, batches and the order of rows change nothing: each row is as encoded and decoded on its own."""
    opened = LogitStore.open(cases.export(tmp_path / "s", **cases.KINDS[kind]), reconstruct=True)
    manifest = opened.manifest
    encoding = logit_encoding(manifest.format, manifest.classes, manifest.k)
    generator = torch.Generator().manual_seed(3)
    positions = torch.randint(cases.ROWS, (64,), generator=generator)
    views = torch.randint(cases.VIEWS, (64,), generator=generator)
    expected = [encoding.decode(encoding.encode(row[None])) for row in cases.logits()[views, positions]]
    assert torch.equal(opened.rows(cases.INDICES[positions], views), torch.cat(expected))
    if manifest.features:
        assert torch.equal(opened.features(cases.INDICES[positions], views), cases.features()[views, positions])
    else:
        with pytest.raises(StoreError, match="holds no features") as caught:
            opened.features(cases.INDICES, cases.INDICES)
        assert "features = true" in caught.value.cure
    assert (opened.rows(positions[:0], views[:0]).shape, opened.views) == ((0, cases.CLASSES), cases.VIEWS)


def test_a_store_carries_the_learned_labels(tmp_path: Path) -> None:
    """Bytes and all, also when it is copied elsewhere and the teacher's own are gone."""
    folder = cases.export(tmp_path / "s", labels=True)
    teacher = tmp_path / "s-teacher" / "labels"
    assert cases.contents(folder / "labels") == cases.contents(teacher)
    shutil.rmtree(teacher)
    found = LogitStore.open(shutil.copytree(folder, tmp_path / "copy")).labels()
    assert torch.equal(found.averaged, cases.learned().averaged)
    assert found.trajectory.keys() == {1}
    assert verify_store(tmp_path / "copy") == []


def test_a_store_without_learned_labels_says_so(store: Path) -> None:
    with pytest.raises(StoreError, match="learned no labels"):
        LogitStore.open(store).labels()


def test_top_k_is_reconstructed_only_with_leave(tmp_path: Path) -> None:
    folder = cases.export(tmp_path / "s", format="topk", k=2)
    ones = torch.ones_like(cases.INDICES)
    with pytest.raises(StoreError, match="the 2 largest logits of each row only, not all 3") as caught:
        LogitStore.open(folder).rows(cases.INDICES, ones)
    assert "reconstruct=True" in caught.value.cure
    opened = pickle.loads(pickle.dumps(LogitStore.open(folder, reconstruct=True)))
    assert opened.rows(cases.INDICES, ones).isfinite().all()


def test_only_what_is_asked_for_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = LogitStore.open(cases.export(tmp_path / "s", format="int8", features=cases.WIDTH))
    seen: list[int] = []
    encoding = opened._encodings["logits"]
    decode = lambda parts: (seen.append(len(parts["codes"])), encoding.decode(parts))[1]  # noqa: E731
    monkeypatch.setitem(opened._encodings, "logits", dataclasses.replace(encoding, decode=decode))
    opened.rows(cases.INDICES[:2], torch.tensor([1, 3]))
    assert seen == [2]
    opened.features(cases.INDICES, torch.ones_like(cases.INDICES))
    assert seen == [2]


@pytest.fixture
def read_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the store were large."""
    monkeypatch.setattr("distill.store.logits._MAPPED", 0)


@pytest.mark.usefixtures("read_only")
def test_a_large_store_keeps_few_files_open(store: Path, logits: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distill.store.logits._MOST_HANDLES", 2)
    handles = Path("/proc/self/fd")
    before = len(list(handles.iterdir())) if handles.exists() else 0
    opened = LogitStore.open(store)
    for view in (0, 3, 0, 1):
        assert torch.equal(opened.rows(cases.INDICES, torch.full_like(cases.INDICES, view)), logits[view])
        if handles.exists():
            assert len(list(handles.iterdir())) == before + 2
    copy = pickle.loads(pickle.dumps(opened))
    assert torch.equal(copy.rows(cases.INDICES, torch.zeros_like(cases.INDICES)), logits[0])
    del opened, copy
    gc.collect()
    if handles.exists():
        assert len(list(handles.iterdir())) == before


@pytest.mark.usefixtures("read_only")
@pytest.mark.parametrize("in_use", [False, True])
def test_a_file_that_changes_under_a_reader_is_an_error(store: Path, in_use: bool) -> None:
    """Cut short, or written over with another of the same size: never a crash, never another row."""
    for change in (lambda content: content[:-8], lambda content: content[:-1] + b"x"):
        opened = LogitStore.open(store)
        path = store / opened.manifest.shards[0].file
        content = path.read_bytes()
        if in_use:
            opened.rows(cases.INDICES[:1], torch.tensor([0]))
        time.sleep(0.02)
        path.write_bytes(change(content))
        with pytest.raises(StoreError, match="was changed while it was in use"):
            opened.rows(cases.INDICES[:1], torch.tensor([0]))
        path.write_bytes(content)


@pytest.mark.usefixtures("read_only")
def test_a_file_that_ends_early_is_an_error(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = LogitStore.open(store)
    real = os.pread
    monkeypatch.setattr(os, "pread", lambda handle, size, at: real(handle, size, at)[:-1])
    with pytest.raises(StoreError, match="ends too early"):
        opened.rows(cases.INDICES[:1], torch.tensor([0]))

    def failing(*_: object) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pread", failing)
    with pytest.raises(StoreError, match="cannot be read: Input/output error"):
        opened.rows(cases.INDICES[:1], torch.tensor([0]))


@pytest.mark.parametrize(
    ("index", "view", "message"),
    [
        (1, 0, "no logits of image 1 "),
        (100, 0, "no logits of image 100 "),
        (-1, 0, "no logits of image -1 "),
        (40, 4, "no view 4; it has 4"),
        (40, -1, "no view -1"),
    ],
)
def test_what_the_store_does_not_have(store: Path, index: int, view: int, message: str) -> None:
    with pytest.raises(StoreError, match=message):
        LogitStore.open(store).rows(torch.tensor([3, index]), torch.tensor([0, view]))


@pytest.mark.parametrize(
    ("chosen", "views"),
    [
        (torch.tensor([3.0]), torch.tensor([0])),
        (torch.tensor([3]), torch.tensor([0, 1])),
        (torch.tensor(3), torch.tensor([0])),
        (torch.tensor([True]), torch.tensor([0])),
    ],
)
def test_wrong_arguments(store: Path, chosen: Tensor, views: Tensor) -> None:
    with pytest.raises(ValueError, match="two vectors of integers"):
        LogitStore.open(store).rows(chosen, views)


def test_another_origin_is_refused(store: Path, origin: Origin) -> None:
    LogitStore.open(store, expect=origin)
    other = origin.model_copy(update={"class_names": ("dog", "cat", "eel"), "data_fingerprint": "other"})
    with pytest.raises(StoreError, match="class order differs") as caught:
        LogitStore.open(store, expect=other)
    assert "data set differs" in caught.value.message


def test_a_pickled_store_reads_on(store: Path, logits: Tensor, indices: Tensor) -> None:
    opened = LogitStore.open(store)
    opened.rows(indices, torch.zeros_like(indices))
    data = pickle.dumps(opened)
    assert len(data) < 20_000
    assert torch.equal(pickle.loads(data).rows(indices, torch.ones_like(indices)), logits[1])


def test_a_sound_store_has_no_problems(store: Path) -> None:
    assert verify_store(store) == []


def test_extra_files_are_problems_hidden_ones_are_not(store: Path) -> None:
    (store / "notes.txt").touch()
    (store / ".DS_Store").touch()
    assert verify_store(store) == [f"{store / 'notes.txt'}: the manifest does not name this file"]


def test_a_store_may_be_reached_through_links(store: Path, tmp_path: Path) -> None:
    """As a hub's cache lays files out."""
    (tmp_path / "linked").mkdir()
    for path in store.iterdir():
        (tmp_path / "linked" / path.name).symlink_to(path)
    assert verify_store(tmp_path / "linked") == []
    LogitStore.open(tmp_path / "linked")


def mapped_file(address: int) -> str:
    """Name of the file that is mapped at an address."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        area, *_, name = line.split()
        start, stop = (int(end, 16) for end in area.split("-"))
        if start <= address < stop:
            return Path(name).name
    return ""


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's /proc")
def test_values_stay_in_their_files_and_no_handle_is_held(store: Path, indices: Tensor) -> None:
    """A store may be larger than memory, and have more shards than a process may open files."""
    handles = len(list(Path("/proc/self/fd").iterdir()))
    opened = LogitStore.open(store)
    for view in range(4):
        opened.rows(indices, torch.full_like(indices, view))
    found = [mapped_file(mapped.tensors["logits"].data_ptr()) for _, mapped in sorted(opened._maps.items())]
    assert found == [shard.file for shard in opened.manifest.shards]
    assert len(list(Path("/proc/self/fd").iterdir())) == handles
