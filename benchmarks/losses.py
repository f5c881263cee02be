"""What each distillation loss costs more than plain cross-entropy, beside a training step.

Run: python benchmarks/losses.py [--classes 10 100 1000] [--rounds 9] [--threads 1] [--limit 0.05]

A loss is timed forward and backward on logits [128, C], features [128, 256] and attention maps of 32, 16 and 8 pixels a
side that are leaves, so nothing of the network is in it; reading the store is timed by `stages.py`. The step is
forward, cross-entropy, backward and SGD of a resnet8x4 on 128 images of 3 x 32 x 32, in the same process. A round takes
one step and every loss once, a group of ten, in an order that turns from round to round; the difference to the round's
cross-entropy and its share of the round's step are taken first, then their medians over the rounds. Exits with 1 when
a median share is above the limit.

A loss is a line of LOSSES: a function that is given `Inputs` and returns what is timed, without arguments.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from distill.losses import decoupled, feature, logit, relational, soft, transformed
from distill.losses.learned_temperature import LearnedTemperature
from distill.models import zoo

BATCH, SIDE, GROUP = 128, 32, 10
MODEL, WIDTH, MAPS, NEGATIVES = "resnet8x4", 256, (32, 16, 8), 1024
PLAIN = "cross-entropy"


@dataclass(frozen=True)
class Inputs:
    """What losses are made of; the student's parts want a gradient."""

    student: Tensor  # logits [B, C]
    teacher: Tensor  # logits [B, C]
    targets: Tensor  # int64 [B]
    features: Tensor  # the student's [B, D]
    hints: Tensor  # the teacher's [B, D]
    negatives: Tensor  # the teacher's, of other images [K, D]
    maps: list[Tensor]  # the student's, each [B, P]
    attended: list[Tensor]  # the teacher's

    @property
    def leaves(self) -> list[Tensor]:
        """What wants a gradient."""
        return [self.student, self.features, *self.maps]

    @property
    def classes(self) -> int:
        """C."""
        return self.student.shape[1]


Timed = Callable[[], Tensor]  # -> [B]


def _learned_temperature(x: Inputs) -> Timed:
    learned = LearnedTemperature()
    return lambda: logit.kd(x.student, x.teacher, learned(0.5))


def _lskd(x: Inputs) -> Timed:
    return lambda: logit.kd(logit.standardised(x.student), logit.standardised(x.teacher), 2.0)


def _online_labels(x: Inputs) -> Timed:
    online = soft.OnlineLabels(x.classes)
    return lambda: online.loss(x.student, x.targets)


def _contrast(x: Inputs) -> Timed:
    heads = feature.CRD(WIDTH, WIDTH, 50_000)
    same = x.targets.unsqueeze(1) == torch.randint(0, x.classes, (NEGATIVES,))
    return lambda: heads(x.features, x.hints, x.negatives, same)


def _hints(x: Inputs) -> Timed:
    regressor = feature.FitNet(WIDTH, WIDTH)
    return lambda: regressor(x.features, x.hints)


LOSSES: dict[str, Callable[[Inputs], Timed]] = {
    PLAIN: lambda x: lambda: soft.cross_entropy(x.student, x.targets),
    "label smoothing": lambda x: lambda: soft.smoothed_cross_entropy(x.student, x.targets, 0.1),
    "online labels": _online_labels,
    "Tf-KD": lambda x: lambda: soft.tf_kd(x.student, x.targets),
    "KD": lambda x: lambda: logit.kd(x.student, x.teacher, 4.0),
    "CTKD": _learned_temperature,
    "reverse KD": lambda x: lambda: logit.reverse_kd(x.student, x.teacher, 4.0),
    "Jensen-Shannon": lambda x: lambda: logit.jsd(x.student, x.teacher, 4.0),
    "logit matching": lambda x: lambda: logit.logit_matching(x.student, x.teacher),
    "LSKD": _lskd,
    "DKD": lambda x: lambda: decoupled.dkd(x.student, x.teacher, x.targets),
    "NKD": lambda x: lambda: decoupled.nkd(x.student, x.teacher, x.targets),
    "DIST": lambda x: lambda: relational.dist(x.student, x.teacher),
    "MLKD": lambda x: lambda: relational.mlkd(x.student, x.teacher),
    "TTM": lambda x: lambda: transformed.ttm(x.student, x.teacher),
    "WTTM": lambda x: lambda: transformed.wttm(x.student, x.teacher),
    "FitNet": _hints,
    "RKD": lambda x: lambda: feature.rkd(x.features, x.hints),
    "CRD": _contrast,
    "attention": lambda x: lambda: feature.attention_transfer(x.maps, x.attended),
}


@dataclass(frozen=True)
class Row:
    """Medians over the rounds, in seconds."""

    loss: str
    classes: int
    own: float  # forward and backward of the loss
    extra: float  # less cross-entropy's
    step: float
    share: float  # extra by step


def inputs(classes: int) -> Inputs:
    """Normal logits, three times; normal features, and maps between 0 and 1."""
    source = torch.Generator().manual_seed(classes)
    student, teacher = (3 * torch.randn(BATCH, classes, generator=source) for _ in range(2))
    targets = torch.randint(0, classes, (BATCH,), generator=source)
    features, hints = (torch.randn(BATCH, WIDTH, generator=source) for _ in range(2))
    negatives = torch.randn(NEGATIVES, WIDTH, generator=source)
    maps, attended = ([torch.rand(BATCH, side**2, generator=source) for side in MAPS] for _ in range(2))
    for leaf in (student, features, *maps):
        leaf.requires_grad_()
    return Inputs(student, teacher, targets, features, hints, negatives, maps, attended)


def training_step(classes: int) -> Callable[[], None]:
    """One step of the network that the losses are measured by."""
    torch.manual_seed(0)
    model = zoo.create(zoo.fit(MODEL, classes=classes, channels=3, image_size=SIDE)).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    images, targets = torch.randn(BATCH, 3, SIDE, SIDE), torch.randint(0, classes, (BATCH,))

    def step() -> None:
        optimizer.zero_grad()
        soft.cross_entropy(model(images), targets).mean().backward()
        optimizer.step()

    return step


def group(timed: Timed, x: Inputs) -> Callable[[], None]:
    """Forward and backward, GROUP times."""

    def work() -> None:
        for _ in range(GROUP):
            for leaf in x.leaves:
                leaf.grad = None
            timed().mean().backward()

    return work


def seconds(work: Callable[[], None]) -> float:
    """Of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(classes: int, rounds: int) -> list[Row]:
    """Every loss at one number of classes."""
    x, step = inputs(classes), training_step(classes)
    work = {name: group(prepare(x), x) for name, prepare in LOSSES.items()}
    for warm_up in (step, step, *work.values(), *work.values()):
        warm_up()
    steps: list[float] = []
    times: dict[str, list[float]] = {name: [] for name in work}
    for number in range(rounds):
        steps.append(seconds(step))
        names = list(work)
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            times[name].append(seconds(work[name]) / GROUP)
    rows = []
    for name, own in times.items():
        extra = [mine - plain for mine, plain in zip(own, times[PLAIN], strict=True)]
        shares = [more / whole for more, whole in zip(extra, steps, strict=True)]
        medians = (statistics.median(values) for values in (own, extra, steps, shares))
        rows.append(Row(name, classes, *medians))
    return rows


def table(rows: list[Row]) -> Iterator[str]:
    """Markdown, a line for each loss: extra microseconds and share of the step at every C."""
    numbers = sorted({row.classes for row in rows})
    found = {(row.loss, row.classes): row for row in rows}
    yield "| loss | " + " | ".join(f"C = {n:,}: us | of a step" for n in numbers) + " |"
    yield "|---|" + "---:|---:|" * len(numbers)
    for name in dict.fromkeys(row.loss for row in rows):
        sign = "" if name == PLAIN else "+"
        cells = []
        for row in (found[name, n] for n in numbers):
            spent = row.own if name == PLAIN else row.extra
            share = row.own / row.step if name == PLAIN else row.share
            cells.append(f"{sign}{spent * 1e6:,.0f} | {share:.2%}".replace("+-", "-"))
        yield f"| {name} | " + " | ".join(cells) + " |"
    steps = ", ".join(f"{found[PLAIN, n].step * 1e3:,.0f} ms at C = {n:,}" for n in numbers)
    yield ""
    yield f"A step of {MODEL}, batch {BATCH}: {steps}. {PLAIN.capitalize()}: what it takes; the others: what they add."


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--limit", type=float, default=0.05, help="the largest share of a step that is accepted")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    rows = [row for classes in asked.classes for row in measure(classes, asked.rounds)]
    print("\n".join(table(rows)))
    if heavy := [f"{row.loss} at C = {row.classes:,} ({row.share:.1%})" for row in rows if row.share > asked.limit]:
        print(f"above {asked.limit:.0%} of a step: {', '.join(heavy)}", file=sys.stderr)
    return 1 if heavy else 0


if __name__ == "__main__":
    sys.exit(main())
