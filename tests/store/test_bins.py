"""Bins of confidence in a run folder: what is read is what was written, and belongs to the run."""

from __future__ import annotations

from pathlib import Path

import pytest

from distill.errors import StoreError
from distill.store.bins import BINS_FILE, Bin, read_bins, write_bins

ACCURACY, ECE = 5 / 7, (abs(0.9 - 1) + abs(5.4 - 4)) / 7


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    assert read_bins(tmp_path / "run", ACCURACY, ECE) is None
    write_bins(tmp_path / "run", [1, 0, 6], [0.9, 0.0, 5.4], [1, 0, 4])
    found = read_bins(tmp_path / "run", ACCURACY, ECE)
    assert found == (Bin(1, 0.9, 1.0), Bin(0, 0.0, 0.0), Bin(6, pytest.approx(0.9), pytest.approx(4 / 6)))


def test_bins_of_another_network_are_refused(tmp_path: Path) -> None:
    write_bins(tmp_path, [1, 0, 6], [0.9, 0.0, 5.4], [1, 0, 4])
    with pytest.raises(StoreError, match=r"reliability.json: is of another network: .* expected 0.7143 and 0.1000"):
        read_bins(tmp_path, ACCURACY, 0.1)
    with pytest.raises(StoreError, match="is of another network"):
        read_bins(tmp_path, 0.5, ECE)


@pytest.mark.parametrize(
    "text",
    [
        "[",
        "{}",
        '{"count": [1], "confidence": [0.5], "correct": [2]}',
        '{"count": [1], "confidence": [1.5], "correct": [1]}',
        '{"count": [1, 1], "confidence": [0.5], "correct": [1]}',
        '{"count": [1], "confidence": ["<b>"], "correct": [1]}',
    ],
)
def test_damage_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / BINS_FILE).write_text(text)
    with pytest.raises(StoreError, match=r"reliability\.json"):
        read_bins(tmp_path, 1.0, 0.0)
