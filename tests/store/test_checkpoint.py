from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from distill.errors import StoreError
from distill.store.checkpoint import load_state, load_weights, save_state, save_weights

DTYPES = [torch.bool, torch.uint8, torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64]
TENSORS = st.builds(
    lambda shape, dtype: (torch.rand(shape) * 3 - 1).to(dtype),
    st.lists(st.integers(0, 3), max_size=3),
    st.sampled_from(DTYPES),
)
LEAVES = st.none() | st.booleans() | st.integers() | st.integers(2**100, 2**128) | st.floats() | st.text() | TENSORS
TREES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text() | st.integers(), inner, max_size=3)
    ),
    max_leaves=10,
)


def same(a: Any, b: Any) -> bool:
    """Equal in type, order and bits; NaN equals NaN."""
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor):
        bits = [t.contiguous().reshape(-1).view(torch.uint8) for t in (a, b)]
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*bits)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) and type(key) in (int, str) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float):
        return (a == b and math.copysign(1, a) == math.copysign(1, b)) or (math.isnan(a) and math.isnan(b))
    return bool(a == b)


@given(tree=TREES)
@settings(deadline=None, max_examples=150)
def test_trees_come_back(tmp_path_factory: pytest.TempPathFactory, tree: Any) -> None:
    path = tmp_path_factory.mktemp("state") / "s.safetensors"
    save_state(path, tree)
    assert same(load_state(path), tree)


def test_integer_and_string_keys_are_told_apart(tmp_path: Path) -> None:
    tree = {1: "a", "1": "b", "tensor": "t0", "float": {"tensor": ["t0"]}, "": [], -1: ()}
    save_state(tmp_path / "s", tree)
    assert same(load_state(tmp_path / "s"), tree)


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_training_goes_on_bit_for_bit(tmp_path: Path, name: str) -> None:
    def build() -> tuple[nn.Module, torch.optim.Optimizer, Any]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))
        extra = {"momentum": 0.9, "nesterov": True} if name == "SGD" else {}
        optimizer = getattr(torch.optim, name)(model.parameters(), lr=0.01, **extra)
        return model, optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 9)

    def train(model: nn.Module, optimizer: torch.optim.Optimizer, schedule: Any, steps: range) -> None:
        for step in steps:
            x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
            schedule.step()

    first = build()
    train(*first, range(3))
    save_state(tmp_path / "s", {str(i): part.state_dict() for i, part in enumerate(first)})
    train(*first, range(3, 6))
    second = build()
    state = load_state(tmp_path / "s")
    for i, part in enumerate(second):
        part.load_state_dict(state[str(i)])
    train(*second, range(3, 6))
    for a, b in zip(first[0].state_dict().values(), second[0].state_dict().values(), strict=True):
        assert a.isfinite().all()
        assert torch.equal(a, b)


def test_shared_and_strided_tensors(tmp_path: Path) -> None:
    base = torch.arange(6.0).reshape(2, 3)
    save_state(tmp_path / "s", [base, base, base.T, base[:, 1], nn.Parameter(base)])
    found = load_state(tmp_path / "s")
    assert [tensor.tolist() for tensor in found[:4]] == [t.tolist() for t in (base, base, base.T, base[:, 1])]
    found[0][0, 0] = 9
    assert found[1][0, 0] == 0


def test_a_loaded_state_does_not_hold_the_file(tmp_path: Path) -> None:
    save_state(tmp_path / "s", [torch.zeros(100)])
    found = load_state(tmp_path / "s")
    os.truncate(tmp_path / "s", 0)
    assert found[0].sum() == 0


def deep(levels: int) -> Any:
    tree: Any = None
    for _ in range(levels):
        tree = {"a": tree}
    return tree


def test_types_of_tensors_come_back(tmp_path: Path) -> None:
    """Some of timm's optimisers keep them among their settings (adafactorbv)."""
    save_state(tmp_path / "s", {"a": torch.bfloat16, "b": [torch.float32]})
    assert load_state(tmp_path / "s") == {"a": torch.bfloat16, "b": [torch.float32]}


def test_depth(tmp_path: Path) -> None:
    save_state(tmp_path / "s", deep(31))
    assert load_state(tmp_path / "s") == deep(31)
    with pytest.raises(TypeError, match="nested deeper"):
        save_state(tmp_path / "s", deep(32))


@pytest.mark.parametrize("tree", [{"a": {1, 2}}, [object()], {"a": {True: 1}}, {(1, 2): 3}, {"a": b"x"}])
def test_what_a_state_cannot_hold(tmp_path: Path, tree: Any) -> None:
    with pytest.raises(TypeError, match="state"):
        save_state(tmp_path / "s", tree)
    assert list(tmp_path.iterdir()) == []


class Tied(nn.Module):
    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.a = nn.Linear(width, width)
        self.b = nn.Linear(width, width)
        self.b.weight = self.a.weight
        self.norm = nn.BatchNorm1d(width)


def test_weights_come_back(tmp_path: Path) -> None:
    first, second = Tied(), Tied()
    digest = save_weights(tmp_path / "w", first.state_dict())
    assert digest == save_weights(tmp_path / "w2", first.state_dict())
    load_weights(tmp_path / "w", second)
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert second.a.weight is second.b.weight


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    save_weights(tmp_path / "w", Tied(4).state_dict())
    model = Tied(3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(StoreError, match=r"'a.bias' is \(4,\), the model's is \(3,\)"):
        load_weights(tmp_path / "w", model)
    with pytest.raises(StoreError, match=r"2 missing, first 'bias'; 9 unknown, first 'a.bias'") as caught:
        load_weights(tmp_path / "w", nn.Linear(3, 3))
    assert caught.value.cure
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
