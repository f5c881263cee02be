"""docs/results.md and docs/results/ from comparisons that were made: nothing in them is written by hand.

Each recipe has a page with the command that makes it, its opening comment, and the tables and verdicts that
`distill compare` wrote; and beside the page, in a folder of the same name, its recipe and every cell's numbers, from
which `distill compare --report-only` makes the tables again. A recipe's page is made of the runs that are there and of
the numbers that were kept before; results.md lists the pages.

Run: python benchmarks/results.py recipes/labels/*.toml --checkpoints checkpoints --out docs
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from distill.errors import UserError
from distill.recipe.digest import PLACES, differences
from distill.recipe.grid import Cell, comparison_folder, grid
from distill.recipe.load import load_recipe
from distill.report.arm_curves import arm_curves
from distill.report.comparison import Comparison
from distill.report.comparison_folder import read_comparison, write_plan
from distill.report.comparison_markdown import markdown
from distill.report.comparison_table import Column, mean_of
from distill.report.curve_figure import curve_figure
from distill.report.curves import CURVES
from distill.report.published import COMPARISON, without_runs, write_results
from distill.report.results import CellResult
from distill.store.atomic import writable_folder

FIGURE = "curves.png"
INDEX = """# Results

{listed}

Made by `python benchmarks/results.py RECIPE...` from the folders of the comparisons, which the commands on the pages
make and go on with; nothing in them is written by hand. Every number but those of searches is of the test part, which
chose nothing: validation chose epochs, and what the recipes set was chosen on validation images of seeds that are not
among those reported. (Digits has no test part of its own: there it is drawn by seed, and two fifths to a half of a
seed's test images were validation images of the searches' seeds.) Where a page links to them, every cell's numbers are
kept beside it, and `distill compare --report-only FOLDER` draws tables, verdicts and a page from them, with other runs
if you like.
"""


def page(path: Path, comparison: Comparison) -> str:
    """Markdown of one recipe."""
    name = path.stem
    parts = [f"# {name}", opening(path), f"```sh\ndistill compare {path.as_posix()} --jobs 2\n```"]
    parts.append(f"{cost(comparison)} [Every cell's numbers]({name}/results.json).")
    if has_curves(comparison):
        parts.append(f"![what validation said after each epoch]({name}/{FIGURE})")
        parts.append(f"Mean over the seeds, and from the lowest one to the highest: [the numbers]({name}/{CURVES}).")
    parts.append(searched(comparison) if name.startswith("search_") else body(markdown(comparison)))
    return "\n\n".join(parts) + "\n"


def has_curves(comparison: Comparison) -> bool:
    """Whether it is no search, and any teacher is known epoch by epoch."""
    return not comparison.name.startswith("search_") and bool(arm_curves(comparison, "validation_accuracy"))


def known(path: Path, checkpoints: str, kept: Path) -> tuple[Comparison, int]:
    """What the runs, and where these are silent the numbers that were kept, know of a recipe.

    Returns:
        The comparison, and how many finished cells were left out: they are of a recipe that was another.
    """
    recipe = load_recipe(path, [f'checkpoints="{checkpoints}"'])
    places = [place for place in (comparison_folder(recipe), kept / path.stem) if (place / COMPARISON).is_file()]
    told = [result for place in places for result in read_comparison([place]).results if result.state == "finished"]
    results = []
    for cell in grid(recipe):
        same = (result for result in told if result.cell.key == cell.key and not _differ(result.cell, cell))
        result = next(same, None)
        results.append(CellResult(cell, "missing", "not run") if result is None else replace(result, cell=cell))
    used = {result.cell.key for result in results if result.state == "finished"}
    return without_runs(Comparison(recipe, tuple(results))), len({result.cell.key for result in told} - used)


def _differ(one: Cell, other: Cell) -> bool:
    found = differences(one.recipe, other.recipe, ("seed", "data", "views", "teacher", "export", "student"))
    return any(not line.startswith(PLACES) for line in found)


def keep(comparison: Comparison, folder: Path) -> None:
    """Its recipe and every cell's numbers."""
    writable_folder(folder)
    finished = {result.cell.key for result in comparison.results if result.state == "finished"}
    write_plan(comparison.recipe, folder, finished)
    write_results(comparison, folder)
    if has_curves(comparison):
        curve_figure(comparison, folder / FIGURE)


def index(recipes: Sequence[Path], pages: Path) -> str:
    """A line for each page, with the first sentence of its recipe."""
    lines = []
    for path in recipes:
        there = pages / f"{path.stem}.md"
        if there.is_file():
            first = " ".join(opening(path).split("\n\n")[0].split()).split(". ")[0].rstrip(".:")
            lines.append(f"- [{path.stem}]({pages.name}/{there.name}): {first}")
    return INDEX.format(listed="\n".join(lines))


def searched(comparison: Comparison) -> str:
    """Of seeds that nothing is claimed on, but settings are chosen by: what validation says of each."""
    seeds = ", ".join(map(str, comparison.seeds))
    text = (
        f"Validation part, seed {seeds}. The numbers that are kept have the test part too; it chose nothing, and "
        "nothing is claimed of it."
    )
    lines = [
        "| arm | last epoch % | best epoch % | NLL | labels right % | sets |",
        "| --- |" + " ---: |" * 4 + " --- |",
    ]
    columns = [
        Column("", "validation_accuracy", 100, 1),
        Column("", "best_validation_accuracy", 100, 1),
        Column("", "validation_nll", 1, 3),
        Column("", "labels_right", 100, 1),
    ]
    for row in comparison.rows:
        sets = ", ".join(f"`{text}`" for text in comparison.recipe.compare.assignments(row.name))
        cells = [row.name, *(mean_of(row, column) for column in columns), sets or "the recipe as it is"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n\n".join([text, "\n".join(lines)])


def opening(path: Path) -> str:
    """The comment that a recipe opens with, less its commands."""
    lines = [""]
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            break
        text = line.removeprefix("#").strip()
        if not line.startswith("#     ") and (text or lines[-1]):  # a command leaves two empty lines behind
            lines.append(text)
    return "\n".join(lines).strip()


def cost(comparison: Comparison) -> str:
    """Hours of its finished cells, added up."""
    done = [result for result in comparison.results if result.state == "finished"]
    hours = sum(result.seconds for result in done) / 3600
    devices = {result.provenance.get("machine", {}).get("device", "cpu") for result in done}
    of = "of one core" if all(device.startswith("cpu") for device in devices) else "of cells side by side"
    return f"{len(done)} of {len(comparison.results)} cells, {hours:.1f} hours {of}."


def body(text: str) -> str:
    """Without its title."""
    return "\n".join(text.split("\n")[2:]).rstrip()


def main() -> None:
    """Writes the pages and their list."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", type=Path, nargs="+")
    parser.add_argument("--checkpoints", default="checkpoints")
    parser.add_argument("--out", type=Path, default=Path("docs"))
    given = parser.parse_args()
    pages = writable_folder(given.out / "results")
    failed = False
    for path in given.recipes:
        try:
            comparison, left_out = known(path, given.checkpoints, pages)
        except UserError as error:
            print(f"{path}: {error.message}\n  {error.cure}")
            failed = True
            continue
        print(f"{path}: {cost(comparison)}" + (f" {left_out} of another recipe are left out." if left_out else ""))
        if any(result.state == "finished" for result in comparison.results):
            keep(comparison, pages / path.stem)
            (pages / f"{path.stem}.md").write_text(page(path, comparison))
    everything = sorted({*given.recipes, *Path("recipes/labels").glob("*.toml")}, key=_order)
    (given.out / "results.md").write_text(index(everything, pages))
    sys.exit(failed)


def _order(path: Path) -> tuple[bool, str]:
    """Searches last."""
    return path.stem.startswith("search_"), path.stem


if __name__ == "__main__":
    main()
