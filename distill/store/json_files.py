"""JSON files: written in one way, and read as strictly as what nobody vouches for asks. Nothing here imports torch."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from distill.errors import StoreError
from distill.store.atomic import check_regular, mendable, sha256_of, write_bytes

MAX_JSON_BYTES = 64 * 2**20
_MAX_DEPTH = 128


def canonical(obj: Any, indent: int | None = None) -> str:
    """JSON text that depends on the value alone: sorted keys, plain UTF-8.

    Raises:
        ValueError: a number is not finite.
        TypeError: `obj` is not JSON.
    """
    separators = None if indent else (",", ":")
    return json.dumps(obj, sort_keys=True, indent=indent, separators=separators, allow_nan=False, ensure_ascii=False)


def write_json(path: Path, obj: Any) -> str:
    """Writes `obj` as canonical JSON (sorted keys, two spaces, a newline at the end); returns the content's sha256.

    Raises:
        StoreError: a number is not finite, a string is not Unicode, or the file cannot be written.
        TypeError: `obj` is not JSON.
    """
    try:
        data = (canonical(obj, indent=2) + "\n").encode()
    except UnicodeEncodeError as error:
        raise StoreError(
            f"{path}: {error.object!r} is not valid Unicode", cure="Rename the file or folder it comes from."
        ) from error
    except ValueError as error:
        raise StoreError(f"{path}: cannot be written: {error}") from error
    return write_bytes(path, data)


def read_json(path: Path) -> Any:
    """Reads a JSON file that nobody vouches for.

    Raises:
        StoreError: the file is missing, unreadable, larger than 64 MiB, not UTF-8, not JSON, nested deeper than 128,
            names a key twice, or holds NaN, an infinity or half a surrogate pair.
    """
    path = Path(path)
    size = check_regular(path)
    if size > MAX_JSON_BYTES:
        raise StoreError(f"{path}: {size} bytes, where at most {MAX_JSON_BYTES} are expected of a JSON file")
    try:
        with path.open("rb") as file:
            data = file.read(MAX_JSON_BYTES + 1)
    except OSError as error:
        raise mendable(path, "read", error) from error
    try:
        return parse_json(data.decode())
    except ValueError as error:
        raise StoreError(
            f"{path}: is not JSON: {error}", cure="The file is damaged: restore it, or make its folder again."
        ) from error


def read_canonical(path: Path) -> Any:
    """`read_json`, of a file that holds what `write_json` writes, byte for byte: a changed space is damage too.

    Raises:
        StoreError: as for `read_json`, or the same value is written otherwise.
    """
    path = Path(path)
    value = read_json(path)
    expected = (canonical(value, indent=2) + "\n").encode()
    if check_regular(path) != len(expected) or sha256_of(path) != hashlib.sha256(expected).hexdigest():
        raise StoreError(
            f"{path}: is not as it was written: the same value in other bytes",
            cure="The file is damaged: restore it, or make its folder again.",
        )
    return value


def parse_json(text: str) -> Any:
    """Strict JSON.

    Raises:
        ValueError: not JSON, a key twice, a number that is not finite, half a surrogate pair, nested deeper than 128.
    """
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse, parse_float=_finite)
    except RecursionError:
        raise ValueError("nested too deep") from None
    _check_depth(value)
    if "\\ud" in text or "\\uD" in text:
        # Python reads a lone "\ud800" and fails much later, when it is printed.
        json.dumps(value, ensure_ascii=False).encode()
    return value


def _check_depth(value: Any) -> None:
    """Whoever walks the value afterwards may recurse."""
    level = [value]
    for _ in range(_MAX_DEPTH):
        level = [child for item in level for child in _children(item)]
        if not level:
            return
    raise ValueError(f"nested deeper than {_MAX_DEPTH}")


def _children(item: Any) -> Iterable[Any]:
    if isinstance(item, dict):
        return item.values()
    return item if isinstance(item, list) else ()


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {twice!r} stands twice")
    return found


def _refuse(word: str) -> float:
    raise ValueError(f"{word} is not a number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _refuse(text)
