"""How the loops are compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

import numpy as np
import numpy.typing as npt
from numba import njit

P = ParamSpec("P")
R = TypeVar("R")

Bools = npt.NDArray[np.bool_]
Bytes = npt.NDArray[np.uint8]
Doubles = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]
Places = npt.NDArray[np.uint32]  # unsigned: numba asks of signed indices whether they count from the end
Words = npt.NDArray[np.uint16]


def kernel(function: Callable[P, R]) -> Callable[P, R]:
    """Compiles a function for the types that it is first called with.

    Other threads run meanwhile, floats keep to IEEE 754, and a division by 0 gives what it gives in numpy. The machine
    code is kept beside the file or in the user's cache, whichever can be written, else compiled in every process. It is
    kept for as long as the file does not change, so a function uses no other one's, and nobody else's constants; and it
    is to be called with the same types always (C-contiguous arrays), as two processes that compile one function for two
    types at the same time may take one's code for the other's.
    """
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
    try:
        made = njit(cache=True, **options)(function)
    except RuntimeError as error:
        if "cannot cache" not in str(error):
            raise
        made = njit(**options)(function)
    return cast(Callable[P, R], made)
