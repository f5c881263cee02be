"""A backend that is asked for is taken or refused, never replaced; what does not fit is named."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

from distill.errors import BilevelError
from distill.kernels import dispatch

LOGITS, PHI, ROWS = torch.zeros(4, 3), torch.zeros(5, 3), torch.tensor([0, 1, 1, 4])
ONE, FLAGS, STEPS = torch.ones(()), torch.zeros(5, dtype=torch.bool), torch.zeros(5, dtype=torch.int32)


@pytest.fixture(autouse=True)
def _compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


def test_auto_takes_the_reference_on_the_cpu() -> None:
    assert dispatch.choose("auto", LOGITS) == "reference"
    assert dispatch.choose("reference", LOGITS) == "reference"


def test_auto_stays_there_under_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(dispatch, "_has_triton", lambda: True)
    assert dispatch.choose("auto", LOGITS) == "reference"
    assert dispatch.choose("triton", LOGITS) == "triton"


@pytest.mark.gpu
def test_auto_takes_triton_on_a_gpu() -> None:
    on_gpu = LOGITS.cuda()
    assert dispatch.choose("auto", on_gpu) == "triton"
    assert dispatch.choose("auto", on_gpu, LOGITS) == "reference"
    assert dispatch.choose("auto", on_gpu.double()) == "reference"
    with pytest.raises(BilevelError, match="float64"):
        dispatch.choose("triton", on_gpu.double())


CALLS: dict[str, Callable[[dispatch.Backend], object]] = {
    "soft_cross_entropy_rows": lambda b: dispatch.soft_cross_entropy_rows(
        LOGITS, PHI, ROWS, keep_labels=True, backend=b
    ),
    "row_gradient": lambda b: dispatch.row_gradient(LOGITS, LOGITS, ONE, backend=b),
    "sgd_rows_": lambda b: dispatch.sgd_rows_(
        PHI, None, FLAGS, ROWS, LOGITS, step=ONE, momentum=0.0, mean=False, backend=b
    ),
    "adam_rows_": lambda b: dispatch.adam_rows_(
        PHI, PHI, PHI, STEPS, FLAGS, ROWS, LOGITS, step=ONE, betas=(0.9, 0.999), eps=1e-8, mean=False, backend=b
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_triton_on_the_cpu_is_an_error(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_has_triton", lambda: True)
    with pytest.raises(BilevelError, match=r"tensors are on cpu, expected a CUDA device") as caught:
        CALLS[name]("triton")
    assert '"auto" or "reference"' in caught.value.cure


def test_triton_without_the_package_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_has_triton", lambda: False)
    with pytest.raises(BilevelError, match="triton is not installed") as caught:
        dispatch.choose("triton", LOGITS)
    assert "pip install triton" in caught.value.cure
    assert dispatch.choose("auto", LOGITS) == "reference"


def test_triton_in_float64_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(dispatch, "_has_triton", lambda: True)
    with pytest.raises(BilevelError, match=r"found torch.float64, expected float32, bfloat16 or float16"):
        dispatch.choose("triton", LOGITS, PHI.double())


def test_triton_is_imported_only_where_it_runs() -> None:
    code = """
import sys, torch
from distill.kernels import dispatch
from distill.errors import BilevelError
sys.modules["triton"] = None  # importing it raises
z, rows, one = torch.zeros(2, 3), torch.tensor([0, 1]), torch.ones(())
loss, y = dispatch.soft_cross_entropy_rows(z, z.clone(), rows, keep_labels=True)
g = dispatch.row_gradient(y, z, one)
dispatch.sgd_rows_(z, None, torch.zeros(2, dtype=torch.bool), rows, g, step=one, momentum=0.0, mean=True)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def sgd(**changed: object) -> None:
    arguments = {
        "phi": PHI, "buffer": torch.zeros(5, 3), "touched": FLAGS, "rows": ROWS, "gradient": LOGITS,
        "step": ONE, "momentum": 0.9, "mean": False,
    }  # fmt: skip
    dispatch.sgd_rows_(**{**arguments, **changed})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rows": ROWS.int()}, r"rows: found torch.int32 \[4\], expected int64 \[B\]"),
        ({"gradient": torch.zeros(3, 3)}, r"gradient: found \[3, 3\], expected \[4, C\]"),
        ({"phi": torch.zeros(5, 2)}, r"phi: found \[5, 2\], expected \[5, 3\]"),
        ({"buffer": torch.zeros(4, 3)}, r"buffer: found \[4, 3\], expected \[5, 3\]"),
        ({"phi": torch.zeros(3, 5).t()}, r"phi: found strides \(1, 5\), expected a contiguous table"),
        ({"rows": ROWS.to("meta")}, r"rows: found on meta, expected cpu, where phi is"),
        ({"step": ONE.to("meta")}, r"step: found on meta, expected cpu, where phi is"),
        ({"touched": STEPS}, r"touched: found torch.int32 \[5\], expected torch.bool \[5\]"),
        ({"step": torch.ones(1)}, r"step: found torch.float32 \[1\], expected one floating-point number"),
        ({"buffer": None}, r"buffer: momentum is 0.9; expected a buffer"),
        ({"momentum": 0.0}, r"buffer: momentum is 0.0; expected .* None without"),
    ],
)
def test_what_does_not_fit_is_named(changed: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sgd(**changed)


def test_a_table_that_wants_a_gradient_is_refused() -> None:
    with pytest.raises(ValueError, match="phi: requires a gradient"):
        dispatch.soft_cross_entropy_rows(LOGITS, PHI.clone().requires_grad_(), ROWS, keep_labels=False)


def test_adam_needs_a_positive_eps() -> None:
    with pytest.raises(ValueError, match=r"eps: found 0\.0"):
        dispatch.adam_rows_(
            PHI, PHI, PHI, STEPS, FLAGS, ROWS, LOGITS, step=ONE, betas=(0.9, 0.999), eps=0.0, mean=False
        )


def test_row_gradient_shapes() -> None:
    with pytest.raises(ValueError, match=r"derivative: found \[5, 3\], expected the labels' \[4, 3\]"):
        dispatch.row_gradient(LOGITS, PHI, ONE)
