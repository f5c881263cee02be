"""Finds the arguments with which a timm model takes images of a given size, by trial on the meta device.

A network made for 224 pixels shrinks a 32-pixel image to a single position, where convolutions see only padding. The
candidates are tried from the cheapest on; the first whose last feature map keeps 2x2 positions (a plain vision
transformer: 7x7 patches) is taken. It runs once with real numbers.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace

from timm.models import is_model

from distill.errors import ModelError
from distill.models.attempt import Request, Trial, attempt, build_on, confirm, reason_of
from distill.models.cifar import NETWORKS
from distill.models.small import ENLARGED, PREFIX
from distill.models.spec import Json

SMALL_IMAGE = 96
"""Up to this side in pixels ResNets lose their stem's stride and pooling: at 96 timm's own leave 3x3 positions."""

LARGEST_GRID = 32
"""Patches a side, at most, that a smaller patch may lead to: attention costs the fourth power of it."""

# An error message that fits on a screen.
_TRIALS_TOLD = 4


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
        trials.append(confirm(trial, request) if trial.enough else trial)
        if trials[-1].enough:
            return trials[-1]
    working = [place for place, trial in enumerate(trials) if not trial.failure]
    for place in sorted(working, key=lambda place: -trials[place].positions):
        trials[place] = confirm(trials[place], request)  # kept: if all fail, why is told
        if not trials[place].failure:
            return trials[place]
    _check_given(request, common)
    raise _nothing_fits(request, trials, common)


def _check_given(request: Request, common: Mapping[str, Json]) -> None:
    """Builds once with the user's arguments alone, so that a wrong one is told from a wrong guess of ours."""
    try:
        build_on(request.name, {**common, **request.given}, "meta")
    except Exception as error:  # whatever a constructor of timm's raises
        raise ModelError(
            f"model {request.name!r} cannot be built with arguments {request.given}: {reason_of(error)}",
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
