"""An oracle that others wrote: `higher` and `torchopt` differentiate through the whole step in their own way."""

from __future__ import annotations

import json
import sys
import warnings
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from benchmarks import bilevel_peers as peers
from distill.bilevel.finite_difference import FiniteDifference
from distill.bilevel.forward_mode import ForwardMode
from distill.bilevel.unrolled import Unrolled
from distill.data.loader import Batch
from distill.labels.tables import instance_table
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


def tiny_parts(network: str, optimizer: str) -> peers.Parts:
    """A tiny network in float64, the labels of three batches and a judge; the optimiser has not stepped yet."""
    model, _ = cases.build("conv-batchnorm", optimizer)
    if network == "vit":
        torch.manual_seed(0)
        model = timm.create_model("test_vit", img_size=cases.SIDE, patch_size=4, num_classes=cases.C).double().train()
    rows = torch.arange(3 * cases.B)
    given = torch.cat([tiny_batch(number).given for number in range(3)])
    table = instance_table(rows, given, cases.C, 0.9, torch.device("cpu"))
    table.phi = table.phi.double()
    opt = cases.make_optimizer(optimizer, model.parameters())
    central = FiniteDifference(central=True, reach=1e-5)
    return peers.Parts(model, opt, peers.Labels(table, step=1.0), tiny_batch(7), central=central)


def tiny_batch(number: int) -> Batch:
    images, given, _ = cases.batch(number, cases.B)
    rows = torch.arange(cases.B) + number * cases.B
    return Batch(rows, images, given, rows, torch.zeros_like(rows))


def three_steps(name: str, network: str, optimizer: str) -> tuple[list[Tensor], list[Tensor]]:
    """The last label gradient and the labels; and the weights and buffers after three steps."""
    parts = tiny_parts(network, optimizer)
    step = peers.VARIANTS[name](parts)
    for number in range(3):
        step(tiny_batch(number % 2), number, learn=True)  # the third trains on labels that have moved
    look = getattr(step, "look", None)
    weights = list(parts.model.parameters()) if look is None else look.weights
    net = parts.model if look is None else look.net
    return [parts.rule.gradient, parts.rule.table.phi], [*weights, *net.buffers()]


def assert_same(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    for a, b in zip(found, expected, strict=True):
        a, b = a.detach(), b.detach()
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * float(b.abs().max()))


PEERS = [name for name in peers.VARIANTS if name.startswith(("higher", "torchopt", "pattern"))]


@pytest.mark.parametrize(("network", "optimizer"), [("conv", "momentum"), ("conv", "nesterov"), ("vit", "nesterov")])
@pytest.mark.parametrize("name", PEERS)
def test_the_benchmarks_peers_do_the_same_work(name: str, network: str, optimizer: str) -> None:
    """Label gradient, labels, weights and running statistics after three steps, in float64."""
    if name.startswith(peers.LIBRARIES):
        peer(name.split(",")[0])
    judge = "next-batch" if name.endswith("next-batch") else "held-out"
    labels, network_state = three_steps(name, network, optimizer)
    expected, expected_state = three_steps(f"{judge}/forward-mode", network, optimizer)
    # Central differences have an error of their own.
    assert_same(labels + network_state, expected + expected_state, 1e-6 if name == "pattern of MLC" else 1e-8)


def test_the_benchmarks_exact_gradient_is_ours() -> None:
    parts = tiny_parts("conv", "momentum")
    first, second = tiny_batch(0), tiny_batch(1)
    exact = peers.exact_gradient(parts, first, second)
    for name in ("held-out/unrolled", "held-out/forward-mode", "next-batch/forward-mode"):
        assert_same([peers.label_gradient(parts, peers.VARIANTS[name], first, second)], [exact], 1e-10)


def test_a_peer_that_is_not_installed_costs_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = [tiny_batch(number) for number in range(3)]
    monkeypatch.setattr(peers, "base_parts", lambda name, batch_size: (tiny_parts("conv", "momentum"), batches))
    monkeypatch.setitem(sys.modules, "higher", None)
    monkeypatch.setitem(sys.modules, "torchopt", None)
    told = peers.measure("tiny", cases.B, rounds=1)
    assert set(told["not_installed"]) == {"higher", "torchopt"}
    assert {v["name"] for v in told["variants"]} == set(peers.VARIANTS) - {n for n in PEERS if "pattern" not in n}
    assert told["gains"] == []
    assert "higher is not installed" in peers.markdown(told, peers.head(1, 1))
    json.dumps(told, allow_nan=False)


def test_ours_is_told_beside_the_fastest_peer_of_each_form() -> None:
    seconds = {"held-out/one-sided": 2.0, "next-batch/one-sided": 1.0, "next-batch/forward-mode": 1.5}
    seconds |= {"higher, held-out": 6.0, "torchopt, held-out": 5.0, "torchopt, next-batch": 4.0, "pattern of MLC": 0.1}
    seconds |= {"higher, innerloop_ctx": 7.0, "torchopt, stop_gradient": 8.0}
    told = peers.gains({name: [s, s] for name, s in seconds.items()}, dict.fromkeys(seconds, 10))
    assert [(gain.ours, gain.peer, gain.times_faster) for gain in told] == [
        ("next-batch/one-sided", "higher, innerloop_ctx", 7.0),
        ("next-batch/one-sided", "torchopt, held-out", 5.0),
        ("next-batch/one-sided", "torchopt, next-batch", 4.0),
        ("next-batch/forward-mode", "higher, innerloop_ctx", 7 / 1.5),
        ("next-batch/forward-mode", "torchopt, held-out", 5 / 1.5),
        ("next-batch/forward-mode", "torchopt, next-batch", 4 / 1.5),
        ("held-out/one-sided", "higher, innerloop_ctx", 3.5),
        ("held-out/one-sided", "torchopt, held-out", 2.5),
    ]
