"""Tables, the row optimiser and the rules."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.labels.optim import RowSGD
from distill.labels.rules import Learned, Smoothing
from distill.labels.tables import LabelTable, class_table, initial_logits, instance_table

CPU = torch.device("cpu")


def instances(rows: int = 6, classes: int = 4) -> LabelTable:
    images = torch.arange(rows) * 3 + 2
    return instance_table(images, torch.arange(rows) % classes, classes, 0.8, CPU)


@pytest.mark.parametrize("classes", [2, 10, 100, 1000])
@pytest.mark.parametrize("mass", [0.5, 0.9, 0.999])
def test_initial_labels_have_the_asked_for_mass(classes: int, mass: float) -> None:
    """Not a raw logit: softmax(5 * onehot) is .94 at C = 10 and .60 at C = 100."""
    given_labels = torch.tensor([0, classes - 1])
    labels = torch.softmax(initial_logits(given_labels, classes, mass), -1)
    torch.testing.assert_close(labels.gather(1, given_labels[:, None]), torch.full((2, 1), mass))
    torch.testing.assert_close(labels.sum(-1), torch.ones(2))


def test_rows_are_found_by_source_index() -> None:
    table = instances()
    indices = torch.tensor([5, 2, 17])
    assert table.rows(indices, torch.zeros(3, dtype=torch.int64)).tolist() == [1, 0, 5]
    classes = class_table(4, 0.8, CPU)
    assert classes.rows(indices, torch.tensor([3, 1, 3])).tolist() == [3, 1, 3]


def test_repeated_images_are_summed_and_repeated_classes_averaged() -> None:
    derivative = torch.randn(3, 4)
    for table, weight in ((instances(), 1.0), (class_table(4, 0.8, CPU), 0.5)):
        rows = torch.tensor([1, 3, 1])
        labels = table.labels(rows)
        before = table.phi.clone()
        RowSGD(table, step=0.1, momentum=0.0).update(rows, labels, derivative)
        slow = labels * (derivative - (labels * derivative).sum(-1, keepdim=True))
        torch.testing.assert_close(table.phi[1], before[1] - 0.1 * weight * (slow[0] + slow[2]))
        torch.testing.assert_close(table.phi[3], before[3] - 0.1 * slow[1])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=8), st.sampled_from([0.0, 0.9]))
def test_untouched_rows_stay_as_they_are_to_the_bit(rows: list[int], momentum: float) -> None:
    table = instances()
    before = table.phi.clone()
    optimizer = RowSGD(table, step=0.5, momentum=momentum)
    for _ in range(2):
        index = torch.tensor(rows)
        optimizer.update(index, table.labels(index), torch.randn(len(rows), 4))
    rest = sorted(set(range(6)) - set(rows))
    assert torch.equal(table.phi[rest], before[rest])
    assert optimizer.touched.tolist() == [row in rows for row in range(6)]
    torch.testing.assert_close(table.phi.sum(-1), before.sum(-1))  # a softmax row's gradient sums to zero


def test_momentum_is_torch_s() -> None:
    table = instances()
    phi = table.phi.clone().requires_grad_()
    reference = torch.optim.SGD([phi], lr=0.3, momentum=0.8)
    optimizer = RowSGD(table, step=0.3, momentum=0.8)
    every = torch.arange(6)
    for _ in range(4):
        derivative = torch.randn(6, 4)
        optimizer.update(every, table.labels(every), derivative)
        reference.zero_grad()
        (torch.softmax(phi, -1) * derivative).sum().backward()
        reference.step()
    torch.testing.assert_close(table.phi, phi.detach())


def test_projected_rows_stay_on_the_simplex() -> None:
    table = instance_table(torch.arange(6), torch.arange(6) % 4, 4, 0.8, CPU, "projected")
    torch.testing.assert_close(table.all_labels(), instances().all_labels())
    optimizer = RowSGD(table, step=3.0, momentum=0.5)
    rows = torch.tensor([0, 2, 2, 5])
    for _ in range(5):
        optimizer.update(rows, table.labels(rows), torch.randn(4, 4))
        torch.testing.assert_close(table.all_labels().sum(-1), torch.ones(6))
        assert table.all_labels().min() > 0
    torch.testing.assert_close(table.phi[1], instances().all_labels()[1])


def test_smoothing_is_timm_s_convention() -> None:
    """eps/C on every class."""
    labels = Smoothing(5, 0.1).labels(torch.tensor([0]), torch.tensor([2]))
    torch.testing.assert_close(labels, torch.tensor([[0.02, 0.02, 0.92, 0.02, 0.02]]))
    assert torch.equal(Smoothing(5, 0.0).labels(torch.tensor([0]), torch.tensor([2])), torch.eye(5)[[2]])


def test_learned_labels_average_their_last_epochs_and_remember() -> None:
    rule = Learned(instances(), step=1.0, momentum=0.5, average_epochs=2, snapshot_epochs=(1, 3))
    seen = []
    images = torch.tensor([2, 8])
    for epoch in range(1, 4):
        labels = rule.labels(images, torch.tensor([0, 2]))
        rule.learn(images, torch.tensor([0, 2]), labels, torch.randn(2, 4))
        rule.end_epoch(epoch, 3)
        seen.append(rule.table.all_labels())
    torch.testing.assert_close(rule.averaged(), (seen[1] + seen[2]) / 2)
    assert sorted(rule.trajectory) == [1, 3]
    twin = Learned(instances(), step=1.0, momentum=0.5, average_epochs=2, snapshot_epochs=(1, 3))
    twin.load_state_dict(rule.state_dict())
    assert torch.equal(twin.table.phi, rule.table.phi)
    assert torch.equal(twin.averaged(), rule.averaged())
