"""Finds the arguments with which a timm model takes images of a given size, by trial on the meta device.

A network made for 224 pixels shrinks a 32-pixel image to a single position, where convolutions see only padding. The
candidates are tried from the cheapest on; the first whose last feature map keeps 2x2 positions (a plain vision
transformer: 7x7 patches) is taken. Meta tensors have shapes but no memory, so that a trial of a huge model is cheap.
The one that is taken runs once with real numbers.
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from timm.models import get_pretrained_cfg, is_model
from torch import Tensor, nn

from distill.errors import ModelError
from distill.models.build import build, quiet
from distill.models.cifar import NETWORKS
from distill.models.small import ENLARGED, PREFIX, Enlarged
from distill.models.spec import Json

SMALL_IMAGE = 96
"""Up to this side in pixels ResNets lose their stem's stride and pooling: at 96 timm's own leave 3x3 positions."""

ENOUGH_POSITIONS = 4
"""2x2: the smallest map on which a 3x3 convolution sees more than padding around one value."""

ENOUGH_PATCHES = 49
"""7x7 patches for a transformer that never pools, near the usual 8x8 for 32 pixels."""

LARGEST_GRID = 32
"""Patches a side, at most, that a smaller patch may lead to: attention costs the fourth power of it."""

# An error message that fits on a screen.
_TRIALS_TOLD = 4

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


def search(request: Request) -> Trial:
    """The cheapest candidate that keeps enough positions; failing that, the one that keeps most.

    Raises:
        ModelError: the user's arguments are refused by timm, or no candidate runs.
    """
    common: dict[str, Json] = {"num_classes": request.classes, "in_chans": request.channels}
    trials: list[Trial] = []
    seen: set[str] = set()
    for architecture, ours in _candidates(request, trials):
        arguments = {**common, **ours, **request.given}
        key = json.dumps([architecture, arguments], sort_keys=True)
        if key in seen:
            continue
        seen.add(key)
        trial = attempt(architecture, arguments, request)
        trials.append(_confirm(trial, request) if trial.enough else trial)
        if trials[-1].enough:
            return trials[-1]
    working = [place for place, trial in enumerate(trials) if not trial.failure]
    for place in sorted(working, key=lambda place: -trials[place].positions):
        trials[place] = _confirm(trials[place], request)  # kept: if all fail, why is told
        if not trials[place].failure:
            return trials[place]
    _check_given(request, common)
    raise _nothing_fits(request, trials, common)


def _check_given(request: Request, common: Mapping[str, Json]) -> None:
    """Builds once with the user's arguments alone, so that a wrong one is told from a wrong guess of ours."""
    try:
        _build(request.name, {**common, **request.given}, "meta")
    except Exception as error:  # whatever a constructor of timm's raises
        raise ModelError(
            f"model {request.name!r} cannot be built with arguments {request.given}: {_reason(error)}",
            cure=_takes(request.name),
        ) from error


def _takes(name: str) -> str:
    """Which arguments a model knows, or where that is written."""
    if name not in NETWORKS:
        return "See the model's constructor in timm for what it takes"
    known = [
        known for known in inspect.signature(NETWORKS[name][0]).parameters if known not in ("num_classes", "in_chans")
    ]
    return f"It takes {', '.join(known)}"


def _candidates(request: Request, trials: list[Trial]) -> Iterator[tuple[str, dict[str, Json]]]:
    """Entry points and arguments, cheapest first. Reads how earlier trials went."""
    size, variant = request.image_size, PREFIX + request.name.partition(".")[0]
    if size <= SMALL_IMAGE and is_model(variant):
        # Dilation instead of stride in the last stages, for images of about 8 pixels.
        yield variant, {}
        for stride in (16, 8):
            yield variant, {"output_stride": stride}
        return
    yield request.name, {"img_size": size}
    sized: dict[str, Json] = {} if trials[0].rejected else {"img_size": size}
    if trials[0].failure:
        # timm would hand over the native size silently; said aloud, the saved model does not depend on that.
        yield request.name, {"img_size": request.native_size} if request.size_is_fixed and sized else {}
    smaller = min((trials[-1].patch or 4) - 1, size // 2)
    for patch in range(smaller, 0, -1):
        if size % patch == 0 and size // patch <= LARGEST_GRID:
            yield request.name, {**sized, "patch_size": patch}
            if trials[-1].rejected:
                break
    for stride in (16, 8):
        yield request.name, {**sized, "output_stride": stride}
    for larger in larger_sizes(size, request.native_size):
        resized: dict[str, Json] = {"img_size": larger} if sized else {}
        enlarged: dict[str, Json] = {"base": request.name, "size": larger, **resized}
        yield ENLARGED, enlarged
        yield ENLARGED, {**enlarged, "output_stride": 16}


def larger_sizes(size: int, native: int) -> list[int]:
    """Twice, four times, ... the size, and 32, 64, ..., up to the native size; the next multiple of 32; the native."""
    doubled = [start << k for start in (size, 32) for k in range(10) if start << k < native]
    return sorted(larger for larger in {*doubled, -(-size // 32) * 32, native} if larger > size)


def attempt(architecture: str, arguments: dict[str, Json], request: Request) -> Trial:
    """Builds the network and shows it one image, both without values where that can be: raises nothing, and tells.

    Args:
        architecture: timm's name.
        arguments: for `timm.create_model`.
        request: what the network is to take and give.
    """
    try:
        model = _build(architecture, arguments, "meta")
    except Exception as error:  # whatever a constructor of timm's raises
        rejected = isinstance(error, TypeError)
        return Trial(architecture, arguments, failure=_reason(error), rejected=rejected)
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
            positions = _run(_build(architecture, arguments, "cpu"), request, "cpu")
    except Exception as error:  # the model does not take images of this size
        return Trial(architecture, arguments, failure=_reason(error), patch=patch)
    # As many positions as patches: it never pools, so that coarse patches are coarse from the first layer on.
    plain = patch is not None and patch > 1 and positions == (side // patch) ** 2
    wanted = ENOUGH_PATCHES if plain else ENOUGH_POSITIONS
    if _GEOMETRY & request.given.keys():
        wanted = 1
    return Trial(architecture, arguments, patch=patch, positions=positions, wanted=wanted, parameters=parameters)


def _confirm(trial: Trial, request: Request) -> Trial:
    """Once more with real numbers, where the model is not huge and the images are not of its own size.

    Meta tensors hold no values, so that an index beyond a table (the relative positions of MViT at odd sizes) passes.
    """
    if request.image_size == request.native_size or trial.parameters > _REAL_TRIAL_PARAMETERS:
        return trial
    try:
        _run(_build(trial.architecture, trial.arguments, "cpu"), request, "cpu")
    except Exception as error:  # the model does not take images of this size
        return replace(trial, failure=_reason(error))
    return trial


def _build(architecture: str, arguments: Mapping[str, Json], device: str) -> nn.Module:
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


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= 200 else text[:200] + " ..."


def _nothing_fits(request: Request, trials: list[Trial], common: Mapping[str, Json]) -> ModelError:
    def told(trial: Trial) -> str:
        ours = {k: v for k, v in trial.arguments.items() if k not in common}
        return f"{trial.architecture} with {ours}: {trial.failure}"

    ran = [trial for trial in trials if not trial.rejected] or trials
    shown = [told(trial) for trial in ran[:_TRIALS_TOLD]]
    if len(ran) > _TRIALS_TOLD:
        shown.append(f"and {len(ran) - _TRIALS_TOLD} more ways")
    tried = "\n    ".join(shown)
    size = request.image_size
    cure = "Choose another model or image size, or give its own arguments for the size"
    if request.given and len({trial.failure for trial in ran}) == 1:
        # Whatever the size is made of: then the size may not be to blame.
        cure = f"Look at model_args first, {request.given}, as every way fails alike. {cure}"
    elif request.given and _fits(replace(request, given={})):
        # Failures that show a shape differ with the size, and yet the size is not to blame.
        cure = f"Look at model_args, {request.given}: without them it takes such images. {cure}"
    return ModelError(
        f"model {request.name!r} does not take {request.channels} x {size} x {size} images; tried\n    {tried}",
        cure=cure,
    )


def _fits(request: Request) -> bool:
    try:
        search(request)
    except ModelError:
        return False
    return True
