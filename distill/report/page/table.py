"""The comparison's tables: networks in rows, numbers aligned; on a narrow screen each row becomes a block. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from distill.recipe.grid import UNTRAINED
from distill.report.comparison import MAIN, Comparison
from distill.report.comparison_table import (
    CALIBRATED_CAPTION,
    caption,
    choice_cells,
    choice_headers,
    headers,
    lines,
    scaled_headers,
    scaled_lines,
)
from distill.report.page.markup import Child, Markup, el
from distill.report.page.numbers import SIGNS, number, summarised, with_half
from distill.report.page.verdicts import judge

_WORDS = 2  # leading columns of words in the main table
_LESS = -1  # the column of differences


def main_table(comparison: Comparison) -> Markup:
    """Teacher and student of each arm, then the controls."""
    head = headers(comparison, taught=False)
    judged = {
        (each.first, each.network): judge(each)
        for each in comparison.differences
        if each.metric == MAIN and each.second == comparison.reference
    }
    bodies: list[list[Markup]] = []
    for row, cells in zip(comparison.rows, lines(comparison, taught=False), strict=True):
        if cells[0] or not bodies:
            bodies.append([])
        sign = judged.get((row.name, row.network), "") if cells[_LESS] not in ("", "-") else ""
        named = f"{row.name} (control)" if row.control else row.name
        quiet = "again" if not cells[0] else ""  # said above, and said again where rows are blocks
        shown: list[Child] = [el("span", named, class_=quiet or None), cells[1], *map(number, cells[2:])]
        if sign and sign != "open":
            shown[_LESS] = [el("span", SIGNS[sign], class_=f"sign {sign}"), " ", number(cells[_LESS])]
        bodies[-1].append(table_row(head, shown, cells, words=_WORDS))
    return table(head, bodies, words=_WORDS, caption=caption(comparison).replace("->", "→"), class_="main")


def scaled_table(comparison: Comparison) -> Markup | None:
    """Each network after temperature scaling; None where no temperature is known."""
    head, rows = scaled_headers(comparison), list(scaled_lines(comparison))
    if not rows:
        return None
    body = [table_row(head, [*cells[:_WORDS], *map(number, cells[_WORDS:])], cells, words=_WORDS) for cells in rows]
    title = el("h3", "After temperature scaling")
    return el("div", title, table(head, [body], words=_WORDS, caption=CALIBRATED_CAPTION))


def grid_table(comparison: Comparison) -> Markup:
    """Every loss, temperature and weight of every arm; what validation chose is marked."""
    compare = comparison.recipe.compare
    head = ["labels", *choice_headers(comparison), "seeds", "validation %", "accuracy %", "best epoch %"]
    metrics = ("validation_accuracy", "test_accuracy", "best_test_accuracy")
    bodies = []
    for arm in (*compare.names, *([UNTRAINED] if compare.controls else [])):
        body: list[Markup] = []
        for choice, results in comparison.grid(arm).items():
            values = [{seed: r.metrics[m] for seed, r in results.items() if m in r.metrics} for m in metrics]
            own = choice_cells(comparison, choice)
            texts = [arm, *own, str(len(results)), *(with_half(summarised(each)) for each in values)]
            chosen = choice == comparison.chosen(arm)
            name = el("span", arm, class_="again" if body else None)
            shown: list[Child] = [name, choice.loss, *map(number, texts[2:])]
            if chosen:
                shown[2] = [el("span", "chosen", class_="tag"), " ", shown[2]]
            body.append(table_row(head, shown, texts, words=_WORDS, class_="chosen" if chosen else None))
        if body:
            bodies.append(body)
    return table(head, bodies, words=_WORDS)


def table(
    head: Sequence[str], bodies: Sequence[Sequence[Markup]], *, words: int, caption: str = "", class_: str = ""
) -> Markup:
    """A table.

    Args:
        head: of its columns.
        bodies: groups of rows, with a line between them.
        words: leading columns that are no numbers.
        caption: beneath it.
        class_: of the table.
    """
    names = [el("th", name, scope="col", class_=None if k < words else "num") for k, name in enumerate(head)]
    body = [el("tbody", rows) for rows in bodies]
    found = el("table", el("thead", el("tr", names)), body, class_=f"cards {class_}".rstrip())
    return el("div", el("div", found, class_="scroll"), el("p", caption, class_="caption") if caption else None)


def table_row(
    head: Sequence[str], shown: Sequence[Child], texts: Sequence[str], *, words: int, class_: str | None = None
) -> Markup:
    """A row; where `texts` has nothing, the cell is left out on a narrow screen."""
    cells = []
    for k, (name, child, text) in enumerate(zip(head, shown, texts, strict=True)):
        kind = " ".join(filter(None, ["" if k < words else "num", "" if text else "empty"]))
        if k == 0:
            cells.append(el("th", child, scope="row"))
        else:
            cells.append(el("td", child, data_label=name, class_=kind or None))
    return el("tr", cells, class_=class_)
