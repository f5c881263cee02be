"""What a store says of a batch reaches the device as it is, and without waiting for it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from distill.data.batches import Batch, Mix
from distill.data.loader import ImageData
from distill.errors import StoreError
from distill.stages.teachers import LearnedLookup, StoredTeaching, same_place
from distill.store.labels import LearnedLabels
from distill.store.logits import LogitStore
from tests.nosync import gpu_must_not_wait
from tests.store import cases

CHOSEN = torch.tensor([3, 10, 0, 7, 3])
VIEWS = torch.tensor([0, 3, 1, 2, 3])
GIVEN = torch.tensor([2, 0, 1, 1, 0])


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


def nothing_waits(device: torch.device) -> AbstractContextManager[None]:
    return nullcontext() if device.type == "cpu" else gpu_must_not_wait()


def batch_on(device: torch.device) -> Batch:
    rows, given = cases.INDICES[CHOSEN], GIVEN.to(device)
    images = torch.zeros(len(rows), 1, 2, 2, device=device)
    return Batch(indices=rows.to(device), images=images, given=given, rows=rows, view=VIEWS)


def test_outputs_of_stores(tmp_path: Path, device: torch.device) -> None:
    store = LogitStore.open(cases.export(tmp_path / "logits", features=cases.WIDTH, maps=cases.SIZES))
    data = cast(ImageData, SimpleNamespace(labels=SimpleNamespace(given=torch.arange(100) % cases.CLASSES)))
    wanted: Any = frozenset(["features", "maps"])
    batch = batch_on(device)
    expected = {name: values[VIEWS, CHOSEN] for name, values in (("logits", cases.logits()), ("maps", cases.maps()))}
    for stores, weights in (([store], [1.0]), ([store, store], [0.25, 0.75])):
        teaching = StoredTeaching(stores, weights, "logits", wanted, data, device, 0)
        with nothing_waits(device):
            found, contrast = teaching.outputs(batch), teaching.contrast(6, 1)
        assert found.features is not None
        assert found.maps is not None
        for tensor in (found.logits, found.features, *found.maps, contrast.features, contrast.given):
            assert tensor.device.type == device.type
        assert torch.allclose(found.logits.cpu(), expected["logits"])
        assert torch.equal(found.features.cpu(), cases.features()[VIEWS, CHOSEN])
        assert torch.equal(torch.cat(found.maps, dim=1).cpu(), expected["maps"])


def test_stores_of_other_decoders_are_not_averaged(tmp_path: Path) -> None:
    versions = (None, {"Pillow": "12.0"}, {"Pillow": "13.0"})
    old, twelve, thirteen = (
        LogitStore.open(cases.export(tmp_path / str(n), origin=cases.ORIGIN.model_copy(update={"decoders": decoders})))
        for n, decoders in enumerate(versions)
    )
    same_place(twelve, twelve, tmp_path)
    same_place(old, thirteen, tmp_path)
    with pytest.raises(StoreError, match="decoders of the images differ"):
        same_place(twelve, thirteen, tmp_path)


def table(kind: str) -> LearnedLabels:
    rows = torch.tensor([40, 17, 5]) if kind == "instance" else torch.arange(cases.CLASSES)
    averaged = torch.rand(3, cases.CLASSES, generator=torch.Generator().manual_seed(3)).softmax(-1)
    return LearnedLabels(cast(Any, kind), averaged, averaged, rows, rows % 3, torch.ones(3, dtype=torch.bool), {})


@pytest.mark.parametrize("kind", ["class", "instance"])
def test_learned_labels(kind: str, device: torch.device) -> None:
    labels = table(kind)
    lookup, batch = LearnedLookup(labels, cases.CLASSES, device), batch_on(device)
    with nothing_waits(device):
        found = lookup.of(batch)
    assert found.device.type == device.type
    places = {index: row for row, index in enumerate(labels.indices.tolist())}

    def expected(index: int, given: int) -> Tensor:
        row = given if kind == "class" else places.get(index)
        return torch.eye(cases.CLASSES)[given] if row is None else labels.averaged[row]

    rows = [expected(index, given) for index, given in zip(batch.rows.tolist(), GIVEN.tolist(), strict=True)]
    assert torch.equal(found.cpu(), torch.stack(rows))
    share = torch.full((len(rows),), 0.25, device=device)
    mix = Mix(batch.indices.flip(0), batch.given.flip(0), share, batch.rows.flip(0))
    mixed = Batch(batch.indices, batch.images, batch.given, batch.rows, batch.view, mix)
    with nothing_waits(device):
        both = lookup.of(mixed)
    assert torch.allclose(both.cpu(), 0.25 * torch.stack(rows) + 0.75 * torch.stack(rows[::-1]))
