"""What a run's name leads to."""

from __future__ import annotations

from pathlib import Path

import pytest

from distill.errors import RunError
from distill.report.runs import RECORD, find_run


def test_a_name_is_a_runs_before_it_is_another_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images in `pets/` made the run pets: the name leads to the run, and a path still to where it says."""
    monkeypatch.chdir(tmp_path)
    Path("pets").mkdir()
    checkpoints = Path("checkpoints")
    assert find_run("pets", checkpoints) == Path("pets")
    (checkpoints / "pets").mkdir(parents=True)
    assert find_run("pets", checkpoints) == Path("pets")  # neither is a run: what is there is told of
    (checkpoints / "pets" / RECORD).touch()
    assert find_run("pets", checkpoints) == checkpoints / "pets"
    assert find_run(str(tmp_path / "pets"), checkpoints) == tmp_path / "pets"
    assert find_run("checkpoints/pets", checkpoints) == checkpoints / "pets"
    Path("pets", RECORD).touch()
    assert find_run("pets", checkpoints) == Path("pets")
    with pytest.raises(RunError, match="nobody: no such run folder"):
        find_run("nobody", checkpoints)
