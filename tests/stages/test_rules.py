"""Every label rule from a recipe to a teacher's files: trained, stopped within an epoch, gone on with, exported."""

from __future__ import annotations

import typing

import pytest
import torch

from distill.recipe.labels import KEPT_RULES, RULES, LabelRule
from distill.stages.export import export_teacher
from distill.stages.teacher import train_teacher
from distill.stages.verify import verify_path
from distill.store.labels import read_labels
from distill.training.interrupt import Interrupted
from tests.stages.test_resume import StopAt, ignore, same

SETTINGS: dict[str, tuple[str, ...]] = {
    "bootstrap": ("teacher.labels.warmup_epochs=1",),
    "joint": ("teacher.labels.joint.history=2",),
    "pencil": ("teacher.labels.warmup_epochs=1", "teacher.labels.pencil.mass=0.9"),
}


def test_every_rule_is_told_of() -> None:
    assert set(RULES) == set(typing.get_args(LabelRule))


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_trains_stops_goes_on_and_exports(tiny, rule: LabelRule) -> None:
    settings = (f"teacher.labels.rule={rule}", "teacher.epochs=2", "views.count=1", *SETTINGS.get(rule, ()))
    whole = train_teacher(tiny("name=whole", *settings), ignore)
    recipe = tiny("name=stopped", *settings)
    with pytest.raises(Interrupted):
        train_teacher(recipe, StopAt("teacher", 1, 2))
    run = train_teacher(recipe, ignore)
    export_teacher(run, recipe, ignore)
    assert verify_path(run.folder) > 0
    for name in ("model.safetensors", "labels/labels.safetensors"):
        if (run.folder / name).exists() or (whole.folder / name).exists():
            assert same(whole.folder / name, run.folder / name)
    assert (run.folder / "labels").exists() == (rule in KEPT_RULES)
    metrics = run.record.stages["teacher"].metrics
    assert ("labels_right" in metrics) == (rule in KEPT_RULES)
    if rule in KEPT_RULES:
        labels = read_labels(run.folder / "labels")
        assert labels.kind == ("class" if rule in ("class", "online-smoothing") else "instance")
        assert labels.touched.any()
        start = torch.eye(labels.labels.shape[1])[labels.given]
        assert not torch.equal(labels.labels[labels.touched], start[labels.touched])
