"""What a store of logits says about itself, checked field by field before anything is believed.

A manifest comes with the store, and stores are sent around: file names that leave the folder, ranges that overlap and
sizes that do not add up are refused here, and so is a file that says the same in other bytes. Nothing here imports
torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Self, TypeVar

from pydantic import BaseModel, Field, SerializerFunctionWrapHandler, ValidationError, model_serializer, model_validator

import distill
from distill.errors import StoreError
from distill.store.formats.layout import HOLDS, Column, Format, Holds, half_columns, logit_columns, row_bytes
from distill.store.json_files import canonical, read_canonical
from distill.store.origin import Closed as Closed
from distill.store.origin import Origin as Origin
from distill.store.origin import Sha256
from distill.store.origin import difference as difference

MANIFEST = "manifest.json"
PARTIAL = "partial.json"
INDICES = "indices.safetensors"
LABELS_FOLDER = "labels"
LABELS = "labels.safetensors"
LABELS_FILE = f"{LABELS_FOLDER}/{LABELS}"  # as a run's record names it
SCHEMA_VERSION = 2
EXPORT_AGAIN = "Export it again: distill export --teacher RUN"

# A safetensors file is its values and a header; ours are far smaller than this.
_HEADER_ROOM = 2**16

# Not Literal[2], which takes 2.0 for 2.
SchemaVersion = Annotated[int, Field(ge=SCHEMA_VERSION, le=SCHEMA_VERSION)]
PlainName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=200)]

M = TypeVar("M", bound=BaseModel)
P = TypeVar("P", bound="Plan")


class Piece(NamedTuple):
    """Rows `start` to `stop` (not included) of one view; what a shard holds."""

    view: int
    start: int
    stop: int


class Digest(Closed):
    """A file of the store."""

    file: PlainName
    sha256: Sha256
    bytes: int = Field(ge=1)


class LabelFiles(Closed):
    """The learned labels that a store carries, in a folder of their own: table, average, trajectory."""

    manifest: Digest
    tables: Digest

    @model_validator(mode="after")
    def _named(self) -> Self:
        found, expected = (self.manifest.file, self.tables.file), (MANIFEST, LABELS)
        if found != expected:
            raise ValueError(f"the files of the labels are {found}, expected {expected}")
        return self


class Shard(Digest):
    """A file that holds the logits, features or attention maps of rows `start` to `stop` of one view."""

    view: int = Field(ge=0)
    start: int = Field(ge=0)
    stop: int = Field(ge=1)

    @property
    def piece(self) -> Piece:
        """The rows that it holds."""
        return Piece(self.view, self.start, self.stop)


Shards = Annotated[tuple[Shard, ...], Field(strict=False)]
Side = Annotated[int, Field(ge=1, le=2**12)]
Size = Annotated[tuple[Side, Side], Field(strict=False)]
Sizes = Annotated[tuple[Size, ...], Field(strict=False, min_length=1, max_length=2**10)]


class Plan(Closed):
    """A store before its logits are there: all that decides the bytes of an export on one installation."""

    schema_version: SchemaVersion = SCHEMA_VERSION
    origin: Origin
    format: Format = Field(description="How the logits are stored.")
    k: int | None = Field(ge=1, description="Of top-k: values kept of each row.")
    features: int | None = Field(ge=1, le=2**24, description="Width D of the stored features; null: none are stored.")
    maps: Sizes | None = Field(
        default=None, description="(h, w) of each stored attention map, in order; not there: none are stored."
    )
    rows: int = Field(ge=1, le=2**40, description="Images, N.")
    classes: int = Field(ge=1, le=2**24, description="Classes, C.")
    shard_rows: int = Field(ge=1, description="Rows in a shard; the last of a view may have fewer.")
    indices: Digest = Field(description="The file with the source index of each row, int64 [N].")
    labels: LabelFiles | None = Field(description="The teacher's learned labels; null: it has none.")
    versions: dict[str, str] = Field(
        description="Libraries that made it. The same export is byte-identical on the same installation only."
    )

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        if len(self.origin.class_names) != self.classes:
            raise ValueError(f"{len(self.origin.class_names)} class names for {self.classes} classes")
        if self.indices.file != INDICES:
            raise ValueError(f"the indices' file is {self.indices.file!r}, expected {INDICES!r}")
        if (self.k is not None) != (self.format == "topk") or (self.k or 1) > self.classes:
            raise ValueError(f"k is {self.k} in format {self.format!r} of {self.classes} classes")
        return self

    @property
    def shards_per_view(self) -> int:
        """Shards that a view is divided into."""
        return -(-self.rows // self.shard_rows)

    def pieces(self) -> Iterator[Piece]:
        """The shards' rows, view by view: they cover every row of every view once."""
        for view in range(self.origin.view_count):
            for start in range(0, self.rows, self.shard_rows):
                yield Piece(view, start, min(start + self.shard_rows, self.rows))

    @property
    def holdings(self) -> tuple[Holds, ...]:
        """What there is a shard of for each piece."""
        return tuple(holds for holds in HOLDS if self.width(holds))

    def width(self, holds: Holds) -> int:
        """Values of a row; 0: none are stored."""
        return {
            "logits": self.classes,
            "features": self.features or 0,
            "maps": sum(height * width for height, width in self.maps or ()),
        }[holds]

    def columns(self, holds: Holds) -> tuple[Column, ...]:
        """The tensors of such a shard."""
        if holds == "logits":
            return logit_columns(self.format, self.classes, self.k)
        return half_columns(holds, self.width(holds))

    def digest(self) -> str:
        """sha256 of the plan; each shard carries it."""
        content = self.model_dump(mode="json", include=set(Plan.model_fields))
        return hashlib.sha256(canonical(content).encode()).hexdigest()

    @model_serializer(mode="wrap")
    def _written(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A store without maps is written as it was before there were any."""
        content: dict[str, Any] = write(self)
        return {name: value for name, value in content.items() if self.maps or name not in ("maps", "map_shards")}


SHARDS_OF: dict[Holds, str] = {"logits": "shards", "features": "feature_shards", "maps": "map_shards"}


class Manifest(Plan):
    """A finished store."""

    shards: Shards = Field(description="The logits, view by view.")
    feature_shards: Shards = Field(description="The features, view by view; empty when none are stored.")
    map_shards: Shards = Field(default=(), description="The attention maps, view by view; not there: none are stored.")

    @model_validator(mode="after")
    def _complete(self) -> Self:
        for holds in HOLDS:
            shards = self.shards_of(holds)
            expected = self.shards_per_view * self.origin.view_count if holds in self.holdings else 0
            if len(shards) != expected:
                raise ValueError(f"{len(shards)} shards of {holds}, expected {expected}")
            if shards:
                width = row_bytes(self.columns(holds))
                for shard, piece in zip(shards, self.pieces(), strict=True):
                    _check_shard(shard, piece, holds, width)
        return self

    def shards_of(self, holds: Holds) -> tuple[Shard, ...]:
        """The shards of the logits, of the features or of the maps, in the order of `pieces`."""
        shards: Shards = getattr(self, SHARDS_OF[holds])
        return shards

    @property
    def files(self) -> tuple[Digest, ...]:
        """Every file in the store's own folder but the manifest."""
        return (self.indices, *self.shards, *self.feature_shards, *self.map_shards)

    @property
    def plan(self) -> Plan:
        """What was to be exported."""
        return Plan(**{name: getattr(self, name) for name in Plan.model_fields})


def _check_shard(shard: Shard, piece: Piece, holds: Holds, width: int) -> None:
    if shard.piece != piece:
        raise ValueError(f"{shard.file}: holds {shard.piece}, expected {piece}; rows are missing or overlap")
    if shard.file != shard_name(piece, holds):
        raise ValueError(f"{shard.file}: a shard of {piece} is named {shard_name(piece, holds)!r}")
    values = (piece.stop - piece.start) * width
    if not values < shard.bytes <= values + _HEADER_ROOM:
        raise ValueError(f"{shard.file}: {shard.bytes} bytes cannot be a shard whose values take {values}")


def shard_name(piece: Piece, holds: Holds = "logits") -> str:
    """`view0003-rows000065536.safetensors`: sorts in order up to ten thousand views and a billion rows."""
    prefix = "" if holds == "logits" else f"{holds}-"
    return f"{prefix}view{piece.view:04d}-rows{piece.start:09d}.safetensors"


def installed_versions() -> dict[str, str]:
    """Versions of what decides the bytes of an export."""
    found = {"distill": distill.__version__}
    for name in ("torch", "torchvision", "timm", "safetensors", "numpy", "scipy", "pillow"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a finished store.

    Raises:
        StoreError: there is none (and why), or it is not to be believed.
    """
    folder = Path(folder)
    if not (folder / MANIFEST).exists():
        if (folder / PARTIAL).exists():
            raise StoreError(
                f"{folder}: the export was interrupted", cure="Run `distill export --teacher RUN` again; it continues."
            )
        raise StoreError(f"{folder}: is no store of logits: it has no {MANIFEST}", cure=EXPORT_AGAIN)
    return _read(folder / MANIFEST, Manifest)


def read_plan(folder: Path) -> Plan | None:
    """The plan of the store in the folder, finished or not; None where there is none.

    Raises:
        StoreError: its file is not to be believed.
    """
    folder = Path(folder)
    if (folder / MANIFEST).exists():
        return _read(folder / MANIFEST, Manifest).plan
    return _read(folder / PARTIAL, Plan) if (folder / PARTIAL).exists() else None


def _read(path: Path, model: type[P]) -> P:
    make_again = f"Delete {path.parent} and run `distill export --teacher {path.parent.parent}`."
    try:
        found = read_canonical(path)
        written = found.get("schema_version") if isinstance(found, dict) else None
        if type(written) is not int or written == SCHEMA_VERSION:
            checked = validated(path, model, found)
            if checked.model_dump(mode="json") == found:
                return checked
            raise StoreError(f"{path}: says in another way what it says: a field is there that is left out when empty")
    except StoreError as error:
        if isinstance(error.__cause__, OSError):
            raise  # it cannot be read, and may be whole
        # A store is only a copy of what the teacher says, so a damaged one may go.
        raise StoreError(error.message, cure=make_again) from error
    raise StoreError(
        f"{path}: has schema version {written}, this distill reads {SCHEMA_VERSION}",
        cure="Upgrade distill." if written > SCHEMA_VERSION else make_again,
    )


def validated(path: Path, model: type[M], found: Any) -> M:
    """`found` as `model`.

    Raises:
        StoreError: it does not fit; names the first few fields that do not.
    """
    try:
        return model.model_validate(found)
    except ValidationError as error:
        raise StoreError(
            f"{path}: does not hold what it should: {misfits(error)}", cure="The file is damaged, or not ours."
        ) from None


def misfits(error: ValidationError) -> str:
    """The first few fields of a file that do not fit: `stages.teacher.digest: Field required`."""
    first = [f"{'.'.join(map(str, e['loc'])) or 'it'}: {e['msg']}" for e in error.errors(include_input=False)[:3]]
    more = f" (and {error.error_count() - 3} more)" if error.error_count() > 3 else ""
    return f"{'; '.join(first)}{more}"
