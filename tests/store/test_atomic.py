from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.errors import StoreError
from distill.store.atomic import is_temporary, sha256_of, writable_folder, write_bytes
from distill.store.json_files import read_json, write_json

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def test_writes_content_and_returns_its_digest(tmp_path: Path) -> None:
    path = tmp_path / "a"
    assert write_bytes(path, b"hello") == hashlib.sha256(b"hello").hexdigest() == sha256_of(path)
    assert write_bytes(path, iter([b"hel", memoryview(b"lo!")])) == hashlib.sha256(b"hello!").hexdigest()
    assert path.read_bytes() == b"hello!"
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]


def test_the_umask_decides_the_mode(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_bytes(tmp_path / "a", b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EIO])
def test_a_failing_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    path = tmp_path / "a"
    write_bytes(path, b"old")

    def broken(handle: int) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", broken)
        with pytest.raises(StoreError, match="cannot be written") as caught:
            write_bytes(path, b"new")
    assert str(path) in caught.value.message
    assert os.strerror(code) in caught.value.message
    assert caught.value.cure or code == errno.EIO
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]


def test_pieces_that_fail_leave_nothing(tmp_path: Path) -> None:
    def pieces() -> Iterator[bytes]:
        yield b"a"
        raise RuntimeError("the caller's own")

    with pytest.raises(RuntimeError):
        write_bytes(tmp_path / "a", pieces())
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_flushed_is_fine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fsync

    def like_fuse(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        real(handle)

    monkeypatch.setattr(os, "fsync", like_fuse)
    write_bytes(tmp_path / "a", b"x")
    assert (tmp_path / "a").read_bytes() == b"x"


def test_a_wrong_place_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "a", tmp_path / "missing" / "a", tmp_path / "folder", tmp_path / ("n" * 300)):
        with pytest.raises(StoreError) as caught:
            write_bytes(path, b"x")
        assert caught.value.cure
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_writable_folder(tmp_path: Path) -> None:
    assert writable_folder(tmp_path / "a" / "b").is_dir()
    assert list(writable_folder(tmp_path / "a" / "b").iterdir()) == []
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StoreError, match="used as a folder"):
            writable_folder(path)


@given(value=JSON)
@settings(deadline=None, max_examples=60)
def test_json_comes_back(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    path = tmp_path_factory.mktemp("json") / "a.json"
    write_json(path, value)
    assert read_json(path) == value


def test_json_is_canonical(tmp_path: Path) -> None:
    write_json(tmp_path / "a", {"b": [1.0, "ä"], "a": {}})
    assert (tmp_path / "a").read_text("utf-8") == '{\n  "a": {},\n  "b": [\n    1.0,\n    "ä"\n  ]\n}\n'
    assert write_json(tmp_path / "a", {"a": 1, "b": 2}) == write_json(tmp_path / "b", {"b": 2, "a": 1})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": "\udcff"}])
def test_what_json_cannot_say_is_not_written(tmp_path: Path, value: Any) -> None:
    with pytest.raises(StoreError):
        write_json(tmp_path / "a", value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe{}",
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b'{"a": 1e999}',
        b'{"a": 1, "a": 2}',
        b"[" * 100_000,
        b"[" * 500 + b"]" * 500,
        b'{"a":' * 129 + b"1" + b"}" * 129,
        b'"\\ud800"',
        b"1" * 10_000,
        b"{} {}",
        b"\x80\x04K\x01.",
    ],
)
def test_hostile_json_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(StoreError, match=r"a\.json: is not JSON"):
        read_json(tmp_path / "a.json")


def test_a_key_twice_among_many_is_found_in_time(tmp_path: Path) -> None:
    """Counting each key anew took half an hour for a file of 64 MiB."""
    keys = [f'"{number}": 0' for number in range(100_000)]
    (tmp_path / "a.json").write_text("{" + ", ".join([*keys, keys[-1]]) + "}")
    began = time.process_time()
    with pytest.raises(StoreError, match="the key '99999' stands twice"):
        read_json(tmp_path / "a.json")
    assert time.process_time() - began < 10


def test_surrogate_pairs_are_fine(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps("😀"))
    assert read_json(tmp_path / "a.json") == "😀"


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").touch()
    os.truncate(tmp_path / "large", 65 * 2**20)
    for name, message in (("missing", "no such file"), ("pipe", "regular"), ("large", "bytes"), (".", "regular")):
        with pytest.raises(StoreError, match=message):
            read_json(tmp_path / name)
    with pytest.raises(StoreError):
        sha256_of(tmp_path / "pipe")
    with pytest.raises(StoreError):
        sha256_of(tmp_path / "null\0byte")


def test_leftovers_are_known_by_name() -> None:
    assert is_temporary(".a.safetensors.0123456789abcdef.tmp")
    assert not any(map(is_temporary, ("a.tmp", ".a.tmp", "a.0123456789abcdef.tmp", "manifest.json")))


def test_torch_is_not_imported() -> None:
    code = "import sys, distill.store.atomic, distill.store.manifest; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_full_disk_for_real(tmp_path: Path) -> None:
    """A limit on the size of files is the full disk that every machine can provide."""
    code = """
import resource, sys
from pathlib import Path
from distill.errors import StoreError
from distill.store.atomic import write_bytes
write_bytes(Path(sys.argv[1]), b"old")
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    write_bytes(Path(sys.argv[1]), [b"x" * 60_000] * 3)
except StoreError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "a"], check=True, capture_output=True, text=True)
    assert "File too large" in done.stdout
    assert "Make room" in done.stdout
    assert (tmp_path / "a").read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]
