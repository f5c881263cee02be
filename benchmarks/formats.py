"""What each format of a store costs: KL(teacher || reconstruction) at several temperatures, on real teachers.

C = 10 is a Fashion-MNIST teacher that the program trains. There is no real data set of 100 or 1,000 classes on a
machine without a network, so the classes of the other two are made from the same images: k-means divides each of the
ten classes into 10, or 100, clusters, and a network learns to tell all of them apart. Such classes overlap as
fine-grained ones do.

Run: python benchmarks/formats.py [--out docs/formats.md]      (a few minutes of one core)
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from distill.data.loader import open_data, ordered_batches
from distill.models.zoo import create, fit
from distill.recipe.load import parse_recipe
from distill.stages.finished import load_teacher
from distill.stages.teacher import train_teacher
from distill.store.formats.encoding import logit_encoding
from distill.store.formats.layout import Format, logit_columns, row_bytes

TEMPERATURES = (1, 2, 4, 8)
FORMATS: tuple[tuple[Format, int | None], ...] = (
    ("float16", None),
    ("int8", None),
    ("topk", 5),
    ("topk", 10),
    ("topk", 50),
)
JUDGED = 2000  # test images

RECIPE = """
name = "formats"
threads = 1
device = "cpu"
[data]
source = "fashion-mnist"
train = 8000
validation = 500
[teacher]
model = "resnet8"
epochs = 4
batch_size = 64
"""


@dataclass(frozen=True)
class Teacher:
    """Logits [N, C] of images that it was not trained on, and how often it is right about them."""

    name: str
    logits: Tensor
    accuracy: float


def program_teacher() -> Teacher:
    """Ten classes, trained by `distill teacher`."""
    with tempfile.TemporaryDirectory() as place:
        recipe = parse_recipe(RECIPE, "formats.toml", [f'checkpoints="{place}"'])
        run = train_teacher(recipe, lambda event: None)
        data, device = open_data(recipe), torch.device("cpu")
        model = load_teacher(recipe, data, run.folder / "model.safetensors", device)
        rows = data.splits.test[:JUDGED]
        with torch.no_grad():
            batches = ordered_batches(data, rows, batch_size=250, device=device)
            logits = torch.cat([model(batch.images) for batch in batches])
        accuracy = float((logits.argmax(-1) == data.labels.true[rows]).double().mean())
    return Teacher("ResNet-8, Fashion-MNIST, 8,000 images, 4 epochs", logits, accuracy)


def images() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Fashion-MNIST at 14x14: training images [N, 1, 14, 14] and classes [N], test images and classes."""
    data = open_data(parse_recipe(RECIPE, "formats.toml", ["data.validation=0", "data.train=60000"]))
    parts = []
    for rows in (data.splits.train, data.splits.test):
        pixels = data.source.fetch(rows).float() / 255
        parts += [(F.avg_pool2d(pixels, 2) - 0.29) / 0.33, data.labels.true[rows]]
    return parts[0], parts[1], parts[2], parts[3]


def clusters(points: Tensor, count: int, rounds: int = 15) -> Tensor:
    """k-means: points [n, d] -> centres [count, d]; a centre that nobody is near to stays where it is."""
    start = torch.randperm(len(points), generator=torch.Generator().manual_seed(0))[:count]
    centres = points[start].clone()
    for _ in range(rounds):
        nearest = torch.cdist(points, centres).argmin(-1)
        sums = torch.zeros_like(centres).index_add_(0, nearest, points)
        sizes = nearest.bincount(minlength=count).unsqueeze(-1)
        centres = torch.where(sizes > 0, sums / sizes.clamp(min=1), centres)
    return centres


def cluster_teacher(classes: int, epochs: int) -> Teacher:
    """A network that tells the clusters of the ten classes apart."""
    x, y, test_x, test_y = images()
    each = classes // 10
    centres = [clusters(x[y == c].flatten(1), each) for c in range(10)]

    def labelled(points: Tensor, coarse: Tensor) -> Tensor:
        labels = torch.empty_like(coarse)
        for c in range(10):
            mine = coarse == c
            labels[mine] = c * each + torch.cdist(points[mine].flatten(1), centres[c]).argmin(-1)
        return labels

    torch.manual_seed(0)
    model = create(fit("resnet8", classes=classes, channels=1, image_size=14)).train()
    train(model, x, labelled(x, y), epochs)
    with torch.no_grad():
        logits = torch.cat([model(chunk) for chunk in test_x[:JUDGED].split(250)])
    right = logits.argmax(-1) == labelled(test_x, test_y)[:JUDGED]
    name = f"ResNet-8, {each} k-means clusters of each Fashion-MNIST class, 14x14 pixels, {epochs} epochs"
    return Teacher(name, logits, float(right.double().mean()))


def train(model: nn.Module, x: Tensor, y: Tensor, epochs: int, batch_size: int = 128) -> None:
    """SGD with momentum and a cosine; leaves the model in eval mode."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    steps = epochs * (len(x) // batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(epochs):
        for chosen in torch.randperm(len(x)).split(batch_size)[: len(x) // batch_size]:
            optimizer.zero_grad()
            F.cross_entropy(model(x[chosen]), y[chosen]).backward()
            optimizer.step()
            schedule.step()
    model.eval()


def price(logits: Tensor, format: Format, k: int | None, temperature: float) -> float:
    """Mean KL(softmax(z / T) || softmax(stored z / T)) in nats, in float64."""
    encoding = logit_encoding(format, logits.shape[1], k)
    found = encoding.decode(encoding.encode(logits)).double()
    log_p, log_q = (torch.log_softmax(z / temperature, dim=-1) for z in (logits.double(), found))
    return float((log_p.exp() * (log_p - log_q)).sum(-1).mean())


def table(teachers: list[Teacher]) -> Iterator[str]:
    """Markdown, line by line."""
    yield "| C | format | bytes a row | " + " | ".join(f"T = {t}" for t in TEMPERATURES) + " |"
    yield "|---:|---|---:|" + "---:|" * len(TEMPERATURES)
    for teacher in teachers:
        classes = teacher.logits.shape[1]
        for format, k in FORMATS:
            if k is None or k < classes:
                name = f"top-{k}" if k else format
                size = row_bytes(logit_columns(format, classes, k))
                prices = [f"{price(teacher.logits, format, k, t):.1e}" for t in TEMPERATURES]
                yield f"| {classes:,} | {name} | {size:,} | " + " | ".join(prices) + " |"


def main() -> None:
    """Prints the teachers and the table, and puts them into a file between its marks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=None, help="a file with the lines <!-- table --> and <!-- end -->")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    teachers = [program_teacher(), cluster_teacher(100, 2), cluster_teacher(1000, 3)]
    lines = [
        f"- C = {len(t.logits[0]):,}: {t.name}; {t.accuracy:.1%} of {JUDGED:,} test images right, "
        f"mean top probability {float(t.logits.softmax(-1).amax(-1).mean()):.2f}."
        for t in teachers
    ]
    text = "\n".join([*lines, "", *table(teachers)])
    print(text)
    if asked.out is not None:
        before, _, rest = asked.out.read_text().partition("<!-- table -->\n")
        asked.out.write_text(f"{before}<!-- table -->\n{text}\n<!-- end -->{rest.partition('<!-- end -->')[2]}")


if __name__ == "__main__":
    main()
