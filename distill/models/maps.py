"""Attention maps: where the stages of a network look, caught in the forward pass that gives the logits.

    map[b, y, x] = mean over channels c of A[b, c, y, x]^2

F_sum^2 of Zagoruyko and Komodakis, "Paying More Attention to Attention", arXiv 1612.03928, section 3.1, over the number
of channels; scale does not matter to the loss. The stages are those that timm's `feature_info` names.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.hooks import RemovableHandle

from distill.errors import ModelError
from distill.models.small import Enlarged

_CURE = "Choose another model, or do without maps: [export] maps = false, and no loss `attention`."
# Of networks whose stages all have one size, such as plain ViTs, so many are taken, evenly spaced.
_MOST_ALIKE = 4


class Stage(NamedTuple):
    """A stage whose map is taken: its module's name, the channels that it gives, the size (h, w) of its map."""

    module: str
    channels: int
    size: tuple[int, int] = (0, 0)


class MapHook:
    """While it is entered, remembers the maps of the last forward pass.

    Args:
        model: the network.
        stages: as `find_stages` gives them for this model.
    """

    def __init__(self, model: nn.Module, stages: Sequence[Stage]) -> None:
        self.stages = tuple(stages)
        self._model, (self._body, _) = model, _named_body(model)
        self._handles: list[RemovableHandle] = []
        self._caught: dict[str, Tensor] = {}

    def __enter__(self) -> Self:
        self._caught.clear()
        for stage in self.stages:
            module = self._model.get_submodule(stage.module)
            self._handles.append(module.register_forward_hook(self._catching(stage)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._handles:
            self._handles.pop().remove()

    @property
    def maps(self) -> list[Tensor]:
        """Of each stage [B, h * w], float32 at least, in the stages' order; gradients flow.

        Raises:
            ModelError: the forward pass did not come by a stage, or it gave no map.
        """
        for stage in self.stages:
            if stage.module not in self._caught:
                raise ModelError(f"{type(self._model).__name__}: {stage.module} gave no attention map", cure=_CURE)
        return [self._caught[stage.module].flatten(1) for stage in self.stages]

    @property
    def sizes(self) -> dict[str, tuple[int, int]]:
        """(h, w) of every map that there is, by the stage's module."""
        return {name: (found.shape[1], found.shape[2]) for name, found in self._caught.items()}

    def _catching(self, stage: Stage) -> Any:
        last = getattr(self._body, "output_fmt", "NCHW") == "NHWC"
        prefix = getattr(self._body, "num_prefix_tokens", 0)

        def catch(module: nn.Module, arguments: Any, output: object) -> None:
            found = _map(output, stage.channels, channels_last=last, prefix=prefix)
            if found is not None:
                self._caught[stage.module] = found

        return catch


@torch.no_grad()
def find_stages(model: nn.Module, images: Tensor) -> tuple[Stage, ...]:
    """The stages whose maps are taken: of each size of map the last stage, the largest maps first.

    Maps of one pixel say nothing and are left out. Where all have one size, as in plain ViTs, four evenly spaced.

    Args:
        model: in any mode; it is put into eval mode for one forward pass, and back.
        images: [B, ch, H, W], on the model's device; any will do.

    Raises:
        ModelError: there are none.
    """
    modes = {module: module.training for module in model.modules()}
    hook = MapHook(model, list(_named_stages(model)))
    try:
        with hook:
            model.eval()(images)
    finally:
        for module, mode in modes.items():
            module.training = mode
    found = [stage._replace(size=hook.sizes[stage.module]) for stage in hook.stages if stage.module in hook.sizes]
    found = [stage for stage in found if math.prod(stage.size) > 1]
    if not found:
        raise ModelError(
            f"{type(_named_body(model)[0]).__name__}: none of its stages gives an attention map of more than one pixel",
            cure=_CURE,
        )
    last = {stage.size: stage for stage in found}
    if len(last) > 1:
        return tuple(last.values())
    count = min(_MOST_ALIKE, len(found))
    return tuple(found[math.ceil(len(found) * (i + 1) / count) - 1] for i in range(count))


def fit_maps(
    maps: Sequence[Tensor], sizes: Sequence[tuple[int, int]], wanted: Sequence[tuple[int, int]]
) -> list[Tensor]:
    """A student's maps, as many and as large as its teacher's.

    The last stages belong together, then those before them, and so on; a student of fewer stages gives its first one
    again, one of more leaves its first ones out. Sizes are brought to the teacher's by adaptive average pooling of the
    maps (the usual code pools activations, in which positive and negative ones cancel); smaller maps are repeated.

    Args:
        maps: the student's, each [B, h * w].
        sizes: their (h, w).
        wanted: the teacher's.

    Returns:
        One for each of `wanted`, [B, h * w].
    """
    fitted = []
    for back, size in enumerate(reversed(wanted)):
        number = max(0, len(maps) - 1 - back)
        one = maps[number]
        if sizes[number] != size:
            one = F.adaptive_avg_pool2d(one.reshape(-1, *sizes[number]), size).flatten(1)
        fitted.append(one)
    return fitted[::-1]


def as_row(maps: Sequence[Tensor]) -> Tensor:
    """Maps, each [B, P_l], over their lengths and one after the other: [B, sum P_l]. Maps of zeros stay zeros."""
    largest = [one.amax(1, keepdim=True) for one in maps]  # taken out first: squares of small values would be 0
    scaled = [one / torch.where(top > 0, top, 1.0) for one, top in zip(maps, largest, strict=True)]
    return torch.cat([F.normalize(one, dim=1) for one in scaled], 1)


def _named_body(model: nn.Module) -> tuple[Any, str]:
    """The timm model itself, and what its modules' names begin with."""
    name = ""
    while isinstance(model, Enlarged):
        model, name = model.body, f"{name}body."
    return model, name


def network_name(model: nn.Module) -> str:
    """The class of the timm model itself, for errors."""
    return type(_named_body(model)[0]).__name__


def _named_stages(model: nn.Module) -> Iterator[Stage]:
    """What timm's `feature_info` names, in the order of the forward pass; of names that stand twice, one."""
    body, prefix = _named_body(model)
    listed = getattr(body, "feature_info", ())
    modules = dict(body.named_modules())
    # TResNet's first entry has the name "", which is the network itself and no stage of it.
    named = [entry for entry in listed if entry.get("module") and entry["module"] in modules]
    channels = {entry["module"]: entry["num_chs"] for entry in named}
    yield from (Stage(prefix + name, count) for name, count in channels.items())


def _map(output: object, channels: int, *, channels_last: bool, prefix: int) -> Tensor | None:
    """The map [B, h, w] of activations [B, C, h, w], [B, h, w, C] or [B, tokens, C]; None where there is no grid."""
    if not isinstance(output, Tensor) or output.dim() not in (3, 4):
        return None
    squares = (output.float() if output.itemsize < 4 else output).square()
    if output.dim() == 4:
        fits = [output.shape[1] == channels, output.shape[-1] == channels]
        return squares.mean(-1 if (fits[1] if fits[0] != fits[1] else channels_last) else 1)
    # Some networks add their prefix tokens after the blocks.
    for skipped in (prefix, 0):
        side = math.isqrt(max(0, output.shape[1] - skipped))
        if side and side**2 == output.shape[1] - skipped:
            return squares[:, skipped:].mean(-1).reshape(-1, side, side)
    return None
