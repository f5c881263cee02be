"""Kills exports by SIGKILL, at every step or at random moments, goes on with them, and reports as JSON.

Run: python -m tests.faults.killing steps FOLDER | ... moments RUN KILLS | ... over RUN

One process imports torch once and forks the victims; that makes a hundred kills a matter of seconds. Nothing here has
threads when it forks.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distill.recipe.load import override
from distill.report.runs import Run, open_run
from distill.stages import export
from distill.stages.verify import verify_path
from distill.store.manifest import MANIFEST, PARTIAL, read_manifest
from tests.store import cases

STEPS = ("fsync", "replace", "link", "unlink", "open")
"""What an export asks of the operating system; a victim dies just before one of these."""


def victim(work: Callable[[], object]) -> int:
    """Forks a process that does the work and ends without tidying up."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return pid


def died(pid: int) -> bool:
    """Waits for it; whether it was killed. One that failed by itself is a fault."""
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, -signal.SIGKILL), code
    return code != 0


def die_at(step: int) -> None:
    """Makes this process kill itself at its `step`-th request to the operating system."""
    count = 0
    for name in STEPS:
        real = getattr(os, name)

        def counted(*given: Any, real: Callable[..., Any] = real, **named: Any) -> Any:
            nonlocal count
            count += 1
            if count > step:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*given, **named)

        setattr(os, name, counted)


def shards(folder: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of change of every shard that is there."""
    stats = {path.name: path.stat() for path in folder.glob("*view*") if not path.name.startswith(".")}
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in stats.items()}


def at_every_step(folder: Path) -> dict[str, object]:
    """Kills a writer at its first, second, ... request, goes on each time, and compares with one that lived."""
    kind = cases.KINDS["everything"] | {"shard_rows": cases.ROWS}
    whole = cases.contents(cases.export(folder / "whole", **kind))
    kind["labels"] = folder / "whole-teacher" / "labels"
    kills = pieces = 0
    while True:
        store = folder / f"s{kills}"

        def work(store: Path = store, step: int = kills) -> None:
            die_at(step)
            cases.export(store, **kind)

        if not died(victim(work)):
            return {"kills": kills, "pieces": pieces}
        before = shards(store) if store.exists() else {}
        writer = cases.begin(store, **kind)
        kept = [piece for piece in writer.plan.pieces() if piece not in writer.missing()]
        pieces += len(kept)
        # A piece is done once all three of its files are.
        assert len(kept) == len(before) // 3, (kills, kept, before)
        cases.fill(writer)
        writer.finish()
        after = shards(store)
        for piece in kept:
            for name in before:
                if f"view{piece.view:04d}-rows{piece.start:09d}" in name:
                    assert after[name] == before[name], (kills, name)
        assert cases.contents(store) == whole, kills
        assert not list(store.rglob(".*")), kills
        shutil.rmtree(store)
        kills += 1


class Counter:
    """How many images teachers' first layers were shown, over all processes that append to a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        real = export.load_teacher

        def load(*given: Any) -> nn.Module:
            model = real(*given)
            next(model.children()).register_forward_hook(self.note)
            return model

        export.load_teacher = load

    def note(self, model: nn.Module, given: tuple[Tensor], output: Tensor) -> None:
        """A forward hook."""
        with self.path.open("a") as file:
            file.write(f"{len(given[0])}\n")

    def shown(self) -> int:
        """Images so far."""
        return sum(map(int, self.path.read_text().split())) if self.path.exists() else 0


def at_random_moments(folder: Path, kills: int) -> dict[str, object]:
    """Kills an export of a run `kills` times, goes on each time, and lets it end."""
    torch.set_num_threads(1)
    run = open_run(folder)
    store, draws = folder / export.STORE, random.Random(0)

    def work() -> None:
        export.export_teacher(run, run.recipe, lambda event: time.sleep(draws.random() * 0.02))

    landed = []
    while len(landed) < kills and not (store / MANIFEST).exists():
        before = shards(store)
        pid = victim(work)
        time.sleep(draws.random() * 0.5)
        os.kill(pid, signal.SIGKILL)
        if not died(pid):
            break
        after = shards(store)
        assert before.items() <= after.items(), "a finished shard was written again"
        landed.append(len(after))
    before = shards(store)
    left = None
    if not (store / MANIFEST).exists():
        counter = Counter(folder.parent / "shown")
        assert not died(victim(work))
        left = counter.shown()
    after = shards(store)
    assert before.items() <= after.items()
    return {"landed": landed, "kept": len(before), "shards": len(after), "shown": left}


def over_another(folder: Path) -> dict[str, object]:
    """Kills an export over a run's store of another format, until a step at which the new one is begun.

    Whatever the step: where there is a manifest, recipe.toml and the record are of its format, and the same command, or
    the one that errors name, which goes by recipe.toml, ends with a whole store.
    """
    torch.set_num_threads(1)
    kinds = set()
    for step in itertools.count():
        place = Path(shutil.copytree(folder, folder.parent / f"s{step}"))
        run = open_run(place)

        def work(run: Run = run, step: int = step) -> None:
            die_at(step)
            export.export_teacher(run, override(run.recipe, ["export.format=int8"]), lambda event: None)

        assert died(victim(work)), step
        run, store = open_run(place), place / export.STORE
        manifest, begun = (store / MANIFEST).exists(), (store / PARTIAL).exists()
        found = run.recipe.export.format
        if manifest:
            assert read_manifest(store).format == found, step
            verify_path(place)
        kinds.add(("export" in run.record.stages, manifest, found))
        export.export_teacher(run, run.recipe, lambda event: None)
        assert read_manifest(store).format == open_run(place).recipe.export.format == found, step
        if begun:
            break
    return {"kills": step + 1, "kinds": sorted(kinds)}


if __name__ == "__main__":
    # A killed process loses nothing that was written, flushed or not; waiting for the disk would only take time.
    os.fsync = lambda handle: None
    how, where, *more = sys.argv[1:]
    hows = {"steps": at_every_step, "moments": at_random_moments, "over": over_another}
    found = hows[how](Path(where), *map(int, more))
    print(json.dumps(found))
