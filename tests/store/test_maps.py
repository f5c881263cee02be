"""Attention maps in a store. The guarantees that they share with logits and features are tested where those are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from distill.errors import StoreError
from distill.store.json_files import read_json, write_json
from distill.store.logits import LogitStore
from distill.store.manifest import read_manifest
from distill.store.sound import verify_store
from tests.store import cases
from tests.store.cases import SIZES

# sha256 of the plans as they were before a store could hold maps, with versions {"distill": "0"}.
DIGESTS = {
    "float16": "f9b63e3a117ae155b2e9f0cd2a5b558d0be7cacf33f5d7ea919c75efb41a5eb3",
    "features": "50a2740432b4585c9761a468591f026144abcb633a8e9f65be882acb88056962",
}


@pytest.mark.parametrize("mapped", [2**28, 0])
def test_maps_come_back_stage_by_stage(tmp_path: Path, mapped: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distill.store.logits._MAPPED", mapped)
    store = LogitStore.open(cases.export(tmp_path / "s", maps=SIZES))
    assert store.manifest.maps == SIZES
    positions = torch.tensor([3, 0, 10, 3])
    views = torch.tensor([1, 3, 0, 2])
    found = store.maps(cases.INDICES[positions], views)
    assert [(one.shape, one.dtype) for one in found] == [((4, 6), torch.float32), ((4, 2), torch.float32)]
    assert torch.equal(torch.cat(found, 1), cases.maps()[views, positions])
    assert torch.equal(store.rows(cases.INDICES[positions], views), cases.logits()[views, positions])


def test_a_store_without_maps_says_so(store: Path) -> None:
    with pytest.raises(StoreError, match="holds no maps") as caught:
        LogitStore.open(store).maps(cases.INDICES, torch.zeros_like(cases.INDICES))
    assert "[export] maps = true" in caught.value.cure


@pytest.mark.parametrize("kind", DIGESTS)
def test_a_store_without_maps_is_what_it_was_before_there_were_any(tmp_path: Path, kind: str) -> None:
    folder = cases.export(tmp_path / "s", **cases.KINDS[kind])
    plan = read_manifest(folder).plan
    assert plan.model_copy(update={"versions": {"distill": "0"}}).digest() == DIGESTS[kind]
    assert not {"maps", "map_shards"} & json.loads((folder / "manifest.json").read_text()).keys()


# What a manifest of a store without maps, and of one with them, may not say.
LIES: dict[str, tuple[str, dict[str, Any]]] = {
    "no maps, said": ("float16", {"maps": None}),
    "no shards of maps, said": ("float16", {"map_shards": []}),
    "maps that are not there": ("float16", {"maps": [[3, 2]]}),
    "no map in the list": ("maps", {"maps": []}),
    "another size": ("maps", {"maps": [[3, 3], [1, 2]]}),
    "the same size in another shape": ("maps", {"maps": [[2, 3], [1, 2]]}),
    "a map without pixels": ("maps", {"maps": [[3, 2], [1, 2], [0, 4]]}),
    "a side too few": ("maps", {"maps": [[6], [1, 2]]}),
    "a side as a float": ("maps", {"maps": [[3.0, 2], [1, 2]]}),
    "a side as text": ("maps", {"maps": [["3", 2], [1, 2]]}),
    "a huge map": ("maps", {"maps": [[2**40, 2**40]]}),
    "shards left out": ("maps", {"map_shards": []}),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_manifest_that_deceives_about_maps_is_refused(tmp_path: Path, lie: str) -> None:
    kind, change = LIES[lie]
    folder = cases.export(tmp_path / "s", **cases.KINDS[kind])
    write_json(folder / "manifest.json", read_json(folder / "manifest.json") | change)
    with pytest.raises(StoreError):
        LogitStore.open(folder)
    assert verify_store(folder)


def test_another_division_into_maps_is_another_export(tmp_path: Path) -> None:
    cases.export(tmp_path / "s", maps=SIZES)
    with pytest.raises(StoreError, match="maps differs: store has"):
        cases.begin(tmp_path / "s", maps=((4, 2),))
    again = cases.begin(tmp_path / "s", overwrite=True)
    assert not list((tmp_path / "s").glob("maps-*"))
    cases.fill(again)
    again.finish()
    assert verify_store(tmp_path / "s") == []


@pytest.mark.parametrize("maps", [None, torch.zeros(4, 7), torch.zeros(4, 8, dtype=torch.int64), torch.zeros(3, 8)])
def test_wrong_maps_are_refused(tmp_path: Path, maps: Any) -> None:
    made = cases.begin(tmp_path / "s", maps=SIZES)
    with pytest.raises(ValueError, match="maps are"):
        made.write(made.missing()[0], torch.zeros(4, 3), None, maps)
    assert len(made.missing()) == 12
