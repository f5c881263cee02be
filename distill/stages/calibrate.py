"""`distill calibrate`: temperature scaling of networks that were finished before it was measured of every network."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from distill.data.loader import ImageData, open_data
from distill.errors import RunError, UserError
from distill.models import zoo
from distill.report.lock import locked
from distill.report.runs import RECORD, WEIGHTS, Run, open_run
from distill.stages.common import after_scaling, as_teacher_sees, evaluator, model_spec
from distill.stages.student import STUDENTS
from distill.store.atomic import mendable, sha256_of
from distill.store.checkpoint import load_weights
from distill.training.device import prepare_device
from distill.training.events import Listener, Notice, files_read
from distill.training.scaling import LEAST_WRONG

_LAST = "last.safetensors"  # the last epoch's weights, where the others are the best one's
# What the recorded scores may differ by when they are made again, as another machine adds in another order.
_ACCURACY, _NLL, _IMAGES = 0.002, 0.01, 1.5


@dataclass(frozen=True)
class Calibrated:
    """A network of the last epoch before and after temperature scaling."""

    run: Path
    metrics: Mapping[str, float]

    def record(self) -> dict[str, Any]:
        """For `--json`."""
        return {"run": str(self.run), **self.metrics}


def calibrate(folder: Path, listener: Listener) -> list[Calibrated]:
    """Fits a temperature for each finished network in a folder and records it, where that was not done before.

    Args:
        folder: a run, whose students are looked at too, or a folder of runs, such as a comparison's.
        listener: told of each network that is measured.

    Raises:
        RunError: no finished network is there, or some could not be measured or not be looked for; the others are
            measured by then.
    """
    found: list[Calibrated] = []
    if not folder.is_dir():
        raise RunError(f"{folder}: no such folder", cure="name a run or a folder of runs.")
    runs, problems = _runs_in(folder, listener)
    for run in runs:
        try:
            found += _of_run(run, listener)
        except UserError as error:
            problems.append(" -> ".join(part for part in (error.message, error.cure) if part))
    if not found and not problems:
        raise _none_of(folder, runs)
    if problems:
        whole = len(found) + len(problems)
        raise RunError("\n".join(problems), cure=f"mend these; {len(found)} of {whole} have their temperature.")
    return found


def _runs_in(folder: Path, listener: Listener) -> tuple[list[Path], list[str]]:
    """The runs at any depth, and what is wrong: students that may not be looked for.

    Args:
        folder: where to look.
        listener: told of folders beside runs that may not be looked into: lost+found, say.
    """
    runs: list[Path] = []
    closed: list[OSError] = []
    for place, _, files in os.walk(folder, onerror=closed.append):  # Path.rglob passes over such folders in silence
        if RECORD in files:
            runs.append(Path(place))
    problems = []
    for error in closed:
        path = Path(error.filename)
        refused = mendable(path, "read", error)
        way = {path, *path.parents}
        if path == folder or any(run / STUDENTS in way for run in runs):
            problems.append(f"{refused.message} -> {refused.cure}")
        elif way.isdisjoint(runs):  # no other part of a run holds networks
            listener(Notice(f"warning: {refused.message}; passed over"))
    return sorted(runs), problems


def _none_of(folder: Path, runs: Sequence[Path]) -> RunError:
    """That none of a folder's runs has a temperature; why a finished one has not was told."""
    if not runs:
        return RunError(f"{folder}: no run is there", cure="name a run or a folder of runs.")
    finished = sum(run.record.kind in run.record.stages for run in map(open_run, runs))
    return RunError(
        f"{folder}: no finished network that has a temperature; of its {len(runs)} runs {finished} are finished",
        cure="let validation have more images, or harder ones, and train again."
        if finished
        else "finish them first: the command that began a run goes on with it.",
    )


def _of_run(folder: Path, listener: Listener) -> Iterator[Calibrated]:
    """None where the network is not finished, or nothing can be fitted: neither is a mistake."""
    run = open_run(folder)
    stage = run.record.kind
    if stage not in run.record.stages:
        return
    if "scaling_temperature" not in run.metrics(stage):
        with locked(folder):
            run = open_run(folder)  # as it is now that nobody else writes it
            measured = _measured(run, listener)
            if not measured:
                listener(Notice(f"{folder}: no temperature: {_why_none(run, stage)}"))
                return
            run.add_metrics(stage, measured)
        listener(Notice(f"{folder}: temperature {measured['scaling_temperature']:.3f}"))
    names = ("scaling_temperature", "test_nll", "test_nll_scaled", "test_ece", "test_ece_scaled")
    yield Calibrated(folder, {name: value for name in names if (value := run.metrics(stage).get(name)) is not None})


def _why_none(run: Run, stage: str) -> str:
    """What a finished network lacks for a temperature."""
    if "validation_accuracy" not in run.metrics(stage):
        return "it has no validation images to fit one on"
    return f"fewer than {LEAST_WRONG} of its validation images are answered wrongly, too few to fit one on"


def _measured(run: Run, listener: Listener) -> dict[str, float]:
    """The scores after scaling, once those before came out as they were recorded; none where nothing can be fitted."""
    recipe, stage = run.recipe, run.record.kind
    weights = _weights(run)
    device = prepare_device(recipe)
    data = open_data(recipe, progress=files_read(listener))
    seen = as_teacher_sees(data, recipe) if stage == "teacher" else data
    model = zoo.create(model_spec(recipe.teacher if stage == "teacher" else recipe.student, seen, stage))
    load_weights(weights, model)
    model = model.to(device).eval()
    _refuse_others(run, model, seen, device)
    return after_scaling(model, seen, device, recipe.export.batch_size)


def _weights(run: Run) -> Path:
    """The last epoch's weights.

    Raises:
        RunError: they are not what the stage wrote.
    """
    files = run.record.stages[run.record.kind].files
    name = _LAST if _LAST in files else WEIGHTS
    path = run.folder / name
    if not path.is_file() or sha256_of(path) != files[name]:
        reason = "sha256 differs from what was written" if path.is_file() else "missing"
        raise RunError(f"{path}: {reason}", cure="restore the file; or delete it and train again.")
    return path


def _refuse_others(run: Run, model: nn.Module, data: ImageData, device: torch.device) -> None:
    """That the data are those of the training: its scores have to come again.

    Raises:
        RunError: they do not.
    """
    judge, recorded = evaluator(data, device, run.recipe.export.batch_size), run.metrics(run.record.kind)
    for part in ("validation", "test"):
        scores = judge(model, part)
        again = scores.named(part)
        accuracy, nll = f"{part}_accuracy", f"{part}_nll"
        if accuracy not in recorded:
            continue
        nearly = math.isclose(again[nll], recorded[nll], rel_tol=_NLL, abs_tol=_NLL)
        most = max(_ACCURACY, _IMAGES / max(1, scores.count))
        if abs(again[accuracy] - recorded[accuracy]) > most or not nearly:
            raise RunError(
                f"{run.folder}: {part} accuracy is {again[accuracy]:.4f} and NLL {again[nll]:.4f}, recorded are "
                f"{recorded[accuracy]:.4f} and {recorded[nll]:.4f}",
                cure="its data or its recipe.toml are not those that it was trained with: put back what was changed.",
            )
