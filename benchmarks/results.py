"""docs/results.md from the folders of finished comparisons: nothing in it is written by hand.

Each recipe's section has the command that makes it, its opening comment, and the tables and verdicts that
`distill compare` wrote. A recipe whose comparison is not there, or not whole, says so.

Run: python benchmarks/results.py recipes/labels/*.toml --checkpoints checkpoints --out docs/results.md
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from distill.errors import UserError
from distill.recipe.grid import comparison_folder
from distill.recipe.load import load_recipe
from distill.report.comparison import Comparison
from distill.report.comparison_folder import read_comparison
from distill.report.comparison_markdown import markdown
from distill.report.comparison_table import Column, mean_of

HEAD = """# Results

Made by `python benchmarks/results.py {recipes}` from the folders of the comparisons, which the commands below make and
go on with; nothing here is written by hand. Every number but those of searches is of the test part, which chose
nothing: validation chose epochs, and what the recipes set was chosen on validation images of seeds that are not among
those reported.
"""


def sections(recipes: Sequence[Path], checkpoints: str) -> Iterator[str]:
    """Markdown, a section a recipe."""
    for path in recipes:
        recipe = load_recipe(path, [f'checkpoints="{checkpoints}"'])
        yield f"## {recipe.name}\n\n{opening(path)}"
        yield f"```sh\ndistill compare {path.as_posix()} --jobs 2\n```"
        try:
            comparison = read_comparison([comparison_folder(recipe)])
        except UserError as error:
            yield f"Not there: {error.message.replace(checkpoints, 'checkpoints')}."
            continue
        yield cost(comparison)
        yield searched(comparison) if recipe.name.startswith("search_") else demoted(markdown(comparison))


def searched(comparison: Comparison) -> str:
    """Of seeds that nothing is claimed on, but settings are chosen by: what validation says of each."""
    seeds = ", ".join(map(str, comparison.seeds))
    text = f"Validation part, seed {seeds}; nothing here is of the test part, as nothing is claimed."
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
    """Core-hours of its finished cells."""
    done = [result for result in comparison.results if result.state == "finished"]
    hours = sum(result.seconds for result in done) / 3600
    return f"{len(done)} of {len(comparison.results)} cells, {hours:.1f} hours of one core."


def demoted(text: str) -> str:
    """Without its title, and its headings a level lower."""
    lines = text.split("\n")[2:]
    return "\n".join(f"#{line}" if line.startswith("## ") else line for line in lines).rstrip()


def main() -> None:
    """Writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", type=Path, nargs="+")
    parser.add_argument("--checkpoints", default="checkpoints")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    named = " ".join(path.as_posix() for path in given.recipes)
    text = "\n\n".join([HEAD.format(recipes=named).rstrip(), *sections(given.recipes, given.checkpoints)]) + "\n"
    print(text)
    if given.out:
        given.out.write_text(text)


if __name__ == "__main__":
    main()
