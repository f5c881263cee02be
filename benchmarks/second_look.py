"""docs/second_look.md: the main pairs of the comparisons once more, on images that had no part in anything.

Every comparison reports on the same 10,000 test images, and looking at one test part often wears it out. A run takes
only some thousands of the 60,000 images of Fashion-MNIST's official training part. Here its finished networks answer
the others: those that are in no part of the run, and in no validation part of the searches that its settings came from.
How many they are is told for each comparison, from the seed that has the fewest to the one that has the most. No
network is trained, nothing is chosen, and each run's test accuracy has to come again first.

Run: python benchmarks/second_look.py recipes/labels/regularised_best.toml ... --checkpoints checkpoints --out docs
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distill.data.loader import ImageData, open_data, ordered_batches
from distill.recipe.grid import comparison_folder
from distill.recipe.load import load_recipe
from distill.report.comparison_folder import read_comparison
from distill.report.runs import open_run
from distill.report.stats import Paired, holm, paired, summary
from distill.stages.common import as_teacher_sees
from distill.stages.finished import load_teacher
from distill.store.json_files import write_json

# Of each comparison: the learned labels' arm, what it is compared with, and the searches that settings came from.
LOOKS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "memorising": (
        "instance-decay",
        ("onehot", "onehot-decay", "smoothing", "online-smoothing", "joint", "elr", "pencil-soft-decay"),
        ("search_memorising", "search_posterior"),
    ),
    "memorising_narrow": (
        "instance",
        ("onehot", "onehot-decay", "smoothing", "online-smoothing", "joint", "elr", "pencil"),
        ("search_memorising_narrow", "search_memorising", "search_posterior"),
    ),
    "memorising_best": ("instance", ("pencil",), ("search_memorising", "search_posterior")),
    "unclean": (
        "instance-next",
        ("onehot", "onehot-decay", "smoothing", "smoothing-decay", "pencil-soft-decay"),
        ("search_unclean", "search_memorising"),
    ),
    "asymmetric_40": (
        "instance-confusions",
        ("onehot", "onehot-decay", "smoothing", "elr", "pencil", "instance", "no-judge"),
        ("search_asymmetric", "search_asymmetric_decay"),
    ),
    "regularised_best": ("instance", ("onehot", "smoothing"), ("search_regularised",)),
    "regularised_known": ("instance", ("onehot", "smoothing"), ("search_regularised", "search_known")),
    "clean_1000_best": ("fixed", ("onehot", "smoothing"), ("search_clean_1000", "search_clean_10000")),
    "clean_4000_best": ("fixed", ("onehot", "smoothing"), ("search_clean", "search_clean_10000")),
    "clean_4000_again": ("fixed", ("smoothing",), ("search_clean", "search_clean_10000")),
    "clean_10000_best": ("fixed", ("onehot", "smoothing"), ("search_clean_10000",)),
}
SAME = 0.002  # what the recorded test accuracy may differ by
BATCH = 500
Looked = dict[str, dict[str, Any]]  # of a comparison: `images` and `arms`, these by name and seed
HEAD = """# A second look

{about}

{command}

Learned labels less each other arm, in points of accuracy after the last epoch, paired by seed, with 95 % intervals
(Student's t); p for the other images, after Holm's correction over the pairs of the comparison. NLL is after
temperature scaling, where the run has a temperature.

| comparison | seeds | other images | learned | less | test part | other images | p | NLL, other images |
| --- | ---: | ---: | ---: | --- | ---: | ---: | ---: | ---: |
"""


def measure(recipe: Path, checkpoints: str) -> Looked:
    """Every run of a comparison's pairs on its other images.

    Raises:
        ValueError: a run's test accuracy is not the recorded one.
    """
    learned, partners, searches = LOOKS[recipe.stem]
    chosen_on = torch.cat([validation_images(recipe.with_stem(name)) for name in searches])
    folder = comparison_folder(load_recipe(recipe, [f'checkpoints="{checkpoints}"']))
    comparison = read_comparison([folder])
    arms: dict[str, dict[str, dict[str, float]]] = {}
    sizes = []
    for arm in (learned, *partners):
        for seed, result in comparison.row(arm, "teacher").results.items():
            arms.setdefault(arm, {})[str(seed)] = found = look(folder / result.run, chosen_on)
            sizes.append(int(found["images"]))
            print(f"{recipe.stem} {arm} {seed}: test {found['test_accuracy']:.4f}, others {found['accuracy']:.4f}")
    return {"images": {"least": min(sizes), "most": max(sizes)}, "arms": arms}


def validation_images(search: Path) -> Tensor:
    """Source indices of the images that a search, over all its seeds, chose on: int64 [n]."""
    seeds = load_recipe(search, []).compare.seeds
    return torch.cat([open_data(load_recipe(search, [f"seed={seed}"])).splits.validation for seed in seeds])


def look(folder: Path, chosen_on: Tensor) -> dict[str, float]:
    """One finished teacher."""
    run = open_run(folder)
    metrics, device = run.metrics("teacher"), torch.device("cpu")
    data = as_teacher_sees(open_data(run.recipe), run.recipe)
    model = load_teacher(run.recipe, data, run.folder / "model.safetensors", device)
    test, _ = scores(model, data, data.splits.test, 1.0)
    if abs(test - metrics["test_accuracy"]) > SAME:
        raise ValueError(f"{folder}: test accuracy is {test:.4f}, recorded is {metrics['test_accuracy']:.4f}")
    rows = others(data, chosen_on)
    temperature = metrics.get("scaling_temperature")
    accuracy, nll = scores(model, data, rows, temperature or 1.0)
    found = {"images": rows.numel(), "accuracy": accuracy, "test_accuracy": metrics["test_accuracy"]}
    return found | ({"nll_scaled": nll} if temperature else {})


def others(data: ImageData, chosen_on: Tensor) -> Tensor:
    """Images of the official training part that neither the run nor a search has used: int64 [n], ascending."""
    parts = data.splits
    free = torch.ones(data.source.test_start or 0, dtype=torch.bool)
    free[torch.cat([parts.train, parts.validation, parts.meta, chosen_on])] = False
    return free.nonzero().flatten()


@torch.no_grad()
def scores(model: nn.Module, data: ImageData, rows: Tensor, temperature: float) -> tuple[float, float]:
    """Accuracy and, after division by the temperature, NLL against the true labels."""
    right, nll = 0, 0.0
    for batch in ordered_batches(data, rows, batch_size=BATCH, device="cpu"):
        logits, true = model(batch.images).double(), data.labels.true[batch.rows]
        right += int((logits.argmax(1) == true).sum())
        nll += float(nn.functional.cross_entropy(logits / temperature, true, reduction="sum"))
    return right / rows.numel(), nll / rows.numel()


def page(looks: Mapping[str, Looked]) -> str:
    """Markdown of all comparisons that were looked at."""
    docstring = (__doc__ or "").split("\n\n")
    command = f"`python benchmarks/second_look.py {' '.join(f'recipes/labels/{name}.toml' for name in looks)}`"
    lines = [line for name in LOOKS if name in looks for line in rows_of(name, looks[name])]
    return HEAD.format(about="\n\n".join(docstring[1:-1]), command=command) + "\n".join(lines) + "\n"


def rows_of(name: str, looked: Looked) -> list[str]:
    """A line for each pair."""
    learned, partners, _ = LOOKS[name]
    arms = looked["arms"]
    pairs = [partner for partner in partners if partner in arms]
    corrected = holm([_pair(arms, learned, partner, "accuracy").p or 1.0 for partner in pairs])
    least, most = looked["images"]["least"], looked["images"]["most"]
    lines = []
    for partner, p in zip(pairs, corrected, strict=True):
        test, other = (_pair(arms, learned, partner, key) for key in ("test_accuracy", "accuracy"))
        ours = summary([arms[learned][str(seed)]["accuracy"] for seed in other.seeds]).mean
        images = f"{least:,} to {most:,}" if least != most else f"{least:,}"
        cells = [f"[{name}](results/{name}.md)", str(len(other.seeds)), images, f"{100 * ours:.1f}", partner]
        cells += [_points(test), _points(other), "<.001" if p < 0.001 else f"{p:.3f}", _nll(arms, learned, partner)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _pair(arms: Mapping[str, Any], first: str, second: str, key: str) -> Paired:
    def by_seed(arm: str) -> dict[int, float]:
        return {int(seed): found[key] for seed, found in arms[arm].items() if key in found}

    return paired(by_seed(first), by_seed(second))


def _points(pair: Paired, scale: float = 100, digits: int = 2) -> str:
    found = pair.difference
    if found is None or found.interval is None:
        return "-"
    low, high = found.interval
    return f"{scale * found.mean:+.{digits}f} ({scale * low:.{digits}f} to {scale * high:.{digits}f})"


def _nll(arms: Mapping[str, Any], first: str, second: str) -> str:
    return _points(_pair(arms, first, second, "nll_scaled"), 1, 3)


def main(arguments: Sequence[str] | None = None) -> None:
    """Looks, keeps the numbers, and writes the page of all that are kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", type=Path, nargs="*", help="none: the page alone, of the numbers that are kept")
    parser.add_argument("--checkpoints", default="checkpoints")
    parser.add_argument("--out", type=Path, default=Path("docs"))
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    kept = given.out / "second_look.json"
    looks: dict[str, Looked] = json.loads(kept.read_text()) if kept.is_file() else {}
    for recipe in given.recipes:
        looks[recipe.stem] = measure(recipe, given.checkpoints)
        write_json(kept, looks)
    (given.out / "second_look.md").write_text(page({name: looks[name] for name in LOOKS if name in looks}))


if __name__ == "__main__":
    main()
