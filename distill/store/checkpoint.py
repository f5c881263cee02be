"""Weights, and the whole state of a training, in safetensors files: nothing is pickled, so nothing can be executed.

A state is a tree: nested dicts (with string or integer keys), lists and tuples of tensors, numbers, strings, booleans,
types of tensors and None. The tensors are stored under numbers, the rest of the tree is JSON beside them, and a digest
covers both.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from distill.errors import StoreError
from distill.store.atomic import check_regular
from distill.store.json_files import canonical
from distill.store.tensors import read_facts, read_tensors, sha256_of_tensor, write_tensors

Tree: TypeAlias = "bool | int | float | str | Tensor | Sequence[Tree] | Mapping[str, Tree] | Mapping[int, Tree] | None"

# A level of the tree takes up to three of JSON, and `parse_json` refuses more than 128.
_MAX_DEPTH = 32


def save_state(path: Path, state: Tree) -> None:
    """Writes a training state in one stroke.

    Args:
        path: the file; its folder exists.
        state: e.g. `{"model": ..., "optimizer": optimizer.state_dict(), "epoch": 3}`; its tensors may have any
            shape and lie on any device.

    Raises:
        StoreError: the file cannot be written.
        TypeError: the tree holds something else.
    """
    tensors: dict[str, Tensor] = {}
    tree = _encode(state, tensors, "state", _MAX_DEPTH)
    write_tensors(path, tensors, {"tree": tree, "sha256": _digest(tree, tensors)})


def load_state(path: Path) -> Any:
    """Reads what `save_state` wrote; tensors are on the CPU, in memory of their own.

    Raises:
        StoreError: the file is missing, or damaged: one wrong bit is enough.
    """
    path = Path(path)
    check_regular(path)
    try:
        facts = read_facts(path)
        tensors = read_tensors(path)
        if not isinstance(facts, dict) or facts.keys() != {"tree", "sha256"}:
            raise ValueError("it is not a training state")
        if facts["sha256"] != _digest(facts["tree"], tensors):
            raise ValueError("its sha256 is not the one it was written with")
        return _decode(facts["tree"], tensors)
    except (StoreError, ValueError) as error:
        reason = error.message.removeprefix(f"{path}: ") if isinstance(error, StoreError) else str(error)
        raise StoreError(
            f"{path}: the resume state is damaged: {reason}", cure="Delete it to start this stage again."
        ) from error


def _digest(tree: Any, tensors: Mapping[str, Tensor]) -> str:
    """sha256 of the tree and of every tensor's name, type, shape and values."""
    parts = [(name, str(t.dtype), list(t.shape), sha256_of_tensor(t)) for name, t in sorted(tensors.items())]
    return hashlib.sha256(canonical([tree, parts]).encode()).hexdigest()


def _encode(node: Any, tensors: dict[str, Tensor], where: str, depth: int) -> Any:
    """The tree as JSON; tensors go into `tensors`. `{"list": ...}` tells a list from a tuple, and both from a dict."""
    if depth == 0:
        raise TypeError(f"{where}: nested deeper than {_MAX_DEPTH}")
    if node is None or isinstance(node, bool | int | str):
        return node
    if isinstance(node, float):
        return node if math.isfinite(node) else {"float": repr(float(node))}
    if isinstance(node, torch.dtype):
        return {"dtype": str(node).removeprefix("torch.")}
    if isinstance(node, Tensor):
        name = f"t{len(tensors)}"
        tensors[name] = node
        return {"tensor": name}
    if isinstance(node, Mapping):
        for key in node:
            if not isinstance(key, str | int) or isinstance(key, bool):
                raise TypeError(f"{where}: a key is {key!r}, expected a string or an integer")
        pairs = [[key, _encode(value, tensors, f"{where}[{key!r}]", depth - 1)] for key, value in node.items()]
        return {"dict": pairs}
    if isinstance(node, list | tuple):
        items = [_encode(item, tensors, f"{where}[{i}]", depth - 1) for i, item in enumerate(node)]
        return {"list" if isinstance(node, list) else "tuple": items}
    raise TypeError(f"{where}: is {type(node).__name__}, which a state cannot hold")


def _decode(node: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of `_encode`; ValueError for a tree that it cannot have made."""
    if not isinstance(node, dict | list):
        return node
    if not isinstance(node, dict) or len(node) != 1:
        raise ValueError("its tree is not well formed")
    ((kind, content),) = node.items()
    if kind == "tensor" and isinstance(content, str) and content in tensors:
        # A copy: the map that it comes from would keep the file's old content alive, and is aligned to 8 bytes only.
        return tensors[content].clone()
    if kind == "float" and content in ("inf", "-inf", "nan"):
        return float(content)
    if kind == "dtype" and isinstance(getattr(torch, str(content), None), torch.dtype):
        return getattr(torch, str(content))
    if kind in ("list", "tuple") and isinstance(content, list):
        items = [_decode(item, tensors) for item in content]
        return items if kind == "list" else tuple(items)
    if kind == "dict" and isinstance(content, list):
        return dict(_decode_pair(pair, tensors) for pair in content)
    raise ValueError(f"its tree holds {str(kind)[:40]!r}")


def _decode_pair(pair: Any, tensors: Mapping[str, Tensor]) -> tuple[str | int, Any]:
    if isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str | int):
        return pair[0], _decode(pair[1], tensors)
    raise ValueError("its tree is not well formed")


def save_weights(path: Path, state_dict: Mapping[str, Tensor]) -> str:
    """Writes a model's weights under their own names; shared ones are stored once for each name.

    Returns:
        The sha256 of the file; the same weights give the same one.

    Raises:
        StoreError: the file cannot be written.
        TypeError: an entry is not a tensor.
    """
    return write_tensors(path, state_dict)


def load_weights(path: Path, model: nn.Module) -> None:
    """Loads weights into a model, every one and no other.

    Raises:
        StoreError: the file is missing or damaged, or its names, shapes or kinds of numbers are not the model's.
    """
    found = read_tensors(path)
    expected = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    problems = []
    for title, names in (("missing", expected.keys() - found.keys()), ("unknown", found.keys() - expected.keys())):
        if names:
            problems.append(f"{len(names)} {title}, first {min(names)!r}")
    for name in sorted(expected.keys() & found.keys()):
        ours, theirs = tuple(expected[name].shape), tuple(found[name].shape)
        if ours != theirs:
            problems.append(f"{name!r} is {theirs}, the model's is {ours}")
            break
    if problems:
        raise StoreError(
            f"{path}: these weights belong to another model: {'; '.join(problems)}",
            cure="Use the model, the number of classes and the image size that they were trained with.",
        )
    _check_types(path, found, expected)
    model.load_state_dict(found)


def _check_types(path: Path, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Loading would turn integers and floats of a byte or less into weights in silence, or fail in torch: a quantised
    file is another network's.
    """
    for name, value in sorted(expected.items()):
        theirs = found[name]
        unlike = theirs.is_floating_point() != value.is_floating_point()
        if unlike or (theirs.is_floating_point() and theirs.itemsize < 2):
            raise StoreError(
                f"{path}: {name!r} is {theirs.dtype}, the model's is {value.dtype}",
                cure="Save the weights in float32, float16 or bfloat16.",
            )
