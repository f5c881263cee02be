"""Forward-mode through one layer at a time, against double backward and against differences: every way to call it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import timm.layers
import torch
from timm.models.vision_transformer import Attention as TimmAttention
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from distill.bilevel.forward_mode import ForwardMode
from distill.bilevel.probe import agreement
from distill.bilevel.unrolled import Unrolled
from distill.errors import BilevelError
from tests.bilevel import cases
from tests.bilevel.cases import relative

IMAGE, ONE_CHANNEL, SERIES, VOLUME = (4, 6, 6), (1, 6, 6), (4, 9), (2, 4, 4, 4)
FLAT, TOKENS, PLANES = (6,), (5, 8), (2, 3, 6)
Layer = tuple[tuple[int, ...], Callable[[], nn.Module]]  # shape of its input without the batch, and how it is made


class Call(nn.Module):
    """A function of the input and of parameters of the given shapes, by name."""

    def __init__(self, function: Callable[..., Tensor], **shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.function, self.names = function, list(shapes)
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape)))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, **{name: getattr(self, name) for name in self.names})


def after(change: Callable[[Tensor], Tensor], layer: nn.Module) -> nn.Module:
    return nn.Sequential(Call(change), layer)


class InEvalMode(nn.Module):
    """A layer that stays in eval mode, with statistics of its own."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.layer.running_mean.fill_(0.3)
        self.layer.running_var.fill_(2.0)

    def train(self, mode: bool = True) -> InEvalMode:
        super().train(mode)
        self.layer.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class Attend(nn.Module):
    """Attention of [B, L, D] to itself, with heads; `how` goes to the kernel."""

    def __init__(self, heads: int = 2, key_heads: int = 2, bias: bool = False, **how: Any) -> None:
        super().__init__()
        self.heads, self.key_heads, self.how = heads, key_heads, how
        self.qkv = nn.Linear(8, 4 * (heads + 2 * key_heads), bias=False)
        self.bias = nn.Parameter(torch.randn(heads, 5, 5)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (-1, 4)).transpose(1, 2).split([self.heads, *[self.key_heads] * 2], 1)
        how = self.how if self.bias is None else {**self.how, "attn_mask": self.bias}
        return F.scaled_dot_product_attention(q, k, v, **how).transpose(1, 2).flatten(2)


def attend(x: Tensor, **given: Tensor) -> Tensor:
    """Attention of the tokens to themselves, but for what is given (query, key or value)."""
    three = {name: given.get(name, x) for name in ("query", "key", "value")}
    return F.scaled_dot_product_attention(*three.values())


class Own(nn.Module):
    """nn.MultiheadAttention of the tokens to themselves."""

    def __init__(self, *, need_weights: bool, **how: Any) -> None:
        super().__init__()
        self.attention, self.need_weights = nn.MultiheadAttention(8, 2, batch_first=True, **how), need_weights

    def forward(self, x: Tensor) -> Tensor:
        out, weights = self.attention(x, x, x, need_weights=self.need_weights)
        return out if weights is None else out + weights.sum(-1, keepdim=True).sin() + weights[..., :1]


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


CONVOLUTIONS: dict[str, Layer] = {
    "conv": (IMAGE, lambda: nn.Conv2d(4, 6, 3)),
    "conv-without-bias": (IMAGE, lambda: nn.Conv2d(4, 6, 3, bias=False)),
    "conv-1x1": (IMAGE, lambda: nn.Conv2d(4, 6, 1)),
    "conv-one-channel": (ONE_CHANNEL, lambda: nn.Conv2d(1, 6, 3)),
    "conv-grouped": (IMAGE, lambda: nn.Conv2d(4, 6, 3, groups=2)),
    "conv-depthwise": (IMAGE, lambda: nn.Conv2d(4, 8, 3, groups=4, padding=1)),
    "conv-strided": (IMAGE, lambda: nn.Conv2d(4, 6, 3, stride=2)),
    "conv-dilated": (IMAGE, lambda: nn.Conv2d(4, 6, 3, dilation=2)),
    "conv-all-at-once": (IMAGE, lambda: nn.Conv2d(4, 6, (1, 3), stride=(2, 1), padding=(0, 2), dilation=2, groups=2)),
    "conv-same": (IMAGE, lambda: nn.Conv2d(4, 6, 3, padding="same")),
    "conv-same-even": (IMAGE, lambda: nn.Conv2d(4, 6, 4, padding="same", dilation=(1, 2))),
    "conv-valid": (IMAGE, lambda: nn.Conv2d(4, 6, 3, padding="valid")),
    "conv-reflect": (IMAGE, lambda: nn.Conv2d(4, 6, 3, padding=2, padding_mode="reflect")),
    "conv-circular": (IMAGE, lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular")),
    "conv-replicate-same": (IMAGE, lambda: nn.Conv2d(4, 6, 4, padding="same", padding_mode="replicate")),
    "conv-same-timm": (IMAGE, lambda: timm.layers.Conv2dSame(4, 6, 3, stride=2)),
    "conv-channels-last": (
        IMAGE,
        lambda: after(channels_last, nn.Conv2d(4, 6, 3)).to(memory_format=torch.channels_last),
    ),
    "conv-transposed-input": (IMAGE, lambda: after(lambda x: x.mT, nn.Conv2d(4, 6, 3))),
    "conv-expanded-input": (ONE_CHANNEL, lambda: after(lambda x: x.expand(-1, 4, -1, -1), nn.Conv2d(4, 6, 3))),
    "conv-standardised": (IMAGE, lambda: timm.layers.StdConv2d(4, 6, 3)),
    "conv-standardised-scaled": (IMAGE, lambda: timm.layers.ScaledStdConv2d(4, 6, 3)),
    "conv-computed-weight": (
        IMAGE,
        lambda: Call(lambda x, w, s: F.conv2d(x, w * s.sigmoid(), padding=1), w=(6, 4, 3, 3), s=(6, 1, 1, 1)),
    ),
    "conv-of-a-constant": (IMAGE, lambda: Call(lambda x, w: x + F.conv2d(torch.ones_like(x), w), w=(4, 4, 1, 1))),
    "conv-transposed": (IMAGE, lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1, groups=2)),
    "conv1d": (SERIES, lambda: nn.Conv1d(4, 6, 3)),
    "conv1d-grouped": (SERIES, lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1, dilation=2, groups=2, bias=False)),
    "conv1d-same": (SERIES, lambda: nn.Conv1d(4, 6, 4, padding="same")),
    "conv3d": (VOLUME, lambda: nn.Conv3d(2, 4, 3)),
}
NORMALISATIONS: dict[str, Layer] = {
    "batchnorm": (IMAGE, lambda: nn.BatchNorm2d(4)),
    "batchnorm-without-affine": (IMAGE, lambda: nn.BatchNorm2d(4, affine=False)),
    "batchnorm-without-momentum": (IMAGE, lambda: nn.BatchNorm2d(4, momentum=None)),
    "batchnorm-untracked": (IMAGE, lambda: nn.BatchNorm2d(4, track_running_stats=False, eps=0.1)),
    "batchnorm-channels-last": (IMAGE, lambda: after(channels_last, nn.BatchNorm2d(4))),
    "batchnorm-transposed-input": (IMAGE, lambda: after(lambda x: x.mT, nn.BatchNorm2d(4))),
    "batchnorm-in-eval-mode": (IMAGE, lambda: InEvalMode(nn.BatchNorm2d(4))),
    "batchnorm-in-eval-mode-without-affine": (IMAGE, lambda: InEvalMode(nn.BatchNorm2d(4, affine=False))),
    "batchnorm-flat": (FLAT, lambda: nn.BatchNorm1d(6)),
    "batchnorm-flat-without-affine": (FLAT, lambda: nn.BatchNorm1d(6, affine=False, momentum=None)),
    "batchnorm-series": (SERIES, lambda: nn.BatchNorm1d(4)),
    "batchnorm-volume": (VOLUME, lambda: nn.BatchNorm3d(2)),
    "batchnorm-act": (IMAGE, lambda: timm.layers.BatchNormAct2d(4, act_layer=nn.SiLU)),
    "batchnorm-scale-only": (
        IMAGE,
        lambda: Call(lambda x, weight: F.batch_norm(x, None, None, weight, None, training=True), weight=(4,)),
    ),
    "batchnorm-computed-scale": (
        IMAGE,
        lambda: Call(lambda x, w: F.batch_norm(x, None, None, w.exp(), w[:4] + 1, True), w=(4,)),
    ),
    "instance-norm": (IMAGE, lambda: nn.InstanceNorm2d(4, affine=True)),
    "instance-norm-tracked": (IMAGE, lambda: nn.InstanceNorm2d(4, track_running_stats=True)),
    "group-norm": (IMAGE, lambda: nn.GroupNorm(2, 4)),
    "group-norm-without-affine": (IMAGE, lambda: nn.GroupNorm(2, 4, affine=False)),
    "group-norm-series": (SERIES, lambda: nn.GroupNorm(4, 4)),
    "layer-norm": (TOKENS, lambda: nn.LayerNorm(8)),
    "layer-norm-flat": (FLAT, lambda: nn.LayerNorm(6)),
    "layer-norm-without-affine": (TOKENS, lambda: nn.LayerNorm(8, elementwise_affine=False)),
    "layer-norm-without-bias": (TOKENS, lambda: nn.LayerNorm(8, bias=False)),
    "layer-norm-of-2-dims": (TOKENS, lambda: nn.LayerNorm((5, 8))),
    "layer-norm-of-2-of-3-dims": (PLANES, lambda: nn.LayerNorm((3, 6), eps=0.1)),
    "layer-norm-transposed-input": (TOKENS, lambda: after(lambda x: x.mT, nn.LayerNorm(5))),
    "layer-norm-of-channels": (IMAGE, lambda: timm.layers.LayerNorm2d(4)),
    "rms-norm": (TOKENS, lambda: nn.RMSNorm(8)),
}
LINEAR_MAPS: dict[str, Layer] = {
    "linear": (FLAT, lambda: nn.Linear(6, 7)),
    "linear-without-bias": (FLAT, lambda: nn.Linear(6, 7, bias=False)),
    "linear-3d": (TOKENS, lambda: nn.Linear(8, 7)),
    "linear-3d-without-bias": (TOKENS, lambda: nn.Linear(8, 7, bias=False)),
    "linear-4d": (PLANES, lambda: nn.Linear(6, 7)),
    "linear-4d-without-bias": (PLANES, lambda: nn.Linear(6, 7, bias=False)),
    "linear-to-one": (TOKENS, lambda: nn.Linear(8, 1)),
    "linear-of-transposed": (TOKENS, lambda: after(lambda x: x.mT, nn.Linear(5, 7))),
    "linear-of-every-other": (TOKENS, lambda: after(lambda x: x[:, ::2, 1::2], nn.Linear(4, 7))),
    "linear-of-expanded": (FLAT, lambda: after(lambda x: x[:, None].expand(-1, 3, -1), nn.Linear(6, 7))),
    "linear-of-one-place": (TOKENS, lambda: after(lambda x: x[:, 0], nn.Linear(8, 7))),
    "linear-of-a-vector": (FLAT, lambda: Call(lambda x, w, v: x + F.linear(v, w), w=(6, 5), v=(5,))),
    "linear-of-parameters": (FLAT, lambda: Call(lambda x, w, b: F.linear(x, F.linear(w, b)), w=(7, 5), b=(6, 5))),
    "linear-tied": (TOKENS, lambda: Call(lambda x, w: F.linear(F.linear(x, w), w.t()), w=(6, 8))),
    "linear-twice": (TOKENS, lambda: (lambda layer: nn.Sequential(layer, nn.Tanh(), layer))(nn.Linear(8, 8))),
    "linear-split": (TOKENS, lambda: nn.Sequential(nn.Linear(8, 12), Call(lambda x: x[..., :6] * x[..., 6:].sin()))),
    "linear-then-in-place-sum": (TOKENS, lambda: nn.Sequential(nn.Linear(8, 8), Call(lambda x, w: x.add_(w), w=(8,)))),
    "linear-by-keyword": (
        FLAT,
        lambda: Call(lambda x, weight, bias: F.linear(bias=bias, weight=weight, input=x), weight=(7, 6), bias=(7,)),
    ),
    "matrix-product": (TOKENS, lambda: Call(lambda x, w: x @ w, w=(8, 7))),
    "bilinear": (FLAT, lambda: Call(lambda x, w: F.bilinear(x, x, w), w=(5, 6, 6))),
}
MASK = torch.tensor([[True, False, True, True, False]]) | torch.eye(5, dtype=torch.bool)
ATTENTIONS: dict[str, Layer] = {
    "attention": (TOKENS, lambda: Attend()),
    "attention-causal": (TOKENS, lambda: Attend(is_causal=True)),
    "attention-masked": (TOKENS, lambda: Attend(attn_mask=MASK)),
    "attention-float-mask": (TOKENS, lambda: Call(masked, w=(8, 24))),
    "attention-learned-bias": (TOKENS, lambda: Attend(bias=True)),
    "attention-dropout": (TOKENS, lambda: Attend(dropout_p=0.4)),
    "attention-dropout-masked": (TOKENS, lambda: Attend(dropout_p=0.4, attn_mask=MASK, scale=0.7)),
    "attention-scaled": (TOKENS, lambda: Attend(scale=1.3)),
    "attention-grouped": (TOKENS, lambda: Attend(heads=4, key_heads=2, enable_gqa=True)),
    "attention-without-heads": (TOKENS, lambda: Call(lambda x, w: attend(x @ w), w=(8, 8))),
    "attention-of-itself": (TOKENS, lambda: Call(attend)),
    "attention-learned-query": (TOKENS, lambda: Call(lambda x, query: attend(x, query=query), query=(1, 3, 8))),
    "attention-learned-key": (TOKENS, lambda: Call(attend, key=(cases.B, 5, 8))),
    "attention-learned-value": (TOKENS, lambda: Call(attend, value=(cases.B, 5, 7))),
    "attention-to-parameters": (TOKENS, lambda: Call(attend, key=(cases.B, 7, 8), value=(cases.B, 7, 3))),
    "attention-multihead": (TOKENS, lambda: Own(need_weights=False)),
    "attention-multihead-with-weights": (TOKENS, lambda: Own(need_weights=True)),
    "attention-multihead-dropout": (TOKENS, lambda: Own(need_weights=False, dropout=0.3, bias=False)),
    "attention-timm": (TOKENS, lambda: TimmAttention(8, 2, qkv_bias=True, qk_norm=True, norm_layer=nn.LayerNorm)),
    "attention-pool": (TOKENS, lambda: timm.layers.AttentionPoolLatent(8, num_heads=2)),
    "encoder-layer": (TOKENS, lambda: nn.TransformerEncoderLayer(8, 2, 16, dropout=0.2, batch_first=True)),
}
OTHERS: dict[str, Layer] = {
    "squeeze-excite": (IMAGE, lambda: timm.layers.SqueezeExcite(4, rd_channels=2)),
    "prelu": (IMAGE, lambda: nn.PReLU(4)),
    "dropout": (IMAGE, lambda: nn.Sequential(nn.Dropout(0.3), nn.Dropout2d(0.3), timm.layers.DropPath(0.3))),
    "max-pool": (IMAGE, lambda: nn.MaxPool2d(3, 2)),
    "layer-scale": (TOKENS, lambda: timm.layers.LayerScale(8, init_values=0.5)),
}
LAYERS = CONVOLUTIONS | NORMALISATIONS | LINEAR_MAPS | ATTENTIONS | OTHERS


def masked(x: Tensor, w: Tensor) -> Tensor:
    q, k, v = (x @ w).chunk(3, -1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=MASK.to(x.dtype) * 2)


class OneLayer(nn.Module):
    """Perhaps a trained map before, so that the layer's input depends on parameters; the layer; a classifier."""

    def __init__(self, name: str, *, inner: bool, relu: bool) -> None:
        super().__init__()
        self.shape, build = LAYERS[name]
        self.before = nn.Linear(self.shape[-1], self.shape[-1]) if inner else nn.Identity()
        self.layer = build()
        with torch.no_grad():
            for parameter in self.layer.parameters():  # a scale that is 1 and a shift that is 0 hide mistakes
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
        self.after = nn.ReLU(inplace=True) if relu else nn.Identity()
        with torch.no_grad():
            self.head = nn.Linear(self.body(torch.randn(cases.B, *self.shape)).shape[1], cases.C)

    def body(self, x: Tensor) -> Tensor:
        return self.after(self.layer(self.before(x))).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def one_layer(name: str, *, inner: bool, relu: bool, frozen: str = "") -> tuple[nn.Module, Tensor]:
    """The network in float64, without the parameters whose name ends so, and images [B, ...]."""
    torch.manual_seed(0)
    model = OneLayer(name, inner=inner, relu=relu).double().train()
    for parameter_name, parameter in model.layer.named_parameters():
        parameter.requires_grad_(not (frozen and parameter_name.endswith(frozen)))
    return model, torch.randn(cases.B, *model.shape, dtype=torch.float64)


# torch's own, of layers that are as they should be
pytestmark = [
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning"),
    pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight:UserWarning"),
]


@pytest.mark.parametrize(("inner", "relu"), [(False, False), (True, True)])
@pytest.mark.parametrize("name", LAYERS)
def test_forward_mode_equals_unrolled(name: str, inner: bool, relu: bool) -> None:
    """And both equal differences between copies of the network, with a step too small to meet a kink of ReLU."""
    model, images = one_layer(name, inner=inner, relu=relu)
    step, r = cases.without_optimizer(model, images)
    expected = Unrolled()(model, step, r)
    assert expected.norm() > 0
    assert relative(ForwardMode()(model, step, r), expected) < 1e-10
    assert relative(expected, cases.derivative(model, step, r, h=1e-6)) < 1e-6
    single, r = cases.in_precision(step, r, torch.float32)
    assert relative(ForwardMode()(model.float(), single, r).double(), expected) < 1e-5


def has(name: str, ending: str) -> bool:
    return any(parameter.endswith(ending) for parameter, _ in LAYERS[name][1]().named_parameters())


@pytest.mark.parametrize("name", [name for name in LAYERS if has(name, "weight") or has(name, "bias")])
def test_a_frozen_weight_or_bias_has_no_tangent(name: str) -> None:
    """Neither, or only the one, or only the layer's input has one."""
    for inner, relu, frozen in [(True, False, "weight"), (True, True, "bias"), (False, True, "weight")]:
        model, images = one_layer(name, inner=inner, relu=relu, frozen=frozen)
        step, r = cases.without_optimizer(model, images)
        assert relative(ForwardMode()(model, step, r), Unrolled()(model, step, r)) < 1e-10, (inner, frozen)


NO_MIXED_TYPES = {"batchnorm-in-eval-mode", "batchnorm-in-eval-mode-without-affine", "bilinear"}  # in torch's own rules


@pytest.mark.parametrize("name", LAYERS)
def test_in_bfloat16_it_is_right_or_an_error(name: str) -> None:
    """Autocast, weights in float32."""
    model, images = one_layer(name, inner=True, relu=True)
    step, r = cases.without_optimizer(model, images)
    expected = Unrolled()(model, step, r)
    step, r = cases.in_precision(step, r, torch.float32)
    try:
        found = ForwardMode()(model.float(), replace(step, precision="bfloat16"), r)
    except BilevelError:
        assert name in NO_MIXED_TYPES
        return
    cosine, scale = agreement(found, expected)
    assert cosine > 0.99
    assert scale == pytest.approx(1, abs=0.1)
