"""Pretrained weights: from the Hugging Face Hub or its cache, safetensors files only."""

from __future__ import annotations

import os
import socket
import urllib.parse
import urllib.request

import huggingface_hub
from safetensors import SafetensorError
from timm.models import get_pretrained_cfg
from torch import nn

from distill.errors import ModelError
from distill.models.build import build
from distill.models.small import ENLARGED, PREFIX, Enlarged
from distill.models.spec import ModelSpec

_OFFLINE_CURE = (
    "Let the machine reach the Hub once (unset HF_HUB_OFFLINE), or copy its cache here and set HF_HOME, "
    "or say `pretrained = false`"
)


def create_pretrained(spec: ModelSpec) -> nn.Module:
    """A model with timm's pretrained weights; a last layer for other classes than the weights' own starts anew.

    Raises:
        ModelError: there are no such weights, they cannot be reached, or they do not fit the architecture.
    """
    is_enlarged = spec.architecture == ENLARGED
    name = _published_as(spec)
    skipped = {"base", "size"} if is_enlarged else set()
    arguments = {k: v for k, v in spec.arguments.items() if k not in skipped}
    # A safetensors file by its path: timm's own search would fall back to pickled files.
    source = {"file": fetch_weights(spec.name, name), "hf_hub_id": None, "url": None}
    try:
        body = build(name, {**arguments, "pretrained_cfg_overlay": source}, pretrained=True)
        if not is_enlarged:
            return body
        model = build(ENLARGED, spec.arguments)
    except (RuntimeError, KeyError, ValueError, AssertionError, SafetensorError) as error:
        raise ModelError(
            f"model {spec.name!r}: its pretrained weights do not fit {spec.architecture} with {spec.arguments}: "
            f"{str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__}",
            cure="Say `pretrained = false`, or leave `model_args` away",
        ) from error
    assert isinstance(model, Enlarged)
    model.body.load_state_dict(body.state_dict())
    return model


def find_weights(spec: ModelSpec) -> str | None:
    """Path of the weights in the Hub's cache; None when they would have to be downloaded, which seems possible.

    Raises:
        ModelError: there are no such weights, or they cannot be reached.
    """
    return _find(spec.name, *_address(spec.name, _published_as(spec)))


def _published_as(spec: ModelSpec) -> str:
    """timm's name of the model whose weights are loaded."""
    return str(spec.arguments["base"]) if spec.architecture == ENLARGED else spec.architecture


def fetch_weights(asked: str, name: str) -> str:
    """Path of the safetensors file with the weights of a timm model, downloaded if need be.

    Args:
        asked: the model's name as the user gave it, for the errors.
        name: timm's name of the model.

    Raises:
        ModelError: there are no such weights, or they cannot be reached.
    """
    repository, filename, revision = _address(asked, name)
    found = _find(asked, repository, filename, revision)
    if found is not None:
        return found
    try:
        return huggingface_hub.hf_hub_download(repository, filename, revision=revision)
    except Exception as error:  # the Hub's client passes on what its HTTP library raises
        raise ModelError(
            f"model {asked!r}: {repository}/{filename} could not be downloaded: {type(error).__name__}: {error}",
            cure=_OFFLINE_CURE,
        ) from error


def _address(asked: str, name: str) -> tuple[str, str, str | None]:
    """Repository, file and revision on the Hub."""
    config = get_pretrained_cfg(name)
    if config is None or not config.hf_hub_id:
        if name.startswith(PREFIX):
            cure = "The stem for small images has no weights; use images above 96 pixels, or `pretrained = false`"
        else:
            cure = "Say `pretrained = false`"
        raise ModelError(f"model {asked!r}: no pretrained weights of {name} are published", cure=cure)
    filename = config.hf_hub_filename or "model.safetensors"
    if not filename.endswith(".safetensors"):
        # The same weights, converted, lie beside the pickled file under this name; where they do not, it is an error.
        filename = "open_clip_model.safetensors" if "open_clip" in filename else "model.safetensors"
    repository, _, revision = config.hf_hub_id.partition("@")
    return repository, filename, revision or None


def _find(asked: str, repository: str, filename: str, revision: str | None) -> str | None:
    """Path of the file in the cache; None when it is not there and the network is worth a try."""
    try:
        return huggingface_hub.hf_hub_download(repository, filename, revision=revision, local_files_only=True)
    except Exception:  # not in the cache, whatever the Hub's client calls that
        _require_network(asked, f"{repository}/{filename}")
    return None


def _require_network(asked: str, what: str) -> None:
    """Fails at once where the Hub's client would try for half a minute: offline by choice, or no name service."""
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        raise ModelError(
            f"model {asked!r}: {what} is not in the cache, and HF_HUB_OFFLINE forbids the network", cure=_OFFLINE_CURE
        )
    if urllib.request.getproxies():
        return
    endpoint = urllib.parse.urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    try:
        socket.getaddrinfo(endpoint.hostname, endpoint.port or 443)
    except OSError as error:
        raise ModelError(
            f"model {asked!r}: {what} is not in the cache, and {endpoint.hostname} cannot be found: {error}",
            cure=_OFFLINE_CURE,
        ) from error
