"""What losses see inside a network: its last layer's input, and where its stages look, from the pass for the logits."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from distill.errors import ModelError
from distill.models.maps import MapHook, find_stages, fit_maps, network_name


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
                f"{network_name(model)} has no single last layer whose input could be its features",
                cure="choose another network, or a loss of logits.",
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
                cure="choose another network, or a loss of logits.",
            )
        caught = self._caught[0]
        return caught.float() if caught.itemsize < 4 else caught


class Inside:
    """While it is entered, what is asked for of a network's forward passes.

    Args:
        model: the network.
        images: [B, ch, H, W], on its device, of the kind that it will be given; any will do.
        features: whether the last layer's input is wanted.
        maps: whether attention maps are wanted.
        sizes: (h, w) that the maps are brought to, a teacher's; none: as they are.

    Raises:
        ModelError: the network has no features, or no maps.
    """

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        *,
        features: bool,
        maps: bool,
        sizes: Sequence[tuple[int, int]] = (),
    ) -> None:
        self._features = FeatureHook(model) if features else None
        self._maps = MapHook(model, find_stages(model, images)) if maps else None
        self._wanted = tuple(sizes)
        self._stack = ExitStack()
        self.width = self._width(model, images) if self._features else 0

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """(h, w) of the network's own maps."""
        return tuple(stage.size for stage in self._maps.stages) if self._maps else ()

    def __enter__(self) -> Self:
        for hook in (self._features, self._maps):
            if hook is not None:
                self._stack.enter_context(hook)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def features(self) -> Tensor | None:
        """Of the last forward pass, [B, D]; None where they are not wanted."""
        return self._features.features if self._features else None

    @property
    def maps(self) -> list[Tensor] | None:
        """Of the last forward pass, each [B, h * w]; None where they are not wanted."""
        if self._maps is None:
            return None
        return fit_maps(self._maps.maps, self.sizes, self._wanted) if self._wanted else self._maps.maps

    @torch.no_grad()
    def _width(self, model: nn.Module, images: Tensor) -> int:
        modes = {module: module.training for module in model.modules()}
        assert self._features is not None, "no features are wanted"
        try:
            with self._features as hook:
                model.eval()(images)
        finally:
            for module, mode in modes.items():
                module.training = mode
        return hook.features.shape[1]
