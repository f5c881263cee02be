"""The Triton kernels of the label rows against the reference in plain torch, on a GPU.

Run: python benchmarks/kernels.py [--classes 10 100 1000] [--rows 50000] [--batch 128] [--rounds 15] [--device cuda]

Four operations of a label step: the soft cross-entropy with labels gathered from the table, forward and backward; from
dL/dy to dL/dphi; SGD with momentum and Adam on the rows of a batch. A round takes every operation with both backends, a
group of twenty each, in an order that turns from round to round. Given are medians over the rounds of microseconds a
call, as the host sees them with the device's work done, the median of the rounds' ratios with its quartiles, and the
floor: the fewest bytes that must move (each input read once, each output written once) over the bandwidth of a copy on
the same device, measured in the same run. Not run on a GPU yet.

An operation is a line of OPERATIONS: a function that is given `Inputs` and a backend and does it once.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Literal

import torch
from torch import Tensor

from distill.kernels import dispatch

Backend = Literal["reference", "triton"]
BACKENDS: tuple[Backend, ...] = ("reference", "triton")
GROUP = 20


@dataclass(frozen=True)
class Inputs:
    """A table of label logits and a batch."""

    logits: Tensor  # [B, C], wants a gradient
    phi: Tensor  # [R, C]
    first: Tensor  # [R, C]
    second: Tensor  # [R, C]
    touched: Tensor  # bool [R]
    steps: Tensor  # int32 [R]
    rows: Tensor  # int64 [B]
    gradient: Tensor  # [B, C]
    labels: Tensor  # [B, C]
    step: Tensor  # []


def make(rows: int, batch: int, classes: int, device: torch.device) -> Inputs:
    """Random ones; the batch's rows differ, as in training."""
    torch.manual_seed(0)

    def normal(count: int) -> Tensor:
        return torch.randn(count, classes, device=device)

    return Inputs(
        logits=normal(batch).requires_grad_(),
        phi=normal(rows),
        first=torch.zeros(rows, classes, device=device),
        second=torch.zeros(rows, classes, device=device),
        touched=torch.zeros(rows, dtype=torch.bool, device=device),
        steps=torch.zeros(rows, dtype=torch.int32, device=device),
        rows=torch.randperm(rows, device=device)[:batch],
        gradient=normal(batch) / batch,
        labels=normal(batch).softmax(1),
        step=torch.tensor(0.1, device=device),
    )


def _soft_cross_entropy(x: Inputs, backend: Backend) -> None:
    loss, _ = dispatch.soft_cross_entropy_rows(x.logits, x.phi, x.rows, keep_labels=True, backend=backend)
    loss.sum().backward()  # type: ignore[no-untyped-call]
    x.logits.grad = None


def _row_gradient(x: Inputs, backend: Backend) -> None:
    dispatch.row_gradient(x.labels, x.gradient, x.step, backend=backend)


def _sgd(x: Inputs, backend: Backend) -> None:
    dispatch.sgd_rows_(
        x.phi, x.first, x.touched, x.rows, x.gradient, step=x.step, momentum=0.9, mean=False, backend=backend
    )


def _adam(x: Inputs, backend: Backend) -> None:
    dispatch.adam_rows_(
        x.phi,
        x.first,
        x.second,
        x.steps,
        x.touched,
        x.rows,
        x.gradient,
        step=x.step,
        betas=(0.9, 0.999),
        eps=1e-8,
        mean=False,
        backend=backend,
    )


# What an operation does, and how often it must move a [B, C] matrix of float32.
OPERATIONS: dict[str, tuple[Callable[[Inputs, Backend], None], int]] = {
    "soft cross-entropy": (_soft_cross_entropy, 4),  # logits, phi; gradient, labels
    "row gradient": (_row_gradient, 3),  # y, a; gradient
    "SGD, momentum": (_sgd, 5),  # gradient, phi, buffer; phi, buffer
    "Adam": (_adam, 7),  # gradient, phi, two moments; phi, two moments
}


def microseconds(run: Callable[[], None]) -> float:
    """Of one call, in a group, with the device's work done."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(GROUP):
        run()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / GROUP * 1e6


def bandwidth(device: torch.device) -> float:
    """Bytes a microsecond, read and written, of a copy of a gigabyte."""
    source = torch.randn(2**28, device=device)
    copy = torch.empty_like(source)
    copy.copy_(source)
    return 2 * source.nbytes / min(microseconds(lambda: copy.copy_(source)) for _ in range(3))


def measure(x: Inputs, rounds: int) -> dict[str, dict[Backend, list[float]]]:
    """Microseconds of each operation by both backends, round by round."""
    variants = list(product(OPERATIONS, BACKENDS))
    times: dict[str, dict[Backend, list[float]]] = {name: {b: [] for b in BACKENDS} for name in OPERATIONS}
    for name, backend in variants:  # compiles and warms up
        for _ in range(3):
            OPERATIONS[name][0](x, backend)
    for turn in range(rounds):
        at = turn % len(variants)
        for name, backend in variants[at:] + variants[:at]:
            run = OPERATIONS[name][0]
            times[name][backend].append(microseconds(lambda run=run, backend=backend: run(x, backend)))  # type: ignore[misc]
    return times


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cuda")
    given = parser.parse_args()
    device = torch.device(given.device)
    if device.type != "cuda" or not torch.cuda.is_available():
        sys.exit(f"--device: found {given.device}, and torch sees no CUDA device for it; Triton's kernels run on a GPU")
    rate = bandwidth(device)
    print(f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}, a copy moves {rate / 1e6:.2f} TB/s")
    print(f"batch {given.batch}, table of {given.rows} rows, float32, {given.rounds} rounds")
    print(f"{'operation':20} {'C':>5} {'reference us':>13} {'triton us':>10} {'ratio (quartiles)':>22} {'floor us':>9}")
    for classes in given.classes:
        times = measure(make(given.rows, given.batch, classes, device), given.rounds)
        for name, taken in times.items():
            reference, fused = (statistics.median(taken[backend]) for backend in BACKENDS)
            ratios = [one / two for one, two in zip(taken["reference"], taken["triton"], strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4)
            floor = OPERATIONS[name][1] * given.batch * classes * 4 / rate
            told = f"{middle:.2f} ({low:.2f} to {high:.2f})"
            print(f"{name:20} {classes:5} {reference:13.1f} {fused:10.1f} {told:>22} {floor:9.3f}")


if __name__ == "__main__":
    main()
