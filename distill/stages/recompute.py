"""Rows of a store made again by the teacher and compared: does each belong to its image, its view and this teacher?

Digests say that a store is as it was written. This says that it was right to write it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from distill.data.loader import open_data
from distill.errors import StoreError
from distill.report.runs import Run
from distill.stages.finished import STORE, load_teacher, map_stages, origin_of, teacher_outputs, teacher_weights
from distill.store.formats.layout import HOLDS, Holds
from distill.store.logits import LogitStore
from distill.store.manifest import EXPORT_AGAIN
from distill.store.shards import encodings
from distill.training.device import prepare_device

# How far a forward pass may be off when it is made again in other batches, as a share of the row's largest value: by
# float32's rounding, or by TensorFloat-32's where a GPU is or was at work.
_REPEAT = {"cpu": 1e-4, "cuda": 4e-3}
_NAMED = 5


@dataclass(frozen=True)
class Recomputed:
    """What was made again: `rows` of the `total`, drawn by `seed`; all agree."""

    rows: int
    total: int
    seed: int
    format: str

    def __str__(self) -> str:
        drawn = f"{self.rows:,} of {self.total:,} rows made again (seed {self.seed})"
        return f"{drawn}: all as the teacher says, within the error of {self.format}"


def recompute(run: Run, count: int, seed: int) -> Recomputed:
    """Makes some rows of a run's store again.

    Args:
        run: the run folder of an exported teacher.
        count: rows to draw from all images and views, without repetition; at most all.
        seed: of the draw.

    Raises:
        StoreError: rows differ by more than the store's format and rounding explain (names image and view), or the
            store is damaged or another teacher's.
        UserError: the teacher or the data cannot be had.
    """
    recipe = run.recipe
    device = prepare_device(recipe)
    data = open_data(recipe)
    weights, weights_sha256 = teacher_weights(run, recipe, data)
    store = LogitStore.open(run.folder / STORE, expect=origin_of(data, recipe, weights_sha256))
    model = load_teacher(recipe, data, weights, device)
    stages = map_stages(model, data, recipe, store.indices, device) if store.manifest.maps else ()
    if [stage.size for stage in stages] != [*(store.manifest.maps or ())]:
        raise StoreError(
            f"{store.folder}: its attention maps are of sizes {store.manifest.maps}, "
            f"the teacher's stages give {[stage.size for stage in stages]}",
            cure=EXPORT_AGAIN,
        )
    on_gpu = device.type == "cuda" or store.manifest.versions.get("device") != "cpu"
    share = _REPEAT["cuda" if on_gpu else "cpu"]
    total = len(store.indices) * store.views
    drawn = torch.tensor(random.Random(seed).sample(range(total), min(count, total)))
    wrong: list[str] = []
    for view, rows in _by_view(drawn, store):
        outputs = teacher_outputs(
            model, data, recipe, rows, view, device, features=store.manifest.features is not None, stages=stages
        )
        for chosen, values in zip(torch.split(rows, recipe.export.batch_size), outputs, strict=True):
            for holds, again in zip(HOLDS, values, strict=True):
                if again is not None:
                    wrong += _differing(store, holds, chosen, view, again, share)
    if wrong:
        more = [f"... and {len(wrong) - _NAMED} more"] if len(wrong) > _NAMED else []
        raise StoreError(
            "\n".join([*wrong[:_NAMED], *more]),
            cure=f"These rows (drawn by seed {seed}) are not the teacher's: delete {store.folder} and export again.",
        )
    return Recomputed(len(drawn), total, seed, store.manifest.format)


def _by_view(drawn: Tensor, store: LogitStore) -> Iterator[tuple[int, Tensor]]:
    """Of row numbers that count through view after view: each view that is there, and the images, in order."""
    drawn = drawn.sort().values
    views, places = drawn // len(store.indices), drawn % len(store.indices)
    for view in sorted(set(views.tolist())):
        yield view, store.indices[places[views == view]]


def _differing(store: LogitStore, holds: Holds, rows: Tensor, view: int, values: Tensor, share: float) -> Iterator[str]:
    """A sentence for each row of which something else is stored than `values` [b, C or D]."""
    parts = store.parts(holds, rows, torch.full_like(rows, view))
    slack = share * values.double().abs().amax(-1) + 1e-6
    excess = encodings(store.manifest)[holds].excess(parts, values, slack)
    for row, beyond in zip(rows.tolist(), excess.tolist(), strict=True):
        # Written so that NaN, which is neither above nor below anything, counts as a difference.
        if not beyond <= 0:
            format = store.manifest.format if holds == "logits" else "float16"
            yield (
                f"{store.folder}: image {row}, view {view}: the stored {holds} differ from the teacher's "
                f"by {beyond:.3g} more than {format} and rounding explain"
            )
