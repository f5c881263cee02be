"""Metrics of labels against numbers by hand, and what is said of labels that collapse."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from distill.data.noise import Labels
from distill.labels.watch import Watch, cure_for, label_metrics
from distill.recipe.labels import KEPT_RULES, LEARNED_RULES, LabelsRecipe, PullsRecipe
from distill.store.labels import LearnedLabels

GIVEN, TRUE = torch.tensor([0, 1, 2, 0, 1, 2]), torch.tensor([0, 1, 2, 1, 1, 0])
TRAIN = torch.tensor([0, 1, 3, 5])
SOUND = {"labels_moved": 0.1, "labels_saturated": 0.1, "label_entropy": 0.5, "labels_crowding": 1.2, "labels_left": 0.8}
CURE = "a smaller step"


def kept(rows: list[list[float]], kind: str = "instance") -> LearnedLabels:
    table = torch.tensor(rows)
    indices = torch.arange(3) if kind == "class" else TRAIN
    given = indices if kind == "class" else GIVEN[TRAIN]
    return LearnedLabels(kind, table, table, indices, given, torch.ones(len(table), dtype=torch.bool))


def test_by_hand() -> None:
    labels = Labels(GIVEN, TRUE)
    table = [[1.0, 0.0, 0.0], [0.2, 0.8, 0.0], [0.25, 0.5, 0.25], [0.4, 0.3, 0.3]]
    metrics = label_metrics(labels, TRAIN, kept(table))
    entropy = (0.5004024235 + 1.5 * math.log(2) + 1.0888999753) / 4
    assert metrics == pytest.approx(
        {
            "given_right": 0.5,
            "labels_right": 1.0,
            "labels_moved": 0.5,
            "labels_saturated": 0.25,
            "labels_crowding": 1.0,  # two labels where one was given are no crowd
            "labels_left": 1.0,
            "label_entropy": entropy,
            "suspects_precision": 1.0,
            "suspects_recall": 1.0,
        }
    )


def test_suspects() -> None:
    """One wrong label is found of two, beside one that was right."""
    labels = Labels(torch.tensor([0, 0, 1, 2]), torch.tensor([0, 1, 2, 2]))
    table = [[0.2, 0.8, 0.0], [0.1, 0.9, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    rows = torch.arange(4)
    learned = LearnedLabels("instance", torch.tensor(table), torch.tensor(table), rows, labels.given, rows >= 0)
    metrics = label_metrics(labels, rows, learned)
    assert metrics["suspects_precision"] == 0.5
    assert metrics["suspects_recall"] == 0.5
    sound = label_metrics(Labels(labels.given, labels.given), rows, learned)
    assert "suspects_precision" not in sound


def test_a_class_table_is_weighed_by_its_images() -> None:
    rows = [[0.6, 0.4, 0.0], [0.0, 1.0, 0.0], [0.7, 0.0, 0.3]]
    metrics = label_metrics(Labels(GIVEN, TRUE), TRAIN, kept(rows, "class"))
    assert metrics["labels_moved"] == 0.25
    assert metrics["labels_right"] == 0.75
    assert metrics["labels_saturated"] == 0.25


def test_fixed_labels_have_what_is_given() -> None:
    assert label_metrics(Labels(GIVEN, TRUE), TRAIN, None) == {"given_right": 0.5}
    assert Watch(3, CURE)({"given_right": 0.5}) == []


def test_without_the_truth_nothing_is_said_of_it() -> None:
    table = kept([[1.0, 0.0, 0.0], [0.2, 0.8, 0.0], [0.25, 0.5, 0.25], [0.4, 0.3, 0.3]])
    metrics = label_metrics(Labels(GIVEN, GIVEN), TRAIN, table, truth_known=False)
    assert sorted(metrics) == ["label_entropy", "labels_crowding", "labels_left", "labels_moved", "labels_saturated"]
    assert label_metrics(Labels(GIVEN, GIVEN), TRAIN, None, truth_known=False) == {}


def test_two_classes_that_become_one_are_told_of() -> None:
    """Nothing runs away there, and no class has more than twice its labels."""
    given = torch.tensor([0] * 10 + [1] * 12)
    table = torch.tensor([[0.1, 0.9]] * 22)
    rows = torch.arange(22)
    learned = LearnedLabels("instance", table, table, rows, given, rows >= 0)
    metrics = label_metrics(Labels(given, given), rows, learned)
    assert (metrics["labels_left"], metrics["labels_moved"]) == (0.0, 10 / 22)
    assert any("leave a class" in told for told in Watch(2, CURE)(metrics))
    few = label_metrics(Labels(given[1:], given[1:]), rows[:21], replace(learned, given=given[1:], indices=rows[:21],
        averaged=table[1:], labels=table[1:], touched=rows[1:] > 0))  # fmt: skip
    assert few["labels_left"] == pytest.approx(21 / 12)


def test_the_cure_is_of_the_rule() -> None:
    assert "a pull towards the start" in cure_for(LabelsRecipe(rule="instance"))
    assert "weaker [teacher.labels.pulls]" in cure_for(LabelsRecipe(rule="class", pulls=PullsRecipe(start=1e6)))
    for rule in KEPT_RULES - LEARNED_RULES:
        assert f"[teacher.labels.{rule.replace('-', '_')}]" in cure_for(LabelsRecipe(rule=rule))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels_saturated": 0.6}, "labels saturate: 60%"),
        ({"labels_moved": 0.51}, "labels run away: 51%"),
        ({"label_entropy": 1.09}, "nearly uniform"),
        ({"labels_crowding": 2.4}, "crowd into one class: it has 2.4 times"),
        ({"labels_left": 0.05}, "leave a class: it has 5% of as many as were given"),
        ({"answers_temperature": 10.0}, "at a temperature of 10, the highest"),
    ],
)
def test_what_goes_wrong_is_told_once(change: dict[str, float], message: str) -> None:
    watch = Watch(3, CURE)
    assert watch(SOUND) == []
    (told,) = watch(SOUND | change)
    assert message in told
    assert f"try {CURE}" in told or "try a longer warmup_epochs" in told
    assert watch(SOUND | change) == []
    resumed = Watch(3, CURE)
    resumed.load_state_dict(watch.state_dict())
    assert resumed(SOUND | change) == []


def test_labels_count_as_collapsed_as_long_as_they_look_so() -> None:
    watch, gone = Watch(3, CURE), SOUND | {"labels_left": 0.05}
    assert not watch.collapsed(SOUND)
    assert watch(gone)
    assert watch(gone) == []  # told once,
    assert watch.collapsed(gone)  # and true for longer
    assert not watch.collapsed(SOUND)
    assert not watch.collapsed({})  # a rule that keeps no labels
    assert not watch.collapsed(SOUND | {"labels_saturated": 1.0, "answers_temperature": 10.0})


def test_labels_that_begin_sure_are_not_said_to_saturate() -> None:
    assert Watch(3, CURE, saturated_at_first=True)(SOUND | {"labels_saturated": 1.0}) == []


def small_classes(*of_each: int, became: int, images: int) -> dict[str, float]:
    """Metrics of classes of so many images each, when this class has got these many of the next one's too."""
    given = torch.cat([torch.full((count,), number) for number, count in enumerate(of_each)])
    learned = given.clone()
    learned[torch.nonzero(given != became)[:images, 0]] = became
    table, rows = torch.eye(len(of_each))[learned], torch.arange(len(given))
    kept = LearnedLabels("instance", table, table, rows, given, rows >= 0)
    return label_metrics(Labels(given, given), rows, kept)


@pytest.mark.parametrize("of_last", [0, 1])
def test_a_rare_class_that_gains_a_label_or_two_is_no_crowd(of_last: int) -> None:
    """One image of three that are of it was given as it, or none: to put the others right is what labels learn for."""
    metrics = small_classes(40, 30, of_last, became=2, images=3 - of_last)
    assert metrics["labels_crowding"] == 1.0
    assert not any("crowd" in told for told in Watch(3, CURE)(metrics))


def test_many_small_classes_that_become_one_are_told_of() -> None:
    metrics = small_classes(*[4] * 30, became=7, images=116)
    assert metrics["labels_crowding"] == 30.0
    assert any("crowd into one class: it has 30.0 times" in told for told in Watch(30, CURE)(metrics))
