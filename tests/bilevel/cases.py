"""Small networks, optimisers and batches that the laws of the bilevel step are checked on. All in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import timm
import torch
from torch import Tensor, nn

from distill.bilevel import hygiene, lookahead
from distill.bilevel.contract import Estimator, InnerStep, Tensors
from distill.bilevel.label_step import LabelStep
from distill.bilevel.lookahead import Clip, LookAhead
from distill.bilevel.optimizer_rules import SGDRule
from distill.bilevel.step import HeldOutStep, NextBatchStep, Step, Training
from distill.data.loader import Batch
from distill.labels.learned import Learned
from distill.labels.tables import class_table, instance_table
from distill.losses.soft import cross_entropy, soft_cross_entropy
from distill.seeding import seeded

B, M, C, CHANNELS, SIDE = 5, 7, 4, 3, 8
CPU = torch.device("cpu")


class Net(nn.Sequential):
    """Layers, the last of which is the classifier and is named as timm names it."""

    def get_classifier(self) -> nn.Module:
        return self[-1]


def conv_net() -> nn.Module:
    return Net(
        nn.Conv2d(CHANNELS, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.Conv2d(6, 8, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.SiLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, C),
    )


def dropout_net() -> nn.Module:
    return Net(nn.Flatten(), nn.Linear(CHANNELS * SIDE**2, 16), nn.Dropout(0.5), nn.GELU(), nn.Linear(16, C))


def vit() -> nn.Module:
    """LayerNorm, attention, and dropout of all three kinds."""
    model: nn.Module = timm.create_model(
        "test_vit",
        img_size=SIDE,
        patch_size=4,
        embed_dim=16,
        depth=2,
        num_classes=C,
        drop_path_rate=0.3,
        proj_drop_rate=0.2,
        attn_drop_rate=0.2,
    )
    return model


class Residual(nn.Module):
    """A branch with dropout of whole channels, dropped whole for some images."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(2, channels)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.dropout = nn.Dropout2d(0.3)
        self.drop_path = timm.layers.DropPath(0.4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.dropout(self.conv(nn.functional.silu(self.norm(x)))))


def residual_net() -> nn.Module:
    pooled = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, C))
    return Net(nn.Conv2d(CHANNELS, 4, 3, stride=2), Residual(4), Residual(4), *pooled)


class OwnNorm(nn.Module):
    """Batch statistics kept by a module of one's own: one buffer written in place, as EvoNorm does, one not saved."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("variance", torch.ones(channels))
        self.register_buffer("mean", torch.zeros(channels), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3))
        with torch.no_grad():
            self.variance.copy_(0.9 * self.variance + 0.1 * variance)
            self.mean.mul_(0.9).add_(mean, alpha=0.1)
        return (x - mean[:, None, None]) / (variance[:, None, None] + 1e-3).sqrt()


def own_buffers_net() -> nn.Module:
    body = (nn.Conv2d(CHANNELS, 6, 3, stride=2), OwnNorm(6), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Net(*body, nn.LayerNorm(6), nn.Linear(6, C))


class Tied(nn.Module):
    """A layer used twice, a layer under two names, and a weight that two layers share."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.twice = nn.Linear(features, features)
        self.again = self.twice
        self.shares = nn.Linear(features, features)
        self.shares.weight = self.twice.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.shares(torch.tanh(self.again(torch.tanh(self.twice(x)))))


def tied_net() -> nn.Module:
    return Net(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(CHANNELS * 16, 6), Tied(6), nn.LayerNorm(6), nn.Linear(6, C))


class Frozen(Net):
    """A trained bias beside a frozen weight, a frozen BatchNorm in eval mode, and a parameter that nothing uses."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(CHANNELS, 6, 3),
            nn.BatchNorm2d(6),
            nn.SiLU(),
            nn.Conv2d(6, 6, 3, stride=2),
            nn.BatchNorm2d(6, track_running_stats=False),
            nn.Tanh(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(6, C),
        )
        self.unused = nn.Parameter(torch.ones(3))
        self[0].weight.requires_grad_(False)
        self[1].requires_grad_(False).running_var.fill_(0.5)

    def train(self, mode: bool = True) -> Frozen:
        super().train(mode)
        self[1].eval()
        return self


class FirstChannel(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, :1]


def one_channel_net() -> nn.Module:
    """A convolution over one channel, whose weight lies in memory in two formats at once."""
    first = (FirstChannel(), nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.GELU())
    return Net(*first, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, C))


class ChannelsLast(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.contiguous(memory_format=torch.channels_last)


def channels_last_net() -> nn.Module:
    body = (nn.Conv2d(CHANNELS, 6, 3), nn.BatchNorm2d(6), nn.SiLU(), nn.Conv2d(6, 6, 3, groups=2), nn.SiLU())
    model = Net(ChannelsLast(), *body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, C))
    return model.to(memory_format=torch.channels_last)


class FrozenInstanceNorm(Net):
    """Instance normalisation in eval mode, by the statistics that it has."""

    def __init__(self) -> None:
        norm = nn.InstanceNorm2d(4, affine=True, track_running_stats=True)
        super().__init__(nn.Conv2d(CHANNELS, 4, 3), norm, nn.SiLU(), nn.Flatten(), nn.Linear(144, C))
        norm.running_var.fill_(3.0)

    def train(self, mode: bool = True) -> FrozenInstanceNorm:
        super().train(mode)
        self[1].eval()
        return self


class TrackingInstanceNorm(Net):
    """Instance normalisation that moves running statistics in train mode, though it normalises by an image's own."""

    def __init__(self) -> None:
        norm = nn.InstanceNorm2d(4, affine=True, track_running_stats=True)
        super().__init__(nn.Conv2d(CHANNELS, 4, 3), norm, nn.SiLU(), nn.Flatten(), nn.Linear(144, C))


class Replacing(nn.Module):
    """Gives its buffer away for a new tensor in every forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("variance", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        variance = x.var()
        self.variance = 0.9 * self.variance + 0.1 * variance.detach()
        return x / variance.sqrt()


def replaced_buffer_net() -> nn.Module:
    return Net(nn.Conv2d(CHANNELS, 4, 3), Replacing(), nn.Flatten(), nn.Linear(144, C))


def spectral_norm_net() -> nn.Module:
    """Its forward pass depends on buffers that it moves."""
    linear = nn.utils.parametrizations.spectral_norm(nn.Linear(CHANNELS * SIDE**2, 6))
    return Net(nn.Flatten(), linear, nn.SiLU(), nn.Linear(6, C))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "conv-batchnorm": conv_net,
    "dropout": dropout_net,
    "vit": vit,
    "residual": residual_net,
    "own-buffers": own_buffers_net,
    "tied": tied_net,
    "frozen": Frozen,
    "one-channel": one_channel_net,
    "channels-last": channels_last_net,
}
# Layers that read what they move, replace it, or stand still among others that train.
ODD_BUFFERS: dict[str, Callable[[], nn.Module]] = {
    "frozen-instance-norm": FrozenInstanceNorm,
    "tracking-instance-norm": TrackingInstanceNorm,
    "replaced-buffer": replaced_buffer_net,
    "spectral-norm": spectral_norm_net,
}
DROP_AT_RANDOM = frozenset({"dropout", "vit", "residual"})

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "plain": {"lr": 0.1},
    "weight-decay": {"lr": 0.1, "weight_decay": 0.05},
    "momentum": {"lr": 0.1, "momentum": 0.9},
    "dampening": {"lr": 0.1, "momentum": 0.9, "dampening": 0.3},
    "nesterov": {"lr": 0.1, "momentum": 0.8, "nesterov": True, "weight_decay": 0.01},
    "clipped": {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "clip": 0.3},
    "clipped-nesterov-grouped": {"lr": 0.1, "momentum": 0.9, "nesterov": True, "clip": 0.3, "foreach": True},
    "not-clipped": {"lr": 0.1, "momentum": 0.9, "clip": 1e3},
    "adam": {"lr": 0.01, "weight_decay": 0.02, "kind": torch.optim.Adam},
    "adamw": {"lr": 0.01, "weight_decay": 0.02, "kind": torch.optim.AdamW},
    "adamw-clipped": {"lr": 0.01, "betas": (0.8, 0.95), "kind": torch.optim.AdamW, "clip": 0.3},
}
# Adam's first step is nearly the sign of the gradient: there is next to nothing to differentiate.
LEARNS_FROM_THE_FIRST_STEP = [name for name in OPTIMIZERS if not name.startswith("adam")]


def make_optimizer(optimizer: str, parameters: Any) -> torch.optim.Optimizer:
    settings = {k: v for k, v in OPTIMIZERS[optimizer].items() if k not in ("kind", "clip")}
    made: torch.optim.Optimizer = OPTIMIZERS[optimizer].get("kind", torch.optim.SGD)(parameters, **settings)
    return made


def optimizer_of(model: nn.Module, optimizer: str, *, groups: bool = False) -> torch.optim.Optimizer:
    """Over all parameters; if asked in two groups with different learning rates and weight decays."""
    parameters = list(model.parameters())
    if groups:
        half = len(parameters) // 2
        split = [{"params": parameters[:half]}, {"params": parameters[half:], "lr": 0.03, "weight_decay": 0.1}]
        return make_optimizer(optimizer, split)
    return make_optimizer(optimizer, parameters)


def clip_norm(optimizer: str) -> float:
    return float(OPTIMIZERS[optimizer].get("clip", 0.0))


def build(network: str, optimizer: str, *, groups: bool = False) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = (NETWORKS | ODD_BUFFERS)[network]().double().train()
    return model, optimizer_of(model, optimizer, groups=groups)


def batch(seed: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images [size, ch, H, W], given labels [size], soft labels [size, C]."""
    source = torch.Generator().manual_seed(seed)
    images = torch.randn(size, CHANNELS, SIDE, SIDE, generator=source, dtype=torch.float64)
    given = torch.randint(C, (size,), generator=source)
    labels = torch.softmax(torch.randn(size, C, generator=source, dtype=torch.float64), -1)
    return images, given, labels


def plain_steps(model: nn.Module, optimizer: torch.optim.Optimizer, count: int) -> None:
    """Ordinary training steps, so that momentum and running statistics are not at their start."""
    for number in range(count):
        images, given, _ = batch(100 + number, B)
        optimizer.zero_grad()
        cross_entropy(
            hygiene.training_forward(model, images, seed=number, precision="float32"), given
        ).mean().backward()
        optimizer.step()


def inner_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor, seed: int, clip: float = 0.0
) -> InnerStep:
    """Takes a real training step, clipped if asked, and records it."""
    with (
        hygiene.kept_features(model, wanted=hasattr(model, "get_classifier")) as features,
        hygiene.kept_buffers(model, wanted=True) as buffers,
    ):
        logits = hygiene.training_forward(model, images, seed=seed, precision="float32")
    optimizer.zero_grad()
    soft_cross_entropy(logits, labels).mean().backward()
    clipped = clip_gradients(model, clip) if clip else None
    parameters = lookahead.trained_parameters(model)
    inner = InnerStep(
        theta={name: p.detach().clone() for name, p in parameters.items()},
        look_ahead=lookahead.record(optimizer, parameters, keep_state=True, clip=clipped),
        images=images,
        labels=labels,
        log_probabilities=torch.log_softmax(logits.detach(), -1),
        seed=seed,
        precision="float32",
        buffers=buffers,
        features=features[0] if features else None,
    )
    optimizer.step()
    return inner


def clip_gradients(model: nn.Module, max_norm: float) -> Clip:
    parameters = {name: p for name, p in lookahead.trained_parameters(model).items() if p.grad is not None}
    norm = torch.nn.utils.clip_grad_norm_(list(parameters.values()), max_norm)
    return Clip(max_norm, norm, {name: p.grad for name, p in parameters.items()})


def meta_loss(model: nn.Module, images: Tensor, given: Tensor, seed: int = 77) -> Tensor:
    """L_meta at the model's present parameters, without touching its buffers."""
    parameters = lookahead.trained_parameters(model)
    logits = hygiene.silent_forward(model, parameters, images, seed=seed, precision="float32")
    return cross_entropy(logits, given).mean()


def meta_gradient(model: nn.Module, images: Tensor, given: Tensor) -> Tensors:
    """grad L_meta by parameter name; what the loss does not reach is left out."""
    parameters = lookahead.trained_parameters(model)
    found = torch.autograd.grad(meta_loss(model, images, given), list(parameters.values()), allow_unused=True)
    return {name: g for name, g in zip(parameters, found, strict=True) if g is not None}


@dataclass(frozen=True)
class Setting:
    """One inner step to be judged."""

    network: str
    optimizer: str = "nesterov"
    warm: int = 2  # plain steps before it
    groups: bool = False  # of parameters, with different learning rates
    head_only: bool = False  # is trained

    def __str__(self) -> str:
        return f"{self.network}-{self.optimizer}-{self.warm}" + "-groups" * self.groups


@dataclass(frozen=True)
class Judged:
    """A recorded step, the model and optimiser after it, and the meta gradient there."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    inner: InnerStep
    r: Tensors


def warmed(setting: Setting) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Before the step."""
    model, optimizer = build(setting.network, setting.optimizer, groups=setting.groups)
    if setting.head_only:
        train_only_the_head(model)
    plain_steps(model, optimizer, setting.warm)
    return model, optimizer


def judged(setting: Setting) -> Judged:
    model, optimizer = warmed(setting)
    images, _, labels = batch(1, B)
    meta_images, given, _ = batch(2, M)
    inner = inner_step(model, optimizer, images, labels, seed=9, clip=clip_norm(setting.optimizer))
    return Judged(model, optimizer, inner, meta_gradient(model, meta_images, given))


def train_only_the_head(model: nn.Module) -> None:
    model.requires_grad_(False)
    model.get_classifier().requires_grad_(True)


def without_optimizer(model: nn.Module, images: Tensor, seed: int = 3) -> tuple[InnerStep, Tensors]:
    """A step recorded but not taken, of plain SGD with learning rate 1, and a random meta gradient."""
    parameters = lookahead.trained_parameters(model)
    rule = SGDRule(lr=1.0, momentum=0.0, dampening=0.0, nesterov=False, weight_decay=0.0, first=True)
    source = torch.Generator().manual_seed(4)
    r = {name: torch.randn(p.shape, generator=source, dtype=p.dtype) for name, p in parameters.items()}
    log_probabilities = real_log_probabilities(copy.deepcopy(model), images, seed)
    inner = InnerStep(
        theta={name: p.detach().clone() for name, p in parameters.items()},
        look_ahead=LookAhead(dict.fromkeys(parameters, rule)),
        images=images,
        labels=torch.full_like(log_probabilities, 1 / log_probabilities.shape[1]),
        log_probabilities=log_probabilities,
        seed=seed,
        precision="float32",
    )
    return inner, r


@torch.no_grad()
def real_log_probabilities(model: nn.Module, images: Tensor, seed: int) -> Tensor:
    """log p of the model as it is, [B, C], by no code of ours; its running statistics move."""
    with seeded(CPU, seed):
        return torch.log_softmax(model(images), -1)


def derivative(model: nn.Module, inner: InnerStep, r: Tensors, h: float = 1e-5) -> Tensor:
    """dL/dy [B, C] of a step `without_optimizer`, by central differences between copies of the model."""
    ends = []
    for sign in (1, -1):
        twin = copy.deepcopy(model)
        with torch.no_grad():
            for name, parameter in lookahead.trained_parameters(twin).items():
                parameter.copy_(inner.theta[name] - sign * h * r[name])
        ends.append(real_log_probabilities(twin, inner.images, inner.seed))
    return -(ends[0] - ends[1]) / (2 * h) / len(inner.images)


def in_precision(inner: InnerStep, r: Tensors, dtype: torch.dtype) -> tuple[InnerStep, Tensors]:
    """Step and meta gradient in another precision."""
    names = ("images", "labels", "log_probabilities", "features")
    tensors = {name: getattr(inner, name) for name in names}
    moved = {name: None if t is None else t.to(dtype) for name, t in tensors.items()}
    theta = {name: t.to(dtype) for name, t in inner.theta.items()}
    return type(inner)(**{**inner.__dict__, **moved, "theta": theta}), {name: t.to(dtype) for name, t in r.items()}


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def cover(*axes: Iterable[Any], times: int = 1) -> list[tuple[Any, ...]]:
    """Rows in which every value of every axis stands, and not the product: each axis is gone round and round."""
    values = [list(axis) for axis in axes]
    return [tuple(axis[i % len(axis)] for axis in values) for i in range(times * max(map(len, values)))]


IMAGES = 40


def batch_of(number: int, size: int = B) -> Batch:
    """A training batch in which two entries are views of one image, and so share a given label and an instance row."""
    images, _, _ = batch(number, size)
    rows = (torch.arange(size) + number * size) % IMAGES
    rows[3] = rows[1]
    return Batch(rows, images, given_labels()[rows], rows, torch.zeros_like(rows))


def given_labels() -> Tensor:
    """Of all images, int64 [IMAGES]."""
    return torch.randint(C, (IMAGES,), generator=torch.Generator().manual_seed(8))


def learned(kind: str, step: float, parametrisation: str = "softmax", given: Tensor | None = None) -> Learned:
    """Labels in float64 with .7 on the given class."""
    if kind == "class":
        table = class_table(C, 0.7, CPU, parametrisation)
    else:
        given = given_labels() if given is None else given
        table = instance_table(torch.arange(IMAGES), given, C, 0.7, CPU, parametrisation)
    return Learned(replace(table, phi=table.phi.double()), step=step)


def renamed(batch: Batch, classes: Tensor) -> Batch:
    """With class c called classes[c]."""
    return replace(batch, given=classes[batch.given])


def whole_step(training: Training, estimator: Estimator, meta: str, classes: Tensor | None = None) -> Step:
    """A step whose labels are judged by a `meta` batch, if asked with the classes renamed."""
    label_step = LabelStep(training.rule, estimator, 0.0)
    names = torch.arange(C) if classes is None else classes
    if meta == "held-out":
        return HeldOutStep(training, label_step, lambda number: renamed(batch_of(1000 + number, M), names))
    return NextBatchStep(training, label_step)
