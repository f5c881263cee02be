"""Is a store sound? Every file against its digest, and every value against what its format allows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from distill.errors import StoreError
from distill.store.atomic import mendable
from distill.store.carried import check_classes, problems_with_labels
from distill.store.formats.layout import Holds, row_bytes
from distill.store.labels import verify_labels
from distill.store.logits import file_names
from distill.store.manifest import LABELS_FOLDER, MANIFEST, PARTIAL, Manifest, Shard, read_manifest
from distill.store.shards import encodings, map_shard, problem_with, read_indices
from distill.store.tensors import read_facts

# Values that are looked at in one go.
_BLOCK = 2**24


def verify_store(folder: Path) -> list[str]:
    """Every problem of a store, a sentence each; empty when it is sound."""
    folder = Path(folder)
    try:
        manifest = read_manifest(folder)
    except StoreError as error:
        return [error.message]
    problems = [problem for file in manifest.files if (problem := problem_with(folder, file, content=True))]
    problems += problems_with_labels(folder, manifest.labels, content=True)
    if not problems:
        problems += _unsound(folder, manifest)
    return problems + _unexpected(folder, manifest)


def _unsound(folder: Path, manifest: Manifest) -> Iterator[str]:
    """Files with the right digest may still hold nonsense, when whoever made them also wrote the manifest."""
    try:
        read_indices(folder, manifest)
    except StoreError as error:
        yield error.message
    digest = manifest.digest()
    changed = _changed(folder, manifest, digest)
    if changed:
        yield changed
    for holds in () if changed else manifest.holdings:
        for shard in manifest.shards_of(holds):
            try:
                if problem := _problem_in(folder, manifest, digest, shard, holds):
                    yield f"{folder / shard.file}: {problem}"
            except StoreError as error:
                yield error.message
    if manifest.labels is not None:
        yield from verify_labels(folder / LABELS_FOLDER) or _of_other_classes(folder, manifest)


def _of_other_classes(folder: Path, manifest: Manifest) -> Iterator[str]:
    """That sound labels are over other classes than the logits."""
    try:
        check_classes(folder, manifest.classes)
    except StoreError as error:
        yield error.message


def _changed(folder: Path, manifest: Manifest, digest: str) -> str:
    """One sentence, not one for each shard, when all of them name the same plan and the manifest is another."""
    plans = set()
    try:
        for shard in (shard for holds in manifest.holdings for shard in manifest.shards_of(holds)):
            facts = read_facts(folder / shard.file)
            plans.add(str(facts.get("plan")) if isinstance(facts, dict) else "")
    except StoreError:
        return ""
    if len(plans) > 1 or digest in plans:
        return ""
    return f"{folder / MANIFEST}: was changed after the shards were written: they belong to another plan"


def _problem_in(folder: Path, manifest: Manifest, digest: str, shard: Shard, holds: Holds) -> str:
    """What is wrong with the values of a shard, or ""."""
    encoding = encodings(manifest)[holds]
    mapped = map_shard(folder, manifest, digest, shard.piece, holds)
    step = max(1, _BLOCK // row_bytes(encoding.columns))
    for start in range(0, shard.stop - shard.start, step):
        parts = {name: part[start : start + step] for name, part in mapped.tensors.items()}
        if problem := encoding.problem(parts):
            return problem
    return ""


def _unexpected(folder: Path, manifest: Manifest) -> list[str]:
    """Files that the manifest does not name. A plan beside the manifest is harmless, hidden files are not ours."""
    known = {PARTIAL, *file_names(manifest)}
    known |= {LABELS_FOLDER} if manifest.labels is not None else set()
    try:
        names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        return [mendable(folder, "read", error).message]
    return [f"{folder / name}: the manifest does not name this file" for name in names if name not in known]
