"""From a folder with damaged images to a student, by the commands; killed and gone on."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from distill.cli.entry import run
from distill.data.decode import decoders
from distill.report.runs import open_run
from distill.store.atomic import sha256_of
from distill.store.json_files import read_json
from distill.store.manifest import read_manifest
from tests.data.pictures import noise

RECIPE = """
name = "photos"
threads = 1
device = "cpu"
[data]
source = "folder"
root = "photos"
image_size = 16
validation = 6
meta = 6
test = 6
[views]
flip = true
count = 2
[teacher]
model = "resnet8"
epochs = 2
batch_size = 8
[teacher.labels]
rule = "instance"
meta = "held-out"
[student]
model = "resnet8"
epochs = 2
batch_size = 8
"""
LEAVE_OUT = ("--set", "data.unreadable=leave-out")
BAD = Path("photos/b/007.jpg")


Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def distill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """`distill("check", "photos.toml")` -> exit code, output and errors; beside 48 photographs, b/007.jpg cut short."""
    monkeypatch.chdir(tmp_path)
    for number in range(48):
        path = Path("photos", "abc"[number % 3], f"{number:03}.jpg")
        path.parent.mkdir(parents=True, exist_ok=True)
        noise((24, 20 + number % 5), seed=number).save(path)
    BAD.write_bytes(BAD.read_bytes()[:-300])
    Path("photos.toml").write_text(RECIPE)

    def command(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["distill", *words])
        capsys.readouterr()
        code = run()
        return code, *capsys.readouterr()

    return command


def test_a_damaged_image_with_both_settings(distill: Command) -> None:
    code, _, said = distill("run", "photos.toml", "--quiet")
    assert code == 2
    assert "photos/b/007.jpg: cannot be decoded: OSError: image file is truncated" in said
    assert not Path("checkpoints/photos/model.safetensors").exists()

    Path("photos/.d").mkdir()
    Path("photos/.d/0.jpg").touch()
    unused = "note: [data] root: hidden folders with images are not used: root/.d"
    code, plan, _ = distill("check", "photos.toml", *LEAVE_OUT)
    assert (code, "unreadable 1," in plan, unused in plan) == (0, True, True)
    assert "wrong training labels not known" in plan
    code, told, said = distill("run", "photos.toml", *LEAVE_OUT)
    assert code == 0, said
    assert unused in told
    assert " labels checkpoints/photos\n" in told
    Path("photos/.d/0.jpg").unlink()
    assert "warning: 1 unreadable image left out: b/007.jpg: OSError: image file is truncated" in told
    teacher = Path("checkpoints/photos")
    (index,) = read_json(teacher / "unreadable.json")
    files, metrics = open_run(teacher).record.stages["teacher"].files, open_run(teacher).metrics("teacher")
    assert ("labels_moved" in metrics, "labels_right" in metrics) == (True, False)  # nobody knows which are right
    assert files["unreadable.json"] == sha256_of(teacher / "unreadable.json")
    assert '"message": "warning: 1 unreadable image' in (teacher / "metrics.jsonl").read_text()
    (stored,) = load_file(teacher / "logits" / read_manifest(teacher / "logits").indices.file).values()
    assert sorted(path.as_posix() for path in Path("photos").rglob("*.jpg"))[int(index)] == BAD.as_posix()
    assert int(index) not in stored.tolist()
    assert len(stored) >= 48 - 6 - 6 - 1
    assert distill("verify", "checkpoints")[0] == 0

    # Mended, it is another data set: nothing that was made before goes on with it.
    noise((24, 24)).save(BAD)
    code, _, said = distill("student", "--teacher", str(teacher), "--quiet", "--set", "student.seed=1")
    assert (code, "other images" in said) == (2, True)
    code, _, said = distill("run", "photos.toml", "--quiet")
    assert (code, "holds a teacher of another recipe" in said) == (2, True)


def test_other_decoders_are_refused_until_it_is_exported_again(
    distill: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise((24, 24)).save(BAD)
    assert distill("teacher", "photos.toml", "--quiet")[0] == 0
    store = Path("checkpoints/photos/logits")
    before = read_manifest(store).origin.decoders
    assert before == decoders()
    assert before.keys() >= {"Pillow", "libjpeg"}
    assert distill("export", "--teacher", "checkpoints/photos")[1].count("already exported") == 1
    newer = {**before, "Pillow": "999.0"}
    monkeypatch.setattr("distill.stages.finished.decoders", lambda: newer)
    code, _, said = distill("student", "--teacher", "checkpoints/photos", "--quiet")
    assert code == 2
    assert f"decoders of the images differ, so their pixels may: Pillow: store has '{before['Pillow']}'" in said
    assert f"or install what it was made with: pip install pillow=={before['Pillow']}" in said
    assert distill("export", "--teacher", "checkpoints/photos", "--quiet")[0] == 0
    assert read_manifest(store).origin.decoders == newer
    assert distill("student", "--teacher", "checkpoints/photos", "--quiet")[0] == 0


def test_killed_and_gone_on(distill: Command) -> None:
    assert distill("run", "photos.toml", "--quiet", *LEAVE_OUT, "--set", "name=whole")[0] == 0
    command = [sys.executable, "-m", "distill", "run", "photos.toml", *LEAVE_OUT]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    state = Path("checkpoints/photos/state/teacher.safetensors")
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment) as process:
        while not state.exists() and process.poll() is None:
            time.sleep(0.01)
        process.kill()
    assert distill("run", "photos.toml", "--quiet", *LEAVE_OUT)[0] == 0
    for name in ("model.safetensors", "labels/labels.safetensors"):
        left, right = (load_file(Path("checkpoints", run, name)) for run in ("whole", "photos"))
        assert left.keys() == right.keys()
        assert all(torch.equal(left[key], right[key]) for key in left)
