"""`distill labels`: on run folders made by hand, so that every number is known, and on one that was trained."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from distill.cli.entry import run as run_command
from distill.data.loader import open_data
from distill.errors import RunError, StoreError
from distill.recipe.schema import Recipe
from distill.report.label_report import LabelReport
from distill.report.lock import locked
from distill.report.runs import WEIGHTS, Run, make_run, open_run
from distill.stages.common import teacher_inputs
from distill.stages.export import export_teacher
from distill.stages.labels import draw_suspects, look_at_labels
from distill.stages.pipeline import run_teacher
from distill.stages.verify import verify_path
from distill.store.atomic import sha256_of, writable_folder, write_bytes
from distill.store.labels import LearnedLabels, write_labels
from distill.training.events import Event
from tests.data.pictures import folder_of
from tests.locks import busy

CSV = "figures/suspected_errors.csv"
PICTURES = {"suspected_errors.png", "label_heat_map.png", "label_epochs.png", "label_confidence.png"}
EPOCHS = [
    {"label_entropy": 0.5, "labels_moved": 0.0, "labels_right": 0.7, "given_right": 0.7},
    {"label_entropy": 0.4, "labels_moved": 0.2, "labels_right": 0.9, "given_right": 0.7},
]


def silent(event: Event) -> None:
    pass


def finished(
    recipe: Recipe,
    labels: LearnedLabels | None,
    epochs: list[Mapping[str, float]] = EPOCHS,
    metrics: Mapping[str, float] = {"given_right": 0.7},
) -> Run:
    """A run folder as a finished teacher leaves it, with nothing in its weights."""
    digest = teacher_inputs(recipe, open_data(recipe))
    folder = writable_folder(Path(recipe.checkpoints) / recipe.name)
    run = make_run(folder, recipe, kind="teacher", begun=digest)
    files = {WEIGHTS: write_bytes(run.folder / WEIGHTS, b"")}
    if labels is not None:
        write_labels(run.folder / "labels", labels, {"teacher_digest": digest})
        files |= {f"labels/{path.name}": sha256_of(path) for path in (run.folder / "labels").iterdir()}
    lines = [{"event": "epoch", "stage": "teacher", "epoch": k, "metrics": dict(line)} for k, line in enumerate(epochs)]
    (run.folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run.finish("teacher", digest, {"seconds": 1.0, **metrics}, files, "cpu")
    return run


def labels_at(given: torch.Tensor, learned: torch.Tensor, indices: torch.Tensor, classes: int) -> LearnedLabels:
    """Labels with .8 on the learned class, and on the given one half of the rest."""
    table = torch.full((len(given), classes), 0.1 / (classes - 2))
    rows = torch.arange(len(given))
    table[rows, given], table[rows, learned] = 0.1, 0.8
    table = table / table.sum(1, keepdim=True)
    touched = torch.ones(len(given), dtype=torch.bool)
    touched[0] = False
    return LearnedLabels("instance", table, table, indices, given, touched, {1: table.half(), 3: table.half()})


def cured(recipe: Recipe, wrongly: int = 4, missed: int = 3) -> LearnedLabels:
    """Of the images whose given label is wrong all but `missed` have learned the true one; `wrongly` others moved."""
    data = open_data(recipe)
    rows = data.splits.train
    given, true = data.labels.given[rows], data.labels.true[rows]
    learned, noisy = true.clone(), torch.nonzero(given != true).squeeze(1)
    learned[noisy[:missed]] = given[noisy[:missed]]
    sound = torch.nonzero(given == true).squeeze(1)[:wrongly]
    learned[sound] = (true[sound] + 1) % data.num_classes
    return labels_at(given, learned, rows, data.num_classes)


def look(run: Run, recipe: Recipe | None = None, out: Path | None = None, top: int = 3) -> LabelReport:
    return look_at_labels(open_run(run.folder), recipe or run.recipe, silent, out=out, top=top)


def table_of(path: Path) -> list[dict[str, str]]:
    text = path.read_bytes().decode("utf-8", "surrogateescape")
    return list(csv.DictReader(io.StringIO(text, newline=""), strict=True))


def drawn(folder: Path) -> set[str]:
    for path in folder.glob("*.png"):
        with Image.open(path) as image:
            image.load()
    return {path.name for path in folder.glob("*.png")}


def test_planted_noise(tiny: Callable[..., Recipe]) -> None:
    run = finished(tiny(), cured(tiny()))
    report = look(run, top=5)
    assert (report.kind, report.rows, report.classes, report.suspected) == ("instance", 200, 10, 61)
    assert (report.differing, report.saturated, report.touched) == pytest.approx((61 / 200, 0.0, 199 / 200))
    judged = report.judged
    assert judged is not None
    # 60 of 200 labels are wrong, 57 of these were found, and 4 right ones are suspected.
    assert (judged.wrong, judged.precision, judged.recall) == pytest.approx((0.3, 57 / 61, 57 / 60))
    assert judged.f1 == pytest.approx(2 * 57 / (61 + 60))
    assert (judged.right_before, judged.right_after) == pytest.approx((0.7, (200 - 4 - 3) / 200))
    assert len(report.suspects) == len(report.confusions) == 5
    assert report.suspects[0].confidence == pytest.approx(0.8)
    assert report.suspects[0].given_probability == pytest.approx(0.1)
    assert report.notes == ()

    rows = table_of(run.folder / CSV)
    data = open_data(tiny())
    assert len(rows) == 61
    assert [row["confidence"] for row in rows] == sorted((row["confidence"] for row in rows), reverse=True)
    for row in rows:
        index = int(row["index"])
        assert row["given"] == data.classes[int(data.labels.given[index])]
        assert row["true"] == data.classes[int(data.labels.true[index])]
        assert row["path"] == ""
    assert sum(row["learned"] == row["true"] for row in rows) == 57
    assert drawn(run.folder / "figures") == PICTURES
    assert verify_path(run.folder) == 3


def test_the_list_with_a_column_of_labels_corrects_the_data(tiny: Callable[..., Recipe], tmp_path: Path) -> None:
    run = finished(tiny(), cured(tiny()))
    look(run)
    table = (run.folder / CSV).read_text().splitlines()
    learned = table[0].split(",").index("learned")
    looked_at = [f"{table[0]},label", *(f"{line},{line.split(',')[learned]}" for line in table[1:])]
    (tmp_path / "looked_at.csv").write_text("\n".join(looked_at))
    before, after = open_data(tiny()), open_data(tiny(f'data.corrections="{tmp_path}/looked_at.csv"'))
    assert (int(before.labels.is_noisy.sum()), int(after.labels.is_noisy.sum())) == (60, 60 - 57 + 4)
    assert after.corrected == 61


def test_a_file_of_labels_that_is_gone_is_named_by_its_own_field(tiny: Callable[..., Recipe], tmp_path: Path) -> None:
    table, moved = tmp_path / "looked_at.csv", tmp_path / "moved.csv"
    table.write_text("index,label\n0,1\n")
    recipe = tiny(f'data.corrections="{table}"')
    run = finished(recipe, cured(recipe))
    table.rename(moved)
    report = look(run)
    assert "looked_at.csv is not there; --set data.corrections=PATH names another place" in report.notes[0]
    assert look(run, tiny(f'data.corrections="{moved}"')).notes == ()
    table.write_text("index;label\n0;1\n")
    assert "--set data.corrections=PATH" in look(run).notes[0]


def test_labels_of_meta_images_are_counted_and_it_is_told(tiny: Callable[..., Recipe]) -> None:
    """Training tells shares of its own part only: without a word there would be two numbers of one name."""
    recipe = tiny("data.meta=30")
    splits = open_data(recipe).splits
    rows = torch.cat([splits.train, splits.meta]).sort().values
    given = open_data(recipe).labels.given[rows]
    report = look(finished(recipe, labels_at(given, (given + 1) % 10, rows, 10)))
    assert any(note.startswith(f"30 of these {len(rows)} labels are of meta images") for note in report.notes)


def test_without_planted_noise_nobody_is_judged(tiny: Callable[..., Recipe]) -> None:
    recipe = tiny('data.noise.kind="none"')
    report = look(finished(recipe, cured(recipe), metrics={"given_right": 1.0}))
    assert report.judged is None
    assert report.suspected == 4
    assert {suspect.true for suspect in report.suspects} == {None}
    assert "true" not in table_of(Path(report.run) / CSV)[0]


def test_the_confused_pairs(tiny: Callable[..., Recipe]) -> None:
    """All images given as 3 have learned 5, and nothing else moved."""
    data = open_data(tiny())
    given = data.labels.given[data.splits.train]
    learned = torch.where(given == 3, 5, given)
    report = look(finished(tiny(), labels_at(given, learned, data.splits.train, 10)), top=2)
    pair = report.confusions[0]
    assert (pair.given, pair.learned, pair.images) == ("3", "5", int((given == 3).sum()))
    assert pair.mass == pytest.approx(0.8)
    assert report.confusions[1].images == 0
    many = int((given == 3).sum())
    assert report.notes[0].startswith(f"{many} of {many} images given as 3 have left it, most for 5: ")
    assert "look at the pictures" in report.notes[0]


@pytest.mark.parametrize("rule", ["class", "onehot", "instance"])
def test_the_files_decide_and_not_the_rule(tiny: Callable[..., Recipe], rule: str) -> None:
    recipe = tiny(f"teacher.labels.rule={rule}")
    assert look(finished(recipe, cured(recipe))).suspected == 61


def test_a_table_of_classes(tiny: Callable[..., Recipe]) -> None:
    table = torch.full((10, 10), 0.01)
    table.fill_diagonal_(0.91)
    table[4] = torch.tensor([0.6, 0.1, 0.0, 0.0, 0.3, 0.0, 0.0, 0.0, 0.0, 0.0])
    every = torch.arange(10)
    labels = LearnedLabels("class", table, table, every, every, torch.ones(10, dtype=torch.bool), {2: table.half()})
    run = finished(tiny(), labels, metrics={"given_right": 0.7, "labels_right": 0.65})
    report = look(run, top=3)
    assert (report.suspected, report.suspects, report.differing) == (0, (), pytest.approx(0.1))
    assert (report.confusions[0].given, report.confusions[0].learned) == ("4", "0")
    assert report.confusions[0].mass == pytest.approx(0.6)
    assert report.confusions[0].images is None
    assert report.judged is not None
    assert (report.judged.right_before, report.judged.right_after) == (0.7, 0.65)
    assert (report.judged.precision, report.judged.recall, report.judged.f1) == (None, None, None)
    assert any("name no single image" in note for note in report.notes)
    assert {path.name for path in (run.folder / "figures").iterdir()} == {"label_heat_map.png", "label_epochs.png"}
    assert draw_suspects(run) is None


def test_runs_without_learned_labels(tiny: Callable[..., Recipe]) -> None:
    recipe = tiny("teacher.labels.rule=smoothing")
    run = finished(recipe, None)
    with pytest.raises(RunError, match=r"no learned labels .*: it was trained on smoothing labels") as caught:
        look(run)
    assert "distill list labels" in caught.value.cure
    assert draw_suspects(run) is None
    assert not (run.folder / "figures").exists()
    run.forget("teacher")
    with pytest.raises(RunError, match="not finished"):
        look(run)
    student = make_run(writable_folder(run.folder / "students" / "a"), recipe, kind="student", begun="x")
    with pytest.raises(RunError, match="this is a student"):
        look(student)


def test_the_cure_beside_a_teacher_that_is_being_trained_is_to_wait(tiny: Callable[..., Recipe]) -> None:
    """The command that makes the teacher would be refused by the lock of the process that makes it already."""
    run = finished(tiny(), cured(tiny()))
    with busy(run.folder), pytest.raises(RunError, match="another process is at work") as refused:
        export_teacher(open_run(run.folder), run.recipe, silent)
    assert refused.value.cure == "wait for it."  # another name would name the same run
    run.forget("teacher")
    for ask in (look, lambda run: export_teacher(run, run.recipe, silent)):
        with busy(run.folder), pytest.raises(RunError, match="not finished") as beside:
            ask(run)
        assert beside.value.cure.startswith("wait for the process that is at work there; ")
        with pytest.raises(RunError, match="not finished") as idle:
            ask(run)
        assert idle.value.cure.startswith("run `distill teacher ")


def test_damaged_labels(tiny: Callable[..., Recipe], tmp_path: Path) -> None:
    run = finished(tiny(), cured(tiny()))
    path = run.folder / "labels/labels.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(StoreError, match="sha256"):
        look(run)
    path.unlink()
    with pytest.raises(StoreError, match=r"labels\.safetensors"):
        look(run)
    write_labels(run.folder / "labels", cured(tiny(), wrongly=9), {})
    with pytest.raises(StoreError, match="other labels than the teacher wrote"):
        look(run)
    for file in (run.folder / "labels").iterdir():
        file.unlink()
    (run.folder / "labels").rmdir()
    with pytest.raises(StoreError, match="holds no learned labels"):
        look(run)
    assert not (run.folder / "figures").exists()


@pytest.mark.parametrize("name", ["labels.safetensors", "manifest.json"])
def test_the_cure_for_damaged_labels_works(tiny: Callable[..., Recipe], name: str) -> None:
    recipe = tiny("teacher.epochs=1")
    run = run_teacher(recipe, silent)
    path = run.folder / "labels" / name
    whole = path.read_bytes()
    path.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:] if name.endswith("s") else whole[:9])
    with pytest.raises(StoreError) as caught:
        look_at_labels(run, recipe, silent)
    assert caught.value.cure == f"Delete {path}, and train the teacher again: distill teacher RECIPE"
    path.unlink()
    with pytest.raises(StoreError) as caught:
        look_at_labels(run, recipe, silent)
    assert caught.value.cure == "Train the teacher again: distill teacher RECIPE"
    assert look_at_labels(run_teacher(recipe, silent), recipe, silent).files
    assert path.read_bytes() == whole


EPOCH = '{"event": "epoch", "stage": "teacher", "epoch": %s, "metrics": %s}\n'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        (EPOCH.replace("teacher", "student") % (0, '{"label_entropy": 1.0}'), {}),
        (EPOCH % (0, "{}") + EPOCH % (2, '{"a": 1, "b": null, "c": "x", "d": true}'), {0: {}, 2: {"a": 1}}),
        (EPOCH % (1, '{"a": 1.5}') + '{"event": "epoch"', {1: {"a": 1.5}}),
        ('[1]\n"x"\n\x00\n' + EPOCH % ("null", "{}") + EPOCH % (0, "[]") + EPOCH % ("true", "{}"), {}),
        (EPOCH % (0, '{"a": 1}') + EPOCH % (0, '{"a": 2}'), {0: {"a": 2}}),
        ("[" * 10_000, {}),
    ],
)
def test_what_metrics_say(tiny: Callable[..., Recipe], text: str, expected: dict[int, dict[str, float]]) -> None:
    run = make_run(writable_folder(Path(tiny().checkpoints) / "a"), tiny(), kind="teacher", begun="x")
    assert run.epochs("teacher") == {}
    (run.folder / "metrics.jsonl").write_text(text)
    assert run.epochs("teacher") == expected


def test_metrics_that_say_nothing_of_labels(tiny: Callable[..., Recipe]) -> None:
    run = finished(tiny(), cured(tiny()), epochs=[{"validation_accuracy": 1.0}])
    report = look(run)
    assert report.notes == (f"no chart of the epochs: {run.folder / 'metrics.jsonl'} says nothing of labels",)
    assert drawn(run.folder / "figures") == PICTURES - {"label_epochs.png"}
    (run.folder / "figures/label_epochs.png").touch()
    assert look(run).notes[0].endswith(f"; {run.folder / 'figures/label_epochs.png'} is an earlier one")


def test_an_interruption_leaves_no_half_file(tiny: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> Iterator[bytes]:
        yield b"index,path"
        raise KeyboardInterrupt

    run = finished(tiny(), cured(tiny()))
    monkeypatch.setattr("distill.stages.labels.suspects_csv", interrupted)
    with pytest.raises(KeyboardInterrupt):
        look(run)
    assert {path.name for path in (run.folder / "figures").iterdir()} == {"suspected_errors.png"}
    assert drawn(run.folder / "figures") == {"suspected_errors.png"}


def test_who_takes_the_runs_lock_meanwhile_sweeps_nothing_away(
    tiny: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`distill labels` beside a teacher or an export that goes on: it draws without the run's lock."""
    run = finished(tiny(), cured(tiny()))
    left = writable_folder(run.folder / "figures") / f".label_epochs.png.{0:016x}.tmp"
    left.touch()
    replace, met = Path.replace, []

    def beside_another(path: Path, target: Path) -> Path:
        with locked(run.folder):
            met.append(target.name)
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", beside_another)
    look(run)
    assert drawn(run.folder / "figures") == PICTURES <= set(met)
    assert not left.exists()  # of a killed one
    draw_suspects(open_run(run.folder))


def test_another_place(tiny: Callable[..., Recipe], tmp_path: Path) -> None:
    run = finished(tiny(), cured(tiny()))
    report = look(run, out=tmp_path / "new" / "place")
    assert drawn(tmp_path / "new/place") == PICTURES
    assert all(Path(path).parent == tmp_path / "new/place" for path in report.files.values())
    assert not (run.folder / "figures").exists()
    for part in ("labels", "labels/new", "logits", "students/x"):
        with pytest.raises(RunError, match="nothing but its own files"):
            look(run, out=run.folder / part)
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="file"):
        look(run, out=tmp_path / "file")
    assert verify_path(run.folder) == 3


def test_nothing_is_suspected(tiny: Callable[..., Recipe]) -> None:
    data = open_data(tiny())
    given = data.labels.given[data.splits.train]
    labels = labels_at(given, given, data.splits.train, 10)
    one_hot = torch.nn.functional.one_hot(given, 10).float()
    for table, saturated in ((labels.averaged, 0.0), (one_hot, 1.0)):
        run = finished(tiny(), replace(labels, averaged=table))
        report = look(run)
        assert (report.suspected, report.suspects, report.saturated) == (0, (), saturated)
        assert report.judged is not None
        assert (report.judged.precision, report.judged.recall) == (None, 0.0)
        assert table_of(run.folder / CSV) == []
    assert report.confusions == ()
    assert report.entropy == 0


TRAINED = 24  # of 25 training images one cannot be read
ODD = {"a": '=SUM("x")', "b": "ä, ö\nü"}


@pytest.fixture
def photos(tiny: Callable[..., Recipe], tmp_path: Path) -> Recipe:
    """A folder of two oddly named classes; a damaged image is left out."""
    root = folder_of(tmp_path / "photos", count=40)
    for name, odd in ODD.items():
        (root / name).rename(root / odd)
    bad = root / ODD["a"] / "000.png"
    bad.write_bytes(bad.read_bytes()[:30])
    (root / ODD["a"] / "002.png").rename(root / ODD["a"] / "=1+1,\r'.png")
    overrides = ("data.image_size=8", 'data.source="folder"', f'data.root="{root}"', 'data.unreadable="leave-out"')
    sizes = ("data.train=25", "data.validation=4", "data.meta=4", "data.test=4")
    return tiny(*overrides, *sizes, 'data.noise.kind="none"')


def flipped(recipe: Recipe) -> LearnedLabels:
    """Every label of two classes has moved to the other."""
    data = open_data(recipe)
    given = data.labels.given[data.splits.train]
    table = torch.full((len(given), 2), 0.25)
    table[torch.arange(len(given)), 1 - given] = 0.75
    touched = torch.ones(len(given), dtype=torch.bool)
    return LearnedLabels("instance", table, table, data.splits.train, given, touched)


def test_a_folder_with_odd_names(photos: Recipe) -> None:
    run = finished(photos, flipped(photos))
    assert look(run).suspected == TRAINED
    rows = table_of(run.folder / CSV)
    assert len(rows) == TRAINED
    for row in rows:
        assert (Path(photos.data.root) / row["path"]).is_file()
        assert row["path"].split("/")[0] == row["given"]
        assert {row["given"], row["learned"]} == set(ODD.values())
    assert f"{ODD['a']}/=1+1,\r'.png" in {row["path"] for row in rows}
    assert drawn(run.folder / "figures") == PICTURES


def test_data_that_moved(photos: Recipe, tmp_path: Path) -> None:
    run = finished(photos, flipped(photos))
    Path(photos.data.root).rename(tmp_path / "elsewhere")
    report = look(run)
    assert report.suspected == TRAINED
    assert "photos: is not a folder" in report.notes[0]
    assert "--set data.root=PATH" in report.notes[0]
    assert drawn(run.folder / "figures") == PICTURES - {"suspected_errors.png"}
    assert {(row["path"], row["given"]) for row in table_of(run.folder / CSV)} == {("", "0"), ("", "1")}

    moved = photos.model_copy(update={"data": photos.data.model_copy(update={"root": str(tmp_path / "elsewhere")})})
    assert all("have left it" in note for note in look(run, moved).notes)  # as every label of the two classes did
    assert drawn(run.folder / "figures") == PICTURES
    named = (run.folder / CSV).read_bytes()
    report = look(run)  # a list with names is not replaced by one without
    assert any("is left as it is" in note for note in report.notes)
    assert "suspected_errors" not in report.files
    assert (run.folder / CSV).read_bytes() == named


def test_data_that_changed(photos: Recipe) -> None:
    run = finished(photos, flipped(photos))
    victim = next(Path(photos.data.root).glob("*/03*.png"))
    victim.write_bytes(next(Path(photos.data.root).glob("*/02*.png")).read_bytes())
    report = look(run)
    assert "may be other images or given labels" in report.notes[0]
    assert "contact_sheet" not in report.files
    victim.unlink()
    assert "may be other images or given labels" in look(run).notes[0]


def test_the_command(
    tiny: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a teacher that was trained, by its folder and by its name."""
    recipe = tiny("teacher.epochs=2", "teacher.labels.step=200.0")
    run = run_teacher(recipe, silent, export=False)
    monkeypatch.chdir(run.folder.parent)
    (run.folder.parent / "checkpoints").symlink_to(".")

    def distill(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["distill", *words])
        capsys.readouterr()
        return run_command(), *capsys.readouterr()

    code, out, err = distill("labels", str(run.folder), "--top", "3")
    assert (code, err) == (0, "")
    for words in ("labels of 200 images, 10 classes", "planted noise: 30.0 %", "most confused classes", "heat map: "):
        assert words in out
    assert out.count("│") > 3
    code, out, err = distill("labels", "tiny", "--json", "--top", "2", "--out", "elsewhere")
    assert (code, err) == (0, "")
    record = json.loads(out)
    assert len(record["suspects"]) == len(record["confusions"]) == 2
    assert record["judged"]["wrong"] == pytest.approx(0.3)
    assert record["judged"]["right_after"] == pytest.approx(run.metrics("teacher")["labels_right"])
    assert record["differing"] == pytest.approx(run.metrics("teacher")["labels_moved"])
    assert record["entropy"] == pytest.approx(run.metrics("teacher")["label_entropy"], rel=1e-5)
    assert Path(record["files"]["suspected_errors"]).parent == Path("elsewhere")
    assert distill("verify", str(run.folder))[0] == 0
    code, _, err = distill("labels", "nobody")
    assert (code, "no such run folder" in err) == (2, True)
    assert distill("labels", "tiny", "--top", "0")[0] == 2
