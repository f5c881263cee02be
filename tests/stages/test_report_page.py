"""report.html of a comparison that was run: bins and learned labels come from the runs, the same without torch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

from distill.recipe.schema import Recipe
from distill.report.runs import open_run
from distill.stages.compare import compare
from distill.store.bins import BINS_FILE, read_bins
from distill.training.events import Event

SHORT = ("teacher.epochs=2", "student.epochs=1", "teacher.labels.average_epochs=1", "views.count=1")
_LIGHT = """
import sys
from distill.cli.commands import app
sys.argv = ["distill", "compare", "--report-only", "--quiet", *sys.argv[1:]]
app(standalone_mode=False)
sys.exit(", ".join({"torch", "torchvision", "timm"} & set(sys.modules)) or 0)
"""


def ignore(event: Event) -> None:
    pass


def test_the_page_of_a_comparison_that_was_run(tiny: Callable[..., Recipe]) -> None:
    found = compare(tiny(*SHORT, "compare.teachers=onehot,instance", "compare.temperatures=1,4"), ignore)
    for result in found.comparison.results:
        run = open_run(found.folder / result.run)
        metrics = run.metrics(result.cell.kind)
        bins = read_bins(run.folder, metrics["test_accuracy"], metrics["test_ece"])
        assert bins is not None
        assert sum(each.count for each in bins) == 100
    text = (found.folder / "report.html").read_text("utf-8")
    for title in (
        "Reliability of onehot, teacher",
        "Reliability of instance, student",
        "onehot: validation accuracy % after each epoch",
        "instance: labels right % after each epoch",
        "Mean learned labels of instance",
        "Test accuracy of onehot's students against temperature",
    ):
        assert f"<title>{title}</title>" in text
    assert "Not shown" not in text
    assert BINS_FILE not in text
    before = {name: (found.folder / name).read_bytes() for name in ("report.html", "table.tex")}
    for name in before:
        (found.folder / name).unlink()
    command = [sys.executable, "-W", "error", "-c", _LIGHT, str(found.folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert {name: (found.folder / name).read_bytes() for name in before} == before
