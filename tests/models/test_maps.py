"""Attention maps of many networks, against hooks that are set by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from distill.errors import ModelError
from distill.models import zoo
from distill.models.maps import MapHook, Stage, as_row, find_stages, fit_maps

# The modules, and the sides of their maps, that 32x32 images give; where channels come last; tokens before the grid's.
EXPECTED: dict[str, tuple[dict[str, int], bool, int]] = {
    "resnet8x4": ({"layer1": 32, "layer2": 16, "layer3": 8}, False, 0),
    "wrn_16_2": ({"layer1": 32, "layer2": 16, "layer3": 8}, False, 0),
    "vgg8": ({"stages.0": 32, "stages.1": 16, "stages.2": 8, "stages.4": 4}, False, 0),
    "small_resnet18": ({"layer1": 32, "layer2": 16, "layer3": 8, "layer4": 4}, False, 0),
    "test_resnet": ({"layer1": 32, "layer2": 16, "layer3": 8, "layer4": 4}, False, 0),
    "test_vit": ({"blocks.1": 8, "blocks.2": 8, "blocks.4": 8, "blocks.5": 8}, False, 1),
    "deit_tiny_distilled_patch16_224": ({"blocks.2": 8, "blocks.5": 8, "blocks.8": 8, "blocks.11": 8}, False, 2),
    "test_convnext": ({"stages.0": 32, "stages.1": 16, "stages.2": 8, "stages.3": 4}, False, 0),
    "test_efficientnet": ({"blocks.0": 16, "blocks.1": 8, "blocks.2": 4, "blocks.4": 2}, False, 0),
    "test_nfnet": ({"stem.conv3": 16, "stages.0": 8, "stages.1": 4, "final_conv": 2}, False, 0),
    "test_mambaout": (
        {"body.stages.0": 16, "body.stages.1": 8, "body.stages.2": 4, "body.stages.3": 2},
        True,
        0,
    ),
    "swin_tiny_patch4_window7_224": ({"layers.0": 16, "layers.1": 8, "layers.2": 4, "layers.3": 2}, True, 0),
    "levit_128s": ({"body.stages.0": 8, "body.stages.1": 4, "body.stages.2": 2}, False, 0),
    "densenet121": (
        {
            "body.features.norm0": 32,
            "body.features.denseblock1": 16,
            "body.features.denseblock2": 8,
            "body.features.denseblock3": 4,
            "body.features.norm5": 2,
        },
        False,
        0,
    ),
}


def network(name: str, side: int = 32) -> nn.Module:
    torch.manual_seed(0)
    return zoo.create(zoo.fit(name, classes=5, channels=3, image_size=side))


def images(count: int = 3, side: int = 32) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def by_hand(output: Tensor, last: bool, prefix: int) -> Tensor:
    """[B, h * w] of what a stage gave."""
    if output.dim() == 3:
        return output[:, prefix:].double().pow(2).mean(2)
    return output.double().pow(2).mean(3 if last else 1).flatten(1)


@pytest.mark.parametrize("name", EXPECTED)
def test_maps_are_those_of_hooks_set_by_hand(name: str) -> None:
    modules, last, prefix = EXPECTED[name]
    model = network(name).eval()
    stages = find_stages(model, images())
    assert {stage.module: stage.size for stage in stages} == {m: (side, side) for m, side in modules.items()}
    assert [stage.module for stage in stages] == list(modules)
    outputs: dict[str, Tensor] = {}
    for module in modules:
        model.get_submodule(module).register_forward_hook(
            lambda _, arguments, output, module=module: outputs.update({module: output.detach().clone()})
        )
    with torch.no_grad(), MapHook(model, stages) as hook:
        logits = model(images())
        assert torch.equal(logits, model(images()))
    for found, stage in zip(hook.maps, stages, strict=True):
        assert (found.shape, found.dtype) == ((3, math.prod(stage.size)), torch.float32)
        torch.testing.assert_close(found.double(), by_hand(outputs[stage.module], last, prefix), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("name", EXPECTED)
def test_gradients_reach_the_student(name: str) -> None:
    """Also where what follows a stage works in place; and nothing is left on the network."""
    model = network(name)
    stages = find_stages(model, images())
    with MapHook(model, stages) as hook:
        logits = model(images())
    (logits.sum() + sum(one.sum() for one in hook.maps)).backward()
    assert any(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_finding_stages_changes_nothing() -> None:
    model = network("resnet8x4").train()
    model.layer1.eval()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    random = torch.get_rng_state()
    find_stages(model, images())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_maps_of_half_precision_do_not_overflow(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Identity())
    with MapHook(model, [Stage("0", 3)]) as hook:
        model(torch.full((2, 3, 4, 4), 300.0, dtype=dtype))
    assert torch.equal(hook.maps[0], torch.full((2, 16), 300.0).to(dtype).float().square())


def test_one_pixel_says_nothing() -> None:
    """8x8 images: the last stage of resnet8 has 2x2; a network of single pixels has no map."""
    assert [stage.size for stage in find_stages(network("resnet8", 8), images(2, 8))] == [(8, 8), (4, 4), (2, 2)]
    assert [stage.size for stage in find_stages(network("resnet8", 8), images(2, 4))] == [(4, 4), (2, 2)]
    with pytest.raises(ModelError, match="none of its stages gives an attention map of more than one pixel"):
        find_stages(network("resnet8", 8), images(2, 1))


@pytest.mark.parametrize("name", ["hrnet_w18_small", "twins_svt_small"])
def test_networks_without_maps_say_so(name: str) -> None:
    with pytest.raises(ModelError, match="none of its stages gives an attention map") as caught:
        find_stages(network(name), images(2))
    assert "[export] maps = false" in caught.value.cure


def test_a_pass_that_comes_by_no_stage_is_an_error() -> None:
    model = network("resnet8")
    with MapHook(model, find_stages(model, images())) as hook, pytest.raises(ModelError, match="layer1 gave no"):
        _ = hook.maps


def test_maps_are_brought_to_the_teacher_s_sizes() -> None:
    """Deepest to deepest; a teacher's first stages too many are held against the student's first."""
    maps = [torch.rand(2, side**2, generator=torch.Generator().manual_seed(side)) for side in (8, 6, 4)]
    sizes = [(8, 8), (6, 6), (4, 4)]
    assert all(torch.equal(a, b) for a, b in zip(fit_maps(maps, sizes, sizes), maps, strict=True))
    found = fit_maps(maps, sizes, [(16, 16), (8, 8), (4, 3), (2, 2)])
    for one, number, size in zip(found, (0, 0, 1, 2), [(16, 16), (8, 8), (4, 3), (2, 2)], strict=True):
        expected = F.adaptive_avg_pool2d(maps[number].view(2, 1, *sizes[number]), size).flatten(1)
        assert torch.equal(one, expected)
    torch.testing.assert_close(found[3].mean(1), maps[2].mean(1))
    assert torch.equal(fit_maps(maps, sizes, [(4, 4)])[0], maps[2])


def test_rows_for_a_store_have_length_one() -> None:
    maps = [torch.rand(2, 9) * 1e6, torch.rand(2, 4) * 1e-30, torch.zeros(2, 3)]
    row = as_row(maps)
    lengths = torch.stack([part.norm(dim=1) for part in row.split([9, 4, 3], dim=1)])
    torch.testing.assert_close(lengths, torch.tensor([[1.0, 1.0], [1.0, 1.0], [0.0, 0.0]]))
    assert row.shape == (2, 16)
