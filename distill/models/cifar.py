"""Registers the distillation literature's CIFAR networks in timm; importing this module is all it takes.

`timm.create_model("resnet8x4", num_classes=100)` then works, as do `local-dir:` folders that hold one of them. timm has
a `vgg13` of its own (for ImageNet, 133 M parameters), so ours is `vgg13_cifar`.
"""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from distill.models.cifar_nets import CifarNet, CifarResNet, CifarVgg, CifarWideResNet

_WIDE = (32, 64, 128, 256)

NETWORKS: dict[str, tuple[type[CifarNet], dict[str, Any]]] = {
    **{f"resnet{depth}": (CifarResNet, {"depth": depth}) for depth in (8, 14, 20, 32, 44, 56, 110)},
    **{f"resnet{depth}x4": (CifarResNet, {"depth": depth, "widths": _WIDE}) for depth in (8, 32)},
    **{
        f"wrn_{depth}_{widen}": (CifarWideResNet, {"depth": depth, "widen": widen})
        for depth in (16, 40)
        for widen in (1, 2)
    },
    "vgg8": (CifarVgg, {"convolutions": 1}),
    "vgg13_cifar": (CifarVgg, {"convolutions": 2}),
}
"""Name in timm's registry -> class and its configuration."""

# No weights are published with this package; mean and deviation are CIFAR-100's.
default_cfgs = generate_default_cfgs(
    {
        name: {
            "input_size": (3, 32, 32),
            "num_classes": 100,
            "mean": (0.5071, 0.4865, 0.4409),
            "std": (0.2673, 0.2564, 0.2762),
            "crop_pct": 1.0,
            "first_conv": "stages.0.0" if cls is CifarVgg else "conv1",
            "classifier": "fc",
        }
        for name, (cls, _) in NETWORKS.items()
    }
)


def _register(name: str) -> None:
    cls, configuration = NETWORKS[name]
    is_vgg = cls is CifarVgg
    features = {"out_indices": tuple(range(5 if is_vgg else 4)), "flatten_sequential": is_vgg}

    def entry(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        model: nn.Module = build_model_with_cfg(
            cls, name, pretrained, feature_cfg=dict(features), **{**configuration, **kwargs}
        )
        return model

    entry.__name__ = entry.__qualname__ = name
    register_model(entry)


for _name in NETWORKS:
    _register(_name)
