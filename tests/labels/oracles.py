"""The label rules once more, from the papers' formulae, in plain NumPy and float64, image by image. Imports nothing of
ours.

Each is told what the rules are told: batches, and that an epoch is over. Losses are functions of complex logits, so
that their derivative is taken by a complex step, exact to rounding, and not by a formula that might be wrong twice:
f(z + ih) = f(z) + ih f'(z). What the papers detach is held by `before`, with the real logits of the batch.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Array = np.ndarray
_H = 1e-30


def log_softmax(z: Array) -> Array:
    """[C] -> [C]."""
    z = z - z.real.max()
    return z - np.log(np.exp(z).sum())


def softmax(z: Array) -> Array:
    """[C] -> [C]."""
    return np.exp(log_softmax(z))


def derivative(of: Callable[[Array], complex], at: Array) -> Array:
    """d of / d at of a function of [...] -> [...]."""
    result = np.zeros(at.shape)
    for place in np.ndindex(at.shape):
        moved = at.astype(complex)
        moved[place] += 1j * _H
        result[place] = of(moved).imag / _H
    return result


def entropy(z: Array) -> complex:
    return -(softmax(z) * log_softmax(z)).sum()


def kl(y: Array, log_p: Array) -> complex:
    """KL(y || p), where a class without mass adds nothing."""
    return sum(a * (np.log(a) - b) for a, b in zip(y, log_p, strict=True) if a > 0)


class Oracle:
    """A rule over images 0 to N - 1."""

    def __init__(self, given: Array, classes: int) -> None:
        self.given = given
        self.eye = np.eye(classes)
        self.classes = classes
        self.epoch = 1  # of the moment

    def before(self, z: Array, rows: list[int]) -> None:
        """What is taken from the real logits [B, C] before the loss."""

    def losses(self, z: Array, rows: list[int]) -> Array:
        """[B, C], complex -> [B]."""
        raise NotImplementedError

    def labels(self, z: Array, rows: list[int]) -> Array:
        """What the images are trained towards, [B, C]."""
        raise NotImplementedError

    def after(self, z: Array, rows: list[int]) -> None:
        """What is taken from the real logits after the loss."""

    def end_epoch(self) -> None:
        self.epoch += 1

    def kept(self) -> Array | None:
        """[N, C] or [C, C]."""
        return None

    def step(self, z: Array, rows: list[int]) -> tuple[Array, Array, Array]:
        """Losses [B], labels [B, C] and the derivative of the losses' mean [B, C]."""
        self.before(z, rows)
        losses, labels = self.losses(z.astype(complex), rows).real, self.labels(z, rows)
        gradient = derivative(lambda moved: self.losses(moved, rows).mean(), z)
        self.after(z, rows)
        return losses, labels, gradient

    def cross_entropy(self, z: Array, rows: list[int]) -> Array:
        return np.array([-log_softmax(z[k])[self.given[i]] for k, i in enumerate(rows)])


class VirtualTeacher(Oracle):
    def __init__(self, given: Array, classes: int, mass: float, temperature: float, weight: float) -> None:
        super().__init__(given, classes)
        self.u = np.full((classes, classes), (1 - mass) / (classes - 1))
        np.fill_diagonal(self.u, mass)
        self.temperature, self.weight = temperature, weight

    def losses(self, z: Array, rows: list[int]) -> Array:
        t, result = self.temperature, []
        for k, i in enumerate(rows):
            softened = self.u[self.given[i]] ** (1 / t) / (self.u[self.given[i]] ** (1 / t)).sum()
            result.append(t**2 * kl(softened, log_softmax(z[k] / t)))
        return (1 - self.weight) * self.cross_entropy(z, rows) + self.weight * np.array(result)

    def labels(self, z: Array, rows: list[int]) -> Array:
        return np.array([(1 - self.weight) * self.eye[y] + self.weight * self.u[y] for y in self.given[rows]])


class Bootstrap(Oracle):
    def __init__(self, given: Array, classes: int, target: str, beta: float, warmup: int) -> None:
        super().__init__(given, classes)
        self.target, self.beta, self.warmup = target, beta, warmup

    def mixed(self, z: Array, rows: list[int]) -> Array:
        """beta t + (1 - beta) q, of complex logits."""
        if self.epoch <= self.warmup:
            return self.eye[self.given[rows]]
        q = [softmax(x) if self.target == "soft" else self.eye[x.real.argmax()] for x in z]
        return self.beta * self.eye[self.given[rows]] + (1 - self.beta) * np.array(q)

    def losses(self, z: Array, rows: list[int]) -> Array:
        return np.array([-(t * log_softmax(x)).sum() for t, x in zip(self.mixed(z, rows), z, strict=True)])

    def labels(self, z: Array, rows: list[int]) -> Array:
        return self.mixed(z, rows).real


class OnlineSmoothing(Oracle):
    def __init__(self, given: Array, classes: int, share: float) -> None:
        super().__init__(given, classes)
        self.share = share
        self.s = np.full((classes, classes), 1 / classes)
        self.right: list[list[Array]] = [[] for _ in range(classes)]

    def losses(self, z: Array, rows: list[int]) -> Array:
        soft = [-(self.s[self.given[i]] * log_softmax(z[k])).sum() for k, i in enumerate(rows)]
        return self.share * self.cross_entropy(z, rows) + (1 - self.share) * np.array(soft)

    def labels(self, z: Array, rows: list[int]) -> Array:
        return self.kept()[self.given[rows]]

    def after(self, z: Array, rows: list[int]) -> None:
        for k, i in enumerate(rows):
            if z[k].argmax() == self.given[i]:
                self.right[self.given[i]].append(softmax(z[k]))

    def end_epoch(self) -> None:
        super().end_epoch()
        for c, answers in enumerate(self.right):
            if answers:
                self.s[c] = np.mean(answers, 0)
            answers.clear()

    def kept(self) -> Array:
        return self.share * self.eye + (1 - self.share) * self.s


class Joint(Oracle):
    def __init__(
        self,
        given: Array,
        classes: int,
        *,
        balance: float,
        entropy: float,
        window: int,
        epochs: int,
        warmup: int,
        freeze: int,
    ) -> None:
        super().__init__(given, classes)
        self.balance, self.entropy, self.window = balance, entropy, window
        self.warmup, self.until = warmup, epochs - freeze
        self.y = self.eye[given]
        self.prior = np.array([(given == c).mean() for c in range(classes)])
        self.answers: dict[int, list[list[Array]]] = {}

    def losses(self, z: Array, rows: list[int]) -> Array:
        of_labels = np.array([kl(self.y[i], log_softmax(z[k])) for k, i in enumerate(rows)])
        if self.epoch > self.until:
            return of_labels
        mean = np.mean([softmax(x) for x in z], 0)
        of_batch = kl(self.prior, np.log(mean))
        return of_labels + self.balance * of_batch + self.entropy * np.array([entropy(x) for x in z])

    def labels(self, z: Array, rows: list[int]) -> Array:
        return self.y[rows]

    def after(self, z: Array, rows: list[int]) -> None:
        answers = self.answers.setdefault(self.epoch, [[] for _ in self.given])
        for k, i in enumerate(rows):
            answers[i].append(softmax(z[k]))

    def end_epoch(self) -> None:
        ended, self.epoch = self.epoch, self.epoch + 1
        if not self.warmup <= ended <= self.until:
            return
        for i in range(len(self.given)):
            of_image = [p for e in range(ended - self.window + 1, ended + 1) for p in self.answers.get(e, {i: []})[i]]
            if of_image:
                self.y[i] = np.mean(of_image, 0)

    def kept(self) -> Array:
        return self.y


class Pencil(Oracle):
    """With the paper's own alpha, beta, lambda and its loss, (1/C) L_c + alpha L_o + (beta/C) L_e."""

    def __init__(
        self,
        given: Array,
        classes: int,
        *,
        mass: float,
        alpha: float,
        beta: float,
        lambda_of: Callable[[int], float],
        epochs: int,
        warmup: int,
        freeze: int,
    ) -> None:
        super().__init__(given, classes)
        self.alpha, self.beta, self.lambda_of = alpha, beta, lambda_of
        self.warmup, self.until = warmup, epochs - freeze
        # Up to a constant, which softmax does not see, the paper's K onehot.
        self.phi = np.log(np.where(self.eye[given] > 0, mass, (1 - mass) / (classes - 1)))

    def paper(self, z: Array, phi: Array, rows: list[int]) -> complex:
        """The loss of a batch in stage 2, with the labels that each entry of the batch has, phi [B, C]."""
        l_c = np.mean([(softmax(x) * (log_softmax(x) - log_softmax(w))).sum() for x, w in zip(z, phi, strict=True)])
        l_o = np.mean([-log_softmax(w)[self.given[i]] for w, i in zip(phi, rows, strict=True)])
        l_e = np.mean([entropy(x) for x in z])
        return l_c / self.classes + self.alpha * l_o + self.beta / self.classes * l_e

    def losses(self, z: Array, rows: list[int]) -> Array:
        if self.epoch <= self.warmup:
            return self.cross_entropy(z, rows)
        of_labels = [(softmax(z[k]) * (log_softmax(z[k]) - log_softmax(self.phi[i]))).sum() for k, i in enumerate(rows)]
        if self.epoch > self.until:
            return np.array(of_labels)
        return np.array(of_labels) + self.beta * np.array([entropy(x) for x in z])

    def labels(self, z: Array, rows: list[int]) -> Array:
        if self.epoch <= self.warmup:
            return self.eye[self.given[rows]]
        return np.array([softmax(self.phi[i]) for i in rows])

    def after(self, z: Array, rows: list[int]) -> None:
        if not self.warmup < self.epoch <= self.until:
            return
        gradient = derivative(lambda phi: self.paper(z, phi, rows), self.phi[rows])
        for k, i in enumerate(rows):
            self.phi[i] -= self.lambda_of(len(rows)) * gradient[k]

    def kept(self) -> Array:
        return np.array([softmax(w) for w in self.phi])


class Elr(Oracle):
    def __init__(self, given: Array, classes: int, weight: float, decay: float) -> None:
        super().__init__(given, classes)
        self.weight, self.decay = weight, decay
        self.t = np.zeros((len(given), classes))

    def before(self, z: Array, rows: list[int]) -> None:
        for i in set(rows):
            answer = np.mean([softmax(z[k]) for k, j in enumerate(rows) if i == j], 0)
            self.t[i] = self.decay * self.t[i] + (1 - self.decay) * answer

    def losses(self, z: Array, rows: list[int]) -> Array:
        of_t = [np.log(1 - (softmax(z[k]) * self.t[i]).sum()) for k, i in enumerate(rows)]
        return self.cross_entropy(z, rows) + self.weight * np.array(of_t)

    def labels(self, z: Array, rows: list[int]) -> Array:
        return self.kept()[rows]

    def kept(self) -> Array:
        sums = self.t.sum(1, keepdims=True)
        return np.where(sums > 0, self.t / np.where(sums > 0, sums, 1), self.eye[self.given])
