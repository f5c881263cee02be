"""What a network's last layer is given, by timm's interface, in the forward pass that gives the logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from distill.errors import ModelError
from distill.models.maps import network_name


def logits_and_features(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [B, C] and penultimate features [B, D] of images [B, ch, H, W]; the body runs once, the head twice."""
    body: Any = model
    trunk = body.forward_features(images)
    features: Tensor = body.forward_head(trunk, pre_logits=True)
    logits: Tensor = body.forward_head(trunk)
    return logits, features.flatten(1)


@torch.no_grad()
def feature_width(model: nn.Module, images: Tensor) -> int:
    """D, after making sure on a few images that the features are those that this model's logits are made of.

    Args:
        model: in eval mode.
        images: [B, ch, H, W], on the model's device.

    Raises:
        ModelError: the model has not timm's interface, or computes something else in `forward`.
    """
    name, cure = network_name(model), "Export without features: [export] features = false."
    try:
        logits, features = logits_and_features(model, images)
    except (AttributeError, TypeError) as error:
        raise ModelError(f"[export] features: {name} cannot give them: {error}", cure=cure) from error
    expected, given = _logits_and_given(model, images)
    if logits.shape != expected.shape or not _close(logits, expected):
        raise ModelError(
            f"[export] features: {name}: forward_head(forward_features(x)) gives other logits than forward(x)",
            cure=cure,
        )
    if given is None or given.shape != features.shape or not _close(given, features):
        # DeiT's distilled form averages two tokens before the features, and two heads after them.
        raise ModelError(
            f"[export] features: {name}: what timm calls its features is not what one last layer is given", cure=cure
        )
    return features.shape[1]


def _close(found: Tensor, expected: Tensor) -> bool:
    """NaN is close to NaN: weights that diverged are no matter of features, and the export tells of them."""
    return torch.allclose(found, expected, rtol=1e-4, atol=1e-4, equal_nan=True)


def _logits_and_given(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor | None]:
    """Logits [B, C], and what the classifier was given, [B, D]; None where there is not one classifier."""
    body: Any = model
    head = body.get_classifier() if hasattr(body, "get_classifier") else None
    if not isinstance(head, nn.Module):
        return model(images), None
    given: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, arguments: given.append(arguments[0].flatten(1)))
    try:
        logits: Tensor = model(images)
    finally:
        hook.remove()
    return logits, given[0] if len(given) == 1 else None
