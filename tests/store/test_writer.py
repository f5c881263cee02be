from __future__ import annotations

import dataclasses
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from distill.errors import StoreError
from distill.store.json_files import write_json
from distill.store.labels import write_labels
from distill.store.logits import LogitStore
from distill.store.manifest import Piece, read_manifest
from distill.store.origin import Origin
from distill.store.sound import verify_store
from distill.store.writer import LogitWriter
from tests.store import cases
from tests.store.cases import contents, fill

Make = Callable[..., LogitWriter]


@pytest.mark.parametrize("kind", cases.KINDS)
def test_two_exports_are_byte_identical(tmp_path: Path, kind: str) -> None:
    """Whatever the order of the shards, the division into batches, and the tensors' strides."""
    first = cases.export(tmp_path / "a", **cases.KINDS[kind])
    second = cases.begin(tmp_path / "b", **cases.KINDS[kind])
    beside = {"features": cases.features(), "maps": cases.maps()}
    for piece in reversed(second.missing()):
        batches = []
        for start in range(piece.start, piece.stop, 3):
            rows = slice(start, min(start + 3, piece.stop))
            stored = (x[piece.view, rows].double() if h in second.plan.holdings else None for h, x in beside.items())
            batches.append((cases.logits()[piece.view, rows].T.contiguous().T, *stored))
        second.write_batches(piece, iter(batches))
    second.finish()
    assert contents(first) == contents(tmp_path / "b")


def test_the_files_of_a_store(tmp_path: Path) -> None:
    shards = [f"view000{view}-rows00000000{start}.safetensors" for view in range(4) for start in (0, 4, 8)]
    assert sorted(contents(cases.export(tmp_path / "s", features=cases.WIDTH, labels=True))) == [
        *(f"features-{name}" for name in shards),
        "indices.safetensors",
        "labels/labels.safetensors",
        "labels/manifest.json",
        "manifest.json",
        *shards,
    ]


def test_labels_are_links_where_they_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    linked = cases.export(tmp_path / "a", labels=True)
    assert (linked / "labels/labels.safetensors").samefile(tmp_path / "a-teacher/labels/labels.safetensors")

    def other_disk(*_: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "link", other_disk)
    copied = cases.export(tmp_path / "b", labels=True)
    assert not (copied / "labels/labels.safetensors").samefile(tmp_path / "b-teacher/labels/labels.safetensors")
    assert contents(linked) == contents(copied)


def test_damaged_labels_are_not_carried(tmp_path: Path) -> None:
    cases.begin(tmp_path / "s", labels=True)
    path = tmp_path / "s-teacher/labels/labels.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StoreError, match=r"labels\.safetensors"):
        cases.begin(tmp_path / "s", labels=True)


def test_other_labels_are_another_export(tmp_path: Path) -> None:
    cases.export(tmp_path / "s", labels=True)
    other = dataclasses.replace(cases.learned(), given=torch.zeros(cases.ROWS, dtype=torch.int64))
    write_labels(tmp_path / "s-teacher/labels", other, {"teacher_digest": "t"})
    with pytest.raises(StoreError, match="labels differs"):
        cases.begin(tmp_path / "s", labels=True)
    assert LogitStore.open(tmp_path / "s").labels().given.max() == 2
    writer = cases.begin(tmp_path / "s", labels=True, overwrite=True)
    fill(writer)
    writer.finish()
    assert LogitStore.open(tmp_path / "s").labels().given.max() == 0
    assert verify_store(tmp_path / "s") == []


@pytest.mark.parametrize("kind", ["float16", "everything"])
@pytest.mark.parametrize("done", [0, 1, 5, 12])
def test_an_abandoned_export_continues(tmp_path: Path, kind: str, done: int) -> None:
    whole = cases.export(tmp_path / "whole", **cases.KINDS[kind])
    writer = lambda folder: cases.begin(folder, **cases.KINDS[kind])  # noqa: E731
    fill(writer(tmp_path / "s"), done)
    with pytest.raises(StoreError, match="was interrupted"):
        LogitStore.open(tmp_path / "s")
    assert verify_store(tmp_path / "s") == [f"{tmp_path / 's'}: the export was interrupted"]
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "s").glob("*view*")}
    assert len(kept) == done * (3 if kind == "everything" else 1)
    again = writer(tmp_path / "s")
    assert len(again.missing()) == 12 - done
    fill(again)
    again.finish()
    assert contents(tmp_path / "s") == contents(whole)
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())


def test_killed_between_the_manifest_and_the_end(store: Path, tmp_path: Path, writer: Make) -> None:
    before = contents(store)
    write_json(store / "partial.json", read_manifest(store).plan.model_dump(mode="json"))
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


DAMAGED = [
    "view0001-rows000000004.safetensors",
    "features-view0001-rows000000004.safetensors",
    "maps-view0001-rows000000004.safetensors",
    "indices.safetensors",
    "labels/labels.safetensors",
    "labels/manifest.json",
]


@pytest.mark.parametrize("name", DAMAGED)
@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "swap"])
def test_a_damaged_store_is_mended(tmp_path: Path, name: str, damage: str) -> None:
    kind = cases.KINDS["everything"]
    store = cases.export(tmp_path / "s", **kind)
    before = contents(store)
    path = store / name
    if damage == "swap":
        other = path.with_name(name.replace("view0001", "view0002")) if "view" in name else store / "manifest.json"
        path.unlink()
        path.write_bytes(other.read_bytes())
    elif damage != "remove":
        # In a new file: the teacher's own labels are the same one.
        path.unlink()
        path.write_bytes(before[name][:-1] + (bytes([before[name][-1] ^ 1]) if damage == "flip" else b""))
    else:
        path.unlink()
    assert verify_store(store)
    again = cases.begin(store, **kind)
    assert again.missing() == ([Piece(1, 4, 8)] if "view" in name else [])
    with pytest.raises(StoreError, match="was interrupted"):
        LogitStore.open(store)
    fill(again)
    again.finish()
    assert contents(store) == before
    assert verify_store(store) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "float32"}, "format differs: store has 'float16', expected 'float32'"),
        ({"shard_rows": 5}, "shard_rows differs"),
        ({"format": "topk", "k": 2}, "k differs: store has None, expected 2"),
        ({"features": 5}, "features differs: store has None, expected 5"),
        ({"indices": torch.arange(11)}, "indices differs"),
        ({"indices": torch.arange(10)}, "rows differs: store has 11, expected 10"),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_another_export_is_refused_or_replaced(
    store: Path, writer: Make, change: dict[str, Any], message: str, finished: bool
) -> None:
    if not finished:
        write_json(store / "partial.json", read_manifest(store).plan.model_dump(mode="json"))
        (store / "manifest.json").unlink()
    (store / "notes.txt").write_text("mine")
    before = contents(store)
    with pytest.raises(StoreError, match=message):
        writer(store, **change)
    assert contents(store) == before
    again = writer(store, overwrite=True, **change)
    assert sorted(contents(store)) == ["indices.safetensors", "notes.txt", "partial.json"]
    fill(again)
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
    assert caught.value.cure.startswith(f"Delete {tmp_path}")
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


def test_an_unfinished_export_cannot_be_finished(tmp_path: Path, writer: Make) -> None:
    made = writer(tmp_path / "s")
    fill(made, 11)
    with pytest.raises(StoreError, match="not finished: 1 pieces"):
        made.finish()


@pytest.mark.parametrize(
    "indices",
    [torch.tensor([1, 1]), torch.tensor([-1, 0]), torch.tensor([0.0]), torch.zeros(0, dtype=torch.int64)],
)
def test_wrong_indices_are_refused(tmp_path: Path, writer: Make, indices: Tensor) -> None:
    with pytest.raises(ValueError, match="ind"):
        writer(tmp_path / "s", indices=indices)


@pytest.mark.parametrize(
    ("logits", "features"),
    [
        (torch.zeros(4, 3), None),
        (torch.zeros(4, 3), torch.zeros(4, 6)),
        (torch.zeros(4, 3), torch.zeros(3, 5)),
        (torch.zeros(4, 3), torch.zeros(4, 5, dtype=torch.int8)),
        (torch.zeros(5, 3), torch.zeros(5, 5)),
    ],
)
def test_wrong_features_are_refused(tmp_path: Path, logits: Tensor, features: Tensor | None) -> None:
    made = cases.begin(tmp_path / "s", features=cases.WIDTH)
    with pytest.raises(ValueError, match=r"features|logits"):
        made.write(Piece(0, 0, 4), logits, features)
    with pytest.raises(ValueError, match="given, but not stored"):
        cases.begin(tmp_path / "t").write(Piece(0, 0, 4), logits[:4], torch.zeros(4, 5))


def test_features_that_do_not_fit_float16_are_refused(tmp_path: Path) -> None:
    made = cases.begin(tmp_path / "s", features=cases.WIDTH)
    with pytest.raises(StoreError, match=r"features of view 0.*float16 ends at 65504") as caught:
        made.write(Piece(0, 0, 4), torch.zeros(4, 3), torch.full((4, 5), 7e4))
    assert "features = false" in caught.value.cure
    assert len(made.missing()) == 12


@pytest.mark.parametrize(("changes", "largest"), [({"format": "int8"}, 2e38), ({"format": "topk", "k": 2}, 7e4)])
def test_logits_beyond_a_format_are_refused(tmp_path: Path, changes: dict[str, Any], largest: float) -> None:
    with pytest.raises(StoreError, match=f"{changes['format']} ends at"):
        cases.begin(tmp_path / "s", **changes).write(Piece(0, 0, 4), torch.full((4, 3), -largest))


def test_batches_that_end_early_write_nothing(tmp_path: Path, writer: Make) -> None:
    made = writer(tmp_path / "s")
    with pytest.raises(ValueError, match="3 rows of logits, expected 4"):
        made.write_batches(Piece(0, 0, 4), [(torch.zeros(1, 3), None), (torch.zeros(2, 3), None)])
    assert len(made.missing()) == 12
    assert not list((tmp_path / "s").glob("view*"))


@pytest.mark.parametrize("k", [4, 1000])
def test_more_kept_than_classes_is_refused(tmp_path: Path, writer: Make, k: int) -> None:
    with pytest.raises(StoreError, match=f"k is {k}, but there are 3 classes"):
        writer(tmp_path / "s", format="topk", k=k)


@pytest.mark.parametrize("changes", [{"format": "topk"}, {"k": 2}])
def test_k_belongs_to_top_k(tmp_path: Path, writer: Make, changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="k is"):
        writer(tmp_path / "s", **changes)


def test_wrong_numbers_of_classes_and_views_are_refused(tmp_path: Path, writer: Make) -> None:
    with pytest.raises(StoreError, match="the teacher has 10 outputs, the data set has 3 classes"):
        writer(tmp_path / "s", classes=10)
    with pytest.raises(ValueError, match="views"):
        writer(tmp_path / "s", views=1)


def test_a_file_in_the_way(tmp_path: Path, writer: Make) -> None:
    (tmp_path / "s").write_text("mine")
    with pytest.raises(StoreError, match="used as a folder"):
        writer(tmp_path / "s")
