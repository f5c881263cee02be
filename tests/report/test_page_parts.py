"""What the page is made of: elements, numbers, scales, colours; and the table in LaTeX."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest

from distill.recipe.grid import grid
from distill.report.comparison import Comparison
from distill.report.latex import latex
from distill.report.page.markup import Markup, clean, el
from distill.report.page.numbers import number, points, typeset
from distill.report.page.svg import Scale, span, tick_text
from distill.report.results import CellResult
from tests.report.made import made
from tests.report.pages import metrics


def test_latex_is_escaped_and_whole() -> None:
    found = made(metrics=metrics)
    text = latex(found)
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 5
    assert {line.count("&") for line in rows} == {8}
    assert r"accuracy \%" in rows[0]
    assert r"$\pm$" in rows[1]
    assert r"70.0 $\to$ 93.0" in rows[3]
    compare = found.recipe.compare.model_copy(update={"arms": {'a_b&$\\%"': (), "instance": ()}})
    recipe = found.recipe.model_copy(update={"compare": compare})
    text = latex(Comparison(recipe, tuple(CellResult(cell, "missing", "not run") for cell in grid(recipe))))
    assert r"a\_b\&\$\textbackslash{}\%'' & teacher & 0 of 2 & -- & --" in text  # \textquotedbl would need T1 fonts


def test_elements_escape_what_they_are_given() -> None:
    assert el("p", "a<b", class_='"x"', data_k=1, hidden=False, open=True) == (
        '<p class="&quot;x&quot;" data-k="1" open>a&lt;b</p>'
    )
    assert el("p", Markup("<b>"), [None, 3, ["x"]]) == "<p><b>3x</p>"
    assert clean("a\x00\u202e\ud800\n") == "a\ufffd\ufffd\ufffd\n"


@pytest.mark.parametrize(
    ("given", "shown"),
    [("-0.0 to 0.6", "0.0 to 0.6"), ("-1.7 points", "−1.7 points"), ("(-0.04)", "(−0.04)"), ("a-1 b-2", "a-1 b-2"),
     ("+0.0", "0.0"), ("+0.05", "+0.05")],
)  # fmt: skip
def test_numbers_are_set_with_true_minus_signs(given: str, shown: str) -> None:
    assert typeset(given) == shown


def test_numbers_have_their_quiet_part_apart() -> None:
    assert number("97.2 ± 0.3") == '<span class="n">97.2<span class="pm"> ± 0.3</span></span>'
    assert number("-0.5 (-1.0 to 0.1)") == '<span class="n">−0.5<span class="pm"> (−1.0 to 0.1)</span></span>'
    assert number("-") == '<span class="n">–</span>'
    assert points(-0.0001) == "0.0"


def test_scales_and_ticks() -> None:
    assert Scale(0, 10, 0, 100)(5) == 50
    assert Scale(0, 10, 0, 100).held(12) == 100
    assert Scale(-0.3, 1.1, 0, 1).ticks(3) == [0, 0.5, 1.0]
    assert [tick_text(t, [-2.5, 0, 2.5]) for t in (-2.5, 0.0)] == ["−2.5", "0.0"]
    assert span([], least=1) == (-0.56, 0.56)
    low, high = span([3.0], least=1)
    assert low < 3 < high


@pytest.mark.parametrize("dark", [False, True])
def test_words_stand_out_from_the_paper(dark: bool) -> None:
    """WCAG's contrast: 4.5 for words, 3 for marks; and a gain is told from a loss by lightness or hue, and by sign."""
    style = files("distill.report").joinpath("assets/report.css").read_text("utf-8")
    blocks = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    colours = dict(re.findall(r"--([\w]+): (#[0-9a-f]{6});", blocks[dark]))
    for name, least in {
        "ink": 12,
        "quiet": 4.5,
        "accent": 4.5,
        "gain": 4.5,
        "loss": 4.5,
        "open": 4.5,
        "c5": 4.5,
    }.items():
        assert contrast(colours[name], colours["paper"]) >= least, name
        assert contrast(colours[name], colours["raised"]) >= 0.9 * least, name
    assert contrast(colours["ink"], colours["kept"]) >= 4.5
    assert blocks[0].count("--") == blocks[1].count("--")


def contrast(one: str, other: str) -> float:
    """As WCAG 2 has it."""

    def luminance(colour: str) -> float:
        parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)
