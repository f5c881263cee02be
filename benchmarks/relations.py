"""docs/relations.md: do learned labels know which classes are alike? Over the seeds of a comparison.

For each seed, the class means of one arm's learned labels against the confusions, on the test part, of another arm's
teacher of the *next* seed, which has seen other images, other noise and other weights. Spearman's rank correlation over
the ordered pairs of classes, its p value by Mantel's test, and over the seeds a mean and a 95 % interval. The picture
is that of the first seed.

Run: python benchmarks/relations.py checkpoints/memorising-compare --labels instance --confusions onehot \\
         --out docs/relations.md
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from distill.recipe.load import load_recipe
from distill.report.comparison_folder import read_comparison
from distill.report.label_report import RelationReport
from distill.report.runs import open_run
from distill.report.stats import Summary, summary
from distill.stages.relations import relate

HEAD = """# Class relations

Made by `python benchmarks/relations.py {folder} --labels {labels} --confusions {confusions}`; nothing here is written
by hand. Class means of the labels that `{labels}` learned, against the confusions of the `{confusions}` teacher of the
next seed on its test part: Spearman's rank correlation over the {pairs} ordered pairs of classes. One seed's p value is
Mantel's: the share of renamings of the classes that correlate as well.

| labels' seed | confusions' seed | rank correlation | p |
| ---: | ---: | ---: | ---: |
"""


def related(folder: Path, labels: str, confusions: str, out: Path) -> dict[tuple[int, int], RelationReport]:
    """By both seeds."""
    comparison = read_comparison([folder])
    ours, theirs = (comparison.row(name, "teacher").results for name in (labels, confusions))
    found = {}
    seeds = [seed for seed in comparison.seeds if seed in ours and seed in theirs]
    for seed, other in zip(seeds, seeds[1:] + seeds[:1], strict=True):
        run, judge = open_run(folder / ours[seed].run), open_run(folder / theirs[other].run)
        place = out / str(seed)
        place.mkdir(parents=True, exist_ok=True)
        recipe = load_recipe(run.folder / "recipe.toml", [])
        found[seed, other] = relate(run, recipe, judge, lambda event: None, place)
    return found


def interval(found: Summary) -> str:
    """`mean .71, 95 % interval .65 to .77`."""
    if found.interval is None:
        return f"mean {found.mean:.2f}, one seed, so no interval"
    return f"mean {found.mean:.2f}, 95 % interval {found.interval[0]:.2f} to {found.interval[1]:.2f}, {found.n} seeds"


def main() -> None:
    """Writes the page and its picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--labels", default="instance")
    parser.add_argument("--confusions", default="onehot")
    parser.add_argument("--out", type=Path, default=Path("docs/relations.md"))
    given = parser.parse_args()
    pictures = given.folder / "relations"
    found = related(given.folder, given.labels, given.confusions, pictures)
    first = next(iter(found.values()))
    named = {"labels": given.labels, "confusions": given.confusions, "pairs": first.pairs}
    text = HEAD.format(folder=f"checkpoints/{given.folder.name}", **named)
    text += "".join(f"| {a} | {b} | {r.correlation:.3f} | {r.p_value:.4f} |\n" for (a, b), r in found.items())
    text += f"\nRank correlation: {interval(summary([r.correlation for r in found.values()]))}.\n"
    picture = given.out.with_suffix(".png")
    shutil.copyfile(first.picture, picture)
    text += f"\n![learned labels and confusions]({picture.name})\n"
    given.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
