"""Students over timm's families: does the smallest model of each learn from a store, and come back as it was?

Run: python benchmarks/students.py --jobs 1 --out docs/students.md

For each family a teacher (resnet8) is trained on shipped digits and exported with features and attention maps, a
student learns two steps from that store by `train_student`, is saved, and is loaded again by
`timm.create_model("local-dir:...", pretrained=True)`. The choice of models is that of `families.py`. Each family runs
in a process of its own, with a limit on time and memory, so that a crash or a hang costs one row. Rows that are done
are kept in the cache folder (rows.jsonl): the same command goes on where it stopped, --fresh begins anew.
"""

from __future__ import annotations

import json
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import timm
import torch
from PIL import Image
from torch import Tensor, nn

try:
    from benchmarks import families
except ModuleNotFoundError:  # run as a file
    import families  # type: ignore[import-not-found, no-redef]

from distill.data.loader import open_data, ordered_batches
from distill.data.memory import open_digits
from distill.errors import ModelError, UserError
from distill.models import zoo
from distill.models.capture import Inside
from distill.recipe.load import override, parse_recipe
from distill.recipe.schema import Recipe
from distill.report.runs import Run
from distill.stages.common import build_network
from distill.stages.pipeline import run_teacher
from distill.stages.student import train_student
from distill.training.events import Event

IMAGES = 60  # files of digits; 32 are trained on, in two steps, 16 are tested on
BATCH = 16
CLOSE = 1e-5  # of the largest logit: what a student that came back may differ by

RECIPE = f"""
name = "teacher"
device = "cpu"
threads = 1
[data]
source = "folder"
train = {2 * BATCH}
validation = 0
test = 16
[views]
crop_padding = 2
count = 2
[teacher]
model = "resnet8"
epochs = 1
batch_size = {BATCH}
[export]
features = true
maps = true
[student]
epochs = 1
batch_size = {BATCH}
[student.optimizer]
lr = 0.01
"""


@dataclass(frozen=True)
class Row:
    """What is known of one family."""

    family: str
    model: str = ""
    parameters: int = 0
    image_size: int | None = None  # 0: it fits no size that was tried; None: the process ended before that was known
    fitted: str = ""  # how the model was brought to that size
    features: int = 0  # how many the last layer is given; 0: they cannot be had
    maps: str = ""  # sizes of its attention maps; empty: they cannot be had
    losses: str = ""  # that it learned by
    difference: float | None = None  # largest, of its logits before and after, over the largest of them; None: refused
    seconds: float = 0.0  # of teacher, store and student, CPU time
    missing: str = ""  # why there are no features, or no maps
    refusal: str = ""
    made_with: str = ""

    @property
    def counted(self) -> bool:
        """Whether the family takes an image of 64 pixels or fewer, or runs at its own size in under a minute."""
        small = self.image_size is None or 0 < self.image_size <= families.SMALL_SIDES[-1]
        return small or (self.image_size != 0 and 0 < self.seconds < families.OWN_SIZE_SECONDS)

    @property
    def passed(self) -> bool:
        """Whether the student came back as it was trained."""
        return self.difference is not None and self.difference <= CLOSE


def ignore(event: Event) -> None:
    """No progress is shown."""


def write_digits(folder: Path) -> None:
    """Shipped digits as files, a folder for each class: colour images of 8x8 pixels, which the source enlarges."""
    source = open_digits()
    for row, label in enumerate(source.targets[:IMAGES].tolist()):
        place = folder / str(label)
        place.mkdir(parents=True, exist_ok=True)
        pixels = source.fetch(torch.tensor([row]))[0, 0].numpy()
        Image.fromarray(pixels).convert("RGB").save(place / f"{row:03}.png")


def make_teacher(folder: Path, side: int) -> Run:
    """A finished teacher with a store, of images of `side` pixels."""
    write_digits(folder / "images")
    places = [f'data.root="{folder / "images"}"', f'checkpoints="{folder}"', f"data.image_size={side}"]
    return run_teacher(parse_recipe(RECIPE, "students", places), ignore)


def seen_inside(model: nn.Module, images: Tensor) -> dict[str, Any]:
    """What a loss can see of the model in a training pass: the width of its features, the sizes of its maps."""
    found: dict[str, Any] = {}
    missing = []
    for kind in ("features", "maps"):
        try:
            with Inside(model, images, features=kind == "features", maps=kind == "maps") as inside:
                model(images)
                given = inside.features
                count = len(inside.maps or [])
        except ModelError as error:
            missing.append(f"no {kind}: {error.message}")
            continue
        if given is not None:
            found["features"] = given.shape[1]
        else:
            assert count == len(inside.sizes), "a map for each stage"
            found["maps"] = ", ".join(f"{height}x{width}" for height, width in inside.sizes)
    return {**found, "missing": "; ".join(missing)}


def learn(teacher: Run, recipe: Recipe) -> tuple[nn.Module, Run]:
    """The network that `train_student` trained, and its run folder."""
    with patch.object(zoo, "save_for_timm", wraps=zoo.save_for_timm) as saved:
        run = train_student(teacher, recipe, ignore)
    return saved.call_args.args[0], run


@torch.no_grad()
def compare(before: nn.Module, trained: nn.Module, run: Run, images: Tensor) -> float:
    """How far the logits of the loaded student are from those of the trained one, over the largest of these.

    Raises:
        ModelError: training has changed nothing.
    """
    loaded = timm.create_model(f"local-dir:{run.folder}", pretrained=True)
    first, expected, found = (model.eval()(images) for model in (before, trained, loaded))
    if torch.equal(first, expected):
        raise ModelError("two steps of training have not changed its logits")
    if not expected.isfinite().all():
        raise ModelError("its logits are not finite after two steps")
    return float((found - expected).abs().max() / expected.abs().max())


def fitted_once() -> Any:
    """While it is entered, `zoo.fit` searches once for each of its questions: teacher, student and we ask the same."""
    return patch.object(zoo, "fit", zoo.fit_once())


def examine(family: str, limits: families.Limits, folder: Path, tell: Callable[[dict[str, Any]], None]) -> None:
    """Chooses, fits, teaches and loads; tells each part of the row as soon as it is known."""
    name = families.smallest_model(family)
    tell({"model": name, "made_with": families.provenance(1)})
    try:
        spec = families.fit_smallest_side(name)
    except ModelError as error:
        tell({"image_size": 0, "refusal": error.message})
        return
    size = zoo.parameter_count(spec)
    tell({"parameters": size, "image_size": spec.image_size, "fitted": families.fitted_as(spec)})
    if size > limits.parameters:
        tell({"refusal": f"not run: larger than {limits.parameters / 1e6:g} M parameters"})
        return
    start = time.process_time()
    try:
        teach(make_teacher(folder, spec.image_size), name, tell)
    except UserError as error:
        tell({"refusal": error.message})
    tell({"seconds": time.process_time() - start})


def teach(teacher: Run, name: str, tell: Callable[[dict[str, Any]], None]) -> None:
    """A student by this name, from its first weights to the logits that come back; learns by all that it can show."""
    recipe = override(teacher.recipe, [f"student.model={name}"])
    data, device = open_data(recipe), torch.device("cpu")
    batch = next(ordered_batches(data, data.splits.test, batch_size=BATCH, device=device))
    _, before, _ = build_network(recipe.student, "student", data, recipe.seed, device)
    tell(found := seen_inside(deepcopy(before), batch.images))
    plus = [loss for loss, kind in (("fitnet", "features"), ("attention", "maps")) if found.get(kind)]
    tell({"losses": " + ".join(["kd", *plus])})
    trained, run = learn(teacher, override(recipe, [f"student.loss.plus.{loss}.weight=0.1" for loss in plus]))
    tell({"difference": compare(before, trained, run, batch.images)})


def run_one(family: str, cache: Path, limits: families.Limits) -> Row:
    """The family in a process of its own, which limits itself; what it leaves behind is removed."""
    settings = [f"--{name}={value}" for name, value in asdict(limits).items()]
    command = [sys.executable, __file__, "--worker", family, "--cache", str(cache), *settings]
    told, ending = "", f"stopped after waiting {families.HANGS * limits.seconds:g} s"
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=families.HANGS * limits.seconds)
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        told, ending = done.stdout, f"crashed with exit status {done.returncode}: {last}"
        if -done.returncode == signal.SIGXCPU:
            ending = f"stopped after {limits.seconds:g} s of CPU time"
    except subprocess.TimeoutExpired as error:
        told = (error.stdout or b"").decode()
    finally:
        shutil.rmtree(cache / family, ignore_errors=True)
    values: dict[str, Any] = {}
    for line in told.splitlines():
        values.update(json.loads(line))
    if values.get("difference") is None and not values.get("refusal"):
        values["refusal"] = ending
    return Row(family, **values)


def limit_self(limits: families.Limits) -> None:
    """The kernel ends this process when it has used so much time, and refuses it more memory."""
    seconds, octets = round(limits.seconds), round(limits.gibibytes * 2**30)
    # The hard limit stays: past it the kernel sends SIGKILL, as for want of memory, and imports alone may take longer.
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.getrlimit(resource.RLIMIT_CPU)[1]))
    resource.setrlimit(resource.RLIMIT_DATA, (octets, octets))


def measure(
    names: Sequence[str], cache: Path, limits: families.Limits, *, jobs: int = 1, fresh: bool = False
) -> list[Row]:
    """A row for each family, from the cache or from a process of its own; progress goes to standard error."""
    cache.mkdir(parents=True, exist_ok=True)
    file = cache / "rows.jsonl"
    if fresh:
        file.unlink(missing_ok=True)
    lines = file.read_text().splitlines() if file.exists() else []
    rows = {row.family: row for row in (Row(**json.loads(line)) for line in lines)}
    waiting = [name for name in names if name not in rows]
    with ThreadPoolExecutor(jobs) as pool, file.open("a") as done:
        for row in pool.map(lambda name: run_one(name, cache, limits), waiting):
            rows[row.family] = row
            done.write(json.dumps(asdict(row)) + "\n")
            done.flush()
            print(f"{row.family} {row.model}: {row.refusal or _logits(row)}", file=sys.stderr)
    return [rows[name] for name in names]


def _logits(row: Row) -> str:
    if row.difference is None:
        return "refused"
    return "equal" if row.difference == 0 else f"{row.difference:.1g} off"


def _line(row: Row) -> str:
    size = f"{row.parameters / 1e6:.2f}" if row.parameters else ""
    seen = [str(row.features or "no"), row.maps or "no"] if row.losses else ["", ""]
    note = "; ".join(part for part in ("" if row.counted else "not counted", row.refusal, row.missing) if part)
    seconds = f"{row.seconds:.1f}" if row.seconds else ""
    cells = [row.family, row.model, size, str(row.image_size or ""), row.fitted, *seen, _logits(row), seconds, note]
    return f"| {' | '.join(' '.join(cell.split()).replace('|', '/') for cell in cells)} |"


def summary(rows: Sequence[Row]) -> str:
    """N of M, how many came back with the same bits, and how many can be looked into."""
    counted = [row for row in rows if row.counted]
    passed = [row for row in counted if row.passed]
    share = len(passed) / max(1, len(counted))
    equal = sum(row.difference == 0 for row in passed)
    features, maps = sum(bool(row.features) for row in passed), sum(bool(row.maps) for row in passed)
    return (
        f"{len(passed)} of {len(counted)} families pass ({share:.1%}): {equal} with equal logits; "
        f"{features} have features, {maps} have attention maps."
    )


def _named(rows: Sequence[Row]) -> str:
    return ", ".join(row.family for row in rows) or "none"


def _made_with(rows: Sequence[Row]) -> Iterator[str]:
    """What the rows were made with; where it was not the same for all, which row with what."""
    most, *others = Counter(row.made_with for row in rows if row.made_with).most_common() or [("", 0)]
    yield f"- Made with {most[0]}."
    for made_with, _ in others:
        yield f"- Made with {made_with}: {_named([row for row in rows if row.made_with == made_with])}."


def table(rows: Sequence[Row], command: str) -> str:
    """The page, in Markdown."""
    counted = [row for row in rows if row.counted]
    head = [
        "# Students over timm's families",
        "",
        "Made by a command, not by hand:",
        "",
        "```sh",
        command,
        "```",
        "",
        "For each family (module) of timm: does a student learn from a store, and does timm read it as it was trained?",
        "",
        f"**{summary(rows)}**",
        "",
        f"- Refused or not run, see their notes: {_named([row for row in counted if not row.passed])}.",
        f"- Not counted, because it takes no image of {families.SMALL_SIDES[-1]} pixels or fewer and does not run at "
        f"its own size in {families.OWN_SIZE_SECONDS:.0f} s: {_named([row for row in rows if not row.counted])}.",
        *_made_with(rows),
        "- Model: the family's smallest by parameters, ten classes, three channels, initial weights of one seed.",
        f"- Images: shipped digits, resized to {families.SMALL_SIDES[0]} pixels; where the model does not fit these to "
        f"{families.SMALL_SIDES[1]}, then to its own size.",
        f"- The teacher, a resnet8, and the student are trained for two steps of {BATCH} images by momentum; the store "
        "holds logits, features and attention maps of two views. The student learns by `kd`, and by `fitnet` and "
        "`attention` too where it has features and maps.",
        "- Features: how many the last layer is given. Maps: their sizes. Logits: of 16 test images, by the network "
        'that `train_student` trained and by `timm.create_model("local-dir:...", pretrained=True)`; "equal" is to the '
        f"last bit, else the largest difference over the largest logit, of which {CLOSE:g} may not be exceeded. They "
        "differ from those of the network before it was trained.",
        "- Seconds: CPU time on one thread, teacher and store included, the search for what fits the images not.",
        "",
        "| family | model | parameters, M | image | fitted | features | maps | logits | seconds | note |",
        "|---|---|---:|---:|---|---:|---|---|---:|---|",
    ]
    return "\n".join([*head, *(_line(row) for row in rows), ""])


def main(given: Sequence[str] | None = None) -> None:
    """Writes the page."""
    arguments = families.arguments_of(given, __doc__, "checkpoints/families-students")
    torch.set_num_threads(1)
    limits = families.Limits(arguments.seconds, arguments.gibibytes, arguments.parameters)
    if arguments.worker:
        limit_self(limits)
        folder = arguments.cache / arguments.worker
        with fitted_once():
            examine(arguments.worker, limits, folder, lambda part: print(json.dumps(part), flush=True))
        return
    names = arguments.only or families.families()
    if unknown := sorted({*names} - {*families.families()}):
        raise SystemExit(f"--only: no family of timm's: {', '.join(unknown)}")
    rows = measure(names, arguments.cache, limits, jobs=arguments.jobs, fresh=arguments.fresh)
    page = table(rows, shlex.join(["python", "benchmarks/students.py", *(sys.argv[1:] if given is None else given)]))
    if arguments.out:
        arguments.out.write_text(page)
    else:
        print(page)
    print(summary(rows), file=sys.stderr)


if __name__ == "__main__":
    main()
