"""The losses once more, from the papers' formulae, in plain NumPy and float64, image by image. Imports nothing of ours.

Slow and plain on purpose. Logarithms of probabilities come from `log_softmax`, since the logarithm of a probability
that is 0 in float64 would make an oracle for wide gaps useless; everything else is as it is written in the papers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

Array = np.ndarray


def log_softmax(z: Array) -> Array:
    """[C] -> [C]."""
    z = z - z.max()
    return z - np.log(np.exp(z).sum())


def kl(log_p: Array, log_q: Array) -> float:
    """[C], [C] -> KL(p || q)."""
    return float(sum(np.exp(a) * (a - b) for a, b in zip(log_p, log_q, strict=True)))


def per_image(formula: Callable[..., float]) -> Callable[..., Array]:
    """Of a formula for one image, one for [B, C], [B, C], [B]."""

    def of_batch(student: Array, teacher: Array, targets: Array, **settings: float) -> Array:
        return np.array([formula(s, t, y, **settings) for s, t, y in zip(student, teacher, targets, strict=True)])

    return of_batch


@per_image
def kd(s: Array, t: Array, _: int, temperature: float) -> float:
    return temperature**2 * kl(log_softmax(t / temperature), log_softmax(s / temperature))


@per_image
def reverse_kd(s: Array, t: Array, _: int, temperature: float) -> float:
    return temperature**2 * kl(log_softmax(s / temperature), log_softmax(t / temperature))


@per_image
def jsd(s: Array, t: Array, _: int, temperature: float) -> float:
    log_p, log_q = log_softmax(t / temperature), log_softmax(s / temperature)
    log_m = np.logaddexp(log_p + np.log(0.5), log_q + np.log(0.5))
    return temperature**2 * (0.5 * kl(log_p, log_m) + 0.5 * kl(log_q, log_m))


@per_image
def logit_matching(s: Array, t: Array, _: int) -> float:
    s, t = s - s.mean(), t - t.mean()
    return float(((s - t) ** 2).sum() / (2 * len(s)))


def standardised(z: Array) -> Array:
    """[C] -> [C]; a constant row is 0."""
    deviation = np.sqrt(((z - z.mean()) ** 2).mean())
    return (z - z.mean()) / deviation if deviation > 1e-6 else 0 * z


@per_image
def lskd(s: Array, t: Array, _: int, temperature: float) -> float:
    return temperature**2 * kl(log_softmax(standardised(t) / temperature), log_softmax(standardised(s) / temperature))


@per_image
def dkd(s: Array, t: Array, y: int, temperature: float, alpha: float, beta: float) -> float:
    if len(s) == 1:
        return 0.0
    log_p, log_q = log_softmax(t / temperature), log_softmax(s / temperature)
    b_t = np.array([log_p[y], np.logaddexp.reduce(np.delete(log_p, y))])
    b_s = np.array([log_q[y], np.logaddexp.reduce(np.delete(log_q, y))])
    rest_t, rest_s = log_softmax(np.delete(t, y) / temperature), log_softmax(np.delete(s, y) / temperature)
    return temperature**2 * (alpha * kl(b_t, b_s) + beta * kl(rest_t, rest_s))


@per_image
def nkd(s: Array, t: Array, y: int, temperature: float, gamma: float) -> float:
    if len(s) == 1:
        return 0.0
    rest_t, rest_s = log_softmax(np.delete(t, y) / temperature), log_softmax(np.delete(s, y) / temperature)
    target_part = -np.exp(log_softmax(t)[y]) * log_softmax(s)[y]
    return float(target_part - gamma * temperature**2 * (np.exp(rest_t) * rest_s).sum())


def pearson(x: Array, y: Array) -> float:
    """Of two vectors; 0 where one is constant, up to 1e-8."""
    x, y = x - x.mean(), y - y.mean()
    norms = np.sqrt((x**2).sum()), np.sqrt((y**2).sum())
    return float((x * y).sum() / norms[0] / norms[1]) if min(norms) > 1e-8 else 0.0


def dist(student: Array, teacher: Array, _: Array, temperature: float, inter: float, intra: float) -> Array:
    p, q = (np.exp([log_softmax(z) for z in logits / temperature]) for logits in (teacher, student))
    rows = np.array([1 - pearson(q[i], p[i]) for i in range(len(p))])
    columns = np.mean([1 - pearson(q[:, c], p[:, c]) for c in range(p.shape[1])])
    return temperature**2 * (inter * rows + intra * columns)


def mlkd(student: Array, teacher: Array, targets: Array, temperatures: Sequence[float]) -> Array:
    total = np.zeros(len(student))
    for temperature in temperatures:
        p, q = (np.exp([log_softmax(z) for z in logits / temperature]) for logits in (teacher, student))
        of_classes = ((q.T @ q - p.T @ p) ** 2).sum() / p.shape[1]
        of_images = ((q @ q.T - p @ p.T) ** 2).sum(1)
        total += kd(student, teacher, targets, temperature=temperature) + of_classes + of_images
    return total


@per_image
def ttm(s: Array, t: Array, _: int, temperature: float) -> float:
    powers = log_softmax(t) / temperature  # log p^(1/T)
    return kl(powers - np.logaddexp.reduce(powers), log_softmax(s))


@per_image
def wttm(s: Array, t: Array, _: int, temperature: float) -> float:
    powers = log_softmax(t) / temperature
    z = np.exp(powers).sum()
    return float(z * kl(powers - np.logaddexp.reduce(powers), log_softmax(s)))


@per_image
def cross_entropy(s: Array, _: Array, y: int) -> float:
    return float(-log_softmax(s)[y])


@per_image
def soft_cross_entropy(s: Array, t: Array, _: int) -> float:
    """With the teacher's probabilities for labels."""
    return float(-(np.exp(log_softmax(t)) * log_softmax(s)).sum())


@per_image
def smoothed_cross_entropy(s: Array, _: Array, y: int, smoothing: float) -> float:
    labels = np.full(len(s), smoothing / len(s))
    labels[y] += 1 - smoothing
    return float(-(labels * log_softmax(s)).sum())


@per_image
def tf_kd(s: Array, _: Array, y: int, temperature: float, mass: float) -> float:
    if len(s) == 1:
        return 0.0
    virtual = np.full(len(s), (1 - mass) / (len(s) - 1))
    virtual[y] = mass
    softened = virtual ** (1 / temperature) / (virtual ** (1 / temperature)).sum()
    return temperature**2 * kl(np.log(softened), log_softmax(s / temperature))


def online_labels(student: Array, teacher: Array, targets: Array) -> Array:
    """After one epoch that consisted of the teacher's logits of this batch."""
    classes = student.shape[1]
    labels = np.full((classes, classes), 1 / classes)
    for k in range(classes):
        right = [np.exp(log_softmax(z)) for z, y in zip(teacher, targets, strict=True) if y == k == z.argmax()]
        if right:
            labels[k] = np.mean(right, 0)
    return np.array([-(labels[y] * log_softmax(s)).sum() for s, y in zip(student, targets, strict=True)])
