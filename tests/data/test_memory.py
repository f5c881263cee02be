import torch

from distill.data.memory import MemorySource, joined, open_digits


def test_digits_are_the_known_ones() -> None:
    source = open_digits()
    assert source.images.shape == (1797, 1, 8, 8)
    assert source.images.dtype == torch.uint8
    assert source.shape == (1, 8, 8)
    assert source.test_start is None
    assert source.classes == tuple("0123456789")
    assert torch.bincount(source.targets).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    levels = {round(value * 255 / 16) for value in range(17)}
    assert set(source.images.unique().tolist()) == levels
    # The first image of the set, a zero, as scikit-learn shows it: 0 0 5 13 9 1 0 0 in its first row.
    assert source.images[0, 0, 0].tolist() == [0, 0, 80, 207, 143, 16, 0, 0]


def test_fetch_takes_any_order_and_repeats() -> None:
    source = open_digits()
    indices = torch.tensor([5, 0, 5, 1796])
    assert torch.equal(source.fetch(indices), source.images[indices])
    assert source.fetch(indices[:0]).shape == (0, 1, 8, 8)


def test_fingerprint_sees_every_change() -> None:
    images = torch.arange(2 * 3 * 4).view(2, 1, 3, 4).to(torch.uint8)
    targets = torch.tensor([0, 1])
    base = MemorySource("a", ("x", "y"), images, targets)
    other = images.clone()
    other[1, 0, 2, 3] += 1
    changed = [
        MemorySource("a", ("x", "y"), other, targets),
        MemorySource("a", ("x", "y"), images, targets.flip(0)),
        MemorySource("a", ("y", "x"), images, targets),
        MemorySource("a", ("x", "y"), images.view(2, 1, 4, 3), targets),
        MemorySource("a", ("x", "y"), images, targets, test_start=1),
    ]
    prints = {source.fingerprint() for source in [base, *changed]}
    assert len(prints) == 1 + len(changed)
    assert MemorySource("a", ("x", "y"), images.clone(), targets.clone()).fingerprint() == base.fingerprint()
    assert len(base.fingerprint()) == 64


def test_joined_puts_the_training_part_first() -> None:
    parts = [(torch.full((n, 1, 2, 2), n, dtype=torch.uint8), torch.zeros(n, dtype=torch.int64)) for n in (3, 2)]
    source = joined("a", ("x",), parts)
    assert source.test_start == 3
    assert source.images[:, 0, 0, 0].tolist() == [3, 3, 3, 2, 2]
