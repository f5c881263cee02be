"""Learned labels over timm's families: does the start-up probe pass on the smallest model of each?

Run: python benchmarks/families.py --jobs 2 --out docs/families.md

Each family runs in a process of its own, with a limit on time and memory, so that a crash or a hang costs one row. Rows
that are done are kept in the cache folder (rows.jsonl): the same command goes on where it stopped, --fresh begins anew.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import timm
import torch
from torch.nn import functional as F  # noqa: N812

from distill.bilevel.probe import choose_estimator
from distill.bilevel.step import Training
from distill.data.loader import Batch
from distill.data.memory import open_digits
from distill.errors import BilevelError, ModelError
from distill.labels.learned import Learned
from distill.labels.tables import instance_table
from distill.models import zoo
from distill.models.build import build
from distill.models.small import ENLARGED, PREFIX
from distill.models.spec import ModelSpec
from distill.report.runs import program_commit
from distill.seeding import derive, seeded

OURS = frozenset({"cifar", "small"})  # modules of this project's, registered in timm
SMALL_SIDES = (32, 64)
BATCH, OWN_SIZE_BATCH = 16, 8
OWN_SIZE_SECONDS = 60.0  # a family that takes no small image is counted when its own size runs in less
HANGS = 10
CPU = torch.device("cpu")
SENTENCE = re.compile(
    r"label gradient by (.+?): cosine (\S+) with ([^;]+?)(?:; (right in .+?))?(?: \(passed over: (.*)\))?", re.DOTALL
)


@dataclass(frozen=True)
class Limits:
    """What one family may take."""

    seconds: float = 120.0  # of CPU time, choosing and fitting the model included; of waiting, HANGS times as much
    gibibytes: float = 14.0  # resident; the probe takes about 64 bytes a parameter, and activations
    parameters: float = 200e6  # larger models are named in the table and not run


@dataclass(frozen=True)
class Row:
    """What is known of one family."""

    family: str
    model: str = ""
    parameters: int = 0
    image_size: int | None = None  # 0: it fits no size that was tried; None: the process ended before that was known
    fitted: str = ""  # how the model was brought to that size
    estimator: str = ""  # that `auto` chose; empty: refused
    sentence: str = ""  # of the probe
    seconds: float = 0.0  # of the probe, CPU time; of the whole process where it was stopped or crashed
    refusal: str = ""
    made_with: str = ""

    @property
    def counted(self) -> bool:
        """Whether the family takes an image of 64 pixels or fewer, or runs at its own size in under a minute."""
        if self.image_size is None or 0 < self.image_size <= SMALL_SIDES[-1]:
            return True
        return self.image_size > 0 and 0 < self.seconds < OWN_SIZE_SECONDS


def families() -> list[str]:
    """Every module of timm's that registers models."""
    return [module for module in timm.list_modules() if module not in OURS]


def smallest_model(family: str) -> str:
    """The family's classifier with the fewest parameters, counted for ten classes; of equals, the first.

    Encoders that give tokens are left out. Where timm has models for unit tests (`test_*`), only those are looked at:
    they are far smaller than the rest.
    """
    names = timm.list_models(module=family)
    if not names:
        raise ValueError(f"{family!r} is no module of timm's with models in it")
    names = [name for name in names if name.startswith("test_")] or names

    def size(name: str) -> tuple[bool, int, str]:
        with torch.device("meta"):
            model = build(name, {"num_classes": 10})
        return not hasattr(model, "get_classifier"), sum(p.numel() for p in model.parameters()), name

    return min(names, key=size)


def fit_smallest_side(name: str) -> ModelSpec:
    """The model fitted to 32 pixels; where that fails to 64, then to its own size.

    Raises:
        ModelError: it fits none of them.
    """
    config = timm.get_pretrained_cfg(name)
    own = int(config.input_size[-1]) if config else 224
    failure = ModelError(f"model {name!r} was not tried")
    for side in (*SMALL_SIDES, own):
        try:
            return zoo.fit(name, classes=10, channels=3, image_size=side)
        except ModelError as error:
            failure = error
    raise failure


def fitted_as(spec: ModelSpec) -> str:
    """How the model was brought to its images, in few words."""
    told = {key: value for key, value in spec.arguments.items() if key not in ("num_classes", "in_chans", "base")}
    words = []
    if spec.architecture == ENLARGED:
        words.append(f"enlarged to {told.pop('size')}")
    if spec.architecture.startswith(PREFIX):
        words.append("3x3 stem")
    return ", ".join(words + [f"{key} {value}" for key, value in told.items()]) or "as it is"


def digits(side: int, size: int) -> tuple[Batch, Batch]:
    """A training and a meta batch of shipped digits, enlarged to [size, 3, side, side]."""
    source = open_digits()
    rows = torch.arange(2 * size)
    pixels = source.fetch(rows).float()
    pixels = (pixels - pixels.mean()) / pixels.std()
    images = F.interpolate(pixels, size=(side, side), mode="bilinear").repeat(1, 3, 1, 1)
    given, view = source.targets[rows], torch.full_like(rows, -1)
    parts = (Batch(rows[p], images[p], given[p], rows[p], view[p]) for p in (slice(0, size), slice(size, 2 * size)))
    return next(parts), next(parts)


def training_of(spec: ModelSpec, batch: Batch) -> Training:
    """The model with seeded weights, SGD with momentum, and a label for each image of the batch."""
    with seeded(CPU, derive(0, "families", spec.image_size)):
        model = zoo.create(spec).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    table = instance_table(batch.indices, batch.given, spec.classes, 0.9, CPU)
    return Training(model, optimizer, Learned(table, step=1.0), seed=0)


def examine(family: str, limits: Limits, tell: Callable[[dict[str, Any]], None]) -> None:
    """Chooses, fits and probes; tells each part of the row as soon as it is known."""
    tell({"model": (name := smallest_model(family))})
    try:
        spec = fit_smallest_side(name)
    except ModelError as error:
        tell({"image_size": 0, "refusal": error.message})
        return
    parameters = zoo.parameter_count(spec)
    tell({"parameters": parameters, "image_size": spec.image_size, "fitted": fitted_as(spec)})
    if parameters > limits.parameters:
        tell({"refusal": f"not run: larger than {limits.parameters / 1e6:g} M parameters"})
        return
    batch, meta = digits(spec.image_size, BATCH if spec.image_size <= SMALL_SIDES[-1] else OWN_SIZE_BATCH)
    training = training_of(spec, batch)
    start = time.process_time()
    try:
        estimator, sentence = choose_estimator("auto", training, batch, meta)
        found = {"estimator": estimator.name, "sentence": sentence}
    except BilevelError as error:
        found = {"refusal": error.message}
    tell({**found, "seconds": time.process_time() - start})


def provenance(threads: int) -> str:
    """What a row was made with."""
    return f"torch {torch.__version__}, timm {timm.__version__}, {threads} CPU thread, commit {program_commit()}"


class Child:
    """A family in its own process, which writes to two files in the cache folder."""

    def __init__(self, family: str, limits: Limits, cache: Path) -> None:
        self.family, self.limits = family, limits
        self.start, self.seconds, self.stopped = time.monotonic(), 0.0, ""
        self.told, self.errors = cache / f"{family}.jsonl", cache / f"{family}.err"
        settings = [f"--{name}={value}" for name, value in asdict(limits).items()]
        command = [sys.executable, __file__, "--worker", family, *settings]
        with self.told.open("w") as told, self.errors.open("w") as errors:
            self.process = subprocess.Popen(command, stdout=told, stderr=errors)

    def done(self) -> bool:
        """Whether it ended, by itself or because it went past a limit."""
        if self.process.poll() is not None:
            return True
        limits, waited = self.limits, time.monotonic() - self.start
        self.seconds, gibibytes = _used(self.process.pid)
        if self.seconds > limits.seconds:
            self.stopped = f"stopped after {limits.seconds:g} s"
        elif waited > HANGS * limits.seconds:
            self.stopped = f"stopped after waiting {HANGS * limits.seconds:g} s"
        elif gibibytes > limits.gibibytes:
            self.stopped = f"stopped at {limits.gibibytes:g} GiB of memory"
        if self.stopped:
            self.process.kill()
        return bool(self.stopped)

    def close(self) -> Row:
        """What it told, and how it ended where it did not finish; ends it now where it is still running."""
        self.process.kill()
        self.process.wait()
        told: dict[str, Any] = {}
        for line in self.told.read_text().splitlines():
            told.update(json.loads(line))
        row = Row(self.family, **told, made_with=provenance(1))
        if row.estimator or row.refusal:
            return row
        last = (self.errors.read_text().strip().splitlines() or ["no message"])[-1]
        refusal = self.stopped or f"crashed with exit status {self.process.returncode}: {last}"
        return replace(row, refusal=refusal, seconds=self.seconds)


def _used(pid: int) -> tuple[float, float]:
    """CPU seconds and resident GiB of a process, 0 once it is gone."""
    try:
        numbers = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0, 0.0
    user, system, pages = (int(numbers[place]) for place in (11, 12, 21))  # see proc(5); the third field is number 0
    return (user + system) / os.sysconf("SC_CLK_TCK"), pages * os.sysconf("SC_PAGE_SIZE") / 2**30


def measure(names: Sequence[str], cache: Path, limits: Limits, *, jobs: int = 1, fresh: bool = False) -> list[Row]:
    """A row for each family, from the cache or from a process of its own; progress goes to standard error."""
    cache.mkdir(parents=True, exist_ok=True)
    file = cache / "rows.jsonl"
    if fresh:
        file.unlink(missing_ok=True)
    rows = read_rows(file)
    waiting = [name for name in names if name not in rows]
    running: list[Child] = []
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                running.append(Child(waiting.pop(0), limits, cache))
            for child in [child for child in running if child.done()]:
                running.remove(child)
                row = rows[child.family] = child.close()
                with file.open("a") as lines:
                    lines.write(json.dumps(asdict(row)) + "\n")
                left = len(waiting) + len(running)
                print(f"{left:3d} left  {row.family} {row.model}: {row.sentence or row.refusal}", file=sys.stderr)
            time.sleep(0.05)
    finally:
        for child in running:
            child.close()
    return [rows[name] for name in names]


def read_rows(file: Path) -> dict[str, Row]:
    """The rows in a cache by family; of several of one family, the last."""
    if not file.exists():
        return {}
    known = {entry.name for entry in fields(Row)}
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return {row["family"]: Row(**{key: value for key, value in row.items() if key in known}) for row in rows}


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _found(row: Row) -> tuple[str, str, str, str]:
    """Estimator, cosine, reference and which cheaper estimators failed with what, from the probe's sentence."""
    match = SENTENCE.fullmatch(row.sentence)
    if match is None:
        raise ValueError(f"{row.family}: not a sentence of the probe's: {row.sentence!r}")
    estimator, cosine, reference, rounding, failed = match.groups()
    reasons = [reason.split(" against ")[0] for reason in (failed or "").split("; ") if reason]
    reasons = [*([rounding] if rounding else []), *reasons]
    return estimator, cosine, reference.removesuffix(" central differences"), "; ".join(reasons)


def _line(row: Row) -> str:
    estimator, cosine, reference, note = _found(row) if row.estimator else ("refused", "", "", row.refusal)
    if not row.counted:
        note = f"not counted; {note}"
    size = f"{row.parameters / 1e6:.2f}" if row.parameters else ""
    seconds = f"{row.seconds:.1f}" if row.seconds else ""
    side = str(row.image_size or "")
    cells = [row.family, row.model, size, side, row.fitted, estimator, cosine, reference, seconds, note]
    return f"| {' | '.join(_cell(cell) for cell in cells)} |"


def summary(rows: Sequence[Row]) -> str:
    """N of M, and how many by each estimator."""
    counted = [row for row in rows if row.counted]
    passed = [row for row in counted if row.estimator]
    chosen = ", ".join(f"{name} {n}" for name, n in Counter(row.estimator for row in passed).most_common())
    share = len(passed) / max(1, len(counted))
    return f"{len(passed)} of {len(counted)} families pass ({share:.1%}): {chosen or 'none'}."


def _named(rows: Iterable[Row]) -> str:
    return ", ".join(row.family for row in rows) or "none"


def table(rows: Sequence[Row], command: str) -> str:
    """The page, in Markdown."""
    references = sorted({_found(row)[2] for row in rows if row.estimator})
    made_with = sorted({row.made_with for row in rows})
    head = [
        "# Learned labels over timm's families",
        "",
        "Made by a command, not by hand:",
        "",
        "```sh",
        command,
        "```",
        "",
        "For each family (module) of timm: does the start-up probe find an estimator of the label gradient?",
        "",
        f"**{summary(rows)}**",
        "",
        f"- Refused or not run, see their notes: {_named(row for row in rows if row.counted and not row.estimator)}.",
        f"- Not counted, because it takes no image of {SMALL_SIDES[-1]} pixels or fewer and does not run at its own "
        f"size in {OWN_SIZE_SECONDS:.0f} s: {_named(row for row in rows if not row.counted)}.",
        *(f"- Made with {line}." for line in made_with),
        "- Model: the family's smallest by parameters, ten classes, three channels, initial weights of one seed, in "
        "train mode; SGD with momentum, a learned label for each image.",
        f"- Images: shipped digits, enlarged to {SMALL_SIDES[0]} pixels; where the model does not fit these to "
        f"{SMALL_SIDES[1]}, then to its own size. Batches of {BATCH}, at its own size of {OWN_SIZE_BATCH}.",
        f"- Cosine: of the label gradient with central differences ({' or '.join(references)}, see reference), as the "
        "probe says it. Seconds: CPU time of the probe, on one thread. Note: why the "
        "cheaper estimators were passed over, or why the model was refused.",
        "",
        "| family | model | parameters, M | image | fitted | estimator | cosine | reference | seconds | note |",
        "|---|---|---:|---:|---|---|---:|---|---:|---|",
    ]
    return "\n".join([*head, *(_line(row) for row in rows), ""])


def arguments_of(given: Sequence[str] | None, description: str | None, cache: str) -> argparse.Namespace:
    """What a sweep over the families is told; `cache` is where its rows lie unless it is told."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    limits = Limits()
    parser.add_argument("--jobs", type=int, default=1, help="families at once, each on one thread")
    parser.add_argument("--only", action="append", metavar="FAMILY", help="this family; may be repeated")
    parser.add_argument("--cache", type=Path, default=Path(cache), help="folder for rows that are done")
    parser.add_argument("--out", type=Path, help="where the page goes; default: standard output")
    parser.add_argument("--fresh", action="store_true", help="forget the rows in the cache")
    parser.add_argument("--seconds", type=float, default=limits.seconds, help="limit for one family")
    parser.add_argument("--gibibytes", type=float, default=limits.gibibytes, help="limit for one family")
    parser.add_argument("--parameters", type=float, default=limits.parameters, help="larger models are not run")
    parser.add_argument("--worker", metavar="FAMILY", help=argparse.SUPPRESS)
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> None:
    """Writes the page."""
    arguments = arguments_of(given, __doc__, "checkpoints/families")
    torch.set_num_threads(1)
    limits = Limits(arguments.seconds, arguments.gibibytes, arguments.parameters)
    if arguments.worker:
        examine(arguments.worker, limits, lambda part: print(json.dumps(part), flush=True))
        return
    names = arguments.only or families()
    if unknown := sorted({*names} - {*families()}):
        raise SystemExit(f"--only: no family of timm's: {', '.join(unknown)}; they are {', '.join(families())}")
    rows = measure(names, arguments.cache, limits, jobs=arguments.jobs, fresh=arguments.fresh)
    command = shlex.join(["python", "benchmarks/families.py", *(sys.argv[1:] if given is None else given)])
    page = table(rows, command)
    if arguments.out:
        arguments.out.write_text(page)
    else:
        print(page)
    print(summary(rows), file=sys.stderr)


if __name__ == "__main__":
    main()
