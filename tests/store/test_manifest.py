from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from distill.errors import StoreError
from distill.store.json_files import read_json, write_json
from distill.store.logits import LogitStore
from distill.store.manifest import Piece, installed_versions, read_manifest, read_plan, shard_name
from distill.store.origin import Origin, cure, difference
from tests.store import cases


def test_the_same_origin_differs_in_nothing(origin: Origin) -> None:
    assert difference(origin, origin) == []
    assert difference(origin, Origin.model_validate(json.loads(origin.model_dump_json()))) == []


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"class_names": ("dog", "cat", "eel")},
            "class order differs: store has ('cat', 'dog', 'eel'), data set has ('dog', 'cat', 'eel')",
        ),
        (
            {"class_names": ("cat", "dog")},
            "classes differ: store has ('cat', 'dog', 'eel'), data set has ('cat', 'dog')",
        ),
        ({"teacher_digest": "x"}, f"teacher differs: store has '{'t' * 64}', expected 'x'"),
        ({"views": {"crop_padding": 2, "flip": True}}, "views differ: crop_padding: store has 4, expected 2"),
        ({"views": {"crop_padding": 4}}, "views differ: flip: store has True, expected None"),
        ({"view_seed": 8}, "seed of the views differs: store has 7, expected 8"),
        ({"mean": (0.1,)}, "normalisation mean differs: store has (0.5,), expected (0.1,)"),
    ],
)
def test_a_difference_is_a_sentence(origin: Origin, change: dict[str, Any], sentence: str) -> None:
    assert difference(origin.model_copy(update=change), origin) == [sentence]


def test_every_field_has_a_sentence(origin: Origin) -> None:
    changes = {"views": {"other": 1}, "class_names": ("x",), "decoders": {"Pillow": "11"}}
    other = origin.model_copy(update={name: changes.get(name, "other") for name in Origin.model_fields})
    decoded = origin.model_copy(update={"decoders": {"Pillow": "12"}})
    assert len(difference(decoded, other)) == len(Origin.model_fields)


HERE = {"Pillow": "13.0.0", "libjpeg-turbo": "3.2.0"}


@pytest.mark.parametrize(
    ("stored", "changes", "made_with"),
    [
        (
            {"Pillow": "12.1.0", "libjpeg-turbo": "3.1.2"},
            "Pillow: store has '12.1.0', here is '13.0.0', libjpeg-turbo: store has '3.1.2', here is '3.2.0'",
            "pip install pillow==12.1.0",
        ),
        (
            {"Pillow": "13.0.0", "libjpeg-turbo": "none"},
            "libjpeg-turbo: store has 'none', here is '3.2.0'",
            "a Pillow built with libjpeg-turbo none",
        ),
    ],
)
def test_other_decoders(origin: Origin, stored: dict[str, str], changes: str, made_with: str) -> None:
    here, there = (origin.model_copy(update={"decoders": decoders}) for decoders in (HERE, stored))
    assert difference(here, there) == [f"decoders of the images differ, so their pixels may: {changes}"]
    assert cure(here, there).startswith("Export it again")
    assert cure(here, there).endswith(f"install what it was made with: {made_with}")
    another = there.model_copy(update={"view_seed": 8})
    for one, other in ((here, another), (origin, another), (here, here.model_copy(update={"view_seed": 8}))):
        assert "made for it" in cure(one, other)


def test_decoders_that_were_not_noted_do_not_count(origin: Origin) -> None:
    """Stores that are older than the note, and versions that one side alone knows."""
    here = origin.model_copy(update={"decoders": HERE})
    for decoders in (None, {}, {"Pillow": "13.0.0", "another": "1"}):
        there = origin.model_copy(update={"decoders": decoders})
        assert difference(here, there) == difference(there, here) == []


def test_a_store_without_decoders_is_written_as_before(tmp_path: Path, origin: Origin) -> None:
    cases.export(tmp_path / "old")
    assert "decoders" not in read_json(tmp_path / "old" / "manifest.json")["origin"]
    LogitStore.open(tmp_path / "old", expect=origin.model_copy(update={"decoders": HERE}))
    cases.export(tmp_path / "new", origin=origin.model_copy(update={"decoders": HERE}))
    assert read_manifest(tmp_path / "new").origin.decoders == HERE
    LogitStore.open(tmp_path / "new", expect=origin)
    with pytest.raises(StoreError, match="decoders of the images differ"):
        LogitStore.open(tmp_path / "new", expect=origin.model_copy(update={"decoders": {"Pillow": "14"}}))
    with pytest.raises(StoreError, match="it does not say what decoded its images"):
        cases.begin(tmp_path / "old", origin=origin.model_copy(update={"decoders": HERE}))


def test_long_class_lists_name_the_first_difference(origin: Origin) -> None:
    names = tuple(f"class {c}" for c in range(1000))
    swapped = (*names[:500], names[501], names[500], *names[502:])
    store, data = (origin.model_copy(update={"class_names": value}) for value in (names, swapped))
    assert difference(data, store) == [
        "class order differs: class 500 is 'class 500' in the store, 'class 501' in the data set"
    ]
    fewer = origin.model_copy(update={"class_names": names[:900]})
    assert difference(fewer, store) == ["classes differ: store has 1000, data set has 900"]


def test_the_manifest_comes_back(store: Path, origin: Origin) -> None:
    manifest = read_manifest(store)
    assert manifest.origin == origin
    assert manifest.versions == {**installed_versions(), "device": "cpu"}
    assert manifest.versions.keys() >= {"torch", "timm", "safetensors", "distill"}
    assert [shard.piece for shard in manifest.shards] == list(manifest.pieces())
    assert read_plan(store) == manifest.plan
    assert manifest.digest() == manifest.plan.digest()


def test_pieces_cover_every_row_once(store: Path) -> None:
    plan = read_manifest(store).plan
    rows = [(piece.view, row) for piece in plan.pieces() for row in range(piece.start, piece.stop)]
    assert rows == [(view, row) for view in range(plan.origin.view_count) for row in range(plan.rows)]


@pytest.mark.parametrize("holds", ["logits", "features"])
def test_names_sort_in_order(holds: Any) -> None:
    pieces = [Piece(view, start, start + 1) for view in (0, 9, 10, 9999) for start in (0, 5, 65536, 10**8)]
    assert sorted(pieces) == sorted(pieces, key=lambda piece: shard_name(piece, holds))


def test_where_there_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is no store of logits"):
        read_manifest(tmp_path / "nowhere")
    assert read_plan(tmp_path) is None
    (tmp_path / "partial.json").write_text("{}")
    with pytest.raises(StoreError, match="was interrupted") as caught:
        read_manifest(tmp_path)
    assert "distill export --teacher RUN" in caught.value.cure


def test_a_later_version_asks_for_an_upgrade(store: Path) -> None:
    content = read_json(store / "manifest.json")
    for version, mended in ((3, "Upgrade distill."), (1, "Delete .* and run `distill export")):
        write_json(store / "manifest.json", content | {"schema_version": version, "new": 1})
        with pytest.raises(StoreError, match=f"schema version {version}, this distill reads 2") as caught:
            read_manifest(store)
        assert re.match(mended, caught.value.cure)


@pytest.mark.parametrize("change", [b" ", b"\n", b"\t"])
def test_other_bytes_of_the_same_value_are_damage(store: Path, change: bytes) -> None:
    path = store / "manifest.json"
    content = path.read_bytes()
    read_manifest(store)
    for other in (content + change, content[:-1] + b" ", content.replace(b": ", b":" + change, 1)):
        if other != content:
            path.write_bytes(other)
            with pytest.raises(StoreError, match="the same value in other bytes"):
                read_manifest(store)
