"""What is true of the losses whatever the numbers are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from distill.losses.decoupled import dkd
from distill.losses.logit import jsd, kd, logit_matching, reverse_kd, standardised
from distill.losses.relational import dist
from distill.losses.soft import cross_entropy, mixed, smoothed_cross_entropy, soft_cross_entropy, tf_kd
from distill.losses.transformed import ttm, wttm
from tests.losses.catalogue import CASES, example

every_case = pytest.mark.parametrize("name", CASES)
close = torch.testing.assert_close


def gradient(loss: Tensor, leaf: Tensor) -> Tensor:
    return torch.autograd.grad(loss.sum(), leaf)[0]


@every_case
def test_where_student_and_teacher_agree(name: str) -> None:
    case = CASES[name]
    for batch, classes in ((7, 5), (3, 2), (4, 1), (1, 5)):
        student, _, targets = example(batch, classes)
        leaf = student.clone().requires_grad_()
        found = gradient(case.loss(leaf, student, targets), leaf).abs().max()
        if not case.agreed:
            assert found < 1e-14 * case.factor, (batch, classes)
        elif classes == 5:
            assert found > 1e-3, f"{name} has no gradient there after all: {case.agreed}"


@every_case
def test_no_gradient_reaches_the_teacher(name: str) -> None:
    student, teacher, targets = example()
    student.requires_grad_()
    teacher.requires_grad_()
    CASES[name].loss(student, teacher, targets).sum().backward()
    assert teacher.grad is None
    assert student.grad is not None


@every_case
def test_a_row_of_logits_may_be_shifted(name: str) -> None:
    case = CASES[name]
    student, teacher, targets = example()
    there, here = torch.linspace(-5, 9, 7).double().unsqueeze(1), torch.linspace(3, -4, 7).double().unsqueeze(1)
    expected = case.loss(student, teacher, targets)
    close(case.loss(student + there, teacher + here, targets), expected, rtol=1e-11, atol=1e-13 * case.factor)


@every_case
def test_classes_may_be_renamed(name: str) -> None:
    case = CASES[name]
    student, teacher, targets = example()
    order = torch.tensor([3, 0, 4, 1, 2])
    renamed = order.argsort()[targets]
    expected = case.loss(student, teacher, targets)
    found = case.loss(student[:, order], teacher[:, order], renamed)
    close(found, expected, rtol=1e-12, atol=1e-14 * case.factor)


@every_case
def test_images_may_come_in_any_order(name: str) -> None:
    case = CASES[name]
    student, teacher, targets = example()
    order = torch.tensor([6, 2, 0, 4, 5, 1, 3])
    expected = case.loss(student, teacher, targets)[order]
    close(case.loss(student[order], teacher[order], targets[order]), expected, rtol=1e-12, atol=1e-14 * case.factor)


@every_case
def test_an_image_s_value_in_another_batch(name: str) -> None:
    case = CASES[name]
    student, teacher, targets = example()
    whole = case.loss(student, teacher, targets)
    parts = torch.cat([case.loss(student[i], teacher[i], targets[i]) for i in (slice(0, 1), slice(1, 4), slice(4, 7))])
    if case.company:
        assert (whole - parts).abs().max() > 1e-3, f"{name} does not depend on its batch after all: {case.company}"
    else:
        close(parts, whole, rtol=1e-12, atol=1e-14 * case.factor)


@pytest.mark.parametrize("loss", [kd, reverse_kd], ids=["kd", "reverse kd"])
def test_hot_divergences_are_logit_matching(loss) -> None:
    student, teacher, _ = example()
    errors = [(loss(student, teacher, t) - logit_matching(student, teacher)).abs().max() for t in (1e2, 1e3, 1e4)]
    assert errors[1] < errors[0] / 5
    close(loss(student, teacher, 1e4), logit_matching(student, teacher), rtol=1e-3, atol=0)


def test_a_hot_jensen_shannon_divergence_is_a_quarter_of_logit_matching() -> None:
    student, teacher, _ = example()
    close(jsd(student, teacher, 1e4), logit_matching(student, teacher) / 4, rtol=1e-3, atol=0)


def test_the_gradient_of_hot_kd_is_hinton_s() -> None:
    """(s - t) / C for centred logits: arXiv 1503.02531, equation 4, times T^2."""
    student, teacher, _ = example()
    student, teacher = (z - z.mean(-1, keepdim=True) for z in (student, teacher))
    leaf = student.clone().requires_grad_()
    close(gradient(kd(leaf, teacher, 1e5), leaf), (student - teacher) / 5, rtol=1e-3, atol=1e-4)


def test_jensen_shannon_is_symmetric_and_bounded() -> None:
    student, teacher, _ = example(spread=30)
    close(jsd(student, teacher, 2.0), jsd(teacher, student, 2.0))
    assert jsd(student, teacher, 2.0).max() <= 4 * torch.tensor(2.0).log() + 1e-12


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_decoupled_parts_make_up_kd(temperature: float) -> None:
    """Zhao 2022: KD = TCKD + (1 - p_y) NCKD."""
    student, teacher, targets = example()
    parts = [dkd(student, teacher, targets, temperature=temperature, alpha=a, beta=b) for a, b in ((1, 0), (0, 1))]
    rest = 1 - torch.softmax(teacher / temperature, -1).gather(1, targets.unsqueeze(1)).squeeze(1)
    close(parts[0] + rest * parts[1], kd(student, teacher, temperature))


def test_with_two_classes_there_is_no_rest_to_decouple() -> None:
    student, teacher, targets = example(classes=2)
    assert dkd(student, teacher, targets, alpha=0.0, beta=8.0).abs().max() == 0
    close(dkd(student, teacher, targets, alpha=1.0, beta=8.0), kd(student, teacher, 4.0))


def test_decoupled_where_the_rest_has_no_mass_left_in_float32() -> None:
    """A tempered gap of 2,000: 1 - p is 0 there, its logarithm is not."""
    student, teacher = torch.tensor([[0.0, 8000.0, 1.0]]), torch.tensor([[8000.0, 0.0, 1.0]])
    close(dkd(student, teacher, torch.tensor([0]), alpha=1.0, beta=0.0), torch.tensor([16 * 2000.0]))


def test_transformed_teachers_at_temperature_one() -> None:
    student, teacher, _ = example()
    close(ttm(student, teacher, temperature=1.0), kd(student, teacher, 1.0))
    close(wttm(student, teacher, temperature=1.0), kd(student, teacher, 1.0))


def test_the_transformed_teacher_is_met_at_its_tempered_logits() -> None:
    _, teacher, _ = example()
    leaf = (teacher / 4).requires_grad_()
    for loss in (ttm, wttm):
        assert loss(leaf, teacher).abs().max() < 1e-13
        assert gradient(loss(leaf, teacher), leaf).abs().max() < 1e-14


def test_weights_of_sure_and_of_ignorant_teachers() -> None:
    student = torch.tensor([[1.0, 2.0, 0.0, -1.0]] * 2).double()
    teacher = torch.tensor([[1e4, 0.0, 0.0, 0.0], [0.0] * 4]).double()
    close(wttm(student, teacher) / ttm(student, teacher), torch.tensor([1.0, 4**0.75]).double())


def test_standardised_logits_forget_shift_and_scale() -> None:
    student, teacher, _ = example()
    scale, shift = (torch.linspace(*ends, 7).double().unsqueeze(1) for ends in ((0.1, 30), (-9, 9)))
    close(standardised(student * scale + shift), standardised(student))
    close(standardised(student).square().mean(-1), torch.ones(7).double())
    expected = kd(standardised(student), standardised(teacher), 2.0)
    close(kd(standardised(student * scale + shift), standardised(teacher), 2.0), expected)
    close(kd(standardised(student), standardised(teacher * scale + shift), 2.0), expected)


@pytest.mark.parametrize("value", [0.0, 0.1, 9999.9, -1e4])
def test_a_constant_row_is_standardised_to_nothing(value: float) -> None:
    leaf = torch.full((2, 7), value).requires_grad_()
    found = standardised(leaf)
    assert found.abs().max() == 0
    assert gradient(found[:, 0], leaf).isfinite().all()


def mixed_with_uniform(logits: Tensor, share: Tensor, temperature: float = 4.0) -> Tensor:
    """Logits whose softened probabilities are (1 - share) p + share / C."""
    p = torch.softmax(logits / temperature, -1)
    return temperature * ((1 - share) * p + share / p.shape[-1]).log()


def test_correlations_do_not_see_positive_affine_changes() -> None:
    """(1 - m) p + m/C, the affine changes that leave distributions: one m for the batch, or for rows one for each."""
    student, teacher, _ = example()
    one, each = torch.tensor(0.4).double(), torch.linspace(0.1, 0.8, 7).double().unsqueeze(1)
    expected, rows = dist(student, teacher), dist(student, teacher, intra=0.0)
    close(dist(mixed_with_uniform(student, one), teacher), expected)
    close(dist(student, mixed_with_uniform(teacher, one)), expected)
    close(dist(mixed_with_uniform(student, each), teacher, intra=0.0), rows)
    close(dist(student, mixed_with_uniform(teacher, each), intra=0.0), rows)
    assert (dist(mixed_with_uniform(student, each), teacher) - expected).abs().max() > 1e-3
    assert (dist(2 * student, teacher) - expected).abs().max() > 1e-3  # logits are another matter


def test_constant_rows_and_columns_are_uncorrelated() -> None:
    student, teacher, _ = example()
    close(dist(torch.zeros_like(student), teacher, intra=0.0), torch.full((7,), 16.0).double())
    close(dist(student[:1], teacher[:1], inter=0.0), torch.full((1,), 16.0).double())  # a batch of one
    close(dist(student[:, :1], teacher[:, :1]), torch.full((7,), 32.0).double())  # one class
    for shape in ((7, 5), (1, 5), (7, 1)):
        leaf = torch.zeros(shape).requires_grad_()
        assert (
            gradient(dist(leaf, torch.randn(shape, generator=torch.Generator().manual_seed(0))), leaf).abs().max() == 0
        )


def test_the_virtual_teacher_at_temperature_one_is_smoothing() -> None:
    """With (1 - mass) on the others, eps/C on every class is eps = C/(C - 1) (1 - mass), but for an entropy."""
    student, _, targets = example()
    leaf = student.clone().requires_grad_()
    expected = gradient(smoothed_cross_entropy(leaf, targets, 0.1 * 5 / 4), leaf)
    close(gradient(tf_kd(leaf, targets, temperature=1.0, mass=0.9), leaf), expected)


@pytest.mark.parametrize("mass", [0.0, 1.0, -0.1, float("nan")])
def test_a_virtual_teacher_leaves_every_class_something(mass: float) -> None:
    student, _, targets = example()
    with pytest.raises(ValueError, match=r"mass is .*, expected a probability in \(0, 1\)"):
        tf_kd(student, targets, mass=mass)


def test_cross_entropies_agree() -> None:
    student, _, targets = example()
    onehot = torch.eye(5, dtype=torch.float64)[targets]
    hard = cross_entropy(student, targets)
    close(soft_cross_entropy(student, onehot), hard)
    close(smoothed_cross_entropy(student, targets, 0.0), hard)
    close(soft_cross_entropy(student, 0.9 * onehot + 0.1 / 5), smoothed_cross_entropy(student, targets, 0.1))
    torch_s = torch.nn.functional.cross_entropy(student, targets, reduction="none", label_smoothing=0.1)
    close(smoothed_cross_entropy(student, targets, 0.1), torch_s)


def test_mixing_losses_is_mixing_labels() -> None:
    student, _, targets = example()
    share, eye = torch.linspace(0, 1, 7).double(), torch.eye(5, dtype=torch.float64)
    labels = share.unsqueeze(1) * eye[targets] + (1 - share).unsqueeze(1) * eye[targets.flip(0)]
    found = mixed(cross_entropy(student, targets), cross_entropy(student, targets.flip(0)), share)
    close(found, soft_cross_entropy(student, labels))
