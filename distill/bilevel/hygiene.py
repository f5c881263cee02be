"""Extra forward passes that leave no trace: running statistics, dropout's generator, attention kernels, precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from distill.errors import BilevelError
from distill.seeding import seeded

AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@contextmanager
def untracked(model: nn.Module) -> Iterator[None]:
    """Train mode without its side effects: every buffer is bit-identical afterwards.

    Normalisation layers are told not to track statistics, because forward-mode differentiation refuses, or silently
    mishandles, the in-place update. Buffers of other modules (EvoNorm's variance, say) are put back from a copy.
    """
    norms = [m for m in model.modules() if isinstance(m, _NormBase) and m.track_running_stats]
    own = {id(buffer) for norm in norms for buffer in norm.buffers(recurse=False)}
    others = [b for b in model.buffers() if id(b) not in own]
    versions = [b._version for b in others]
    copies = [b.clone() for b in others]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
        with torch.no_grad():
            for buffer, version, copy in zip(others, versions, copies, strict=True):
                if buffer._version != version:
                    buffer.copy_(copy)


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
    model: nn.Module, parameters: dict[str, Tensor], images: Tensor, *, seed: int, precision: str
) -> Tensor:
    """The training forward again with other parameters, the same dropout masks and no trace: -> logits [B, C]."""
    with untracked(model), swapped(model, parameters), _training_pass(model, images.device, seed, precision):
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
            f"last-layer: the classifier of {type(model).__name__} is {type(head).__name__}, expected a linear layer",
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
def math_attention() -> Iterator[None]:
    """Attention by plain matrix products: the fused kernels have no forward-mode rule and no second derivative."""
    with sdpa_kernel(SDPBackend.MATH):
        yield
