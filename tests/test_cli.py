"""The entry point: signals, closed and full streams, narrow encodings, JSON. Each in a process of its own."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from distill.cli import entry
from distill.cli.entry import STOP, Outlet, run
from distill.errors import StoreError
from distill.training.interrupt import STOPS

SHELL = f'distill() {{ "{sys.executable}" -m distill "$@"; }}; '


def shell(line: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A line of bash in a folder, with distill as a command."""
    return subprocess.run(
        ["bash", "-c", SHELL + line],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=100,
        errors="surrogateescape",
    )


def heard() -> None:
    """What nohup, or a shell that starts the tests in the background, has ignored, a child would inherit."""
    for number in STOPS:
        signal.signal(number, signal.SIG_DFL)


@pytest.mark.parametrize("number", STOPS)
@pytest.mark.parametrize("seconds", [0.3, 1.5])
def test_a_signal_outside_of_training_says_one_line(number: signal.Signals, seconds: float, tmp_path: Path) -> None:
    (tmp_path / "r.toml").touch()
    command = [sys.executable, "-m", "distill", "check", "r.toml"]  # imports torch, which takes seconds
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heard,
    )
    time.sleep(seconds)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "interrupted\n")


def test_verify_finds_a_run_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "r18").mkdir(parents=True)
    (tmp_path / "checkpoints" / "r18" / "run.json").touch()
    assert "checkpoints/r18: not a run folder" in shell("distill verify r18", tmp_path).stderr
    (tmp_path / "a.md").touch()
    assert "a.md: no such folder" in shell("distill verify a.md", tmp_path).stderr


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal has come."""
    monkeypatch.setattr(STOP, "asked", True)
    monkeypatch.setattr(sys, "argv", ["distill"])


@pytest.mark.usefixtures("asked")
@pytest.mark.parametrize("error", [RuntimeError("from native code"), StoreError("damaged"), SystemError(), None])
def test_an_interruption_in_disguise(
    error: Exception | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def command() -> int:
        if error is not None:
            raise error
        return 0  # a library swallowed it

    monkeypatch.setattr(entry, "_command", command)
    assert run() == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_the_handlers_leave_ignored_signals_alone() -> None:
    script = (
        "import signal; from distill.cli.entry import STOP; signal.signal(signal.SIGINT, signal.SIG_IGN); "
        "STOP.listen(); assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN; "
        "assert signal.getsignal(signal.SIGTERM) == STOP.ask"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_an_outlet_remembers_its_first_failure() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    outlet = Outlet(full)
    assert outlet.write(b"abc") == 3
    assert outlet.write(memoryview(b"abcd")) == 4
    assert outlet.failure is not None
    assert outlet.failure.errno == errno.ENOSPC
    os.close(full)


@pytest.mark.parametrize("words", ["list fields", "list fields --bogus", "check nofile.toml --json"])
def test_a_reader_that_leaves_changes_nothing(words: str, tmp_path: Path) -> None:
    alone = shell(f"distill {words}", tmp_path)
    left = shell(f"distill {words} | true; exit ${{PIPESTATUS[0]}}", tmp_path)
    assert (left.returncode, left.stderr) == (alone.returncode, alone.stderr)


def test_closed_and_full_streams(tmp_path: Path) -> None:
    closed = shell("distill list fields >&-", tmp_path)
    assert (closed.returncode, closed.stderr) == (0, "")
    assert shell("distill check nofile.toml >&- 2>&- <&-", tmp_path).returncode == 2
    full = shell("distill list fields > /dev/full", tmp_path)
    assert full.returncode == 2
    assert full.stderr.startswith("error: standard output: No space left on device\n")
    assert "Traceback" not in full.stderr
    full = shell("distill check nofile.toml --json > /dev/full", tmp_path)
    assert full.returncode == 2
    assert full.stderr.count("error: ") == 1


def test_an_encoding_without_umlauts(tmp_path: Path) -> None:
    narrow = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    found = shell("distill check nöfile.toml --json", tmp_path, **narrow)
    assert found.returncode == 2
    assert "Traceback" not in found.stderr
    error = json.loads(found.stdout)["error"].encode("utf-8", "surrogateescape").decode()
    assert error == "nöfile.toml: no such file"


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("check r.toml --json --bogus", "No such option: --bogus"),
        ("run --json", "Missing argument"),
        ("student --teacher a --json -T x", "Invalid value for '--temperature'"),
        ("check . --json", ".: found a folder, expected a TOML file"),
        ("check /dev/null --json", "/dev/null: found no regular file, expected a TOML file"),
    ],
)
def test_json_of_a_failure(
    words: str, error: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["distill", *words.split()])
    assert run() == 2
    found = json.loads(capsys.readouterr().out)
    assert error in found["error"]
    assert found["exit_code"] == 2
    assert found["cure"]


@pytest.mark.parametrize(("mode", "cure"), [(os.R_OK, "Let yourself read it"), (os.W_OK, "may be written to")])
def test_the_cure_for_a_missing_right_is_for_the_right_that_is_missing(
    mode: int, cure: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a").touch()
    monkeypatch.setattr(os, "access", lambda path, asked: asked != mode)
    assert entry._told(PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "a"))) == 2
    assert cure in capsys.readouterr().err
