from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.errors import StoreError
from distill.store.atomic import sha256_of
from distill.store.mapped import MappedFile
from distill.store.tensors import digest_of, read_facts, read_tensors, write_tensors

DTYPES = [
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.uint16,
    torch.uint32,
    torch.uint64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (5,), (2, 3, 1)], ids=str)
def test_every_type_and_shape_comes_back(tmp_path: Path, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = torch.randint(0, 256, (*shape, dtype.itemsize), dtype=torch.uint8)
    tensor = (tensor % 2).bool()[..., 0] if dtype == torch.bool else tensor.view(dtype)[..., 0]
    write_tensors(tmp_path / "a", {"x": tensor, "other": torch.zeros(1)})
    found = read_tensors(tmp_path / "a")["x"]
    assert found.dtype == dtype
    assert found.shape == tensor.shape
    assert found.reshape(-1).contiguous().view(torch.uint8).tolist() == (
        tensor.contiguous().reshape(-1).view(torch.uint8).tolist()
    )


@given(
    shapes=st.dictionaries(
        st.text(min_size=1).filter(lambda name: name != "__metadata__"),
        st.lists(st.integers(0, 4), max_size=3),
        min_size=1,
        max_size=4,
    ),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.int64]),
)
@settings(deadline=None, max_examples=40)
def test_the_library_writes_the_same_bytes(
    tmp_path_factory: pytest.TempPathFactory, shapes: dict[str, list[int]], dtype: torch.dtype
) -> None:
    """The library is the definition; the order of mixed types and of several facts is what we settle ourselves."""
    path = tmp_path_factory.mktemp("same") / "a"
    tensors = {name: torch.rand(shape).mul(100).to(dtype) for name, shape in shapes.items()}
    assert write_tensors(path, tensors, "why") == digest_of(tensors, "why")[0]
    assert path.read_bytes() == safetensors.torch.save(tensors, {"facts": '"why"'})


def test_the_same_bytes_whatever_the_order(tmp_path: Path) -> None:
    tensors = {"b": torch.rand(3), "a": torch.rand(2).double(), "c": torch.tensor(True), "d": torch.rand(2).half()}
    facts: dict[str, Any] = {"z": 1, "a": [1.5, None]}
    first = write_tensors(tmp_path / "1", tensors, facts)
    second = write_tensors(
        tmp_path / "2", dict(reversed(tensors.items())), dict(sorted(facts.items(), key=lambda pair: pair[0]))
    )
    assert first == second == sha256_of(tmp_path / "1")
    assert digest_of(tensors, facts) == (first, (tmp_path / "1").stat().st_size)
    assert read_facts(tmp_path / "1") == facts


def test_no_facts(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a", {})
    assert read_facts(tmp_path / "a") is None
    assert read_tensors(tmp_path / "a") == {}


def test_views_and_shared_storage(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {
        "base": base,
        "same": base,
        "transposed": base.T,
        "column": base[:, 1],
        "expanded": base[0].expand(5, 4),
        "parameter": torch.nn.Parameter(base),
        "negative": torch.complex(base, base).conj().imag,
    }
    assert tensors["negative"].is_neg()
    write_tensors(tmp_path / "a", tensors)
    found = read_tensors(tmp_path / "a")
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor.detach()), name


@pytest.mark.parametrize(
    "value",
    [None, 3, torch.rand(2).to(torch.complex128), torch.rand(2, device="meta"), torch.eye(2).to_sparse()],
    ids=["none", "number", "complex", "meta", "sparse"],
)
def test_what_cannot_be_stored(tmp_path: Path, value: Any) -> None:
    with pytest.raises(TypeError, match="'x' is"):
        write_tensors(tmp_path / "a", {"x": value})
    assert list(tmp_path.iterdir()) == []


def test_reading_is_a_private_map(tmp_path: Path) -> None:
    before = write_tensors(tmp_path / "a", {"x": torch.zeros(4)})
    found = read_tensors(tmp_path / "a")["x"]
    found += 1
    assert sha256_of(tmp_path / "a") == before
    # A map outlives the file's replacement.
    write_tensors(tmp_path / "a", {"x": torch.full((4,), 5.0)})
    assert found.tolist() == [1, 1, 1, 1]


WHOLE = b'{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]}'


def header(content: dict[str, Any] | bytes, data: bytes = b"") -> bytes:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return len(text).to_bytes(8, "little") + text + data


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 7,
        b"\0" * 8,
        b"\xff" * 64,
        b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00}\x94.",
        b"PK\x03\x04" + b"\0" * 60,
        header(b"{"),
        header(b"[]"),
        header({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, b"\0" * 7),
        header({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, b"\0" * 9),
        header({"x": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}, b"\0" * 8),
        header({"x": {"dtype": "F99", "shape": [2], "data_offsets": [0, 8]}}, b"\0" * 8),
        header({"x": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}, b"\0" * 8),
        header({"x": {"dtype": "F32", "shape": [2**62, 8], "data_offsets": [0, 8]}}, b"\0" * 8),
        header({"x": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}}, b"\0" * 16),
        header({"x": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}, b"\0" * 8),
        header(b"[" * 100_000),
        header({"__metadata__": {"facts": 3}}),
        header(b'{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"x":%b}' % WHOLE, b"\0" * 8),
        header(b'{"__metadata__":{"facts":"1"},"__metadata__":{"facts":"2"},"x":%b}' % WHOLE, b"\0" * 8),
        header(b'{"__metadata__":{"facts":"1","facts":"2"},"x":%b}' % WHOLE, b"\0" * 8),
    ],
)
def test_hostile_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    for read in (read_tensors, read_facts):
        with pytest.raises(StoreError, match="is not a whole safetensors file"):
            read(path)


@pytest.mark.parametrize("shape", [[0, 2**63], [2**64 - 1, 0], [0, 2**62, 3], [0, 2] * 5000], ids=lambda s: str(s)[:20])
def test_an_empty_tensor_with_a_side_too_long_for_torch(tmp_path: Path, shape: list[int]) -> None:
    """The library takes it, as no bytes are as many as it says."""
    path = tmp_path / "a.safetensors"
    path.write_bytes(header({"x": {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}}))
    for read in (read_tensors, MappedFile):
        with pytest.raises(StoreError, match=r"a\.safetensors: 'x' is .*, too large for torch"):
            read(path)


@pytest.mark.parametrize("facts", ["", "{", "NaN", "[" * 200 + "]" * 200, '{"a":1,"a":2}'])
def test_hostile_facts_are_refused(tmp_path: Path, facts: str) -> None:
    (tmp_path / "a").write_bytes(header({"__metadata__": {"facts": facts}}))
    with pytest.raises(StoreError, match="facts are not JSON"):
        read_facts(tmp_path / "a")


def test_a_missing_file(tmp_path: Path) -> None:
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(StoreError):
            read_tensors(path)
