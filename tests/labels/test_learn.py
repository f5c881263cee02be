"""Laws of a label step, over every kind of table, parametrisation and optimiser."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from distill.errors import BilevelError, StoreError
from distill.kernels import dispatch
from distill.labels.learned import Learned
from distill.labels.optim import RowAdam
from distill.labels.tables import Kind, LabelTable, Parametrisation
from distill.store.checkpoint import load_state, save_state
from tests.labels.cases import EVERY, KINDS, OPTIMIZERS, PARAMETRISATIONS, C, N, images, learn, learned, noise
from tests.nosync import fake_cuda, gpu_must_not_wait, no_host_sync

DOUBLE = torch.float64
every = pytest.mark.parametrize(("kind", "parametrisation", "optimizer"), EVERY)
row_lists = st.lists(st.integers(0, N - 1), min_size=1, max_size=9)


def tensors(rule: Learned) -> dict[str, Tensor]:
    """What a step may change, row by row."""
    return {"phi": rule.table.phi, **rule.optimizer.state_dict()}


@every
def test_repeats_are_summed_by_image_and_averaged_by_class(
    kind: Kind, parametrisation: Parametrisation, optimizer: str
) -> None:
    """Images 1 and 5 are of one class: one of them with the mean of both gradients moves the class as both do."""
    rule, once = (learned(kind, parametrisation, optimizer, dtype=DOUBLE) for _ in range(2))
    for number in range(3):
        a, b, c = noise(number, 3, C, dtype=DOUBLE)
        if kind == "class":
            learn(rule, [1, 2, 5], torch.stack([a, b, c]))
            learn(once, [1, 2], torch.stack([(a + c) / 2, b]))
        else:
            learn(rule, [1, 2, 1], torch.stack([a, b, c]))
            learn(once, [1, 2], torch.stack([a + c, b]))
    for name, value in tensors(rule).items():
        torch.testing.assert_close(value, tensors(once)[name])


@every
@settings(max_examples=15, deadline=None)
@given(batches=st.lists(row_lists, min_size=1, max_size=3))
def test_untouched_rows_stay_as_they_are_to_the_bit(
    kind: Kind, parametrisation: Parametrisation, optimizer: str, batches: list[list[int]]
) -> None:
    rule = learned(kind, parametrisation, optimizer)
    before = copy.deepcopy(tensors(rule))
    for number, batch in enumerate(batches):
        learn(rule, batch, noise(number, len(batch), C))
    named = {row for batch in batches for row in rule.table.rows(*images(*batch)).tolist()}
    rest = sorted(set(range(rule.table.phi.shape[0])) - named)
    assert all(torch.equal(value[rest], before[name][rest]) for name, value in tensors(rule).items())
    assert rule.optimizer.touched.nonzero().flatten().tolist() == sorted(named)


@every
@settings(max_examples=10, deadline=None)
@given(order=st.permutations(range(C)))
def test_renaming_the_classes_renames_the_result(
    kind: Kind, parametrisation: Parametrisation, optimizer: str, order: list[int]
) -> None:
    """Class c becomes order[c]."""
    new = torch.tensor(order)
    old = new.argsort()
    rule, other = (learned(kind, parametrisation, optimizer, dtype=DOUBLE) for _ in range(2))
    start = rule.table.phi[old] if kind == "class" else rule.table.phi
    other.table.phi.copy_(start[:, old])
    if kind == "instance":  # a class table's row c is class c before and after
        other.table.given = new[rule.table.given]
    for number in range(2):
        rows = [0, 3, 3, 4]
        indices, labels_given = images(*rows)
        gradient = noise(number, len(rows), C, dtype=DOUBLE)
        learn(rule, rows, gradient)
        renamed = new[labels_given]
        other.learn(indices, renamed, other.labels(indices, renamed), gradient[:, old], scale=2.0)
    expected = rule.table.phi[old] if kind == "class" else rule.table.phi
    torch.testing.assert_close(other.table.phi, expected[:, old])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
def test_touching_every_row_is_torch_s_optimiser_on_the_table(kind: Kind, optimizer: str) -> None:
    rule = learned(kind, optimizer=optimizer, dtype=DOUBLE)
    phi = rule.table.phi.clone().requires_grad_()
    dense: torch.optim.Optimizer = (
        torch.optim.Adam([phi], lr=0.1) if optimizer == "adam" else torch.optim.SGD([phi], lr=0.5, momentum=0.9)
    )
    rows = list(range(phi.shape[0]))
    for number in range(6):
        gradient = noise(number, len(rows), C, dtype=DOUBLE)
        learn(rule, rows, gradient, scale=3.0)
        dense.zero_grad()
        (torch.softmax(phi, -1) * gradient * 3.0).sum().backward()  # type: ignore[no-untyped-call]
        dense.step()
    torch.testing.assert_close(rule.table.phi, phi.detach())


def test_adam_counts_a_row_only_when_it_is_touched() -> None:
    rule, alone = (learned("instance", optimizer="adam") for _ in range(2))
    gradients = noise(0, 4, 1, C)
    for number, rows in enumerate(([1], [1], [2], [1])):
        learn(rule, rows, gradients[number])
    learn(alone, [2], gradients[2])
    assert isinstance(rule.optimizer, RowAdam)
    assert rule.optimizer.steps.tolist() == [0, 3, 1, 0, 0, 0, 0]
    assert torch.equal(rule.table.phi[2], alone.table.phi[2])


@every
def test_labels_stay_on_the_simplex(kind: Kind, parametrisation: Parametrisation, optimizer: str) -> None:
    rule = learned(kind, parametrisation, optimizer)
    for number in range(5):
        learn(rule, [0, 2, 2, 5], noise(number, 4, C), scale=10.0)
        labels = rule.table.all_labels()
        torch.testing.assert_close(labels.sum(-1), torch.ones(len(labels)))
        assert labels.min() > 0


@every
def test_a_saved_rule_goes_on_to_the_same_bits(
    kind: Kind, parametrisation: Parametrisation, optimizer: str, tmp_path: Path
) -> None:
    whole, first, second = (learned(kind, parametrisation, optimizer) for _ in range(3))
    batches = [[0, 1, 1], [3, 1], [4, 6, 0, 0], [1, 5]]
    for number, rows in enumerate(batches):
        learn(whole, rows, noise(number, len(rows), C))
        learn(first if number < 2 else second, rows, noise(number, len(rows), C))
        for rule in (whole, first if number < 2 else second):
            rule.end_epoch(number + 1, len(batches))
        if number == 1:
            save_state(tmp_path / "state.safetensors", first.state_dict())
            second.load_state_dict(load_state(tmp_path / "state.safetensors"))
    found, expected = tensors(second), tensors(whole)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert torch.equal(second.averaged(), whole.averaged())


@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
def test_a_state_of_other_labels_is_refused_and_changes_nothing(optimizer: str) -> None:
    rule = learned("instance", optimizer=optimizer)
    before = copy.deepcopy(tensors(rule))
    state = rule.state_dict()
    wrong = {
        "phi is torch.float32 [7, 5], expected torch.float32 [7, 4]": {**state, "phi": torch.zeros(N, 5)},
        "phi is torch.float64 [7, 4], expected torch.float32": {**state, "phi": torch.zeros(N, C, dtype=DOUBLE)},
        "sum is none, expected": {**state, "history": {**state["history"], "sum": None}},
    }
    for message, changed in wrong.items():
        with pytest.raises(StoreError, match=message.replace("[", r"\[")) as caught:
            rule.load_state_dict(changed)
        assert "delete the resume state" in caught.value.cure
    with pytest.raises(StoreError, match=r"(first|buffer) is none, expected torch.float32 \[7, 4\]"):
        rule.load_state_dict({**state, "optimizers": learned("instance").state_dict()["optimizers"]})
    with pytest.raises(StoreError, match=r"(first|buffer) is torch.float32 \[7, 4\], expected none"):
        learned("instance").load_state_dict(state)
    assert all(torch.equal(value, before[name]) for name, value in tensors(rule).items())


@pytest.mark.parametrize("parametrisation", PARAMETRISATIONS)
def test_the_scale_multiplies_the_gradient_and_may_lie_on_the_device(parametrisation: Parametrisation) -> None:
    by_hand, number, tensor = (learned("instance", parametrisation) for _ in range(3))
    at, gradient = images(0, 1, 1), noise(0, 3, C) / 100  # small, so that no projected label is clamped
    labels = number.labels(*at)
    by_hand.learn(*at, labels, 8 * gradient, scale=1.0)
    number.learn(*at, labels, gradient, scale=8.0)
    tensor.learn(*at, labels, gradient, scale=torch.tensor(8.0, dtype=DOUBLE))
    assert torch.equal(number.table.phi, by_hand.table.phi)
    assert torch.equal(tensor.table.phi, by_hand.table.phi)


def test_adam_has_no_momentum_of_ours() -> None:
    with pytest.raises(BilevelError, match=r"momentum is 0\.5 with adam rows"):
        Learned(learned("class").table, step=0.1, optimizer="adam", momentum=0.5)


def test_triton_on_the_cpu_is_refused_before_anything_is_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(dispatch, "_has_triton", lambda: True)
    with pytest.raises(BilevelError, match="tensors are on cpu, expected a CUDA device") as caught:
        learned("class", backend="triton")
    assert "teacher.labels.backend" in caught.value.cure
    assert learned("class").backend == "reference"


def walk(rule: Learned, logits: Tensor, indices: Tensor, labels_given: Tensor, *, backward: bool) -> None:
    """Two steps of a training loop, as far as the labels go."""
    for scale in (12.5, torch.full((), 12.5, device=logits.device)):
        loss, labels = rule.loss(logits, indices, labels_given)
        rule.labels(indices, labels_given)
        gradient = torch.autograd.grad(loss.mean(), logits)[0] if backward else torch.zeros_like(labels)
        rule.learn(indices, labels_given, labels, gradient, scale=scale)


@every
def test_nothing_waits_for_the_device(kind: Kind, parametrisation: Parametrisation, optimizer: str) -> None:
    rule = learned(kind, parametrisation, optimizer)
    logits = noise(0, 4, C).requires_grad_()
    at = images(0, 2, 2, 5)
    with no_host_sync():
        walk(rule, logits, *at, backward=True)


@pytest.mark.gpu
@every
@pytest.mark.parametrize("backend", ["triton", "reference"])
def test_nothing_waits_for_the_gpu(
    kind: Kind, parametrisation: Parametrisation, optimizer: str, backend: dispatch.Backend
) -> None:
    device = torch.device("cuda")
    rule = learned(kind, parametrisation, optimizer, device=device, backend=backend)
    logits = noise(0, 4, C).to(device).requires_grad_()
    indices, labels_given = (t.to(device) for t in images(0, 2, 2, 5))
    walk(rule, logits, indices, labels_given, backward=True)  # compiles
    with gpu_must_not_wait():
        walk(rule, logits, indices, labels_given, backward=True)


@every
def test_nothing_waits_for_a_gpu_that_is_not_there(
    kind: Kind, parametrisation: Parametrisation, optimizer: str
) -> None:
    """On fake tensors, where everything that is on another device, or done for CUDA only, shows."""
    with fake_cuda() as device:
        count = C if kind == "class" else N
        numbers = torch.zeros(count, dtype=torch.int64, device=device)
        position = torch.zeros(0 if kind == "class" else 3 * N, dtype=torch.int64, device=device)
        phi = torch.zeros(count, C, device=device)
        rows = LabelTable(kind, phi, numbers, numbers, position, parametrisation)
        rule = Learned(rows, backend="reference", **OPTIMIZERS[optimizer])
        batch = torch.zeros(4, dtype=torch.int64, device=device)
        walk(rule, torch.zeros(4, C, device=device), batch, batch, backward=False)
