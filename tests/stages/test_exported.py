"""A student's network as one file: what it answers, what is said about it, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from distill.errors import RunError, StoreError
from distill.models import zoo
from distill.recipe.schema import Recipe
from distill.report.runs import Run, make_run, open_run
from distill.stages import exported
from distill.stages.exported import EXPORTED, Kind, export_student
from distill.stages.pipeline import run_pipeline
from distill.stages.verify import verify_path
from distill.store.atomic import sha256_of, write_bytes

NAMES = ["ant", "bee", "cat"]
FILES: dict[Kind, str] = {"onnx": "model.onnx", "torch-export": "model.pt2"}


@pytest.fixture(params=["torch-export", "onnx"])
def kind(request: pytest.FixtureRequest) -> Any:
    if request.param == "onnx":
        for package in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(package, reason="the extra `onnx` is not installed")
    return request.param


@pytest.fixture
def student(tmp_path: Path, tiny: Callable[..., Recipe]) -> Callable[..., Run]:
    """A finished student of any architecture, its statistics of batches not those that it began with."""

    def make(name: str = "resnet8", side: int = 8, channels: int = 1) -> Run:
        folder = tmp_path / "teacher" / "students" / name
        torch.manual_seed(0)
        if name == "enlarged":
            inside = {"base": "test_efficientnet", "size": 32, "num_classes": 3, "in_chans": channels}
            spec = zoo.ModelSpec(name, name, inside, side, channels, 3)
        else:
            spec = zoo.fit(name, classes=3, channels=channels, image_size=side)
        model = zoo.create(spec).train()
        with torch.no_grad():
            for _ in range(3):
                model(torch.randn(8, channels, side, side) * 2 + 1)
        zoo.save_for_timm(
            model, spec, folder, class_names=NAMES, mean=[0.25] * channels, std=[0.5] * channels, write=write_bytes
        )
        run = make_run(folder, tiny(), kind="student", begun="d")
        files = {name: sha256_of(folder / name) for name in ("config.json", "model.safetensors")}
        run.finish("student", "d", {"seconds": 1.0, "test_accuracy": 0.5}, files, "cpu")
        return run

    return make


def run_file(path: Path, images: torch.Tensor) -> torch.Tensor:
    """What another program would do."""
    if path.suffix == ".pt2":
        return torch.export.load(path).module()(images).detach()
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


@pytest.mark.parametrize(
    ("name", "side", "channels"),
    [
        ("resnet8", 8, 1),
        ("test_vit", 32, 3),
        ("enlarged", 12, 1),
        pytest.param("test_efficientnet", 32, 3, marks=pytest.mark.slow),
        pytest.param("mobilenetv3_small_050", 28, 1, marks=pytest.mark.slow),
        pytest.param("resnet10t", 16, 3, marks=pytest.mark.slow),  # as small_resnet10t
    ],
)
def test_answers_as_timm_does_for_any_batch(
    student: Callable[..., Run], kind: Kind, name: str, side: int, channels: int
) -> None:
    run = student(name, side, channels)
    result = export_student(run, kind)
    assert result.path == run.folder / EXPORTED / FILES[kind]
    assert result.largest_difference < 1e-5
    assert not result.skipped
    model = timm.create_model(f"local-dir:{run.folder}", pretrained=True).eval()
    for size in (1, 3, 16):
        images = torch.randn(size, channels, side, side)
        with torch.no_grad():
            torch.testing.assert_close(run_file(result.path, images), model(images), atol=1e-4, rtol=1e-4)
    assert sorted(path.name for path in result.path.parent.iterdir()) == [FILES[kind], f"{FILES[kind]}.json"]


def test_what_is_said_about_it(student: Callable[..., Run], kind: Kind) -> None:
    run = student()
    result = export_student(run, kind)
    said = json.loads(result.metadata.read_text())
    assert said["class_names"] == NAMES
    assert said["input"]["shape"] == ["batch", 1, 8, 8]
    assert (said["input"]["mean"], said["input"]["std"]) == ([0.25], [0.5])
    assert said["output"]["shape"] == ["batch", 3]
    files = (run.folder / "model.safetensors", run.folder / "config.json", result.path)
    assert said["sha256"] == {file.name: sha256_of(file) for file in files}
    assert said["largest_difference"] == result.largest_difference <= said["tolerance"]
    assert ("onnxruntime" in said["versions"]) == (kind == "onnx")
    assert str(result.path) in str(result)


def test_is_made_once_and_again_when_it_is_damaged(student: Callable[..., Run]) -> None:
    run = student()
    first = export_student(run, "torch-export")
    before = first.path.stat().st_mtime_ns
    again = export_student(open_run(run.folder), "torch-export")
    assert again.skipped
    assert first.path.stat().st_mtime_ns == before
    assert again.largest_difference == first.largest_difference
    first.path.write_bytes(b"damaged")
    assert not export_student(run, "torch-export").skipped
    assert verify_path(run.folder) == 4


def test_keeps_what_another_process_has_recorded_since_the_run_was_opened(student: Callable[..., Run]) -> None:
    run = student()
    open_run(run.folder).add_metrics("student", {"test_nll_scaled": 2.5})
    export_student(run, "torch-export")
    assert open_run(run.folder).metrics("student")["test_nll_scaled"] == 2.5


def test_verify_notices_a_damaged_file_and_other_weights(student: Callable[..., Run]) -> None:
    run = student()
    result = export_student(run, "torch-export")
    content = bytearray(result.path.read_bytes())
    content[len(content) // 2] ^= 1
    whole = result.path.read_bytes()
    result.path.write_bytes(content)
    with pytest.raises(StoreError, match=r"model\.pt2: sha256 differs from what exported-torch-export wrote"):
        verify_path(run.folder)
    result.path.write_bytes(whole)
    files = {**run.record.stages["student"].files, "model.safetensors": "0" * 64}
    run.finish("student", "e", {"seconds": 1.0}, files, "cpu")
    with pytest.raises(StoreError, match=r"model\.pt2: was made from other weights"):
        verify_path(run.folder)


def test_one_that_answers_otherwise_is_not_left_behind(
    student: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = student()
    export_student(run, "torch-export").path.write_bytes(b"old")
    decode = exported._decode

    def wrong(kind: Kind, content: bytes) -> exported.Network:
        network = decode(kind, content)
        return lambda images: network(images) + 1e-2

    monkeypatch.setattr(exported, "_decode", wrong)
    with pytest.raises(RunError, match=r"not written: its logits differ .* at most 1e-04"):
        export_student(run, "torch-export")
    assert not list((run.folder / EXPORTED).iterdir())
    assert list(open_run(run.folder).record.stages) == ["student"]
    monkeypatch.setattr(exported, "_decode", lambda kind, content: lambda images: decode(kind, content)(images[:1]))
    with pytest.raises(RunError, match=r"for 2 images the student gives logits \[2, 3\]"):
        export_student(run, "torch-export")


def test_a_network_that_cannot_be_expressed(student: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    run = student()
    load = exported._load

    class Branches(torch.nn.Module):
        def __init__(self, inner: torch.nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.inner(images)
            return logits if float(logits.sum()) > 0 else -logits

    monkeypatch.setattr(exported, "_load", lambda run, exportable=False: Branches(load(run)).eval())
    with pytest.raises(RunError, match="torch-export cannot express this network") as caught:
        export_student(run, "torch-export")
    assert "another student model" in caught.value.cure


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_damaged_weights(student: Callable[..., Run], name: str) -> None:
    run = student()
    path = run.folder / name
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(RunError, match=f"{name}: sha256 differs from what the student wrote"):
        export_student(run, "torch-export")
    path.unlink()
    with pytest.raises(RunError, match=f"{name}: missing"):
        export_student(run, "torch-export")
    assert not (run.folder / EXPORTED).exists()


def test_no_finished_student(tmp_path: Path, tiny: Callable[..., Recipe]) -> None:
    (tmp_path / "t" / "students" / "s").mkdir(parents=True)
    teacher = make_run(tmp_path / "t", tiny(), kind="teacher", begun="d")
    with pytest.raises(RunError, match="this is a teacher") as caught:
        export_student(teacher, "torch-export")
    assert str(tmp_path / "t" / "students") in caught.value.cure
    begun = make_run(tmp_path / "t" / "students" / "s", tiny(), kind="student", begun="d")
    with pytest.raises(RunError, match="not finished") as caught:
        export_student(begun, "torch-export")
    assert f"--teacher {tmp_path / 't'}" in caught.value.cure


def test_missing_packages(student: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    run = student()
    monkeypatch.setattr(exported, "find_spec", lambda name: None if name == "onnxscript" else object())
    with pytest.raises(RunError, match="ONNX needs onnxscript") as caught:
        export_student(run, "onnx")
    assert "pip install onnx onnxruntime onnxscript" in caught.value.cure
    assert not (run.folder / EXPORTED).exists()


def test_a_student_that_was_trained(tiny: Callable[..., Recipe], kind: Kind) -> None:
    teacher, run = run_pipeline(tiny("teacher.epochs=1", "student.epochs=1"), lambda event: None)
    before = verify_path(teacher.folder)
    result = export_student(run, kind)
    assert result.largest_difference < 1e-5
    assert verify_path(teacher.folder) == before + 2
