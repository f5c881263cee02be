"""The students' sweep: one small family learns and comes back, and what goes wrong costs one row."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks import students
from benchmarks.families import Limits
from benchmarks.students import Row


def test_a_family_learns_and_comes_back_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (row,) = students.measure(["vision_transformer"], tmp_path, Limits())
    assert (row.refusal, row.missing, row.difference, row.losses) == ("", "", 0.0, "kd + fitnet + attention")
    assert (row.model, row.image_size, row.features, row.maps) == ("test_vit", 32, 64, "8x8, 8x8, 8x8, 8x8")
    page = students.table([row], "the command")
    assert "**1 of 1 families pass (100.0%): 1 with equal logits; 1 have features, 1 have attention maps.**" in page
    assert "| 64 | 8x8, 8x8, 8x8, 8x8 | equal |" in page
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]
    monkeypatch.setattr(students, "run_one", None)  # no further process
    assert students.measure(["vision_transformer"], tmp_path, Limits()) == [row]


def test_a_family_past_its_time_costs_one_row(tmp_path: Path) -> None:
    (row,) = students.measure(["nfnet"], tmp_path, Limits(seconds=1))
    assert row.refusal in ("stopped after 1 s of CPU time", "stopped after waiting 10 s")  # a busy machine
    assert row.counted
    assert not row.passed


def test_a_crash_costs_one_row_and_tells_its_last_line(tmp_path: Path) -> None:
    (row,) = students.measure(["unknown"], tmp_path, Limits())
    assert row.refusal.startswith("crashed with exit status 1: ValueError")


def test_a_model_that_is_too_large_is_named_and_not_run(tmp_path: Path) -> None:
    told: dict[str, object] = {}
    students.examine("vision_transformer", Limits(parameters=1000), tmp_path, told.update)
    assert told["refusal"] == "not run: larger than 0.001 M parameters"
    assert not list(tmp_path.iterdir())


def test_a_family_that_timm_does_not_have_is_refused() -> None:
    with pytest.raises(SystemExit, match="no family of timm's: resnets"):
        students.main(["--only", "resnets"])


def test_rows_of_another_commit_are_named() -> None:
    rows = [Row("a", made_with="one"), Row("b", made_with="two"), Row("c", made_with="one"), Row("d")]
    page = students.table(rows, "the command")
    assert "- Made with one.\n- Made with two: b.\n" in page


class Unnamed(nn.Module):
    """A network whose first stage has no name in `feature_info`, as in timm's TResNet."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.feature_info = [{"num_chs": 4, "module": ""}, {"num_chs": 4, "module": "conv"}]

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).mean((2, 3))


def test_a_stage_without_a_name_is_passed_over() -> None:
    images = torch.randn(2, 3, 8, 8)
    found = students.seen_inside(Unnamed(), images)
    assert found["maps"] == "6x6"


def test_the_page_counts_and_quotes() -> None:
    rows = [
        Row("a", "net", 1, 32, features=8, maps="4x4", losses="kd + fitnet + attention", difference=0.0, seconds=1.0),
        Row("b", "net", 1, 64, maps="4x4", losses="kd + attention", difference=3e-6, missing="no features: two heads"),
        Row("c", "net", 1, 32, features=8, losses="kd + fitnet", difference=0.5, missing="no maps: not | one"),
        Row("d", "net", 1, 32, refusal="not run: larger than 200 M parameters"),
        Row("e", "net", 0, 0, refusal="model 'net' does not take\n images"),
        Row("f", "net", 1, 224, features=8, losses="kd", difference=0.0, seconds=59.0),
        Row("g", "net", 1, 224, refusal="stopped after 120 s"),
    ]
    assert students.summary(rows) == (
        "3 of 5 families pass (60.0%): 2 with equal logits; 2 have features, 2 have attention maps."
    )
    page = students.table(rows, "the command")
    assert "- Refused or not run, see their notes: c, d." in page
    assert "in 60 s: e, g." in page
    assert "| no | 4x4 | 3e-06 off |  | no features: two heads |" in page
    assert "| 8 | no | 0.5 off |  | no maps: not / one |" in page
    assert "|  |  | refused |  | not counted; model 'net' does not take images |" in page
