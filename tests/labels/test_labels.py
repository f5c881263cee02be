"""Tables and rules. What a label step does is in `test_learn.py`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from distill.errors import BilevelError, DataError
from distill.labels.fixed import Smoothing
from distill.labels.learned import Learned
from distill.labels.tables import Kind, LabelTable, Parametrisation, class_table, initial_logits, instance_table
from distill.losses.soft import soft_cross_entropy
from tests.labels.cases import CPU, GIVEN, IMAGES, KINDS, PARAMETRISATIONS, C, N, images, learn, learned, noise, table
from tests.nosync import fake_cuda, no_host_sync


@pytest.mark.parametrize("classes", [2, 10, 100, 1000])
@pytest.mark.parametrize("mass", [0.5, 0.9, 0.999])
def test_initial_labels_have_the_asked_for_mass(classes: int, mass: float) -> None:
    """Not a raw logit: softmax(5 * onehot) is .94 at C = 10 and .60 at C = 100."""
    given_labels = torch.tensor([0, classes - 1])
    labels = torch.softmax(initial_logits(given_labels, classes, mass), -1)
    torch.testing.assert_close(labels.gather(1, given_labels[:, None]), torch.full((2, 1), mass))
    torch.testing.assert_close(labels.sum(-1), torch.ones(2))


def test_rows_are_found_by_source_index() -> None:
    indices = torch.tensor([5, 2, 17])
    assert table("instance").rows(indices, torch.zeros(3, dtype=torch.int64)).tolist() == [1, 0, 5]
    assert table("class").rows(indices, torch.tensor([3, 1, 3])).tolist() == [3, 1, 3]


@pytest.mark.parametrize("kind", KINDS)
def test_both_parametrisations_start_alike(kind: Kind) -> None:
    torch.testing.assert_close(table(kind, "projected").all_labels(), table(kind).all_labels())


WRONG_TABLES: dict[str, Callable[[], object]] = {
    "found 1 classes, expected 2 or more": lambda: class_table(1, 0.9, CPU),
    "true_class_mass is 1, expected a number between 0 and 1": lambda: class_table(3, 1.0, CPU),
    "true_class_mass is nan": lambda: class_table(3, math.nan, CPU),
    r"given labels go from 0 to 3, expected 0 to 2": lambda: instance_table(IMAGES, GIVEN, 3, 0.9, CPU),
    r"given labels go from -1 to 2": lambda: instance_table(IMAGES, GIVEN - 1, C, 0.9, CPU),
    r"source indices go from -2 to 16, expected 0 or more": lambda: instance_table(IMAGES - 4, GIVEN, C, 0.9, CPU),
    "image 2 is named more than once": lambda: instance_table(torch.full((N,), 2), GIVEN, C, 0.9, CPU),
    r"given are torch.int64 \[6\], expected int64 \[N\]": lambda: instance_table(IMAGES, GIVEN[1:], C, 0.9, CPU),
    r"given are torch.float32 \[7\]": lambda: instance_table(IMAGES, GIVEN.float(), C, 0.9, CPU),
    r"images are torch.int64 \[0\]": lambda: instance_table(IMAGES[:0], GIVEN[:0], C, 0.9, CPU),
    r"phi is torch.float32 \[7\], expected": lambda: changed(phi=torch.zeros(N)),
    r"phi is torch.int64 \[7, 4\], expected": lambda: changed(phi=torch.zeros(N, C, dtype=torch.int64)),
    r"phi is torch.float32 \[7, 1\], expected": lambda: changed(phi=torch.zeros(N, 1)),
    r"phi is torch.float32 \[7, 4\], expected contiguous": lambda: changed(phi=torch.zeros(C, N).t()),
    r"phi is \[7, 4\], expected \[C, C\]": lambda: changed(kind="class"),
    r"given is torch.int64 \[7\], expected int64 \[6\]": lambda: changed(phi=torch.zeros(N - 1, C)),
    r"position is torch.int32 \[20\]": lambda: changed(position=torch.zeros(20, dtype=torch.int32)),
    "images is on meta, phi on cpu": lambda: changed(images=IMAGES.to("meta")),
}


def changed(**fields: Any) -> LabelTable:
    return dataclasses.replace(table("instance"), **fields)


@pytest.mark.parametrize("message", WRONG_TABLES)
def test_what_is_wrong_with_a_table_is_said_when_it_is_made(message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        WRONG_TABLES[message]()
    assert caught.value.cure


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("parametrisation", PARAMETRISATIONS)
def test_an_image_without_a_row_is_an_error_on_the_cpu(kind: Kind, parametrisation: Parametrisation) -> None:
    """And not the label of the table's last row, which -1 would give."""
    rule = learned(kind, parametrisation)
    for index, label in ((3, C), (1000, C)):  # between two images and past the last; the class table asks the label
        at = torch.tensor([2, index]), torch.tensor([0, label])
        with pytest.raises(DataError, match="no row in the label table"):
            rule.loss(torch.zeros(2, C), *at)
        with pytest.raises(DataError, match="no row in the label table"):
            rule.labels(*at)


RULES = {"smoothing": lambda: Smoothing(C, 0.1), "softmax": lambda: learned("instance")}
RULES |= {"projected": lambda: learned("class", "projected")}


@pytest.mark.parametrize("name", RULES)
def test_logits_of_another_shape_are_an_error(name: str) -> None:
    for shape, found in (((2, C + 1), r"\[2, 5\]"), ((2, 1), r"\[2, 1\]"), ((3, C), r"\[3, 4\]"), ((2,), r"\[2\]")):
        with pytest.raises(BilevelError, match=rf"logits are {found}, expected \[2, 4\]"):
            RULES[name]().loss(torch.zeros(shape), *images(0, 3))


@pytest.mark.parametrize("name", RULES)
def test_the_loss_is_the_soft_cross_entropy_with_the_labels(name: str) -> None:
    rule, at = RULES[name](), images(0, 2, 2)
    logits = noise(0, 3, C, dtype=torch.float64).requires_grad_()
    loss, labels = rule.loss(logits, *at)
    assert not labels.requires_grad
    expected = rule.labels(at[1]) if isinstance(rule, Smoothing) else rule.labels(*at)
    assert torch.equal(labels, expected)
    torch.testing.assert_close(loss, -(labels * logits.log_softmax(-1)).sum(-1))
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    torch.testing.assert_close(gradient, logits.detach().softmax(-1) - labels, rtol=1e-6, atol=1e-6)
    half = rule.loss(logits.detach().bfloat16(), *at)[0]
    assert half.dtype == torch.float32


def test_the_loss_with_fixed_labels_has_the_bits_of_the_loss_by_itself() -> None:
    logits, at = noise(0, 5, C), images(0, 2, 2, 3, 6)
    for eps in (0.0, 0.1):
        labels = torch.nn.functional.one_hot(at[1], C).float() * (1.0 - eps) + eps / C
        loss, found = Smoothing(C, eps).loss(logits, *at)
        assert torch.equal(found, labels)
        assert torch.equal(loss, soft_cross_entropy(logits, labels))


def test_fixed_labels_do_not_wait_for_the_device() -> None:
    logits, at = noise(0, 3, C).requires_grad_(), images(0, 2, 2)
    with no_host_sync():
        Smoothing(C, 0.1).loss(logits, *at)[0].mean().backward()  # type: ignore[no-untyped-call]
    with fake_cuda() as device:
        numbers = torch.zeros(3, dtype=torch.int64, device=device)
        Smoothing(C, 0.1).loss(torch.zeros(3, C, device=device), numbers, numbers)


def test_smoothing_is_timm_s_convention() -> None:
    """eps/C on every class."""
    labels = Smoothing(5, 0.1).labels(torch.tensor([2]))
    torch.testing.assert_close(labels, torch.tensor([[0.02, 0.02, 0.92, 0.02, 0.02]]))
    assert torch.equal(Smoothing(5, 0.0).labels(torch.tensor([2])), torch.eye(5)[[2]])


def test_learned_labels_average_their_last_epochs_and_remember() -> None:
    rule = Learned(table("instance"), step=1.0, average_epochs=2, snapshot_epochs=(1, 3))
    seen = []
    for epoch in range(1, 4):
        learn(rule, [0, 2], noise(epoch, 2, C))
        rule.end_epoch(epoch, 3)
        seen.append(rule.table.all_labels())
    torch.testing.assert_close(rule.averaged(), (seen[1] + seen[2]) / 2)
    assert sorted(rule.history.trajectory) == [1, 3]
    twin = Learned(table("instance"), step=1.0, average_epochs=2, snapshot_epochs=(1, 3))
    twin.load_state_dict(rule.state_dict())
    assert torch.equal(twin.averaged(), rule.averaged())
    assert sorted(twin.history.trajectory) == [1, 3]
