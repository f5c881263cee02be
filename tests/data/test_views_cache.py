"""When numba is imported, and where the machine code is kept: in processes of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import distill

_LATE = """
import sys
import distill.cli, distill.data.views, distill.data.loader
sys.exit("numba was imported" if "numba" in sys.modules else 0)
"""

_MAKE = """
import hashlib, sys, warnings
import numpy as np
warnings.simplefilter("error")
from distill.data import compiled
images = (np.arange(2 * 3 * 9 * 7) % 251).astype(np.uint8).reshape(2, 3, 9, 7)
made, corner = np.empty_like(images), np.array([1, 3])
compiled.geometry.crop_and_flip(images, corner, corner, np.array([True, False]), 2, made)
print(compiled.__file__, hashlib.sha256(made.tobytes()).hexdigest())
"""


def python(code: str, folder: Path = Path(distill.__file__).parents[1], **environment: str) -> subprocess.Popen[str]:
    """A process that takes the package from the folder."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA")}
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env=kept | {"PYTHONPATH": str(folder)} | environment,
    )


def answer(process: subprocess.Popen[str]) -> list[str]:
    out, error = process.communicate(timeout=240)
    assert process.returncode == 0, error
    return out.split()


def test_numba_is_imported_where_views_are_made_and_not_before() -> None:
    assert answer(python(_LATE)) == []


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package that nothing has been compiled in."""
    there = tmp_path / "distill"
    shutil.copytree(Path(distill.__file__).parent, there, ignore=shutil.ignore_patterns("__pycache__"))
    return there


def test_where_nothing_can_be_written_it_is_compiled_all_the_same(package: Path) -> None:
    (package / "data" / "compiled" / "__pycache__").write_text("a file where a folder would have to be")
    nowhere = "/dev/null/nowhere"
    expected = answer(python(_MAKE))
    file, made = answer(python(_MAKE, package.parent, HOME=nowhere, XDG_CACHE_HOME=nowhere))
    assert Path(file).parents[2] == package
    assert made == expected[1]


def test_two_processes_may_compile_at_once(package: Path) -> None:
    processes = [python(_MAKE, package.parent) for _ in range(2)]
    answers = [answer(process) for process in processes]
    assert answers[0] == answers[1]
    kept = list((package / "data" / "compiled" / "__pycache__").glob("geometry.crop_and_flip*.nbc"))
    assert len(kept) == 1  # one set of types, so neither can be given the other's code
    assert answer(python(_MAKE, package.parent)) == answers[0]
