"""report.html: a comparison as one page that needs nothing but itself. No torch.

Everything that comes from recipes, runs and data is escaped where elements are made (`page/markup.py`), and the page's
own policy lets it load nothing and run no script but the one that it is made with.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from distill.report.calibration import calibrations, without_bins
from distill.report.comparison import Comparison
from distill.report.label_means import label_maps
from distill.report.page.answers import answers
from distill.report.page.cost import cost
from distill.report.page.curves import curves
from distill.report.page.forest import forest
from distill.report.page.heat import heat_maps
from distill.report.page.markup import Child, Markup, el, sentences
from distill.report.page.provenance import again, provenance
from distill.report.page.reliability import reliability
from distill.report.page.seeds import seeds
from distill.report.page.table import grid_table, main_table, scaled_table
from distill.report.page.temperatures import temperatures
from distill.report.page.verdicts import verdicts


@dataclass(frozen=True)
class Section:
    """A part of the page."""

    id: str
    title: str
    body: Child


def page(comparison: Comparison, folder: Path) -> str:
    """The page.

    Args:
        comparison: the numbers.
        folder: the comparison's, for calibration and learned labels, which lie in the run folders.
    """
    sections = [
        Section("verdict", "Verdict", verdicts(comparison)),
        Section("results", "Results", main_table(comparison)),
        Section("differences", "Differences", _or_sentence(forest(comparison), _NOTHING_TO_COMPARE)),
        Section("temperature", "Accuracy against temperature", _temperatures(comparison)),
        Section("answers", "The teachers' answers", _or_sentence(answers(comparison), _NOT_MEASURED)),
        Section("seeds", "Seed by seed", _or_sentence(seeds(comparison), _ONE_SEED)),
        Section("curves", "Learning curves", _or_sentence(curves(comparison), _NO_CURVES)),
        Section("calibration", "Calibration", _calibration(comparison, folder)),
        Section("labels", "Learned labels", _labels(comparison, folder)),
        Section("cost", "Cost", _or_sentence(cost(comparison), "No cell is finished yet.")),
        Section("provenance", "Provenance", provenance(comparison)),
        Section("again", "Make it again", again(comparison)),
    ]
    body = el("main", _header(comparison, sections), [_section(section) for section in sections])
    script = _asset("report.js")
    document = el("html", _head(comparison, script), el("body", body, el("script", Markup(script))), lang="en")
    return f"<!doctype html>\n{document}\n"


_NOTHING_TO_COMPARE = "There are no two networks that have a seed in common."
_ONE_SEED = "Seeds are not compared: there is one seed, or one arm."
_NOT_MEASURED = (
    "Not shown: no teacher's answers were measured. They are when its logits are exported; for a run of an earlier "
    "version of this program `distill export --teacher RUN` does it."
)
_NO_TEMPERATURES = "Not shown: no teacher has students at two temperatures or losses."
_NO_BINS = (
    "Not shown: no run has a reliability.json, as those of earlier versions of this program have not, and numbers that "
    "are reported without their runs."
)
_NO_CURVES = "Not shown: no teacher that was trained here for two epochs or more is known epoch by epoch."
_NO_LABELS = "Not shown: there is no run of a finished teacher that learned its labels."


def _asset(name: str) -> str:
    return files("distill.report").joinpath("assets", name).read_text("utf-8")


def _head(comparison: Comparison, script: str) -> Markup:
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'"
    return el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", http_equiv="Content-Security-Policy", content=policy),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="color-scheme", content="light dark"),
        el("meta", name="referrer", content="no-referrer"),
        el("link", rel="icon", href="data:,"),
        el("title", f"{comparison.name}: comparison of teachers"),
        el("style", Markup(_asset("report.css"))),
    )


def _header(comparison: Comparison, sections: Sequence[Section]) -> Markup:
    compare = comparison.recipe.compare
    done = sum(result.state == "finished" for result in comparison.results)
    total = len(comparison.results)
    what = [_counted(len(compare.names), "teacher"), _counted(len(comparison.seeds), "seed")]
    if compare.temperatures and compare.students:
        what.append(_counted(len(compare.temperatures), "temperature"))
    if compare.weights and compare.students:
        what.append(_counted(len(compare.weights), "weight"))
    what.append(f"all {total} cells finished" if done == total else f"{done} of {total} cells finished")
    links = [el("a", section.title, href=f"#{section.id}") for section in sections]
    return el(
        "header",
        el("h1", comparison.name),
        el("p", f"{comparison.recipe.data.source}; {', '.join(what)}; commit {comparison.commit}", class_="quiet"),
        el("nav", links, aria_label="Sections"),
    )


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _section(section: Section) -> Markup:
    heading = el("h2", section.title, id=f"{section.id}-title")
    return el("section", heading, section.body, id=section.id, aria_labelledby=f"{section.id}-title")


def _or_sentence(body: Markup | None, sentence: str) -> Markup:
    return body or el("p", sentence, class_="quiet")


def _temperatures(comparison: Comparison) -> Markup:
    found = temperatures(comparison)
    if found is None:
        return el("p", _NO_TEMPERATURES, class_="quiet")
    note = "Mean test accuracy over the seeds, after the last epoch, with its 95 % interval where there are several."
    table = el("details", el("summary", "The same in numbers"), grid_table(comparison))
    return el("div", found, el("p", note, class_="caption"), table)


def _calibration(comparison: Comparison, folder: Path) -> Markup:
    found, problems = calibrations(comparison, folder)
    chart = reliability(comparison, found)
    lacking = [
        f"{row.name}, {row.network}: its runs have no reliability.json." for row in without_bins(comparison, found)
    ]
    if chart is None:
        told = el("p", _NO_BINS, class_="quiet"), sentences(_here(problems, folder))
    else:
        told = chart, sentences([*lacking, *_here(problems, folder)])
    return el("div", *told, scaled_table(comparison))


def _labels(comparison: Comparison, folder: Path) -> Markup:
    found, problems = label_maps(comparison, folder)
    return el(
        "div", heat_maps(found) if found else el("p", _NO_LABELS, class_="quiet"), sentences(_here(problems, folder))
    )


def _here(problems: Sequence[str], folder: Path) -> list[str]:
    """Sentences that name files from the comparison's folder: a page is sent around."""
    return [problem.replace(f"{folder}/", "") for problem in problems]
