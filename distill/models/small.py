"""timm's residual networks for small images, and any timm model behind an enlarged image; both registered in timm.

Importing this module registers `small_<name>` for every model that timm builds from its `ResNet` class, and `enlarged`.
So a saved model's `config.json` names an architecture that `timm.create_model("local-dir:...")` finds.
"""

from __future__ import annotations

from typing import Any, cast

import timm
from timm.models import (
    build_model_with_cfg,
    generate_default_cfgs,
    get_pretrained_cfg,
    load_pretrained,
    model_entrypoint,
    register_model,
    resolve_pretrained_cfg,
)
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

PREFIX = "small_"
ENLARGED = "enlarged"

# The modules of timm whose models are of its class ResNet, and nothing else.
_RESIDUAL_MODULES = ["resnet", "sknet", "resnest", "res2net"]
_BASES: list[str] = timm.list_models(module=_RESIDUAL_MODULES)


def _first_conv(name: str) -> str:
    declared = get_pretrained_cfg(name)
    return str(declared.first_conv) if declared and declared.first_conv else "conv1"


default_cfgs = generate_default_cfgs(
    {
        **{
            PREFIX + name: {"input_size": (3, 32, 32), "first_conv": _first_conv(name), "classifier": "fc"}
            for name in _BASES
        },
        ENLARGED: {"input_size": (3, 32, 32)},
    }
)


def shrink_stem(model: Any) -> None:
    """Turns the stem of a timm `ResNet`, in place, into one that keeps the image's size.

    A single 7x7 convolution of stride 2 becomes a 3x3 convolution of stride 1; of a deep stem the first convolution
    loses its stride. The max-pool, or what replaces it, goes. This is how the literature fits ResNets to CIFAR.
    """
    stem = model.conv1
    if isinstance(stem, nn.Conv2d):
        old = stem.weight
        stem = nn.Conv2d(
            stem.in_channels, stem.out_channels, 3, padding=1, bias=False, device=old.device, dtype=old.dtype
        )
        nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
        model.conv1 = stem
    else:
        first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
        first.stride = (1, 1)
    model.maxpool = nn.Identity()
    # The stem's own entry had reduction 2, the stages counted its pooling too.
    for i, stage in enumerate(model.feature_info):
        stage["reduction"] = max(1, stage["reduction"] // (4 if i else 2))


def _register_small(name: str) -> None:
    build = model_entrypoint(name)

    def entry(
        pretrained: bool = False,
        pretrained_cfg: Any = None,
        pretrained_cfg_overlay: dict[str, Any] | None = None,
        cache_dir: str | None = None,
        **kwargs: Any,
    ) -> nn.Module:
        if kwargs.get("features_only"):
            raise ValueError(f"{PREFIX}{name} cannot be built with features_only")
        model = build(pretrained=False, **kwargs)
        shrink_stem(model)
        config = cast(Any, resolve_pretrained_cfg(PREFIX + name, pretrained_cfg, pretrained_cfg_overlay)).to_dict()
        model.pretrained_cfg = model.default_cfg = config
        if pretrained:
            classes, channels = model.num_classes, model.in_chans
            load_pretrained(model, config, num_classes=classes, in_chans=channels, cache_dir=cache_dir)
        return cast(nn.Module, model)

    entry.__name__ = entry.__qualname__ = PREFIX + name
    register_model(entry)


class Enlarged(nn.Module):
    """A timm model that sees its images enlarged: for networks that shrink a small image to nothing.

    Args:
        base: timm's name of the model inside.
        size: side in pixels that images are brought to, by bilinear interpolation.
        num_classes: C.
        in_chans: image channels.
        kwargs: what else `timm.create_model` is to hand to `base`.
    """

    def __init__(self, base: str, size: int, num_classes: int = 1000, in_chans: int = 3, **kwargs: Any) -> None:
        super().__init__()
        self.size = size
        self.body: nn.Module = timm.create_model(base, num_classes=num_classes, in_chans=in_chans, **kwargs)
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.num_features = self.body.num_features
        self.output_fmt = getattr(self.body, "output_fmt", "NCHW")
        self.num_prefix_tokens = getattr(self.body, "num_prefix_tokens", 0)

    def get_classifier(self) -> nn.Module:
        """The last layer of the model inside."""
        return self.body.get_classifier()  # type: ignore[no-any-return, operator]

    def reset_classifier(self, num_classes: int, *args: Any, **kwargs: Any) -> None:
        """A new last layer for `num_classes` classes."""
        self.num_classes = num_classes
        self.body.reset_classifier(num_classes, *args, **kwargs)  # type: ignore[operator]

    def enlarge(self, x: Tensor) -> Tensor:
        """Images [B, in_chans, H, W] -> [B, in_chans, size, size]; smoothed where that makes them smaller."""
        shrinks = x.shape[-1] > self.size
        return F.interpolate(x, (self.size, self.size), mode="bilinear", align_corners=False, antialias=shrinks)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images [B, in_chans, H, W] -> what the model inside calls features."""
        return self.body.forward_features(self.enlarge(x))  # type: ignore[no-any-return, operator]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Features -> logits [B, C], or with `pre_logits` what the last layer sees."""
        return self.body.forward_head(x, pre_logits=pre_logits)  # type: ignore[no-any-return, operator]

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, in_chans, H, W] -> logits [B, C]."""
        return self.body(self.enlarge(x))  # type: ignore[no-any-return]


def enlarged(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """timm's entry point for `Enlarged`: `timm.create_model("enlarged", base="densenet121", size=64)`."""
    model: nn.Module = build_model_with_cfg(Enlarged, ENLARGED, pretrained, **kwargs)
    return model


for _name in _BASES:
    _register_small(_name)
register_model(enlarged)
