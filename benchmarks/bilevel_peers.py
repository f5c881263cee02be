"""The label meta-gradient step beside its peers: the same work, in one process, paired and interleaved.

Run: python benchmarks/bilevel_peers.py [--models resnet8 resnet20 test_vit] [--batch-size 64] [--threads 2] [--json]

The work of a step: train the network on a batch whose labels y are learned (SGD with momentum), take dL_meta/dy [B, C]
at the weights after that step from a meta batch of the same size, and move the label rows. Running statistics see the
training pass only. Every variant is timed on groups of four steps, a ratio is taken in each round, and the median of
the ratios is reported. Peers are given the best form that we found for them:

higher             `monkeypatch` and `get_diff_optim` once; the fast weights *are* the weights, cut off their graph
                   after each step. `copy_initial_weights=True`: both settings copy, this one adds no node to the graph.
innerloop_ctx      higher as its examples have it: the network is patched in every step, the fast weights copied back.
stop_gradient      torchopt as its examples have it: `MetaSGD` on the network, both cut off their graph after each step.
                   As attention is differentiated twice, both examples have plain matrix products throughout.
torchopt           `MetaSGD` on the network itself, whose weights are cut off their graph after each step; the momentum
                   without a gradient of its own.
..., next-batch    of both: our judge, restated. The next training pass is the meta pass, and the waiting graph is
                   pulled back to the labels once its meta gradient is known. Nobody ships it, but without it the
                   comparison would be one of judges.
pattern of MLC     re-derived; not their code. Zheng, Awadallah, Dumais, "Meta Label Correction for Noisy Label
                   Learning", AAAI 2021, as far as its public description goes: a virtual step on a copy of the network,
                   the step's Nesterov-like factor, central differences with the reach that our probe finds best.
                   The copy is made once, not in every step.
pattern of EMLC    re-derived; not their code. Taraday and Baskin, "Enhanced Meta Label Correction", ICCV 2023: a
                   virtual step, then the same gradient as a forward-mode product, by `torch.func`.

Both patterns take the training gradient once, for the virtual step and for the real one. Only a pass that has to be
differentiated twice, or forward, has its attention on plain matrix products.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import json
import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call

from distill.bilevel import hygiene
from distill.bilevel.contract import Estimator
from distill.bilevel.estimators import ESTIMATORS
from distill.bilevel.finite_difference import FiniteDifference
from distill.bilevel.forward_mode import ForwardMode
from distill.bilevel.label_step import LabelStep
from distill.bilevel.probe import choose_estimator
from distill.bilevel.step import HeldOutStep, NextBatchStep, PlainStep, Training
from distill.bilevel.unrolled import Unrolled
from distill.data.loader import Batch, open_data, training_batches
from distill.errors import DataError
from distill.labels.learned import Learned
from distill.labels.tables import instance_table
from distill.losses.soft import cross_entropy, soft_cross_entropy
from distill.models import zoo
from distill.recipe.schema import DataRecipe, Recipe, ViewsRecipe
from distill.seeding import seeded
from distill.training.memory import peak_bytes

GROUP = 4  # steps that are timed together: as many as `every-4` needs for one label update
TRAINED = 20  # plain steps before anything is compared: at initial weights even float32 double backward strays
SGD: dict[str, Any] = {"lr": 0.02, "momentum": 0.9, "weight_decay": 5e-4}
LIBRARIES = ("higher", "torchopt")
OURS_TOLD = ("next-batch/one-sided", "next-batch/forward-mode", "held-out/one-sided")
FORMS = {
    "as in their examples": ("higher, innerloop_ctx", "torchopt, stop_gradient"),
    "in their best form": ("higher, held-out", "torchopt, held-out"),
    "in their best form and with our judge restated": ("higher, next-batch", "torchopt, next-batch"),
}


class Labels(Learned):
    """Learned labels that remember the last gradient they were moved by."""

    gradient: Tensor | None = None  # dL_meta/dy, [B, C]

    def learn(self, indices: Tensor, given: Tensor, labels: Tensor, gradient: Tensor, **how: Any) -> None:
        """See `Learned`."""
        self.gradient = gradient
        super().learn(indices, given, labels, gradient, **how)


@dataclass
class Parts:
    """What a variant owns, the batch that judges, and the finite differences with the reach that suits the network."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    rule: Labels
    meta: Batch
    one_sided: Estimator = ESTIMATORS["one-sided"]  # ours
    central: Estimator = ESTIMATORS["central"]  # whose reach MLC's pattern takes

    def labels(self, batch: Batch) -> Tensor:
        """Today's labels of a batch, [B, C]."""
        return self.rule.labels(batch.indices, batch.given)

    def move(self, batch: Batch, labels: Tensor, gradient: Tensor) -> None:
        """Moves the rows of a batch by dL_meta/dy, [B, C], freed of lr/B as the package does."""
        scale = len(batch.given) / float(self.optimizer.param_groups[0]["lr"])
        self.rule.learn(batch.indices, batch.given, labels.detach(), gradient, scale=scale)


class Step(Protocol):
    """One training step; `learn`: are the labels of this batch to be judged."""

    def __call__(self, batch: Batch, number: int, *, learn: bool) -> object: ...


# --- Differentiating through the step, by a library ---


class Look(Protocol):
    """A network whose step a library makes differentiable."""

    net: nn.Module
    weights: list[Tensor]  # today's, leaves

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, C] at today's weights."""
        ...

    def step(self, loss: Tensor) -> list[Tensor]:
        """Takes the step and returns the new weights with their graph; `weights` are the same numbers without."""
        ...


def leaves(tensors: Iterable[Tensor]) -> list[Tensor]:
    """The same memory, cut off its graph."""
    return [t.detach().requires_grad_() for t in tensors]


def settings_of(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Of torch's SGD, as `MetaSGD` takes them."""
    group = optimizer.param_groups[0]
    return {name: group[name] for name in ("lr", "momentum", "dampening", "weight_decay", "nesterov")}


class HigherLook:
    """Patched once. The patched module keeps no history of weights, so nothing grows."""

    def __init__(self, parts: Parts) -> None:
        higher = library("higher")
        self.net = higher.monkeypatch(parts.model, copy_initial_weights=True, track_higher_grads=False)
        self.optimizer = higher.get_diff_optim(parts.optimizer, parts.model.parameters(), track_higher_grads=True)
        self.weights: list[Tensor] = list(self.net.parameters())

    def forward(self, images: Tensor) -> Tensor:
        """See `Look`."""
        logits: Tensor = self.net(images, params=self.weights)
        return logits

    def step(self, loss: Tensor) -> list[Tensor]:
        """See `Look`."""
        after: list[Tensor] = self.optimizer.step(loss, params=self.weights)
        self.weights = leaves(after)
        for group in self.optimizer.state:
            for kept in group.values():
                kept.update({name: t.detach() for name, t in kept.items()})
        return after


class TorchoptLook:
    """On the network itself: its modules' parameters are replaced in every step."""

    def __init__(self, parts: Parts) -> None:
        self.torchopt = library("torchopt")
        settings = settings_of(parts.optimizer)
        self.optimizer = self.torchopt.MetaSGD(parts.model, **settings, moment_requires_grad=False)
        self.net = parts.model
        (self.containers,) = self.optimizer.param_containers_groups
        self.slots = [(held, name) for held in self.containers for name, t in held.items() if t is not None]
        self.weights: list[Tensor] = [held[name] for held, name in self.slots]

    def forward(self, images: Tensor) -> Tensor:
        """See `Look`."""
        logits: Tensor = self.net(images)
        return logits

    def step(self, loss: Tensor) -> list[Tensor]:
        """See `Look`."""
        self.optimizer.step(loss)
        after = [held[name] for held, name in self.slots]
        self.weights = leaves(after)
        for (held, name), t in zip(self.slots, self.weights, strict=True):
            held[name] = t
        cut = self.torchopt.pytree.tree_map(Tensor.detach, self.optimizer.state_dict())
        self.optimizer.load_state_dict(cut)
        return after


class LookHeldOut:
    """Judged by the meta batch at theta'; theta' is where training goes on."""

    def __init__(self, parts: Parts, look: Look) -> None:
        self.parts, self.look = parts, look

    def __call__(self, batch: Batch, number: int, *, learn: bool) -> None:
        """See `Step`."""
        parts, look = self.parts, self.look
        labels = parts.labels(batch).requires_grad_()
        with hygiene.math_attention():
            after = look.step(soft_cross_entropy(look.forward(batch.images), labels).mean())
        with hygiene.untracked(look.net):
            meta_loss = cross_entropy(look.forward(parts.meta.images), parts.meta.given).mean()
        r = torch.autograd.grad(meta_loss, look.weights)
        (gradient,) = torch.autograd.grad(after, labels, r)
        parts.move(batch, labels, gradient)


class LookNextBatch:
    """Judged by the next batch, whose training pass is the meta pass."""

    def __init__(self, parts: Parts, look: Look) -> None:
        self.parts, self.look = parts, look
        self.pending: tuple[Batch, Tensor, list[Tensor]] | None = None

    def __call__(self, batch: Batch, number: int, *, learn: bool) -> None:
        """See `Step`."""
        look = self.look
        with hygiene.math_attention():
            logits = look.forward(batch.images)
        if self.pending is not None:
            before, judged, after = self.pending
            meta_loss = cross_entropy(logits, batch.given).mean()
            r = torch.autograd.grad(meta_loss, look.weights, retain_graph=True)
            (gradient,) = torch.autograd.grad(after, judged, r)
            self.parts.move(before, judged, gradient)
            # The old graph goes before the new one grows.
            self.pending = None
            del after, judged, r, meta_loss
        labels = self.parts.labels(batch).requires_grad_()
        self.pending = batch, labels, look.step(soft_cross_entropy(logits, labels).mean())


class InnerloopCtx:
    """`higher` as its examples have it: patched in every step, and the fast weights copied back."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.higher = library("higher")

    def __call__(self, batch: Batch, number: int, *, learn: bool) -> None:
        """See `Step`."""
        parts = self.parts
        labels = parts.labels(batch).requires_grad_()
        with self.higher.innerloop_ctx(parts.model, parts.optimizer, copy_initial_weights=True) as (net, look):
            with hygiene.math_attention():
                look.step(soft_cross_entropy(net(batch.images), labels).mean())
                with hygiene.untracked(net):
                    meta_loss = cross_entropy(net(parts.meta.images), parts.meta.given).mean()
            (gradient,) = torch.autograd.grad(meta_loss, labels)
            self._carry_on(net, look)
        parts.move(batch, labels, gradient)

    @torch.no_grad()
    def _carry_on(self, net: Any, look: Any) -> None:
        weights: list[Tensor] = list(self.parts.model.parameters())
        torch._foreach_copy_(weights, list(net.parameters()))
        for buffer, fast in zip(self.parts.model.buffers(), net.buffers(), strict=True):
            buffer.copy_(fast)
        for p, kept in zip(weights, (look.state[0][i] for i in range(len(weights))), strict=True):
            self.parts.optimizer.state[p]["momentum_buffer"] = kept["momentum_buffer"].detach()


class StopGradient:
    """`torchopt` as its examples have it: a differentiable step on the network, then `stop_gradient`."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.torchopt = library("torchopt")
        self.optimizer = self.torchopt.MetaSGD(parts.model, **settings_of(parts.optimizer))

    def __call__(self, batch: Batch, number: int, *, learn: bool) -> None:
        """See `Step`."""
        parts = self.parts
        labels = parts.labels(batch).requires_grad_()
        with hygiene.math_attention():
            self.optimizer.step(soft_cross_entropy(parts.model(batch.images), labels).mean())
            with hygiene.untracked(parts.model):
                meta_loss = cross_entropy(parts.model(parts.meta.images), parts.meta.given).mean()
        (gradient,) = torch.autograd.grad(meta_loss, labels)
        self.torchopt.stop_gradient(parts.model)
        self.torchopt.stop_gradient(self.optimizer)
        parts.move(batch, labels, gradient)


# --- Patterns of the literature, re-derived; not their code ---


def reach(estimator: Estimator) -> float:
    """How far a finite difference moves the weights."""
    assert isinstance(estimator, FiniteDifference)
    return estimator.reach


def train_gradient(parts: Parts, batch: Batch) -> Tensor:
    """The ordinary training pass: fills the gradients and returns the labels, [B, C]."""
    labels = parts.labels(batch)
    parts.optimizer.zero_grad(set_to_none=True)
    soft_cross_entropy(parts.model(batch.images), labels).mean().backward()  # type: ignore[no-untyped-call]
    return labels


@torch.no_grad()
def virtual_step(optimizer: torch.optim.Optimizer, weights: list[Tensor]) -> tuple[list[Tensor], float]:
    """SGD's step restated: theta', and the factor d theta'/d g, -lr or with Nesterov -lr (1 + momentum).

    d = g + weight_decay theta;  m = momentum m + d;  theta' = theta - lr (d + momentum m if Nesterov, else m).
    """
    group = optimizer.param_groups[0]
    assert group["dampening"] == 0
    lr, momentum, nesterov = float(group["lr"]), float(group["momentum"]), bool(group["nesterov"])
    gradients = [p.grad for p in weights if p.grad is not None]
    d = torch._foreach_add(gradients, weights, alpha=group["weight_decay"])
    buffers = [optimizer.state[p].get("momentum_buffer") for p in weights]
    m = d if buffers[0] is None else torch._foreach_add(d, buffers, alpha=momentum)
    moved = torch._foreach_add(d, m, alpha=momentum) if nesterov else m
    return list(torch._foreach_add(weights, moved, alpha=-lr)), -lr * (1 + momentum if nesterov else 1)


class PatternOfMLC:
    """Virtual step on a copy, then central differences of dL_train/dy = -log p / B on the copy."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.copy = copy.deepcopy(parts.model)
        # The customary .01 / norm(v) costs the same and has cosine .9989 on resnet8 and .9977 on resnet20.
        self.reach = reach(parts.central)

    def __call__(self, batch: Batch, number: int, *, learn: bool) -> None:
        """See `Step`."""
        parts = self.parts
        labels = train_gradient(parts, batch)
        theta: list[Tensor] = list(parts.model.parameters())
        twins: list[Tensor] = list(self.copy.parameters())
        with hygiene.untracked(self.copy):
            factor = self._to_virtual_weights(theta, twins)
            meta_loss = cross_entropy(self.copy(parts.meta.images), parts.meta.given).mean()
            v = torch._foreach_mul(torch.autograd.grad(meta_loss, twins), factor)
            eps = self.reach / torch.stack(torch._foreach_norm(v)).norm()
            ahead, behind = (self._log_p(batch, theta, twins, torch._foreach_mul(v, e)) for e in (eps, -eps))
        gradient = (ahead - behind) / (-2 * eps * len(batch.given))
        parts.optimizer.step()
        parts.move(batch, labels, gradient)

    @torch.no_grad()
    def _to_virtual_weights(self, theta: list[Tensor], twins: list[Tensor]) -> float:
        after, factor = virtual_step(self.parts.optimizer, theta)
        torch._foreach_copy_(twins, after)
        return factor

    @torch.no_grad()
    def _log_p(self, batch: Batch, theta: list[Tensor], twins: list[Tensor], shift: tuple[Tensor, ...]) -> Tensor:
        torch._foreach_copy_(twins, theta)
        torch._foreach_add_(twins, shift)
        return torch.log_softmax(self.copy(batch.images), dim=-1)


class PatternOfEMLC:
    """Virtual weights, their meta gradient, and one forward-mode product along it, by `torch.func`."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts

    def __call__(self, batch: Batch, number: int, *, learn: bool) -> None:
        """See `Step`."""
        parts, model = self.parts, self.parts.model
        labels = train_gradient(parts, batch)
        named = dict(model.named_parameters())
        after, factor = virtual_step(parts.optimizer, list(named.values()))
        virtual = dict(zip(named, leaves(after), strict=True))

        def log_p(weights: dict[str, Tensor]) -> Tensor:
            return torch.log_softmax(functional_call(model, weights, (batch.images,)), dim=-1)

        with hygiene.untracked(model), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*torch.jit.script.* is deprecated")  # torch's own, on first use
            meta_loss = cross_entropy(functional_call(model, virtual, (parts.meta.images,)), parts.meta.given).mean()
            # Not torch.func.grad, which keeps the whole graph: on resnet8 1.9 times a plain step's memory, this 1.2.
            v = torch._foreach_mul(torch.autograd.grad(meta_loss, list(virtual.values())), factor)
            theta = {name: p.detach() for name, p in named.items()}
            with torch.no_grad(), hygiene.math_attention():
                slope: Tensor = torch.func.jvp(log_p, (theta,), (dict(zip(named, v, strict=True)),))[1]
        parts.optimizer.step()
        parts.move(batch, labels, -slope / len(batch.given))


# --- The variants ---


def every_fourth(step: Step) -> Step:
    """Judges the labels of every fourth batch only."""

    def rare(batch: Batch, number: int, *, learn: bool) -> object:
        return step(batch, number, learn=learn and number % GROUP == 0)

    return rare


def ours(parts: Parts, source: str, estimator: Estimator) -> Step:
    """The package's own step."""
    training = Training(parts.model, parts.optimizer, parts.rule, seed=0)
    label_step = LabelStep(parts.rule, estimator, 0.0)
    if source == "held-out":
        return HeldOutStep(training, label_step, lambda number: parts.meta)
    return NextBatchStep(training, label_step)


VARIANTS: dict[str, Callable[[Parts], Step]] = {
    "plain": lambda p: PlainStep(Training(p.model, p.optimizer, p.rule, seed=0)),
    "next-batch/one-sided": lambda p: ours(p, "next-batch", p.one_sided),
    "next-batch/forward-mode": lambda p: ours(p, "next-batch", ForwardMode()),
    "next-batch/every-4": lambda p: every_fourth(ours(p, "next-batch", p.one_sided)),
    "held-out/one-sided": lambda p: ours(p, "held-out", p.one_sided),
    "held-out/forward-mode": lambda p: ours(p, "held-out", ForwardMode()),
    "held-out/unrolled": lambda p: ours(p, "held-out", Unrolled()),
    "higher, innerloop_ctx": InnerloopCtx,
    "torchopt, stop_gradient": StopGradient,
    "higher, held-out": lambda p: LookHeldOut(p, HigherLook(p)),
    "higher, next-batch": lambda p: LookNextBatch(p, HigherLook(p)),
    "torchopt, held-out": lambda p: LookHeldOut(p, TorchoptLook(p)),
    "torchopt, next-batch": lambda p: LookNextBatch(p, TorchoptLook(p)),
    "pattern of MLC": PatternOfMLC,
    "pattern of EMLC": PatternOfEMLC,
}


def library(name: str) -> Any:
    """A peer's package; both warn when they are imported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(name)


def missing_libraries() -> dict[str, str]:
    """Peers that cannot be imported, and why."""
    missing = {}
    for name in LIBRARIES:
        try:
            library(name)
        except ImportError as error:
            missing[name] = str(error)
    return missing


# --- Measuring ---


@dataclass(frozen=True)
class Cost:
    """One variant."""

    name: str
    ms: float  # a step, median over the rounds
    ratio: float  # to plain, median over the rounds
    peak_bytes: int  # of live tensors above the floor: weights, momentum, labels
    peak_ratio: float  # to plain
    cosine: float | None  # of the label gradient with the float64 unrolled one; None where none is taken


@dataclass(frozen=True)
class Gain:
    """One of ours against the fastest of the libraries."""

    ours: str
    form: str  # of the libraries that it is held against
    peer: str
    times_faster: float  # median over the rounds
    memory_share: float

    def text(self) -> str:
        """The line to be told."""
        return (
            f"{self.ours} is {self.times_faster:.2f} times faster than the fastest of higher and torchopt "
            f"{self.form} ({self.peer}), with {self.memory_share:.2f} of its memory."
        )


def base_parts(name: str, batch_size: int) -> tuple[Parts, list[Batch]]:
    """A network trained a little, its instance labels, and GROUP batches; one more judges."""
    recipe = Recipe(name="peers", data=DataRecipe(source="fashion-mnist"), views=ViewsRecipe())
    try:
        data = open_data(recipe)
    except DataError:
        recipe = recipe.model_copy(update={"data": DataRecipe(source="digits")})
        data = open_data(recipe)
    rows = data.splits.train[: (GROUP + 1) * batch_size]
    cpu = torch.device("cpu")
    shown = training_batches(
        data, rows, batch_size=batch_size, epoch=0, seed=0, views=recipe.views, numbered=False, device=cpu
    )
    *batches, meta = shown
    channels, side, _ = data.shape
    spec = zoo.fit(name, classes=data.num_classes, channels=channels, image_size=side)
    with seeded(cpu, 0):
        model = zoo.create(spec)
    rule = Labels(instance_table(rows, data.labels.given[rows], data.num_classes, 0.9, cpu), step=1.0)
    parts = Parts(model.train(), torch.optim.SGD(model.parameters(), **SGD), rule, meta)
    plain = VARIANTS["plain"](parts)
    for number in range(TRAINED):
        plain(batches[number % GROUP], number, learn=False)
    # On other batches than the cosines are taken on.
    training = Training(parts.model, parts.optimizer, parts.rule, seed=0)
    parts.one_sided, _ = choose_estimator("one-sided", training, batches[2], batches[3])
    parts.central, _ = choose_estimator("central", training, batches[2], batches[3])
    # No momentum and no gradients yet: the libraries start without any of their own.
    parts.optimizer = torch.optim.SGD(model.parameters(), **SGD)
    parts.optimizer.zero_grad()
    return parts, batches


def own(parts: Parts) -> Parts:
    """Copies of network, optimiser and labels, so that no variant trains another's."""
    model, optimizer, rule = copy.deepcopy((parts.model, parts.optimizer, parts.rule))
    return replace(parts, model=model, optimizer=optimizer, rule=rule)


def times(variants: dict[str, Step], batches: list[Batch], rounds: int) -> dict[str, list[float]]:
    """Seconds a step, by variant, one number a round; a round before the first is not counted."""
    taken: dict[str, list[float]] = {name: [] for name in variants}
    for round_number in range(rounds + 1):
        for name, step in variants.items():
            began = time.perf_counter()
            for number, batch in enumerate(batches):
                step(batch, round_number * GROUP + number, learn=True)
            taken[name].append((time.perf_counter() - began) / len(batches))
    return {name: seconds[1:] for name, seconds in taken.items()}


def peak(parts: Parts, build: Callable[[Parts], Step], batches: list[Batch]) -> int:
    """Peak bytes of three steps above what a plain loop holds between its steps.

    Counted from before the variant is built, so that copies of the network that stand between steps count as well.
    """
    with peak_bytes() as counter:
        mine = own(parts)
        momentum = sum(p.nbytes for p in mine.model.parameters())
        floor = counter.live + momentum
        step = build(mine)
        del mine
        for number in range(3):
            step(batches[number], number, learn=True)
    return counter.peak - floor


def label_gradient(parts: Parts, build: Callable[[Parts], Step], first: Batch, second: Batch) -> Tensor | None:
    """dL_meta/dy of the first batch's labels, judged by the second, [B, C]; None from a plain step."""
    mine = replace(own(parts), meta=second)
    step = build(mine)
    step(first, 0, learn=True)
    if mine.rule.gradient is None:
        step(second, 1, learn=True)
    return mine.rule.gradient


def exact_gradient(parts: Parts, first: Batch, second: Batch) -> Tensor:
    """The same by plain double backward in float64, [B, C]; the optimiser is at its first step, without Nesterov."""
    model = copy.deepcopy(parts.model).double()
    group = parts.optimizer.param_groups[0]
    assert not parts.optimizer.state
    assert not group["nesterov"]
    theta = {name: p.detach().requires_grad_() for name, p in model.named_parameters()}
    labels = parts.labels(first).double().requires_grad_()
    with hygiene.untracked(model), hygiene.math_attention():
        logits = functional_call(model, theta, (first.images.double(),))
        loss = soft_cross_entropy(logits, labels).mean()
        g = dict(zip(theta, torch.autograd.grad(loss, list(theta.values()), create_graph=True), strict=True))
        after = {name: t - group["lr"] * (g[name] + group["weight_decay"] * t) for name, t in theta.items()}
        meta_loss = cross_entropy(functional_call(model, after, (second.images.double(),)), second.given).mean()
    (gradient,) = torch.autograd.grad(meta_loss, labels)
    return gradient


def cosines(parts: Parts, names: list[str], batches: list[Batch]) -> dict[str, float | None]:
    """Of each label gradient with the exact one at the same weights and batches."""
    first, second = batches[:2]
    exact = exact_gradient(parts, first, second).flatten()
    found: dict[str, float | None] = {}
    for name in names:
        gradient = label_gradient(parts, VARIANTS[name], first, second)
        same = None if gradient is None else torch.cosine_similarity(gradient.double().flatten(), exact, dim=0)
        found[name] = None if same is None else float(same)
    return found


def gains(taken: dict[str, list[float]], peaks: dict[str, int]) -> list[Gain]:
    """Ours against the fastest library, in each form of theirs; with our judge restated only where it is ours too."""
    found = []
    for mine in OURS_TOLD:
        for form, names in FORMS.items():
            rivals = [name for name in names if name in taken]
            restated = any(name.endswith("next-batch") for name in names)
            if not rivals or (restated and not mine.startswith("next-batch")):
                continue
            faster = {rival: median_ratio(taken[rival], taken[mine]) for rival in rivals}
            rival = min(faster, key=faster.__getitem__)
            found.append(Gain(mine, form, rival, faster[rival], peaks[mine] / peaks[rival]))
    return found


def median_ratio(a: list[float], b: list[float]) -> float:
    """Of rounds that were timed side by side."""
    return statistics.median(x / y for x, y in zip(a, b, strict=True))


def measure(name: str, batch_size: int, rounds: int) -> dict[str, Any]:
    """All variants on one network."""
    parts, batches = base_parts(name, batch_size)
    missing = missing_libraries()
    names = [variant for variant in VARIANTS if not variant.startswith(tuple(missing))] if missing else list(VARIANTS)
    agreement = cosines(parts, names, batches)
    peaks = {variant: peak(parts, VARIANTS[variant], batches) for variant in names}
    taken = times({variant: VARIANTS[variant](own(parts)) for variant in names}, batches, rounds)
    costs = [
        Cost(
            name=variant,
            ms=1e3 * statistics.median(taken[variant]),
            ratio=median_ratio(taken[variant], taken["plain"]),
            peak_bytes=peaks[variant],
            peak_ratio=peaks[variant] / peaks["plain"],
            cosine=agreement[variant],
        )
        for variant in names
    ]
    return {
        "model": name,
        "batch_size": len(batches[0].given),
        "image_shape": list(batches[0].images.shape[1:]),
        "variants": [asdict(cost) for cost in costs],
        "reach": {"one-sided": reach(parts.one_sided), "pattern of MLC": reach(parts.central)},
        "gains": [{**asdict(gain), "text": gain.text()} for gain in gains(taken, peaks)],
        "not_installed": missing,
    }


def head(threads: int, rounds: int) -> dict[str, Any]:
    """What was measured with what."""
    return {"torch": torch.__version__, "threads": threads, "cores": os.cpu_count(), "rounds": rounds, "sgd": SGD}


def markdown(told: dict[str, Any], about: dict[str, Any]) -> str:
    """A table for one network."""
    shape = "x".join(map(str, told["image_shape"]))
    lines = [
        f"### {told['model']}, batch {told['batch_size']} of {shape}; torch {about['torch']}, {about['threads']} "
        f"threads of {about['cores']} cores; median of {about['rounds']} rounds",
        "",
        "| variant | ms a step | x plain | peak MiB | x plain | cosine with float64 |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for v in told["variants"]:
        cosine = "-" if v["cosine"] is None else f"{v['cosine']:.7f}"
        lines.append(
            f"| {v['name']} | {v['ms']:.1f} | {v['ratio']:.2f} | {v['peak_bytes'] / 2**20:.1f} | "
            f"{v['peak_ratio']:.2f} | {cosine} |"
        )
    lines += ["", *(f"- {gain['text']}" for gain in told["gains"])]
    lines += [f"- {name} is not installed: {why}" for name, why in told["not_installed"].items()]
    reaches = ", ".join(f"{name} {value:g}" for name, value in told["reach"].items())
    lines += [f"- Reach of the finite differences, as our probe chooses it: {reaches}."]
    lines += ["- The patterns of MLC and EMLC are re-derived; not their code.", ""]
    return "\n".join(lines)


def main() -> None:
    """Prints a table for each network, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["resnet8", "resnet20", "test_vit"])
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    about = head(arguments.threads, arguments.rounds)
    models = []
    for name in arguments.models:
        models.append(measure(name, arguments.batch_size, arguments.rounds))
        if not arguments.json:
            print(markdown(models[-1], about), flush=True)
    if arguments.json:
        print(json.dumps({**about, "models": models}, indent=1))


if __name__ == "__main__":
    main()
