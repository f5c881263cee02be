"""One model of each timm family: does it fit small images, and does it really train on them?"""

import gc

import pytest
import timm
import torch

from distill.errors import ModelError
from distill.models import zoo

_OURS = {"cifar", "small"}
_SMALL_FIRST = ["test_", "atto", "femto", "pico", "nano", "tiny", "xxs", "xs", "small", "mini", "_s", "18", "b0"]
_TRAINED_UP_TO = 90_000_000


def _smallest(module: str) -> str:
    def rank(name: str) -> tuple[int, int, str]:
        return next((i for i, hint in enumerate(_SMALL_FIRST) if hint in name), len(_SMALL_FIRST)), len(name), name

    return min(timm.list_models(module=module), key=rank)


def _outcome(name: str, side: int, channels: int) -> tuple[bool, str]:
    try:
        spec = zoo.fit(name, classes=10, channels=channels, image_size=side)
    except ModelError as error:
        return False, error.message.splitlines()[0]
    size = zoo.parameter_count(spec)
    told = f"{size / 1e6:7.2f} M  {spec.architecture} {spec.arguments}"
    if size > _TRAINED_UP_TO:
        return True, f"{told} (not trained: large)"
    logits = zoo.create(spec).train()(torch.randn(2, channels, side, side))
    assert logits.shape == (2, 10)
    logits.square().mean().backward()
    return True, told


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("side", "channels"), [(32, 3), (28, 1)])
def test_nine_families_in_ten_fit(side: int, channels: int) -> None:
    families = [module for module in timm.list_modules() if module not in _OURS]
    fitted = 0
    for family in families:
        name = _smallest(family)
        fits, told = _outcome(name, side, channels)
        fitted += fits
        print(f"{family:28s} {name:34s} {told}", flush=True)
        gc.collect()
    print(f"{fitted} of {len(families)} families fit {channels} x {side} x {side} images")
    assert fitted >= 0.9 * len(families)
