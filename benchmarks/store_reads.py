"""Random batches from a store of ImageNet's size: time a batch, and what the process keeps in memory.

The shards are sparse files with the right headers, so 2.6 GB cost no disk; digests are not checked. `--dense` writes
random values instead. Every file is read through once to warm up: the page cache then holds it, as it does in the
second epoch of a student, and the process does not.

Run: python benchmarks/store_reads.py [--rows 1280000] [--classes 1000] [--format float16] [--dense] [--folder PLACE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from distill.store.formats.layout import Format
from distill.store.json_files import write_json
from distill.store.logits import LogitStore
from distill.store.manifest import INDICES, MANIFEST, Digest, Manifest, Plan, Shard, installed_versions, shard_name
from distill.store.origin import Origin
from distill.store.shards import _facts, encodings
from distill.store.tensors import serialized, write_tensors

NOT_CHECKED = "0" * 64


def make(folder: Path, rows: int, classes: int, format: Format, shard_rows: int, dense: bool) -> None:
    """A store whose values are zeros that take no disk, or random."""
    origin = Origin(
        teacher_digest="benchmark",
        recipe_digest="benchmark",
        data_source="benchmark",
        data_fingerprint="benchmark",
        given_labels_sha256=NOT_CHECKED,
        label_rule="onehot",
        class_names=tuple(map(str, range(classes))),
        views={},
        view_count=1,
        view_seed=0,
        mean=(0.5,),
        std=(0.5,),
    )
    indices = {"indices": torch.arange(rows)}
    write_tensors(folder / INDICES, indices)
    plan = Plan(
        origin=origin,
        format=format,
        k=None,
        features=None,
        rows=rows,
        classes=classes,
        shard_rows=shard_rows,
        indices=Digest(file=INDICES, sha256=NOT_CHECKED, bytes=(folder / INDICES).stat().st_size),
        labels=None,
        versions=installed_versions(),
    )
    shards = []
    for piece in plan.pieces():
        count = piece.stop - piece.start
        parts = {
            column.name: torch.empty(
                (count, column.width) if column.width else (count,), dtype=getattr(torch, column.dtype)
            )
            for column in plan.columns("logits")
        }
        if dense:
            parts = encodings(plan)["logits"].encode(torch.randn(count, classes))
        pieces = serialized(parts, _facts(plan.digest(), piece, "logits", NOT_CHECKED))
        size = 0
        with (folder / shard_name(piece)).open("wb") as file:
            for number, content in enumerate(pieces):
                size += len(content)
                if number == 0 or dense:
                    file.write(content)
            file.truncate(size)
        shards.append(Shard(file=shard_name(piece), sha256=NOT_CHECKED, bytes=size, **piece._asdict()))
    manifest = Manifest(**dict(plan), shards=tuple(shards), feature_shards=())
    write_json(folder / MANIFEST, manifest.model_dump(mode="json"))


def resident() -> dict[str, float]:
    """This process's memory in MB: all of it, its own, and the page cache that it has mapped."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith(("VmRSS", "RssAnon", "RssFile"))}
    return {name: round(int(kilobytes) / 1024, 1) for name, kilobytes in found.items()}


def measure(store: LogitStore, rows: int, batches: int, batch_size: int) -> dict[str, object]:
    """Milliseconds a batch after a tenth as many that do not count, and memory before and at its most."""
    generator = torch.Generator().manual_seed(0)
    views = torch.zeros(batch_size, dtype=torch.int64)
    before, most, times, busy = resident(), resident(), [], []
    for number in range(batches + batches // 10):
        indices = torch.randint(rows, (batch_size,), generator=generator)
        start, began = time.perf_counter(), time.thread_time()
        store.rows(indices, views)
        if number >= batches // 10:
            times.append(1000 * (time.perf_counter() - start))
            busy.append(1000 * (time.thread_time() - began))
        most = {name: max(value, most[name]) for name, value in resident().items()}
    return {
        "ms": spread(times),
        "ms of CPU": spread(busy),
        "MB": {"before": before, "most": most},
    }


def spread(values: list[float]) -> dict[str, float]:
    """Median, 99th percentile and largest."""
    values = sorted(values)
    found = {"median": statistics.median(values), "p99": values[int(0.99 * len(values))], "most": values[-1]}
    return {name: round(value, 2) for name, value in found.items()}


def main() -> None:
    """Prints one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_280_000)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--format", choices=("float16", "float32", "int8"), default="float16")
    parser.add_argument("--shard-rows", type=int, default=65536)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--batches", type=int, default=2000)
    parser.add_argument("--dense", action="store_true")
    parser.add_argument("--folder", type=Path, default=None)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=asked.folder) as place:
        folder = Path(place)
        make(folder, asked.rows, asked.classes, asked.format, asked.shard_rows, asked.dense)
        size = sum(path.stat().st_size for path in folder.iterdir())
        for path in sorted(folder.iterdir()):
            with path.open("rb") as file:
                while file.read(2**22):
                    pass
        store = LogitStore.open(folder, verify=False)
        found = measure(store, asked.rows, asked.batches, asked.batch_size)
    print(json.dumps({"rows": asked.rows, "classes": asked.classes, "format": asked.format, "GB": size / 1e9, **found}))


if __name__ == "__main__":
    main()
