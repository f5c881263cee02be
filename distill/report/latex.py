"""A comparison's table for a paper: LaTeX, with booktabs. No torch."""

from __future__ import annotations

import re

from distill.report.comparison import Comparison
from distill.report.comparison_table import caption, headers, lines
from distill.report.label_report import printable

_SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    '"': "''", "±": r"$\pm$", "→": r"$\to$",
}  # fmt: skip
_NEGATIVE = re.compile(r"(?<![\w.)-])-(?=\d)")
_WORDS = 2  # leading columns that are no numbers


def latex(comparison: Comparison) -> str:
    """A `tabular`, to be read in with `\\input`; what its numbers are stands before it as a comment."""
    head = headers(comparison, taught=False)
    columns = "l" * _WORDS + "r" * (len(head) - _WORDS)
    rows = list(lines(comparison, taught=False))
    notes = [f"{comparison.name}, commit {comparison.commit}. {caption(comparison)}", r"Needs \usepackage{booktabs}."]
    text = [f"% {printable(note)}" for note in notes]
    text += [rf"\begin{{tabular}}{{@{{}}{columns}@{{}}}}", r"\toprule", _line(head), r"\midrule"]
    for number, row in enumerate(rows):
        if number and row[0]:
            text.append(r"\addlinespace")
        text.append(_line(row))
    return "\n".join([*text, r"\bottomrule", r"\end{tabular}", ""])


def _line(cells: list[str]) -> str:
    return " & ".join(_cell(cell) for cell in cells) + r" \\"


def _cell(text: str) -> str:
    """Escaped; a hyphen before a digit is a minus sign, and one alone a dash."""
    escaped = "".join(_SPECIAL.get(sign, sign) for sign in printable(text.replace("->", "→")))
    return "--" if escaped == "-" else _NEGATIVE.sub(r"$-$", escaped)
