from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.errors import StoreError
from distill.store.labels import LearnedLabels, read_labels, read_labels_manifest, verify_labels, write_labels


def make(kind: Any = "instance", rows: int = 6, classes: int = 3, seed: int = 0) -> LearnedLabels:
    generator = torch.Generator().manual_seed(seed)
    rows = classes if kind == "class" else rows

    def table() -> torch.Tensor:
        return (5 * torch.randn(rows, classes, generator=generator)).softmax(-1)

    return LearnedLabels(
        kind=kind,
        labels=table(),
        averaged=table(),
        indices=torch.arange(classes) if kind == "class" else torch.randperm(2 * rows, generator=generator)[:rows],
        given=torch.randint(classes, (rows,), generator=generator),
        touched=torch.rand(rows, generator=generator) > 0.5,
        trajectory={0: table().half(), 30: table()},
    )


@given(kind=st.sampled_from(["class", "instance"]), rows=st.integers(1, 9), classes=st.integers(1, 9))
@settings(deadline=None, max_examples=30)
def test_labels_come_back(tmp_path_factory: pytest.TempPathFactory, kind: str, rows: int, classes: int) -> None:
    folder = tmp_path_factory.mktemp("labels") / "new"
    labels = make(kind, rows, classes)
    write_labels(folder, labels, {"teacher": "x"})
    found = read_labels(folder)
    assert found.kind == kind
    for name in ("labels", "averaged", "indices", "given", "touched"):
        assert torch.equal(getattr(found, name), getattr(labels, name)), name
    assert found.trajectory.keys() == labels.trajectory.keys()
    for epoch, table in labels.trajectory.items():
        assert found.trajectory[epoch].dtype == table.dtype
        assert torch.equal(found.trajectory[epoch], table)
    assert verify_labels(folder) == []


def test_flags_come_from_the_averaged_table() -> None:
    table = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]])
    labels = LearnedLabels(
        "instance", table.flip(1), table, torch.tensor([5, 3]), torch.tensor([0, 0]), torch.tensor([True, True])
    )
    assert labels.argmax.tolist() == [0, 2]
    assert labels.confidence.tolist() == pytest.approx([0.7, 0.6])
    assert labels.suspected.tolist() == [False, True]


def test_the_same_labels_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_labels(tmp_path / name, make(), {"teacher": "x"})
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    assert read_labels_manifest(tmp_path / "a").origin == {"teacher": "x"}


def test_labels_are_replaced(tmp_path: Path) -> None:
    write_labels(tmp_path, make(), None)
    write_labels(tmp_path, make("class"), None)
    assert read_labels(tmp_path).kind == "class"


def changed(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> LearnedLabels:
    labels = make()
    return dataclasses.replace(labels, **{name: change(getattr(labels, name).clone())})


def poison(table: torch.Tensor) -> torch.Tensor:
    table[2, 1] = float("nan")
    return table


BROKEN = {
    "nan": lambda: changed("labels", poison),
    "nan in the average": lambda: changed("averaged", poison),
    "not probabilities": lambda: changed("labels", lambda t: t * 1.01),
    "negative": lambda: changed("labels", lambda t: t + torch.tensor([0.0, -2.0, 2.0])),
    "float64": lambda: changed("labels", lambda t: t.double()),
    "a vector": lambda: changed("labels", lambda t: t[0]),
    "empty": lambda: changed("labels", lambda t: t[:0]),
    "fewer averages": lambda: changed("averaged", lambda t: t[1:]),
    "fewer indices": lambda: changed("indices", lambda t: t[1:]),
    "repeated indices": lambda: changed("indices", lambda t: t * 0),
    "given too large": lambda: changed("given", lambda t: t + 3),
    "given negative": lambda: changed("given", lambda t: t - 3),
    "touched is int": lambda: changed("touched", lambda t: t.int()),
    "trajectory": lambda: dataclasses.replace(make(), trajectory={3: torch.zeros(6, 3)}),
    "class rows": lambda: dataclasses.replace(make(), kind="class"),
    "class order": lambda: dataclasses.replace(make("class"), indices=torch.tensor([1, 0, 2])),
}


@pytest.mark.parametrize("name", BROKEN)
def test_labels_that_are_none_are_not_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(StoreError, match="cannot be kept"):
        write_labels(tmp_path / "s", BROKEN[name](), None)
    assert not (tmp_path / "s").exists()


def test_many_classes_in_half_precision(tmp_path: Path) -> None:
    table = (torch.randn(4, 20_000, generator=torch.Generator().manual_seed(0))).softmax(-1)
    vectors = (torch.arange(4), torch.zeros(4, dtype=torch.int64), torch.ones(4, dtype=torch.bool))
    write_labels(tmp_path, LearnedLabels("instance", table, table, *vectors, trajectory={1: table.half()}), None)
    assert verify_labels(tmp_path) == []


def test_no_labels(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="holds no learned labels"):
        read_labels(tmp_path)
    assert len(verify_labels(tmp_path / "nowhere")) == 1


def test_extra_files_are_problems(tmp_path: Path) -> None:
    write_labels(tmp_path, make(), None)
    (tmp_path / "x").touch()
    assert verify_labels(tmp_path) == [f"{tmp_path / 'x'}: the manifest does not name this file"]
