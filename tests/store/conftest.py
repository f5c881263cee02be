from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Tensor

from distill.store.origin import Origin
from distill.store.writer import LogitWriter
from tests.store import cases


@pytest.fixture
def origin() -> Origin:
    return cases.ORIGIN


@pytest.fixture
def indices() -> Tensor:
    return cases.INDICES


@pytest.fixture
def logits() -> Tensor:
    return cases.logits()


@pytest.fixture
def writer() -> Callable[..., LogitWriter]:
    return cases.begin


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A finished float16 store of 4 views and 11 rows, 3 shards a view."""
    return cases.export(tmp_path / "logits")


@pytest.fixture(params=cases.KINDS)
def any_store(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A finished store of each kind."""
    return cases.export(tmp_path / "logits", **cases.KINDS[request.param])
