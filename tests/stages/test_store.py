"""Whole exports: formats, features, labels, what is refused, and rows that are made again."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

from distill.cli.entry import run as run_command
from distill.data.loader import open_data, ordered_batches
from distill.errors import ModelError, RecipeError, RunError, StoreError, UserError
from distill.models.features import feature_width, logits_and_features
from distill.models.maps import MapHook, as_row, find_stages
from distill.models.zoo import create, fit
from distill.recipe.load import override, parse_recipe
from distill.report.runs import Run, make_run, open_run
from distill.stages.check import check_plan
from distill.stages.export import export_teacher
from distill.stages.finished import load_teacher, origin_of, teacher_weights
from distill.stages.pipeline import run_pipeline
from distill.stages.student import train_student
from distill.stages.teacher import train_teacher
from distill.stages.verify import recompute_run, verify_path
from distill.store.atomic import writable_folder, write_bytes
from distill.store.formats.encoding import logit_encoding
from distill.store.labels import read_labels
from distill.store.logits import LogitStore
from distill.store.manifest import SHARDS_OF, read_manifest
from distill.store.origin import difference
from distill.store.shards import write_shard
from distill.training.events import Event
from tests.stages.conftest import TINY
from tests.store import cases
from tests.store.cases import contents

SHORT = ("teacher.epochs=1", "student.epochs=1")
FORMATS = {
    "float16": (),
    "float32": ("export.format=float32",),
    "int8": ("export.format=int8", "export.features=true", "export.maps=true"),
    "topk": ("export.format=topk", "export.k=4", "student.loss.temperature=1"),
}


def ignore(event: Event) -> None:
    pass


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished teacher without a store, to be copied."""
    folder = tmp_path_factory.mktemp("trained")
    recipe = override(parse_recipe(TINY, "tiny.toml", [f'checkpoints="{folder}"']), SHORT)
    return train_teacher(recipe, ignore).folder


@pytest.mark.parametrize("format", FORMATS)
def test_each_format_from_teacher_to_student(tiny, teacher: Run, format: str) -> None:
    """Exported twice the same bytes; rows are what the format makes of the teacher's logits; verified; learned from."""
    recipe = tiny(*SHORT, *FORMATS[format])
    folder = export_teacher(teacher, recipe, ignore)
    before = contents(folder)
    shutil.rmtree(folder)
    assert contents(export_teacher(open_run(teacher.folder), recipe, ignore)) == before
    data, store = open_data(recipe), LogitStore.open(folder, reconstruct=True)
    model = load_teacher(recipe, data, teacher.folder / "model.safetensors", torch.device("cpu"))
    rows = store.indices[torch.randperm(store.indices.numel(), generator=torch.Generator().manual_seed(0))[:40]]
    batch = next(ordered_batches(data, rows, batch_size=40, device="cpu", view=2, views=recipe.views, seed=0))
    with torch.no_grad():
        logits, features = logits_and_features(model, batch.images)
        assert torch.equal(logits, model(batch.images))
    encoding = logit_encoding(store.manifest.format, 10, store.manifest.k)
    slack = torch.full((40,), 1e-4, dtype=torch.float64)
    assert (encoding.excess(store.parts("logits", rows, batch.view), logits, slack) <= 0).all()
    if format == "int8":
        stages = find_stages(model, batch.images)
        with MapHook(model, stages) as hook:
            model(batch.images)
        torch.testing.assert_close(torch.cat(store.maps(rows, batch.view), 1), as_row(hook.maps), rtol=1e-3, atol=1e-5)
        assert store.manifest.maps == tuple(stage.size for stage in stages) == ((8, 8), (4, 4), (2, 2))
        assert features.shape == (40, 64)
        torch.testing.assert_close(store.features(rows, batch.view), features, rtol=1e-3, atol=1e-3)
    assert verify_path(teacher.folder) > 6
    told = recompute_run(teacher.folder, 50, seed=3)
    assert (told.rows, told.total, told.seed) == (50, 3 * 260, 3)
    assert train_student(open_run(teacher.folder), recipe, ignore).record.stages["student"]


def test_the_store_carries_the_teacher_s_labels(tiny, teacher: Run) -> None:
    folder = export_teacher(teacher, tiny(*SHORT), ignore)
    carried, own = LogitStore.open(folder).labels(), read_labels(teacher.folder / "labels")
    assert torch.equal(carried.averaged, own.averaged)
    assert carried.trajectory.keys() == own.trajectory.keys() != set()
    files = open_run(teacher.folder).record.stages["export"].files
    assert {"logits/labels/labels.safetensors", "logits/labels/manifest.json"} < files.keys()


def test_a_store_with_other_labels_than_the_run_is_a_problem(tiny, teacher: Run) -> None:
    """As when labels were learned again and the store was not made again."""
    export_teacher(teacher, tiny(*SHORT), ignore)
    path = teacher.folder / "run.json"
    record = json.loads(path.read_text())
    record["stages"]["teacher"]["files"]["labels/labels.safetensors"] = "0" * 64
    path.write_text(json.dumps(record))
    with pytest.raises(StoreError, match="carries other learned labels than"):
        verify_path(teacher.folder)


def test_labels_that_were_changed_are_not_exported(tiny, teacher: Run) -> None:
    path = teacher.folder / "labels/labels.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=r"labels\.safetensors: sha256 differs from what the teacher wrote"):
        export_teacher(teacher, tiny(*SHORT), ignore)


@pytest.mark.parametrize("name", ["model.safetensors", "labels/labels.safetensors"])
def test_a_file_that_was_deleted_has_the_cure_of_a_damaged_one(tiny, teacher: Run, name: str) -> None:
    (teacher.folder / name).unlink()
    with pytest.raises(RunError, match=rf"{name}: missing; the teacher wrote it") as found:
        export_teacher(teacher, tiny(*SHORT), ignore)
    assert "restore the file; or run `distill teacher " in found.value.cure
    export_teacher(train_teacher(tiny(*SHORT), ignore), tiny(*SHORT), ignore)


def test_a_teacher_with_fixed_labels_has_none_to_carry(tiny) -> None:
    teacher, _ = run_pipeline(tiny("teacher.labels.rule=smoothing", *SHORT), ignore)
    assert read_manifest(teacher.folder / "logits").labels is None
    assert verify_path(teacher.folder) > 5


# (override, what is refused, and in which words)
OTHERS = [
    ("seed=1", "trained by another recipe"),
    ("data.train=190", "trained by another recipe"),
    ("views.flip=true", "trained by another recipe"),
    ("data.noise.rate=0.2", "trained by another recipe"),
    ("views.count=2", "holds other views"),
]


@pytest.mark.parametrize(("change", "words"), OTHERS)
def test_a_store_of_something_else_is_refused(tiny, teacher: Run, change: str, words: str) -> None:
    export_teacher(teacher, tiny(*SHORT), ignore)
    with pytest.raises(UserError, match=words):
        train_student(open_run(teacher.folder), tiny(*SHORT, change), ignore)


def test_each_difference_has_its_sentence(tiny, teacher: Run) -> None:
    """The store of this teacher, opened for another teacher, data set, class order, seed or view spec."""
    recipe = tiny(*SHORT)
    folder, data = export_teacher(teacher, recipe, ignore), open_data(recipe)
    origin = origin_of(data, recipe, teacher_weights(open_run(teacher.folder), recipe, data)[1])
    LogitStore.open(folder, expect=origin)
    names = origin.class_names
    changes = {
        "teacher differs": {"teacher_digest": "x"},
        "data set differs": {"data_fingerprint": "x"},
        "given labels differs": {"given_labels_sha256": "1" * 64},
        "class order differs": {"class_names": (names[1], names[0], *names[2:])},
        "seed of the views differs: store has 0, expected 1": {"view_seed": 1},
        "views differ: crop_padding: store has 1, expected 2": {"views": {**origin.views, "crop_padding": 2}},
        "number of views differs": {"view_count": 4},
    }
    for words, change in changes.items():
        other = origin.model_copy(update=change)
        assert len(difference(other, origin)) == 1
        with pytest.raises(StoreError, match=words):
            LogitStore.open(folder, expect=other)


def flip_a_byte(path: Path, at: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_exporting_again_mends_a_damaged_shard(tiny, teacher: Run) -> None:
    """It is the cure that the student's error gives."""
    recipe = tiny(*SHORT)
    folder = export_teacher(teacher, recipe, ignore)
    before = contents(folder)
    flip_a_byte(next(folder.glob("view*.safetensors")))
    with pytest.raises(StoreError, match="Export it again"):
        train_student(teacher, recipe, ignore)
    assert contents(export_teacher(teacher, recipe, ignore)) == before


def test_a_damaged_manifest_costs_no_record_and_its_cure_works(tiny, teacher: Run) -> None:
    recipe = tiny(*SHORT)
    folder = export_teacher(teacher, recipe, ignore)
    before = contents(folder)
    flip_a_byte(folder / "manifest.json", 30)
    with pytest.raises(StoreError, match=r"manifest\.json") as caught:
        export_teacher(teacher, tiny(*SHORT, "views.count=3"), ignore)
    assert caught.value.cure.startswith(f"Delete {folder}")
    assert "export" in open_run(teacher.folder).record.stages
    shutil.rmtree(folder)
    assert contents(export_teacher(open_run(teacher.folder), recipe, ignore)) == before


def test_a_store_that_was_not_recorded_any_more_is_verified_all_the_same(tiny, teacher: Run) -> None:
    folder = export_teacher(teacher, tiny(*SHORT), ignore)
    teacher.forget("export")
    verify_path(teacher.folder)
    flip_a_byte(next(folder.glob("view*.safetensors")))
    with pytest.raises(StoreError, match="view0000"):
        verify_path(teacher.folder)


def test_another_format_replaces_the_store(tiny, teacher: Run) -> None:
    export_teacher(teacher, tiny(*SHORT, *FORMATS["int8"]), ignore)
    run = open_run(teacher.folder)
    folder = export_teacher(run, tiny(*SHORT), ignore)
    assert read_manifest(folder).format == "float16"
    assert not list(folder.glob("features*"))
    assert verify_path(teacher.folder) > 6


def test_the_cure_for_a_run_s_k_in_another_format_works(tiny, teacher: Run, monkeypatch, capsys) -> None:
    recipe = tiny(*SHORT, *FORMATS["topk"])
    export_teacher(teacher, recipe, ignore)
    assert open_run(teacher.folder).recipe.export.k == 4
    command = ["distill", "export", "--teacher", str(teacher.folder), "--set", "export.format=int8"]
    monkeypatch.setattr(sys, "argv", command)
    assert run_command() == 2
    assert "or leave k out (--set export.k=none)" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", [*command, "--set", "export.k=none"])
    assert run_command() == 0
    assert read_manifest(teacher.folder / "logits").format == "int8"


def test_top_k_at_another_temperature_is_refused_unless_forced(tiny, teacher: Run) -> None:
    topk = (*FORMATS["topk"][:2], "student.loss.temperature=4")
    with pytest.raises(RecipeError, match=r'"kd" at T = 4 reads the tail.*docs/formats\.md'):
        run_pipeline(tiny(*SHORT, *topk), ignore)
    export_teacher(teacher, tiny(*SHORT, *FORMATS["topk"]), ignore)
    # A recipe that knows nothing of the store's format.
    with pytest.raises(StoreError, match='4 largest of 10 logits only, and the loss "kd" at T = 4') as caught:
        train_student(open_run(teacher.folder), tiny(*SHORT, topk[2]), ignore)
    assert "allow_topk=true" in caught.value.cure
    assert "export.format=int8" in caught.value.cure
    forced = tiny(*SHORT, *topk, "student.loss.allow_topk=true")
    assert train_student(open_run(teacher.folder), forced, ignore).record.stages["student"]
    # Hard labels read no logits at all.
    assert train_student(open_run(teacher.folder), tiny(*SHORT, "student.loss.name=ce"), ignore)


def tamper(folder: Path, number: int, holds: str) -> tuple[int, int]:
    """Another value in a shard, with digests that agree everywhere: (image, view) of the first row that is wrong."""
    store = LogitStore.open(folder)
    manifest = store.manifest
    shard = manifest.shards_of(holds)[number]
    parts = {name: part.clone() for name, part in store._map(holds, number).tensors.items()}
    next(iter(parts.values()))[7] += 1
    made = write_shard(folder, manifest.digest(), shard.piece, holds, parts)
    shards = [*manifest.shards_of(holds)]
    shards[number] = made
    other = manifest.model_copy(update={SHARDS_OF[holds]: tuple(shards)})
    text = json.dumps(other.model_dump(mode="json"), sort_keys=True, indent=2, ensure_ascii=False) + "\n"
    (folder / "manifest.json").write_text(text)
    return int(store.indices[shard.start + 7]), shard.view


@pytest.mark.parametrize("holds", ["logits", "features", "maps"])
def test_recompute_names_image_and_view_of_a_wrong_row(tiny, teacher: Run, holds: str) -> None:
    """Every digest is right, so only the teacher can tell."""
    recipe = tiny(*SHORT, "export.features=true", "export.maps=true")
    folder = export_teacher(teacher, recipe, ignore)
    image, view = tamper(folder, 4, holds)
    LogitStore.open(folder)
    with pytest.raises(StoreError) as caught:
        recompute_run(teacher.folder, 10**6, seed=0)
    assert caught.value.message.count("\n") == 0
    assert f"image {image}, view {view}: the stored {holds} differ from the teacher's by" in caught.value.message


def test_recompute_sees_a_store_out_of_step(tiny, teacher: Run) -> None:
    """Rows of another view under this view's name, with digests that agree: the fault that this project is about."""
    folder = export_teacher(teacher, tiny(*SHORT), ignore)
    manifest = read_manifest(folder)
    store = LogitStore.open(folder)
    shards = []
    for number, shard in enumerate(manifest.shards):
        other = (number + manifest.shards_per_view) % len(manifest.shards)
        parts = {name: part.clone() for name, part in store._map("logits", other).tensors.items()}
        shards.append((shard.piece, parts))
    made = tuple(write_shard(folder, manifest.digest(), piece, "logits", parts) for piece, parts in shards)
    other_manifest = manifest.model_copy(update={"shards": made})
    text = json.dumps(other_manifest.model_dump(mode="json"), sort_keys=True, indent=2, ensure_ascii=False) + "\n"
    (folder / "manifest.json").write_text(text)
    with pytest.raises(StoreError, match=r"image \d+, view \d: the stored logits differ") as caught:
        recompute_run(teacher.folder, 64, seed=1)
    assert " more" in caught.value.message.splitlines()[-1]  # some views show the same pixels
    assert "drawn by seed 1" in caught.value.cure


def test_the_command_says_what_was_drawn(tiny, teacher: Run, tmp_path: Path, monkeypatch, capsys) -> None:
    export_teacher(teacher, tiny(*SHORT), ignore)

    def command(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["distill", *words])
        capsys.readouterr()
        code = run_command()
        out, err = capsys.readouterr()
        return code, out + err

    code, said = command("verify", str(teacher.folder), "--recompute", "64", "--seed", "5")
    assert code == 0
    assert "64 of 780 rows made again (seed 5): all as the teacher says, within the error of float16" in said
    code, said = command("verify", str(teacher.folder / "logits"), "--recompute", "64")
    assert code == 2
    assert "no run folder" in said
    files = len(contents(teacher.folder / "logits"))
    code, said = command("verify", str(teacher.folder / "logits"))
    assert (code, said.strip()) == (0, f"{teacher.folder / 'logits'}: sound ({files} files)")
    assert command("verify", str(teacher.folder), "--recompute", "0")[0] == 2
    begun = make_run(writable_folder(tmp_path / "elsewhere" / "begun"), teacher.recipe, kind="teacher", begun="x")
    code, said = command("verify", str(begun.folder))
    assert (code, said.strip()) == (0, f"{begun.folder}: nothing in it is finished, nothing to check")


def test_recompute_needs_an_export(teacher: Run) -> None:
    with pytest.raises(UserError, match="not exported"):
        recompute_run(teacher.folder, 4, seed=0)


@pytest.mark.parametrize("name", ["resnet8", "test_vit", "test_efficientnet", "small_resnet10t", "test_convnext"])
def test_features_are_what_the_logits_are_made_of(name: str) -> None:
    spec = fit(name, classes=7, channels=1, image_size=32)
    model = create(spec).eval()
    images = torch.randn(3, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits, features = logits_and_features(model, images)
        assert features.shape == (3, feature_width(model, images[:1]))
        assert torch.equal(logits, model(images))
        head = model.get_classifier()
        torch.testing.assert_close(head(features), logits)


def test_a_network_without_features_is_refused() -> None:
    class Plain(torch.nn.Linear):
        pass

    class Other(Plain):
        def forward_features(self, x):
            return x

        def forward_head(self, x, pre_logits=False):
            return x if pre_logits else x[:, :3]

    with pytest.raises(ModelError, match="Plain cannot give them"):
        feature_width(Plain(4, 3), torch.ones(1, 4))
    with pytest.raises(ModelError, match="gives other logits than forward"):
        feature_width(Other(4, 3), torch.ones(1, 4))


def test_weights_that_diverged_are_no_matter_of_features() -> None:
    """The export tells of logits that are NaN; to do without features would not mend them."""
    model = create(fit("resnet8", classes=7, channels=1, image_size=32)).eval()
    images = torch.ones(2, 1, 32, 32)
    width = feature_width(model, images)
    model.layer2[0].bn1.running_var.fill_(-1.0)
    assert model(images).isnan().any()
    assert feature_width(model, images) == width


def test_features_that_no_layer_is_given_are_refused() -> None:
    """DeiT's distilled form gives the mean of two tokens, and the mean of two heads, one on each."""
    model = create(fit("deit_tiny_distilled_patch16_224", classes=7, channels=1, image_size=32)).eval()
    with pytest.raises(ModelError, match="is not what one last layer is given"):
        feature_width(model, torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0)))


def test_an_export_that_cannot_be_keeps_the_store(tiny, teacher: Run, monkeypatch) -> None:
    """More logits than classes, or features that the network has not: told before the old store goes."""
    folder = export_teacher(teacher, tiny(*SHORT), ignore)
    before = contents(folder)
    many = tiny(*SHORT, "export.format=topk", "export.k=11", "student.loss.temperature=1")
    with pytest.raises(RecipeError, match=r"\[export\] k: found 11, but digits has 10 classes"):
        export_teacher(open_run(teacher.folder), many, ignore)
    assert any("k: found 11" in line for line in check_plan(many, "tiny.toml").problems)
    monkeypatch.setattr("distill.stages.export.feature_width", lambda *_: feature_width(torch.nn.Identity(), _[1]))
    with pytest.raises(ModelError, match="Identity cannot give them"):
        export_teacher(open_run(teacher.folder), tiny(*SHORT, "export.features=true"), ignore)
    assert contents(folder) == before
    assert "export" in open_run(teacher.folder).record.stages
    assert verify_path(teacher.folder) > 6


def test_an_export_keeps_what_another_process_has_recorded_since_its_run_was_opened(tiny, teacher: Run) -> None:
    """`distill calibrate`, while the export was still reading its images."""
    opened, recipe = open_run(teacher.folder), tiny(*SHORT, "export.format=int8")
    open_run(teacher.folder).add_metrics("teacher", {"test_nll_scaled": 2.5})
    export_teacher(opened, recipe, ignore)
    assert open_run(teacher.folder).metrics("teacher")["test_nll_scaled"] == 2.5


def test_check_tells_the_size_of_each_format(tiny) -> None:
    sizes = {name: check_plan(tiny(*change), "tiny.toml").plan["export"] for name, change in FORMATS.items()}
    rows = 3 * 260
    assert {name: plan["megabytes"] for name, plan in sizes.items()} == {
        "float16": round(rows * 20 / 1e6, 2),
        "float32": round(rows * 40 / 1e6, 2),
        "int8": round(rows * (18 + 2 * 64 + 2 * (64 + 16 + 4)) / 1e6, 2),
        "topk": round(rows * 16 / 1e6, 2),
    }
    assert sizes["topk"]["format"] == "topk 4"
    assert sizes["int8"]["features"] == "64 x float16"
    assert sizes["int8"]["maps"] == "8x8 4x4 2x2 float16"
    without = check_plan(tiny("teacher.model=hrnet_w18_small", "export.maps=true"), "tiny.toml").problems
    assert any("HighResolutionNet: none of its stages gives an attention map" in line for line in without)


def test_one_image_one_view(tmp_path: Path) -> None:
    """The smallest store there is, in every format."""
    index = torch.tensor([5])
    origin = cases.ORIGIN.model_copy(update={"view_count": 1})
    for change in cases.KINDS.values():
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        keep = {name: value for name, value in change.items() if name != "labels"}
        writer = cases.begin(folder, origin=origin, views=1, indices=index, **keep)
        widths = [writer.plan.width(holds) for holds in ("features", "maps")]
        beside = [torch.ones(1, width) if width else None for width in widths]
        writer.write(writer.missing()[0], torch.tensor([[1.0, 2.0, 3.0]]), *beside)
        writer.finish()
        found = LogitStore.open(folder, reconstruct=True).rows(index, torch.tensor([0]))
        assert found.argmax() == 2


def test_rows_of_mixed_and_random_views_are_made_again(tiny) -> None:
    """A view takes its partner from all stored rows, also when a few rows are made alone."""
    views = ("views.mixup=0.5", "views.cutmix=1.0", "views.erasing=0.5", "views.count=4")
    teacher, _ = run_pipeline(tiny("teacher.labels.rule=onehot", *views, *SHORT), ignore)
    assert recompute_run(teacher.folder, 40, seed=0).rows == 40


def written(folder: Path, *names: str) -> Run:
    """A run folder whose record names these files, of no network."""
    folder.mkdir()
    run = make_run(folder, parse_recipe(TINY, "tiny.toml"), kind="teacher", begun="0")
    files = {}
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        files[name] = write_bytes(folder / name, b"weights")
    run.finish("teacher", "0", {"seconds": 1.0}, files, "cpu")
    return run


def test_a_folder_beside_runs_that_may_not_be_looked_into_is_told_of(tmp_path: Path, close) -> None:
    written(tmp_path / "a", "model.safetensors")
    (tmp_path / "lost+found").mkdir()
    close(tmp_path / "lost+found")
    told: list[str] = []
    assert verify_path(tmp_path, told.append) == 1
    assert told == [f"{tmp_path / 'lost+found'}: cannot be read: Permission denied; passed over"]


@pytest.mark.parametrize("part", ["labels", "logits", "students"])
def test_a_part_of_a_run_that_may_not_be_looked_into_is_named(tmp_path: Path, close, part: str) -> None:
    run = written(tmp_path / "a", "model.safetensors", f"{part}/a", f"{part}/b")
    close(run.folder / part)
    for path in (run.folder, tmp_path):
        with pytest.raises(StoreError) as caught:
            verify_path(path)
        assert caught.value.message == f"{run.folder / part}: cannot be read: Permission denied"
        assert caught.value.cure.startswith("let yourself read what may not be read")
