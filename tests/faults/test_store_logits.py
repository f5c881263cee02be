"""Stores of logits that are damaged, or made to deceive: always a `StoreError`, never a crash, never a wrong row."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from distill.errors import StoreError
from distill.store.atomic import sha256_of
from distill.store.logits import LogitStore
from distill.store.manifest import shard_name
from distill.store.origin import Origin
from distill.store.shards import write_shard
from distill.store.sound import verify_store
from distill.store.tensors import write_tensors
from distill.store.writer import LogitWriter

SHARD = "view0001-rows000000004.safetensors"
INDICES = torch.tensor([9, 4, 0, 7, 2, 5])


def export(folder: Path) -> LogitWriter:
    origin = Origin(
        teacher_digest="t",
        recipe_digest="r",
        data_source="digits",
        data_fingerprint="d",
        given_labels_sha256="0" * 64,
        label_rule="onehot",
        class_names=("a", "b"),
        views={"flip": True},
        view_count=2,
        view_seed=0,
        mean=(0.5,),
        std=(0.5,),
    )
    writer = LogitWriter(folder, origin=origin, indices=INDICES, classes=2, views=2, format="float32", shard_rows=4)
    for piece in writer.missing():
        writer.write(piece, torch.full((piece.stop - piece.start, 2), float(piece.view)))
    return writer


@pytest.fixture
def store(tmp_path: Path) -> Path:
    export(tmp_path / "s").finish()
    return tmp_path / "s"


def refused(folder: Path, message: str = ".") -> None:
    with pytest.raises(StoreError, match=message) as caught:
        LogitStore.open(folder)
    assert str(folder) in caught.value.message
    assert verify_store(folder)


@pytest.mark.parametrize("name", [SHARD, "indices.safetensors", "manifest.json"])
@pytest.mark.parametrize("size", [0, 1, 7, 8, 100, -1])
def test_a_file_cut_short(store: Path, name: str, size: int) -> None:
    content = (store / name).read_bytes()
    (store / name).write_bytes(content[:size])
    refused(store)


@pytest.mark.parametrize("name", [SHARD, "indices.safetensors", "manifest.json"])
def test_a_file_that_is_missing_or_is_no_file(store: Path, name: str) -> None:
    (store / name).unlink()
    refused(store)
    (store / name).mkdir()
    refused(store)
    (store / name).rmdir()
    os.mkfifo(store / name)
    refused(store)
    (store / name).unlink()
    (store / name).symlink_to(store / "nowhere")
    refused(store)


def test_files_that_changed_places(store: Path) -> None:
    other = store / "view0000-rows000000004.safetensors"
    (store / SHARD).rename(store / "x")
    other.rename(store / SHARD)
    (store / "x").rename(other)
    refused(store, "sha256")
    # Even unverified, a shard says itself which rows it holds.
    with pytest.raises(StoreError, match="belongs to another store, or to other rows"):
        LogitStore.open(store, verify=False).rows(INDICES, torch.ones_like(INDICES))


def change(store: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads((store / "manifest.json").read_text())
    edit(content)
    # As `write_json` does, but NaN goes through.
    (store / "manifest.json").write_text(json.dumps(content, sort_keys=True, indent=2, ensure_ascii=False) + "\n")


def shard(edit: dict[str, Any], number: int = 1) -> Callable[[dict[str, Any]], Any]:
    return lambda manifest: manifest["shards"][number].update(edit)


def digest(name: str) -> dict[str, Any]:
    files = {"manifest": "manifest.json", "tables": "labels.safetensors"}
    return {"file": files.get(name, name), "sha256": "0" * 64, "bytes": 100}


EDITS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "path traversal": shard({"file": "../s/" + SHARD}),
    "absolute path": shard({"file": "/etc/passwd"}),
    "dots": shard({"file": ".."}),
    "windows separator": shard({"file": "..\\" + SHARD}),
    "null byte": shard({"file": SHARD + "\0"}),
    "newline": shard({"file": SHARD + "\n"}),
    "empty name": shard({"file": ""}),
    "long name": shard({"file": "a" * 10_000}),
    "the manifest as a shard": shard({"file": "manifest.json"}),
    "the same file twice": shard({"file": "view0000-rows000000000.safetensors"}),
    "indices elsewhere": lambda m: m["indices"].update(file="../indices.safetensors"),
    "indices in a shard": lambda m: m["indices"].update(file=SHARD),
    "negative start": shard({"start": -4}),
    "overlap": shard({"start": 3}),
    "gap": shard({"start": 5}),
    "backwards": shard({"start": 6, "stop": 4}),
    "past the end": shard({"stop": 8}),
    "wrong view": shard({"view": 1}),
    "negative view": shard({"view": -1}),
    "fewer bytes": shard({"bytes": 10}),
    "more bytes": shard({"bytes": 10**9}),
    "negative bytes": shard({"bytes": -1}),
    "short digest": shard({"sha256": "abc"}),
    "upper-case digest": shard({"sha256": "A" * 64}),
    "wrong digest": shard({"sha256": "a" * 64}),
    "extra field": shard({"extra": 1}),
    "a shard missing": lambda m: m["shards"].pop(),
    "a shard twice": lambda m: m["shards"].append(m["shards"][0]),
    "shards out of order": lambda m: m["shards"].reverse(),
    "no shards": lambda m: m.update(shards=[]),
    "shards as an object": lambda m: m.update(shards={}),
    "shards as numbers": lambda m: m.update(shards=[1, 2, 3, 4]),
    "no rows": lambda m: m.update(rows=0),
    "negative rows": lambda m: m.update(rows=-6),
    "huge rows": lambda m: m.update(rows=2**40),
    "absurd rows": lambda m: m.update(rows=10**30),
    "rows as text": lambda m: m.update(rows="6"),
    "rows as a float": lambda m: m.update(rows=6.0),
    "rows as a truth": lambda m: m.update(rows=True),
    "no shard rows": lambda m: m.update(shard_rows=0),
    "one shard row": lambda m: m.update(shard_rows=1),
    "huge shard rows": lambda m: m.update(shard_rows=2**70),
    "no views": lambda m: m["origin"].update(view_count=0),
    "many views": lambda m: m["origin"].update(view_count=2**20),
    "absurd views": lambda m: m["origin"].update(view_count=2**60),
    "other classes": lambda m: m.update(classes=3),
    "no class": lambda m: m["origin"].update(class_names=[]),
    "class names as text": lambda m: m["origin"].update(class_names="ab"),
    "class names as numbers": lambda m: m["origin"].update(class_names=[1, 2]),
    "mean is NaN": lambda m: m["origin"].update(mean=[float("nan")]),
    "another type": lambda m: m.update(format="float16"),
    "a smaller type": lambda m: m.update(format="int8"),
    "unknown type": lambda m: m.update(format="int4"),
    "top-k of nothing": lambda m: m.update(format="topk"),
    "top-k of none": lambda m: m.update(format="topk", k=0),
    "top-k of more than there is": lambda m: m.update(format="topk", k=3),
    "k without top-k": lambda m: m.update(k=1),
    "k as text": lambda m: m.update(k="1"),
    "features that are not there": lambda m: m.update(features=2),
    "no features": lambda m: m.update(features=0),
    "feature shards that are not there": lambda m: m.update(feature_shards=m["shards"]),
    "logits as features": lambda m: m.update(features=2, feature_shards=m["shards"]),
    "labels that are not there": lambda m: m.update(labels={name: digest(name) for name in ("manifest", "tables")}),
    "labels elsewhere": lambda m: m.update(labels={"manifest": digest("../m"), "tables": digest("tables")}),
    "half of the labels": lambda m: m.update(labels={"tables": digest("tables")}),
    "labels field missing": lambda m: m.pop("labels"),
    "old version": lambda m: m.update(schema_version=0),
    "version as text": lambda m: m.update(schema_version="2"),
    "version as a float": lambda m: m.update(schema_version=2.0),
    "version as a truth": lambda m: m.update(schema_version=True),
    "unknown field": lambda m: m.update(unknown=1),
    "field missing": lambda m: m.pop("origin"),
    "null": lambda m: m.update(origin=None),
    "another plan": lambda m: m["origin"].update(view_seed=1),
    "deep views": lambda m: m["origin"].update(views={"a": json.loads("[" * 100 + "]" * 100)}),
    "deeper views": lambda m: m["origin"].update(views={"a": json.loads("[" * 300 + "]" * 300)}),
}


@pytest.mark.parametrize("name", EDITS)
def test_a_manifest_made_to_deceive(store: Path, name: str) -> None:
    change(store, EDITS[name])
    refused(store)


@pytest.mark.parametrize("name", ["another plan", "deep views"])
def test_what_was_not_verified_is_caught_when_it_is_read(store: Path, name: str) -> None:
    change(store, EDITS[name])
    opened = LogitStore.open(store, verify=False)
    with pytest.raises(StoreError, match="belongs to another store"):
        opened.rows(INDICES, torch.zeros_like(INDICES))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"[]",
        b"3",
        b'"manifest"',
        b"{}",
        b'{"schema_version": 1}',
        b'{"schema_version": 1e400}',
        b'{"schema_version": 99999999999999999999999999}',
        b"[" * 10**6,
        b'{"a":' * 10**5,
        b'{"rows": 1, "rows": 2}',
        b"\x80\x04}.",
        b"\xef\xbb\xbf{}",
        b"\0" * 1000,
    ],
)
def test_a_manifest_that_is_none(store: Path, content: bytes) -> None:
    (store / "manifest.json").write_bytes(content)
    refused(store)
    (store / "partial.json").write_bytes(content)
    (store / "manifest.json").unlink()
    with pytest.raises(StoreError):
        export(store)


def forge(store: Path, name: str, write: Callable[[Path], Any]) -> None:
    """Replaces a file and makes the manifest agree."""
    write(store / name)
    digest = {"sha256": sha256_of(store / name), "bytes": (store / name).stat().st_size}

    def edit(manifest: dict[str, Any]) -> None:
        for file in (manifest["indices"], *manifest["shards"]):
            if file["file"] == name:
                file.update(digest)

    change(store, edit)


@pytest.mark.parametrize(
    "indices",
    [
        INDICES.int(),
        INDICES.float(),
        INDICES[:5],
        INDICES[:, None],
        INDICES * 0,
        -INDICES,
        torch.cat([INDICES, INDICES]),
    ],
    ids=lambda t: f"{t.dtype} {tuple(t.shape)}",
)
def test_forged_indices(store: Path, indices: torch.Tensor) -> None:
    forge(store, "indices.safetensors", lambda path: write_tensors(path, {"indices": indices}))
    refused(store)


def test_other_names_in_the_indices(store: Path) -> None:
    forge(store, "indices.safetensors", lambda path: write_tensors(path, {"indices": INDICES, "more": INDICES}))
    refused(store, "holds")


def test_forged_values_are_caught_when_they_are_read(store: Path) -> None:
    manifest = LogitStore.open(store).manifest
    piece = manifest.shards[3].piece
    bad = torch.zeros(2, 2)
    bad[1, 1] = float("nan")
    parts = {"logits": bad}
    forge(store, shard_name(piece), lambda path: write_shard(store, manifest.digest(), piece, "logits", parts))
    assert verify_store(store) == [f"{store / SHARD}: holds values that are NaN or infinite"]
    opened = LogitStore.open(store)
    opened.rows(INDICES[:4], torch.ones(4, dtype=torch.int64))
    with pytest.raises(StoreError, match="NaN"):
        opened.rows(INDICES, torch.ones_like(INDICES))


@pytest.mark.parametrize(
    "values",
    [torch.zeros(2, 2).half(), torch.zeros(2, 3), torch.zeros(4), torch.zeros(2, 2, dtype=torch.int32)],
    ids=str,
)
def test_forged_shapes_are_caught(store: Path, values: torch.Tensor) -> None:
    manifest = LogitStore.open(store).manifest
    piece = manifest.shards[3].piece
    parts = {"logits": values}
    forge(store, SHARD, lambda path: write_shard(store, manifest.digest(), piece, "logits", parts))
    refused(store)
    with pytest.raises(StoreError):
        LogitStore.open(store, verify=False).rows(INDICES, torch.ones_like(INDICES))


def test_features_in_the_place_of_logits(store: Path) -> None:
    """The right digest and the right plan; what it holds is something else."""
    manifest = LogitStore.open(store).manifest
    piece, parts = manifest.shards[3].piece, {"logits": torch.zeros(2, 2)}

    def write(path: Path) -> None:
        made = write_shard(store, manifest.digest(), piece, "features", parts)
        (store / made.file).rename(path)

    forge(store, SHARD, write)
    refused(store, "belongs to another store, or to other rows")


def test_a_pickle_by_another_name(store: Path, tmp_path: Path) -> None:
    torch.save({"logits": torch.zeros(2, 2)}, tmp_path / "p")
    forge(store, SHARD, lambda path: path.write_bytes((tmp_path / "p").read_bytes()[:300]))
    refused(store, "is not a whole safetensors file")


def test_a_shard_that_is_gone_when_it_is_read(store: Path) -> None:
    opened = LogitStore.open(store, verify=False)
    (store / SHARD).unlink()
    with pytest.raises(StoreError, match="no such file"):
        opened.rows(INDICES, torch.ones_like(INDICES))
