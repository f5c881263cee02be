"""What the students were shown: measures of each teacher's answers, beside how its student did. No torch."""

from __future__ import annotations

from distill.report.comparison import Comparison
from distill.report.comparison_table import ANSWERS_CAPTION, answer_headers, answer_lines
from distill.report.page.markup import Child, Markup, el
from distill.report.page.numbers import number
from distill.report.page.table import table, table_row


def answers(comparison: Comparison) -> Markup | None:
    """A table, a row for each teacher; None where no export was measured."""
    head, body = answer_headers(comparison), []
    for cells in answer_lines(comparison):
        shown: list[Child] = [el("span", cells[0]), *map(number, cells[1:])]
        body.append(table_row(head, shown, cells, words=1))
    return table(head, [[row] for row in body], words=1, caption=ANSWERS_CAPTION) if body else None
