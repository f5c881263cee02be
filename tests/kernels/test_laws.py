"""Each kernel against its definition in float64.

On a GPU (`make test-gpu`) the compiled kernels are judged. On any Linux machine Triton's interpreter runs the same
source on CPU tensors; it must be switched on before Triton is imported, so `test_interpreter.py` runs this file once
more in a process of its own, with TRITON_INTERPRET=1.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from distill.errors import BilevelError
from distill.kernels import dispatch, reference
from tests.kernels.judge import ROWS, Make, adam_state, judge, sgd_state, wide

pytest.importorskip("triton", reason="triton is not installed (it exists for Linux only)")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
BETAS, EPS, MOMENTUM = (0.9, 0.999), 1e-8, 0.9
# [B, C]; 5000 classes are walked in three blocks. The interpreter takes about 5 ms for each row of a batch.
SHAPES = [(1, 1), (3, 1), (1, 1271), (100, 3), (3, 1000), (41, 41), (3, 5000)]
HALF_SHAPES = [(3, 41), (3, 1000)]
if not INTERPRETED:
    SHAPES += [(1000, 100), (1271, 1271), (41, 21841)]
    HALF_SHAPES = SHAPES
FORMS = [(*shape, torch.float32) for shape in SHAPES]
FORMS += [(*shape, dtype) for shape in HALF_SHAPES for dtype in (torch.bfloat16, torch.float16)]
every_form = pytest.mark.parametrize(("batch", "classes", "dtype"), FORMS, ids=str)


@pytest.fixture(params=["cpu" if INTERPRETED else pytest.param("cuda", marks=pytest.mark.gpu)])
def make(request: pytest.FixtureRequest) -> Make:
    return Make(torch.device(request.param))


def number(make: Make, value: float) -> Tensor:
    return torch.tensor(value, device=make.device)


def soft_ce(logits: Tensor, phi: Tensor, rows: Tensor, backend: dispatch.Backend) -> tuple[Tensor, Tensor, Tensor]:
    """Loss [B], labels [B, C], and the logits' gradient of a weighted sum of losses [B, C]."""
    logits = logits.detach().requires_grad_()
    loss, labels = dispatch.soft_cross_entropy_rows(logits, phi, rows, keep_labels=True, backend=backend)
    assert labels is not None
    weights = torch.linspace(0.5, 1.5, loss.numel(), device=loss.device, dtype=loss.dtype)
    (gradient,) = torch.autograd.grad((loss * weights).sum(), logits)
    return loss.detach(), labels, gradient


def judge_soft_ce(logits: Tensor, phi: Tensor, rows: Tensor) -> None:
    found = soft_ce(logits, phi, rows, "triton")
    plain = soft_ce(logits, phi, rows, "reference")
    oracle = soft_ce(logits.double(), phi.double(), rows, "reference")
    for what, f, p, o in zip(("loss", "labels", "gradient"), found, plain, oracle, strict=True):
        judge(what, f, p, o)
    masked = torch.isinf(phi[rows])
    assert (found[1][masked] == 0).all(), "a masked class has probability exactly 0"


@every_form
def test_soft_cross_entropy(make: Make, batch: int, classes: int, dtype: torch.dtype) -> None:
    judge_soft_ce(
        make.normal(batch, classes, dtype=dtype, scale=3.0), make.table(ROWS, classes), make.integers(ROWS, batch)
    )


def test_soft_cross_entropy_of_a_half_precision_table(make: Make) -> None:
    rows = make.integers(ROWS, 8)
    judge_soft_ce(make.normal(8, 41, dtype=torch.bfloat16), make.table(ROWS, 41, torch.bfloat16), rows)


@pytest.mark.parametrize("offset", [1e4, -1e4])
def test_soft_cross_entropy_far_from_zero(make: Make, offset: float) -> None:
    logits = make.normal(4, 41, scale=100.0) + offset
    judge_soft_ce(logits, make.table(ROWS, 41) * 20 + offset, make.integers(ROWS, 4))


def test_masked_classes_may_fill_whole_blocks(make: Make) -> None:
    phi = make.table(ROWS, 5000)
    phi[:, :4097] = float("-inf")
    judge_soft_ce(make.normal(3, 5000), phi, make.integers(ROWS, 3))


def test_a_masked_class_may_have_an_impossible_logit(make: Make) -> None:
    phi, rows = make.table(ROWS, 41), make.integers(ROWS, 4)
    logits = make.normal(4, 41).masked_fill(torch.isinf(phi[rows]), float("-inf"))
    judge_soft_ce(logits, phi, rows)


def test_soft_cross_entropy_takes_views(make: Make) -> None:
    logits, rows = make.normal(41, 6).t()[::2], make.integers(ROWS, 6)[::2]
    assert not logits.is_contiguous()
    judge_soft_ce(logits, make.table(ROWS, 41), rows)
    judge_soft_ce(make.normal(1, 41).expand(3, 41), make.table(ROWS, 41), rows)


def test_soft_cross_entropy_without_gradient_or_labels(make: Make) -> None:
    logits, phi, rows = make.normal(3, 41), make.table(ROWS, 41), make.integers(ROWS, 3)
    loss, labels = dispatch.soft_cross_entropy_rows(logits, phi, rows, keep_labels=False, backend="triton")
    assert labels is None
    assert not loss.requires_grad
    assert torch.equal(loss, soft_ce(logits, phi, rows, "triton")[0])


def test_a_second_derivative_is_an_error(make: Make) -> None:
    logits = make.normal(3, 41).requires_grad_()
    phi, rows = make.table(ROWS, 41), make.integers(ROWS, 3)
    loss, _ = dispatch.soft_cross_entropy_rows(logits, phi, rows, keep_labels=False, backend="triton")
    with pytest.raises(BilevelError, match="no second derivative"):
        torch.autograd.grad(loss.sum(), logits, create_graph=True)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # numpy's, in the interpreter
def test_a_row_outside_the_table_gives_nan(make: Make) -> None:
    logits, phi = make.normal(3, 41), make.table(ROWS, 41)
    rows = torch.tensor([-1, 2, ROWS], device=make.device)
    loss, labels = dispatch.soft_cross_entropy_rows(logits, phi, rows, keep_labels=True, backend="triton")
    assert labels is not None
    assert torch.isnan(loss).tolist() == [True, False, True]
    assert torch.isnan(labels).all(1).tolist() == [True, False, True]


@every_form
def test_row_gradient(make: Make, batch: int, classes: int, dtype: torch.dtype) -> None:
    labels = torch.softmax(make.table(batch, classes), dim=-1).to(dtype)
    derivative, scale = make.normal(batch, classes, dtype=dtype), number(make, 128 / 0.1)
    found = dispatch.row_gradient(labels, derivative, scale, backend="triton")
    plain = reference.row_gradient(labels, derivative, scale)
    judge("gradient", found, plain, reference.row_gradient(labels.double(), derivative.double(), scale))
    assert (found[labels == 0] == 0).all()


def test_row_gradient_takes_views(make: Make) -> None:
    labels, derivative = torch.softmax(make.normal(41, 6), dim=0).t()[::2], make.normal(1, 41).expand(3, 41)
    scale = number(make, 2.0)
    found = dispatch.row_gradient(labels, derivative, scale, backend="triton")
    plain = reference.row_gradient(labels, derivative, scale)
    judge("gradient", found, plain, reference.row_gradient(labels.double(), derivative.double(), scale))


State = Callable[[Make, int, torch.dtype], list[Tensor]]


def update(state: list[Tensor], rows: Tensor, gradient: Tensor, *, mean: bool, backend: dispatch.Backend) -> None:
    """SGD on three tensors, Adam on five."""
    step = torch.tensor(0.1, device=rows.device)
    if len(state) == 3:
        phi, buffer, touched = state
        dispatch.sgd_rows_(
            phi, buffer, touched, rows, gradient, step=step, momentum=MOMENTUM, mean=mean, backend=backend
        )
    else:
        phi, first, second, steps, touched = state
        dispatch.adam_rows_(
            phi, first, second, steps, touched, rows, gradient,
            step=step, betas=BETAS, eps=EPS, mean=mean, backend=backend,
        )  # fmt: skip


def judge_update(state: list[Tensor], rows: Tensor, gradient: Tensor, *, mean: bool) -> None:
    before, again = [t.clone() for t in state], [t.clone() for t in state]
    plain, oracle = [t.clone() for t in state], [wide(t) for t in state]
    update(state, rows, gradient, mean=mean, backend="triton")
    update(plain, rows, gradient, mean=mean, backend="reference")
    update(oracle, rows, gradient.double(), mean=mean, backend="reference")
    untouched = torch.ones(state[0].shape[0], dtype=torch.bool, device=rows.device)
    untouched[rows] = False
    for place, (f, p, o, b) in enumerate(zip(state, plain, oracle, before, strict=True)):
        if f.is_floating_point():
            judge(f"tensor {place}", f, p, o)
        else:
            assert torch.equal(f, p), f"tensor {place}"
        assert torch.equal(f[untouched], b[untouched]), f"tensor {place}: an untouched row has changed"
    update(again, rows, gradient, mean=mean, backend="triton")
    assert all(torch.equal(x, y) for x, y in zip(state, again, strict=True)), "the same update gives the same bits"


@pytest.mark.parametrize("mean", [False, True], ids=["sum", "mean"])
@every_form
@pytest.mark.parametrize("state", [sgd_state, adam_state])
def test_row_update(make: Make, state: State, batch: int, classes: int, dtype: torch.dtype, mean: bool) -> None:
    judge_update(state(make, classes, dtype), make.integers(ROWS, batch), make.normal(batch, classes), mean=mean)


def test_a_thousand_images_of_seven_classes(make: Make) -> None:
    judge_update(sgd_state(make, 3, torch.float32), make.integers(ROWS, 1000), make.normal(1000, 3), mean=True)


@pytest.mark.skipif(not INTERPRETED, reason="runs under the interpreter, started by test_interpreter.py")
@given(rows=st.lists(st.integers(0, 4), min_size=1, max_size=12), mean=st.booleans())
@settings(max_examples=20, deadline=None)
def test_repeats_in_any_order(rows: list[int], mean: bool) -> None:
    make = Make(torch.device("cpu"))
    judge_update(sgd_state(make, 3, torch.float32, 5), torch.tensor(rows), make.normal(len(rows), 3), mean=mean)


def test_the_update_takes_views_and_half_precision_gradients(make: Make) -> None:
    rows = make.integers(ROWS, 12)[::2]
    judge_update(adam_state(make, 41, torch.float32), rows, make.normal(41, 6).t(), mean=True)
    judge_update(adam_state(make, 41, torch.float32), rows, make.normal(6, 41, dtype=torch.bfloat16), mean=False)


def test_the_first_adam_step_is_the_sign(make: Make) -> None:
    phi = torch.zeros(3, 41, device=make.device)
    state = [phi, torch.zeros_like(phi), torch.zeros_like(phi)]
    state += [torch.zeros(3, dtype=dtype, device=make.device) for dtype in (torch.int32, torch.bool)]
    gradient = make.normal(1, 41)
    update(state, torch.tensor([1], device=make.device), gradient, mean=False, backend="triton")
    # The bias corrections undo 1 - beta: only so if 1 - beta2^t is right to more than four digits.
    torch.testing.assert_close(phi[1], -0.1 * gradient[0].sign(), rtol=2e-6, atol=0)


def test_rows_outside_the_table_are_left_out(make: Make) -> None:
    state = sgd_state(make, 3, torch.float32)
    before = [t.clone() for t in state]
    rows = torch.tensor([ROWS, -1, -1], device=make.device)
    update(state, rows, make.normal(3, 3), mean=False, backend="triton")
    assert all(torch.equal(x, y) for x, y in zip(state, before, strict=True))


def test_an_empty_batch_changes_nothing(make: Make) -> None:
    state = sgd_state(make, 3, torch.float32)
    before = [t.clone() for t in state]
    rows, none = make.integers(ROWS, 0), make.normal(0, 3)
    update(state, rows, none, mean=True, backend="triton")
    assert all(torch.equal(x, y) for x, y in zip(state, before, strict=True))
    loss, _ = dispatch.soft_cross_entropy_rows(none, state[0], rows, keep_labels=True, backend="triton")
    assert loss.shape == (0,)
    assert dispatch.row_gradient(none, none, number(make, 1.0), backend="triton").shape == (0, 3)


def huge_table(make: Make, rows: int, classes: int, path: Path) -> Tensor:
    """Zeros [R, C] in float16 with more than 2^31 elements; on the CPU a file with holes, which takes no space."""
    if make.device.type == "cuda":
        return torch.zeros(rows, classes, dtype=torch.float16, device=make.device)
    table = torch.from_file(str(path), shared=True, size=rows * classes, dtype=torch.float16).view(rows, classes)
    path.unlink()  # the mapping keeps it until the tensor goes
    return table


def test_offsets_beyond_two_to_the_31(make: Make, tmp_path: Path) -> None:
    classes = 1000
    count = 2**31 // classes + 10
    phi, buffer = (huge_table(make, count, classes, tmp_path / name) for name in ("phi", "buffer"))
    touched = torch.zeros(count, dtype=torch.bool, device=make.device)
    last, gradient = count - 1, make.normal(2, classes)
    assert last * classes > 2**31
    rows = torch.tensor([last, 3], device=make.device)
    step = number(make, 0.5)
    dispatch.sgd_rows_(phi, buffer, touched, rows, gradient, step=step, momentum=MOMENTUM, mean=False, backend="triton")
    assert torch.equal(buffer[rows], gradient.half())
    assert torch.equal(phi[rows], (-0.5 * gradient).half())
    assert touched.nonzero().flatten().tolist() == [3, last]
    logits = make.normal(2, classes)
    _, labels = dispatch.soft_cross_entropy_rows(logits, phi, rows, keep_labels=True, backend="triton")
    assert labels is not None
    torch.testing.assert_close(labels, torch.softmax(phi[rows].float(), dim=-1))
