"""Writes a model as timm reads it: `timm.create_model("local-dir:FOLDER", pretrained=True)`.

`import distill.models.zoo` must come first where the architecture is one that this package registers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
from timm.models import get_pretrained_cfg
from torch import Tensor, nn

from distill.models.small import ENLARGED
from distill.models.spec import ModelSpec


def save_for_timm(
    model: nn.Module,
    spec: ModelSpec,
    folder: Path,
    *,
    class_names: Sequence[str],
    mean: Sequence[float],
    std: Sequence[float],
    write: Callable[[Path, bytes], object],
) -> None:
    """Writes `model.safetensors`, then `config.json`; the same weights give the same bytes.

    Args:
        model: built by `create(spec)`.
        spec: what it was built from.
        folder: made if it is not there.
        class_names: C names, in the order of the logits.
        mean: of the images' channels, as subtracted before the model.
        std: of the images' channels, as divided by before the model.
        write: puts a file in its place in one step, as `store.atomic.write_bytes` does.

    Raises:
        ValueError: not C names, or not one mean and deviation (or one for each channel).
    """
    if len(class_names) != spec.classes:
        raise ValueError(f"{len(class_names)} class names for {spec.classes} classes")
    if len(mean) != len(std) or len(mean) not in (1, spec.channels):
        raise ValueError(f"{len(mean)} means and {len(std)} deviations for {spec.channels} channels")
    folder.mkdir(parents=True, exist_ok=True)
    # One key only: safetensors writes several in random order.
    weights = safetensors.torch.save(_own_tensors(model), metadata={"format": "pt"})
    config = _config(model, spec, class_names, mean, std)
    write(folder / "model.safetensors", weights)
    write(folder / "config.json", (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode())


def _own_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The state, on the CPU; tensors that share memory, which safetensors refuses, each with a copy of its own."""
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in model.state_dict().items():
        tensor = value.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        tensors[name] = tensor.clone() if storage in seen else tensor
        seen.add(storage)
    return tensors


def _config(
    model: nn.Module, spec: ModelSpec, class_names: Sequence[str], mean: Sequence[float], std: Sequence[float]
) -> dict[str, Any]:
    """timm's `config.json`; see `timm.models._hub` for what is read back."""
    source = getattr(model, "pretrained_cfg", None) or {}
    side = spec.image_size
    # timm builds a model of fixed size for `input_size`; ours says its size in `model_args`.
    fixed = bool(source.get("fixed_input_size")) and spec.arguments.get("img_size") == side
    inner = get_pretrained_cfg(str(spec.arguments["base"])) if spec.architecture == ENLARGED else None
    prefix = "body." if inner else ""
    first_conv = inner.first_conv if inner else source.get("first_conv")
    classifier = inner.classifier if inner else source.get("classifier")
    return {
        "architecture": spec.architecture.partition(".")[0],
        "num_classes": spec.classes,
        "num_features": getattr(model, "num_features", None),
        "label_names": list(class_names),
        "model_args": spec.arguments,
        "pretrained_cfg": {
            "tag": "distill",
            "custom_load": False,
            "input_size": [spec.channels, side, side],
            "fixed_input_size": fixed,
            "interpolation": "bicubic",  # as `data.decode` brings images to their size
            "crop_pct": 1.0,
            "crop_mode": "center",
            "mean": [float(value) for value in mean],
            "std": [float(value) for value in std],
            "num_classes": spec.classes,
            "pool_size": None,
            "first_conv": _prefixed(first_conv, prefix),
            "classifier": _prefixed(classifier, prefix),
        },
    }


def _prefixed(names: Any, prefix: str) -> Any:
    """A module's name, or several, inside the enlarged model."""
    if isinstance(names, list | tuple):
        return [prefix + name for name in names]
    return prefix + names if names else None
