"""Named tensors in one safetensors file, always with the same bytes.

The library's writer leaves two things open that a store with digests needs settled: the order of several metadata
entries, and (through its own temporary file) the file's mode. The format is eight bytes and a JSON header, so it is
written here, in one stream through `atomic.write_bytes`, and the library reads it. There is at most one metadata entry,
`facts`, which is canonical JSON.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from distill.errors import StoreError
from distill.store.atomic import check_regular, mendable, write_bytes
from distill.store.json_files import canonical, parse_json

JSON: TypeAlias = "bool | int | float | str | Sequence[JSON] | Mapping[str, JSON] | None"

# The format's names of the types (https://github.com/huggingface/safetensors, README, "Format").
_NAMES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.uint16: "U16",
    torch.uint32: "U32",
    torch.uint64: "U64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}


def serialized(tensors: Mapping[str, Tensor], facts: JSON | None = None) -> Iterator[bytes | memoryview]:
    """The safetensors file of these tensors, in pieces. One tensor at a time is brought to the host.

    Args:
        tensors: dense tensors of any shape, on any device; views and shared storage are fine.
        facts: what else to say, as JSON; None: nothing.

    Raises:
        TypeError: a value is no dense tensor of a type that the format has.
    """
    header: dict[str, Any] = {} if facts is None else {"__metadata__": {"facts": canonical(facts)}}
    # Wide types first keeps every tensor aligned to its own width; the name settles the rest.
    names = sorted(tensors, key=lambda name: (-_checked(name, tensors[name]).element_size(), name))
    offset = 0
    for name in names:
        tensor = tensors[name]
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in names:
        yield _raw(tensors[name])


def _checked(name: str, value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name!r} is {type(value).__name__}, not a tensor")
    if value.dtype not in _NAMES or value.layout != torch.strided or value.is_meta:
        raise TypeError(f"{name!r} is a {value.layout} {value.dtype} tensor on {value.device}, which cannot be stored")
    return value


def _raw(tensor: Tensor) -> memoryview:
    """The tensor's bytes in row-major order, without a copy where it lies so already."""
    flat = tensor.detach().resolve_neg().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def digest_of(tensors: Mapping[str, Tensor], facts: JSON | None = None) -> tuple[str, int]:
    """sha256 and size in bytes of the file that `write_tensors` would write."""
    digest, size = hashlib.sha256(), 0
    for piece in serialized(tensors, facts):
        digest.update(piece)
        size += len(piece)
    return digest.hexdigest(), size


def sha256_of_tensor(tensor: Tensor) -> str:
    """sha256 of a tensor's values in row-major order."""
    return hashlib.sha256(_raw(tensor)).hexdigest()


def write_tensors(path: Path, tensors: Mapping[str, Tensor], facts: JSON | None = None) -> str:
    """Writes a safetensors file in one stroke; the same tensors and facts give the same bytes.

    Args:
        path: the file; its folder exists.
        tensors: dense tensors of any shape, on any device; those that share storage are stored once each.
        facts: what else to say, as JSON; None: nothing.

    Returns:
        The sha256 of the file, in hexadecimal.

    Raises:
        StoreError: the file cannot be written.
        TypeError: a value is no dense tensor of a type that the format has.
    """
    return write_bytes(path, serialized(tensors, facts))


def read_tensors(path: Path, device: str = "cpu") -> dict[str, Tensor]:
    """Every tensor of a safetensors file. On the CPU they are private memory maps: only what is indexed is read, and
    writing to them does not reach the file.

    Raises:
        StoreError: the file is missing, unreadable, truncated, or no safetensors file.
    """
    with opened(path, device) as file:
        return all_tensors(path, file)


def all_tensors(path: Path, file: Any) -> dict[str, Tensor]:
    """`read_tensors` of an `opened` file."""
    names = sorted(file.keys())
    for name in names:
        # A tensor of no numbers may have any sides for the library; torch counts with 63 bits.
        shape = file.get_slice(name).get_shape()
        if math.prod(max(1, side) for side in shape) >= 2**63:
            found = f"{tuple(shape)}" if len(shape) <= 8 else f"of {len(shape):,} dimensions"
            raise StoreError(f"{path}: {name!r} is {found}, too large for torch", cure="The file is damaged.")
    return {name: file.get_tensor(name) for name in names}


def read_facts(path: Path) -> Any:
    """The JSON that was stored with the tensors, None when there is none.

    Raises:
        StoreError: as for `read_tensors`, or the facts are not JSON.
    """
    with opened(path) as file:
        return parsed_facts(path, file)


def parsed_facts(path: Path, file: Any) -> Any:
    """`read_facts` of an `opened` file."""
    metadata = file.metadata() or {}
    if "facts" not in metadata:
        return None
    try:
        return parse_json(metadata["facts"])
    except ValueError as error:
        raise StoreError(f"{path}: its facts are not JSON: {error}", cure="The file is damaged.") from error


@contextmanager
def opened(path: Path, device: str = "cpu") -> Iterator[Any]:
    """The library's reader; its handle is closed at the end, and the maps it gave out live on without one."""
    path = Path(path)
    check_regular(path)
    try:
        with safe_open(path, framework="pt", device=device) as file:
            _check_header(path)
            yield file
    except SafetensorError as error:
        raise StoreError(
            f"{path}: is not a whole safetensors file: {error}", cure="The file is damaged or was cut short."
        ) from error
    except OSError as error:
        raise mendable(path, "read", error) from error


def _check_header(path: Path) -> None:
    """That no name stands twice, which the format forbids and the library lets pass: readers differ in which counts.

    Raises:
        StoreError: one does.
    """
    with path.open("rb") as raw:
        length = int.from_bytes(raw.read(8), "little")
        text = raw.read(length)
    try:
        parse_json(text.decode())
    except ValueError as error:
        raise StoreError(
            f"{path}: is not a whole safetensors file: {error}", cure="The file is damaged or was changed."
        ) from error
