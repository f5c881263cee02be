"""The CIFAR networks of the distillation literature, as modules with timm's interface.

Written from the papers: residual networks (He et al., arXiv 1512.03385, section 4.2), wide residual networks
(Zagoruyko and Komodakis, arXiv 1605.07146), VGG (Simonyan and Zisserman, arXiv 1409.1556, with batch normalisation).
The shapes that the papers leave open (1x1 shortcuts, global pooling before one linear layer) are those that the
literature's numbers were measured with; the parameter counts in the tests pin them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from timm.layers.classifier import create_classifier
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812


class CifarNet(nn.Module):
    """What the three families share: the head, and the interface that timm expects of a classifier.

    A subclass defines `forward_features`, images [B, in_chans, H, W] -> feature map [B, num_features, h, w], then
    calls `_finish`.
    """

    num_features: int
    head_hidden_size: int
    global_pool: nn.Module
    fc: nn.Module

    def __init__(self, num_classes: int, in_chans: int, drop_rate: float) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.feature_info: list[dict[str, Any]] = []

    def _finish(self, num_features: int, global_pool: str) -> None:
        """Adds the head and initialises all convolutions (He et al., arXiv 1502.01852, by fan-out)."""
        self.num_features = self.head_hidden_size = num_features
        self.reset_classifier(self.num_classes, global_pool)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def get_classifier(self) -> nn.Module:
        """The last layer."""
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str = "avg") -> None:
        """A new last layer for `num_classes` classes; 0: none, the network gives pooled features."""
        self.num_classes = num_classes
        self.global_pool, self.fc = create_classifier(self.num_features, num_classes, pool_type=global_pool)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images [B, in_chans, H, W] -> feature map [B, num_features, h, w]."""
        raise NotImplementedError

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Feature map [B, num_features, h, w] -> logits [B, C], or with `pre_logits` the pooled [B, num_features]."""
        pooled: Tensor = self.global_pool(x)
        if self.drop_rate:
            pooled = F.dropout(pooled, p=self.drop_rate, training=self.training)
        output: Tensor = pooled if pre_logits else self.fc(pooled)
        return output

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, in_chans, H, W] -> logits [B, C]."""
        return self.forward_head(self.forward_features(x))


def _conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; a 1x1 convolution on the shortcut where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv3x3(inputs, outputs, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = _conv3x3(outputs, outputs)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            projection = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, outputs, H / stride, W / stride]."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class CifarResNet(CifarNet):
    """Three stages of (depth - 2) / 6 basic blocks.

    Args:
        depth: 8, 14, 20, ...: layers with weights, shortcuts not counted.
        widths: channels of the stem and of the three stages.
        stem_stride: of the first convolution. The literature's is 1; 2 makes wide nets cheap enough for a CPU.
        num_classes: C.
        in_chans: image channels.
        global_pool: timm's name of the pooling before the classifier.
        drop_rate: dropout before the classifier.
    """

    def __init__(
        self,
        depth: int,
        widths: Sequence[int] = (16, 16, 32, 64),
        stem_stride: int = 1,
        num_classes: int = 100,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ) -> None:
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"depth must be 6n + 2 with n >= 1, found {depth}")
        if stem_stride not in (1, 2):
            raise ValueError(f"stem_stride must be 1 or 2, found {stem_stride}")
        super().__init__(num_classes, in_chans, drop_rate)
        blocks_per_stage, stem, *stage_widths = (depth - 2) // 6, *widths
        self.conv1 = _conv3x3(in_chans, stem, stem_stride)
        self.bn1 = nn.BatchNorm2d(stem)
        self.act1 = nn.ReLU()
        self.feature_info = [{"num_chs": stem, "reduction": stem_stride, "module": "act1"}]
        inputs, stages = stem, []
        for i, width in enumerate(stage_widths):
            blocks = [BasicBlock(inputs, width, 2 if i else 1)]
            blocks += [BasicBlock(width, width, 1) for _ in range(blocks_per_stage - 1)]
            stages.append(nn.Sequential(*blocks))
            self.feature_info.append({"num_chs": width, "reduction": stem_stride * 2**i, "module": f"layer{i + 1}"})
            inputs = width
        self.layer1, self.layer2, self.layer3 = stages
        self._finish(inputs, global_pool)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images [B, in_chans, H, W] -> [B, widths[3], H / (4 s), W / (4 s)], s the stem's stride."""
        x = self.act1(self.bn1(self.conv1(x)))
        features: Tensor = self.layer3(self.layer2(self.layer1(x)))
        return features


class PreActivationBlock(nn.Module):
    """Normalise, activate, convolve, twice. A 1x1 shortcut, where needed, starts from the activated input."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = _conv3x3(inputs, outputs, stride)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = _conv3x3(outputs, outputs)
        self.shortcut = None if inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, outputs, H / stride, W / stride]."""
        y = F.relu(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(y)
        residual: Tensor = self.conv2(F.relu(self.bn2(self.conv1(y))))
        return residual + shortcut


class CifarWideResNet(CifarNet):
    """Three stages of (depth - 4) / 6 pre-activation blocks, `widen` times as wide as the plain 16, 32, 64.

    Args:
        depth: 10, 16, 22, ...
        widen: the factor k.
        num_classes: C.
        in_chans: image channels.
        global_pool: timm's name of the pooling before the classifier.
        drop_rate: dropout before the classifier.
    """

    def __init__(
        self,
        depth: int,
        widen: int = 1,
        num_classes: int = 100,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ) -> None:
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f"depth must be 6n + 4 with n >= 1, found {depth}")
        super().__init__(num_classes, in_chans, drop_rate)
        blocks_per_stage, inputs, stages = (depth - 4) // 6, 16, []
        self.conv1 = _conv3x3(in_chans, inputs)
        self.feature_info = [{"num_chs": inputs, "reduction": 1, "module": "conv1"}]
        for i, width in enumerate((16 * widen, 32 * widen, 64 * widen)):
            # At widen = 1 the first block keeps stride and width: no shortcut convolution, as in the paper.
            blocks = [PreActivationBlock(inputs, width, 2 if i else 1)]
            blocks += [PreActivationBlock(width, width, 1) for _ in range(blocks_per_stage - 1)]
            stages.append(nn.Sequential(*blocks))
            self.feature_info.append({"num_chs": width, "reduction": 2**i, "module": f"layer{i + 1}"})
            inputs = width
        self.layer1, self.layer2, self.layer3 = stages
        self.bn = nn.BatchNorm2d(inputs)
        self.act = nn.ReLU()
        self._finish(inputs, global_pool)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images [B, in_chans, H, W] -> [B, 64 * widen, H / 4, W / 4]."""
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        features: Tensor = self.act(self.bn(x))
        return features


class PoolFrom(nn.Module):
    """2x2 max-pooling of maps of at least `side` pixels; smaller maps pass unchanged."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        """[B, K, H, W] -> [B, K, H / 2, W / 2], or x."""
        return F.max_pool2d(x, 2) if min(x.shape[-2:]) >= self.side else x


class CifarVgg(CifarNet):
    """Five stages of 3x3 convolutions with batch normalisation, global pooling, one linear layer.

    Pools after the first three stages, and after the fourth only where the map still has 8 pixels a side, so that
    32x32 images end in 4x4 maps as in the literature. A pool that would leave less than 2x2 is skipped.

    Args:
        convolutions: how many in each stage.
        widths: channels of the five stages.
        num_classes: C.
        in_chans: image channels.
        global_pool: timm's name of the pooling before the classifier.
        drop_rate: dropout before the classifier.
    """

    def __init__(
        self,
        convolutions: int,
        widths: Sequence[int] = (64, 128, 256, 512, 512),
        num_classes: int = 100,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__(num_classes, in_chans, drop_rate)
        inputs, stages = in_chans, []
        for i, width in enumerate(widths):
            layers: list[nn.Module] = [PoolFrom(4 if i < 4 else 8)] if i else []
            for _ in range(convolutions):
                layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
                inputs = width
            stages.append(nn.Sequential(*layers))
            self.feature_info.append({"num_chs": width, "reduction": 2 ** min(i, 3), "module": f"stages.{i}"})
        self.stages = nn.Sequential(*stages)
        self._finish(inputs, global_pool)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images [B, in_chans, H, W] -> [B, 512, h, w], h = 4 for H = 32."""
        features: Tensor = self.stages(x)
        return features
