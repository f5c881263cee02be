"""A GPU's views are the CPU's, to the bit."""

from __future__ import annotations

import pytest
import torch

from distill.data.batches import Augmentation, Maker
from distill.data.memory import MemorySource
from distill.recipe.schema import ViewsRecipe
from tests.data.drawn import pictures
from tests.data.test_views_laws import PLANS


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 33, 33), (3, 224, 224)])
def test_the_same_bits_as_on_the_cpu(name: str, shape: tuple[int, int, int]) -> None:
    images, targets = pictures(64, shape), torch.zeros(64, dtype=torch.int64)
    source = MemorySource("pictures", ("a", "b"), images, targets)
    rows, k = torch.arange(64), torch.arange(64) % 9
    made = []
    for device in ("cpu", "cuda"):
        maker = Maker(
            source,
            targets,
            mean=(0.5,) * shape[0],
            std=(0.5,) * shape[0],
            device=torch.device(device),
            augmentation=Augmentation(ViewsRecipe.model_validate(PLANS[name]), 3, True, rows),
        )
        wanted = maker.want(rows, k)
        made.append(maker.pixels(wanted, source.fetch(wanted.fetched)).cpu())
    assert torch.equal(*made)
