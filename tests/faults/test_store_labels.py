"""Learned labels that are damaged or made to deceive."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from distill.errors import StoreError
from distill.store.labels import LABELS, LearnedLabels, read_labels, verify_labels, write_labels
from distill.store.tensors import read_tensors, write_tensors


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    table = torch.eye(3).mul(0.7).add(0.1)[[0, 1, 2, 1]]
    labels = LearnedLabels(
        kind="instance",
        labels=table,
        averaged=table,
        indices=torch.tensor([5, 2, 9, 0]),
        given=torch.tensor([0, 1, 2, 0]),
        touched=torch.ones(4, dtype=torch.bool),
        trajectory={2: table.half()},
    )
    write_labels(tmp_path / "labels", labels, {"teacher": "x"})
    return tmp_path / "labels"


def refused(folder: Path, message: str = ".") -> None:
    with pytest.raises(StoreError, match=message):
        read_labels(folder)
    assert verify_labels(folder)


@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_one_flipped_bit_in_the_tables_is_found(folder: Path, where: float, bit: int) -> None:
    path = folder / LABELS
    content = path.read_bytes()
    at = int(where * len(content))
    path.write_bytes(content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :])
    try:
        refused(folder, "sha256")
    finally:
        path.write_bytes(content)


@pytest.mark.parametrize("size", [0, 8, 100, -1])
def test_tables_cut_short(folder: Path, size: int) -> None:
    (folder / LABELS).write_bytes((folder / LABELS).read_bytes()[:size])
    refused(folder, "the manifest says")


def test_tables_missing(folder: Path) -> None:
    (folder / LABELS).unlink()
    refused(folder, "no such file")


EDITS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "path traversal": lambda m: m["labels"].update(file="../labels/labels.safetensors"),
    "another file": lambda m: m["labels"].update(file="manifest.json"),
    "wrong digest": lambda m: m["labels"].update(sha256="0" * 64),
    "another kind": lambda m: m.update(kind="class"),
    "unknown kind": lambda m: m.update(kind="pair"),
    "rows": lambda m: m.update(rows=5),
    "negative rows": lambda m: m.update(rows=-4),
    "classes": lambda m: m.update(classes=4),
    "another epoch": lambda m: m.update(trajectory=[3]),
    "an epoch missing": lambda m: m.update(trajectory=[]),
    "an epoch twice": lambda m: m.update(trajectory=[2, 2]),
    "an epoch as text": lambda m: m.update(trajectory=["2"]),
    "unknown field": lambda m: m.update(more=1),
    "no origin": lambda m: m.pop("origin"),
    "a later version": lambda m: m.update(schema_version=2),
    "NaN": lambda m: m.update(origin=float("nan")),
    "deep": lambda m: m.update(origin=json.loads("[" * 300 + "]" * 300)),
}


@pytest.mark.parametrize("name", EDITS)
def test_a_manifest_made_to_deceive(folder: Path, name: str) -> None:
    content = json.loads((folder / "manifest.json").read_text())
    EDITS[name](content)
    (folder / "manifest.json").write_text(json.dumps(content))
    refused(folder)


@pytest.mark.parametrize("content", [b"", b"null", b"[]", b"{}", b"[" * 10**6, b"\x80\x04}."])
def test_a_manifest_that_is_none(folder: Path, content: bytes) -> None:
    (folder / "manifest.json").write_bytes(content)
    refused(folder)


FORGERIES: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "nan": lambda t: t["labels"].fill_(float("nan")),
    "infinity": lambda t: t["averaged"][0].fill_(float("inf")),
    "no probabilities": lambda t: t["labels"].mul_(2),
    "nan in the trajectory": lambda t: t["trajectory.2"].fill_(float("nan")),
    "given outside": lambda t: t["given"].fill_(3),
    "index twice": lambda t: t["indices"].fill_(3),
    "another shape": lambda t: t.update(averaged=t["averaged"][:2].contiguous()),
    "another type": lambda t: t.update(labels=t["labels"].half()),
    "a table missing": lambda t: t.pop("averaged"),
    "one more table": lambda t: t.update(more=torch.zeros(1)),
    "no rows": lambda t: t.update({name: value[:0] for name, value in t.items()}),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_forged_tables(folder: Path, name: str) -> None:
    tensors = read_tensors(folder / LABELS)
    FORGERIES[name](tensors)
    content = json.loads((folder / "manifest.json").read_text())
    content["labels"]["sha256"] = write_tensors(folder / LABELS, tensors)
    content["labels"]["bytes"] = (folder / LABELS).stat().st_size
    (folder / "manifest.json").write_text(json.dumps(content))
    refused(folder)
