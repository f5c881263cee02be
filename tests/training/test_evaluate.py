"""Accuracy, NLL and calibration error against a slow restatement."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from distill.training.evaluate import BINS, Scorer


def slow(logits: np.ndarray, targets: np.ndarray) -> tuple[float, float, float]:
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    confidence, predicted = p.max(1), p.argmax(1)
    ece = 0.0
    for low in range(BINS):
        inside = (confidence > low / BINS) & (confidence <= (low + 1) / BINS)
        if inside.any():
            gap = confidence[inside].mean() - (predicted == targets)[inside].mean()
            ece += inside.mean() * abs(gap)
    return (predicted == targets).mean(), -np.log(p[range(len(targets)), targets]).mean(), ece


def test_scores_do_not_depend_on_the_batches() -> None:
    source = np.random.default_rng(1)
    logits, targets = source.normal(size=(501, 7)) * 2, source.integers(0, 7, 501)
    for sizes in ([501], [100, 400, 1]):
        scorer = Scorer()
        for z, y in zip(torch.tensor(logits).split(sizes), torch.tensor(targets).split(sizes), strict=True):
            scorer.add(z, y)
        found = scorer.scores()
        assert (found.accuracy, found.nll, found.ece) == pytest.approx(slow(logits, targets), rel=1e-9)
        assert found.count == 501


def test_a_sure_and_right_model_is_calibrated() -> None:
    scorer = Scorer()
    scorer.add(torch.eye(3) * 1e4, torch.arange(3))
    assert (scorer.scores().accuracy, scorer.scores().ece) == (1.0, 0.0)


def test_no_image_gives_no_number() -> None:
    assert math.isnan(Scorer().scores().accuracy)
    assert Scorer().scores().count == 0
