"""What is found out about files is remembered, and never believed of a file that may have changed."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from distill.data import contents
from distill.data.contents import Survey, cache_folder
from distill.errors import DataError
from tests.data.pictures import folder_of, picture


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that are read, from now on; and every finding is remembered at once."""
    monkeypatch.setattr(contents, "SETTLED_NS", 0)
    real, found = contents.read_file, []
    monkeypatch.setattr(contents, "read_file", lambda path: found.append(str(path)) or real(path))
    return found


def survey(root: Path, *, decodes: bool = True, size: int = 8) -> Survey:
    files = sorted(str(path.relative_to(root)) for path in root.rglob("*.png"))
    return Survey(root, files, size, decodes=decodes)


def test_a_second_look_opens_nothing(tmp_path: Path, opened: list[str]) -> None:
    root = folder_of(tmp_path, 100)
    first = survey(root).run(2)
    assert len(opened) == 100
    assert survey(root).missing == []
    second = survey(root).run(3)
    assert len(opened) == 100
    assert np.array_equal(first.sha256, second.sha256)
    assert first.unreadable == second.unreadable == {}


def test_digests_alone_say_nothing_about_decoding(tmp_path: Path, opened: list[str]) -> None:
    root = folder_of(tmp_path, 10)
    (root / "a" / "000.png").write_bytes(b"")
    assert survey(root, decodes=False).run(1).unreadable == {}
    assert survey(root, decodes=False).missing == []
    assert len(survey(root).missing) == 10
    assert list(survey(root).run(1).unreadable) == [0]
    assert survey(root).missing == [0]  # bad news is looked at again
    assert survey(root, decodes=False).missing == []


def test_another_size_or_decoder_judges_anew(
    tmp_path: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = folder_of(tmp_path, 5)
    survey(root).run(1)
    assert len(survey(root, size=9).missing) == 5
    monkeypatch.setattr(contents, "DECODER", -1)
    assert len(survey(root).missing) == 5
    assert survey(root, decodes=False).missing == []


@pytest.mark.parametrize("change", ["touch", "write", "replace", "link"])
def test_a_file_that_may_have_changed_is_read_again(tmp_path: Path, opened: list[str], change: str) -> None:
    root = folder_of(tmp_path, 4)
    survey(root).run(1)
    path = root / "a" / "002.png"
    if change == "touch":
        path.touch()
    elif change == "write":
        path.write_bytes(path.read_bytes())
    else:
        other = tmp_path / "other"
        other.write_bytes(path.read_bytes())
        path.unlink()
        if change == "link":
            path.symlink_to(other)
        else:
            other.rename(path)
    assert survey(root).missing == [1]


def test_a_file_that_changed_a_moment_ago_is_not_remembered(tmp_path: Path) -> None:
    root = folder_of(tmp_path, 4)
    survey(root).run(1)
    assert len(survey(root).missing) == 4


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "text", "folder"])
def test_a_damaged_cache_is_none(tmp_path: Path, opened: list[str], damage: str) -> None:
    root = folder_of(tmp_path, 4)
    before = survey(root).run(1)
    (cache,) = (tmp_path / "cache" / "distill").iterdir()
    content = cache.read_bytes()
    flipped = bytearray(content)
    flipped[-10] ^= 1
    cache.unlink()
    if damage == "folder":
        cache.mkdir()
    else:
        cache.write_bytes({"cut": content[:-1], "flip": bytes(flipped), "empty": b"", "text": b"x" * 500}[damage])
    again = survey(root)
    assert len(again.missing) == 4
    assert np.array_equal(again.run(1).sha256, before.sha256)
    assert len(survey(root).missing) == (4 if damage == "folder" else 0)


def test_without_a_place_for_the_cache_all_goes_on(
    tmp_path: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    root = folder_of(tmp_path / "root", 4)
    assert survey(root).run(2).unreadable == {}
    assert len(survey(root).missing) == 4


def test_only_what_is_in_the_folder_is_remembered(tmp_path: Path, opened: list[str]) -> None:
    root = folder_of(tmp_path, 40)
    survey(root).run(1)
    (cache,) = (tmp_path / "cache" / "distill").iterdir()
    before = cache.stat().st_size
    for path in (root / "a").iterdir():
        path.unlink()
    picture(root / "b" / "new.png")
    survey(root).run(1)
    assert cache.stat().st_size < 0.7 * before


def test_an_interrupted_survey_goes_on_where_it_stopped(tmp_path: Path, opened: list[str]) -> None:
    root = folder_of(tmp_path, 200)

    def stop(done: int, total: int) -> None:
        assert total == 200
        if done >= 64:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        survey(root).run(1, stop)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]
    left = len(survey(root).missing)
    assert left == 200 - 64
    told: list[tuple[int, int]] = []
    survey(root).run(2, lambda done, total: told.append((done, total)))
    assert told[-1] == (left, left)
    assert survey(root).missing == []


def test_a_file_that_cannot_be_read_is_an_error_in_any_case(
    tmp_path: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = folder_of(tmp_path, 80)
    real = contents.read_file

    def refuse(path: str) -> bytes:
        if path.endswith(("044.png", "051.png")):
            raise DataError(f"{path}: cannot be read: Permission denied")
        return real(path)

    monkeypatch.setattr(contents, "read_file", refuse)
    for decodes in (True, False):
        with pytest.raises(DataError, match=r"a/044\.png: cannot be read"):
            survey(root, decodes=decodes).run(2)
    gone = survey(root)
    (root / "a" / "000.png").unlink()
    with pytest.raises(DataError, match=r"a/000\.png: cannot be read"):
        gone.run(1)


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "distill"
    monkeypatch.setenv("HOME", str(tmp_path))
    for unset in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", unset)
        assert cache_folder() == tmp_path / ".cache" / "distill"


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, opened: list[str]) -> None:
    def homeless(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "expanduser", homeless)
    assert cache_folder() is None
    root = folder_of(tmp_path, 4)
    assert survey(root).run(2).unreadable == {}
    assert len(survey(root).missing) == 4
