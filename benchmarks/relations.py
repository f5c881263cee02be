"""docs/relations.md: do learned labels know which classes are alike? Over the seeds of a comparison.

For each comparison that is named, as FOLDER:ARM:OTHER, and each seed, the class means of the one arm's learned labels
against the confusions, on the test part, of the other arm's teacher of the *next* seed, which has seen other images,
other noise and other weights. Spearman's rank correlation over the ordered pairs of classes, its p value by Mantel's
test, and over the seeds a mean and a 95 % interval.

Run: python benchmarks/relations.py checkpoints/memorising-compare:instance:onehot ... --out docs/relations.md
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

Made by `python benchmarks/relations.py {given}`; nothing here is written by hand.
Class means of learned labels, against the confusions of a teacher of the next seed on its test part: Spearman's rank
correlation over the ordered pairs of classes. One seed's p value is Mantel's: the share of renamings of the classes
that correlate as well.
"""

SECTION = """
## {name}: labels of `{labels}`, confusions of `{confusions}`

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


def cells(found: RelationReport) -> str:
    """Correlation and p; why there are none."""
    if found.correlation is None:
        return f"- ({found.missing}) | -"
    return f"{found.correlation:.3f} | {found.p_value:.4f}"


def section(named: str, beside: Path) -> str:
    """Markdown of one comparison, with its picture laid beside the page."""
    path, labels, confusions = named.rsplit(":", 2)
    folder = Path(path)
    name = folder.name.removesuffix("-compare")
    found = related(folder, labels, confusions, folder / "relations" / labels)
    text = SECTION.format(name=name, labels=labels, confusions=confusions)
    text += "".join(f"| {a} | {b} | {cells(r)} |\n" for (a, b), r in found.items())
    values = [r.correlation for r in found.values() if r.correlation is not None]
    if not values:
        return f"{text}\nNo correlation, so no picture: a table of each row is constant.\n"
    first = next(r for r in found.values() if r.picture is not None)
    which = "the first row" if first is next(iter(found.values())) else "the first row that has a correlation"
    text += f"\nRank correlation over {first.pairs} pairs: {interval(summary(values))}. The picture is of {which}.\n"
    picture = beside / f"relations-{name}-{labels}.png"
    shutil.copyfile(str(first.picture), picture)
    return text + f"\n![learned labels and confusions]({picture.name})\n"


def main() -> None:
    """Writes the page and its pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comparisons", nargs="+", metavar="FOLDER:ARM:OTHER")
    parser.add_argument("--out", type=Path, default=Path("docs/relations.md"))
    given = parser.parse_args()
    names = " ".join(f"checkpoints/{Path(named).name}" for named in given.comparisons)
    text = HEAD.format(given=names) + "".join(section(named, given.out.parent) for named in given.comparisons)
    given.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
