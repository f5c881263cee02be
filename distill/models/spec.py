"""What is built: a timm entry point and its arguments; and which names and arguments a user may give."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import timm
from timm.models import get_deprecated_models, get_pretrained_cfg, is_model

from distill.errors import ModelError
from distill.models import cifar as _cifar  # noqa: F401  (registers its networks in timm)
from distill.models import small

Json: TypeAlias = "str | int | float | bool | list[Json] | dict[str, Json] | None"

# Not a model's arguments: what the data decide, where weights come from (a recipe must not name a pickle to load),
# and what changes the kind of module that comes back.
_REFUSED = {
    "num_classes": "the data decide how many classes there are",
    "in_chans": "the data decide how many channels there are",
    "pretrained": "write it in the stage's own table",
    "pretrained_cfg": "weights come from timm's own addresses",
    "pretrained_cfg_overlay": "weights come from timm's own addresses",
    "pretrained_model_args": "weights come from timm's own addresses",
    "checkpoint_path": "weights come from timm's own addresses",
    "cache_dir": "set the environment variable HF_HOME",
    "features_only": "a classifier is needed",
    "scriptable": "it is not a property of the network",
    "exportable": "it is not a property of the network",
    "no_jit": "it is not a property of the network",
    "device": "it is set in the recipe's head",
    "dtype": "it is set by the stage's precision",
}


@dataclass(frozen=True)
class ModelSpec:
    """A model that fits its images: `timm.create_model(architecture, **arguments)`.

    Attributes:
        name: as the recipe gave it.
        architecture: the timm entry point that is built; for small images a variant of `name`.
        arguments: everything that entry point is given, ready for JSON; `num_classes` and `in_chans` included.
        image_size: H = W of the images, in pixels.
        channels: image channels.
        classes: C.
    """

    name: str
    architecture: str
    arguments: dict[str, Json]
    image_size: int
    channels: int
    classes: int


def list_models(pattern: str = "*") -> list[str]:
    """All names that `fit` knows and that match a shell pattern, in natural order."""
    return [name for name in timm.list_models(pattern) if name != small.ENLARGED]


def resolve(name: str) -> str:
    """The current name in timm's registry, tag of pretrained weights included.

    Raises:
        ModelError: nobody knows the name, timm has dropped it, or it has no such tag.
    """
    architecture, _, tag = name.partition(".")
    if any(c in name for c in ":/\\") or not is_model(architecture) or architecture == small.ENLARGED:
        near = difflib.get_close_matches(architecture.lower(), list_models(), n=3, cutoff=0.6)
        guess = f"Did you mean {', '.join(near)}? " if near else ""
        raise ModelError(
            f"model {name!r} is neither one of timm's nor one of ours",
            cure=f"{guess}`distill list models` prints all names",
        )
    deprecated = get_deprecated_models()
    if architecture in deprecated:
        current: str | None = deprecated[architecture]
        if not current:
            raise ModelError(f"model {name!r} has been dropped by timm", cure="`distill list models` prints all names")
        return current
    if tag:
        try:
            get_pretrained_cfg(name)
        except RuntimeError as error:
            tags = [known.partition(".")[2] for known in timm.list_models(architecture, include_tags=True)]
            found = ", ".join(t for t in tags if t) or "none"
            raise ModelError(
                f"model {name!r}: {architecture} has no weights with tag {tag!r}",
                cure=f"Its tags are: {found}; or leave the tag away",
            ) from error
    return name


def check_arguments(name: str, arguments: Mapping[str, Any]) -> dict[str, Json]:
    """The user's arguments for timm, as plain JSON values.

    Raises:
        ModelError: an argument that is not a model's own, or has no JSON form.
    """
    for key in arguments:
        if key in _REFUSED:
            raise ModelError(f"model {name!r}: argument {key!r} cannot be given", cure=f"Leave it out: {_REFUSED[key]}")
    try:
        plain: dict[str, Json] = json.loads(json.dumps(dict(arguments), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ModelError(
            f"model {name!r}: its arguments cannot be written to a file: {error}",
            cure="Use texts, finite numbers, truth values, lists and tables only",
        ) from error
    return plain
