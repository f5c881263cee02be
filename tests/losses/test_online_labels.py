"""Online label smoothing: what is remembered, when it counts, and that a run can stop anywhere."""

from __future__ import annotations

import torch
from torch import Tensor

from distill.losses.soft import OnlineLabels, smoothed_cross_entropy
from tests.losses.catalogue import example

LOGITS = torch.tensor([[4.0, 0, 0], [3, 1, 0], [0, 5, 0], [0, 2, 0], [1, 0, 0]])
TARGETS = torch.tensor([0, 0, 1, 2, 1])  # right, right, right, wrong, wrong: nothing is right about class 2


def test_the_first_epoch_s_labels_are_uniform() -> None:
    student, _, targets = example()
    found = OnlineLabels(5).double().loss(student, targets)
    torch.testing.assert_close(found, smoothed_cross_entropy(student, targets, 1.0), rtol=1e-6, atol=0)


def test_right_answers_are_averaged_and_a_class_without_one_keeps_its_labels() -> None:
    online = OnlineLabels(3)
    online.loss(LOGITS[:2], TARGETS[:2])
    online.loss(LOGITS[2:], TARGETS[2:])
    assert online.counts.tolist() == [2, 1, 0]
    assert (online.labels == 1 / 3).all()  # not before the epoch ends
    online.end_epoch()
    p = LOGITS.softmax(-1)
    torch.testing.assert_close(online.labels, torch.stack([p[:2].mean(0), p[2], torch.full((3,), 1 / 3)]))
    assert online.counts.tolist() == [0, 0, 0]
    assert online.sums.abs().max() == 0
    before = online.labels.clone()
    online.end_epoch()  # an epoch without a right answer
    assert torch.equal(online.labels, before)


def test_the_loss_is_that_of_the_epoch_before() -> None:
    online = OnlineLabels(3)
    online.loss(LOGITS, TARGETS)
    online.end_epoch()
    labels = online.labels[TARGETS]
    torch.testing.assert_close(online.loss(LOGITS, TARGETS), -(labels * LOGITS.log_softmax(-1)).sum(-1))


def test_an_image_s_value_does_not_depend_on_its_batch() -> None:
    online = OnlineLabels(3)
    online.loss(LOGITS, TARGETS)
    online.end_epoch()
    whole = online.loss(LOGITS, TARGETS)
    assert torch.equal(whole, torch.cat([online.loss(LOGITS[i : i + 1], TARGETS[i : i + 1]) for i in range(5)]))


def test_nothing_is_remembered_in_eval_mode() -> None:
    online = OnlineLabels(3).eval()
    online.loss(LOGITS, TARGETS)
    assert online.counts.sum() == 0


def test_no_graph_is_kept() -> None:
    online = OnlineLabels(3)
    leaf = LOGITS.clone().requires_grad_()
    online.loss(leaf, TARGETS).sum().backward()
    assert not online.sums.requires_grad
    assert leaf.grad is not None


def batches(count: int) -> list[tuple[Tensor, Tensor]]:
    return [(student.float(), targets) for student, _, targets in (example(seed=seed) for seed in range(count))]


def test_a_run_that_stops_within_an_epoch_ends_with_the_same_bits() -> None:
    through, stopped = OnlineLabels(5), OnlineLabels(5)
    for number, (logits, targets) in enumerate(batches(9)):
        if number in (3, 6):
            through.end_epoch()
            stopped.end_epoch()
        if number == 5:
            state = {name: value.clone() for name, value in stopped.state_dict().items()}
            stopped = OnlineLabels(5)
            stopped.load_state_dict(state)
        assert torch.equal(through.loss(logits, targets), stopped.loss(logits, targets))
    assert state.keys() == {"labels", "sums", "counts"}
    for name, value in through.state_dict().items():
        assert torch.equal(value, stopped.state_dict()[name])
