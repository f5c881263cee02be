"""Extra forward passes that leave no trace: running statistics, dropout's generator, attention kernels, precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.instancenorm import _InstanceNorm

from distill.errors import BilevelError
from distill.models.maps import network_name
from distill.seeding import seeded

AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@contextmanager
def untracked(model: nn.Module, buffers: dict[str, Tensor] | None = None) -> Iterator[None]:
    """Train mode without its side effects: every buffer is the same one, bit-identical, afterwards.

    Normalisation layers that train are told not to track statistics, because forward-mode differentiation refuses, or
    silently mishandles, the in-place update; instance normalisation, which tracks them whatever it is told, has none.
    All other buffers (EvoNorm's variance, spectral norm's vectors) have copies in their place.

    Args:
        model: the network.
        buffers: what the copies are taken from, by name; default: the buffers of today.
    """
    norms = [m for m in model.modules() if isinstance(m, _NormBase) and m.training and m.track_running_stats]
    slots = list(_other_buffers(model))
    given = buffers or {}
    copies: dict[int, Tensor | None] = {id(buffer): given.get(name, buffer).clone() for name, _, _, buffer in slots}
    for norm in norms:
        if isinstance(norm, _InstanceNorm):
            slots += [("", norm._buffers, key, buffer) for key, buffer in norm._buffers.items() if buffer is not None]
            copies |= {id(buffer): None for buffer in norm._buffers.values()}
    try:
        for norm in norms:
            norm.track_running_stats = False
        for _, own, key, buffer in slots:
            own[key] = copies[id(buffer)]
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
        for _, own, key, buffer in slots:
            own[key] = buffer


@contextmanager
def kept_buffers(model: nn.Module, *, wanted: bool) -> Iterator[dict[str, Tensor]]:
    """Collects, as they were before the body's forward pass, the buffers that it moves; nothing unless wanted.

    A layer that reads what it moves would be another function when the pass is made again.
    """
    kept: dict[str, Tensor] = {}
    if not wanted:
        yield kept
        return
    before = [(*slot, slot[3].clone(), slot[3]._version) for slot in _other_buffers(model)]
    yield kept
    for name, own, key, buffer, copy, version in before:
        if own[key] is not buffer or buffer._version != version:
            kept[name] = copy


def _other_buffers(model: nn.Module) -> Iterator[tuple[str, dict[str, Tensor | None], str, Tensor]]:
    """Name, owner, key and tensor of every buffer but the running statistics of layers that do without them."""
    for prefix, module in model.named_modules():
        if isinstance(module, _NormBase) and module.training:
            continue
        for key, buffer in module._buffers.items():
            if buffer is not None:
                yield f"{prefix}.{key}".removeprefix("."), module._buffers, key, buffer


@contextmanager
def swapped(model: nn.Module, tensors: dict[str, Tensor]) -> Iterator[None]:
    """The model with other tensors in the place of its parameters, by name; a tied one is replaced wherever it stands.

    What `torch.func.functional_call` does, in half its time, which counts beside the forward pass of a small network.
    """
    by_identity = {id(p): tensors[name] for name, p in model.named_parameters() if name in tensors}
    before: list[tuple[dict[str, Tensor | None], str, Tensor]] = []
    for module in model.modules():
        own: dict[str, Tensor | None] = module._parameters  # type: ignore[assignment]
        before += [(own, name, p) for name, p in own.items() if p is not None and id(p) in by_identity]
    try:
        for own, name, p in before:
            own[name] = by_identity[id(p)]
        yield
    finally:
        for own, name, p in before:
            own[name] = p


@contextmanager
def _training_pass(model: nn.Module, device: torch.device, seed: int, precision: str) -> Iterator[None]:
    if not model.training:
        raise BilevelError("learned labels: the model is in eval mode, expected train mode", cure="call model.train().")
    with ExitStack() as stack:
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            _refuse_random_masks(model)  # a graph replays kernels, and setting a seed is none
        else:
            stack.enter_context(seeded(device, seed))
        if precision in AUTOCAST:
            stack.enter_context(torch.autocast(device.type, dtype=AUTOCAST[precision], cache_enabled=False))
        yield


def _refuse_random_masks(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if getattr(module, "drop_prob", 0.0) or (isinstance(module, _DropoutNd) and module.p):
            raise BilevelError(
                f"learned labels: {name} ({type(module).__name__}) draws masks, which a CUDA graph cannot draw again",
                cure="capture no graph, or set the model's drop rates to 0.",
            )


def training_forward(model: nn.Module, images: Tensor, *, seed: int, precision: str) -> Tensor:
    """The one forward pass that updates running statistics: images [B, ch, H, W] -> logits [B, C]."""
    with _training_pass(model, images.device, seed, precision):
        logits: Tensor = model(images)
    return logits


def silent_forward(
    model: nn.Module,
    parameters: dict[str, Tensor],
    images: Tensor,
    *,
    seed: int,
    precision: str,
    buffers: dict[str, Tensor] | None = None,
) -> Tensor:
    """The training forward again with other parameters, the same dropout masks and no trace: -> logits [B, C].

    `buffers`, by name, are those that the training forward moved, as they were before it; see `kept_buffers`.
    """
    with untracked(model, buffers), swapped(model, parameters), _training_pass(model, images.device, seed, precision):
        logits: Tensor = model(images)
    return logits


def classifier(model: nn.Module) -> nn.Linear:
    """The last layer, as timm's interface names it.

    Raises:
        BilevelError: the model names none, or one that is not a plain linear layer.
    """
    named: Callable[[], nn.Module] | None = getattr(model, "get_classifier", None)
    head = named() if named is not None else None
    if not isinstance(head, nn.Linear):
        raise BilevelError(
            f"last-layer: the classifier of {network_name(model)} is {type(head).__name__}, expected a linear layer",
            cure='set teacher.labels.estimator = "auto".',
        )
    return head


@contextmanager
def kept_features(model: nn.Module, *, wanted: bool) -> Iterator[list[Tensor]]:
    """Collects what the classifier is given in the body's forward pass, detached, [B, D]; nothing unless wanted."""
    kept: list[Tensor] = []
    if not wanted:
        yield kept
        return
    handle = classifier(model).register_forward_pre_hook(lambda module, given: kept.append(given[0].detach()))
    try:
        yield kept
    finally:
        handle.remove()


@contextmanager
def full_float32() -> Iterator[None]:
    """Float32 that is float32: on GPUs that have TF32, torch's convolutions use it by default, with ten bits."""
    cudnn: Any = torch.backends.cudnn
    kinds = (cudnn.conv, cudnn.rnn)  # of one mind, or torch refuses to say which
    before = [kind.fp32_precision for kind in kinds]
    try:
        for kind in kinds:
            kind.fp32_precision = "none"
        yield
    finally:
        for kind, precision in zip(kinds, before, strict=True):
            kind.fp32_precision = precision


@contextmanager
def math_attention() -> Iterator[None]:
    """Attention by plain matrix products: the fused kernels have no forward-mode rule and no second derivative."""
    with sdpa_kernel(SDPBackend.MATH):
        yield
