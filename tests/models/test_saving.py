import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

from distill.data.decode import decode
from distill.errors import StoreError
from distill.models import zoo
from distill.store.atomic import write_bytes

NAMES = ["a", "ä", "c"]


def _trained(name: str, side: int, channels: int, **arguments: object) -> tuple[zoo.ModelSpec, nn.Module]:
    """A model whose statistics are not the initial ones, so that a buffer left behind shows."""
    spec = zoo.fit(name, classes=3, channels=channels, image_size=side, arguments=arguments)
    torch.manual_seed(0)
    model = zoo.create(spec).train()
    with torch.no_grad():
        model(torch.randn(4, channels, side, side))
        for p in model.parameters():
            p.add_(0.01 * torch.randn_like(p))
    return spec, model.eval()


def _save(model: nn.Module, spec: zoo.ModelSpec, folder: Path, channels: int) -> None:
    zoo.save_for_timm(
        model, spec, folder, class_names=NAMES, mean=[0.5] * channels, std=[0.25] * channels, write=write_bytes
    )


def test_timm_s_own_transform_makes_the_pixels_that_the_network_was_trained_on(tmp_path: Path) -> None:
    """`create_transform(**resolve_model_data_config(model))` of a square picture, to the bit."""
    spec, model = _trained("resnet10t", 32, 3)
    _save(model, spec, tmp_path / "net", 3)
    loaded = timm.create_model(f"local-dir:{tmp_path / 'net'}", pretrained=True)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(loaded))
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8))
    file = io.BytesIO()
    picture.save(file, "PNG")
    pixels = torch.tensor(decode(file.getvalue(), 32)).permute(2, 0, 1) / 255
    assert torch.allclose(transform(picture), (pixels - 0.5) / 0.25, rtol=0, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("resnet8x4", 32),
        ("vgg8", 28),
        ("resnet10t", 32),
        ("resnet10t", 8),
        ("test_vit", 32),
        ("test_convnext", 32),
        ("test_mambaout", 32),
    ],
)
def test_timm_reads_it_back(name: str, side: int, channels: int, tmp_path: Path) -> None:
    spec, model = _trained(name, side, channels)
    _save(model, spec, tmp_path / "new" / "folder", channels)
    loaded = timm.create_model(f"local-dir:{tmp_path / 'new' / 'folder'}", pretrained=True).eval()
    x = torch.randn(2, channels, side, side)
    with torch.no_grad():
        assert torch.equal(model(x), loaded(x))
    assert loaded.pretrained_cfg["label_names"] == NAMES
    config = timm.data.resolve_model_data_config(loaded)
    assert tuple(config["input_size"]) == (channels, side, side)
    assert tuple(config["mean"]) == (0.5,) * channels


def test_a_fixed_size_that_is_not_the_images(tmp_path: Path) -> None:
    """CrossViT resizes on its own: timm must not be led to build it for the images' size."""
    spec, model = _trained("crossvit_tiny_240.in1k", 32, 1)
    _save(model, spec, tmp_path, 1)
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    x = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        assert torch.equal(model(x), loaded(x))


def test_user_arguments_are_kept(tmp_path: Path) -> None:
    spec, model = _trained("test_vit", 32, 1, patch_size=8, drop_rate=0.5)
    _save(model, spec, tmp_path, 1)
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    x = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        assert torch.equal(model(x), loaded(x))


def test_the_saved_model_can_be_tuned_for_other_classes(tmp_path: Path) -> None:
    for name in ("resnet8", "test_mambaout"):
        spec, model = _trained(name, 32, 3)
        _save(model, spec, tmp_path / name, 3)
        tuned = timm.create_model(f"local-dir:{tmp_path / name}", pretrained=True, num_classes=7)
        assert tuned(torch.randn(2, 3, 32, 32)).shape == (2, 7)


def test_same_weights_same_bytes(tmp_path: Path) -> None:
    spec, model = _trained("resnet8", 8, 1)
    for folder in ("one", "two"):
        _save(model, spec, tmp_path / folder, 1)
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    assert json.loads((tmp_path / "one" / "config.json").read_text())["architecture"] == "resnet8"


def test_an_interrupted_write_leaves_the_old_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, model = _trained("resnet8", 8, 1)
    _save(model, spec, tmp_path, 1)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def fail(_: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with torch.no_grad():
        next(model.parameters()).zero_()
    with pytest.raises(StoreError, match="disk full"):
        _save(model, spec, tmp_path, 1)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_tensors_that_share_memory(tmp_path: Path) -> None:
    spec, model = _trained("resnet8", 8, 1)
    model.layer1[0].conv2.weight = model.layer1[0].conv1.weight
    _save(model, spec, tmp_path, 1)
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    x = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(model(x), loaded(x))


def test_wrong_counts(tmp_path: Path) -> None:
    spec, model = _trained("resnet8", 8, 3)
    with pytest.raises(ValueError, match="2 class names for 3 classes"):
        zoo.save_for_timm(model, spec, tmp_path, class_names=["a", "b"], mean=[0.5], std=[0.5], write=write_bytes)
    with pytest.raises(ValueError, match="2 means"):
        zoo.save_for_timm(model, spec, tmp_path, class_names=NAMES, mean=[0.5, 0.5], std=[0.5, 0.5], write=write_bytes)
    assert not list(tmp_path.iterdir())
