"""Each format against float64, on rows chosen to be awkward: ties, equal logits, huge gaps, two classes, k = C."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from distill.store.formats import int8, plain, topk
from distill.store.formats.encoding import half_encoding, logit_encoding
from distill.store.formats.layout import Column, class_dtype, logit_columns, row_bytes


def rows(largest: float) -> st.SearchStrategy[Tensor]:
    """float32 [R, C]: plain logits, few distinct values (ties), one value, or anything up to `largest`."""
    few = st.sampled_from([0.0, 1.0, -1.0, 2.5, 1e-3])
    values = st.one_of(
        st.floats(-30, 30, width=32),
        few,
        st.sampled_from([0.0, largest, -largest, 1e-6, 7.0]),
        st.floats(-largest, largest, width=32, allow_subnormal=False),
    )
    shapes = st.tuples(st.integers(1, 4), st.integers(2, 9))
    return shapes.flatmap(
        lambda shape: st.lists(values, min_size=shape[0] * shape[1], max_size=shape[0] * shape[1]).map(
            lambda flat: torch.tensor(flat, dtype=torch.float32).view(shape)
        )
    )


def exact_log_sum_exp(values: list[float]) -> float:
    """In Python's own floats, summed exactly."""
    top = max(values, default=-math.inf)
    return top + math.log(math.fsum(math.exp(v - top) for v in values)) if values else -math.inf


@given(logits=rows(65504.0))
@settings(deadline=None, max_examples=100)
def test_float16_is_within_half_a_unit_in_the_last_place(logits: Tensor) -> None:
    column = Column("logits", "float16", logits.shape[1])
    parts = plain.encode(logits, column)
    assert parts["logits"].dtype == torch.float16
    error = (plain.decode(parts, column).double() - logits.double()).abs()
    assert (error <= plain.bound(logits.double(), "float16")).all()
    assert plain.problem(parts, column) == ""


@given(logits=rows(2.0**127))
@settings(deadline=None, max_examples=30)
def test_float32_is_exact(logits: Tensor) -> None:
    column = Column("logits", "float32", logits.shape[1])
    assert torch.equal(plain.decode(plain.encode(logits, column), column), logits)


@given(logits=rows(int8.LIMIT))
@settings(deadline=None, max_examples=200)
def test_int8_takes_the_nearest_level_and_keeps_its_bound(logits: Tensor) -> None:
    parts = int8.encode(logits)
    assert [part.dtype for part in parts.values()] == [torch.int8, torch.float32, torch.float32]
    error = (int8.decode(parts).double() - logits.double()).abs()
    assert (error <= int8.bound(logits.double()).unsqueeze(-1)).all()
    assert int8.problem(parts) == ""
    for row in range(len(logits)):
        centre, scale = (Fraction(float(parts[name][row])) for name in ("centre", "scale"))
        for z, code in zip(logits[row].tolist(), parts["codes"][row].tolist(), strict=True):
            if scale == 0:
                assert code == 0
                continue
            levels = range(-127, 128)
            best = min(abs(centre + scale * level - Fraction(z)) for level in levels)
            # Of two levels that are equally near, up to float64's rounding, either will do.
            assert abs(centre + scale * code - Fraction(z)) <= best + scale * Fraction(1, 10**12)


@given(logits=rows(1e4))
@settings(deadline=None, max_examples=50)
def test_int8_keeps_order_and_ends(logits: Tensor) -> None:
    """Larger stays at least as large, so the top class stays on top; the ends are right but for rounding."""
    found = int8.decode(int8.encode(logits))
    order = logits.argsort(-1)
    assert (found.gather(1, order).diff(dim=-1) >= 0).all()
    for end in (torch.amin, torch.amax):
        torch.testing.assert_close(end(found, -1), end(logits, -1), rtol=0, atol=float(2**-21 * logits.abs().max()))


def test_a_zero_point_pays_for_itself() -> None:
    """On lopsided logits the error is half of that of a symmetric scale."""
    logits = torch.randn(200, 100, generator=torch.Generator().manual_seed(0))
    logits[:, 0] += 20
    error = (int8.decode(int8.encode(logits)) - logits).abs().mean()
    scale = logits.abs().amax(-1, keepdim=True) / 127
    symmetric = ((logits / scale).round() * scale - logits).abs().mean()
    assert error < 0.65 * symmetric


def test_equal_logits_are_exact_in_int8() -> None:
    logits = torch.tensor([[0.1] * 5, [-3.7] * 5, [0.0] * 5])
    parts = int8.encode(logits)
    assert parts["codes"].abs().sum() == 0
    assert torch.equal(int8.decode(parts), logits)


def oracle_top_k(row: list[float], k: int) -> tuple[list[int], float]:
    """Kept classes in order, and the tail."""
    kept = sorted(sorted(range(len(row)), key=lambda c: (-row[c], c))[:k])
    return kept, exact_log_sum_exp([z for c, z in enumerate(row) if c not in kept])


@given(data=st.data(), logits=rows(65504.0))
@settings(deadline=None, max_examples=200)
def test_top_k_keeps_the_largest_and_the_lower_class_of_equals(data: st.DataObject, logits: Tensor) -> None:
    count, classes = logits.shape
    k = data.draw(st.integers(1, classes))
    parts = topk.encode(logits, k)
    assert topk.problem(parts, classes) == ""
    assert parts["values"].dtype == torch.float16
    assert parts["classes"].dtype == torch.uint8
    found = topk.decode(parts, classes)
    for row in range(count):
        kept, tail = oracle_top_k(logits[row].tolist(), k)
        assert parts["classes"][row].tolist() == kept
        assert torch.equal(parts["values"][row], logits[row, kept].half())
        assert float(parts["tail"][row]) == pytest.approx(tail, rel=1e-6, abs=1e-6)
        for c in range(classes):
            expected = float(logits[row, c].half()) if c in kept else tail - math.log(classes - k)
            assert float(found[row, c]) == pytest.approx(expected, rel=1e-6, abs=1e-6)


@given(data=st.data(), logits=rows(30.0))
@settings(deadline=None, max_examples=100)
def test_the_reconstruction_is_right_at_temperature_1(data: st.DataObject, logits: Tensor) -> None:
    """Kept classes and the tail as a whole have their probabilities; only the division of the tail is made up."""
    classes = logits.shape[1]
    k = data.draw(st.integers(1, classes))
    parts = topk.encode(logits, k)
    kept = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, parts["classes"].long(), True)
    p, q = logits.double().softmax(-1), topk.decode(parts, classes).double().softmax(-1)
    # float16 moves a kept logit of up to 30 by 2^-7 at most.
    assert ((p - q).abs()[kept] < 2**-6).all()
    assert (((p - q) * ~kept).sum(-1).abs() < 2**-6).all()
    # The likeliest class was kept; float16 may move it below a class of the tail by no more than that.
    assert (q.masked_fill(~kept, 0).amax(-1) > q.masked_fill(kept, 0).amax(-1) - 2**-6).all()


@pytest.mark.parametrize(
    ("classes", "dtype"), [(2, "uint8"), (256, "uint8"), (257, "int16"), (32768, "int16"), (32769, "int32")]
)
def test_classes_take_the_smallest_type_that_holds_them(classes: int, dtype: str) -> None:
    assert class_dtype(classes) == dtype
    assert torch.iinfo(getattr(torch, dtype)).max >= classes - 1
    logits = torch.zeros(2, classes)
    logits[0, classes - 1] = 1.0
    logits[1, 0] = 1.0
    parts = topk.encode(logits, 1)
    assert parts["classes"].dtype == getattr(torch, dtype)
    assert parts["classes"].tolist() == [[classes - 1], [0]]
    assert topk.decode(parts, classes).argmax(-1).tolist() == [classes - 1, 0]


ENCODINGS = [("float16", None), ("float32", None), ("int8", None), ("topk", 1), ("topk", 3), ("topk", 7)]


@pytest.mark.parametrize(("format", "k"), ENCODINGS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_encoding_fills_its_columns_row_by_row(format, k, dtype) -> None:
    """The parts are those of the layout, whatever comes in; a row's parts depend on that row alone."""
    logits = (3 * torch.randn(5, 7, generator=torch.Generator().manual_seed(1))).to(dtype)
    encoding = logit_encoding(format, 7, k)
    assert encoding.columns == logit_columns(format, 7, k)
    parts = encoding.encode(logits.T.contiguous().T)
    assert list(parts) == [column.name for column in encoding.columns]
    for column in encoding.columns:
        part = parts[column.name]
        assert part.dtype == getattr(torch, column.dtype)
        assert part.shape == ((5, column.width) if column.width else (5,))
        assert part[0].numel() * part.element_size() == column.row_bytes
    alone = [encoding.encode(logits[row : row + 1]) for row in range(5)]
    for name, part in parts.items():
        assert torch.equal(part, torch.cat([one[name] for one in alone]))
    assert encoding.decode(parts).dtype == torch.float32
    assert encoding.problem(parts) == ""


def test_row_bytes() -> None:
    sizes = {(f, k): row_bytes(logit_columns(f, 1000, k)) for f, k in [*ENCODINGS, ("topk", 10)]}
    assert sizes["float16", None] == 2000
    assert sizes["float32", None] == 4000
    assert sizes["int8", None] == 1008
    assert sizes["topk", 10] == 44
    assert row_bytes(half_encoding("features", 512).columns) == 1024


@pytest.mark.parametrize(("format", "k"), ENCODINGS)
def test_what_was_made_again_agrees_and_other_rows_do_not(format, k) -> None:
    """Noise below the slack passes, in every row; the logits of another image do not."""
    generator = torch.Generator().manual_seed(2)
    logits = 5 * torch.randn(50, 7, generator=generator)
    encoding = logit_encoding(format, 7, k)
    parts = encoding.encode(logits)
    slack = torch.full((50,), 1e-3, dtype=torch.float64)
    again = logits + 1e-3 * (2 * torch.rand(50, 7, generator=generator) - 1)
    assert (encoding.excess(parts, again, slack) <= 0).all()
    assert (encoding.excess(parts, logits.roll(1, 0), slack) > 0.05).all()
    # One logit that moves by more than the format explains is seen, where the format keeps it.
    moved = logits.clone()
    moved[torch.arange(50), logits.argmax(-1)] += 1.0
    assert (encoding.excess(parts, moved, slack) > 0.5).all()


def test_ties_that_fall_the_other_way_agree() -> None:
    """Which of two nearly equal classes top-k kept is rounding, not damage."""
    logits = torch.tensor([[5.0, 1.0, 1.0 + 1e-6, 0.0]])
    parts = topk.encode(logits, 2)
    other = torch.tensor([[5.0, 1.0 + 1e-6, 1.0, 0.0]])
    assert parts["classes"].tolist() != topk.encode(other, 2)["classes"].tolist()
    assert topk.excess(parts, other, torch.tensor([1e-4]), 4) <= 0


NAN, INF = float("nan"), float("inf")

NONSENSE = {
    "int8": [
        {"scale": torch.tensor([NAN])},
        {"scale": torch.tensor([-1.0])},
        {"scale": torch.tensor([INF])},
        {"centre": torch.tensor([NAN])},
        {"centre": torch.tensor([-INF])},
        {"centre": torch.tensor([3e38]), "scale": torch.tensor([2e36])},
        {"codes": torch.tensor([[-128, 0, 0, 0]], dtype=torch.int8)},
    ],
    "topk": [
        {"values": torch.tensor([[NAN, 1.0]]).half()},
        {"values": torch.tensor([[INF, 1.0]]).half()},
        {"classes": torch.tensor([[1, 1]], dtype=torch.uint8)},
        {"classes": torch.tensor([[2, 1]], dtype=torch.uint8)},
        {"classes": torch.tensor([[0, 4]], dtype=torch.uint8)},
        {"tail": torch.tensor([NAN])},
        {"tail": torch.tensor([INF])},
        {"tail": torch.tensor([-INF])},
        {"tail": torch.tensor([9.0])},
    ],
    "float16": [{"logits": torch.tensor([[0.0, NAN, 0.0, 0.0]]).half()}, {"logits": torch.full((1, 4), INF).half()}],
    "float32": [{"logits": torch.tensor([[0.0, NAN, 0.0, 0.0]])}],
}


@pytest.mark.parametrize("format", NONSENSE)
def test_what_nobody_can_have_encoded(format) -> None:
    k = 2 if format == "topk" else None
    encoding = logit_encoding(format, 4, k)
    sound = encoding.encode(torch.tensor([[0.0, 1.0, 2.0, 3.0]]))
    assert encoding.problem(sound) == ""
    for change in NONSENSE[format]:
        assert encoding.problem(sound | change), change


def test_a_tail_where_every_class_is_kept() -> None:
    parts = topk.encode(torch.tensor([[1.0, 2.0]]), 2)
    assert parts["tail"].tolist() == [-INF]
    assert topk.problem(parts, 2) == ""
    assert topk.problem(parts | {"tail": torch.tensor([0.0])}, 2)
    assert topk.excess(parts, torch.tensor([[1.0, 2.0]]), torch.zeros(1), 2) <= 0
