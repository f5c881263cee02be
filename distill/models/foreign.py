"""Networks that were trained elsewhere: what timm or a checkpoint's config.json says about one, and how it is built.

Nothing about such a network may be fitted to the images except the size at which it sees them: any other stem, stride
or patch would be another function than the one whose weights are on disk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from timm.models import PretrainedCfg, get_pretrained_cfg

from distill.errors import ModelError
from distill.models.attempt import Request, attempt
from distill.models.fitting import larger_sizes
from distill.models.small import ENLARGED
from distill.models.spec import Json, ModelSpec, check_arguments, resolve

_SAID_APART = ("num_classes", "in_chans")  # of model_args: `classes` and `channels` here
_LARGEST = 1e6  # of a mean or a deviation, whatever its unit
_MOST = 2**24  # of classes, channels or pixels a side


@dataclass(frozen=True)
class Foreign:
    """A network as its checkpoint describes it.

    Attributes:
        architecture: timm's entry point; of published weights with their tag.
        arguments: what else it is built with, without `num_classes` and `in_chans`.
        classes: C; None where only the weights can tell.
        channels: image channels.
        image_size: H = W in pixels that it was made for.
        size_is_fixed: whether it takes no other.
        mean: of each channel, of pixels from 0 to 1.
        std: likewise.
        class_names: in the order of the logits; None where the checkpoint does not say.
    """

    architecture: str
    arguments: dict[str, Json]
    classes: int | None
    channels: int
    image_size: int
    size_is_fixed: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...] | None = None


def published(name: str) -> Foreign:
    """A network with weights that timm publishes; `architecture` gets the tag of these weights.

    Raises:
        ModelError: timm does not know the name or the tag, or its weights are for features only.
    """
    config = get_pretrained_cfg(resolve(name))
    if config is not None and config.num_classes == 0:
        raise ModelError(
            f"timm:{name}: has no classifier, its weights give features only",
            cure="Name weights that were trained for classes, often the same name with another tag",
        )
    architecture = name.partition(".")[0] if config is None else _tagged(name, config)
    described = {"architecture": architecture, "pretrained_cfg": _usual(config)}
    return described_by(described, f"timm:{name}")


def _usual(config: PretrainedCfg | None) -> dict[str, Any]:
    return vars(config or PretrainedCfg())


def _tagged(name: str, config: Any) -> str:
    architecture = resolve(name).partition(".")[0]
    return f"{architecture}.{config.tag}" if config.tag else architecture


def bare(name: str, arguments: Mapping[str, Any], shapes: Mapping[str, Sequence[int]]) -> Foreign:
    """A network of which there is a file of weights and nothing else.

    Args:
        name: timm's name of the architecture; normalisation and size are its usual ones.
        arguments: what else it was built with.
        shapes: of the tensors in the file, by name; classes and channels are read off the last and the first layer.

    Raises:
        ModelError: timm does not know the name.
    """
    config = get_pretrained_cfg(resolve(name))
    usual = _usual(config)
    last, first = (_weight(usual.get(layer), shapes) for layer in ("classifier", "first_conv"))
    channels = first[1] if len(first) == 4 and first[1] in (1, 3) else usual["input_size"][0]
    described = {
        "architecture": name,
        "model_args": {**check_arguments(name, arguments), "in_chans": channels},
        "pretrained_cfg": {**usual, "num_classes": last[0] if last else None},
    }
    return described_by(described, name)


def _weight(layers: Any, shapes: Mapping[str, Sequence[int]]) -> Sequence[int]:
    """Shape of the weight of a layer, or of the first of several; empty where the file has none."""
    name = layers[0] if isinstance(layers, list | tuple) and layers else layers
    return shapes.get(f"{name}.weight", ())


def described_by(config: Any, where: str) -> Foreign:
    """What timm's config.json says: `save_for_hf`'s, this program's, or the older flat form.

    Args:
        config: the JSON; nobody vouches for it.
        where: its path, for the errors.

    Raises:
        ModelError: it lacks the architecture, timm does not know that, or a field is not what it should be.
    """
    told = _Told(config, where)
    name = told.architecture()
    usual = get_pretrained_cfg(name) or PretrainedCfg()
    inner = told.table("pretrained_cfg", default=told.table(""))
    given = {key: value for key, value in told.table("model_args", default={}).items() if value is not None}
    arguments = check_arguments(name, {key: value for key, value in given.items() if key not in _SAID_APART})
    if name == ENLARGED:
        resolve(str(arguments.get("base")))
    size = inner.get("input_size") or usual.input_size
    if not isinstance(size, list | tuple) or len(size) != 3:
        raise told.wrong("input_size", size, "channels, height and width")
    side = _side(arguments.get("img_size", list(size[1:])))
    classes = given.get("num_classes", told.table("").get("num_classes", inner.get("num_classes")))
    channels = told.count("in_chans", given.get("in_chans", size[0]), 1)
    fixed = bool(inner.get("fixed_input_size", usual.fixed_input_size))
    if arguments.get("dynamic_img_size") or arguments.get("strict_img_size") is False or arguments.get("use_naflex"):
        fixed = False
    if fixed:
        # timm would hand the size over silently; said aloud, the network does not depend on timm's table.
        arguments.setdefault("img_size", told.count("input_size", side, 1))
    return Foreign(
        architecture=name,
        arguments=arguments,
        classes=None if classes is None else told.count("num_classes", classes, 2),
        channels=channels,
        image_size=told.count("input_size", side, 1),
        size_is_fixed=fixed,
        mean=told.numbers("mean", inner.get("mean", usual.mean), channels),
        std=told.numbers("std", inner.get("std", usual.std), channels, positive=True),
        class_names=told.names(inner),
    )


class _Told:
    """Fields of a config.json, each checked when it is asked for."""

    def __init__(self, config: Any, where: str) -> None:
        self.config, self.where = config, where

    def wrong(self, field: str, found: Any, expected: str) -> ModelError:
        return ModelError(
            f"{self.where}: {field or 'it'}: found {str(found)[:80]!r}, expected {expected}",
            cure="See timm's `save_for_hf` for what a config.json holds",
        )

    def table(self, field: str, default: dict[str, Any] | None = None) -> dict[str, Any]:
        """A table by its name, the whole for ""."""
        found = self.config if not field else self.table("").get(field) or default
        if not isinstance(found, dict):
            raise self.wrong(field, found, "a table")
        return found

    def architecture(self) -> str:
        name = self.table("").get("architecture")
        if not isinstance(name, str):
            raise self.wrong("architecture", name, "a name that timm knows")
        try:
            return name if name == ENLARGED else resolve(name)
        except ModelError as error:
            raise ModelError(f"{self.where}: {error.message}", cure=error.cure) from error

    def count(self, field: str, found: Any, least: int) -> int:
        if type(found) is not int or not least <= found <= _MOST:
            raise self.wrong(field, found, f"an integer from {least} to {_MOST:,}")
        return found

    def numbers(self, field: str, found: Any, channels: int, *, positive: bool = False) -> tuple[float, ...]:
        """One number a channel. timm's loader spreads a single one, and averages where the counts differ."""
        values = [found] if isinstance(found, int | float) else found
        if not isinstance(values, list | tuple) or not values or not all(_is_number(v, positive) for v in values):
            raise self.wrong(field, found, f"a {'positive ' if positive else ''}number for each channel")
        if len(values) != channels:
            values = [sum(values) / len(values)] * channels
        return tuple(float(value) for value in values)

    def names(self, inner: Mapping[str, Any]) -> tuple[str, ...] | None:
        """Class names: a list, or a table from number to name without gaps."""
        whole = self.table("")
        found = next((t[key] for t in (whole, inner) for key in ("label_names", "labels") if t.get(key)), None)
        if isinstance(found, dict) and sorted(found, key=str) == sorted(map(str, range(len(found)))):
            found = [found[str(number)] for number in range(len(found))]
        if found is None or (isinstance(found, list | tuple) and all(isinstance(name, str | int) for name in found)):
            return None if found is None else tuple(map(str, found))
        raise self.wrong("label_names", found, "a list of names, one for each class")


def _is_number(value: Any, positive: bool) -> bool:
    # Comparisons alone: they refuse NaN, and an integer of a thousand digits fits no float.
    return type(value) in (int, float) and -_LARGEST < value < _LARGEST and (value > 0 or not positive)


def _side(size: Any) -> Any:
    """H = W of 224 and of (224, 224); anything else is for the caller to refuse."""
    square = isinstance(size, list | tuple) and len(size) == 2 and size[0] == size[1]
    return size[0] if square else size


def foreign_spec(
    model: str, arguments: Mapping[str, Json], *, channels: int, classes: int, image_size: int, sees: int
) -> ModelSpec:
    """How it is built: as it is, or behind images that are brought to the size `sees` by bilinear interpolation."""
    common: dict[str, Json] = {"num_classes": classes, "in_chans": channels, **arguments}
    if sees == image_size:
        return ModelSpec(model, model, common, image_size, channels, classes)
    resized: dict[str, Json] = {**common, "base": model, "size": sees}
    return ModelSpec(model, ENLARGED, resized, image_size, channels, classes)


def fit_size(found: Foreign, *, classes: int, image_size: int, asked: int = 0) -> int:
    """The side in pixels that images are to be brought to.

    It is the network's own where it was built for one size. Otherwise it is the images', or the smallest of the sizes
    that `fitting` tries for which a last feature map of 2x2 (a plain vision transformer: 7x7 patches) is left, and the
    network's own when there is no such size.

    Args:
        found: the network.
        classes: C.
        image_size: H = W of the images.
        asked: a size that was asked for; 0: none was.

    Raises:
        ModelError: it takes images of no such size, or does not give C logits for each.
    """
    own = found.image_size
    # A network that was built for a size holds a table of positions for it, even where timm can stretch that.
    for_its_own = found.size_is_fixed or own == image_size or "img_size" in found.arguments
    settled = [asked] if asked else [own] if for_its_own else []
    if found.architecture == ENLARGED:  # it brings images to the size of the network inside
        settled = [image_size]
    failure = ""
    for sees in settled or [image_size, *larger_sizes(image_size, own), own]:
        spec = foreign_spec(
            found.architecture,
            found.arguments,
            channels=found.channels,
            classes=classes,
            image_size=image_size,
            sees=sees,
        )
        request = Request(found.architecture, {}, classes, found.channels, image_size)
        trial = attempt(spec.architecture, spec.arguments, request)
        if trial.enough or (not trial.failure and (settled or sees == own)):
            return sees
        failure = failure or trial.failure or f"{sees} pixels leave a last feature map of {trial.positions} positions"
    raise ModelError(
        f"{found.architecture} with {found.arguments} does not take {found.channels} x {image_size} x {image_size} "
        f"images: {failure}",
        cure="Name the side in pixels that it takes: --set teacher.imported.image_size=N",
    )
