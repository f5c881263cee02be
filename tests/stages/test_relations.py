"""Learned labels against the confusions of a network that never saw them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from distill.data.loader import open_data, ordered_batches
from distill.errors import RunError
from distill.report.relations import relation
from distill.stages import relations
from distill.stages.finished import load_teacher
from distill.stages.labels import look_at_labels
from distill.stages.relations import confusion_on_test, learned_means
from distill.stages.teacher import train_teacher
from distill.store.labels import read_labels
from distill.training.events import Event

CPU = torch.device("cpu")


def ignore(event: Event) -> None:
    pass


@pytest.mark.parametrize("rule", ["class", "instance"])
def test_labels_against_another_seed(tiny, rule: str) -> None:
    recipe = tiny(f"teacher.labels.rule={rule}")
    run = train_teacher(recipe, ignore)
    theirs = tiny("name=other", "seed=1", "teacher.labels.rule=onehot")
    other = train_teacher(theirs, ignore)
    report = look_at_labels(run, recipe, ignore, against=other)
    assert report.relation is not None
    assert (run.folder / "figures/label_relations.png").read_bytes()[:4] == b"\x89PNG"

    data = open_data(theirs)
    network = load_teacher(theirs, data, other.folder / "model.safetensors", CPU)
    rows, counts = data.splits.test, np.zeros((10, 10))
    for batch in ordered_batches(data, rows, batch_size=7, device=CPU):
        with torch.no_grad():
            predicted = network(batch.images).argmax(-1)
        for true, found in zip(data.labels.true[batch.indices].tolist(), predicted.tolist(), strict=True):
            counts[true, found] += 1
    expected = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    np.testing.assert_allclose(confusion_on_test(network, data, 64, CPU), expected)
    labels = read_labels(run.folder / "labels")
    means = np.stack([labels.averaged[labels.given == k].mean(0).numpy() for k in range(10)])
    np.testing.assert_allclose(learned_means(labels.averaged, labels.given, labels.kind), means, rtol=1e-5, atol=1e-7)
    assert report.relation.correlation == pytest.approx(relation(means, expected, renamings=9).correlation, abs=1e-6)
    assert report.relation.pairs == 90


def test_a_network_of_the_same_seed_is_not_independent(tiny) -> None:
    recipe = tiny()
    run = train_teacher(recipe, ignore)
    other = train_teacher(tiny("name=other", "teacher.labels.rule=onehot"), ignore)
    with pytest.raises(RunError, match="so it is not independent") as caught:
        look_at_labels(run, recipe, ignore, against=other)
    assert "seed=1" in caught.value.cure
    assert not list((run.folder / "figures").iterdir())  # refused before anything is drawn


def test_as_many_classes_of_other_data_are_no_same_classes(tiny, tmp_path: Path) -> None:
    """Nor is the folder of the labels' images opened as the other source's."""
    for number in range(60):
        place = tmp_path / "clothes" / f"garment-{number % 10}" / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), 4 * number, np.uint8)).save(place)
    clothes = ("data.source=folder", f'data.root="{tmp_path}/clothes"', "data.image_size=8", "data.train=20")
    small = ("data.validation=10", "data.meta=10", "data.test=10", "teacher.batch_size=10", "teacher.epochs=1")
    folder = train_teacher(tiny("name=worn", "seed=1", *clothes, *small), ignore)
    digits = train_teacher(tiny("teacher.epochs=1"), ignore)
    for run, other, said in (
        (digits, folder, "class 0 is 'garment-0', expected '0' as the labels have it"),
        (folder, digits, "class 0 is '0', expected 'garment-0' as the labels have it"),
    ):
        with pytest.raises(RunError, match=f"{other.folder}: has other classes: {said}"):
            look_at_labels(run, run.recipe, ignore, against=other)


def test_where_the_other_network_confuses_nothing_there_is_no_correlation(tiny, monkeypatch) -> None:
    recipe = tiny()
    run = train_teacher(recipe, ignore)
    other = train_teacher(tiny("name=other", "seed=1", "teacher.labels.rule=onehot"), ignore)
    earlier = run.folder / "figures/label_relations.png"
    assert look_at_labels(run, recipe, ignore, against=other).relation is not None
    assert earlier.exists()
    monkeypatch.setattr(relations, "confusion_on_test", lambda *given: np.eye(10))
    for earlier_one in (f"; {earlier} is an earlier one", ""):
        report = look_at_labels(run, recipe, ignore, against=other)
        found = json.loads(json.dumps(report.record()))["relation"]
        why = "the other network confuses no class with another"
        assert found == {
            "other": str(other.folder),
            "correlation": None,
            "p_value": None,
            "pairs": 90,
            "picture": None,
            "missing": why,
        }
        assert f"no picture of class relations: {why}{earlier_one}" in report.notes
        earlier.unlink(missing_ok=True)
    assert not earlier.exists()
