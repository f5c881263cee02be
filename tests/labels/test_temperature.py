"""How sure answers may be, from given labels some of which are wrong."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from distill.labels.confusions import Confusions
from distill.labels.learned import Learned
from distill.labels.pulls import Pulls, posterior
from distill.labels.temperature import TEMPERATURES, UNHEARD, Temperature
from tests.labels.cases import CPU, GIVEN, C, images, noise, table

CLASSES, IMAGES = 6, 20_000


def drawn(true_temperature: float, wrong: float) -> tuple[Tensor, Tensor]:
    """Answers, and given labels of true classes that are drawn from these at a temperature."""
    logits = 3 * noise(0, IMAGES, CLASSES)
    generator = torch.Generator().manual_seed(1)
    true = torch.multinomial((logits / true_temperature).softmax(-1), 1, generator=generator).squeeze(1)
    other = torch.randint(CLASSES, (IMAGES,), generator=generator)
    given = torch.where(torch.rand(IMAGES, generator=generator) < wrong, other, true)
    return logits.softmax(-1), given


@pytest.mark.parametrize("wrong", [0.0, 0.4])
@pytest.mark.parametrize("true", [1.0, 1.6, 3.3])
def test_the_temperature_that_labels_were_drawn_at_is_found(true: float, wrong: float) -> None:
    answers, given = drawn(true, wrong)
    confusions, temperature = Confusions(CLASSES, 0.7, CPU), Temperature(CPU)
    for _ in range(30):
        likelihood = confusions.likelihood(given)
        temperature.count(answers, likelihood)
        confusions.count(posterior(temperature(answers), likelihood), given)
        temperature.end_epoch()
        confusions.end_epoch()
    place = TEMPERATURES.index(true)
    assert float(temperature.value) in [pytest.approx(each) for each in TEMPERATURES[max(place - 1, 0) : place + 2]]


def test_answers_at_a_temperature() -> None:
    temperature, logits = Temperature(CPU), noise(3, 5, C)
    torch.testing.assert_close(temperature(logits.softmax(-1)), logits.softmax(-1))
    temperature.value.fill_(2.5)
    torch.testing.assert_close(temperature(logits.softmax(-1)), (logits / 2.5).softmax(-1))
    assert temperature(torch.eye(C)).isfinite().all()


def test_what_is_counted_is_the_likelihood_of_given_labels() -> None:
    temperature, logits, likelihood = Temperature(CPU), noise(3, 5, C), noise(4, 5, C).softmax(-1)
    counted = torch.tensor([True, True, False, True, True])
    temperature.count(logits.softmax(-1), likelihood, counted)
    for k, each in enumerate(TEMPERATURES):
        expected = ((logits / each).softmax(-1) * likelihood).sum(-1).log()[counted].sum()
        assert float(temperature.tensors()["temperature_fit"][k]) == pytest.approx(float(expected), rel=1e-4)


def test_an_epoch_without_images_changes_nothing() -> None:
    temperature = Temperature(CPU)
    temperature.value.fill_(2.0)
    temperature.end_epoch()
    assert float(temperature.value) == 2.0


def rule() -> Learned:
    return Learned(table("instance"), step=1.0, pulls=Pulls(posterior=1.0), temperature=Temperature(CPU))


def test_labels_are_pulled_to_the_posterior_of_the_less_sure_answers() -> None:
    learned, at, answers = rule(), images(0, 3), noise(2, 2, C).softmax(-1)
    learned.temperature.value.fill_(2.0)
    y, before = learned.labels(*at), learned.table.phi.clone()
    learned.learn(*at, y, torch.zeros(2, C), scale=1.0, answers=answers)
    start = torch.full((2, C), 0.1).scatter_(1, GIVEN[[0, 3]].unsqueeze(1), 0.7)
    q = (0.5 * answers.log() + start.log()).softmax(-1)
    torch.testing.assert_close((before - learned.table.phi)[[0, 3]], y - q, rtol=1e-4, atol=1e-6)


def test_the_state_comes_back() -> None:
    first, twin = rule(), rule()
    answers, at = noise(2, 2, C).softmax(-1), images(0, 3)
    first.learn(*at, first.labels(*at), torch.zeros(2, C), scale=1.0, answers=answers)
    first.temperature.value.fill_(2.0)
    twin.load_state_dict(first.state_dict())
    for each in (first, twin):
        each.learn(*at, each.labels(*at), torch.zeros(2, C), scale=1.0, answers=answers)
        each.end_epoch(1, 3)
    assert torch.equal(first.table.phi, twin.table.phi)
    assert torch.equal(first.temperature.value, twin.temperature.value)


def calibrated(confusions: Confusions | None = None) -> Learned:
    temperature = Temperature(CPU, calibrated=True)
    return Learned(
        table("instance"), step=1.0, pulls=Pulls(posterior=1.0), confusions=confusions, temperature=temperature
    )


def test_answers_are_not_heard_before_others_have_judged_them() -> None:
    """And what is trained on says nothing of them."""
    learned, at, answers = calibrated(), images(0, 3), noise(2, 2, C).softmax(-1)
    y, before = learned.labels(*at), learned.table.phi.clone()
    learned.learn(*at, y, torch.zeros(2, C), scale=1.0, answers=answers)
    torch.testing.assert_close(before, learned.table.phi, rtol=0, atol=1e-2)  # they start where the posterior is
    learned.end_epoch(1, 3)
    assert float(learned.temperature.value) == UNHEARD


@pytest.mark.parametrize("known", [False, True])
def test_a_calibrated_temperature_is_the_likeliest_of_those_tried(known: bool) -> None:
    """Against a plain sum over the images, in float64."""
    confusions = Confusions(C, 0.7, CPU) if known else None
    learned = calibrated(confusions)
    logits, given = 4 * noise(5, 60, C), torch.arange(60) % C
    learned.calibrate(logits.softmax(-1), given)
    mass = 0.7  # of the table, and of the confusions at first
    fits = {}
    for tried in (*TEMPERATURES, 30.0, UNHEARD):
        p = (logits.double() / tried).softmax(-1)
        fits[tried] = sum(
            float(torch.log(sum(p[i, k] * (mass if k == given[i] else (1 - mass) / (C - 1)) for k in range(C))))
            for i in range(60)
        )
    assert float(learned.temperature.value) == pytest.approx(max(fits, key=lambda each: fits[each]))


def test_answers_that_are_mostly_wrong_are_worth_nothing() -> None:
    learned = calibrated()
    given = torch.arange(60) % C
    learned.calibrate(
        torch.full((60, C), 0.01).scatter_(1, (given + 1).remainder(C)[:, None], 1 - 0.01 * (C - 1)), given
    )
    assert float(learned.temperature.value) == UNHEARD
    learned.calibrate(torch.full((60, C), 0.01).scatter_(1, given[:, None], 1 - 0.01 * (C - 1)), given)
    assert float(learned.temperature.value) == 1.0
