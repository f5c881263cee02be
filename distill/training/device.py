"""Where training runs."""

from __future__ import annotations

import torch

from distill.errors import RunError
from distill.recipe.schema import Recipe, StageRecipe


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


def emulated_precision(device: torch.device, stage: StageRecipe, table: str) -> str | None:
    """A note where the device has no arithmetic of the stage's half precision, so that it only slows down.

    Args:
        device: that the stage runs on.
        stage: whose precision is asked for.
        table: the stage's in the recipe, `teacher` or `student`.
    """
    if stage.precision == "float32" or _has_arithmetic(device, stage.precision):
        return None
    where = "this GPU" if device.type == "cuda" else "this processor"
    return (
        f"[{table}] precision: {where} has no {stage.precision} arithmetic, so it is emulated, which is slower than "
        f'float32; set {table}.precision = "float32"'
    )


def _has_arithmetic(device: torch.device, precision: str) -> bool:
    """What torch says; where it does not know, yes."""
    if device.type == "cuda":
        return precision == "float16" or torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return True
    # oneDNN's own test, on which torch decides whether a convolution goes to it or to a slow loop.
    known = torch.ops.mkldnn
    has = known._is_mkldnn_bf16_supported if precision == "bfloat16" else known._is_mkldnn_fp16_supported
    return bool(has())


def describe_device(device: torch.device) -> str:
    """For run.json."""
    if device.type == "cuda":
        return f"cuda: {torch.cuda.get_device_name(device)}"
    return f"cpu: {torch.get_num_threads()} threads"
