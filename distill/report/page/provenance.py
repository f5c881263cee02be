"""Where the numbers come from: arms, program, machines, every cell; and how to make them again. No torch."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path

from distill.recipe.load import dump_recipe
from distill.report.comparison import Comparison
from distill.report.comparison_table import unfinished_line
from distill.report.page.markup import Child, Markup, el
from distill.report.page.numbers import number
from distill.report.page.table import table, table_row
from distill.report.results import CellResult

_HEAD = ("cell", "state", "digest", "commit", "finished", "run", "seconds")
AGAIN = "comparison.toml"  # what the recipe is called when it is saved to be run again


def provenance(comparison: Comparison) -> Markup:
    """Facts, arms, what is not finished, every cell."""
    unfinished = [el("li", unfinished_line(result)) for result in comparison.unfinished]
    return el(
        "div",
        el("dl", _facts(comparison), class_="facts"),
        el("h3", "Arms"),
        el("dl", _arms(comparison), class_="facts arms"),
        [el("h3", "Not finished"), el("ul", unfinished, class_="unfinished")] if unfinished else None,
        el("details", el("summary", f"All {len(comparison.results)} cells"), _cells(comparison)),
    )


def _facts(comparison: Comparison) -> list[Markup]:
    known = [result.provenance for result in comparison.results if result.provenance]
    done = sum(result.state == "finished" for result in comparison.results)
    times = sorted(_minute(str(each["finished"])) for each in known if each.get("finished"))
    facts: list[tuple[str, Child]] = [
        ("cells finished", f"{done} of {len(comparison.results)}"),
        ("seeds", ", ".join(map(str, comparison.seeds))),
        ("program", [el("code", comparison.commit), " (git commit; + means that files were changed)"]),
        ("versions", _joined(each.get("versions", {}) for each in known)),
        ("machine", _joined(each.get("machine", {}) for each in known)),
        (
            "finished",
            " to ".join(dict.fromkeys([times[0], times[-1]])) + " UTC" if times else "never",
        ),
    ]
    return [part for name, value in facts if value for part in (el("dt", name), el("dd", value))]


def _minute(time: str) -> str:
    return time[:16].replace("T", " ")


def _joined(records: Iterable[dict[str, str]]) -> str:
    """`torch 2.9.0, timm 1.0.22`; several values where runs differ."""
    found: dict[str, dict[str, None]] = {}
    for record in records:
        for name, value in record.items():
            found.setdefault(name, {})[str(value)] = None
    return ", ".join(f"{name} {' and '.join(values)}" for name, values in found.items())


def _arms(comparison: Comparison) -> list[Markup]:
    compare = comparison.recipe.compare
    found = []
    for name in compare.names:
        assigned = [el("code", text) for text in compare.assignments(name)]
        mark = el("span", "reference", class_="tag") if name == comparison.reference else None
        found += [el("dt", name, " ", mark), el("dd", assigned or "the recipe as it is")]
    return found


def _cells(comparison: Comparison) -> Markup:
    return table(_HEAD, [[_cell(result) for result in comparison.results]], words=6, class_="cells")


def _cell(result: CellResult) -> Markup:
    known = result.provenance
    texts = [
        result.cell.key,
        result.state,
        str(known.get("digest", ""))[:12],
        str(known.get("commit", "")),
        _minute(str(known.get("finished", ""))),
        result.run,
        f"{result.seconds:,.1f}" if result.state == "finished" else "",
    ]
    digest = el("code", texts[2], title=str(known.get("digest", ""))) if texts[2] else ""
    shown: list[Child] = [el("code", texts[0]), texts[1], digest, el("code", texts[3])]
    return table_row(_HEAD, [*shown, texts[4], el("code", texts[5]), number(texts[6])], texts, words=6)


def again(comparison: Comparison) -> Markup:
    """The commands and the recipe, each with a button that copies it."""
    return el(
        "div",
        el("p", "Save the recipe below as ", el("code", AGAIN), ", then:"),
        copied("command", command(comparison)),
        el("h3", "The recipe, as resolved"),
        copied("recipe", dump_recipe(comparison.recipe), class_="long"),
    )


def command(comparison: Comparison) -> str:
    """What makes these numbers again, in a folder of its own, from the program of the same commit where it is known."""
    commits = comparison.commit.split(", ")
    lines = [f"distill compare {AGAIN} --set {shlex.quote(f'checkpoints={_fresh(comparison)}')}"]
    if len(commits) == 1 and all(sign in "0123456789abcdef" for sign in commits[0].removesuffix("+")):
        changed = "  # files were changed beside it" if commits[0].endswith("+") else ""
        lines.insert(0, f"git checkout {commits[0].removesuffix('+')}{changed}")
    return "\n".join(lines)


def _fresh(comparison: Comparison) -> str:
    """Beside the runs that there are, which would be skipped."""
    return f"{Path(comparison.recipe.checkpoints).name or 'checkpoints'}-again"


def copied(name: str, words: str, class_: str = "") -> Markup:
    """Text that can be copied with a button; the button is shown where scripts run."""
    button = el("button", "Copy", type="button", hidden=True, data_copy=name, aria_label=f"Copy the {name}")
    return el("div", el("pre", el("code", words), id=name, tabindex=0), button, class_=f"copy {class_}".rstrip())
