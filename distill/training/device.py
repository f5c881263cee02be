"""Where training runs."""

from __future__ import annotations

import torch

from distill.errors import RunError
from distill.recipe.schema import Recipe


def prepare_device(recipe: Recipe) -> torch.device:
    """The device that the recipe asks for, with the number of threads set.

    Raises:
        RunError: a CUDA device that is not there; an explicit request never falls back to the CPU.
    """
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    if recipe.device == "auto":
        return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    device = torch.device(recipe.device)
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise RunError(
            f"device: found {recipe.device!r}, but torch sees {torch.cuda.device_count()} CUDA devices",
            cure='use device = "auto" or "cpu".',
        )
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # else what names no GPU would be done, and hold memory, on the first one
    return device


def describe_device(device: torch.device) -> str:
    """For run.json."""
    if device.type == "cuda":
        return f"cuda: {torch.cuda.get_device_name(device)}"
    return f"cpu: {torch.get_num_threads()} threads"
