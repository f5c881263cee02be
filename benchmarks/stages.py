"""What the store costs and saves: export against a bare loop, a student's step against a plain one and an online one.

Three measurements, each of variants that take turns in one process, so that whatever else the machine does hits all of
them; a ratio is taken within a round, and the median over the rounds is reported, with the quartiles. On a CPU the same
ratio of processor time is given too, which other processes hardly touch (it leaves out waiting for the disk).

1. export: images a second of `distill export` (reading, views, forward pass, checks, digests, files) over those of a
   loop that does nothing but make the same views and run the same teacher without gradients. Target: at least 0.90.
2. student: time of a student's step with logits from the store over that of a plain supervised step, written by hand
   in torch, of the same student on the same views. Target: at most 1.05.
3. online: time of a step that runs the teacher (ResNet32x4) beside the student (ResNet8x4) over that of the step with
   the store, and after how many epochs the export has paid for itself.

Run: python benchmarks/stages.py [--threads 1] [--rounds 15] [--device cpu] [--json]
Images: Fashion-MNIST where it is on disk, as 28x28 and as 3x32x32 (zero border, grey in three channels); else digits,
enlarged to the same sizes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from distill.data import loader
from distill.data.loader import Batch, ImageData, open_data, ordered_batches, training_batches
from distill.data.memory import MemorySource
from distill.data.views import view_count
from distill.errors import DataError
from distill.models import zoo
from distill.recipe.load import override, parse_recipe
from distill.recipe.losses import needs
from distill.recipe.schema import Recipe
from distill.report.runs import Run, make_run, program_commit
from distill.stages import export, student
from distill.stages.common import model_spec, teacher_inputs
from distill.stages.export import export_teacher
from distill.stages.finished import STORE, stored_rows
from distill.stages.settling import settle_student
from distill.stages.student_task import StudentTask
from distill.stages.teachers import StoredTeaching
from distill.store.checkpoint import save_weights
from distill.store.logits import LogitStore
from distill.training.device import describe_device

SIZES = ((1, 28), (3, 32))
STUDENTS = ("resnet8", "resnet8x4")
BATCHES = (64, 128)
TEACHER = "resnet20"  # of the export: small enough for many rounds, so that the store's own work counts more
PAIR = ("resnet32x4", "resnet8x4")


def recipe_for(folder: Path, threads: int, device: str, *overrides: str) -> Recipe:
    """Crop and flip, two views of each image."""
    source = "fashion-mnist"
    try:
        open_data(parse_recipe("[data]\nsource = 'fashion-mnist'", "probe"))
    except DataError:
        source = "digits"
    views = ("views.crop_padding=4", "views.flip=true", "views.count=2")
    place = (f'checkpoints="{folder}"', f"data.source={source}", f"threads={threads}", f"device={device}")
    recipe = override(parse_recipe("", "bench"), [*place, *views, *overrides])
    return settle_student(recipe, channels=1, image_size=SIZES[0][1], classes=10).recipe


def images_of(recipe: Recipe, channels: int, side: int) -> ImageData:
    """The recipe's data as `channels` x side x side."""
    data = open_data(recipe)
    source = data.source
    pixels = source.fetch(torch.arange(len(source.targets)))
    if pixels.shape[-1] <= side // 2:
        pixels = F.interpolate(pixels.float(), (side, side)).to(torch.uint8)
    edge = (side - pixels.shape[-1]) // 2
    pixels = F.pad(pixels, (edge,) * 4).expand(-1, channels, -1, -1).contiguous()
    made = MemorySource(source.name, tuple(source.classes), pixels, source.targets, source.test_start)
    return replace(data, source=made, mean=data.mean * channels, std=data.std * channels)


@dataclass
class Times:
    """Seconds of one variant in each round: on the clock, and of the processor."""

    clock: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)

    def median(self) -> float:
        """On the clock."""
        return statistics.median(self.clock)


def in_turns(variants: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Times]:
    """Times each variant in each round, after one round that does not count; every round in another order."""
    times = {name: Times() for name in variants}
    names = list(variants)
    for number in range(-1, rounds):
        for name in names if number % 2 else reversed(names):
            start, used = time.perf_counter(), time.process_time()
            variants[name]()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number >= 0:
                times[name].clock.append(time.perf_counter() - start)
                times[name].processor.append(time.process_time() - used)
    return times


def ratio(over: Times, under: Times) -> dict[str, Any]:
    """Median and quartiles of the rounds' ratios on the clock, and the median of those of processor time."""
    ratios, used = (
        sorted(a / b for a, b in zip(*pair, strict=True))
        for pair in ((over.clock, under.clock), (over.processor, under.processor))
    )
    low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    return {"median": middle, "quartiles": [low, high], "processor": statistics.median(used)}


def finished_teacher(recipe: Recipe, data: ImageData) -> Run:
    """A run folder whose teacher has random weights: what it says does not matter to a clock."""
    torch.manual_seed(0)
    network = zoo.create(model_spec(recipe.teacher, data, "teacher"))
    digest = teacher_inputs(recipe, data)
    folder = Path(recipe.checkpoints) / recipe.name
    folder.mkdir(parents=True, exist_ok=True)
    run = make_run(folder, recipe, kind="teacher", begun=digest)
    files = {"model.safetensors": save_weights(run.folder / "model.safetensors", network.state_dict())}
    run.finish("teacher", digest, {"seconds": 0.0}, files, "none")
    return run


def with_data(data: ImageData) -> None:
    """Lets the stages open this data set in place of the recipe's."""
    export.open_data = student.open_data = lambda recipe, **options: data  # type: ignore[attr-defined]


def measure_export(folder: Path, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Whole exports against whole bare loops."""
    for channels, side in SIZES:
        settings = (f"name=export{side}", f"teacher.model={TEACHER}", f"data.train={options.images}", "data.meta=0")
        recipe = recipe_for(folder, options.threads, options.device, *settings)
        data = images_of(recipe, channels, side)
        with_data(data)
        run, rows = finished_teacher(recipe, data), stored_rows(data)
        device = torch.device(options.device)
        network = export.load_teacher(recipe, data, run.folder / "model.safetensors", device)
        total = rows.numel() * view_count(recipe.views)

        def exported(recipe: Recipe = recipe, run: Run = run) -> None:
            run.forget("export")
            for path in (run.folder / STORE).glob("*"):
                path.unlink()
            export_teacher(run, recipe, lambda event: None)

        def bare(
            recipe: Recipe = recipe, data: ImageData = data, network: nn.Module = network, device: torch.device = device
        ) -> None:
            for batch in every_view(recipe, data, device):
                with torch.no_grad():
                    network(batch.images).float().cpu()

        times = in_turns({"export": exported, "bare": bare}, max(3, options.rounds // 3))
        yield {
            "what": "export",
            "case": f"{TEACHER}, {channels}x{side}x{side}, batch {recipe.export.batch_size}",
            "images_per_second": {name: total / seconds.median() for name, seconds in times.items()},
            "throughput": ratio(times["bare"], times["export"]),
        }


def every_view(recipe: Recipe, data: ImageData, device: torch.device) -> Iterator[Batch]:
    """What an export looks at."""
    for view in range(view_count(recipe.views)):
        yield from ordered_batches(
            data,
            stored_rows(data),
            batch_size=recipe.export.batch_size,
            device=device,
            view=view,
            views=recipe.views,
            seed=recipe.seed,
        )


class Steps:
    """Steps of one variant, epoch after epoch, `count` a call."""

    def __init__(self, batches: Callable[[int], Iterator[Batch]], step: Callable[[Batch, int], object]) -> None:
        self.batches, self.step = batches, step
        self.flow = self._flow()
        self.number = 0

    def _flow(self) -> Iterator[Batch]:
        epoch = 0
        while True:
            yield from self.batches(epoch)
            epoch += 1

    def __call__(self, count: int) -> None:
        """Takes `count` steps."""
        for _ in range(count):
            self.step(next(self.flow), self.number)
            self.number += 1


def plain_steps(
    recipe: Recipe, data: ImageData, rows: Tensor, device: torch.device, teacher: nn.Module | None
) -> Steps:
    """The student by hand: torch's optimiser, cross-entropy, and with a teacher Hinton's loss on its fresh logits."""
    torch.manual_seed(0)
    settings = recipe.student
    network = zoo.create(model_spec(settings, data, "student")).to(device).train()
    optimizer = torch.optim.SGD(
        network.parameters(), lr=settings.optimizer.lr, momentum=settings.optimizer.momentum, weight_decay=5e-4
    )
    loss_of = settings.loss

    def step(batch: Batch, number: int) -> None:
        logits = network(batch.images)
        loss = F.cross_entropy(logits, batch.given)
        if teacher is not None:
            with torch.no_grad():
                target = (teacher(batch.images) / loss_of.temperature).log_softmax(1)
            log_q = (logits / loss_of.temperature).log_softmax(1)
            soft = (target.exp() * (target - log_q)).sum(1).mean() * loss_of.temperature**2
            loss = loss_of.hard_weight * loss + loss_of.soft_weight * soft
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    def batches(epoch: int) -> Iterator[Batch]:
        return training_batches(
            data,
            rows,
            batch_size=settings.batch_size,
            epoch=epoch,
            seed=recipe.seed,
            views=recipe.views,
            numbered=True,
            device=device,
        )

    return Steps(batches, step)


def stored_steps(recipe: Recipe, data: ImageData, store: LogitStore, device: torch.device) -> Steps:
    """The student as `distill student` trains it."""
    wanted = needs(recipe.student.loss)
    teaching = StoredTeaching([store], [1.0], "logits", wanted, data, device, recipe.seed)
    task = StudentTask(recipe, data, teaching, None, device)
    return Steps(lambda epoch: task.batches(epoch, 0), lambda batch, number: task.step(batch, 0, number))


def measure_steps(folder: Path, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The step with the store against the plain one."""
    device = torch.device(options.device)
    for channels, side in SIZES:
        data: ImageData | None = None
        for name in options.students:
            for batch_size in BATCHES:
                settings = (f"name=step{side}", "teacher.model=resnet8", f"data.train={options.images}", "data.meta=0")
                of_student = (f"student.model={name}", f"student.batch_size={batch_size}")
                recipe = recipe_for(folder, options.threads, options.device, *settings, *of_student)
                data = data or images_of(recipe, channels, side)
                with_data(data)
                store = LogitStore.open(export_teacher(finished_teacher(recipe, data), recipe, lambda event: None))
                plain = plain_steps(recipe, data, store.indices, device, None)
                stored = stored_steps(recipe, data, store, device)
                count = options.steps
                turns = {"store": partial(stored, count), "plain": partial(plain, count)}
                times = in_turns(turns, options.rounds)
                yield {
                    "what": "student",
                    "case": f"{name}, {channels}x{side}x{side}, batch {batch_size}",
                    "milliseconds_a_step": milliseconds(times, count),
                    "ratio": ratio(times["store"], times["plain"]),
                }


def measure_online(folder: Path, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The pair of the literature: the teacher beside the student, and from the store."""
    device, (teacher, pupil) = torch.device(options.device), PAIR
    channels, side = SIZES[-1]
    images = min(options.images, 512) if device.type == "cpu" else options.images
    settings = ("name=online", f"teacher.model={teacher}", f"student.model={pupil}", f"data.train={images}")
    recipe = recipe_for(folder, options.threads, options.device, *settings, "data.meta=0", "student.batch_size=64")
    data = images_of(recipe, channels, side)
    with_data(data)
    run = finished_teacher(recipe, data)
    began = time.perf_counter()
    store = LogitStore.open(export_teacher(run, recipe, lambda event: None))
    seconds = time.perf_counter() - began
    network = export.load_teacher(recipe, data, run.folder / "model.safetensors", device)
    online = plain_steps(recipe, data, store.indices, device, network)
    stored = stored_steps(recipe, data, store, device)
    count = max(1, options.steps // 4)
    times = in_turns({"store": partial(stored, count), "online": partial(online, count)}, options.rounds)
    steps = loader.steps_per_epoch(store.indices.numel(), recipe.student.batch_size)
    saved = (times["online"].median() - times["store"].median()) / count * steps
    yield {
        "what": "online",
        "case": f"{teacher} -> {pupil}, {channels}x{side}x{side}, batch 64, {view_count(recipe.views)} views",
        "milliseconds_a_step": milliseconds(times, count),
        "factor_per_epoch": ratio(times["online"], times["store"]),
        "export_seconds": seconds,
        "epochs_until_paid": seconds / saved if saved > 0 else None,
    }


def milliseconds(times: dict[str, Times], count: int) -> dict[str, float]:
    """Median time of a step."""
    return {name: 1000 * seconds.median() / count for name, seconds in times.items()}


def line(result: dict[str, Any]) -> str:
    """One row of the table."""
    what, case = result["what"], result["case"]
    if what == "export":
        speed = result["images_per_second"]
        return (
            f"{what:8} {case:52} {speed['export']:9,.0f} img/s, bare {speed['bare']:9,.0f}: "
            f"{shown(result['throughput'])} of its throughput (target 0.90)"
        )
    step = result["milliseconds_a_step"]
    if what == "student":
        return (
            f"{what:8} {case:52} {step['store']:9.2f} ms, plain {step['plain']:9.2f}: "
            f"{shown(result['ratio'])} times its time (target 1.05)"
        )
    paid = result["epochs_until_paid"]
    return (
        f"{what:8} {case:52} {step['store']:9.2f} ms, online {step['online']:8.2f}: factor "
        f"{shown(result['factor_per_epoch'])}; export {result['export_seconds']:.1f} s, paid for after "
        f"{f'{paid:.1f} epochs' if paid else 'no number of epochs'}"
    )


def shown(found: dict[str, Any]) -> str:
    """Median and, in brackets, the quartiles and the median of processor time."""
    low, high = found["quartiles"]
    return f"{found['median']:.3f} ({low:.3f} to {high:.3f}; processor {found['processor']:.3f})"


def main() -> None:
    """Prints one line a case, or with --json one object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=8, help="steps of a variant in a round")
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--only", choices=("export", "student", "online"))
    parser.add_argument("--students", nargs="+", default=STUDENTS)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    measures = {"export": measure_export, "student": measure_steps, "online": measure_online}
    head = {
        "torch": torch.__version__,
        "commit": program_commit(),
        "threads": options.threads,
        "cores": os.cpu_count(),
        "device": describe_device(torch.device(options.device)),
        "load_before": os.getloadavg()[0],
    }
    results = []
    if not options.json:
        print(", ".join(f"{name} {value}" for name, value in head.items()))
    for name in [options.only] if options.only else list(measures):
        with tempfile.TemporaryDirectory() as folder:
            for result in measures[name](Path(folder), options):
                results.append(result)
                if not options.json:
                    print(line(result), flush=True)
    if options.json:
        print(json.dumps({**head, "load_after": os.getloadavg()[0], "results": results}, indent=2))
    else:
        print(f"load {os.getloadavg()[0]:.2f} at the end")


if __name__ == "__main__":
    main()
