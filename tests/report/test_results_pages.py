"""Pages of docs/results: of runs that are there, of numbers that were kept, and of both; their list."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks import results
from distill.report.comparison_folder import read_comparison
from tests.report.made import METRICS, made

ROOT = Path(__file__).parent.parent.parent
EVIDENCE = (r"[Ss]eeds?\b", r"\b(hours?|minutes)\b", r"[Tt]orch\s\d", r"\b[Cc]ommits?\b")
RECIPE = """# Two rules, compared. More of it.
#
#     distill compare recipes/labels/r.toml --jobs 2
#
# Five seeds.

name = "r"

[compare]
teachers = ["onehot", "instance"]
seeds = [0, 1]
controls = false
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "r.toml"
    path.write_text(RECIPE)
    return path


def test_a_page_is_made_of_the_numbers_that_were_kept(tmp_path: Path, recipe: Path) -> None:
    results.keep(made(missing=["instance-s1"]), tmp_path / "results" / "r")
    found, left_out = results.known(recipe, str(tmp_path / "nowhere"), tmp_path / "results")
    text = results.page(recipe, found)
    assert text.startswith("# r\n\nTwo rules, compared. More of it.\n\nFive seeds.\n\n```sh\ndistill compare ")
    assert "7 of 8 cells" in text
    assert "(r/results.json)" in text
    assert "\n## Verdicts\n" in text
    assert "teacher instance, seed 1" in text
    assert left_out == 0


def test_runs_count_before_what_was_kept(tmp_path: Path, recipe: Path) -> None:
    new = made("compare.seeds=0", metrics=lambda cell: METRICS | {"test_accuracy": 0.5})
    results.keep(new, tmp_path / "c" / "r-compare")
    results.keep(made("compare.seeds=0,1"), tmp_path / "results" / "r")
    found, _ = results.known(recipe, str(tmp_path / "c"), tmp_path / "results")
    assert found.row("onehot", "teacher").values("test_accuracy") == {0: 0.5, 1: METRICS["test_accuracy"]}
    assert all(result.state == "finished" for result in found.results)
    nothing, _ = results.known(recipe, str(tmp_path / "nowhere"), tmp_path / "none")
    assert {result.state for result in nothing.results} == {"missing"}


def test_what_grows_leaves_nothing_behind(tmp_path: Path) -> None:
    """An arm that was added changes the recipe; the numbers before it are all in those after it."""
    kept = tmp_path / "r"
    results.keep(made(), kept)
    results.keep(made("compare.teachers=onehot,instance,class"), kept)
    assert sorted(path.name for path in kept.iterdir()) == ["comparison.toml", "results.json"]
    results.keep(made("compare.teachers=onehot"), kept)
    assert len(list(kept.glob("results-*.json"))) == 1


def test_numbers_of_another_recipe_are_left_out(tmp_path: Path, recipe: Path) -> None:
    """The recipe was edited since: another arm than `instance`, or other epochs."""
    results.keep(made(), tmp_path / "results" / "r")
    recipe.write_text(RECIPE.replace('"instance"', '"class"'))
    found, left_out = results.known(recipe, str(tmp_path / "nowhere"), tmp_path / "results")
    assert {result.cell.arm for result in found.results if result.state == "finished"} == {"onehot"}
    assert left_out == 4
    recipe.write_text(RECIPE + "[teacher]\nepochs = 7\n")
    found, left_out = results.known(recipe, str(tmp_path / "nowhere"), tmp_path / "results")
    assert {result.state for result in found.results} == {"missing"}
    assert left_out == 8


def test_the_command_says_what_it_could_not_do(
    tmp_path: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "docs"
    results.keep(made(), out / "results" / "r")
    monkeypatch.setattr("sys.argv", ["results.py", str(recipe), "--out", str(out), "--checkpoints", str(tmp_path)])
    with pytest.raises(SystemExit, match="False"):
        results.main()
    assert (out / "results" / "r.md").read_text().startswith("# r\n")
    assert "(results/r.md)" in (out / "results.md").read_text()
    (out / "results" / "r" / "results.json").write_text("{}")
    with pytest.raises(SystemExit, match="True"):
        results.main()
    assert "results.json: schema_version" in capsys.readouterr().out


def test_a_search_is_shown_by_validation_alone(tmp_path: Path) -> None:
    path = tmp_path / "search_r.toml"
    path.write_text(RECIPE)
    text = results.page(path, made('name="search_r"'))
    assert "| onehot | 100.0 ± 0.0 |" in text
    assert "98.8" not in text  # the test part's


def test_the_list_names_the_pages_that_are_there(tmp_path: Path, recipe: Path) -> None:
    pages = tmp_path / "results"
    pages.mkdir()
    assert "results/r.md" not in results.index([recipe], pages)
    (pages / "r.md").touch()
    assert "- [r](results/r.md): Two rules, compared\n" in results.index([recipe], pages)


@pytest.mark.parametrize("folder", sorted((ROOT / "docs" / "results").glob("*/")), ids=lambda folder: folder.name)
def test_what_is_kept_here_makes_the_page_beside_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    recipe = Path("recipes", "labels", f"{folder.name}.toml")
    kept = read_comparison([folder])
    assert folder.with_suffix(".md").read_text() == results.page(recipe, kept)
    commits = {str(result.provenance["commit"])[:7] for result in kept.results if result.state == "finished"}
    assert [commit for commit in sorted(commits) if commit not in results.opening(recipe)] == []


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "results").glob("*.md")), ids=lambda page: page.stem)
def test_a_recipe_that_was_run_opens_with_what_that_took(page: Path) -> None:
    recipe = ROOT / "recipes" / "labels" / f"{page.stem}.toml"
    said = results.opening(recipe)
    assert [sign for sign in EVIDENCE if not re.search(sign, said)] == []
    assert f"#     distill compare recipes/labels/{recipe.name} --jobs 2\n" in recipe.read_text()
    assert page.read_text().startswith(f"# {page.stem}\n\n{said}\n\n```sh\n")
