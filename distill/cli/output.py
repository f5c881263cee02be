"""What scripts read."""

from __future__ import annotations

import json
from typing import Any


def print_json(value: Any) -> None:
    """One object on stdout; ASCII, so that it is JSON whatever the terminal's encoding."""
    print(json.dumps(value, indent=2))
