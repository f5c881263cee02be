"""Temperature scaling: the one number that makes a network as sure, on validation images, as it is right.

Guo et al., "On Calibration of Modern Neural Networks", arXiv 1706.04599, section 4.2. Accuracy stays as it is. A
network that learned from soft labels is less sure than it is right, and one that learned wrong labels by heart is
surer; one division mends much of either, so that probabilities are compared fairly only after it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from scipy import optimize
from torch import Tensor, nn

from distill.data.loader import Batch
from distill.training.evaluate import evaluate

SCALED = "scaled"  # ends the names of metrics
BOUNDS = (0.05, 20.0)  # of the temperature
LEAST_WRONG = 10  # validation images that have to be answered wrongly: of fewer it says nothing, of none it would be 0
_ROWS = 8192  # whose logits are in float64 at a time
_PRECISION = 1e-5  # of the temperature's logarithm


def fit_temperature(logits: Tensor, targets: Tensor) -> float:
    """The T within `BOUNDS` that makes the mean negative log-likelihood of softmax(logits / T) least.

    Args:
        logits: [N, C], finite.
        targets: int64 [N], N at least 1.
    """
    logits, targets = logits.cpu(), targets.cpu()

    def nll(log_temperature: float) -> float:
        scale = math.exp(-log_temperature)
        parts = zip(torch.split(logits, _ROWS), torch.split(targets, _ROWS), strict=True)
        sums = [nn.functional.cross_entropy(scale * rows.double(), t, reduction="sum") for rows, t in parts]
        return float(torch.stack(sums).sum()) / len(targets)

    bounds = (math.log(BOUNDS[0]), math.log(BOUNDS[1]))
    found = optimize.minimize_scalar(nll, bounds=bounds, method="bounded", options={"xatol": _PRECISION})
    # The search ends just inside the bounds, where the least is at one.
    return math.exp(min(float(found.x), *bounds, key=nll))


def scaled_scores(
    model: nn.Module, validation: Iterable[Batch], chosen_by: Tensor, test: Iterable[Batch], reported_by: Tensor
) -> dict[str, float]:
    """Fits the temperature on validation and scores the test part with it: one more pass over both.

    Validation's logits are held in memory meanwhile, 4 bytes each: 50,000 images of 1,000 classes are 200 MB.

    Args:
        model: images [B, ch, H, W] -> logits [B, C]; judged in eval mode and put back to its own.
        validation: un-augmented images with their source indices.
        chosen_by: int64 [N] by source index: the labels that validation goes by.
        test: likewise.
        reported_by: int64 [N]: those that the test part is scored by.

    Returns:
        `scaling_temperature`, and `test_nll_scaled` and `test_ece_scaled` where there are test images; nothing where
        fewer than `LEAST_WRONG` validation images are answered wrongly.
    """
    logits, targets = answered(model, validation, chosen_by)
    if int((logits.argmax(dim=-1) != targets).sum()) < LEAST_WRONG:
        return {}
    temperature = fit_temperature(logits, targets)
    scores = evaluate(model, test, reported_by, temperature=temperature)
    found = {"scaling_temperature": temperature}
    if scores.count:
        found |= {f"test_nll_{SCALED}": scores.nll, f"test_ece_{SCALED}": scores.ece}
    return found


@torch.no_grad()
def answered(model: nn.Module, batches: Iterable[Batch], targets: Tensor) -> tuple[Tensor, Tensor]:
    """Logits float32 [N, C] in eval mode, and targets int64 [N], on the CPU."""
    was_training = model.training
    model.eval()
    try:
        pairs = [(model(batch.images).float().cpu(), targets[batch.rows].cpu()) for batch in batches]
    finally:
        model.train(was_training)
    return torch.cat([logits for logits, _ in pairs]), torch.cat([found for _, found in pairs])
