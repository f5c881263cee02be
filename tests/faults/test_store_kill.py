"""Exports that are killed (SIGKILL, a process of their own) end with the same bytes and do nothing twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from distill.recipe.load import parse_recipe
from distill.report.runs import open_run
from distill.stages.export import export_teacher
from distill.stages.teacher import train_teacher
from distill.stages.verify import verify_path
from distill.store.manifest import read_manifest
from tests.store.cases import contents

ROOT = Path(__file__).resolve().parents[2]

RECIPE = """
name = "killed"
threads = 1
[data]
source = "digits"
train = 150
validation = 20
meta = 30
test = 30
[views]
crop_padding = 1
flip = true
count = "orbit"
[teacher]
model = "resnet8"
epochs = 1
batch_size = 50
[teacher.labels]
rule = "instance"
meta = "held-out"
meta_batch_size = 16
[export]
format = "int8"
features = true
maps = true
shard_rows = 70
batch_size = 30
"""


def kill(*arguments: str) -> dict[str, Any]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-m", "tests.faults.killing", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_killed_at_every_step(tmp_path: Path) -> None:
    """Before each file is opened, flushed, renamed, linked or removed."""
    found = kill("steps", str(tmp_path))
    assert found["kills"] > 60
    assert found["pieces"] > 80  # kept, over all kills


def test_killed_over_a_store_of_another_format(tmp_path: Path) -> None:
    """A run never says one format and holds another."""
    assigned = [f'checkpoints="{tmp_path}"', "views.count=1", "export.format=float32", "export.shard_rows=1000"]
    recipe = parse_recipe(RECIPE, "killed.toml", assigned)
    export_teacher(train_teacher(recipe, lambda event: None), recipe, lambda event: None)
    found = kill("over", str(tmp_path / "killed"))
    assert found["kills"] > 15
    # Whether it is recorded, whether it is there, and of which format the run is.
    assert found["kinds"] == [
        [False, False, "float32"], [False, False, "int8"], [False, True, "float32"], [True, True, "float32"]
    ]  # fmt: skip


def test_killed_at_random_moments(tmp_path: Path) -> None:
    recipe = parse_recipe(RECIPE, "killed.toml", [f'checkpoints="{tmp_path}"'])
    train_teacher(recipe, lambda event: None)
    found = kill("moments", str(tmp_path / "killed"), "8")
    store = tmp_path / "killed" / "logits"
    manifest = read_manifest(store)
    assert found["landed"], "no kill met the export"
    assert found["shards"] == sum(len(manifest.shards_of(holds)) for holds in manifest.holdings) == 3 * 18 * 3
    # The last process showed its teacher the images of unfinished pieces, and two, thrice, for the features' width and
    # for the maps' sizes.
    pieces = [shard.piece for shard in manifest.shards]
    done = sum(piece.stop - piece.start for piece in pieces[: found["kept"] // 3])
    assert found["shown"] in (None, 18 * 180 - done + 6)
    # As from an export that nobody killed, of a teacher trained the same way.
    whole = train_teacher(recipe.model_copy(update={"name": "whole"}), lambda event: None)
    export_teacher(whole, recipe, lambda event: None)
    assert contents(whole.folder / "logits") == contents(store)
    assert open_run(tmp_path / "killed").record.stages["export"].files
    assert verify_path(tmp_path / "killed") > 100
