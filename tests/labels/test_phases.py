"""When labels count as settled."""

from __future__ import annotations

import pytest

from distill.labels.phases import Settled


def settles(patience: int, *shares: float) -> int | None:
    """After which epoch, counted from 1."""
    settled = Settled(patience)
    return next((epoch for epoch, share in enumerate(shares, start=1) if settled.end_epoch(share)), None)


@pytest.mark.parametrize(
    ("patience", "shares", "epoch"),
    [
        (0, (0.1, 0.1, 0.0, 0.0), None),
        (1, (0.0, 0.0, 0.1, 0.2, 0.2), 5),
        (1, (0.1, 0.2, 0.15, 0.3), 3),
        (2, (0.1, 0.2, 0.15, 0.3, 0.3, 0.29), 6),
        (3, (0.2, 0.1, 0.21, 0.2, 0.2), None),
        (3, (0.0,) * 9, None),  # nothing has moved: there is nothing to keep
        (1, (0.1, 0.0), 2),
    ],
)
def test_labels_settle_when_no_more_of_them_move(patience: int, shares: tuple[float, ...], epoch: int | None) -> None:
    assert settles(patience, *shares) == epoch


def test_they_settle_once() -> None:
    settled = Settled(1)
    assert [settled.end_epoch(share) for share in (0.1, 0.1, 0.9, 0.9)] == [False, True, False, False]
    assert settled


def test_a_resumed_one_goes_on() -> None:
    first, second = Settled(2), Settled(2)
    for share in (0.1, 0.2, 0.2):
        first.end_epoch(share)
    second.load_state_dict(first.state_dict())
    assert not second
    assert second.end_epoch(0.2)
