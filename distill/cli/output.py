"""What scripts read."""

from __future__ import annotations

import json
from typing import Any


def print_json(value: Any) -> None:
    """One object on stdout; ASCII, so that it is JSON whatever the terminal's encoding.

    Raises:
        ValueError: a number is not finite, which JSON has no word for.
    """
    print(json.dumps(value, indent=2, allow_nan=False))
