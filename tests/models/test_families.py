"""One model of each timm family: does it fit small images, does it train on them, and can its labels be learned?"""

import gc
from pathlib import Path

import pytest
import torch

from benchmarks import families
from benchmarks.families import Limits, Row
from distill.errors import ModelError
from distill.models import zoo

_TRAINED_UP_TO = 90_000_000
_TINY = ["nfnet", "vision_transformer"]


def _outcome(name: str, side: int, channels: int) -> tuple[bool, str]:
    try:
        spec = zoo.fit(name, classes=10, channels=channels, image_size=side)
    except ModelError as error:
        return False, error.message.splitlines()[0]
    size = zoo.parameter_count(spec)
    told = f"{size / 1e6:7.2f} M  {spec.architecture} {spec.arguments}"
    if size > _TRAINED_UP_TO:
        return True, f"{told} (not trained: large)"
    logits = zoo.create(spec).train()(torch.randn(2, channels, side, side))
    assert logits.shape == (2, 10)
    logits.square().mean().backward()
    return True, told


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("side", "channels"), [(32, 3), (28, 1)])
def test_nine_families_in_ten_fit(side: int, channels: int) -> None:
    names = families.families()
    fitted = 0
    for family in names:
        name = families.smallest_model(family)
        fits, told = _outcome(name, side, channels)
        fitted += fits
        print(f"{family:28s} {name:34s} {told}", flush=True)
        gc.collect()
    print(f"{fitted} of {len(names)} families fit {channels} x {side} x {side} images")
    assert fitted >= 0.9 * len(names)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_labels_can_be_learned_in_nineteen_families_of_twenty(tmp_path: Path) -> None:
    rows = families.measure(families.families(), tmp_path, Limits(), jobs=2)
    print(families.table(rows, "pytest"))
    counted = [row for row in rows if row.counted]
    assert sum(bool(row.estimator) for row in counted) >= 0.95 * len(counted), families.summary(rows)


def test_two_families_are_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = families.measure(_TINY, tmp_path, Limits(), jobs=2)
    assert [row.family for row in rows] == _TINY
    assert all(row.estimator and row.counted and row.image_size == 32 for row in rows), rows
    page = families.table(rows, "the command")
    assert "**2 of 2 families pass (100.0%)" in page
    assert all(f"| {row.family} | {row.model} | {row.parameters / 1e6:.2f} | 32 |" in page for row in rows)
    monkeypatch.setattr(families, "Child", None)  # no further process
    assert families.measure(_TINY, tmp_path, Limits()) == rows


@pytest.mark.parametrize(
    ("limits", "told"), [(Limits(seconds=0.1), "stopped after 0.1 s"), (Limits(gibibytes=0.01), "stopped at 0.01 GiB")]
)
def test_a_family_past_a_limit_costs_one_row(tmp_path: Path, limits: Limits, told: str) -> None:
    (row,) = families.measure(_TINY[:1], tmp_path, limits)
    assert told in row.refusal
    assert row.counted
    assert not row.estimator
    assert f"| refused |  |  | {row.seconds:.1f} | {row.refusal} |" in families.table([row], "the command")


def test_a_crash_costs_one_row_and_tells_its_last_line(tmp_path: Path) -> None:
    (row,) = families.measure(["unknown"], tmp_path, Limits())
    assert row.refusal.startswith("crashed with exit status 1: ValueError")


def test_a_family_that_timm_does_not_have_is_refused() -> None:
    with pytest.raises(SystemExit, match="no family of timm's: resnets"):
        families.main(["--only", "resnets"])


def test_a_model_that_is_too_large_is_named_and_not_run() -> None:
    told: dict[str, object] = {}
    families.examine("vision_transformer", Limits(parameters=1000), told.update)
    assert told["model"] == "test_vit"
    assert told["refusal"] == "not run: larger than 0.001 M parameters"


def _passed(family: str, estimator: str, told: str, **rest: int) -> Row:
    return Row(family, "net", 1, estimator=estimator, sentence=f"label gradient by {told}", seconds=1.0, **rest)


def test_the_page_counts_and_quotes() -> None:
    rows = [
        _passed(
            "a", "one-sided", "one-sided (reach 0.003): cosine 0.999991 with float64 central differences", image_size=32
        ),
        _passed(
            "b",
            "forward-mode",
            "forward-mode: cosine 0.981800 with float32 central differences; right in float64, the rest is rounding in "
            "float32 (passed over: one-sided: cosine nan, scale nan against float32 central differences, expected .999 "
            "or more; central: no (really))",
            image_size=64,
        ),
        Row("c", "net", 1, 64, refusal="learned labels: this | that", seconds=2.0),
        Row("d", "net", 0, 0, refusal="model 'net' does not take\n images"),
        Row("e", "net", 1, 224, refusal="stopped after 120 s", seconds=120.0),
        _passed("f", "one-sided", "one-sided: cosine 1.000000 with float64 central differences", image_size=224),
    ]
    assert families.summary(rows) == "3 of 4 families pass (75.0%): one-sided 2, forward-mode 1."
    page = families.table(rows, "the command")
    assert "- Refused or not run, see their notes: c." in page
    assert "in 60 s: d, e." in page
    assert "| one-sided (reach 0.003) | 0.999991 | float64 | 1.0 |  |" in page
    assert "| forward-mode | 0.981800 | float32 | 1.0 | right in float64, the rest is rounding in float32; one-" in page
    assert "; one-sided: cosine nan, scale nan; central: no (really) |" in page
    assert "| refused |  |  | 2.0 | learned labels: this \\| that |" in page
    assert "| not counted; model 'net' does not take images |" in page
    with pytest.raises(ValueError, match="not a sentence of the probe's"):
        families.table([_passed("a", "one-sided", "guessing", image_size=32)], "the command")
