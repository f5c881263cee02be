from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from distill.store.logits import LogitWriter
from distill.store.manifest import Origin

ROWS, CLASSES, VIEWS = 11, 3, 4


@pytest.fixture
def origin() -> Origin:
    return Origin(
        teacher_digest="t" * 64,
        recipe_digest="r" * 64,
        data_source="digits",
        data_fingerprint="d" * 64,
        given_labels_sha256="0" * 64,
        label_rule="instance",
        class_names=("cat", "dog", "eel"),
        views={"crop_padding": 4, "flip": True},
        view_count=VIEWS,
        view_seed=7,
        mean=(0.5,),
        std=(0.25,),
    )


@pytest.fixture
def indices() -> Tensor:
    """Source indices [11], neither dense nor sorted."""
    return torch.tensor([40, 3, 17, 5, 99, 0, 12, 64, 8, 21, 33])


@pytest.fixture
def logits() -> Tensor:
    """[V, N, C], exact in float16."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(VIEWS, ROWS, CLASSES, generator=generator).half().float()


@pytest.fixture
def writer(origin: Origin, indices: Tensor) -> Callable[..., LogitWriter]:
    def make(folder: Path, **changes: Any) -> LogitWriter:
        arguments: dict[str, Any] = {
            "origin": origin,
            "indices": indices,
            "classes": CLASSES,
            "views": VIEWS,
            "format": "float16",
            "shard_rows": 4,
        }
        return LogitWriter(folder, **(arguments | changes))

    return make


@pytest.fixture
def store(tmp_path: Path, writer: Callable[..., LogitWriter], logits: Tensor) -> Path:
    """A finished store of 4 views and 11 rows, 3 shards a view."""
    made = writer(tmp_path / "logits")
    for piece in made.missing():
        made.write(piece, logits[piece.view, piece.start : piece.stop])
    made.finish()
    return tmp_path / "logits"
