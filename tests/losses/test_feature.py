"""Losses on features against their papers' formulae, and the laws that these obey."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from distill.losses import feature
from distill.losses.feature import CRD, FitNet, attention_transfer, draw_negatives, rkd
from tests.losses import feature_oracles as oracles
from tests.nosync import no_host_sync

B, DS, DT, K, M = 7, 4, 6, 9, 50


def features(seed: int, rows: int = B, width: int = DS) -> Tensor:
    """[rows, width], some of them 0, as after a ReLU."""
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).relu()


def drawn(seed: int = 0) -> Tensor:
    """Which negatives are of the image's class [B, K]."""
    return torch.rand(B, K, generator=torch.Generator().manual_seed(seed)) < 0.3


def fitnet() -> FitNet:
    torch.manual_seed(0)
    return FitNet(DS, DT).double()


def crd(normaliser: float | None = None) -> CRD:
    torch.manual_seed(0)
    return CRD(DS, DT, M, dim=5, temperature=0.3, normaliser=normaliser).double()


def maps(seed: int, rows: int = B) -> list[Tensor]:
    return [features(seed + i, rows, pixels) + 0.01 for i, pixels in enumerate((16, 4, 1))]


def arrays(module: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: value.detach().numpy() for name, value in module.named_parameters()}


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "fitnet": lambda s, t: fitnet().to(torch.promote_types(s.dtype, torch.float32))(s, t),
    "rkd": rkd,
    "crd": lambda s, t: crd().to(torch.promote_types(s.dtype, torch.float32))(
        s, t, t.repeat(3, 1), torch.eye(len(s), dtype=torch.bool).repeat(1, 3)
    ),
    "attention": lambda s, t: attention_transfer([s[:, :2], s], [t[:, :2], t[:, :DS]]),
}
"""Of a student's features [B, 4] and a teacher's [B, 6]."""


def test_fitnet_is_the_paper_s_formula() -> None:
    loss = fitnet()
    found = loss(features(1), features(2, width=DT)).detach().numpy()
    weight, bias = arrays(loss).values()
    expected = oracles.fitnet(features(1).numpy(), features(2, width=DT).numpy(), weight, bias)
    np.testing.assert_allclose(found, expected, rtol=1e-13)


@pytest.mark.parametrize("blocks", [1, 3, 7])
def test_rkd_is_the_paper_s_formula(blocks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature, "_TRIPLES", -(-B // blocks) * B**2)
    student, teacher = features(1), features(2, width=DT) * 30
    s, t = student.numpy(), teacher.numpy()
    for distance, angle in ((25.0, 50.0), (1.0, 0.0), (0.0, 1.0)):
        expected = distance * oracles.rkd_distance(s, t) + angle * oracles.rkd_angle(s, t)
        found = rkd(student, teacher, distance=distance, angle=angle)
        assert found.shape == (B,)
        np.testing.assert_allclose(found.mean(), expected, rtol=1e-12)


@pytest.mark.parametrize("normaliser", [None, 1.0, 20.0])
def test_crd_is_the_paper_s_formula(normaliser: float | None) -> None:
    loss = crd(normaliser)
    student, teacher, negatives, same = features(1), features(2, width=DT), features(3, K, DT), drawn()
    expected = oracles.crd(
        *(x.numpy() for x in (student, teacher, negatives, same)),
        arrays(loss),
        images=M,
        temperature=0.3,
        normaliser=normaliser,
    )
    # A given Z is kept in float32.
    tolerance = 1e-6 if normaliser == 20.0 else 1e-12
    np.testing.assert_allclose(loss(student, teacher, negatives, same).detach(), expected, rtol=tolerance)


def test_attention_transfer_is_the_paper_s_formula() -> None:
    expected = oracles.attention_transfer([m.numpy() for m in maps(1)], [m.numpy() for m in maps(7)])
    np.testing.assert_allclose(attention_transfer(maps(1), maps(7)), expected, rtol=1e-13)


def with_known_normaliser(student: Tensor, teacher: Tensor) -> Tensor:
    """No gradient flows into the first batch's Z, which differences would see."""
    return crd(20.0)(student, teacher, features(3, K, DT), drawn()[: len(student)])


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("rows", [2, 3, 7])
def test_gradients(name: str, rows: int) -> None:
    # Away from 0, where a distance has a corner.
    student = (features(1, rows) + features(4, rows) + 0.1).requires_grad_()
    teacher = features(2, rows, DT) + 0.1
    loss = LOSSES[name] if name != "crd" else with_known_normaliser
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher), student)


@pytest.mark.parametrize("blocks", [2, 7])
def test_angles_in_blocks_have_the_same_gradient(blocks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = features(1).requires_grad_(), features(2, width=DT)
    (whole,) = torch.autograd.grad(rkd(student, teacher).mean(), student)
    monkeypatch.setattr(feature, "_TRIPLES", -(-B // blocks) * B**2)
    (parts,) = torch.autograd.grad(rkd(student, teacher).mean(), student)
    torch.testing.assert_close(parts, whole, rtol=1e-13, atol=1e-15)


def test_gradients_of_the_heads() -> None:
    """Both of CRD's heads learn, its normaliser does not; so does FitNet's regressor."""
    loss, hint = crd(), fitnet()
    given = features(1), features(2, width=DT), features(3, K, DT), drawn()
    loss(*given)  # finds Z
    for module, arguments in ((loss, given), (hint, given[:2])):
        names = [name for name, _ in module.named_parameters()]
        values = [value.detach().clone().requires_grad_() for value in module.parameters()]

        def function(*weights: Tensor, module=module, names=names, arguments=arguments) -> Tensor:
            return torch.func.functional_call(module, dict(zip(names, weights, strict=True)), arguments)

        assert torch.autograd.gradcheck(function, values)


@pytest.mark.parametrize("name", LOSSES)
def test_no_gradient_reaches_the_teacher(name: str) -> None:
    student, teacher = features(1).requires_grad_(), features(2, width=DT).requires_grad_()
    LOSSES[name](student, teacher).sum().backward()
    assert teacher.grad is None
    assert student.grad is not None


DEGENERATE = {
    "zeros": lambda rows, width: torch.zeros(rows, width),
    "identical": lambda rows, width: torch.ones(rows, width) * 3,
    "two alike": lambda rows, width: features(5, rows, width)[[0, *range(rows - 1)]],
    "large": lambda rows, width: features(5, rows, width) * 1e4,
    "small": lambda rows, width: features(5, rows, width) * 1e-7,
    "usual": lambda rows, width: features(5, rows, width),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 2, 7])
def test_degenerate_features(name: str, dtype: torch.dtype, rows: int) -> None:
    """Values and gradients are finite and in float32, whatever either side gives."""
    for left in DEGENERATE.values():
        for right in DEGENERATE.values():
            student = left(rows, DS).to(dtype).requires_grad_()
            value = LOSSES[name](student, right(rows, DT).to(dtype))
            assert (value.shape, value.dtype) == ((rows,), torch.float32)
            (gradient,) = torch.autograd.grad(value.sum(), student)
            assert value.isfinite().all()
            assert (value >= 0).all()
            # As they reach the features, which half precision could not hold everywhere.
            assert gradient.float().isfinite().all() or dtype == torch.float16


def test_relations_do_not_depend_on_scale_place_and_turn() -> None:
    student, teacher = features(1), features(2, width=DT)
    turn = torch.linalg.qr(torch.randn(DS, DS, generator=torch.Generator().manual_seed(0)).double())[0]
    expected = rkd(student, teacher)
    for other in (student * 7, student + 3, student @ turn, -student @ turn * 0.01 - 5):
        torch.testing.assert_close(rkd(other, teacher), expected, rtol=1e-11, atol=1e-13)
        torch.testing.assert_close(rkd(teacher, other), rkd(teacher, student), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("loss", [rkd, lambda s, t: attention_transfer([s], [t])])
def test_nothing_to_learn_where_student_equals_teacher(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    student = features(1).requires_grad_()
    value = loss(student, features(1) * 5)
    value.sum().backward()
    assert value.max() < 1e-25
    assert student.grad.abs().max() < 1e-12


def test_hints_that_are_met_cost_nothing() -> None:
    loss = fitnet()
    student = features(1).requires_grad_()
    value = loss(student, loss.regressor(student))
    value.sum().backward()
    assert value.max() == 0
    assert student.grad.abs().max() == 0


@pytest.mark.parametrize("name", ["fitnet", "rkd", "attention"])
def test_images_in_another_order(name: str) -> None:
    student, teacher = features(1), features(2, width=DT)
    order = torch.randperm(B, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(LOSSES[name](student[order], teacher[order]), LOSSES[name](student, teacher)[order])


def test_crd_in_another_order() -> None:
    """Of images or of negatives; a negative of the image's own class is as if it were not there, whatever it holds."""
    student, teacher, negatives, same = features(1), features(2, width=DT), features(3, K, DT), drawn()
    expected = crd()(student, teacher, negatives, same)
    order, other = (torch.randperm(n, generator=torch.Generator().manual_seed(0)) for n in (B, K))
    found = crd()(student[order], teacher[order], negatives[other], same[order][:, other])
    torch.testing.assert_close(found, expected[order])
    more, own = torch.cat([negatives, features(4, K, DT) * 100]), torch.cat([same, torch.ones_like(same)], dim=1)
    torch.testing.assert_close(crd()(student, teacher, more, own), expected)


def test_crd_without_any_negative_is_the_positive_term() -> None:
    loss = crd()
    every = torch.ones(B, K, dtype=torch.bool)
    value = loss(features(1), features(2, width=DT), features(3, K, DT), every)
    assert value.isfinite().all()
    assert loss.log_normaliser.isinf(), "Z waits for a batch that has negatives"
    loss(features(1), features(2, width=DT), features(3, K, DT), drawn())
    assert loss.log_normaliser.isfinite()


def test_crd_keeps_the_first_batch_s_normaliser() -> None:
    """In its state, so that a run goes on as it was; the first value is that of the authors' code: near 1 + log N."""
    loss, none = crd(), torch.zeros(B, K, dtype=torch.bool)
    first = loss(features(1), features(2, width=DT), features(3, K, DT), none)
    again = crd()
    again.load_state_dict(loss.state_dict())
    given = features(5), features(6, width=DT), features(7, K, DT), none
    assert torch.equal(loss(*given), again(*given))
    assert not torch.equal(crd()(*given), again(*given))
    assert abs(first.mean().item() - 1 - np.log(K)) < 1.5


def test_crd_learns_to_tell_images_apart() -> None:
    """A student of random features: its heads and features come to find each image's own teacher features."""
    torch.manual_seed(0)
    loss, student = CRD(16, 16, 64, dim=16), torch.nn.Parameter(torch.randn(64, 16))
    teacher, mask = torch.randn(64, 16), torch.eye(64, dtype=torch.bool)
    optimizer = torch.optim.Adam([student, *loss.parameters()], lr=1e-2)
    values = []
    for _ in range(150):
        value = loss(student, teacher, teacher, mask).mean()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    unit = torch.nn.functional.normalize
    ahead = (unit(loss.student_head(student)) @ unit(loss.teacher_head(teacher)).T).argmax(1)
    assert values[-1] < values[0] / 10
    assert (ahead == torch.arange(64)).all()


def test_negatives_are_a_function_of_seed_and_step() -> None:
    indices = torch.arange(100, 140)
    rows, views = draw_negatives(indices, 5, 8000, seed=1, step=3)
    again = draw_negatives(indices, 5, 8000, seed=1, step=3)
    assert torch.equal(rows, again[0])
    assert torch.equal(views, again[1])
    for seed, step in ((2, 3), (1, 4)):
        assert not torch.equal(rows, draw_negatives(indices, 5, 8000, seed=seed, step=step)[0])
    counts = torch.bincount((rows - 100) * 5 + views, minlength=200)
    assert (counts > 10).all()
    assert (counts < 80).all()


def test_the_scale_of_maps_does_not_matter() -> None:
    student, teacher = maps(1), maps(7)
    scaled = [m * factor for m, factor in zip(student, (1e-9, 3.0, 1e9), strict=True)]
    torch.testing.assert_close(attention_transfer(scaled, teacher), attention_transfer(student, teacher))
    torch.testing.assert_close(
        attention_transfer(student, [m / 7 for m in teacher]), attention_transfer(student, teacher)
    )


@pytest.mark.parametrize("other", [maps(7)[:2], [], [m[:, :1] for m in maps(7)]])
def test_other_maps_are_refused(other: list[Tensor]) -> None:
    for pair in ((maps(1), other), (other, maps(1))):
        with pytest.raises(ValueError, match="expected the same"):
            attention_transfer(*pair)
    with pytest.raises(ValueError, match="one at least"):
        attention_transfer([], [])


@pytest.mark.parametrize("name", LOSSES)
def test_single_precision_is_as_near_as_float32_can_be(name: str) -> None:
    """STYLE: within 4 times 8 eps of the float64 value, at a width where sums are long."""
    student, teacher = features(1), features(2, width=DT)
    exact, found = LOSSES[name](student, teacher), LOSSES[name](student.float(), teacher.float())
    error, scale = (found.double() - exact).abs().max().item(), exact.abs().max().item()
    assert error <= 32 * torch.finfo(torch.float32).eps * scale


@pytest.mark.parametrize("name", LOSSES)
def test_the_host_never_waits(name: str) -> None:
    student, teacher = features(1).float().requires_grad_(), features(2, width=DT).float()
    with no_host_sync():
        LOSSES[name](student, teacher).mean().backward()
