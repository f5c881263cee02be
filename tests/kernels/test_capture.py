"""The label operations keep a GPU's queue filled: no host synchronisation, and a CUDA graph can hold them all."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from distill.kernels import dispatch
from tests.kernels.judge import ROWS, Make, adam_state, sgd_state
from tests.nosync import gpu_must_not_wait


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["triton", "reference"])
def test_nothing_waits_for_the_device_and_all_can_be_captured(backend: dispatch.Backend) -> None:
    make = Make(torch.device("cuda"))
    logits, rows = make.normal(41, 100).requires_grad_(), make.integers(ROWS, 41)
    scale, step = torch.tensor(3.0, device="cuda"), torch.tensor(0.1, device="cuda")
    sgd, adam = sgd_state(make, 100, torch.float32), adam_state(make, 100, torch.float32)

    def work() -> Tensor:
        loss, labels = dispatch.soft_cross_entropy_rows(logits, sgd[0], rows, keep_labels=True, backend=backend)
        assert labels is not None
        (derivative,) = torch.autograd.grad(loss.mean(), logits)
        gradient = dispatch.row_gradient(labels, derivative, scale, backend=backend)
        dispatch.sgd_rows_(*sgd, rows, gradient, step=step, momentum=0.9, mean=True, backend=backend)
        dispatch.adam_rows_(*adam, rows, gradient, step=step, betas=(0.9, 0.999), eps=1e-8, mean=True, backend=backend)
        return gradient

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        work()  # compiles
        with gpu_must_not_wait():
            work()
    torch.cuda.synchronize()
    before = [t.clone() for t in sgd + adam]
    work()
    expected = [t.clone() for t in sgd + adam]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    for t, b in zip(sgd + adam, before, strict=True):
        t.copy_(b)
    graph.replay()
    torch.cuda.synchronize()
    # The reference adds repeats in any order on CUDA, so its bits may differ from run to run.
    exact = {"rtol": 0.0, "atol": 0.0} if backend == "triton" else {}
    for found, wanted in zip(sgd + adam, expected, strict=True):
        torch.testing.assert_close(found, wanted, **exact)
