"""Characters that matplotlib's own font lacks are drawn by other fonts of the machine."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import pytest
from matplotlib import font_manager

from distill.report.figures import new_figure, save
from distill.report.fonts import covering

HOOKED_K = 0x1D84  # in STIX, which comes with matplotlib, and not in DejaVu Sans
NOWHERE = 0x10FFFE
FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two fonts and a file that is none."""
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    paths = [str(tmp_path / "broken.ttf"), str(FONTS / "cmr10.ttf"), str(FONTS / "STIXGeneral.ttf")]
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: paths)
    monkeypatch.setattr(font_manager.fontManager, "ttflist", list(font_manager.fontManager.ttflist))


@pytest.mark.usefixtures("installed")
def test_the_font_that_has_them_is_found() -> None:
    assert covering({ord("a"), ord("ä")}) == []
    assert covering({ord("a"), HOOKED_K, NOWHERE}) == ["STIXGeneral"]
    assert covering({NOWHERE}) == []


@pytest.mark.usefixtures("installed")
def test_titles_and_ticks_are_drawn_by_it(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    figure = new_figure(2.0, 1.5)
    axis = figure.subplots()
    axis.set_title(f"class {chr(HOOKED_K)}")
    axis.set_xticks([0, 1], [chr(HOOKED_K), "b"])
    save(figure, tmp_path / "a.png")
    for text in (axis.title, *axis.get_xticklabels()):
        assert text.get_fontfamily() == ["DejaVu Sans", "STIXGeneral"]
    assert capfd.readouterr() == ("", "")
