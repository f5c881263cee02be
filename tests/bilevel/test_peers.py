"""An oracle that others wrote: `higher` and `torchopt` differentiate through the whole step in their own way."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distill.bilevel.forward_mode import ForwardMode
from distill.bilevel.unrolled import Unrolled
from distill.losses.soft import cross_entropy, soft_cross_entropy
from tests.bilevel import cases

SETTINGS = ["plain", "weight-decay", "momentum", "nesterov"]
REASON = "a peer for the tests only; `pip install -e .[dev]` brings it where it has wheels"


def peer(name: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name, reason=REASON)


def setting(
    network: str, optimizer: str, warm: int
) -> tuple[nn.Module, torch.optim.Optimizer, Tensor, Tensor, Tensor, Tensor]:
    model, opt = cases.build(network, optimizer)
    model.float()
    for number in range(warm):
        images, given, _ = cases.batch(100 + number, cases.B)
        opt.zero_grad()
        cross_entropy(model(images.float()), given).mean().backward()
        opt.step()
    images, _, labels = cases.batch(1, cases.B)
    meta_images, given, _ = cases.batch(2, cases.M)
    return model, opt, images.float(), labels.float(), meta_images.float(), given


def ours(model, opt, images, labels, meta_images, given) -> list[Tensor]:
    inner = cases.inner_step(model, opt, images, labels, seed=9)
    loss = cases.meta_loss(model, meta_images, given)
    parameters = dict(model.named_parameters())
    r = dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))
    return [estimator(model, inner, r) for estimator in (ForwardMode(), Unrolled())]


def close(found: list[Tensor], expected: Tensor) -> None:
    for gradient in found:
        assert float((gradient - expected).norm() / expected.norm()) < 1e-5


@pytest.mark.parametrize("optimizer", SETTINGS)
@pytest.mark.parametrize("warm", [0, 3])
def test_higher_agrees(optimizer: str, warm: int) -> None:
    higher = peer("higher")
    model, opt, images, labels, meta_images, given = setting("conv-batchnorm", optimizer, warm)
    variable = labels.clone().requires_grad_()
    with higher.innerloop_ctx(model, opt, copy_initial_weights=True) as (twin, look):
        look.step(soft_cross_entropy(twin(images), variable).mean())
        (expected,) = torch.autograd.grad(cross_entropy(twin(meta_images), given).mean(), variable)
    close(ours(model, opt, images, labels, meta_images, given), expected)


@pytest.mark.parametrize("optimizer", SETTINGS)
def test_torchopt_agrees(optimizer: str) -> None:
    torchopt = peer("torchopt")
    model, _, images, labels, meta_images, given = setting("conv-batchnorm", optimizer, 0)
    variable = labels.clone().requires_grad_()
    before = torchopt.extract_state_dict(model, by="deepcopy")
    look = torchopt.MetaSGD(model, **cases.OPTIMIZERS[optimizer])
    look.step(soft_cross_entropy(model(images), variable).mean())
    (expected,) = torch.autograd.grad(cross_entropy(model(meta_images), given).mean(), variable)
    torchopt.recover_state_dict(model, before)
    fresh = setting("conv-batchnorm", optimizer, 0)
    close(ours(*fresh), expected)
