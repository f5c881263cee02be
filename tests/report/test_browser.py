"""report.html in a real browser: `make test-browser`. Skipped where there is no Playwright or no Chromium.

Debian's packages `chromium` and `chromium-headless-shell` serve; Playwright needs no browser of its own for them.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from distill.report.html import page
from tests.report.pages import hostile, large
from tests.report.test_html import SECTIONS

pytestmark = pytest.mark.browser
NAMES = ("chromium", "chromium-headless-shell", "google-chrome", "google-chrome-stable", "chrome")
VIEWS = [(width, scheme) for width in (360, 1400) for scheme in ("light", "dark")]
FIGURES = {"differences": 24, "temperature": 5, "seeds": 2, "curves": 7, "calibration": 14, "labels": 2}  # at least


@dataclass
class Seen:
    """A page, and what the browser had to say of it."""

    page: Any
    url: str
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install '.[browser]'")
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is on PATH; on Debian: apt-get install chromium")
    with api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    path = folder / "report.html"
    path.write_text(page(large(folder), folder), "utf-8")
    return path


def opened(browser: Any, path: Path, width: int = 1400, scheme: str = "light") -> Seen:
    """The page, loaded."""
    found = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    seen = Seen(found, path.as_uri())
    found.on("console", lambda message: seen.complaints.append(message.text))
    found.on("pageerror", lambda error: seen.complaints.append(str(error)))
    found.on("dialog", lambda dialog: (seen.complaints.append(f"dialog {dialog.message}"), dialog.dismiss()))
    found.on("request", lambda request: seen.requests.append(request.url))
    found.goto(seen.url)
    found.wait_for_load_state("networkidle")
    return seen


def pixels(png: bytes) -> NDArray[np.uint8]:
    """[H, W, 3]"""
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


@pytest.mark.parametrize(("width", "scheme"), VIEWS)
def test_it_loads_itself_and_nothing_else(browser: Any, file: Path, width: int, scheme: str) -> None:
    seen = opened(browser, file, width, scheme)
    assert seen.complaints == []
    assert [url for url in seen.requests if not url.startswith("data:")] == [seen.url]
    seen.page.close()


@pytest.mark.parametrize(("width", "scheme"), VIEWS)
def test_every_figure_has_a_size(browser: Any, file: Path, width: int, scheme: str) -> None:
    seen = opened(browser, file, width, scheme)
    for section, least in FIGURES.items():
        boxes = seen.page.eval_on_selector_all(
            f"#{section} svg[role=img]", "all => all.map(one => [one.clientWidth, one.clientHeight])"
        )
        assert len(boxes) >= least
        assert all(w > 60 and h > 15 for w, h in boxes), (section, boxes)
    seen.page.close()


@pytest.mark.parametrize("width", [360, 640, 900, 1119, 1120, 1400])
def test_nothing_is_wider_than_the_window(browser: Any, file: Path, width: int) -> None:
    seen = opened(browser, file, width)
    for _ in range(2):
        assert seen.page.evaluate("document.documentElement.scrollWidth") <= width
        wide = seen.page.evaluate(
            """() => [...document.querySelectorAll("main *")].filter(one =>
                one.getClientRects().length && !one.closest(".scroll, pre") &&
                one.getBoundingClientRect().right > innerWidth + 1).map(one => one.outerHTML.slice(0, 200))"""
        )
        assert wide == []
        inner = "all => all.filter(one => one.scrollWidth > one.clientWidth + 1).map(one => one.innerText.slice(0, 80))"
        assert seen.page.eval_on_selector_all("#results .scroll, #cost .scroll", inner) == []
        seen.page.eval_on_selector_all("details", "all => all.forEach(one => { one.open = true; })")
    seen.page.close()


@pytest.mark.parametrize("width", [360, 1400])
def test_words_in_figures_can_be_read(browser: Any, file: Path, width: int) -> None:
    seen = opened(browser, file, width)
    sizes = seen.page.eval_on_selector_all(
        "section svg text", "all => all.map(one => parseFloat(getComputedStyle(one).fontSize) * one.getScreenCTM().a)"
    )
    assert len(sizes) > 200
    assert min(sizes) >= 8
    seen.page.close()


@pytest.mark.parametrize(("width", "scheme"), VIEWS)
def test_every_section_shows_something(browser: Any, file: Path, width: int, scheme: str) -> None:
    seen = opened(browser, file, width, scheme)
    for section in SECTIONS:
        shot = pixels(seen.page.locator(f"#{section}").screenshot())
        paper = np.median(shot.reshape(-1, 3), axis=0)
        assert paper.min() > 230 if scheme == "light" else paper.max() < 40
        apart = np.abs(shot.astype(float) - paper).max(axis=-1) > 60
        assert apart.mean() > 0.003, section
        rows = apart.any(axis=1).reshape(-1)
        assert rows.mean() > 0.2, section
    seen.page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_figures_are_in_colour(browser: Any, file: Path, scheme: str) -> None:
    seen = opened(browser, file, 1400, scheme)
    for section in ("verdict", "differences", "temperature", "seeds", "calibration", "labels"):
        shot = pixels(seen.page.locator(f"#{section}").screenshot()).astype(int)
        coloured = (shot.max(axis=-1) - shot.min(axis=-1)) > 40
        assert coloured.sum() > 150, section
    seen.page.close()


def test_the_button_copies_the_command(browser: Any, file: Path) -> None:
    seen = opened(browser, file)
    seen.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    for name in ("command", "recipe"):
        button = seen.page.locator(f"button[data-copy={name}]")
        button.click()
        seen.page.wait_for_function("one => one.textContent === 'Copied'", arg=button.element_handle())
        assert seen.page.evaluate("navigator.clipboard.readText()") == seen.page.text_content(f"#{name}")
    assert seen.complaints == []
    seen.page.close()


def test_it_can_be_printed_with_all_that_is_folded(browser: Any, file: Path) -> None:
    seen = opened(browser, file, scheme="dark")
    folded = "document.querySelectorAll('details:not([open])').length"
    seen.page.evaluate(f"addEventListener('beforeprint', () => {{ window.folded = {folded}; }})")
    printed = seen.page.pdf(format="A4", print_background=True)
    assert printed.startswith(b"%PDF")
    assert len(printed) > 50_000
    assert seen.page.evaluate("window.folded") == 0
    assert seen.page.eval_on_selector_all("details[open]", "all => all.length") == 0
    seen.page.emulate_media(media="print")
    assert seen.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(253, 253, 252)"
    seen.page.close()


def test_without_scripts_there_is_no_dead_button(browser: Any, file: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    found = context.new_page()
    found.goto(file.as_uri())
    assert not found.locator("button[data-copy=command]").is_visible()
    assert found.locator("#command").is_visible()
    context.close()


def test_hostile_names_do_nothing(browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(page(hostile(tmp_path), tmp_path), "utf-8")
    seen = opened(browser, path, 360)
    assert seen.complaints == []
    assert "<script>alert(1)</script>" in seen.page.inner_text("#verdict")
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= 360
    seen.page.close()
