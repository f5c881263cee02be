"""One way to build a network for images of a given size, tried: does it take them, and how many positions are left?

Meta tensors have shapes but no memory, so that a trial of a huge model is cheap. `fitting` decides what is tried.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from timm.models import get_pretrained_cfg
from torch import Tensor, nn

from distill.errors import ModelError
from distill.models.build import build, quiet
from distill.models.small import Enlarged
from distill.models.spec import Json

ENOUGH_POSITIONS = 4
"""2x2: the smallest map on which a 3x3 convolution sees more than padding around one value."""

ENOUGH_PATCHES = 49
"""7x7 patches for a transformer that never pools, near the usual 8x8 for 32 pixels."""

# Whoever gives one of these has decided how coarse the network is to be.
_GEOMETRY = {"img_size", "patch_size", "output_stride"}

# A trial with real numbers only for what fits into any machine's memory.
_REAL_TRIAL_PARAMETERS = 100_000_000


@dataclass(frozen=True)
class Request:
    """What is to be fitted: timm's name, the user's arguments, C, image channels, H = W."""

    name: str
    given: dict[str, Json]
    classes: int
    channels: int
    image_size: int

    @property
    def native_size(self) -> int:
        """The side in pixels that the model was made for."""
        config = get_pretrained_cfg(self.name)
        return int(config.input_size[-1]) if config else 224

    @property
    def size_is_fixed(self) -> bool:
        """Whether timm hands the native size to the constructor unless told otherwise."""
        config = get_pretrained_cfg(self.name)
        return bool(config and config.fixed_input_size)


@dataclass(frozen=True)
class Trial:
    """One attempt: what was built, and what came out of it."""

    architecture: str
    arguments: dict[str, Json]
    failure: str = ""
    rejected: bool = False
    """The constructor does not know one of the arguments."""
    patch: int | None = None
    """Side of the patches, where the model says."""
    positions: int = 0
    """Positions of the last feature map, or tokens."""
    wanted: int = ENOUGH_POSITIONS
    """How many positions make costlier candidates needless."""

    parameters: int = 0
    """How many numbers the model has."""

    @property
    def enough(self) -> bool:
        """Whether it ran, and no costlier candidate need be tried."""
        return not self.failure and self.positions >= self.wanted


def attempt(architecture: str, arguments: dict[str, Json], request: Request) -> Trial:
    """Builds the network and shows it one image, both without values where that can be: raises nothing, and tells.

    Args:
        architecture: timm's name.
        arguments: for `timm.create_model`.
        request: what the network is to take and give.
    """
    try:
        model = build_on(architecture, arguments, "meta")
    except Exception as error:  # whatever a constructor of timm's raises
        rejected = isinstance(error, TypeError)
        return Trial(architecture, arguments, failure=reason_of(error), rejected=rejected)
    inner, side = (model.body, model.size) if isinstance(model, Enlarged) else (model, request.image_size)
    patch, parameters = _patch_size(inner), sum(p.numel() for p in model.parameters())
    try:
        try:
            positions = _run(model, request, "meta")
        except Exception as error:  # a shape that does not fit, or an operation that meta tensors do not have
            if not isinstance(error, NotImplementedError) and "meta" not in str(error).lower():
                raise
            if parameters > _REAL_TRIAL_PARAMETERS:
                raise
            positions = _run(build_on(architecture, arguments, "cpu"), request, "cpu")
    except Exception as error:  # the model does not take images of this size
        return Trial(architecture, arguments, failure=reason_of(error), patch=patch)
    # As many positions as patches: it never pools, so that coarse patches are coarse from the first layer on.
    plain = patch is not None and patch > 1 and positions == (side // patch) ** 2
    wanted = ENOUGH_PATCHES if plain else ENOUGH_POSITIONS
    if _GEOMETRY & request.given.keys():
        wanted = 1
    return Trial(architecture, arguments, patch=patch, positions=positions, wanted=wanted, parameters=parameters)


def confirm(trial: Trial, request: Request) -> Trial:
    """Once more with real numbers, where the model is not huge and the images are not of its own size.

    Meta tensors hold no values, so that an index beyond a table (the relative positions of MViT at odd sizes) passes.
    """
    if request.image_size == request.native_size or trial.parameters > _REAL_TRIAL_PARAMETERS:
        return trial
    try:
        _run(build_on(trial.architecture, trial.arguments, "cpu"), request, "cpu")
    except Exception as error:  # the model does not take images of this size
        return replace(trial, failure=reason_of(error))
    return trial


def build_on(architecture: str, arguments: Mapping[str, Json], device: str) -> nn.Module:
    """Builds a network on a device; on "meta" without memory for its weights."""
    with torch.random.fork_rng(devices=[]), torch.device(device):
        return build(architecture, arguments)


def _run(model: nn.Module, request: Request, device: str) -> int:
    """One forward pass in train mode; the positions of the last feature map."""
    features: list[Any] = []
    inner = model.body if isinstance(model, Enlarged) else model
    forward_features = getattr(inner, "forward_features", None)

    def record(*args: Any, **kwargs: Any) -> Any:
        features.append(forward_features(*args, **kwargs))  # type: ignore[misc]
        return features[-1]

    if forward_features is not None:
        inner.forward_features = record  # type: ignore[assignment]
    model.train()
    shape = (2, request.channels, request.image_size, request.image_size)
    with quiet(), torch.random.fork_rng(devices=[]), torch.device(device), torch.no_grad():
        logits = model(torch.zeros(shape))
        expected = (2, request.classes)
        if not isinstance(logits, Tensor):
            raise ModelError(f"in train mode it gives a {type(logits).__name__}, not one tensor of logits")
        if tuple(logits.shape) != expected:
            raise ModelError(f"it gives logits of shape {tuple(logits.shape)}, expected {expected}")
    return _positions(inner, features[-1]) if features else ENOUGH_POSITIONS


def _positions(model: nn.Module, features: Any) -> int:
    """Positions of a feature map, NCHW or NHWC, or patch tokens; of several, of the coarsest."""
    if isinstance(features, dict):
        features = list(features.values())
    if isinstance(features, list | tuple):
        return min((_positions(model, f) for f in features), default=1)
    if not isinstance(features, Tensor) or features.ndim < 3:
        return 1
    channels, sides = getattr(model, "num_features", None), features.shape
    if features.ndim == 4:
        last = getattr(model, "output_fmt", "") == "NHWC" or (sides[3] == channels and sides[1] != channels)
        return sides[1] * sides[2] if last else sides[2] * sides[3]
    if sides[1] == channels and sides[2] != channels:
        return sides[2]
    tokens: int = sides[1]
    guess = int(not _is_square(tokens) and _is_square(tokens - 1))
    prefix = getattr(model, "num_prefix_tokens", guess)
    return max(1, tokens - int(prefix))


def _is_square(number: int) -> bool:
    return math.isqrt(number) ** 2 == number


def _patch_size(model: nn.Module) -> int | None:
    embedding = getattr(model, "patch_embed", None) or getattr(model, "stem", None)
    size = getattr(embedding, "patch_size", None)
    if isinstance(size, list | tuple) and size:
        size = size[0]
    return size if isinstance(size, int) and size > 0 else None


def reason_of(error: Exception) -> str:
    """The first line of what an error says, cut to a length that fits on a screen."""
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= 200 else text[:200] + " ..."
