from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from distill.errors import StoreError
from distill.store.logits import LogitStore, LogitWriter, verify_store
from distill.store.manifest import Origin, Piece, read_manifest
from distill.store.tensors import write_tensors

Make = Callable[..., LogitWriter]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def fill(writer: LogitWriter, logits: Tensor, limit: int | None = None) -> None:
    for piece in writer.missing()[:limit]:
        writer.write(piece, logits[piece.view, piece.start : piece.stop])


def test_two_exports_are_byte_identical(store: Path, tmp_path: Path, writer: Make, logits: Tensor) -> None:
    second = writer(tmp_path / "second")
    for piece in reversed(second.missing()):
        second.write(piece, logits[piece.view, piece.start : piece.stop].T.contiguous().T)
    second.finish()
    assert contents(store) == contents(tmp_path / "second")
    assert sorted(contents(store)) == [
        "indices.safetensors",
        "manifest.json",
        *(f"view000{view}-rows00000000{start}.safetensors" for view in range(4) for start in (0, 4, 8)),
    ]


@pytest.mark.parametrize("done", [0, 1, 5, 12])
def test_an_abandoned_export_continues(store: Path, tmp_path: Path, writer: Make, logits: Tensor, done: int) -> None:
    fill(writer(tmp_path / "s"), logits, done)
    with pytest.raises(StoreError, match="was interrupted"):
        LogitStore.open(tmp_path / "s")
    assert verify_store(tmp_path / "s") == [f"{tmp_path / 's'}: the export was interrupted"]
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "s").glob("view*")}
    assert len(kept) == done
    again = writer(tmp_path / "s")
    assert len(again.missing()) == 12 - done
    fill(again, logits)
    again.finish()
    assert contents(tmp_path / "s") == contents(store)
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())


def test_a_killed_export_continues(store: Path, tmp_path: Path, writer: Make, logits: Tensor, origin: Origin) -> None:
    """The process is killed in the middle of its sixth shard; the temporary file stays behind."""
    write_tensors(tmp_path / "inputs", {"indices": LogitStore.open(store).indices, "logits": logits})
    code = """
import os, signal, sys
from pathlib import Path
from distill.store.logits import LogitWriter
from distill.store.manifest import Origin
from distill.store.tensors import read_tensors
folder, inputs, origin = sys.argv[1:]
inputs = read_tensors(Path(inputs))
writer = LogitWriter(Path(folder), origin=Origin.model_validate_json(origin), indices=inputs["indices"], classes=3,
                     views=4, format="float16", shard_rows=4)
real, calls = os.fsync, []
def fsync(handle):
    calls.append(handle)
    if len(calls) == 11:
        os.kill(os.getpid(), signal.SIGKILL)
    real(handle)
os.fsync = fsync
for piece in writer.missing():
    writer.write(piece, inputs["logits"][piece.view, piece.start : piece.stop])
"""
    command = [sys.executable, "-c", code, tmp_path / "s", tmp_path / "inputs", origin.model_dump_json()]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert len(list((tmp_path / "s").glob(".*.tmp"))) == 1
    again = writer(tmp_path / "s")
    assert len(again.missing()) == 7
    fill(again, logits)
    again.finish()
    assert contents(tmp_path / "s") == contents(store)


def test_killed_between_the_manifest_and_the_end(store: Path, tmp_path: Path, writer: Make) -> None:
    before = contents(store)
    (store / "partial.json").write_text(read_manifest(store).plan.model_dump_json())
    LogitStore.open(store)
    assert verify_store(store) == []
    again = writer(store)
    assert again.missing() == []
    again.finish()
    assert contents(store) == before


def test_a_finished_export_is_left_alone(store: Path, writer: Make) -> None:
    before = contents(store)
    again = writer(store)
    assert again.missing() == []
    assert contents(store) == before
    assert again.finish() == read_manifest(store)
    assert contents(store) == before


@pytest.mark.parametrize("name", ["view0001-rows000000004.safetensors", "indices.safetensors"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "swap"])
def test_a_damaged_store_is_mended(store: Path, writer: Make, logits: Tensor, name: str, damage: str) -> None:
    before = contents(store)
    path = store / name
    if damage == "flip":
        path.write_bytes(before[name][:-1] + bytes([before[name][-1] ^ 1]))
    elif damage == "cut":
        path.write_bytes(before[name][:-1])
    elif damage == "remove":
        path.unlink()
    else:
        path.write_bytes(before["view0002-rows000000004.safetensors"])
    assert verify_store(store)
    again = writer(store)
    assert again.missing() == ([Piece(1, 4, 8)] if name.startswith("view") else [])
    with pytest.raises(StoreError, match="was interrupted"):
        LogitStore.open(store)
    fill(again, logits)
    again.finish()
    assert contents(store) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "float32"}, "format differs: store has 'float16', expected 'float32'"),
        ({"shard_rows": 5}, "shard_rows differs"),
        ({"indices": torch.arange(11)}, "indices differs"),
        ({"indices": torch.arange(10)}, "rows differs: store has 11, expected 10"),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_another_export_is_refused_or_replaced(
    store: Path, writer: Make, logits: Tensor, change: dict[str, Any], message: str, finished: bool
) -> None:
    if not finished:
        (store / "partial.json").write_text(read_manifest(store).plan.model_dump_json())
        (store / "manifest.json").unlink()
    (store / "notes.txt").write_text("mine")
    before = contents(store)
    with pytest.raises(StoreError, match=message):
        writer(store, **change)
    assert contents(store) == before
    again = writer(store, overwrite=True, **change)
    assert sorted(contents(store)) == ["indices.safetensors", "notes.txt", "partial.json"]
    fill(again, logits)
    again.finish()
    assert verify_store(store) == [f"{store / 'notes.txt'}: the manifest does not name this file"]


def test_another_origin_is_refused(store: Path, writer: Make, origin: Origin) -> None:
    with pytest.raises(StoreError, match="teacher differs"):
        writer(store, origin=origin.model_copy(update={"teacher_digest": "x"}))


def test_a_folder_of_other_things_is_refused(tmp_path: Path, writer: Make) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(StoreError, match=r"is not empty and holds no export: thesis\.tex"):
        writer(tmp_path)
    assert list(tmp_path.iterdir()) == [tmp_path / "thesis.tex"]
    writer(tmp_path, overwrite=True)
    assert (tmp_path / "thesis.tex").read_text() == "mine"


def test_a_plan_that_cannot_be_read_is_refused_or_replaced(tmp_path: Path, writer: Make) -> None:
    (tmp_path / "partial.json").write_text("{")
    with pytest.raises(StoreError, match="is not JSON") as caught:
        writer(tmp_path)
    assert "overwrite" in caught.value.cure
    assert len(writer(tmp_path, overwrite=True).missing()) == 12


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_refused(tmp_path: Path, writer: Make, value: float) -> None:
    made = writer(tmp_path / "s")
    logits = torch.zeros(4, 3)
    logits[2, 1] = value
    with pytest.raises(StoreError, match="view 2, rows 4 to 8, hold 1 values that are NaN or infinite"):
        made.write(Piece(2, 4, 8), logits)
    assert len(made.missing()) == 12


@pytest.mark.parametrize("value", [65505.0, -1e6])
def test_values_too_large_for_the_format_are_refused(tmp_path: Path, writer: Make, value: float) -> None:
    logits = torch.zeros(4, 3)
    logits[0, 0] = value
    with pytest.raises(StoreError, match="float16 ends at 65504") as caught:
        writer(tmp_path / "s").write(Piece(0, 0, 4), logits)
    assert 'format = "float32"' in caught.value.cure
    writer(tmp_path / "t", format="float32").write(Piece(0, 0, 4), logits)
    with pytest.raises(StoreError, match="float32 ends at"):
        writer(tmp_path / "t", format="float32").write(Piece(0, 0, 4), logits.double() * 1e40)


def test_bfloat16_logits_fit(tmp_path: Path, writer: Make) -> None:
    writer(tmp_path / "s").write(Piece(0, 0, 4), torch.ones(4, 3, dtype=torch.bfloat16, requires_grad=True))


@pytest.mark.parametrize(
    ("piece", "logits"),
    [
        (Piece(0, 0, 4), torch.zeros(4, 2)),
        (Piece(0, 0, 4), torch.zeros(3, 3)),
        (Piece(0, 0, 4), torch.zeros(4, 3, dtype=torch.int64)),
        (Piece(4, 0, 4), torch.zeros(4, 3)),
        (Piece(0, 1, 5), torch.zeros(4, 3)),
        (Piece(0, 8, 12), torch.zeros(4, 3)),
        (Piece(0, 12, 16), torch.zeros(4, 3)),
        (Piece(0, -4, 0), torch.zeros(4, 3)),
    ],
)
def test_wrong_pieces_are_refused(tmp_path: Path, writer: Make, piece: Piece, logits: Tensor) -> None:
    with pytest.raises(ValueError, match=r"piece|logits"):
        writer(tmp_path / "s").write(piece, logits)


def test_an_unfinished_export_cannot_be_finished(tmp_path: Path, writer: Make, logits: Tensor) -> None:
    made = writer(tmp_path / "s")
    fill(made, logits, 11)
    with pytest.raises(StoreError, match="not finished: 1 shards"):
        made.finish()


@pytest.mark.parametrize(
    "indices",
    [torch.tensor([1, 1]), torch.tensor([-1, 0]), torch.tensor([0.0]), torch.zeros(0, dtype=torch.int64)],
)
def test_wrong_indices_are_refused(tmp_path: Path, writer: Make, indices: Tensor) -> None:
    with pytest.raises(ValueError, match="ind"):
        writer(tmp_path / "s", indices=indices)


def test_wrong_numbers_of_classes_and_views_are_refused(tmp_path: Path, writer: Make) -> None:
    with pytest.raises(StoreError, match="the teacher has 10 outputs, the data set has 3 classes"):
        writer(tmp_path / "s", classes=10)
    with pytest.raises(ValueError, match="views"):
        writer(tmp_path / "s", views=1)


def test_a_file_in_the_way(tmp_path: Path, writer: Make) -> None:
    (tmp_path / "s").write_text("mine")
    with pytest.raises(StoreError, match="used as a folder"):
        writer(tmp_path / "s")
