import datetime
import itertools
import json
import time
from collections.abc import Callable
from typing import Any

import huggingface_hub
import pytest
import safetensors.torch
import timm
import torch

from distill.errors import ModelError
from distill.models import attempt, fitting, weights, zoo


def _fit(name: str, side: int = 32, channels: int = 3, **arguments: object) -> zoo.ModelSpec:
    return zoo.fit(name, classes=10, channels=channels, image_size=side, arguments=arguments)


def _ours(spec: zoo.ModelSpec) -> dict[str, object]:
    return {k: v for k, v in spec.arguments.items() if k not in ("num_classes", "in_chans")}


FITS = [
    ("resnet8x4", 8, "resnet8x4", {}),
    ("resnet8x4", 224, "resnet8x4", {}),
    ("vgg8", 28, "vgg8", {}),
    ("resnet10t", 8, "small_resnet10t", {"output_stride": 16}),
    ("resnet10t", 28, "small_resnet10t", {}),
    ("resnet10t", 96, "small_resnet10t", {}),
    ("resnet10t", 224, "resnet10t", {}),
    ("resnet18.a1_in1k", 32, "small_resnet18", {}),
    ("resnet18.a1_in1k", 224, "resnet18.a1_in1k", {}),
    ("test_vit", 8, "test_vit", {"img_size": 8, "patch_size": 1}),
    ("test_vit", 28, "test_vit", {"img_size": 28, "patch_size": 4}),
    ("test_vit", 32, "test_vit", {"img_size": 32, "patch_size": 4}),
    ("test_vit", 64, "test_vit", {"img_size": 64, "patch_size": 8}),
    ("test_vit", 96, "test_vit", {"img_size": 96, "patch_size": 12}),
    ("test_vit", 224, "test_vit", {"img_size": 224}),
    ("mixer_s32_224", 224, "mixer_s32_224", {"img_size": 224}),
    ("mixer_s32_224", 32, "enlarged", {"base": "mixer_s32_224", "size": 224, "img_size": 224}),
    ("test_convnext", 32, "test_convnext", {"patch_size": 1}),
    ("test_convnext", 224, "test_convnext", {}),
    ("test_efficientnet", 8, "enlarged", {"base": "test_efficientnet", "size": 32, "output_stride": 16}),
    ("test_efficientnet", 32, "test_efficientnet", {"output_stride": 16}),
    ("test_efficientnet", 64, "test_efficientnet", {}),
    ("swin_tiny_patch4_window7_224", 32, "swin_tiny_patch4_window7_224", {"img_size": 32, "patch_size": 2}),
    ("test_nfnet", 28, "test_nfnet", {"output_stride": 16}),
    ("vgg11", 32, "enlarged", {"base": "vgg11", "size": 64}),
    ("test_maxvit", 32, "enlarged", {"base": "test_maxvit", "size": 64, "img_size": 64}),
]


@pytest.mark.parametrize(("name", "side", "architecture", "arguments"), FITS)
def test_what_is_fitted(name: str, side: int, architecture: str, arguments: dict[str, object]) -> None:
    spec = _fit(name, side, channels=1)
    assert (spec.architecture, _ours(spec)) == (architecture, arguments)
    assert (spec.name, spec.image_size, spec.channels, spec.classes) == (name, side, 1, 10)
    assert json.loads(json.dumps(spec.arguments)) == spec.arguments


TRAINABLE = [
    ("resnet8", 8),
    ("resnet10t", 8),
    ("test_vit", 28),
    ("test_convnext", 28),
    ("test_efficientnet", 8),
    ("test_mambaout", 32),
    ("test_byobnet", 32),
    ("test_maxvit", 8),
]


@pytest.mark.parametrize(("name", "side"), TRAINABLE)
def test_a_fitted_model_trains(name: str, side: int) -> None:
    model = zoo.create(_fit(name, side, channels=1)).train()
    logits = model(torch.randn(4, 1, side, side))
    assert logits.shape == (4, 10)
    logits.square().mean().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_an_index_that_only_real_numbers_show() -> None:
    """MViT at 56 pixels passes on the meta device, and looks beyond its table of positions on any other."""
    assert _ours(_fit("mvitv2_tiny", 28)) != {"base": "mvitv2_tiny", "size": 56, "img_size": 56}


def test_fitting_leaves_the_random_state_and_repeats_itself() -> None:
    before = torch.get_rng_state()
    first, second = _fit("test_byobnet"), _fit("test_byobnet")
    zoo.parameter_count(first)
    assert torch.equal(before, torch.get_rng_state())
    assert first == second


def test_whoever_fits_once_searches_once_for_each_question(monkeypatch: pytest.MonkeyPatch) -> None:
    searched: list[attempt.Request] = []

    def counted(request: attempt.Request, search: Callable[[attempt.Request], attempt.Trial] = fitting.search) -> Any:
        searched.append(request)
        return search(request)

    monkeypatch.setattr(fitting, "search", counted)
    once, sizes = zoo.fit_once(), {"classes": 10, "channels": 1, "image_size": 8}
    first = once("resnet8", **sizes)
    first.arguments["num_classes"] = 3  # is nobody else's
    assert once("resnet8", **sizes) == zoo.fit("resnet8", **sizes)
    assert len(searched) == 2
    once("resnet8", **{**sizes, "channels": 3})
    once("resnet8", **sizes, arguments={"stem_stride": 2})
    assert len(searched) == 4
    said = []
    for _ in range(2):
        with pytest.raises(ModelError) as refused:
            once("resnet8", **sizes, arguments={"wdth": 2})
        said.append(str(refused.value))
    assert len(searched) == 5
    assert said[0] == said[1]
    zoo.fit_once()("resnet8", **sizes)  # holds nothing of another's
    assert len(searched) == 6


def test_the_same_seed_gives_the_same_weights() -> None:
    spec = _fit("resnet10t")
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(zoo.create(spec).state_dict())
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def test_parameter_count() -> None:
    spec = zoo.fit("resnet18", classes=100, channels=3, image_size=32)
    assert zoo.parameter_count(spec) == 11_220_132
    spec = _fit("test_vit", channels=1)
    assert zoo.parameter_count(spec) == sum(p.numel() for p in zoo.create(spec).parameters())


def test_a_huge_model_costs_no_memory() -> None:
    spec = _fit("vit_huge_patch14_224", 224)
    assert zoo.parameter_count(spec) > 600_000_000


def test_user_arguments_go_first() -> None:
    assert _ours(_fit("test_vit", patch_size=8)) == {"img_size": 32, "patch_size": 8}
    assert _ours(_fit("resnet10t", output_stride=8)) == {"output_stride": 8}
    assert _ours(_fit("test_byobnet", drop_path_rate=0.1))["drop_path_rate"] == 0.1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"wrong": 1}, "wrong"),
        ({"class_token": False}, "cannot be built"),
        ({"depth": "many"}, "cannot be built"),
        ({"global_pool": ""}, "does not take"),
        ({"num_classes": 7}, "the data decide"),
        ({"checkpoint_path": "weights.pth"}, "weights come from"),
        ({"pretrained_cfg": {"file": "weights.pth"}}, "weights come from"),
        ({"features_only": True}, "a classifier is needed"),
        ({"when": datetime.date(2020, 1, 1)}, "cannot be written"),
        ({"drop_rate": float("nan")}, "cannot be written"),
    ],
)
def test_wrong_arguments(arguments: dict[str, object], told: str) -> None:
    with pytest.raises(ModelError, match=told):
        _fit("test_vit", **arguments)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("resnet8x5", "resnet8x4"),
        ("ResNet18", "resnet18"),
        ("zzzzzzzz", "distill list models"),
        ("", "distill list models"),
        ("local-dir:/tmp/x", "neither"),
        ("../resnet18", "neither"),
        ("enlarged", "neither"),
        ("resnet18.nope", "a1_in1k"),
        ("resnet8.nope", "Its tags are: none"),
    ],
)
def test_unknown_names(name: str, told: str) -> None:
    with pytest.raises(ModelError) as caught:
        _fit(name)
    assert told in str(caught.value)


def test_a_size_that_the_images_do_not_have() -> None:
    with pytest.raises(ModelError, match="does not take 3 x 32 x 32 images"):
        _fit("test_vit_relpos", img_size=31)


@pytest.mark.parametrize(("name", "side"), [("test_vit", 16), ("test_byobnet", 32)])
def test_arguments_that_fail_only_with_real_numbers(name: str, side: int) -> None:
    with pytest.raises(ModelError, match="does not take") as caught:
        _fit(name, side, drop_path_rate=7)
    ways = [line for line in caught.value.message.splitlines()[1:] if " with {" in line]
    assert ways
    assert all("expects p to be in [0, 1]" in way for way in ways)
    assert "model_args first, {'drop_path_rate': 7}" in caught.value.cure


@pytest.mark.parametrize(
    ("arguments", "alike", "blamed"), [({}, True, False), ({"depth": 1}, False, False), ({"depth": 1}, True, True)]
)
def test_arguments_are_blamed_where_there_are_some_and_all_fails_alike(
    monkeypatch: pytest.MonkeyPatch, arguments: dict[str, int], alike: bool, blamed: bool
) -> None:
    numbers = itertools.count()

    def fail(*given: object) -> int:
        raise ValueError("too small" if alike else f"too small {next(numbers)}")

    monkeypatch.setattr(attempt, "_run", fail)
    with pytest.raises(ModelError, match="does not take") as caught:
        _fit("test_vit", 32, **arguments)
    assert ("model_args" in caught.value.cure) == blamed


@pytest.mark.parametrize("arguments", [{"global_pool": ""}, {"patch_size": 7}])
def test_arguments_are_blamed_where_it_would_fit_without_them(arguments: dict[str, object]) -> None:
    """Each way fails with other numbers in its message, those of its size."""
    with pytest.raises(ModelError, match="does not take") as caught:
        _fit("test_vit", **arguments)
    assert caught.value.cure.startswith(f"Look at model_args, {arguments}: without them")


def test_a_deprecated_name_is_brought_up_to_date() -> None:
    assert _fit("gluon_resnet18_v1b", 224).architecture == "resnet18.gluon_in1k"


def test_impossible_numbers() -> None:
    for numbers in ({"classes": 1}, {"channels": 0}, {"image_size": 0}):
        with pytest.raises(ModelError, match="cannot be fitted"):
            zoo.fit("resnet8", **{"classes": 10, "channels": 3, "image_size": 32, **numbers})


def test_list_models() -> None:
    assert {"resnet8x4", "vgg13_cifar", "small_resnet18", "resnet18"} <= set(zoo.list_models())
    assert zoo.list_models("wrn_16*") == ["wrn_16_1", "wrn_16_2"]
    assert "enlarged" not in zoo.list_models()


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))


def test_our_own_networks_say_what_they_take() -> None:
    with pytest.raises(ModelError) as caught:
        _fit("resnet20", foo=3)
    assert caught.value.cure == "It takes depth, widths, stem_stride, global_pool, drop_rate"


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("name", "side", "told"),
    [
        ("test_vit", 160, "HF_HUB_OFFLINE"),
        ("resnet10t", 32, "above 96 pixels"),
        ("resnet8x4", 32, "no pretrained weights of resnet8x4"),
        ("test_mambaout", 32, "no pretrained weights of test_mambaout"),
    ],
)
def test_pretrained_weights_out_of_reach(name: str, side: int, told: str) -> None:
    spec, start = _fit(name, side), time.monotonic()
    with pytest.raises(ModelError, match=told):
        zoo.check_pretrained(spec)
    with pytest.raises(ModelError, match=told):
        zoo.create(spec, pretrained=True)
    assert time.monotonic() - start < 5


def test_no_name_service_is_an_error_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    def fail(*_: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(weights.urllib.request, "getproxies", dict)
    monkeypatch.setattr(weights.socket, "getaddrinfo", fail)
    with pytest.raises(ModelError, match="cannot be found"):
        zoo.create(_fit("test_vit", 160), pretrained=True)


@pytest.mark.parametrize(("name", "side"), [("test_vit", 160), ("test_vit", 32), ("test_efficientnet", 8)])
def test_pretrained_weights_from_the_cache(
    name: str, side: int, monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    donor, file = timm.create_model(name), f"{tmp_path}/model.safetensors"
    safetensors.torch.save_file(donor.state_dict(), file)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: file)
    model = zoo.create(_fit(name, side, channels=1), pretrained=True)
    body = getattr(model, "body", model).state_dict()
    blocks = {key: value for key, value in donor.state_dict().items() if key.startswith("blocks.")}
    assert len(blocks) > 10
    assert all(torch.equal(body[key], value) for key, value in blocks.items())
    assert model(torch.randn(2, 1, side, side)).shape == (2, 10)


def test_pretrained_weights_of_something_else(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    file = f"{tmp_path}/model.safetensors"
    safetensors.torch.save_file({"stem.conv1.weight": torch.zeros(2)}, file)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: file)
    with pytest.raises(ModelError, match="do not fit"):
        zoo.create(zoo.fit("test_vit", classes=1000, channels=3, image_size=160), pretrained=True)
