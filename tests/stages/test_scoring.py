"""When the test part is scored: after every epoch, or once at the end, with the same results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distill.stages.pipeline import run_pipeline
from distill.training.events import Event


def ignore(event: Event) -> None:
    pass


def epochs(folder: Path) -> list[dict[str, float]]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line["metrics"] for line in lines if line["event"] == "epoch"]


@pytest.mark.parametrize("validation", [60, 0])
def test_seldom_scored_runs_report_the_same(tiny, validation: int) -> None:
    settings = ("teacher.epochs=6", "student.epochs=5", "student.patience=2" if validation else "student.patience=0")
    settings = (*settings, f"data.validation={validation}", "teacher.optimizer.lr=0.4")
    each = run_pipeline(tiny("name=each", *settings), ignore)
    seldom_settings = ("teacher.test_every_epoch=false", "student.test_every_epoch=false")
    seldom = run_pipeline(tiny("name=seldom", *settings, *seldom_settings), ignore)
    for one, other, stage in zip(each, seldom, ("teacher", "student"), strict=True):
        expected, found = dict(one.metrics(stage)), dict(other.metrics(stage))
        assert found == expected
        every, some = epochs(one.folder), epochs(other.folder)
        assert all("test_accuracy" in metrics for metrics in every)
        assert len(some) == len(every)
        assert ["test_accuracy" in metrics for metrics in some] == [False] * (len(some) - 1) + [True]
