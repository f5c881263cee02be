"""Weights from elsewhere: found, described, and refused when they are pickled.

Safetensors files only: a pickled file can run code when it is opened. Nothing is loaded into a network here.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from distill.errors import ModelError, StoreError
from distill.models.foreign import Foreign, bare, described_by, published
from distill.models.weights import fetch_weights
from distill.recipe.importing import LOCAL_DIR, PICKLED, SAFETENSORS, TIMM
from distill.recipe.paths import expanded
from distill.store.atomic import check_regular
from distill.store.json_files import read_json
from distill.store.tensors import read_tensors

_CONVERT = (
    "from timm.models import load_state_dict as load; from safetensors.torch import save_file as save; "
    "save({name: value.clone().contiguous() for name, value in load(%r).items()}, %r)"
)


@dataclass(frozen=True)
class Checkpoint:
    """Weights from elsewhere.

    Attributes:
        source: where from, as the run folder will say: timm's name with its tag, or the path that was given.
        network: what they belong to.
        kind: timm's published weights, which it may have to convert; a folder that says all about itself; a file.
        path: the safetensors file; None for published weights.
    """

    source: str
    network: Foreign
    kind: Literal["published", "folder", "file"]
    path: Path | None = None

    @cached_property
    def weights(self) -> Path:
        """The safetensors file; published weights are downloaded when they are first asked for.

        Raises:
            ModelError: timm publishes none, or they are not in reach.
        """
        if self.path is not None:
            return self.path
        name = self.network.architecture
        try:
            return Path(fetch_weights(name, name))
        except ModelError as error:
            raise ModelError(
                error.message,
                cure="Let the machine reach the Hub once (unset HF_HUB_OFFLINE), copy its cache here and set HF_HOME, "
                f"or name a folder that timm has saved: {LOCAL_DIR}FOLDER",
            ) from error


def find_checkpoint(text: str, model: str | None, arguments: Mapping[str, Any]) -> Checkpoint:
    """The weights that `text` names, and what is said about them; nothing of the weights is believed yet.

    Args:
        text: timm:NAME, local-dir:FOLDER or a safetensors file.
        model: timm's name of the network, for a file.
        arguments: what else that network was built with.

    Raises:
        ModelError: the network is unknown, not named, or named twice.
        StoreError: no such file, or a pickled one, or in the home of a user that nobody knows.
    """
    is_file = not text.startswith((TIMM, LOCAL_DIR))
    if not is_file and (model is not None or arguments):
        raise ModelError(
            f"{text}: the network is named twice: it says itself which one it is",
            cure="Leave --model and teacher.model_args out; they are for a file of weights alone.",
        )
    if text.startswith(TIMM):
        network = published(text.removeprefix(TIMM))
        return Checkpoint(f"{TIMM}{network.architecture}", network, "published")
    if text.startswith(LOCAL_DIR):
        folder = expanded(text.removeprefix(LOCAL_DIR), LOCAL_DIR.rstrip(":"), StoreError)
        if not folder.is_dir():
            raise StoreError(f"{folder}: no such folder", cure="Name a folder with config.json and model.safetensors.")
        config = folder / "config.json"
        network = described_by(read_json(config), str(config))
        return Checkpoint(text, network, "folder", _weights_in(folder))
    path = expanded(text, "--teacher", StoreError)
    check_regular(path)
    _refuse_pickle(path)
    if model is None:
        beside = f", or say {LOCAL_DIR}{path.parent}" if (path.parent / "config.json").is_file() else ""
        raise ModelError(
            f"{path}: a file of weights does not say which network they belong to",
            cure=f"Add --model NAME, timm's name of it{beside}.",
        )
    shapes = {name: tuple(tensor.shape) for name, tensor in read_tensors(path).items()}
    return Checkpoint(text, bare(model, arguments, shapes), "file", path)


def _weights_in(folder: Path) -> Path:
    """model.safetensors, or the only safetensors file there is."""
    files = sorted(folder.glob(f"*{SAFETENSORS}"))
    if folder / "model.safetensors" in files or len(files) == 1:
        return folder / "model.safetensors" if len(files) > 1 else files[0]
    if files:
        raise StoreError(
            f"{folder}: holds {len(files)} safetensors files and none is model.safetensors: "
            f"{', '.join(file.name for file in files[:5])}",
            cure="Give the file itself, with --model.",
        )
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.name != "config.json":
            _refuse_pickle(path, only=PICKLED)
    raise StoreError(f"{folder}: holds no safetensors file", cure="Save the model with timm's `save_for_hf`.")


def _refuse_pickle(path: Path, only: tuple[str, ...] = ()) -> None:
    """Every file that is not called a safetensors file is refused unopened; with `only`, those with such an ending."""
    if path.name.lower().endswith(SAFETENSORS) or (only and not path.name.lower().endswith(only)):
        return
    suffix = next((end for end in sorted(PICKLED, key=len, reverse=True) if path.name.lower().endswith(end)), "")
    if not suffix:
        raise StoreError(
            f"{path}: not a safetensors file, nor called like another file of weights. It was not opened",
            cure=f"Give a file that ends in {SAFETENSORS}; one of {', '.join(PICKLED)} is told how to become one.",
        )
    target = f"{str(path)[: -len(suffix)]}{SAFETENSORS}"
    raise StoreError(
        f"{path}: not a safetensors file. It was not opened: a pickled file can run code when it is",
        cure=f"Convert it, if you trust it: python -c {shlex.quote(_CONVERT % (str(path), target))}",
    )
