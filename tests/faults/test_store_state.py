"""Resume states and weights that are damaged, or are something else."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from distill.errors import StoreError
from distill.store import checkpoint
from distill.store.checkpoint import load_state, load_weights, save_state, save_weights
from distill.store.tensors import write_tensors


@pytest.fixture
def state(tmp_path: Path) -> Path:
    save_state(tmp_path / "s", {"model": {"w": torch.rand(3, 2), "n": torch.tensor(3)}, "epoch": 3, "lr": [0.1]})
    return tmp_path / "s"


def refused(path: Path, message: str = ".") -> None:
    with pytest.raises(StoreError, match=f"the resume state is damaged: .*{message}") as caught:
        load_state(path)
    assert caught.value.message.count(str(path)) == 1
    assert caught.value.cure == "Delete it to start this stage again."


@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_one_flipped_bit_anywhere_is_found(state: Path, where: float, bit: int) -> None:
    content = state.read_bytes()
    at = int(where * len(content))
    state.write_bytes(content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :])
    try:
        refused(state)
    finally:
        state.write_bytes(content)


@pytest.mark.parametrize("size", [0, 7, 8, 60, -1])
def test_cut_short(state: Path, size: int) -> None:
    state.write_bytes(state.read_bytes()[:size])
    refused(state, "is not a whole safetensors file")


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("exploded",)


def test_a_pickle_is_never_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "s.safetensors"
    path.write_bytes(pickle.dumps(Bomb()))
    refused(path)
    with pytest.raises(StoreError):
        load_weights(path, nn.Linear(1, 1))
    torch.save({"a": Bomb()}, path)
    refused(path)
    assert list(tmp_path.iterdir()) == [tmp_path / "s.safetensors"]


@pytest.mark.parametrize(
    "tree",
    [
        [],
        [1],
        {},
        {"a": 1, "b": 2},
        {"tensor": "t9"},
        {"tensor": 0},
        {"tensor": ["t0"]},
        {"float": "1.0"},
        {"float": ["inf"]},
        {"list": {"tensor": "t0"}},
        {"tuple": "ab"},
        {"dict": {"a": 1}},
        {"dict": [["a"]]},
        {"dict": ["ab"]},
        {"dict": [[["a"], 1]]},
        {"dict": [[None, 1]]},
        {"code": "import os"},
        {"list": [[1]]},
    ],
    ids=str,
)
def test_forged_trees(tmp_path: Path, tree: Any) -> None:
    tensors = {"t0": torch.zeros(1)}
    write_tensors(tmp_path / "s", tensors, {"tree": tree, "sha256": checkpoint._digest(tree, tensors)})
    refused(tmp_path / "s", "tree")


@pytest.mark.parametrize("facts", [None, 3, [], {}, {"tree": 1}, {"tree": 1, "sha256": 2}, {"tree": 1, "sha256": "x"}])
def test_forged_facts(tmp_path: Path, facts: Any) -> None:
    write_tensors(tmp_path / "s", {}, facts)
    refused(tmp_path / "s")


def test_missing_files_are_not_damaged_ones(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no such file"):
        load_state(tmp_path / "s")
    with pytest.raises(StoreError, match="no such file"):
        load_weights(tmp_path / "s", nn.Linear(1, 1))


def test_weights_cut_short(tmp_path: Path) -> None:
    save_weights(tmp_path / "w", nn.Linear(3, 3).state_dict())
    (tmp_path / "w").write_bytes((tmp_path / "w").read_bytes()[:-1])
    with pytest.raises(StoreError, match="is not a whole safetensors file"):
        load_weights(tmp_path / "w", nn.Linear(3, 3))


@pytest.mark.parametrize(
    "dtype", [torch.int8, torch.bool, torch.uint16, torch.float8_e4m3fn, torch.float8_e8m0fnu], ids=str
)
def test_weights_of_other_numbers(tmp_path: Path, dtype: torch.dtype) -> None:
    """Loading them would turn them into weights in silence."""
    network = nn.BatchNorm1d(3)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    save_file({**before, "running_var": torch.ones(3).to(dtype)}, tmp_path / "w")
    with pytest.raises(StoreError, match=f"w: 'running_var' is {dtype}, the model's is torch.float32"):
        load_weights(tmp_path / "w", network)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    save_file({**before, "num_batches_tracked": torch.tensor(2.0)}, tmp_path / "w")
    with pytest.raises(StoreError, match=r"'num_batches_tracked' is torch.float32, the model's is torch.int64"):
        load_weights(tmp_path / "w", network)


def test_packed_weights(tmp_path: Path) -> None:
    """Two numbers a byte: torch has no way from them to weights, and said so in a traceback."""
    head = {"weight": {"dtype": "F4", "shape": [3, 6], "data_offsets": [0, 9]}}
    text = json.dumps(head).encode()
    (tmp_path / "w").write_bytes(len(text).to_bytes(8, "little") + text + bytes(9))
    with pytest.raises(StoreError, match=r"'weight' is torch.float4_e2m1fn_x2, the model's is torch.float32"):
        load_weights(tmp_path / "w", nn.Linear(3, 3, bias=False))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_weights_of_other_precisions(tmp_path: Path, dtype: torch.dtype) -> None:
    save_file({"weight": torch.full((3, 3), 0.5, dtype=dtype)}, tmp_path / "w")
    load_weights(tmp_path / "w", network := nn.Linear(3, 3, bias=False))
    assert network.weight.tolist() == [[0.5] * 3] * 3
