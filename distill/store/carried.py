"""Learned labels that travel in a store: a folder inside it, byte for byte the teacher's.

The manifest names their digests, so they cannot get out of step with the logits, and copying the store copies them. On
one disk they are hard links to the teacher's files, which are never changed in place: an instance table of ImageNet and
its trajectory take some 20 GB.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from distill.errors import StoreError
from distill.store.atomic import check_regular, mendable, sha256_of, writable_folder, write_bytes
from distill.store.labels import read_labels, read_labels_manifest
from distill.store.manifest import EXPORT_AGAIN, LABELS, LABELS_FOLDER, MANIFEST, Digest, LabelFiles
from distill.store.shards import problem_with

_BLOCK = 2**20


def describe_labels(folder: Path) -> LabelFiles:
    """What a store's manifest says about a teacher's folder of learned labels.

    Raises:
        StoreError: they are missing, damaged, or no probabilities.
    """
    read_labels(folder)
    return LabelFiles(manifest=_digest(folder / MANIFEST), tables=_digest(folder / LABELS))


def _digest(path: Path) -> Digest:
    return Digest(file=path.name, sha256=sha256_of(path), bytes=check_regular(path))


def problems_with_labels(store: Path, labels: LabelFiles | None, *, content: bool) -> list[str]:
    """What is wrong with the labels in a store, a sentence each. `content`: their sha256 too."""
    if labels is None:
        return []
    found = (problem_with(store / LABELS_FOLDER, file, content=content) for file in (labels.manifest, labels.tables))
    return [problem for problem in found if problem]


def check_classes(store: Path, classes: int) -> None:
    """That the labels in a store are over the classes of its logits: their digests do not say so.

    Raises:
        StoreError: they are over more or fewer.
    """
    found = read_labels_manifest(store / LABELS_FOLDER).classes
    if found != classes:
        raise StoreError(
            f"{store / LABELS_FOLDER}: labels of {found} classes beside logits of {classes}", cure=EXPORT_AGAIN
        )


def carry_labels(source: Path, store: Path, labels: LabelFiles) -> None:
    """Brings a teacher's labels into a store.

    Raises:
        StoreError: they cannot be written, or have changed since they were described.
    """
    target = writable_folder(store / LABELS_FOLDER)
    for file in (labels.tables, labels.manifest):
        _place(source / file.file, target / file.file)
    if problems := problems_with_labels(store, labels, content=True):
        raise StoreError("\n".join(problems), cure=f"{source} was changed while it was copied; export again.")


def _place(source: Path, target: Path) -> None:
    """A hard link where the file system has them, else a copy; the old file, or the whole new one."""
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
    try:
        os.link(source, temporary)
        temporary.replace(target)
    except OSError:  # another disk, or a file system without links
        write_bytes(target, _blocks(source))
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _blocks(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                yield block
    except OSError as error:
        raise mendable(path, "read", error) from error
