"""The laws of `distill.bilevel.contract`, by number, for every estimator. In float64 unless a test says otherwise.

A new estimator needs one line in `PROMISES`, and is then held to all of them.
"""

from __future__ import annotations

import copy
import random
import warnings
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from functools import cache
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distill.bilevel import hygiene
from distill.bilevel.contract import InnerStep, Tensors
from distill.bilevel.estimators import APPROXIMATIONS, ESTIMATORS
from distill.bilevel.label_step import LabelStep
from distill.bilevel.probe import MAXIMUM_SCALE, MINIMUM_COSINE, agreement
from distill.bilevel.step import PlainStep, Step, Training
from distill.bilevel.targets import Target
from distill.errors import BilevelError
from distill.losses.soft import soft_cross_entropy
from distill.seeding import derive, seeded
from tests.bilevel import cases
from tests.bilevel.cases import Judged, Setting, cover, relative

SEED = 5  # of whole steps


@dataclass(frozen=True)
class Promise:
    """What an estimator promises in float64, as relative errors."""

    error: float | None  # against `unrolled`, of a difference with a step of 1e-5; None: an approximation
    rounding: float  # in what holds for the estimator's formula, whatever its error
    order: int | None = None  # of a finite difference's error in its step

    @property
    def linear(self) -> float:
        """How far it is from linear in the meta gradient."""
        return self.rounding if self.order is None or self.error is None else self.error


PROMISES = {
    "one-sided": Promise(error=1e-3, rounding=1e-8, order=1),
    "central": Promise(error=1e-6, rounding=1e-8, order=2),
    "forward-mode": Promise(error=1e-10, rounding=1e-10),
    "unrolled": Promise(error=1e-10, rounding=1e-10),
    "last-layer": Promise(error=None, rounding=1e-12),
}
DERIVATIVES = [name for name, promise in PROMISES.items() if promise.error is not None]
DIFFERENCES = [name for name, promise in PROMISES.items() if promise.order is not None]
EXACT = [name for name in DERIVATIVES if name not in DIFFERENCES]
# Float64 allows a step so small that ReLU's kinks do not matter; steps for float32 are judged in law 11.
UNDER_TEST = {name: replace(each, reach=1e-5) if name in DIFFERENCES else each for name, each in ESTIMATORS.items()}
RUN_THE_NETWORK = DERIVATIVES  # the approximation looks at what the training forward left
METAS, KINDS, PARAMETRISATIONS = ("held-out", "next-batch"), ("class", "instance"), ("softmax", "projected")
SMOOTH = [name for name in cases.NETWORKS if name != "conv-batchnorm"]  # a kink of ReLU breaks a difference's order


def grid() -> list[Setting]:
    """Every network and every optimiser, each at a first and at a tenth step, with and without parameter groups."""
    rows = cover(cases.NETWORKS, cases.OPTIMIZERS, times=2)
    settings = []
    for number, (network, optimizer) in enumerate(rows):
        first = 0 if optimizer in cases.LEARNS_FROM_THE_FIRST_STEP else 3
        warm = first if number < len(rows) // 2 else 9
        settings.append(Setting(network, optimizer, warm, groups=number % 3 == 2))
    return settings


# A step for each network, for laws that hold whatever the optimiser; without clipping, which mixes the parameters.
STEPS = [
    Setting(network, optimizer, warm=3)
    for network, optimizer in cover(
        cases.NETWORKS, [name for name in cases.OPTIMIZERS if cases.clip_norm(name) in (0.0, 1e3)]
    )
]
shared = cache(cases.judged)  # what laws that change nothing may share; that estimators do not is law 5


@cache
def oracle(setting: Setting) -> Tensor:
    """dL_meta/dy [B, C] by `unrolled`."""
    return estimate("unrolled", shared(setting))


def test_every_estimator_makes_a_promise() -> None:
    assert PROMISES.keys() == ESTIMATORS.keys()
    assert {name for name, promise in PROMISES.items() if promise.error is None} == APPROXIMATIONS


def estimate(name: str, judged: Judged, **changes: Any) -> Tensor:
    """dL_meta/dy [B, C]; `changes` are other arguments or fields of the inner step."""
    model, r = changes.pop("model", judged.model), changes.pop("r", judged.r)
    return UNDER_TEST[name](model, replace(judged.inner, **changes), r)


# Law 1: the exact ones equal `unrolled`, the others to their error


@pytest.mark.parametrize("setting", grid(), ids=str)
@pytest.mark.parametrize("name", [name for name in DERIVATIVES if name != "unrolled"])
def test_law_1_equals_unrolled(name: str, setting: Setting) -> None:
    assert relative(estimate(name, shared(setting)), oracle(setting)) < PROMISES[name].error


def training_of(network: str, optimizer: str, kind: str, *, step: float, parametrisation: str = "softmax") -> Training:
    model, opt = cases.build(network, optimizer)
    rule = cases.learned(kind, step, parametrisation)
    return Training(model, opt, rule, seed=SEED, clip_norm=cases.clip_norm(optimizer))


def run(step: Step, count: int) -> None:
    for number in range(count):
        step(cases.batch_of(number), number, learn=True)
    step.check()


@cache
def learned_with(
    name: str, network: str, optimizer: str, meta: str, kind: str, parametrisation: str
) -> tuple[Tensor, Tensor]:
    """How far some whole steps move the rows [R, C], and all weights after them, flat."""
    training = training_of(network, optimizer, kind, step=0.5, parametrisation=parametrisation)
    before = training.rule.table.phi.clone()
    run(cases.whole_step(training, UNDER_TEST[name], meta), 4)
    return training.rule.table.phi - before, torch.cat([p.detach().flatten() for p in training.model.parameters()])


@pytest.mark.parametrize(
    ("network", "optimizer", "how"),
    cover(cases.NETWORKS, cases.LEARNS_FROM_THE_FIRST_STEP[::-1], product(METAS, KINDS, PARAMETRISATIONS)),
)
@pytest.mark.parametrize("name", [name for name in DERIVATIVES if name != "unrolled"])
def test_law_1_whole_steps_move_labels_as_unrolled_does(
    name: str, network: str, optimizer: str, how: tuple[str, str, str]
) -> None:
    """Over several steps: label rows and weights, repeated images and classes included."""
    moved, weights = learned_with(name, network, optimizer, *how)
    expected, expected_weights = learned_with("unrolled", network, optimizer, *how)
    assert expected.norm() > 0.01
    assert relative(moved, expected) < PROMISES[name].error
    assert relative(weights, expected_weights) < PROMISES[name].error


# Law 2: `unrolled` equals differences of the real meta loss


@pytest.mark.parametrize("setting", grid(), ids=str)
def test_law_2_unrolled_equals_differences_of_the_real_meta_loss(setting: Setting) -> None:
    """An oracle that shares nothing with the estimators: torch's own optimiser steps, with the labels moved."""
    judged, found, start = shared(setting), oracle(setting), cases.warmed(setting)
    meta_images, given, _ = cases.batch(2, cases.M)
    h = 1e-4

    def meta_after(labels: Tensor) -> float:
        twin, optimizer = copy.deepcopy(start)
        cases.inner_step(twin, optimizer, judged.inner.images, labels, 9, cases.clip_norm(setting.optimizer))
        log_probabilities = cases.real_log_probabilities(twin, meta_images, seed=77)
        return -float(log_probabilities.gather(1, given.unsqueeze(1)).mean())

    entry = torch.zeros_like(found)
    entry[2, 3] = 1.0
    everywhere = torch.randn(found.shape, generator=torch.Generator().manual_seed(0), dtype=found.dtype)
    for step in (entry, everywhere):
        slope = (meta_after(judged.inner.labels + h * step) - meta_after(judged.inner.labels - h * step)) / (2 * h)
        assert slope == pytest.approx(float((found * step).sum()), rel=1e-5, abs=1e-9)


@pytest.mark.parametrize(("network", "how"), cover(("conv-batchnorm", "vit", "tied"), product(METAS, KINDS)))
@pytest.mark.parametrize("name", DERIVATIVES)
def test_law_2_rows_move_down_the_slope_of_the_real_meta_loss(name: str, network: str, how: tuple[str, str]) -> None:
    """What a row gets through all its images; a class row takes the mean over them."""
    meta, kind = how
    training = training_of(network, "nesterov", kind, step=1.0)
    before = copy.deepcopy(training)
    first, second = cases.batch_of(0), cases.batch_of(1)
    phi = training.rule.table.phi.clone()
    step = cases.whole_step(training, UNDER_TEST[name], meta)
    step(first, 0, learn=True)
    step(second, 1, learn=False)
    moved = phi - training.rule.table.phi
    h = 1e-5

    def meta_after(shifted: Tensor) -> float:
        twin = copy.deepcopy(before)
        twin.rule.table.phi.copy_(shifted)
        with seeded(cases.CPU, derive(SEED, "forward", 0)):
            logits = twin.model(first.images)
        soft_cross_entropy(logits, twin.rule.labels(first.indices, first.given)).mean().backward()
        twin.optimizer.step()
        judge = cases.batch_of(1000, cases.M) if meta == "held-out" else second
        seed = derive(SEED, "meta-forward", 0) if meta == "held-out" else derive(SEED, "forward", 1)
        log_probabilities = cases.real_log_probabilities(twin.model, judge.images, seed)
        return -float(log_probabilities.gather(1, judge.given.unsqueeze(1)).mean())

    rows = training.rule.table.rows(first.indices, first.given)
    for row, column in [(int(rows[0]), 1), (int(rows[3]), 2)]:
        shift = torch.zeros_like(phi)
        shift[row, column] = h
        slope = (meta_after(phi + shift) - meta_after(phi - shift)) / (2 * h)
        images = int((rows == row).sum()) if kind == "class" else 1
        expected = slope * cases.B / 0.1 / images
        assert float(moved[row, column]) == pytest.approx(expected, rel=max(1e-5, 10 * PROMISES[name].error))


# Law 3: finite differences have their order


@pytest.mark.parametrize(("network", "optimizer"), cover(SMOOTH, ("nesterov", "adamw", "clipped")))
@pytest.mark.parametrize("name", DIFFERENCES)
def test_law_3_the_error_falls_with_the_order(name: str, network: str, optimizer: str) -> None:
    judged = shared(setting := Setting(network, optimizer, warm=3))
    far, near = (
        relative(replace(UNDER_TEST[name], reach=reach)(judged.model, judged.inner, judged.r), oracle(setting))
        for reach in (1e-2, 1e-3)
    )
    assert far / near == pytest.approx(10 ** PROMISES[name].order, rel=0.1)


# Law 4: `last-layer` is exact when only the head trains


@pytest.mark.parametrize(("network", "optimizer", "warm"), cover(cases.NETWORKS, cases.OPTIMIZERS, (3, 9)))
def test_law_4_last_layer_equals_unrolled_when_only_the_head_trains(network: str, optimizer: str, warm: int) -> None:
    setting = Setting(network, optimizer, warm, head_only=True)
    assert relative(estimate("last-layer", shared(setting)), oracle(setting)) < 1e-10


@pytest.mark.parametrize(("how", "network"), cover(product(METAS, KINDS), ("conv-batchnorm", "residual", "vit")))
def test_law_4_holds_for_whole_steps(how: tuple[str, str], network: str) -> None:
    ends = []
    for name in ("last-layer", "unrolled"):
        training = training_of(network, "nesterov", how[1], step=2.0)
        cases.train_only_the_head(training.model)
        before = training.rule.table.phi.clone()
        run(cases.whole_step(training, UNDER_TEST[name], how[0]), 4)
        ends.append(training.rule.table.phi - before)
    assert relative(*ends) < 1e-10


def test_law_4_else_it_is_an_approximation() -> None:
    setting = Setting("conv-batchnorm")
    cosine, _ = agreement(estimate("last-layer", shared(setting)), oracle(setting))
    assert 0 < cosine < 0.9999


# Law 5: no trace is left


def bits(tensor: Tensor | None) -> bytes | None:
    return None if tensor is None else tensor.detach().contiguous().numpy().tobytes()


def all_tensors(tree: Any) -> list[bytes | None]:
    """The bits of every tensor in a tree of dicts, dataclasses and optimiser states."""
    if isinstance(tree, Tensor):
        return [bits(tree)]
    if isinstance(tree, dict):
        return [found for value in tree.values() for found in all_tensors(value)]
    if hasattr(tree, "__dataclass_fields__"):
        return [found for field in fields(tree) for found in all_tensors(getattr(tree, field.name))]
    return []


def everything(judged: Judged) -> dict[str, Any]:
    """All that an estimator must leave as it was, by what it is."""
    model = judged.model
    return {
        "parameters": [
            (name, id(p), p.requires_grad, bits(p), bits(p.grad))
            for name, p in model.named_parameters(remove_duplicate=False)
        ],
        "buffers": [(name, id(b), bits(b)) for name, b in model.named_buffers(remove_duplicate=False)],
        "flags": [(name, m.training, getattr(m, "track_running_stats", None)) for name, m in model.named_modules()],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()],
        "optimizer": all_tensors(dict(judged.optimizer.state)),
        "inner step": all_tensors(judged.inner),
        "meta gradient": all_tensors(judged.r),
        "generators": (bits(torch.default_generator.get_state()), random.getstate()),
        "modes": (
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.is_autocast_enabled("cpu"),
            torch.get_default_dtype(),
            torch._C._len_torch_function_stack(),
            warnings.filters[:],
            torch.backends.cuda.flash_sdp_enabled(),
            torch.backends.cuda.mem_efficient_sdp_enabled(),
            torch.backends.cuda.math_sdp_enabled(),
        ),
    }


@pytest.mark.parametrize(("network", "optimizer"), cover(cases.NETWORKS, ("nesterov", "adamw-clipped", "clipped")))
@pytest.mark.parametrize("name", PROMISES)
def test_law_5_no_trace_is_left(name: str, network: str, optimizer: str) -> None:
    judged = cases.judged(Setting(network, optimizer, warm=3))
    before = everything(judged)
    assert estimate(name, judged).requires_grad is False
    assert everything(judged) == before


class BlownError(Exception):
    """Nobody catches it on the way."""


@pytest.mark.parametrize(("network", "error"), cover(cases.NETWORKS, (BlownError, RuntimeError)))
@pytest.mark.parametrize("name", PROMISES)
def test_law_5_no_trace_is_left_by_one_that_fails(name: str, network: str, error: type[Exception]) -> None:
    """The network fails in its last layer, after its dropout has drawn and its statistics were taken."""
    judged = cases.judged(Setting(network))

    def blow(module: nn.Module, given: Any) -> None:
        raise error("blown")

    fuse = judged.model.get_classifier().register_forward_pre_hook(blow)
    before = everything(judged)
    with pytest.raises((error, BilevelError)):
        estimate(name, judged, features=None)
    assert everything(judged) == before
    fuse.remove()


def test_law_5_no_trace_is_left_in_a_buffer_that_is_replaced() -> None:
    judged = cases.judged(Setting("replaced-buffer"))
    before = everything(judged)
    estimate("unrolled", judged)
    assert everything(judged) == before


@pytest.mark.parametrize("network", cases.ODD_BUFFERS)
def test_law_5_no_trace_is_left_in_odd_buffers(network: str) -> None:
    judged = cases.judged(Setting(network))
    before = everything(judged)
    for name in ("one-sided", "unrolled"):
        estimate(name, judged)
    assert everything(judged) == before


# Law 6: the training forward alone moves buffers, and training is undisturbed


@pytest.mark.parametrize("network", [*cases.NETWORKS, *cases.ODD_BUFFERS])
def test_law_6_the_replay_is_the_training_forward(network: str) -> None:
    """Same masks, same statistics; by the attention of either pass."""
    inner, model = (judged := shared(Setting(network))).inner, judged.model
    for attention in (nullcontext, hygiene.math_attention):
        with attention(), torch.no_grad():
            logits = hygiene.silent_forward(
                model, inner.theta, inner.images, seed=inner.seed, precision="float32", buffers=inner.buffers
            )
        torch.testing.assert_close(torch.log_softmax(logits, -1), inner.log_probabilities, rtol=1e-12, atol=1e-12)


@cache
def plain_loop(network: str, optimizer: str, kind: str) -> Training:
    """Three steps with these labels as anybody would write them."""
    training = training_of(network, optimizer, kind, step=0.0)
    for number in range(3):
        batch = cases.batch_of(number)
        with seeded(cases.CPU, derive(SEED, "forward", number)):
            logits = training.model(batch.images)
        training.optimizer.zero_grad()
        soft_cross_entropy(logits, training.rule.labels(batch.indices, batch.given)).mean().backward()
        if training.clip_norm:
            torch.nn.utils.clip_grad_norm_(training.model.parameters(), training.clip_norm)
        training.optimizer.step()
    return training


@pytest.mark.parametrize(
    ("network", "optimizer", "how"), cover(cases.NETWORKS, cases.OPTIMIZERS, product(METAS, KINDS))
)
@pytest.mark.parametrize("name", PROMISES)
def test_law_6_at_label_step_0_training_is_the_plain_loop(
    name: str, network: str, optimizer: str, how: tuple[str, str]
) -> None:
    """To the bit: weights, buffers, optimiser; and the labels stay."""
    meta, kind = how
    training = training_of(network, optimizer, kind, step=0.0)
    run(cases.whole_step(training, UNDER_TEST[name], meta), 3)
    assert_same_to_the_bit(training, plain_loop(network, optimizer, kind))


@pytest.mark.parametrize(("network", "optimizer"), cover(cases.NETWORKS, cases.OPTIMIZERS))
def test_law_6_the_plain_step_is_the_plain_loop(network: str, optimizer: str) -> None:
    training = training_of(network, optimizer, "class", step=0.0)
    run(PlainStep(training), 3)
    assert_same_to_the_bit(training, plain_loop(network, optimizer, "class"))


def assert_same_to_the_bit(found: Training, expected: Training) -> None:
    for part in (nn.Module.named_buffers, nn.Module.named_parameters):
        assert all_tensors(dict(part(found.model))) == all_tensors(dict(part(expected.model)))
    assert all_tensors(found.optimizer.state_dict()) == all_tensors(expected.optimizer.state_dict())
    assert torch.equal(found.rule.table.phi, expected.rule.table.phi)


# Law 7: rows, and permutations


@pytest.mark.parametrize(
    ("network", "how"), cover(("dropout", "conv-batchnorm", "vit"), product(KINDS, PARAMETRISATIONS))
)
@pytest.mark.parametrize("name", PROMISES)
def test_law_7_repeated_rows_are_summed_or_averaged(name: str, network: str, how: tuple[str, str]) -> None:
    """Summed over the views of an image, averaged over the images of a class; no other row is written."""
    kind, parametrisation = how
    training = training_of(network, "nesterov", kind, step=1e-3, parametrisation=parametrisation)
    batch = cases.batch_of(3)
    labels = training.rule.labels(batch.indices, batch.given)
    inner = cases.inner_step(training.model, training.optimizer, batch.images, labels, seed=9)
    r = {n: torch.randn_like(t) for n, t in inner.theta.items()}
    phi = training.rule.table.phi.clone()
    label_step = LabelStep(training.rule, UNDER_TEST[name], 0.0)
    label_step(training.model, inner, Target(inner.labels, batch.indices, batch.given, inner.labels), r)

    derivative = UNDER_TEST[name](training.model, inner, r) * cases.B / 0.1
    received: dict[int, list[Tensor]] = {}
    for row, a in zip(training.rule.table.rows(batch.indices, batch.given).tolist(), derivative, strict=True):
        received.setdefault(row, []).append(through_table(phi[row], a, parametrisation))
    assert max(map(len, received.values())) > 1
    expected = phi.clone()
    for row, parts in received.items():
        moved = phi[row] - 1e-3 * sum(parts) / (len(parts) if kind == "class" else 1)
        expected[row] = moved if parametrisation == "softmax" else moved / moved.sum()
    torch.testing.assert_close(training.rule.table.phi, expected, rtol=1e-12, atol=1e-12)
    others = [row for row in range(len(phi)) if row not in received]
    assert torch.equal(training.rule.table.phi[others], phi[others])
    assert not torch.equal(training.rule.table.phi, phi)


def through_table(phi: Tensor, a: Tensor, parametrisation: str) -> Tensor:
    """dL/dphi of one row [C] from its dL/dy [C], by autograd."""
    phi = phi.clone().requires_grad_()
    labels = torch.softmax(phi, -1) if parametrisation == "softmax" else phi
    (gradient,) = torch.autograd.grad((labels * a).sum(), phi)
    return gradient


@pytest.mark.parametrize(("network", "how"), cover(cases.NETWORKS, product(METAS, KINDS)))
@pytest.mark.parametrize("name", PROMISES)
def test_law_7_a_permutation_of_the_classes_permutes_everything(name: str, network: str, how: tuple[str, str]) -> None:
    meta, kind = how
    order = torch.tensor([2, 0, 3, 1])
    phis, heads = [], []
    for new in (torch.arange(cases.C), order):
        training = training_of(network, "nesterov", kind, step=0.5)
        head = training.model.get_classifier()
        with torch.no_grad():
            head.weight.copy_(head.weight[new])
            head.bias.copy_(head.bias[new])
        training.rule = cases.learned(kind, 0.5, given=torch.argsort(new)[cases.given_labels()])
        step = cases.whole_step(training, UNDER_TEST[name], meta, classes=torch.argsort(new))
        for number in range(3):
            step(cases.renamed(cases.batch_of(number), torch.argsort(new)), number, learn=True)
        phis.append(training.rule.table.phi)
        heads.append(head.weight.detach())
    expected = phis[0][:, order]
    expected = expected[order] if kind == "class" else expected
    torch.testing.assert_close(phis[1], expected, rtol=PROMISES[name].rounding, atol=PROMISES[name].rounding)
    torch.testing.assert_close(heads[1], heads[0][order], rtol=PROMISES[name].rounding, atol=PROMISES[name].rounding)
    assert not torch.equal(phis[0], cases.learned(kind, 0.5).table.phi)


# Law 8: zero stays zero; what cannot be differentiated is an error


@pytest.mark.parametrize("network", cases.NETWORKS)
@pytest.mark.parametrize("name", PROMISES)
def test_law_8_a_zero_meta_gradient_gives_zero(name: str, network: str) -> None:
    judged = shared(Setting(network, "clipped"))
    found = estimate(name, judged, r={n: torch.zeros_like(t) for n, t in judged.r.items()})
    assert not found.any()


@pytest.mark.parametrize("name", RUN_THE_NETWORK)
def test_law_8_eval_mode_is_refused(name: str) -> None:
    judged = cases.judged(Setting("conv-batchnorm"))
    judged.model.eval()
    with pytest.raises(BilevelError, match="eval mode"):
        estimate(name, judged)


@pytest.mark.parametrize("meta", METAS)
@pytest.mark.parametrize("name", PROMISES)
def test_law_8_a_whole_step_in_eval_mode_is_refused(name: str, meta: str) -> None:
    training = training_of("conv-batchnorm", "nesterov", "class", step=1.0)
    training.model.eval()
    with pytest.raises(BilevelError, match="eval mode"):
        run(cases.whole_step(training, UNDER_TEST[name], meta), 1)


class _NoForwardRule(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * 2


class Custom(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return _NoForwardRule.apply(x)


class Detached(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(x.detach().numpy().copy())


def weight_norm() -> nn.Module:
    return nn.utils.parametrizations.weight_norm(nn.Linear(cases.C, cases.C))


REFUSED: set[tuple[str, Any]] = {
    ("forward-mode", Custom),
    ("forward-mode", Detached),
    ("forward-mode", weight_norm),
    ("unrolled", Detached),
}


@pytest.mark.parametrize("layer", [Custom, Detached, weight_norm])
@pytest.mark.parametrize("name", RUN_THE_NETWORK)
def test_law_8_what_cannot_be_differentiated_is_right_or_an_error(name: str, layer: Any) -> None:
    torch.manual_seed(0)
    model = cases.Net(nn.Flatten(), nn.Linear(cases.CHANNELS * cases.SIDE**2, cases.C), layer()).double().train()
    images, _, _ = cases.batch(1, cases.B)
    inner, r = cases.without_optimizer(model, images)
    expected = cases.derivative(model, inner, r)
    assert expected.norm() > 0
    if (name, layer) in REFUSED:
        with pytest.raises(BilevelError, match=r"cannot be differentiated|was lost"):
            UNDER_TEST[name](model, inner, r)
    else:
        assert relative(UNDER_TEST[name](model, inner, r), expected) < max(1e-6, PROMISES[name].error)


def test_law_8_forward_mode_says_why() -> None:
    judged = cases.judged(Setting("dropout"))
    with torch.inference_mode(), pytest.raises(BilevelError, match="the derivative was lost on the way"):
        estimate("forward-mode", judged)


class Derived(torch.optim.SGD):
    """May step differently, so it has no rule."""


@pytest.mark.parametrize("kind", [Derived, torch.optim.NAdam])
@pytest.mark.parametrize("name", PROMISES)
def test_law_8_other_optimisers_are_refused_with_a_cure(name: str, kind: type) -> None:
    model, _ = cases.build("dropout", "plain")
    training = Training(model, kind(model.parameters(), lr=0.1), cases.learned("class", 1.0), seed=SEED)
    with pytest.raises(BilevelError, match=r"has no look-ahead rule(.|\n)*momentum"):
        run(cases.whole_step(training, UNDER_TEST[name], "next-batch"), 1)


def test_law_8_last_layer_is_refused_without_a_linear_head() -> None:
    training = training_of("dropout", "plain", "class", step=1.0)
    training.model[-1] = nn.Sequential(training.model[-1])
    with pytest.raises(BilevelError, match="expected a linear layer"):
        run(cases.whole_step(training, UNDER_TEST["last-layer"], "next-batch"), 1)


# Law 9: what the formula implies


@pytest.mark.parametrize("setting", STEPS, ids=str)
@pytest.mark.parametrize("name", PROMISES)
def test_law_9_linear_in_the_meta_gradient(name: str, setting: Setting) -> None:
    judged = shared(setting)
    source = torch.Generator().manual_seed(0)
    sizes = {n: float(t.norm()) / t.numel() ** 0.5 for n, t in judged.r.items()}
    other = {n: s * torch.randn(judged.r[n].shape, generator=source, dtype=torch.float64) for n, s in sizes.items()}
    both = {n: 2 * t - 3 * other[n] for n, t in judged.r.items()}
    a, b = estimate(name, judged), estimate(name, judged, r=other)
    assert relative(estimate(name, judged, r=both), 2 * a - 3 * b) < PROMISES[name].linear
    for factor in (1e3, 1e-3):
        scaled = estimate(name, judged, r={n: factor * t for n, t in judged.r.items()})
        assert relative(scaled, factor * a) < PROMISES[name].rounding


@pytest.mark.parametrize("setting", STEPS, ids=str)
@pytest.mark.parametrize("name", PROMISES)
def test_law_9_the_probabilities_weigh_it_to_zero(name: str, setting: Setting) -> None:
    """sum_c p_c dL/dy_c = 0 for each image, because sum_c p_c d log p_c = d sum_c p_c = 0."""
    judged = shared(setting)
    found = estimate(name, judged)
    weighed = (judged.inner.log_probabilities.exp() * found).sum(-1)
    assert float(weighed.norm() / found.norm()) < PROMISES[name].linear


@pytest.mark.parametrize("network", cases.NETWORKS)
@pytest.mark.parametrize("name", PROMISES)
def test_law_9_the_labels_themselves_do_not_matter(name: str, network: str) -> None:
    """Cross-entropy is linear in them: with SGD, given the meta gradient, the derivative is the same everywhere."""
    judged = shared(Setting(network))
    _, _, others = cases.batch(3, cases.B)
    assert relative(estimate(name, judged, labels=others), estimate(name, judged)) < PROMISES[name].rounding


@pytest.mark.parametrize("setting", STEPS, ids=str)
@pytest.mark.parametrize("name", PROMISES)
def test_law_9_a_parameter_left_out_of_the_meta_gradient_counts_as_zero(name: str, setting: Setting) -> None:
    judged = shared(setting)
    names = list(judged.r)
    for left_out in (names[: len(names) // 2], names[len(names) // 2 : -1], names[::2]):
        some = {n: t for n, t in judged.r.items() if n not in left_out}
        zeros = {n: torch.zeros_like(t) if n in left_out else t for n, t in judged.r.items()}
        found, expected = (estimate(name, judged, r=r) for r in (some, zeros))
        assert float((found - expected).norm()) <= PROMISES[name].rounding * float(expected.norm())


@pytest.mark.parametrize("name", [name for name in DERIVATIVES if name != "unrolled"])
def test_law_9_the_same_when_the_gradient_is_clipped(name: str) -> None:
    judged = shared(Setting("dropout", "clipped"))
    some = {n: t for n, t in judged.r.items() if n != "1.weight"}
    found, expected = (estimate(each, judged, r=some) for each in (name, "unrolled"))
    assert relative(found, expected) < PROMISES[name].error


def reordered(inner: InnerStep, order: Tensor) -> InnerStep:
    names = ("images", "labels", "log_probabilities", "features")
    return replace(inner, **{name: getattr(inner, name)[order] for name in names})


@pytest.mark.parametrize("setting", [each for each in STEPS if each.network not in cases.DROP_AT_RANDOM], ids=str)
@pytest.mark.parametrize("name", PROMISES)
def test_law_9_images_in_another_order_give_rows_in_that_order(name: str, setting: Setting) -> None:
    """Where no dropout tells places in the batch apart; an image that comes twice gets the same row twice."""
    judged = shared(setting)
    order = torch.tensor([3, 1, 4, 0, 2])
    found = UNDER_TEST[name](judged.model, reordered(judged.inner, order), judged.r)
    assert relative(found, estimate(name, judged)[order]) < PROMISES[name].rounding
    twice = reordered(judged.inner, torch.tensor([0, 1, 2, 1, 4]))
    with torch.no_grad():
        logits = hygiene.silent_forward(
            judged.model, twice.theta, twice.images, seed=twice.seed, precision=twice.precision
        )
    twice = replace(twice, log_probabilities=torch.log_softmax(logits, -1))
    found = UNDER_TEST[name](judged.model, twice, judged.r)
    assert relative(found[3], found[1]) < PROMISES[name].rounding


@pytest.mark.parametrize("setting", [each for each in STEPS if each.network in cases.DROP_AT_RANDOM], ids=str)
@pytest.mark.parametrize("name", [name for name in RUN_THE_NETWORK if PROMISES[name].order is None])
def test_law_9_the_masks_are_those_of_the_training_forward(name: str, setting: Setting) -> None:
    judged = shared(setting)
    assert relative(estimate(name, judged, seed=judged.inner.seed + 1), estimate(name, judged)) > 1e-3


# Law 10, that peers agree, is in test_peers.py. Law 11: lower precision


def in_float32(setting: Setting, precision: str) -> tuple[nn.Module, InnerStep, Tensors]:
    """A copy of a step with float32 weights, and its meta gradient."""
    judged = shared(setting)
    inner, r = cases.in_precision(judged.inner, judged.r, torch.float32)
    return copy.deepcopy(judged.model).float(), replace(inner, precision=precision), r


@pytest.mark.parametrize("network", cases.NETWORKS)
@pytest.mark.parametrize("name", PROMISES)
def test_law_11_in_float32_close_to_float64(name: str, network: str) -> None:
    """Here finite differences take the step that they come with."""
    setting = Setting(network, "plain", warm=3)
    exact = estimate(name, shared(setting)) if name in APPROXIMATIONS else oracle(setting)
    found = ESTIMATORS[name](*in_float32(setting, "float32"))
    assert found.dtype == torch.float32
    if name in DIFFERENCES:
        cosine, scale = agreement(found, exact)
        assert cosine > MINIMUM_COSINE["float32"]
        assert 1 / MAXIMUM_SCALE < scale < MAXIMUM_SCALE
    else:
        assert relative(found.double(), exact) < 1e-5


@pytest.mark.parametrize("network", cases.NETWORKS)
@pytest.mark.parametrize("name", EXACT)
def test_law_11_in_bfloat16_close_to_float64(name: str, network: str) -> None:
    """Autocast, weights in float32."""
    setting = Setting(network, "plain", warm=3)
    model, inner, r = in_float32(setting, "bfloat16")
    try:
        found = ESTIMATORS[name](model, inner, r)
    except BilevelError:
        # torch has no forward-mode rule of mixed types for a BatchNorm in eval mode.
        assert (name, network) == ("forward-mode", "frozen")
        return
    cosine, _ = agreement(found, oracle(setting))
    assert cosine > MINIMUM_COSINE["bfloat16"]
