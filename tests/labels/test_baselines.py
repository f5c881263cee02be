"""Laws of every rule that learned labels are compared with: its oracle first."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from distill.errors import BilevelError, DataError, StoreError
from distill.labels.rules import LabelRule
from distill.store.checkpoint import load_state, save_state
from distill.store.labels import read_labels, write_labels
from tests.labels.baselines import BATCHES, CASES, EPOCHS, SMALL
from tests.labels.cases import GIVEN, C, images, noise
from tests.nosync import fake_cuda, no_host_sync

DOUBLE = torch.float64
every = pytest.mark.parametrize("name", CASES)
small = pytest.mark.parametrize("name", SMALL)
of_rows = pytest.mark.parametrize("name", [name for name in SMALL if not name.startswith(("tf-kd", "bootstrap"))])


def made(name: str, **where: Any) -> LabelRule:
    return CASES[name][0](**where)


def stream(dtype: torch.dtype = DOUBLE) -> Iterator[tuple[int, int, list[int], Tensor]]:
    """Epoch and step, from 0, rows and logits. Given labels are often the likeliest, so that answers are right."""
    for epoch in range(EPOCHS):
        for step, rows in enumerate(BATCHES):
            logits = 2 * noise(10 * epoch + step, len(rows), C, dtype=DOUBLE)
            yield epoch, step, rows, (logits + 1.5 * torch.nn.functional.one_hot(GIVEN[rows], C)).to(dtype)


def walk(rule: LabelRule, *, start: int = 0, end: int = 10**9) -> list[Tensor]:
    """Losses and labels of the stream's steps from `start` to `end`, with an end of the epoch after each last step."""
    told = []
    for number, (epoch, step, rows, logits) in enumerate(stream(torch.float32)):
        if start <= number < end:
            told += rule.loss(logits, *images(*rows))
            if step == len(BATCHES) - 1:
                rule.end_epoch(epoch + 1, EPOCHS)
    return told


@every
@pytest.mark.parametrize(("dtype", "tolerance"), [(DOUBLE, 1e-10), (torch.float32, 1e-6)])
def test_rule_is_its_oracle(name: str, dtype: torch.dtype, tolerance: float) -> None:
    """Losses, their derivative, labels of the batch, and labels of all images after each epoch. Logits are float64."""
    make_rule, make_oracle = CASES[name]
    rule, oracle = make_rule(dtype=dtype), make_oracle()
    for epoch, step, rows, logits in stream():
        logits.requires_grad_()
        losses, labels = rule.loss(logits, *images(*rows))
        (gradient,) = torch.autograd.grad(losses.mean(), logits)
        expected = oracle.step(logits.detach().numpy(), rows)
        assert not labels.requires_grad
        np.testing.assert_allclose(losses.detach().numpy(), expected[0], rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(labels.numpy(), expected[1], rtol=0, atol=1e-6)
        np.testing.assert_allclose(gradient.numpy(), expected[2], rtol=tolerance, atol=tolerance)
        if step == len(BATCHES) - 1:
            rule.end_epoch(epoch + 1, EPOCHS)
            oracle.end_epoch()
            kept, expected_labels = rule.kept(), oracle.kept()
            assert (kept is None) == (expected_labels is None)
            if kept is not None:
                atol = 1e-6 if name.startswith("online") else tolerance  # their one-hot part is float32
                np.testing.assert_allclose(kept.labels.numpy(), expected_labels, rtol=0, atol=atol)


@small
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_losses_and_gradients_are_finite_for_logits_1e4_apart(name: str, dtype: torch.dtype) -> None:
    rule = made(name)
    for epoch in range(EPOCHS):
        for turn in range(20):  # long enough for a running mean to become one-hot
            rows = [0, 1, 2, 3, 3]
            logits = torch.tensor([[1e4, 0, -1e4, 0], [0, 1e4, 0, 0], [1e4, 1e4, 0, 1], [0.0] * 4, [-1e4, 1e4, 0, 0]])
            logits = (logits if turn < 15 else -logits).to(dtype).requires_grad_()
            losses, labels = rule.loss(logits, *images(*rows))
            (gradient,) = torch.autograd.grad(losses.mean(), logits)
            assert losses.dtype == torch.float32
            assert losses.isfinite().all()
            assert gradient.isfinite().all()
            torch.testing.assert_close(labels.sum(-1), torch.ones(len(rows)))
        rule.end_epoch(epoch + 1, EPOCHS)
    if (kept := rule.kept()) is not None:
        torch.testing.assert_close(kept.labels.sum(-1), torch.ones(len(kept.labels)))
        assert kept.labels.min() >= 0


@small
def test_renaming_the_classes_renames_the_labels(name: str) -> None:
    new = torch.tensor([2, 0, 3, 1])  # class c becomes new[c]
    rule, other = made(name, dtype=DOUBLE), made(name, dtype=DOUBLE)
    if hasattr(other, "prior"):
        other.prior = other.prior[new.argsort()]
    if hasattr(other, "table") and other.table.kind == "instance":
        other.table.given = new[other.table.given]
        other.table.phi.copy_(other.table.phi[:, new.argsort()])
    for epoch, step, rows, logits in stream():
        indices, given = images(*rows)
        losses, labels = rule.loss(logits, indices, given)
        renamed, of_renamed = other.loss(logits[:, new.argsort()], indices, new[given])
        torch.testing.assert_close(renamed, losses)
        torch.testing.assert_close(of_renamed, labels[:, new.argsort()])
        if step == len(BATCHES) - 1:
            rule.end_epoch(epoch + 1, EPOCHS)
            other.end_epoch(epoch + 1, EPOCHS)


@small
@pytest.mark.parametrize("at", [1, 5, 7, 12, 16])
def test_a_rule_that_stops_within_an_epoch_goes_on_to_the_same_bits(name: str, at: int, tmp_path: Path) -> None:
    whole, first, second = (made(name) for _ in range(3))
    expected = walk(whole)
    walk(first, end=at)
    save_state(tmp_path / "state.safetensors", first.state_dict())
    second.load_state_dict(load_state(tmp_path / "state.safetensors"))
    found = walk(second, start=at)
    assert all(torch.equal(a, b) for a, b in zip(found, expected[2 * at :], strict=True))
    one, other = whole.kept(), second.kept()
    if one is not None and other is not None:
        for field in ("labels", "averaged", "touched"):
            assert torch.equal(getattr(one, field), getattr(other, field))


@of_rows
def test_a_state_of_another_table_is_refused_and_changes_no_label(name: str) -> None:
    rule = made(name)
    walk(rule, end=7)
    state, before = rule.state_dict(), rule.kept()
    assert before is not None
    before = copy.deepcopy(before)
    (table,) = [key for key in ("phi", "labels") if key in state]
    wrong: list[dict[str, Any]] = [
        {**state, table: torch.zeros(9, C)},
        {**state, table: state[table].double()},
        {**state, "touched": torch.zeros(9, dtype=torch.bool)},
        {key: value for key, value in state.items() if key != table},
        {**state, "history": {**state["history"], "sum": torch.zeros(9, C)}},
        {},
    ]
    for other in wrong:
        with pytest.raises(StoreError, match="saved labels: ") as caught:
            rule.load_state_dict(other)
        assert caught.value.cure
        after = rule.kept()
        assert after is not None
        assert torch.equal(after.labels, before.labels)
        assert torch.equal(after.touched, before.touched)


@pytest.mark.parametrize("name", [name for name in SMALL if name.startswith(("bootstrap", "joint", "pencil", "elr"))])
def test_a_state_without_epochs_is_refused(name: str) -> None:
    rule = made(name)
    for phases in ({}, None, {"ended": "2"}, {"ended": True}, {"ended": -1}):
        with pytest.raises(StoreError, match="epochs that are over"):
            rule.load_state_dict({**rule.state_dict(), "phases": phases})


@of_rows
def test_kept_labels_can_be_written_at_any_time(name: str, tmp_path: Path) -> None:
    rule = made(name)
    for at in (0, 1, 4, 18):
        rule = made(name)
        walk(rule, end=at)
        kept = rule.kept()
        assert kept is not None
        write_labels(tmp_path / f"{at}", kept, {"at": at})
        again = read_labels(tmp_path / f"{at}")
        assert again.kind == ("class" if name.startswith("online") else "instance")
        assert torch.equal(again.labels, kept.labels)
        if at == 0:
            assert not kept.touched.any()
    unseen = kept.labels[6] if kept.kind == "instance" else None
    if unseen is not None and not name.startswith("pencil"):
        assert torch.equal(unseen, torch.eye(C)[GIVEN[6]])
    assert kept.touched.tolist() == ([True] * 6 + [False] if kept.kind == "instance" else [True] * C)


@small
def test_logits_of_another_shape_are_an_error(name: str) -> None:
    for shape in ((2, C + 1), (2, 1), (3, C), (2,)):
        with pytest.raises(BilevelError, match="expected \\[2, 4\\]"):
            made(name).loss(torch.zeros(shape), *images(0, 3))


@of_rows
def test_an_image_without_a_row_is_an_error_on_the_cpu_and_moves_nothing(name: str) -> None:
    rule = made(name)
    walk(rule, end=7)  # past every warm-up
    before = copy.deepcopy(rule.state_dict())
    for index, label in ((3, C), (1000, C)):  # between two images and past the last; the class table asks the label
        with pytest.raises(DataError, match="no row in the label table"):
            rule.loss(torch.zeros(2, C), torch.tensor([2, index]), torch.tensor([0, label]))
    after = rule.state_dict()
    assert all(torch.equal(value, before[key]) for key, value in after.items() if isinstance(value, Tensor))


@small
def test_nothing_waits_for_the_device(name: str) -> None:
    rule = made(name)
    with no_host_sync():
        for epoch in range(EPOCHS):
            for rows in BATCHES:
                logits = noise(epoch, len(rows), C).requires_grad_()
                rule.loss(logits, *images(*rows))[0].mean().backward()  # type: ignore[no-untyped-call]
            rule.end_epoch(epoch + 1, EPOCHS)


@small
def test_nothing_waits_for_a_gpu_that_is_not_there(name: str) -> None:
    """On fake tensors, where everything that is on another device shows."""
    rule = made(name)
    with fake_cuda() as device:
        moved(rule, device)
        for epoch in range(EPOCHS):
            batch = torch.zeros(3, dtype=torch.int64, device=device)
            losses, labels = rule.loss(torch.zeros(3, C, device=device), batch, batch)
            assert losses.device == labels.device == device
            rule.end_epoch(epoch + 1, EPOCHS)


def moved(thing: object, device: torch.device) -> None:
    """Puts a rule's tensors, its parts' too, on a fake device: copies of their shapes."""
    for key, value in list(vars(thing).items()):
        if isinstance(value, Tensor):
            setattr(thing, key, torch.zeros(value.shape, dtype=value.dtype, device=device))
        elif isinstance(value, torch.nn.Module):
            for name, buffer in list(value.named_buffers()):
                setattr(value, name, torch.zeros(buffer.shape, dtype=buffer.dtype, device=device))
        elif hasattr(value, "__dict__") and type(value).__module__.startswith("distill."):
            moved(value, device)
