"""A disk that fills up while something is written: an error that says so, the old file stays, an export goes on."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

from distill.errors import StoreError
from distill.store.checkpoint import load_state, save_state
from distill.store.labels import LearnedLabels, read_labels, write_labels
from distill.store.logits import LogitStore, LogitWriter
from distill.store.manifest import Origin

ORIGIN = Origin(
    teacher_digest="t",
    recipe_digest="r",
    data_source="digits",
    data_fingerprint="d",
    given_labels_sha256="0" * 64,
    label_rule="onehot",
    class_names=("a", "b"),
    views={},
    view_count=1,
    view_seed=0,
    mean=(0.5,),
    std=(0.5,),
)


def start(folder: Path) -> LogitWriter:
    return LogitWriter(
        folder, origin=ORIGIN, indices=torch.arange(6), classes=2, views=1, format="float16", shard_rows=2
    )


class Disk:
    """Lets so many flushes pass, then is full."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = 10**6
        real = os.fsync

        def fsync(handle: int) -> None:
            self.left -= 1
            if self.left < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            real(handle)

        monkeypatch.setattr(os, "fsync", fsync)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


@pytest.mark.parametrize("flushes", range(12))
def test_an_export_onto_a_full_disk_continues_later(tmp_path: Path, disk: Disk, flushes: int) -> None:
    """Twelve flushes: file and folder, for the plan, the indices, three shards and the manifest."""

    def export() -> None:
        writer = start(tmp_path / "s")
        for piece in writer.missing():
            writer.write(piece, torch.full((2, 2), float(piece.start)))
        writer.finish()

    disk.left = flushes
    with pytest.raises(StoreError, match="No space left on device") as caught:
        export()
    assert "Make room" in caught.value.cure
    assert not [path for path in (tmp_path / "s").iterdir() if path.name.startswith(".")]
    disk.left = 10**6
    export()
    rows = LogitStore.open(tmp_path / "s").rows(torch.arange(6), torch.zeros(6, dtype=torch.int64))
    assert rows[:, 0].tolist() == [0, 0, 2, 2, 4, 4]


def test_an_old_state_survives_a_full_disk(tmp_path: Path, disk: Disk) -> None:
    save_state(tmp_path / "s", {"epoch": 1})
    disk.left = 0
    with pytest.raises(StoreError, match="No space left"):
        save_state(tmp_path / "s", {"epoch": 2})
    assert load_state(tmp_path / "s") == {"epoch": 1}


@pytest.mark.parametrize("flushes", range(4))
def test_half_replaced_labels_are_not_believed(tmp_path: Path, disk: Disk, flushes: int) -> None:
    def labels(mass: float) -> LearnedLabels:
        table = torch.tensor([[mass, 1 - mass]])
        vectors = (torch.tensor([3]), torch.tensor([0]), torch.tensor([True]))
        return LearnedLabels("instance", table, table, *vectors)

    write_labels(tmp_path, labels(0.75), None)
    disk.left = flushes
    with pytest.raises(StoreError, match="No space left"):
        write_labels(tmp_path, labels(0.25), None)
    if flushes in (1, 2):
        with pytest.raises(StoreError):
            read_labels(tmp_path)
    else:
        # Nothing was replaced yet, or everything was.
        assert read_labels(tmp_path).labels[0, 0] == (0.75 if flushes == 0 else 0.25)


def test_a_file_where_a_folder_has_to_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for write in (
        lambda: start(tmp_path / "file" / "s"),
        lambda: save_state(tmp_path / "file" / "s", None),
        lambda: save_state(tmp_path, None),
    ):
        with pytest.raises(StoreError) as caught:
            write()
        assert "A file is where a folder has to be" in caught.value.cure


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_the_right_to_write(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir(mode=0o500)
    with pytest.raises(StoreError, match="Permission denied") as caught:
        start(tmp_path / "s")
    assert "may write to" in caught.value.cure
