"""What a student's last layer is given, caught in the pass that gives the logits."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from distill.errors import ModelError


class FeatureHook:
    """While it is entered, remembers what the classifier was given in the last forward pass.

    A hook and not timm's `forward_head`, which a second call would take through dropout again.

    Args:
        model: one with a single classifier, as timm's interface names it.
    """

    def __init__(self, model: nn.Module) -> None:
        named: Any = model
        head = named.get_classifier() if hasattr(model, "get_classifier") else None
        if not isinstance(head, nn.Module) or isinstance(head, nn.Identity):
            raise ModelError(
                f"{type(model).__name__} has no single last layer whose input could be its features",
                cure="choose another student, or a loss of logits.",
            )
        self._head = head
        self._handle: RemovableHandle | None = None
        self._caught: list[Tensor] = []

    def __enter__(self) -> Self:
        self._caught.clear()
        self._handle = self._head.register_forward_pre_hook(
            lambda _, arguments: self._caught.append(arguments[0].flatten(1))
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    @property
    def features(self) -> Tensor:
        """[B, D], float32 at least.

        Raises:
            ModelError: the classifier was not called just once.
        """
        if len(self._caught) != 1:
            raise ModelError(
                f"the last layer ({type(self._head).__name__}) was given {len(self._caught)} inputs, expected one",
                cure="choose another student, or a loss of logits.",
            )
        caught = self._caught[0]
        return caught.float() if caught.itemsize < 4 else caught


@torch.no_grad()
def width_of_features(model: nn.Module, images: Tensor) -> int:
    """D of a model in eval mode, found on a few images [B, ch, H, W].

    Raises:
        ModelError: it has no features.
    """
    with FeatureHook(model) as hook:
        model(images)
    return hook.features.shape[1]
