"""Teachers that were trained elsewhere: from a file or timm's name to a student, and everything that is refused."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from distill.cli import entry
from distill.data.loader import ImageData, open_data
from distill.data.views import make_views
from distill.errors import StoreError, UserError
from distill.recipe.importing import import_recipe
from distill.recipe.load import load_recipe
from distill.recipe.schema import Recipe, ViewsRecipe
from distill.report.relations import confusion_matrix, relation
from distill.report.runs import Run, open_run
from distill.stages import imported
from distill.stages.checkpoints import find_checkpoint
from distill.stages.export import export_teacher
from distill.stages.labels import look_at_labels
from distill.stages.pipeline import run_imported
from distill.stages.relations import learned_means
from distill.stages.student import train_student
from distill.stages.teacher import train_teacher
from distill.stages.verify import recompute_run, verify_path
from distill.store.labels import read_labels
from distill.store.logits import LogitStore
from distill.store.manifest import read_manifest
from distill.training.events import Event, ExportProgress, Notice, StageSkipped
from distill.training.interrupt import Interrupted

DIGITS = tuple(str(digit) for digit in range(10))
MEAN, STD = (0.41, 0.42, 0.43), (0.21, 0.22, 0.23)


def ignore(event: Event) -> None:
    pass


def network(name: str = "resnet8", **arguments: object) -> nn.Module:
    """A model of timm's with random weights and statistics that are not the initial ones."""
    torch.manual_seed(1)
    model: nn.Module = timm.create_model(name, **{"num_classes": 10, **arguments})
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.add_(0.1 * torch.rand_like(buffer))
    return model.eval()


def saved(model: nn.Module, folder: Path, *, names: object = None, **config: object) -> Path:
    """As `timm.models.save_for_hf` leaves it."""
    labels = {"label_names": names} if names is not None else {}
    pretrained = {"mean": list(MEAN), "std": list(STD), **config}
    timm.models.save_for_hf(
        model, str(folder), model_config={**labels, "pretrained_cfg": pretrained}, safe_serialization=True
    )
    return folder


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[..., Recipe]:
    """The recipe that a teacher is imported by, its runs in the test's own folder."""
    few = ("data.train=60", "data.validation=20", "data.test=40", "student.epochs=1", "threads=1")
    views = ("views.crop_padding=1", "views.flip=true", "views.count=2")

    def make(text: str, *overrides: str) -> Recipe:
        place = f'checkpoints="{tmp_path / "runs"}"'
        return import_recipe(text, None, [place, "name=imported", *few, *views, *overrides])

    return make


def expected_logits(model: nn.Module, data: ImageData, recipe: Recipe, view: int, **seen: object) -> torch.Tensor:
    """Slowly, from the pixels on: the view as bytes, then the teacher's own normalisation, size and channels."""
    mean = torch.tensor(seen.get("mean", MEAN), dtype=torch.float64).view(1, -1, 1, 1)
    std = torch.tensor(seen.get("std", STD), dtype=torch.float64).view(1, -1, 1, 1)
    size = seen.get("size")
    rows = data.splits.teachable
    k = torch.full_like(rows, view)
    pixels = make_views(data.source.fetch(rows), rows, k, recipe.views, recipe.seed, numbered=True)
    images = (pixels.double() / 255 - mean) / std  # a grey image becomes as many channels as there are means
    if size is not None:
        smooth = bool(seen.get("antialias"))
        images = nn.functional.interpolate(images, (size, size), mode="bilinear", antialias=smooth)
    with torch.no_grad():
        return model.double()(images).float()


def check_store(folder: Path, model: nn.Module, recipe: Recipe, **seen: object) -> None:
    data = open_data(recipe)
    store = LogitStore.open(folder / "logits")
    for view in range(store.views):
        views = torch.full_like(store.indices, view)
        found = store.rows(store.indices, views)
        torch.testing.assert_close(found, expected_logits(model, data, recipe, view, **seen), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize(
    ("name", "arguments", "size"),
    [
        ("resnet8", {"in_chans": 3}, None),  # grey digits for a network for colours
        ("resnet8", {"in_chans": 1}, None),
        ("test_vit", {"img_size": 32}, 32),  # of one size, which is not the digits'
        ("test_efficientnet", {}, 64),  # of any size, but 8 pixels would leave it nothing
    ],
)
def test_the_store_holds_the_models_own_logits(recipe, tmp_path: Path, name: str, arguments, size) -> None:
    model = network(name, **arguments)
    channels = arguments.get("in_chans", 3)
    norm = {"mean": list(MEAN[:channels]), "std": list(STD[:channels])}
    text = f"local-dir:{saved(model, tmp_path / 'theirs', names=list(DIGITS), **norm)}"
    mine = recipe(text)
    told: list[Event] = []
    run = run_imported(text, mine, told.append)
    check_store(run.folder, model, mine, size=size, **norm)
    origin = read_manifest(run.folder / "logits").origin
    assert (origin.mean, origin.std) == (MEAN[:channels], STD[:channels])
    assert origin.label_rule == "imported"
    first = next(event.message for event in told if isinstance(event, Notice))
    side = size or 8
    assert f"sees images as {channels} x {side} x {side}" in first
    record = open_run(run.folder).record.stages["teacher"]
    assert record.imported["source"] == text
    assert record.imported["weights_sha256"] == open_run(run.folder).recipe.teacher.imported.weights_sha256
    assert record.imported["classes"].startswith("named")
    assert 0 <= record.metrics["test_accuracy"] <= 1


def test_learned_labels_against_an_imported_teacher(recipe, tiny, tmp_path: Path) -> None:
    """Its confusions are those of the network as it sees images: its own normalisation, three channels of grey."""
    text = f"local-dir:{saved(network(), tmp_path / 'theirs')}"
    other = run_imported(text, recipe(text, "seed=1"), ignore)
    run = train_teacher(tiny("teacher.labels.rule=instance"), ignore)
    report = look_at_labels(run, run.recipe, ignore, against=open_run(other.folder))
    data = open_data(other.recipe)
    rows = data.splits.test
    pixels = make_views(data.source.fetch(rows), rows, torch.zeros_like(rows), ViewsRecipe(), 0, numbered=True)
    mean, std = (torch.tensor(three).view(1, 3, 1, 1) for three in (MEAN, STD))
    with torch.no_grad():
        predicted = network()((pixels.float() / 255 - mean) / std).argmax(-1)
    confusion = confusion_matrix(data.labels.true[rows].numpy(), predicted.numpy(), 10)
    labels = read_labels(run.folder / "labels")
    expected = relation(learned_means(labels.averaged, labels.given, labels.kind), confusion)
    assert report.relation is not None
    assert report.relation.correlation == pytest.approx(expected.correlation, abs=1e-6)


def test_a_student_keeps_its_own_normalisation_and_everything_downstream_works(recipe, tmp_path: Path) -> None:
    text = f"local-dir:{saved(network(), tmp_path / 'theirs')}"
    run = run_imported(text, recipe(text), ignore)
    again = open_run(run.folder)
    student = train_student(again, again.recipe, ignore)
    data = open_data(again.recipe)
    config = json.loads((student.folder / "config.json").read_text())["pretrained_cfg"]
    assert tuple(config["mean"]) == data.mean
    assert tuple(config["std"]) == data.std
    assert config["input_size"] == [1, 8, 8]
    assert student.record.teacher == again.record.stages["teacher"].digest
    assert verify_path(run.folder) == 8
    # A student of this program is a checkpoint too, of a run of its own.
    mine = recipe(f"local-dir:{student.folder}", "name=second")
    second = run_imported(f"local-dir:{student.folder}", mine, ignore)
    check_store(
        second.folder,
        timm.create_model(f"local-dir:{student.folder}", pretrained=True).eval(),
        mine,
        mean=data.mean,
        std=data.std,
    )


@pytest.mark.parametrize("views", [(), ("views.mixup=1.0",)])
@pytest.mark.parametrize("name", ["resnet8", "test_vit"])  # grey digits for three channels, and enlarged too
def test_features_and_mixed_views_of_an_imported_teacher(recipe, tmp_path: Path, name: str, views) -> None:
    model = network(name)
    text = f"local-dir:{saved(model, tmp_path / 'theirs')}"
    run = run_imported(text, recipe(text, "export.features=true", "export.format=float32", *views), ignore)
    store = LogitStore.open(run.folder / "logits")
    k = torch.ones_like(store.indices)
    with torch.no_grad():  # the last layer makes the logits of the features
        expected = model.get_classifier()(store.features(store.indices, k))
    torch.testing.assert_close(store.rows(store.indices, k), expected, rtol=1e-3, atol=1e-3)
    assert recompute_run(run.folder, 50, 0).rows == 50
    again = open_run(run.folder)
    train_student(again, again.recipe, ignore)


def test_other_views_of_an_imported_teacher(recipe, tmp_path: Path) -> None:
    """Views did not train it, so they may change after the import."""
    text = f"local-dir:{saved(network(), tmp_path / 'theirs')}"
    run = run_imported(text, recipe(text), ignore)
    other = recipe(text, "views.flip=false", "views.count=1")
    told: list[Event] = []
    run_imported(text, other, told.append)
    assert [event.stage for event in told if isinstance(event, StageSkipped)] == ["teacher"]
    check_store(run.folder, network(), other)
    assert verify_path(run.folder) == 4


def test_a_bare_file_with_its_architecture_named(recipe, tmp_path: Path) -> None:
    model = network("resnet8", in_chans=1)
    path = tmp_path / "weights.safetensors"
    save_file({name: value.clone() for name, value in model.state_dict().items()}, path)
    mine = recipe(str(path), "teacher.imported.mean=0.3", "teacher.imported.std=0.4")
    told: list[Event] = []
    run = run_imported(str(path), mine, told.append, model="resnet8")
    check_store(run.folder, model, mine, mean=(0.3,), std=(0.4,))
    said = " ".join(event.message for event in told if isinstance(event, Notice))
    assert "on trust" in said
    assert "timm's usual" not in said
    run_imported(str(path), recipe(str(path), "name=usual"), told.append, model="resnet8")
    assert any("timm's usual ones for resnet8" in event.message for event in told if isinstance(event, Notice))
    assert open_run(run.folder).record.stages["teacher"].imported["classes"] == "order taken on trust"
    with pytest.raises(UserError, match=r"weights\.safetensors, not trained") as found:
        train_teacher(run.recipe, ignore)
    assert f"`distill export --teacher {path} --model resnet8`" in found.value.cure


def photos(folder: Path) -> tuple[str, ...]:
    """Forty colour pictures of 48 x 48 pixels in ten classes, and the overrides that name them."""
    for number in range(60):
        place = folder / f"{number % 10}" / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        pixels = torch.randint(0, 256, (48, 48, 3), generator=torch.Generator().manual_seed(number)).byte()
        Image.fromarray(pixels.numpy()).save(place)
    small = ("data.train=20", "data.validation=10", "data.test=20", "data.image_size=48")
    return ("data.source=folder", f'data.root="{folder}"', *small)


def test_half_precision_weights_and_images_larger_than_the_teachers(recipe, tmp_path: Path) -> None:
    ours = photos(tmp_path / "photos")
    model = network("test_vit", img_size=32)
    text = f"local-dir:{saved(model.half(), tmp_path / 'theirs')}"
    mine = recipe(text, *ours)
    run = run_imported(text, mine, ignore)
    check_store(run.folder, model.float(), mine, size=32, antialias=True)
    grey = f"local-dir:{saved(network(in_chans=1), tmp_path / 'grey')}"
    with pytest.raises(UserError, match=r"takes images of 1 channels, those of .* have 3"):
        run_imported(grey, recipe(grey, *ours), ignore)


def test_published_weights(recipe, tmp_path: Path, monkeypatch) -> None:
    """timm:NAME with a Hub that has them in its cache, and one that does not."""
    model = network("resnet8", in_chans=3)
    path = tmp_path / "cached.safetensors"
    save_file({name: value.clone() for name, value in model.state_dict().items()}, path)
    table = timm.models._registry._model_pretrained_cfgs
    told = {"hf_hub_id": "somebody/resnet8", "num_classes": 10, "mean": MEAN, "std": STD}
    monkeypatch.setitem(table, "resnet8", replace(table["resnet8"], **told))
    mine = recipe("timm:resnet8")
    with pytest.raises(UserError, match=r"timm:test_vit.r160_in1k: knows 1000 classes, digits has 10"):
        run_imported("timm:test_vit", mine, ignore)  # before anything is downloaded
    with pytest.raises(UserError, match="not in the cache") as offline:
        run_imported("timm:resnet8", mine, ignore)
    assert "local-dir:FOLDER" in offline.value.cure
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *a, **k: str(path))
    run = run_imported("timm:resnet8", mine, ignore)
    check_store(run.folder, model, mine)
    assert open_run(run.folder).record.stages["teacher"].imported["source"] == "timm:resnet8"


def test_importing_twice_and_another_file_under_the_same_name(recipe, tmp_path: Path) -> None:
    text = f"local-dir:{saved(network(), tmp_path / 'theirs')}"
    run = run_imported(text, recipe(text), ignore)
    before = (run.folder / "run.json").read_bytes()
    told: list[Event] = []
    run_imported(text, recipe(text), told.append)
    assert [event.stage for event in told if isinstance(event, StageSkipped)] == ["teacher", "export"]
    assert (run.folder / "run.json").read_bytes() == before
    (tmp_path / "theirs").rename(tmp_path / "moved")
    moved = f"local-dir:{tmp_path / 'moved'}"
    told.clear()
    run_imported(moved, recipe(moved), told.append)  # where the files lie does not count
    assert [event.stage for event in told if isinstance(event, StageSkipped)] == ["teacher", "export"]
    with torch.no_grad():
        model = network()
        model.fc.weight.mul_(2)
    other = f"local-dir:{saved(model, tmp_path / 'other')}"
    with pytest.raises(UserError, match="weights_sha256"):
        run_imported(other, recipe(other), ignore)
    with pytest.raises(UserError, match=r"mean: \["):
        run_imported(moved, recipe(moved, "teacher.imported.mean=0.1,0.2,0.3"), ignore)


def test_an_interrupted_export_of_an_imported_teacher_goes_on(recipe, tmp_path: Path) -> None:
    text = f"local-dir:{saved(network(), tmp_path / 'theirs')}"
    few = ("export.shard_rows=20", "export.batch_size=10")

    def stop(event: Event) -> None:
        if isinstance(event, ExportProgress) and event.done >= 50:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted):
        run_imported(text, recipe(text, *few), stop)
    folder = tmp_path / "runs" / "imported"
    kept = {p.name: p.stat().st_mtime_ns for p in (folder / "logits").glob("view*")}
    assert kept
    run_imported(text, recipe(text, *few), ignore)
    assert all((folder / "logits" / name).stat().st_mtime_ns == made for name, made in kept.items())
    whole = run_imported(text, recipe(text, *few, "name=whole"), ignore)
    for path in sorted((whole.folder / "logits").glob("view*")):
        assert path.read_bytes() == (folder / "logits" / path.name).read_bytes()


def test_the_commands_in_a_row(tmp_path: Path, monkeypatch, capsys) -> None:
    """As a newcomer types them; a recipe's [teacher] says how to train one, and does not matter here."""

    def distill(words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["distill", *words.split()])
        code = entry.run()
        said = capsys.readouterr()
        return code, said.out, said.err

    monkeypatch.chdir(tmp_path)
    saved(network(), tmp_path / "theirs", names=list(DIGITS))
    (tmp_path / "mine.toml").write_text(
        "[data]\ntrain = 60\ntest = 40\n[teacher]\nmodel = 'vgg8'\nepochs = 7\n[student]\nepochs = 1\n"
    )
    for words, said in (
        ("export --teacher local-dir:theirs --recipe mine.toml", "local-dir:theirs sees images as 3 x 8 x 8"),
        ("export --teacher local-dir:theirs --recipe mine.toml", "skipped, already imported"),
        ("export --teacher mine", "export: skipped"),
        ("student --teacher mine --model resnet14", "next: "),
        ("verify checkpoints/mine", "sound"),
        ("check checkpoints/mine/recipe.toml", "imported local-dir:theirs"),
    ):
        code, out, err = distill(words)
        assert (code, err) == (0, "")
        assert said in out
    for words, said in (
        ("export --teacher mine --model resnet8", "a run folder has its own"),
        ("export --teacher mine --model resnet8", "change [export] or views.count with --set (other [views] only of a"),
        ("teacher checkpoints/mine/recipe.toml", "is imported from local-dir:theirs, not trained"),
        ("student --teacher local-dir:theirs", "distill export --teacher local-dir:theirs"),
        ("export --teacher local-dir:theirs --set teacher.epochs=3", "imported, not trained"),
        ("export --teacher local-dir:theirs --model resnet8", "named twice"),
        ("export --teacher nothing.safetensors --model resnet8", "no such file"),
        ("export --teacher local-dir:nowhere", "no such folder"),
    ):
        code, out, err = distill(words)
        assert (code, out) == (2, "")
        assert said in err


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".pkl", ".npz"])
def test_a_pickled_file_is_not_opened(recipe, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    os.mkfifo(path)  # whoever opened it would wait for ever
    with pytest.raises(UserError, match="is not a regular file"):
        run_imported(str(path), recipe(str(path)), ignore, model="resnet8")
    path.unlink()
    path.write_bytes(b"never read")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Path, "open", None)
        patched.setattr(torch, "load", None)
        with pytest.raises(UserError, match="was not opened"):
            find_checkpoint(str(path), "resnet8", {})


@pytest.mark.parametrize("text", ["local-dir:~nosuchuser/x", "~nosuchuser/x.safetensors"])
def test_a_home_that_nobody_knows(text: str) -> None:
    with pytest.raises(StoreError, match="no home folder of ~nosuchuser is known here"):
        find_checkpoint(text, "resnet8" if text.startswith("~") else None, {})


def test_the_cure_for_a_pickled_file_works(recipe, tmp_path: Path) -> None:
    model = network()
    path = tmp_path / "it's.pth.tar"
    arguments = argparse.Namespace(model="resnet8")  # timm's training script keeps them beside the weights
    torch.save({"state_dict": model.state_dict(), "args": arguments, "epoch": 3}, path)
    with pytest.raises(UserError, match="was not opened") as refused:
        run_imported(str(path), recipe(str(path)), ignore, model="resnet8")
    command = shlex.split(refused.value.cure.partition(": ")[2])
    assert command[0] == "python"
    subprocess.run([sys.executable, *command[1:]], check=True, timeout=100)
    converted = str(tmp_path / "it's.safetensors")
    mine = recipe(converted, "teacher.imported.mean=0.41,0.42,0.43", "teacher.imported.std=0.21,0.22,0.23")
    run = run_imported(converted, mine, ignore, model="resnet8")
    check_store(run.folder, model, mine)


def _without(name: str) -> Callable[[dict], None]:
    return lambda tensors: tensors.pop(name)


def _also(name: str, value: torch.Tensor) -> Callable[[dict], None]:
    return lambda tensors: tensors.update({name: value})


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (_without("fc.bias"), r"1 missing, first 'fc.bias'"),
        (_also("extra", torch.zeros(1)), r"1 unknown, first 'extra'"),
        (_also("fc.bias", torch.zeros(11)), r"'fc.bias' is \(11,\), the model's is \(10,\)"),
        (_also("fc.bias", torch.full((10,), torch.nan)), r"'fc.bias' holds values that are NaN or infinite"),
        (_also("bn1.running_var", torch.full((16,), torch.inf)), "'bn1.running_var' holds values"),
        (_also("fc.bias", torch.zeros(10, dtype=torch.int8)), "'fc.bias' is torch.int8"),
    ],
)
def test_weights_that_do_not_fit(recipe, tmp_path: Path, change, error: str) -> None:
    folder = saved(network(), tmp_path / "theirs")
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    text = f"local-dir:{folder}"
    with pytest.raises(UserError, match=error):
        run_imported(text, recipe(text), ignore)
    assert not (tmp_path / "runs/imported/run.json").exists()


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"architecture": "resnt8"}, r"config.json: model 'resnt8' is neither(.|\n)*resnet8"),
        ({"architecture": None}, "config.json: architecture: found"),
        ({"num_classes": 9, "model_args": {}}, "knows 9 classes, digits has 10"),
        ({"label_names": [*DIGITS[1:], "0"]}, "the same classes in another order than digits: class 0 is '1' there"),
        ({"label_names": ["zero", *DIGITS[1:]]}, "other classes than digits: class 0 is 'zero' there, '0' in"),
        ({"label_names": list(DIGITS[:9])}, "names 9 classes"),
        ({"label_names": 3}, "label_names: found '3'"),
        ({"model_args": {"checkpoint_path": "evil.pth"}}, "'checkpoint_path' cannot be given"),
        ({"model_args": {"features_only": True}}, "'features_only' cannot be given"),
        ({"architecture": "enlarged", "model_args": {"base": "local-dir:evil", "size": 9}}, "neither one of timm's"),
        ({"model_args": {"nonsense": 1}}, "does not take 3 x 8 x 8 images: .*nonsense"),
        ({"model_args": {"in_chans": 0}}, "in_chans: found '0'"),
        ({"model_args": {"img_size": 10**9}}, "input_size: found .*, expected an integer from 1 to 16,777,216"),
        ({"pretrained_cfg": {"mean": [0.5, "x", 0.5]}}, "mean: found"),
        ({"pretrained_cfg": {"std": [0.5, 0.0, 0.5]}}, "std: found"),
        ({"pretrained_cfg": {"std": [10**400]}}, "std: found"),
        ({"pretrained_cfg": {"input_size": [3]}}, "input_size: found"),
        ({"pretrained_cfg": {"input_size": [3, 8, "x"]}}, "input_size: found"),
        ({"pretrained_cfg": []}, None),
        ([], "found '\\[\\]', expected a table"),
    ],
)
def test_configs_that_are_refused(recipe, tmp_path: Path, change, error: str | None) -> None:
    folder = saved(network(), tmp_path / "theirs")
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, **change} if isinstance(change, dict) else change))
    text = f"local-dir:{folder}"
    if error is None:
        run_imported(text, recipe(text), ignore)
        return
    with pytest.raises(UserError, match=error):
        run_imported(text, recipe(text), ignore)
    assert not (tmp_path / "runs/imported/run.json").exists()


def test_folders_and_files_that_are_refused(recipe, tmp_path: Path) -> None:
    def refused(text: str, error: str, model: str | None = None) -> None:
        with pytest.raises(UserError, match=error):
            run_imported(text, recipe(text), ignore, model=model)

    folder = saved(network(), tmp_path / "theirs")
    weights = folder / "model.safetensors"
    refused(str(weights), "does not say which network")
    refused(str(weights), "neither one of timm's", "resnt8")
    refused(str(weights), "belong to another model", "resnet14")
    refused(f"local-dir:{tmp_path}", r"config.json: no such file")
    refused("timm:resnt8", "neither one of timm's")
    refused("timm:resnet8", "knows 100 classes, digits has 10")
    refused("timm:resnet18.nosuch", "has no weights with tag 'nosuch'")
    refused("timm:vit_small_patch14_dinov2", "has no classifier")
    content = weights.read_bytes()
    weights.write_bytes(content[:-10])
    refused(f"local-dir:{folder}", "not a whole safetensors file")
    weights.rename(folder / "pytorch_model.bin")
    refused(f"local-dir:{folder}", r"pytorch_model.bin: not a safetensors file. It was not opened")
    (folder / "pytorch_model.bin").unlink()
    refused(f"local-dir:{folder}", "holds no safetensors file")
    for name in ("a", "b"):
        (folder / f"{name}.safetensors").write_bytes(content)
    refused(f"local-dir:{folder}", "holds 2 safetensors files")
    (folder / "a.safetensors").unlink()
    text = f"local-dir:{folder}"
    run_imported(text, recipe(text), ignore)


def test_a_damaged_or_unfinished_import_says_how_to_go_on(recipe, tmp_path: Path) -> None:
    text = f"local-dir:{saved(network(), tmp_path / 'theirs')}"
    run = run_imported(text, recipe(text), ignore)
    path = run.folder / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match=r"model\.safetensors"):
        verify_path(run.folder)
    path.unlink()
    run_imported(text, recipe(text), ignore)
    assert path.read_bytes() == content
    run.forget("teacher")
    with pytest.raises(UserError) as unfinished:
        export_teacher(open_run(run.folder), load_recipe(run.folder / "recipe.toml"), ignore)
    assert f"distill export --teacher {text}" in unfinished.value.cure


def test_an_import_that_was_killed_is_made_again(recipe, tmp_path: Path, monkeypatch) -> None:
    text = f"local-dir:{saved(network(), tmp_path / 'theirs')}"

    def killed(*given: object, **named: object) -> None:
        raise KeyboardInterrupt

    for moment in ("make_run", "save_weights"):
        with monkeypatch.context() as patched:
            patched.setattr(imported, moment, killed)
            with pytest.raises(KeyboardInterrupt):
                run_imported(text, recipe(text), ignore)
    with monkeypatch.context() as patched:
        patched.setattr(Run, "finish", killed)
        with pytest.raises(KeyboardInterrupt):
            run_imported(text, recipe(text), ignore)
    run = run_imported(text, recipe(text), ignore)
    whole = run_imported(text, recipe(text, "name=whole"), ignore)
    for name in ("model.safetensors", "logits/manifest.json"):
        assert (run.folder / name).read_bytes() == (whole.folder / name).read_bytes()


@pytest.mark.parametrize("few", ["export.batch_size=1", "data.train=10"])
def test_one_image_and_batches_of_one(recipe, tmp_path: Path, few: str) -> None:
    model = network()
    text = f"local-dir:{saved(model, tmp_path / 'theirs')}"
    mine = recipe(text, few, "data.validation=0", "views.count=orbit")
    check_store(run_imported(text, mine, ignore).folder, model, mine)


def test_a_teacher_no_better_than_naming_one_class_is_told(recipe, tmp_path: Path) -> None:
    with torch.no_grad():
        model = network()
        model.fc.weight.zero_()
    text = f"local-dir:{saved(model, tmp_path / 'theirs')}"
    told: list[Event] = []
    run_imported(text, recipe(text), told.append)
    assert any("check the order of its classes" in event.message for event in told if isinstance(event, Notice))


def test_images_of_ones_own_choice_of_size(recipe, tmp_path: Path) -> None:
    model = network()
    text = f"local-dir:{saved(model, tmp_path / 'theirs')}"
    mine = recipe(text, "teacher.imported.image_size=16")
    run = run_imported(text, mine, ignore)
    check_store(run.folder, model, mine, size=16)
