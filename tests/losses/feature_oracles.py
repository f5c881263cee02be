"""The losses on features as their papers' formulae, in NumPy and float64: loops over images, pairs, triples, negatives.

Nothing here is shared with `distill`, and nothing is made fast.
"""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def fitnet(student: Array, teacher: Array, weight: Array, bias: Array) -> Array:
    """Romero et al., equation 3, as a mean over the teacher's width and without the factor 1/2."""
    return np.array([np.mean((weight @ s + bias - t) ** 2) for s, t in zip(student, teacher, strict=True)])


def huber(x: float, y: float) -> float:
    """Park et al., section 3.2.1."""
    return 0.5 * (x - y) ** 2 if abs(x - y) <= 1 else abs(x - y) - 0.5


def rkd_distance(student: Array, teacher: Array) -> float:
    """The sum over ordered pairs of distinct images, over B^2."""

    def potential(x: Array, i: int, j: int) -> float:
        pairs = itertools.permutations(range(len(x)), 2)
        return float(np.linalg.norm(x[i] - x[j]) / np.mean([np.linalg.norm(x[a] - x[b]) for a, b in pairs]))

    pairs = itertools.permutations(range(len(student)), 2)
    return sum(huber(potential(teacher, *p), potential(student, *p)) for p in pairs) / len(student) ** 2


def rkd_angle(student: Array, teacher: Array) -> float:
    """The sum over ordered triples of distinct images, the second at the vertex, over B^3."""

    def unit(x: Array) -> Array:
        return x / np.linalg.norm(x)

    def potential(x: Array, i: int, j: int, k: int) -> float:
        return float(unit(x[i] - x[j]) @ unit(x[k] - x[j]))

    triples = itertools.permutations(range(len(student)), 3)
    return sum(huber(potential(teacher, *p), potential(student, *p)) for p in triples) / len(student) ** 3


def crd_score(student: Array, teacher: Array, heads: dict[str, Array], temperature: float) -> float:
    """e of one pair of images."""
    g_s = heads["student_head.weight"] @ student + heads["student_head.bias"]
    g_t = heads["teacher_head.weight"] @ teacher + heads["teacher_head.bias"]
    return float(np.exp(g_t @ g_s / np.linalg.norm(g_t) / np.linalg.norm(g_s) / temperature))


def crd(
    student: Array,
    teacher: Array,
    negatives: Array,
    same: npt.NDArray[np.bool_],
    heads: dict[str, Array],
    *,
    images: int,
    temperature: float,
    normaliser: float | None,
) -> Array:
    """Tian et al., section 3: -log h - sum log(1 - h), h = e / (e + N / M), with e over Z."""
    scores = [[crd_score(s, t, heads, temperature) for t in negatives] for s in student]
    counted = [[e for e, own in zip(row, mask, strict=True) if not own] for row, mask in zip(scores, same, strict=True)]
    z = images * float(np.mean([e for row in counted for e in row])) if normaliser is None else normaliser
    values = []
    for s, t, row in zip(student, teacher, counted, strict=True):
        prior = len(row) / images
        own = crd_score(s, t, heads, temperature) / z
        values.append(-np.log(own / (own + prior)) - sum(np.log(1 - e / z / (e / z + prior)) for e in row))
    return np.array(values)


def attention(activations: Array) -> Array:
    """Zagoruyko and Komodakis, section 3.1: F(A) of [B, C, h, w], the mean of squares over channels, as vectors."""
    return np.array(
        [[np.mean(a[:, y, x] ** 2) for y in range(a.shape[1]) for x in range(a.shape[2])] for a in activations]
    )


def attention_transfer(student: list[Array], teacher: list[Array]) -> Array:
    """Equation 2 with the square of the distance, as a mean over pixels."""
    values = np.zeros(len(student[0]))
    for s, t in zip(student, teacher, strict=True):
        for b in range(len(s)):
            values[b] += np.mean((s[b] / np.linalg.norm(s[b]) - t[b] / np.linalg.norm(t[b])) ** 2)
    return values
