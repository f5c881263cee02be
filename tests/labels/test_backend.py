"""Training's path through the Triton kernels against the reference: loss, gradient, label step, over several batches.

On a GPU the compiled kernels, else Triton's interpreter, in a process that `tests/kernels/test_interpreter.py` starts.
"""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

from distill.kernels.dispatch import Backend
from distill.labels.tables import Kind, Parametrisation
from tests.kernels.judge import judge
from tests.labels.cases import EVERY, C, images, learned, noise

pytest.importorskip("triton", reason="triton is not installed (it exists for Linux only)")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
BATCHES = [[0, 1, 2, 5], [2, 2, 2], [6, 1, 6, 3, 1], [4], [0, 2, 5, 1]]


@pytest.fixture(params=["cpu" if INTERPRETED else pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


def train(
    kind: Kind, parametrisation: Parametrisation, optimizer: str, device: torch.device, backend: Backend, wide: bool
) -> dict[str, Tensor]:
    """What a run over the batches computes and leaves behind; logits that the labels' losses themselves move."""
    dtype = torch.float64 if wide else torch.float32
    rule = learned(kind, parametrisation, optimizer, dtype=dtype, device=device, backend=backend)
    assert rule.backend == backend
    network = noise(0, 7, C, dtype=dtype).to(device)
    losses = []
    for number, rows in enumerate(BATCHES):
        indices, given = (t.to(device) for t in images(*rows))
        logits = network[rows].requires_grad_()
        loss, labels = rule.loss(logits, indices, given)
        (gradient,) = torch.autograd.grad(loss.mean(), logits)
        network[rows] -= gradient
        meta = noise(number + 1, len(rows), C, dtype=dtype).to(device) / len(rows)
        rule.learn(indices, given, labels, meta + gradient, scale=float(len(rows)))
        losses.append(loss.detach())
    return {"loss": torch.cat(losses), "network": network, "phi": rule.table.phi, **rule.optimizer.state_dict()}


@pytest.mark.parametrize(("kind", "parametrisation", "optimizer"), EVERY)
def test_triton_trains_labels_like_the_reference(
    kind: Kind, parametrisation: Parametrisation, optimizer: str, device: torch.device
) -> None:
    case = (kind, parametrisation, optimizer, device)
    found = train(*case, "triton", wide=False)
    plain = train(*case, "reference", wide=False)
    oracle = train(*case, "reference", wide=True)
    assert found.keys() == plain.keys()
    for name, value in found.items():
        if value.is_floating_point():
            judge(name, value, plain[name], oracle[name])
        else:
            assert torch.equal(value, plain[name]), name
    again = train(*case, "triton", wide=False)
    assert all(torch.equal(value, again[name]) for name, value in found.items())
