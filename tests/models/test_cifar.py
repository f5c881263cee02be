import pytest
import timm
import torch
from torch import nn

from distill.models.cifar import NETWORKS
from distill.models.cifar_nets import CifarResNet, CifarWideResNet

# Counted from the architectures at C = 100; they round to the millions that the literature prints.
PARAMETERS = {
    "resnet8": 83_892,
    "resnet14": 181_108,
    "resnet20": 278_324,
    "resnet32": 472_756,
    "resnet44": 667_188,
    "resnet56": 861_620,
    "resnet110": 1_736_564,
    "resnet8x4": 1_233_540,
    "resnet32x4": 7_433_860,
    "wrn_16_1": 180_916,
    "wrn_16_2": 703_284,
    "wrn_40_1": 569_780,
    "wrn_40_2": 2_255_156,
    "vgg8": 3_965_028,
    "vgg13_cifar": 9_462_180,
}


def _on_meta(name: str, **kwargs: object) -> nn.Module:
    with torch.device("meta"):
        return timm.create_model(name, **kwargs)


def test_every_network_has_a_known_size() -> None:
    assert set(PARAMETERS) == set(NETWORKS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_count(name: str) -> None:
    model = _on_meta(name, num_classes=100)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]


def test_resnet20_by_hand() -> None:
    """3x3 convolutions, two numbers per channel of each BatchNorm, 1x1 shortcuts, one linear layer."""

    def block(inputs: int, outputs: int) -> int:
        shortcut = inputs * outputs + 2 * outputs if inputs != outputs else 0
        return 9 * inputs * outputs + 9 * outputs**2 + 4 * outputs + shortcut

    stages = 3 * block(16, 16) + block(16, 32) + 2 * block(32, 32) + block(32, 64) + 2 * block(64, 64)
    assert 27 * 16 + 32 + stages + 64 * 100 + 100 == PARAMETERS["resnet20"]


@pytest.mark.parametrize("name", ["resnet8", "resnet8x4", "wrn_16_1", "vgg8", "vgg13_cifar"])
@pytest.mark.parametrize("side", [8, 28, 32, 64, 224])
def test_any_image_size(name: str, side: int) -> None:
    model = _on_meta(name, num_classes=7, in_chans=1)
    features = model.forward_features(torch.empty(2, 1, side, side, device="meta"))
    assert features.shape[:2] == (2, model.num_features)
    assert min(features.shape[2:]) >= 2
    assert model.forward_head(features).shape == (2, 7)
    assert model.forward_head(features, pre_logits=True).shape == (2, model.num_features)


@pytest.mark.parametrize(("name", "side"), [("vgg8", 4), ("vgg13_cifar", 4), ("resnet20", 8), ("wrn_16_2", 8)])
def test_feature_map_at_32_pixels(name: str, side: int) -> None:
    model = _on_meta(name, num_classes=7)
    assert model.forward_features(torch.empty(2, 3, 32, 32, device="meta")).shape[2:] == (side, side)


@pytest.mark.parametrize("name", ["resnet8", "resnet8x4", "wrn_16_1", "vgg8"])
def test_interface(name: str) -> None:
    model = timm.create_model(name, num_classes=5, drop_rate=0.1)
    config = model.pretrained_cfg
    assert config["input_size"] == (3, 32, 32)
    assert model.get_classifier() is model.get_submodule(config["classifier"])
    assert isinstance(model.get_submodule(config["first_conv"]), nn.Conv2d)
    assert (model.num_classes, model.in_chans) == (5, 3)
    logits = model(torch.randn(2, 3, 32, 32))
    assert logits.shape == (2, 5)
    logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    model.reset_classifier(0)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, model.num_features)
    model.reset_classifier(3)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 3)


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_2", "vgg8"])
def test_features_match_feature_info(name: str) -> None:
    model = timm.create_model(name, features_only=True)
    maps = model(torch.randn(1, 3, 32, 32))
    assert [m.shape[1] for m in maps] == model.feature_info.channels()
    assert [32 // m.shape[2] for m in maps] == model.feature_info.reduction()


def test_a_stem_of_stride_2_halves_every_map() -> None:
    model = timm.create_model("resnet8", features_only=True, stem_stride=2, widths=(32, 32, 64, 128))
    maps = model(torch.randn(1, 3, 32, 32))
    assert [m.shape[1] for m in maps] == model.feature_info.channels() == [32, 32, 64, 128]
    assert [32 // m.shape[2] for m in maps] == model.feature_info.reduction() == [2, 2, 4, 8]
    with pytest.raises(ValueError, match="stem_stride must be 1 or 2, found 4"):
        CifarResNet(8, stem_stride=4)


def test_initial_activations_keep_their_scale() -> None:
    torch.manual_seed(0)
    for name in ("resnet8", "wrn_16_2", "vgg8"):
        logits = timm.create_model(name, num_classes=10).train()(torch.randn(16, 3, 32, 32))
        assert 0.01 < logits.std().item() < 10, name


def test_impossible_depths() -> None:
    with pytest.raises(ValueError, match="6n \\+ 2"):
        CifarResNet(19)
    with pytest.raises(ValueError, match="6n \\+ 4"):
        CifarWideResNet(18)
