"""Loops over the pixels of views on the CPU, compiled by numba when they are first called.

The modules know nothing but numpy arrays. Each loop gives the bits of the torch form of the same operation, which
defines it: arithmetic on whole numbers, or single IEEE 754 operations in the same order, nothing fused or reordered.
numba is imported with the first module that is asked for, so that programs without views on the CPU do not wait for it.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import distill.data.compiled.color as color
    import distill.data.compiled.draws as draws
    import distill.data.compiled.geometry as geometry
    import distill.data.compiled.mixing as mixing

__all__ = ["color", "draws", "geometry", "mixing"]


def __getattr__(name: str) -> ModuleType:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module(f"{__name__}.{name}")
