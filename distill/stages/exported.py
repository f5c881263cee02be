"""A finished student's network as one file for other programs: ONNX, or torch's own `torch.export`.

The file is run at several batch sizes against the network that timm reads from the run folder, before it gets its name:
one that answers otherwise is never left behind. Nothing of the training is in it: images in, logits out.
"""

from __future__ import annotations

import io
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

import timm
import torch
from torch import Tensor, nn

from distill.errors import RunError
from distill.models import zoo
from distill.recipe.digest import digest
from distill.report.lock import locked, waiting
from distill.report.runs import WEIGHTS, Run
from distill.store.atomic import is_temporary, mendable, sha256_of, writable_folder, write_bytes
from distill.store.json_files import read_json, write_json
from distill.store.manifest import installed_versions
from distill.training.device import describe_device

Kind: TypeAlias = Literal["onnx", "torch-export"]
Network: TypeAlias = Callable[[Tensor], Tensor]
"""Images [B, ch, H, W] -> logits [B, C], float32 on the CPU."""

EXPORTED = "exported"
TOLERANCE = 1e-4  # of the largest logit; float32 in another order of sums differs by some 1e-6
BATCH_SIZES = (1, 2, 7)
_FILES: dict[Kind, str] = {"onnx": "model.onnx", "torch-export": "model.pt2"}
_READ = ("config.json", WEIGHTS)  # what timm reads
_EXTRA = ("onnx", "onnxruntime", "onnxscript")

# timm's `local-dir:` finds the architectures of this package once they are registered, which importing `zoo` does.
assert zoo


@dataclass(frozen=True)
class Exported:
    """A network's file, and what was found about it.

    Attributes:
        path: the file.
        kind: what it is.
        largest_difference: to the logits of the student that timm reads, over the largest logit.
        metadata: the JSON beside it: classes, normalisation, shapes, digests, versions.
        skipped: it was there already, made from these weights.
    """

    path: Path
    kind: Kind
    largest_difference: float
    metadata: Path
    skipped: bool = False

    def __str__(self) -> str:
        sizes = ", ".join(map(str, BATCH_SIZES))
        done = "already exported" if self.skipped else "exported"
        differ = f"logits differ by at most {self.largest_difference:.1e} of the largest (batches of {sizes})"
        return f"{done} ({self.kind}): {self.path}; {differ}"


def export_student(run: Run, kind: Kind) -> Exported:
    """Writes a finished student's network to `exported/` in its run folder and records it there.

    The batch size is left open; channels, height and width are the images'. A file that was made from the same weights,
    and is as it was written, is not made again.

    Args:
        run: a student's run folder.
        kind: `onnx` needs the packages of `distill[onnx]`; `torch-export` needs nothing.

    Raises:
        RunError: no finished student, its files were changed, a package is missing, the network cannot be exported, or
            the exported one gives other logits.
        StoreError: the file cannot be written.
    """
    require(kind)
    made_from = _student_files(run)
    stage, wanted = stage_name(kind), _digest(kind, made_from)
    folder = run.folder / EXPORTED
    path, metadata = folder / _FILES[kind], folder / f"{_FILES[kind]}.json"
    with locked(run.folder):
        run.reread()
        if run.done(stage, wanted) and _is_whole(run, stage):
            difference = run.metrics(stage)["largest_difference"]
            return Exported(path, kind, difference, metadata, skipped=True)
        began = time.monotonic()
        run.forget(stage)
        _sweep(writable_folder(folder), path, metadata)
        config = read_json(run.folder / "config.json")
        shape = _input_shape(run, config)
        content = _encode(kind, run, _load(run, exportable=True), shape)
        difference = _largest_difference(_load(run), _decode(kind, content), shape, path)
        sha256 = {path.name: write_bytes(path, content)}
        facts = _facts(kind, config, shape, made_from | sha256, difference)
        sha256[metadata.name] = write_json(metadata, facts)
        metrics = {"largest_difference": difference, "megabytes": len(content) / 1e6}
        metrics["seconds"] = time.monotonic() - began
        files = {f"{EXPORTED}/{name}": value for name, value in sha256.items()}
        run.finish(stage, wanted, metrics, files, describe_device(torch.device("cpu")))
    return Exported(path, kind, difference, metadata)


def stage_name(kind: Kind) -> str:
    """Under what it stands in run.json."""
    return f"exported-{kind}"


def outdated(run: Run) -> list[str]:
    """A sentence for each exported network that was made from other weights than the run folder's."""
    made_from = {name: sha256 for stage in run.record.stages.values() for name, sha256 in stage.files.items()}
    return [
        f"{run.folder / EXPORTED / file}: was made from other weights than {run.folder / WEIGHTS}"
        for kind, file in _FILES.items()
        if (record := run.record.stages.get(stage_name(kind)))
        and record.digest != _digest(kind, {name: made_from.get(name, "") for name in _READ})
    ]


def _digest(kind: Kind, made_from: dict[str, str]) -> str:
    return digest({"kind": kind, "made from": made_from})


def require(kind: Kind) -> None:
    """That the packages which this kind needs are there.

    Raises:
        RunError: they are not.
    """
    missing = [name for name in _EXTRA if find_spec(name) is None] if kind == "onnx" else []
    if missing:
        raise RunError(
            f"the export to ONNX needs {', '.join(missing)}",
            cure="run `pip install onnx onnxruntime onnxscript`, or export with torch-export, which needs no more.",
        )


def _student_files(run: Run) -> dict[str, str]:
    """sha256 of what timm reads, by name, after making sure that it is what the student wrote."""
    if run.record.kind != "student":
        raise RunError(
            f"{run.folder}: this is a teacher; only students are exported for other programs",
            cure=f"name one of its students: {run.folder / 'students'}.",
        )
    record = run.record.stages.get("student")
    if record is None:
        teacher = run.folder.resolve().parents[1]
        cure = f"{waiting(run.folder)}run `distill student --teacher {teacher}`."
        raise RunError(f"{run.folder}: its student is not finished", cure=cure)
    for name in _READ:
        path = run.folder / name
        if not path.is_file() or sha256_of(path) != record.files.get(name):
            found = "sha256 differs from what the student wrote" if path.is_file() else "missing; the student wrote it"
            raise RunError(f"{path}: {found}", cure="restore the file; or delete it and train the student again.")
    return {name: record.files[name] for name in _READ}


def _is_whole(run: Run, stage: str) -> bool:
    return all(sha256_of(run.folder / name) == sha256 for name, sha256 in run.record.stages[stage].files.items())


def _sweep(folder: Path, *old: Path) -> None:
    """Removes the files that are about to be made again, and what killed writes left over."""
    for path in folder.iterdir():
        if path in old or is_temporary(path.name):
            try:
                path.unlink()
            except OSError as error:
                raise mendable(path, "removed", error) from error


def _input_shape(run: Run, config: Any) -> tuple[int, int, int]:
    """Channels, height, width."""
    try:
        channels, height, width = (int(side) for side in config["pretrained_cfg"]["input_size"])
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{run.folder / 'config.json'}: names no input_size", cure="train the student again.") from error
    return channels, height, width


def _load(run: Run, *, exportable: bool = False) -> nn.Module:
    """The student in eval mode, as timm reads it; `exportable`: without what only speeds up training."""
    model: nn.Module = timm.create_model(f"local-dir:{run.folder}", pretrained=True, exportable=exportable)
    return model.float().eval()


def _images(count: int, shape: tuple[int, int, int], seed: int) -> Tensor:
    """Normalised noise [count, ch, H, W], the same every time."""
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def _encode(kind: Kind, run: Run, model: nn.Module, shape: tuple[int, int, int]) -> bytes:
    """The file's content."""
    example = (_images(2, shape, seed=0),)
    dynamic = ({0: torch.export.Dim("batch", min=1)},)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's and onnxscript's own innards
            if kind == "torch-export":
                file = io.BytesIO()
                torch.export.save(torch.export.export(model, example, dynamic_shapes=dynamic), file)
                return file.getvalue()
            program = torch.onnx.export(
                model,
                example,
                dynamo=True,
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes=dynamic,
                verbose=False,
            )
            assert program is not None
            return bytes(program.model_proto.SerializeToString())
    except Exception as error:  # whatever the network makes torch, onnxscript or protobuf stumble over
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")
        raise RunError(
            f"{run.folder}: {kind} cannot express this network for any batch size: {type(error).__name__}: {reason}",
            cure="try the other kind (onnx or torch-export), or another student model.",
        ) from error


def _decode(kind: Kind, content: bytes) -> Network:
    """What a file of this content computes."""
    if kind == "torch-export":
        return cast(Network, torch.export.load(io.BytesIO(content)).module())
    import onnxruntime  # an optional package

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


@torch.no_grad()
def _largest_difference(original: Network, exported: Network, shape: tuple[int, int, int], path: Path) -> float:
    """Over the largest logit of all batches.

    Raises:
        RunError: it is above the tolerance, or a logit is not finite.
    """
    largest = scale = 0.0
    for size in BATCH_SIZES:
        images = _images(size, shape, seed=size)
        expected = original(images)
        found = exported(images)
        if found.shape != expected.shape or not (expected.isfinite().all() and found.isfinite().all()):
            raise RunError(
                f"{path}: not written: for {size} images the student gives logits {list(expected.shape)}, the exported "
                f"network {list(found.shape)}, or they are not finite",
                cure="try the other kind (onnx or torch-export).",
            )
        largest = max(largest, float((found - expected).abs().max()))
        scale = max(scale, float(expected.abs().max()))
    difference = largest / scale if scale else largest
    if difference > TOLERANCE:
        raise RunError(
            f"{path}: not written: its logits differ from the student's by {difference:.1e} of the largest, "
            f"at most {TOLERANCE:.0e} is accepted",
            cure="try the other kind (onnx or torch-export), or other versions of torch and onnx.",
        )
    return difference


def _facts(
    kind: Kind, config: Any, shape: tuple[int, int, int], sha256: dict[str, str], difference: float
) -> dict[str, Any]:
    """What a program that runs the file has to know."""
    cfg = config["pretrained_cfg"]
    packages = {name: version(name) for name in _EXTRA} if kind == "onnx" else {}
    return {
        "schema_version": 1,
        "kind": kind,
        "architecture": config["architecture"],
        "class_names": config["label_names"],
        "input": {
            "name": "images",
            "dtype": "float32",
            "shape": ["batch", *shape],
            "mean": cfg["mean"],
            "std": cfg["std"],
            "is": "(pixels / 255 - mean) / std, channel by channel",
        },
        "output": {"name": "logits", "dtype": "float32", "shape": ["batch", config["num_classes"]]},
        "sha256": sha256,
        "largest_difference": difference,
        "tolerance": TOLERANCE,
        "batch_sizes": list(BATCH_SIZES),
        "versions": {**installed_versions(), **packages},
    }
