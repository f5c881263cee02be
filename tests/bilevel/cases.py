"""Small networks, optimisers and batches that the laws of the bilevel step are checked on. All in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import timm
import torch
from torch import Tensor, nn

from distill.bilevel import hygiene, lookahead
from distill.bilevel.contract import InnerStep
from distill.bilevel.step import Training
from distill.labels.rules import Smoothing
from distill.losses.soft import cross_entropy, soft_cross_entropy

B, M, C, CHANNELS, SIDE = 5, 7, 4, 3, 8


def conv_net() -> nn.Module:
    return nn.Sequential(
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
    return nn.Sequential(nn.Flatten(), nn.Linear(CHANNELS * SIDE**2, 16), nn.Dropout(0.5), nn.GELU(), nn.Linear(16, C))


def vit() -> nn.Module:
    model: nn.Module = timm.create_model(
        "test_vit", img_size=SIDE, patch_size=4, num_classes=C, drop_path_rate=0.3, proj_drop_rate=0.2
    )
    return model


NETWORKS: dict[str, Callable[[], nn.Module]] = {"conv-batchnorm": conv_net, "dropout": dropout_net, "vit": vit}

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


def clip_norm(optimizer: str) -> float:
    return float(OPTIMIZERS[optimizer].get("clip", 0.0))


def build(network: str, optimizer: str, *, groups: bool = False) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = NETWORKS[network]().double().train()
    parameters = list(model.parameters())
    if groups:
        half = len(parameters) // 2
        split = [{"params": parameters[:half]}, {"params": parameters[half:], "lr": 0.03, "weight_decay": 0.1}]
        return model, make_optimizer(optimizer, split)
    return model, make_optimizer(optimizer, parameters)


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
    logits = hygiene.training_forward(model, images, seed=seed, precision="float32")
    training = Training(model, optimizer, Smoothing(C, 0.0), seed, clip_norm=clip)
    clipped = training.update.backward(soft_cross_entropy(logits, labels).mean())
    parameters = lookahead.trained_parameters(model)
    inner = InnerStep(
        theta={name: p.detach().clone() for name, p in parameters.items()},
        look_ahead=lookahead.record(optimizer, parameters, keep_state=True, clip=clipped),
        images=images,
        labels=labels,
        log_probabilities=torch.log_softmax(logits.detach(), -1),
        seed=seed,
        precision="float32",
    )
    optimizer.step()
    return inner


def meta_loss(model: nn.Module, images: Tensor, given: Tensor, seed: int = 77) -> Tensor:
    """L_meta at the model's present parameters, without touching its buffers."""
    parameters = lookahead.trained_parameters(model)
    logits = hygiene.silent_forward(model, parameters, images, seed=seed, precision="float32")
    return cross_entropy(logits, given).mean()
