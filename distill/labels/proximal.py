"""A step of labels towards a target that ends where its own gradient does: whatever its size, it does not overshoot.

A label y = softmax(phi) that is drawn to t by the loss a KL(t || y) moves by a (t - y). Taken from where it stands, a
large step throws it past t, to a label that is sure of one class. Taken from where it ends, the proximal step

    phi <- phi + a (t - y'),  y' the label at the new phi

moves no logit by more than a, and the larger a, the nearer y' is to t. Parikh and Boyd, "Proximal Algorithms", 2014,
section 4.2 (after a step along the judge's gradient it is the proximal gradient method).
"""

from __future__ import annotations

import torch
from torch import Tensor

MOST = 1e4
"""The largest step worth taking: it ends at the target but for a thousandth or so. A larger one multiplies what float32
rounds of t - y', and so moves logits by as much as it should move them, or by far more."""

_LEAST = 1e-6  # a smaller step's label is the one from before it, to the digits of float32
_LOWEST = -600.0  # exp of it is still above 0 in float64
_ROUNDS, _OMEGA_ROUNDS = 12, 4


def proximal_labels(phi: Tensor, target: Tensor, step: Tensor) -> Tensor:
    """The labels y' after a proximal step, softmax(phi + a (t - y')).

    With z = phi + a t + ln a and s the unknown logarithm of the softmax's sum, a y' = omega(z - s), where omega, the
    Wright omega function, solves omega + ln omega = x. What a y' sums up to is a convex function of s that falls, so
    that Newton's method from where it is too large ends at the s where it is a. In float64, without waiting for the
    device.

    Args:
        phi: logits from before the step, [..., C].
        target: t, [..., C], rows that sum to 1.
        step: a, not negative, [] or one for each row, [..., 1].

    Returns:
        [..., C], of phi's type.
    """
    a = step.double().clamp_min(_LEAST)
    z = phi.double() + a * target.double() + a.log()
    s = z.amax(-1, keepdim=True) - a - a.log()
    for _ in range(_ROUNDS):
        w = _omega(z - s)
        s = s + (w.sum(-1, keepdim=True) - a) / (w / (1 + w)).sum(-1, keepdim=True)
    w = _omega(z - s)
    return (w / w.sum(-1, keepdim=True)).to(phi.dtype)


def _omega(x: Tensor) -> Tensor:
    """Wright's omega function, by Newton's method; relative error below 1e-8 from -500 on."""
    x = x.clamp_min(_LOWEST)
    w = torch.where(x > 1, x, x.clamp_max(1).exp())
    for _ in range(_OMEGA_ROUNDS):
        w = w * (1 + x - w.log()) / (1 + w)
    return w
