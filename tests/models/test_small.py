import pytest
import timm
import torch
from torch import nn

from distill.models.small import Enlarged


def test_resnet18_for_cifar_has_the_literature_size() -> None:
    with torch.device("meta"):
        model = timm.create_model("small_resnet18", num_classes=100)
    assert sum(p.numel() for p in model.parameters()) == 11_220_132


@pytest.mark.parametrize("name", ["resnet18", "resnet10t", "resnetblur18", "seresnet18", "skresnet18", "resnest14d"])
def test_the_stem_keeps_the_image_size(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(f"small_{name}", num_classes=10, in_chans=1)
        assert model.forward_features(torch.empty(2, 1, 32, 32)).shape[2:] == (4, 4)
    assert [info["reduction"] for info in model.feature_info] == [1, 1, 2, 4, 8]
    first = model.get_submodule(model.pretrained_cfg["first_conv"])
    assert isinstance(first, nn.Conv2d)
    assert first.stride == (1, 1)
    assert model.pretrained_cfg["architecture"] == f"small_{name}"


def test_the_plain_entry_is_untouched() -> None:
    timm.create_model("small_resnet10t")
    with torch.device("meta"):
        model = timm.create_model("resnet18")
    assert model.conv1.kernel_size == (7, 7)


def test_features_only_is_refused() -> None:
    with pytest.raises(ValueError, match="features_only"):
        timm.create_model("small_resnet10t", features_only=True)


def test_enlarged_is_the_model_inside_on_a_larger_image() -> None:
    model = timm.create_model("enlarged", base="test_efficientnet", size=64, num_classes=5).eval()
    assert isinstance(model, Enlarged)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        logits = model(x)
        assert torch.equal(logits, model.body(model.enlarge(x)))
        assert torch.allclose(logits, model.forward_head(model.forward_features(x)), atol=1e-6)
    assert model.enlarge(x).shape == (2, 3, 64, 64)
    assert model.get_classifier() is model.body.get_classifier()
    model.reset_classifier(3)
    assert model.num_classes == 3
    assert model(x).shape == (2, 3)
