"""What README and docs say is there, is there: files of the architecture, and what links lead to."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
UNLISTED = {"__init__.py", "__main__.py"}


def listed() -> set[Path]:
    """Paths that the file list of README's architecture names."""
    section = (ROOT / "README.md").read_text().split("\n## Architecture\n")[1].split("\n## ")[0]
    block = section.split("```")[3]
    names = [line.split()[0] for line in block.splitlines() if line.strip() and not line.startswith(" ")]
    return {
        next((place for place in (ROOT / name, ROOT / "distill" / name) if place.exists()), Path(name))
        for name in names
    }


def test_the_architecture_lists_every_file_and_no_other() -> None:
    found = listed()
    assert not [str(path) for path in found if not path.exists()]
    files = {path for path in (ROOT / "distill").rglob("*.py") if path.name not in UNLISTED}
    files |= {*(ROOT / "benchmarks").glob("*.py"), *(ROOT / "recipes").glob("*.toml")}
    covered = {path for path in files if path in found or found & set(path.parents)}
    assert not sorted(str(path.relative_to(ROOT)) for path in files - covered)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL))
    for link in (link for link in links if not link.startswith("http")):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def anchors(page: Path) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    headings = re.findall(r"(?m)^#+ (.+)$", page.read_text())
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
