"""The one call of timm's factory, in silence."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import timm
from torch import nn


@contextmanager
def quiet() -> Iterator[None]:
    """Runs the body without warnings, and without timm's log below the level of errors.

    What timm has to say while it builds a model (an alias that torch deprecates, a window that it shrinks) is about
    its own code; a user of a recipe can do nothing about it.
    """
    log = logging.getLogger("timm")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def build(architecture: str, arguments: Mapping[str, Any], *, pretrained: bool = False) -> nn.Module:
    """`timm.create_model`, quietly; on torch's default device, from its global random state."""
    with quiet():
        model: nn.Module = timm.create_model(architecture, pretrained=pretrained, **arguments)
    return model
