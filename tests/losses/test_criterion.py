"""The objective: what adds up, over the epochs, for mixed images, in parts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from distill.losses.criterion import Criterion, ramp, teaching_metrics
from distill.losses.lesson import Contrast, Lesson, Outputs, slices
from distill.losses.logit import kd
from distill.losses.soft import cross_entropy, soft_cross_entropy
from distill.losses.terms import Sizes, build_term
from distill.recipe.losses import CATALOGUE, LossRecipe, TermRecipe, settle
from tests.nosync import no_host_sync

B, C, DS, DT = 6, 5, 3, 4
SIZES = Sizes(C, DS, DT, 50)
# Terms whose value for an image depends on the rest of the batch.
TOGETHER = {"dist", "mlkd", "rkd"}


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def student() -> Outputs:
    maps = [drawn(B, 4, seed=8).abs(), drawn(B, 9, seed=9).abs()]
    return Outputs(drawn(B, C).mul(3).requires_grad_(), drawn(B, DS, seed=1).requires_grad_(), maps)


def lesson(**changes: object) -> Lesson:
    parts: dict[str, object] = {
        "given": torch.tensor([0, 1, 2, 3, 4, 0]),
        "teacher": Outputs(
            drawn(B, C, seed=2) * 3, drawn(B, DT, seed=3), [drawn(B, 4, seed=4).abs(), drawn(B, 9, seed=5).abs()]
        ),
        "labels": drawn(B, C, seed=6).softmax(-1),
        "contrast": Contrast(drawn(8, DT, seed=7), torch.arange(8) % C),
    }
    return Lesson(**(parts | changes))  # type: ignore[arg-type]


def criterion(epochs: int = 10, **fields: object) -> Criterion:
    torch.manual_seed(0)
    return Criterion(settle(LossRecipe.model_validate(fields), "onehot", epochs).loss, SIZES, epochs).double()


@pytest.mark.parametrize("name", CATALOGUE)
def test_the_objective_is_the_weighted_sum_of_means(name: str) -> None:
    made = criterion(name=name, warmup_epochs=0)
    outputs, taught = student(), lesson()
    told = made(outputs, taught, 0)
    info = CATALOGUE[name]
    expected = info.hard * cross_entropy(outputs.logits, taught.given).mean()
    assert told["hard"].item() == pytest.approx(cross_entropy(outputs.logits, taught.given).mean().item())
    if name != "ce":
        value = made.terms[name](outputs, taught, 0)
        assert value.shape == (B,)
        assert told[name].item() == pytest.approx(value.mean().item())
        expected = expected + info.soft * value.mean()
    assert told["loss"].item() == pytest.approx(expected.item())
    assert set(told) == {"loss", "hard", *({name} - {"ce"})}
    told["loss"].backward()
    assert outputs.logits.grad is not None


def test_further_losses_are_added_with_their_weights() -> None:
    both = criterion(name="kd", temperature=2.0, plus={"labels": {"weight": 0.5}, "dkd": {"weight": 0.0}})
    outputs, taught = student(), lesson()
    told = both(outputs, taught, 0)
    assert set(told) == {"loss", "hard", "kd", "labels"}
    by_hand = (
        0.1 * cross_entropy(outputs.logits, taught.given)
        + 0.9 * kd(outputs.logits, taught.teacher.logits, 2.0)
        + 0.5 * soft_cross_entropy(outputs.logits, taught.labels)
    ).mean()
    assert told["loss"].item() == pytest.approx(by_hand.item(), rel=1e-12)


def test_weights_grow_and_fall_in_equal_steps() -> None:
    term = TermRecipe(warmup_epochs=4, cooldown_epochs=2)
    found = [ramp(term, epoch, 10) for epoch in range(10)]
    assert found == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 2 / 3, 1 / 3])
    assert [ramp(TermRecipe(), epoch, 3) for epoch in range(3)] == [1, 1, 1]
    made = criterion(name="kd", hard_weight=0.0, warmup_epochs=4)
    losses = [made(student(), lesson(), epoch)["loss"].item() for epoch in (0, 1, 3)]
    assert losses == pytest.approx([losses[2] / 4, losses[2] / 2, losses[2]])


@pytest.mark.parametrize("name", ["dkd", "nkd", "smoothing", "tf-kd"])
def test_mixed_images_take_both_classes_in_their_shares(name: str) -> None:
    term = build_term(name, settle(LossRecipe(name=name), "onehot", 10).loss, SIZES)
    one, other, share = torch.arange(B) % C, torch.arange(1, B + 1) % C, torch.linspace(0, 1, B).double()
    mixed = term(student(), lesson(given=one, partner=other, share=share), 0)
    apart = [term(student(), lesson(given=given), 0) for given in (one, other)]
    assert torch.allclose(mixed, share * apart[0] + (1 - share) * apart[1])
    assert torch.equal(mixed[-1], apart[0][-1])


@pytest.mark.parametrize("name", sorted(set(CATALOGUE) - TOGETHER))
@pytest.mark.parametrize("count", [2, 4, 6, 9])
def test_parts_of_a_batch_add_up_to_the_whole(name: str, count: int) -> None:
    made = criterion(name=name)
    made(student(), lesson(), 0)  # crd's normaliser is that of the first batch
    whole, outputs = student(), student()
    made(whole, lesson(), 1)["loss"].backward()
    for rows, part in lesson().parts(count):
        share = (rows.stop - rows.start) / B
        (made(outputs.part(rows), part, 1)["loss"] * share).backward()
    assert torch.allclose(outputs.logits.grad, whole.logits.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("size", "count"), [(1, 1), (1, 4), (5, 2), (6, 3), (7, 3), (3, 5)])
def test_slices_cover_and_none_is_empty(size: int, count: int) -> None:
    found = list(slices(size, count))
    assert [i for part in found for i in range(size)[part]] == list(range(size))
    assert len(found) == min(size, count)
    lengths = [part.stop - part.start for part in found]
    assert max(lengths) - min(lengths) <= 1


def test_a_student_like_its_teacher_agrees() -> None:
    logits = drawn(B, C)
    told = teaching_metrics(logits, logits + 3)
    assert told["agreement"] == 1
    assert told["teacher_kl"].abs() < 1e-6
    assert teaching_metrics(logits, -logits)["agreement"] == 0


def test_what_learns_itself_is_given_to_the_optimiser() -> None:
    groups = criterion(name="fitnet", plus={"ctkd": {}}).parameter_groups(5e-4)
    assert [(len(group["params"]), group["weight_decay"]) for group in groups] == [(2, 5e-4), (1, 0.0)]
    assert criterion(name="kd").parameter_groups(5e-4) == []


def test_online_labels_and_temperatures_survive_in_the_state() -> None:
    made, other, fresh = (criterion(name="ols", plus={"ctkd": {}}) for _ in range(3))
    taught = lesson(given=student().logits.argmax(-1))  # only right answers are remembered
    for epoch in range(2):
        made(student(), taught, epoch)
        told = made.end_epoch()
    assert told["temperature"] == pytest.approx(15.62, abs=0.01)
    other.load_state_dict(made.state_dict())
    losses = [each(student(), taught, 2)["loss"].item() for each in (made, other, fresh)]
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("name", CATALOGUE)
def test_the_host_never_waits(name: str, mixed: bool) -> None:
    made, outputs = criterion(name=name), student()
    partner = {"partner": torch.tensor([1, 0, 3, 2, 0, 4]), "share": torch.full((B,), 0.7)} if mixed else {}
    taught = lesson(**partner)
    with no_host_sync():
        told = made(outputs, taught, 0)
        told["loss"].backward()
        teaching_metrics(outputs.logits.detach(), taught.teacher.logits)
