"""What a user can do wrong at the command line: exit code 2, a message that names it, no traceback, nothing lost.

In-process through the entry point's `_run`, with a recipe so small that a whole run takes a second.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from distill.cli.entry import run as _run
from distill.report.runs import Run, damaged_files, open_run
from tests.locks import busy

TINY = """
name = "tiny"
threads = 1
[data]
source = "digits"
train = 60
validation = 20
meta = 20
test = 30
[data.noise]
kind = "symmetric"
rate = 0.3
redraw = "others"
[views]
crop_padding = 1
count = 2
[teacher]
model = "resnet8"
epochs = 2
batch_size = 20
[teacher.labels]
rule = "instance"
meta = "held-out"
meta_batch_size = 10
[export]
shard_rows = 50
[student]
model = "resnet8"
epochs = 1
batch_size = 40
[compare]
teachers = ["onehot", "class"]
controls = false
"""

FOLDER = """
name = "folder"
threads = 1
[data]
source = "folder"
root = "my pictures"
image_size = 32
validation = 3
meta = 3
test = 3
[views]
crop_padding = 2
flip = true
count = 2
[teacher]
model = "resnet8"
epochs = 1
batch_size = 4
[teacher.labels]
rule = "instance"
meta = "held-out"
[student]
model = "test_vit"
epochs = 1
batch_size = 4
"""


class Outcome(NamedTuple):
    """What a command left on the screen."""

    code: int
    out: str
    err: str


Command = Callable[..., Outcome]


def _sets(assignments: tuple[str, ...]) -> list[str]:
    return [word for assignment in assignments for word in ("--set", assignment)]


def _content(folder: Path) -> dict[str, str]:
    """sha256 of every file that does not hold times."""
    timed = {"run.json", "metrics.jsonl", ".lock"}
    found = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in timed)
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


@pytest.fixture
def distill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """`distill("run", "tiny.toml")` in an empty folder that holds tiny.toml."""
    (tmp_path / "tiny.toml").write_text(TINY)
    monkeypatch.chdir(tmp_path)

    def command(*words: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["distill", *words])
        capsys.readouterr()
        code = _run()
        out, err = capsys.readouterr()
        assert "Traceback" not in err, err
        assert "Warning" not in err, err
        return Outcome(code, out, err)

    return command


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, to be copied."""
    base = tmp_path_factory.mktemp("finished")
    (base / "tiny.toml").write_text(TINY)
    before = Path.cwd()
    argv = sys.argv
    try:
        os.chdir(base)
        sys.argv = ["distill", "run", "tiny.toml", "--quiet"]
        assert _run() == 0
    finally:
        os.chdir(before)
        sys.argv = argv
    return base / "checkpoints" / "tiny"


@pytest.fixture
def run(distill: Command, finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, where the recipe looks for it."""
    return Path(shutil.copytree(finished, tmp_path / "checkpoints" / "tiny"))


# Override, and what the message has to say.
REFUSED = [
    ("techer.epochs=3", "did you mean [teacher]"),
    ("teacher.epoch=3", "did you mean epochs"),
    ("teacher.epochs=three", 'found "three"'),
    ("teacher.epochs=1.5", "expected an integer"),
    ("student.epochs=0", "at least 1"),
    ("teacher.epochs=1e3", "expected an integer"),
    ("teacher.epochs=3\nseed=4", "expected an integer"),
    ("teacher.epochs", "found no '='"),
    ("teacher=3", "is a table"),
    ("=3", "found no name before '='"),
    (".=3", "found no name before '='"),
    ("data.validation=nan", "a finite number"),
    ("data.validation=true", "a boolean"),
    ("seed=18446744073709551616", "64 bits"),
    ("name=../x", "letters, digits"),
    ("device=tpu", "cuda"),
    ("data.train=1", "none of 0, 1, 2"),
    ("data.train=100000", "the pool has 1797 images"),
    ("data.validation=0.99", "the pool has 1797 images"),
    ("data.test=0", "no test part"),
    ("data.meta=0", "[data] meta"),
    ("data.source=cifar10", "not found in data/"),
    ("data.root=/nope", "part of the package"),
    ("teacher.model=nosuch", "distill list models"),
    ("student.model=ResNet8", "Did you mean resnet8"),
    ("teacher.model_args.foo=3", "unexpected keyword argument 'foo'"),
    ("student.optimizer.name=adahessian", "second derivatives"),
    ("student.optimizer.name=nosuch", "expected one of timm's optimisers"),
    ("teacher.optimizer.name=rmsprop", "[teacher.optimizer] name"),
    ("teacher.labels.estimator=exact", '"forward-mode"'),
    ("views.crop_padding=100", "8x8 pixels"),
    ("views.count=100", "different views"),
    ("compare.teachers=onehot,foo", 'found "foo"'),
    ("compare.seeds=0,0", "twice"),
]


@pytest.mark.parametrize(("override", "said"), REFUSED, ids=[repr(override) for override, _ in REFUSED])
def test_a_refused_override(distill: Command, override: str, said: str) -> None:
    found = distill("check", "tiny.toml", "--set", override)
    assert found.code == 2
    assert said in found.out + found.err


BROKEN = {
    "unfinished": b"name=",
    "twice": b"name='x'\nname='y'",
    "open table": b"[data",
    "no UTF-8": b"name = '\xff'",
    "binary": b"\x00\x01",
    "table array": b"[[data]]\nsource='digits'",
    "not a table": b"data=3",
    "date": b"[teacher]\nepochs=2024-01-01",
    "deep": b"x=" + b"[" * 3000,
    "number": b"name=3",
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_recipe(distill: Command, content: bytes) -> None:
    Path("bad.toml").write_bytes(content)
    found = distill("check", "bad.toml")
    assert found.code == 2
    assert found.err.startswith("error: bad.toml: ")


WRONG_WORDS = [
    ("check", "nofile.toml"),
    ("check", "."),
    ("check",),
    ("bogus",),
    ("list", "bogus"),
    ("run", "tiny.toml", "--set"),
    ("student", "--teacher", "nope"),
    ("student", "--teacher", "tiny.toml"),
    ("export", "--teacher", "."),
    ("student", "--teacher", "x", "-T", "abc"),
    ("verify", "nope"),
    ("verify", "."),
    ("verify", "tiny.toml"),
    ("verify", ""),
    ("verify", ".", "--seed", "3"),
    ("calibrate", ""),
    ("labels", ""),
    ("student", "--teacher", ""),
    ("export", "--teacher", ""),
    ("list", "models", "nosuch"),
    ("list", "losses", "nosuch"),
    ("list", "fields", "student"),
]


@pytest.mark.parametrize("words", WRONG_WORDS, ids=" ".join)
def test_wrong_words(distill: Command, words: tuple[str, ...]) -> None:
    found = distill(*words)
    assert found.code == 2
    assert "rror: " in found.err


NOISE = {
    "short.npy": "10 labels, expected 1797",
    "negative.npy": "label -1 at index 0",
    "large.npy": "label 10 at index 0",
    "float.npy": "expected integers",
    "column.npy": "[1797, 1]",
    "object.npy": "cannot be read",
    "empty.npy": "cannot be read",
    "dup.csv": "index 1 again",
    "outside.csv": "'99999'",
    "word.csv": "'seven'",
    "header.csv": "expected 'index,label'",
    "binary.csv": "cannot be read",
    "ext.txt": "ends in .txt",
    "missing.csv": "is not there",
}


def _write_noise() -> None:
    rows = 1797
    arrays = {
        "short": np.arange(10),
        "negative": np.full(rows, -1),
        "large": np.full(rows, 10),
        "float": np.zeros(rows),
        "column": np.zeros((rows, 1), int),
        "object": np.array([{}] * rows, dtype=object),
        "good": np.arange(rows) % 10,
    }
    for name, array in arrays.items():
        np.save(f"{name}.npy", array)
    Path("empty.npy").touch()
    tables = {"dup": "1,2\n1,3\n", "outside": "99999,2\n", "word": "1,seven\n", "good": "1,2\n"}
    for name, lines in tables.items():
        Path(f"{name}.csv").write_text("index,label\n" + lines)
    Path("header.csv").write_text("1,2\n")
    Path("ext.txt").write_text("index,label\n")
    Path("binary.csv").write_bytes(b"\xff\xfe\x00")


def test_noise_files(distill: Command) -> None:
    _write_noise()
    kind = ("data.noise.kind=file", "data.noise.rate=0", "data.noise.redraw=all")
    for name, said in NOISE.items():
        found = distill("check", "tiny.toml", *_sets((*kind, f"data.noise.file={name}")))
        assert found.code == 2, name
        assert said in found.out, name
    for name in ("good.npy", "good.csv"):
        assert distill("check", "tiny.toml", *_sets((*kind, f"data.noise.file={name}"))).code == 0, name


def _pictures(root: Path) -> None:
    modes = ("RGB", "RGBA", "L", "P", "LA", "1", "CMYK", "RGB")
    sizes = ((20, 30), (64, 17), (33, 33), (5, 9))
    draws = np.random.default_rng(0)
    for name in ("cat", "dög ü", "white space"):
        (root / name).mkdir(parents=True)
        for number, mode in enumerate(modes):
            pixels = draws.integers(0, 256, (*sizes[number % 4], 3), dtype=np.uint8)
            suffix = "jpg" if mode in ("RGB", "CMYK") else "png"
            Image.fromarray(pixels).convert(mode).save(root / name / f"ï {number}.{suffix}")


def test_a_folder_of_odd_pictures_that_then_changes(distill: Command, tmp_path: Path) -> None:
    root = tmp_path / "my pictures"
    _pictures(root)
    Path("folder.toml").write_text(FOLDER)
    assert distill("run", "folder.toml", "--quiet").code == 0
    assert distill("verify", "checkpoints/folder").code == 0
    student = ("student", "--teacher", "checkpoints/folder", "--quiet", "--set", "student.seed=1")

    Image.new("RGB", (9, 9)).save(root / "cat" / "new.png")
    found = distill(*student)
    assert found.code == 2
    assert "on other images" in found.err
    (root / "cat" / "new.png").unlink()

    (root / "cat").rename(root / "car")
    found = distill(*student)
    assert found.code == 2
    assert "on other images" in found.err
    (root / "car").rename(root / "cat")

    assert distill(*student).code == 0


def _cut_jpeg(path: Path) -> None:
    Image.new("RGB", (500, 500)).save(path)
    path.write_bytes(path.read_bytes()[:-800])


BAD_PICTURES: dict[str, Callable[[Path], object]] = {
    "empty.png": Path.touch,
    "text.jpg": lambda path: path.write_text("hello"),
    "cut.jpg": _cut_jpeg,
    "link.png": lambda path: path.symlink_to("/nope"),
    "float.tif": lambda path: Image.fromarray(np.ones((9, 9), np.float32)).save(path),
}


def test_bad_pictures(distill: Command, tmp_path: Path) -> None:
    root = tmp_path / "my pictures"
    _pictures(root)
    Path("folder.toml").write_text(FOLDER)
    for name, write in BAD_PICTURES.items():
        write(root / "cat" / name)
        found = distill("check", "folder.toml")
        assert found.code == 2, name
        assert name in found.out
        (root / "cat" / name).unlink()
    (root / "cat" / "notes.txt").write_text("no picture")
    (root / "loose.png").touch()
    found = distill("check", "folder.toml")
    assert found.code == 0
    assert "note: [data] root: images that lie in no class folder are not used: 1 in root" in found.out
    assert "note: [data] root: files that are not taken for images: 1 .txt" in found.out


@pytest.mark.parametrize("root", ["/nope", "empty", "tiny.toml", ""])
def test_folders_that_are_none(distill: Command, root: str) -> None:
    Path("empty").mkdir()
    Path("folder.toml").write_text(FOLDER)
    assert distill("check", "folder.toml", "--set", f"data.root={root}").code == 2


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) * 2 // 3] ^= 4
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "flipped": _flip,
    "missing": Path.unlink,
    "emptied": lambda path: path.write_bytes(b""),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_verify_names_each_damaged_file(distill: Command, run: Path, damage: Callable[[Path], object]) -> None:
    names = [
        path.relative_to(run)
        for path in sorted(run.rglob("*"))
        if path.suffix == ".safetensors" or path.name in ("manifest.json", "config.json")
    ]
    assert len(names) > 10
    for name in names:
        kept = (run / name).read_bytes()
        damage(run / name)
        found = distill("verify", str(run))
        assert found.code == 2, name
        assert str(name) in found.err
        (run / name).write_bytes(kept)
    assert distill("verify", str(run)).code == 0


READ_BY_STUDENTS = ["logits/indices.safetensors", "logits/manifest.json", "model.safetensors", "run.json"]


@pytest.mark.parametrize("name", READ_BY_STUDENTS)
def test_a_student_refuses_an_emptied_file(distill: Command, run: Path, name: str) -> None:
    (run / name).write_bytes(b"")
    found = distill("student", "--teacher", "tiny", "--quiet", "-T", "2")
    assert found.code == 2
    assert name in found.err


def test_a_student_refuses_a_flipped_logit(distill: Command, run: Path) -> None:
    shard = next((run / "logits").glob("view*"))
    _flip(shard)
    found = distill("student", "--teacher", "tiny", "--quiet", "-T", "2")
    assert found.code == 2
    assert shard.name in found.err


def test_a_student_refuses_the_store_of_another_teacher(distill: Command, run: Path) -> None:
    assert distill("run", "tiny.toml", "--quiet", *_sets(("name=other", "seed=5"))).code == 0
    shutil.rmtree(run / "logits")
    shutil.copytree(run.parent / "other" / "logits", run / "logits")
    found = distill("student", "--teacher", "tiny", "--quiet", "-T", "2")
    assert found.code == 2
    assert "teacher differs" in found.err
    assert distill("verify", str(run)).code == 2


def test_another_recipe_never_overwrites_a_finished_teacher(distill: Command, run: Path) -> None:
    before = _content(run)
    found = distill("run", "tiny.toml", "--quiet", "--set", "teacher.epochs=1")
    assert found.code == 2
    assert "teacher.epochs: 2 -> 1" in found.err
    assert _content(run) == before


@pytest.mark.parametrize("override", ["data.train=50", "seed=3", "data.noise.rate=0.2", "device=cuda:99"])
def test_a_student_with_other_inputs_than_its_teacher(distill: Command, run: Path, override: str) -> None:
    before = _content(run)
    assert distill("student", "--teacher", "tiny", "--quiet", "-T", "2", "--set", override).code == 2
    after = _content(run)
    assert {name: after.get(name) for name in before} == before


def test_a_run_that_was_moved_still_teaches(
    distill: Command, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = shutil.move(run, tmp_path / "né w")
    assert distill("student", "--teacher", "né w", "--quiet", "-T", "2").code == 0
    monkeypatch.chdir("/")
    assert distill("student", "--teacher", str(moved), "--quiet", "-T", "3").code == 0
    monkeypatch.chdir(moved)
    assert distill("verify", ".").code == 0


def test_check_names_each_problem_once(distill: Command) -> None:
    found = distill("check", "tiny.toml", *_sets(("data.image_size=32", "teacher.optimizer.name=nosuch")))
    assert found.out.count("image_size = 32") == 1
    assert found.out.count("nosuch") == 1
    assert found.out.count("problem: ") == 2
    report = json.loads(distill("check", "tiny.toml", "--json", "--set", "data.image_size=32").out)
    assert report["exit_code"] == 2
    assert report["error"] == "\n".join(report["problems"])
    assert report["plan"]["teacher"]


def test_check_knows_what_a_run_would_stumble_over(distill: Command, tmp_path: Path) -> None:
    found = distill("check", "tiny.toml", "--set", "student.pretrained=true")
    assert found.code == 2
    assert "problem: [student] pretrained: model 'resnet8': no pretrained weights" in found.out
    (tmp_path / "checkpoints").write_text("mine")
    found = distill("check", "tiny.toml")
    assert found.code == 2
    assert "checkpoints is in the way" in found.out


def test_check_notes_what_is_lowered(distill: Command) -> None:
    found = distill("check", "tiny.toml", *_sets(("student.batch_size=999", "teacher.labels.meta_batch_size=99")))
    assert found.code == 0
    assert "note: [student] batch_size: 999 is lowered to 80" in found.out
    assert "note: [teacher.labels] meta_batch_size: 99 is lowered to 20" in found.out


def test_the_control_takes_no_temperature(distill: Command, run: Path) -> None:
    found = distill("student", "--teacher", "tiny", "--quiet", "--loss", "ce", "-T", "3")
    assert found.code == 2
    assert "[student.loss] temperature: found 3" in found.err
    # A temperature of the teacher's own recipe is for that recipe's loss.
    recipe = run / "recipe.toml"
    recipe.write_text(recipe.read_text().replace("temperature = 4.0", "temperature = 2.0"))
    assert distill("student", "--teacher", "tiny", "--quiet", "--loss", "ce").code == 0


@pytest.mark.parametrize("temperature", ["inf", "nan", "0", "1e9"])
def test_temperatures_that_are_none(distill: Command, run: Path, temperature: str) -> None:
    found = distill("student", "--teacher", "tiny", "-T", temperature)
    assert found.code == 2
    assert "from 0.01 to 1000" in found.err


def test_verify_reads_the_recipe_and_every_student(distill: Command, run: Path) -> None:
    recipe = run / "recipe.toml"
    text = recipe.read_text()
    recipe.write_text(text.replace("seed = 0", "seed = 1", 1))
    found = distill("verify", str(run))
    assert found.code == 2
    assert "trained by another recipe" in found.err
    recipe.write_text(text)
    (student,) = (run / "students").iterdir()
    (student / "run.json").unlink()
    found = distill("verify", str(run))
    assert found.code == 2
    assert student.name in found.err


@pytest.mark.parametrize("file", ["labels/labels.safetensors", "labels/manifest.json"])
def test_verify_names_a_damaged_file_once(distill: Command, run: Path, file: str) -> None:
    """The run's record knows its sha256, and what it is part of knows what should be in it."""
    (run / file).write_bytes((run / file).read_bytes()[:50])
    found = distill("verify", str(run))
    assert found.code == 2
    assert found.err.count(str(run / file)) == 1


def test_verify_of_a_comparison(distill: Command) -> None:
    assert distill("compare", "tiny.toml", "--quiet").code == 0
    folder = Path("checkpoints/tiny-compare")
    for place in (folder, folder.parent):
        assert distill("verify", str(place)).code == 0
    _flip(folder / "class-s0" / "model.safetensors")
    for place in (folder, folder.parent):
        found = distill("verify", str(place))
        assert found.code == 2
        assert "class-s0/model.safetensors" in found.err


@pytest.mark.parametrize(
    "file", ["comparison.toml", "results.json", "curves.csv", "cells/{cell}", "onehot-s0/run.json"]
)
def test_verify_names_a_damaged_file_of_a_comparison(distill: Command, file: str) -> None:
    assert distill("compare", "tiny.toml", "--quiet").code == 0
    folder = Path("checkpoints/tiny-compare")
    path = folder / file.format(cell=next((folder / "cells").iterdir()).name)
    path.write_text("torn")
    for place in (folder, folder.parent):
        found = distill("verify", str(place))
        assert found.code == 2
        assert str(path if path.name != "run.json" else path.parent) in found.err


def test_verify_of_a_comparison_without_runs(distill: Command) -> None:
    """As it is kept with a paper; its numbers are of the recipe beside them."""
    assert distill("compare", "tiny.toml", "--quiet").code == 0
    folder = Path("kept")
    folder.mkdir()
    for name in ("comparison.toml", "results.json", "curves.csv"):
        shutil.copy(Path("checkpoints/tiny-compare") / name, folder)
    assert distill("verify", str(folder)).out == f"{folder}: sound (3 files)\n"
    recipe = folder / "comparison.toml"
    recipe.write_text(recipe.read_text() + "# mine\n")
    found = distill("verify", str(folder))
    assert found.code == 2
    assert "of another recipe than comparison.toml" in found.err


def test_a_record_that_names_no_weights_is_damaged(distill: Command, run: Path) -> None:
    """Its cure is no command that finds it as damaged as before."""
    record = run / "run.json"
    told = json.loads(record.read_text())
    told["stages"]["teacher"]["files"] = {}
    record.write_text(json.dumps(told))
    for words in (("verify", str(run)), ("student", "--teacher", str(run)), ("labels", str(run))):
        found = distill(*words)
        assert found.code == 2
        assert "teacher is finished and names no model.safetensors" in found.err
        assert "restore it; or delete it and train again" in found.err


def test_a_quiet_comparison_says_what_failed(distill: Command, tmp_path: Path) -> None:
    """A file stands where a teacher's folder has to be; and where the pictures go, of the other one."""
    folder = tmp_path / "checkpoints" / "tiny-compare"
    folder.mkdir(parents=True)
    (folder / "onehot-s0").write_text("mine")
    words = (
        "compare",
        "tiny.toml",
        "--quiet",
        *_sets(("compare.students=false", 'compare.teachers=["onehot", "instance"]')),
    )
    found = distill(*words)
    assert (found.code, found.out) == (2, "")
    (line,) = found.err.splitlines()
    assert line.startswith("error: cell 0, teacher onehot, seed 0: failed: checkpoints/tiny-compare/onehot-s0")
    assert "move it away" in line
    (folder / "onehot-s0").unlink()
    shutil.rmtree(folder / "instance-s0" / "figures")
    (folder / "instance-s0" / "figures").write_text("mine")
    found = distill(*words)
    assert (found.code, found.out) == (2, "")
    (line,) = found.err.splitlines()
    assert line.startswith("error: no picture of suspected label errors: ")
    (folder / "instance-s0" / "figures").unlink()
    found = distill(*words)
    assert found == Outcome(0, "", "")


@pytest.mark.parametrize("left", [(), (".lock", "metrics.jsonl"), (".lock", ".recipe.toml.0123456789abcdef.tmp")])
def test_verify_passes_over_a_run_that_never_began(
    distill: Command, tmp_path: Path, run: Path, left: tuple[str, ...]
) -> None:
    """A teacher that another process is about to train, or that was killed or had no room before its run was made."""
    member = tmp_path / "checkpoints" / "two-compare" / "class-s0"
    member.mkdir(parents=True)
    (member.parent / "comparison.toml").write_text(TINY)
    shutil.copytree(run, member.with_name("onehot-s0"))
    for name in left:
        (member / name).touch()
    assert distill("verify", str(member.parent)).code == 0
    if left:
        assert "nothing in it is finished" in distill("verify", str(member)).out
    (member / "recipe.toml").write_text(TINY)
    assert distill("verify", str(member.parent)).code == 0
    (member / "model.safetensors").touch()
    found = distill("verify", str(member.parent))
    assert found.code == 2
    assert f"{member}: not a run folder" in found.err


def test_verify_does_not_blame_files_that_are_being_written(
    distill: Command, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the store is exported in another format: its record goes, its files are made again, its record comes."""
    next((run / "logits").glob("view*")).unlink()
    with busy(run):
        found = distill("verify", str(run))
    assert found.code == 2
    assert f"{run}: another process is at work there" in found.err
    assert "wait until that has ended, then verify it again" in found.err

    def finished_meanwhile(checked: Run) -> list[str]:
        problems = damaged_files(checked)
        open_run(checked.folder).forget("export")
        return problems

    with monkeypatch.context() as patch:
        patch.setattr("distill.stages.verify.damaged_files", finished_meanwhile)
        assert "another process is at work there, or was until now" in distill("verify", str(run)).err
    found = distill("verify", str(run))
    assert found.code == 2
    assert "another process" not in found.err
    assert "restore these files" in found.err


def test_verify_does_not_blame_what_a_killed_teacher_was_about_to_write(distill: Command, run: Path) -> None:
    """Between its tables and their manifest; and before that, trained again because its weights were lost."""
    open_run(run).forget("teacher")
    assert distill("verify", str(run)).code == 0  # the store carries labels that nothing says the teacher did not learn
    (run / "labels" / "manifest.json").unlink()
    assert distill("verify", str(run)).code == 0
    shutil.rmtree(run / "logits")
    open_run(run).forget("export")
    assert distill("verify", "checkpoints").code == 0
    assert distill("run", "tiny.toml", "--quiet").code == 0
    (run / "labels" / "manifest.json").unlink()
    assert "labels/manifest.json: missing; teacher wrote it" in distill("verify", str(run)).err


def test_a_damaged_manifest_says_how_to_make_it_again(distill: Command, run: Path) -> None:
    (run / "logits" / "manifest.json").write_bytes(b"{}")
    found = distill("student", "--teacher", "tiny", "--quiet", "-T", "2")
    assert found.code == 2
    assert "Delete checkpoints/tiny/logits and run `distill export --teacher checkpoints/tiny`" in found.err


def test_the_list_of_fields_is_for_people(distill: Command) -> None:
    lines = distill("list", "fields").out.splitlines()
    assert lines[0].split() == ["FIELD", "DEFAULT", "TAKES"]
    (line,) = (line for line in lines if line.startswith("student.epochs"))
    assert [cell.strip() for cell in line.split("  ") if cell] == [
        "student.epochs", "30", "integer, of at least 1", "Passes over the training images."
    ]  # fmt: skip
    assert not any("FieldLine" in line or line != line.rstrip() for line in lines)


def test_lists_are_of_the_names_that_match(distill: Command) -> None:
    assert [line.split()[0] for line in distill("list", "losses", "k*").out.splitlines()] == ["kd"]
    found = distill("list", "fields", "*.epochs").out.splitlines()
    assert [line.split()[0] for line in found] == ["FIELD", "teacher.epochs", "student.epochs"]
    assert "'*studnt*'" in distill("list", "fields", "studnt").err


IN_THE_WAY = ["", "tiny", "tiny/state", "tiny/labels", "tiny/logits", "tiny/students", "tiny/model.safetensors/"]


@pytest.mark.parametrize("name", IN_THE_WAY)
def test_something_in_the_way(distill: Command, tmp_path: Path, name: str) -> None:
    place = tmp_path / "checkpoints" / name
    place.parent.mkdir(parents=True, exist_ok=True)
    if name.endswith("/"):
        place.mkdir()
    else:
        place.write_text("mine")
    found = distill("run", "tiny.toml", "--quiet")
    assert found.code == 2
    assert "move it away" in found.err
    assert name.endswith("/") or place.read_text() == "mine"


def test_a_finished_student_on_a_read_only_disk(distill: Command, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux refuses to remove what is not there, too, where the disk is mounted read-only."""

    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(Path, "unlink", refuse)
    found = distill("student", "--teacher", "tiny")
    assert found.code == 0, found.err
    assert "already trained" in found.out


@pytest.mark.parametrize("limit", [1_000, 50_000, 330_000])
def test_a_full_disk_and_then_room(distill: Command, finished: Path, tmp_path: Path, limit: int) -> None:
    """A limit on the size of files stands in for the full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        found = distill("run", "tiny.toml", "--quiet")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert found.code == 2
    assert "Make room on that disk" in found.err
    assert distill("run", "tiny.toml", "--quiet").code == 0
    assert _content(tmp_path / "checkpoints" / "tiny") == _content(finished)


def test_json_is_one_object_in_success_and_failure(distill: Command, run: Path) -> None:
    found = distill("run", "tiny.toml", "--json")
    assert found.code == 0
    assert [entry["kind"] for entry in json.loads(found.out)["runs"]] == ["teacher", "student"]
    found = distill("run", "tiny.toml", "--json", "--set", "a=1")
    assert found.code == 2
    assert json.loads(found.out)["exit_code"] == 2
    found = distill("run", "tiny.toml", "--json", "--set", "teacher.epochs=1")
    assert found.code == 2
    assert "another recipe" in json.loads(found.out)["error"]
    found = distill("check", "tiny.toml", "--json", "--set", "data.train=1")
    assert found.code == 2
    assert json.loads(found.out)["problems"]


# In a process of its own: forks itself, and kills each child at its k-th finished file.
_KILLER = """
import os, signal, sys
import distill.stages.pipeline
from distill.cli.entry import run as _run

def attempt(deadline):
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    replace, left = os.replace, [deadline]
    def counted(*places, **options):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(*places, **options)
    os.replace = counted
    os._exit(_run())

sys.argv = ["distill", "run", "tiny.toml", "--quiet"]
killed = 0
for deadline in (1, 4, 6, 9, 3, 5):
    code = attempt(deadline)
    killed += code == -signal.SIGKILL
    if code == 0:
        break
assert killed >= 5, killed
sys.exit(attempt(0))
"""


def test_a_run_killed_again_and_again_ends_with_the_same_bits(distill: Command, finished: Path, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", _KILLER], cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    found = _content(tmp_path / "checkpoints" / "tiny")
    assert {name: digest for name, digest in found.items() if not name.endswith(".tmp")} == _content(finished)
    assert distill("verify", "checkpoints/tiny").code == 0
