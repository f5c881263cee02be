"""`distill bench`: every estimator against a plain step, on the recipe's own model and labels."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from distill.cli.output import print_json
from distill.recipe.schema import Recipe
from distill.stages.bench import bench
from distill.store.json_files import parse_json
from distill.training.events import Event, Notice


@pytest.mark.parametrize("divergence", ["forward", "reverse"])
def test_bench_names_what_it_measured_and_what_it_did_not(
    divergence: str, tiny: Callable[..., Recipe], capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[Event] = []
    report = bench(tiny(f"teacher.labels.divergence={divergence}"), told.append, rounds=2)
    lines = [event.message for event in told if isinstance(event, Notice)]
    assert [line.split(";")[0] for line in lines[1:]] == ["warmed up", "round 1 of 2", "round 2 of 2"]
    measured = {variant.name: variant for variant in report.variants}
    exact = {name for name in measured if name.split("/")[1] in ("forward-mode", "central")}
    assert len(exact) == 4
    assert all(measured[name].cosine > 0.999 for name in exact)
    # The step that it unrolls is the forward divergence's.
    assert ("held-out/unrolled" in measured) == (divergence == "forward")
    assert ("unrolled" in report.refused) == (divergence == "reverse")
    assert all(name in report.text() for name in [*measured, *report.refused])
    rare = {each["name"]: each for each in report.record()["variants"]}["held-out/every-4"]
    assert (rare["cosine"], rare["ratio"] > 0) == (None, True)
    print_json(report.record())
    assert parse_json(capsys.readouterr().out)["model"] == "resnet8"  # strict JSON: no NaN in it
