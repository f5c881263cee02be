"""Models by name: any of timm's, and the distillation literature's CIFAR networks, fitted to the images.

Importing this module registers our networks in timm (`cifar.py`, `small.py`), which is all that
`timm.create_model("local-dir:...")` needs to read a model that was saved here.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import nn

from distill.errors import ModelError
from distill.models import fitting
from distill.models.attempt import Request
from distill.models.build import build
from distill.models.saving import save_for_timm
from distill.models.spec import Json, ModelSpec, check_arguments, list_models, resolve
from distill.models.weights import create_pretrained, find_weights

__all__ = [
    "Fit",
    "Json",
    "ModelSpec",
    "check_name",
    "check_pretrained",
    "create",
    "fit",
    "fit_once",
    "list_models",
    "parameter_count",
    "save_for_timm",
]


class Fit(Protocol):
    """`fit`, or what stands in for it."""

    def __call__(
        self, name: str, *, classes: int, channels: int, image_size: int, arguments: Mapping[str, Any] = ...
    ) -> ModelSpec:
        """See `fit`."""


def fit(
    name: str,
    *,
    classes: int,
    channels: int,
    image_size: int,
    arguments: Mapping[str, Any] = MappingProxyType({}),
) -> ModelSpec:
    """Finds how to build a model so that it takes [B, channels, image_size, image_size] and gives logits [B, C].

    The trials run on the meta device, and what was found once on the CPU unless it is huge. The result depends on
    nothing but the arguments and the version of timm. The global random state is left as it was.

    Args:
        name: a timm model, with or without a tag of pretrained weights, or one of ours.
        classes: C, at least 2.
        channels: image channels.
        image_size: H = W in pixels.
        arguments: the user's own arguments for `timm.create_model`; they go before ours.

    Raises:
        ModelError: an unknown name, arguments that timm refuses, or a model that cannot take such images.
    """
    if classes < 2 or channels < 1 or image_size < 1:
        raise ModelError(
            f"model {name!r} cannot be fitted to {classes} classes of {channels} x {image_size} x {image_size} images",
            cure="At least two classes, one channel and one pixel are needed",
        )
    given = check_arguments(name, arguments)
    trial = fitting.search(Request(resolve(name), given, classes, channels, image_size))
    return ModelSpec(name, trial.architecture, trial.arguments, image_size, channels, classes)


def fit_once() -> Fit:
    """A `fit` that searches once for each question, for whoever will ask the same again, of many arms say.

    A search builds and runs several networks. The answers, refusals too, last as long as what is returned here.
    """
    search = fit
    found: dict[str, ModelSpec | ModelError] = {}

    def once(name: str, **asked: Any) -> ModelSpec:
        whole = {**asked, "name": name, "arguments": dict(asked.get("arguments", {}))}
        question = repr(sorted(whole.items()))
        if question not in found:
            try:
                found[question] = search(name, **asked)
            except ModelError as error:
                found[question] = error
        answer = found[question]
        if isinstance(answer, ModelError):
            raise ModelError(answer.message, cure=answer.cure)
        return replace(answer, arguments=deepcopy(answer.arguments))  # nobody's changes reach another

    return once


def check_name(name: str, arguments: Mapping[str, Any] = MappingProxyType({})) -> None:
    """Whether a model is known and may be given these arguments: what can be said before the images are known.

    Raises:
        ModelError: nobody knows the name, or an argument is refused whatever the model.
    """
    resolve(name)
    check_arguments(name, arguments)


def create(spec: ModelSpec, *, pretrained: bool = False) -> nn.Module:
    """Builds the model, on the CPU, in train mode, from the global random state or from timm's pretrained weights.

    Raises:
        ModelError: pretrained weights that do not exist, cannot be reached or do not fit.
    """
    if pretrained:
        return create_pretrained(spec)
    return build(spec.architecture, spec.arguments)


def check_pretrained(spec: ModelSpec) -> None:
    """Whether pretrained weights are published, and are in the cache or seem to be in reach; downloads nothing.

    Raises:
        ModelError: they cannot be had.
    """
    find_weights(spec)


def parameter_count(spec: ModelSpec) -> int:
    """How many numbers training changes. Counted on the meta device, without memory for them."""
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):
                model = create(spec)
        except (NotImplementedError, RuntimeError):  # a constructor that computes with its weights
            model = create(spec)
    return sum(parameter.numel() for parameter in model.parameters())
