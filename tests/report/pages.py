"""Comparisons with made-up numbers, and run folders that hold what a page reads from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from distill.recipe.grid import UNTRAINED, Cell
from distill.report.comparison import Comparison
from distill.report.curves import CellCurves
from distill.report.results import CellResult
from distill.report.runs import Run, RunRecord, StageRecord
from distill.store.atomic import sha256_of, writable_folder
from distill.store.bins import write_bins
from distill.store.json_files import write_json
from tests.report.made import METRICS, made

TEACHERS = "compare.teachers=onehot,smoothing,class,instance,class+instance"
HOSTILE = "<script>alert(1)</script>\"'&\u202e\ud800\x00"
LARGE = (TEACHERS, "compare.seeds=0,1,2,3,4", "compare.temperatures=1,2,4,8", "compare.controls=true")
_GAIN = {"onehot": 0.0, "smoothing": 0.004, "class": 0.001, "instance": 0.022, "class+instance": 0.018, UNTRAINED: -0.4}
PROVENANCE: dict[str, Any] = {
    "commit": "0123456789ab",
    "digest": "ab" * 32,
    "finished": "2026-01-02T03:04:05+00:00",
    "machine": {"device": "cpu: 1 threads", "platform": "Linux"},
    "versions": {"torch": "2.9.0", "timm": "1.0.31"},
}


def metrics(cell: Cell) -> Mapping[str, float]:
    """Plausible ones: seeds are alike across arms, students are best at T 4, and learned labels gain two points."""
    source = np.random.default_rng([cell.seed, cell.number])
    common = float(np.random.default_rng(cell.seed).normal(0, 0.006))
    curve = 0.0 if cell.temperature is None else -0.004 * abs(float(np.log2(cell.temperature)) - 2)
    accuracy = 0.88 + _GAIN.get(cell.arm, 0.0) + common + curve + float(source.normal(0, 0.003))
    learned = {"labels_right": 0.93, "labels_moved": 0.27} if "stance" in cell.arm else {}
    answers = {"answers_entropy": 0.21, "answers_right": 0.91, "answers_repeated": 0.04, "answers_separation": 0.83}
    told = answers if cell.kind == "teacher" else {"agreement": 0.9, "teacher_kl": 0.12}
    fixed = {name: METRICS[name] for name in ("best_epoch", "given_right")}
    return {
        **fixed,
        **learned,
        **told,
        "test_accuracy": accuracy,
        "best_test_accuracy": accuracy + 0.002,
        "validation_accuracy": accuracy + float(source.normal(0, 0.002)),
        "test_nll": 0.4 - _GAIN.get(cell.arm, 0.0),
        "test_ece": 0.03,
        "scaling_temperature": 0.71,
        "test_nll_scaled": 0.36 - _GAIN.get(cell.arm, 0.0),
        "test_ece_scaled": 0.012,
    }


def curves(cell: Cell) -> CellCurves:
    """Of twelve epochs: accuracy comes up, and labels that are for images become right."""
    source = np.random.default_rng([cell.seed, cell.number, 1])
    end = metrics(cell)["validation_accuracy"]
    accuracy = tuple(end - 0.4 * float(np.exp(-epoch / 3)) + float(source.normal(0, 0.01)) for epoch in range(1, 13))
    right = {"labels_right": tuple(0.7 + 0.02 * epoch for epoch in range(12))} if "stance" in cell.arm else {}
    return {"validation_accuracy": accuracy, **right}


def with_runs(
    comparison: Comparison, folder: Path, names: Sequence[str] = tuple("0123456789"), *, bins: bool = True
) -> Comparison:
    """The comparison, with run folders in `folder`: bins of every cell, labels of the teachers that learn them."""
    results = []
    for result in comparison.results:
        if result.state == "finished":
            place = writable_folder(folder / result.run)
            own = _write_bins(place, result.cell) if bins else {}
            if result.cell.kind == "teacher" and result.cell.seed == 0:
                learned = "stance" in result.cell.arm
                _write_run(place, comparison, _write_labels(place, result.cell.number, names) if learned else {})
            result = replace(result, metrics={**result.metrics, **own}, provenance=PROVENANCE, seconds=61.5)
        results.append(result)
    return Comparison(comparison.recipe, tuple(results))


def large(folder: Path) -> Comparison:
    """Five arms, five seeds, four temperatures, controls; one cell failed, one is missing."""
    missing = ["smoothing-s4-kd-T8", "class-s4-kd-T8"]
    return with_runs(made(*LARGE, metrics=metrics, missing=missing, curves=curves), folder)


def hostile(folder: Path) -> Comparison:
    """One whose names, reasons and provenance try to get out of the text."""
    found = with_runs(made("compare.temperatures=1,4", metrics=metrics), folder)
    names = dict(zip(found.recipe.compare.names, (f"{HOSTILE}0", f"{HOSTILE}1"), strict=True))
    arms = dict.fromkeys(names.values(), (f"data.root={HOSTILE}",))
    compare = found.recipe.compare.model_copy(update={"arms": arms})
    recipe = found.recipe.model_copy(update={"name": HOSTILE, "compare": compare})
    results = [
        replace(each, cell=replace(each.cell, arm=names[each.cell.arm], loss=each.cell.loss and HOSTILE))
        for each in found.results
    ]
    results[0] = CellResult(results[0].cell, "failed", f"</li>{HOSTILE}")
    results[1] = replace(results[1], provenance={"commit": HOSTILE, "versions": {HOSTILE: HOSTILE}, "digest": HOSTILE})
    return Comparison(recipe, tuple(results))


def _write_bins(folder: Path, cell: Cell) -> dict[str, float]:
    """Bins of 2,000 images that are right as often as `metrics` says, and the metrics that they make."""
    source = np.random.default_rng(cell.number)
    sure = np.linspace(1, 15, 15) / 15 - 1 / 30
    count = source.multinomial(2000, sure**4 / (sure**4).sum())
    right = source.binomial(count, np.clip(sure + source.normal(0, 0.03), 0, 1))
    wanted = round(metrics(cell)["test_accuracy"] * count.sum())
    for k in reversed(range(len(right))):  # the rest goes into the surest bins
        right[k] = np.clip(right[k] + wanted - right.sum(), 0, count[k])
    confidence = count * sure
    write_bins(folder, count.tolist(), confidence.tolist(), right.tolist())
    ece = float(np.abs(confidence - right).sum() / count.sum())
    return {"test_ece": ece, "test_accuracy": float(right.sum() / count.sum())}


def _write_labels(folder: Path, seed: int, names: Sequence[str]) -> dict[str, str]:
    """A table that has learned something; its sha256 by path."""
    source, classes = np.random.default_rng(seed), len(names)
    given = np.repeat(np.arange(classes), 20)
    table = source.dirichlet(np.full(classes, 0.05), len(given)).astype(np.float32) * 0.3
    table[np.arange(len(given)), given] += 0.7
    path = writable_folder(folder / "labels") / "labels.safetensors"
    save_file({"averaged": table, "given": given.astype(np.int64)}, path)
    return {"labels/labels.safetensors": sha256_of(path)}


def _write_run(folder: Path, comparison: Comparison, files: Mapping[str, str]) -> None:
    """A finished teacher's record."""
    stage = StageRecord(
        digest="0",
        seconds=1.0,
        finished="",
        metrics={},
        commit="",
        versions={},
        machine={},
        files={"model.safetensors": "0", **files},
    )
    record = RunRecord(kind="teacher", name="r", seed=0, created="", begun="0", stages={"teacher": stage})
    Run(folder, comparison.recipe, record).keep_recipe(comparison.recipe)
    write_json(folder / "run.json", record.model_dump(mode="json"))
