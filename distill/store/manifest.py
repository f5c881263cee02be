"""What a store of logits says about itself, checked field by field before anything is believed.

A manifest comes with the store, and stores are sent around: file names that leave the folder, ranges that overlap and
sizes that do not add up are refused here. Nothing here imports torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

import distill
from distill.errors import StoreError
from distill.store.atomic import canonical, read_json

MANIFEST = "manifest.json"
PARTIAL = "partial.json"
INDICES = "indices.safetensors"
SCHEMA_VERSION = 1
EXPORT_AGAIN = "Export it again: distill export --teacher RUN"

# A safetensors file is its values and a header; ours are far smaller than this.
_HEADER_ROOM = 2**16

Format = Literal["float16", "float32"]
ITEM_BYTES: dict[str, int] = {"float16": 2, "float32": 4}

# Not Literal[1], which takes true for 1.
SchemaVersion = Annotated[int, Field(ge=SCHEMA_VERSION, le=SCHEMA_VERSION)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
PlainName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=200)]
Strings = Annotated[tuple[str, ...], Field(strict=False, min_length=1, max_length=2**24)]
Floats = Annotated[tuple[float, ...], Field(strict=False, min_length=1, max_length=64)]


M = TypeVar("M", bound=BaseModel)
P = TypeVar("P", bound="Plan")


class Closed(BaseModel):
    """Frozen, no unknown field, no silent conversion."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())


class Piece(NamedTuple):
    """Rows `start` to `stop` (not included) of one view; what a shard holds."""

    view: int
    start: int
    stop: int


class Origin(Closed):
    """What a store's logits belong to. Two stores with the same origin are interchangeable."""

    teacher_digest: str = Field(min_length=1, description="Digest of the teacher's weights and recipe.")
    recipe_digest: str = Field(
        min_length=1, description="Digest of the part of the recipe that the teacher was trained by."
    )
    data_source: str = Field(min_length=1, description="The data set's name.")
    data_fingerprint: str = Field(min_length=1, description="Digest of the images, in order.")
    given_labels_sha256: Sha256 = Field(description="Digest of the given labels, planted noise included.")
    label_rule: str = Field(min_length=1, description="The labels that the teacher was trained on.")
    class_names: Strings = Field(description="Names of the classes; column c of the logits is class c.")
    views: dict[str, JsonValue] = Field(description="What the views are made of: crop, flip, ...")
    view_count: int = Field(ge=1, le=2**20, description="Views of each image, V.")
    view_seed: int = Field(description="Seed of the views.")
    mean: Floats = Field(description="Subtracted from each channel before the teacher saw it.")
    std: Floats = Field(description="Each channel was divided by it.")


class Digest(Closed):
    """A file of the store."""

    file: PlainName
    sha256: Sha256
    bytes: int = Field(ge=1)


class Shard(Digest):
    """A file that holds the logits of rows `start` to `stop` of one view, [stop - start, C]."""

    view: int = Field(ge=0)
    start: int = Field(ge=0)
    stop: int = Field(ge=1)

    @property
    def piece(self) -> Piece:
        """The rows that it holds."""
        return Piece(self.view, self.start, self.stop)


class Plan(Closed):
    """A store before its logits are there: all that decides the bytes of an export on one installation."""

    schema_version: SchemaVersion = SCHEMA_VERSION
    origin: Origin
    format: Format = Field(description="Type of the stored logits.")
    rows: int = Field(ge=1, le=2**40, description="Images, N.")
    classes: int = Field(ge=1, le=2**24, description="Classes, C.")
    shard_rows: int = Field(ge=1, description="Rows in a shard; the last of a view may have fewer.")
    indices: Digest = Field(description="The file with the source index of each row, int64 [N].")
    versions: dict[str, str] = Field(
        description="Libraries that made it. The same export is byte-identical on the same installation only."
    )

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        if len(self.origin.class_names) != self.classes:
            raise ValueError(f"{len(self.origin.class_names)} class names for {self.classes} classes")
        if self.indices.file != INDICES:
            raise ValueError(f"the indices' file is {self.indices.file!r}, expected {INDICES!r}")
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

    def digest(self) -> str:
        """sha256 of the plan; each shard carries it."""
        content = self.model_dump(mode="json", include=set(Plan.model_fields))
        return hashlib.sha256(canonical(content).encode()).hexdigest()


class Manifest(Plan):
    """A finished store."""

    shards: Annotated[tuple[Shard, ...], Field(strict=False)]

    @model_validator(mode="after")
    def _complete(self) -> Self:
        expected = self.shards_per_view * self.origin.view_count
        if len(self.shards) != expected:
            raise ValueError(f"{len(self.shards)} shards, expected {expected}")
        for shard, piece in zip(self.shards, self.pieces(), strict=True):
            if shard.piece != piece:
                raise ValueError(f"{shard.file}: holds {shard.piece}, expected {piece}; rows are missing or overlap")
            if shard.file != shard_name(piece):
                raise ValueError(f"{shard.file}: a shard of {piece} is named {shard_name(piece)!r}")
            values = (piece.stop - piece.start) * self.classes * ITEM_BYTES[self.format]
            if not values < shard.bytes <= values + _HEADER_ROOM:
                raise ValueError(f"{shard.file}: {shard.bytes} bytes cannot be a shard whose values take {values}")
        return self

    @property
    def plan(self) -> Plan:
        """What was to be exported."""
        return Plan(**{name: getattr(self, name) for name in Plan.model_fields})


def shard_name(piece: Piece) -> str:
    """`view0003-rows000065536.safetensors`: sorts in order up to ten thousand views and a billion rows."""
    return f"view{piece.view:04d}-rows{piece.start:09d}.safetensors"


def installed_versions() -> dict[str, str]:
    """Versions of what decides the bytes of an export."""
    found = {"distill": distill.__version__}
    for name in ("torch", "torchvision", "timm", "safetensors"):
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
    try:
        found = read_json(path)
    except StoreError as error:
        raise StoreError(error.message, cure=_make_again(path.parent)) from error
    written = found.get("schema_version") if isinstance(found, dict) else None
    if type(written) is int and written > SCHEMA_VERSION:
        raise StoreError(
            f"{path}: has schema version {written}, this distill reads {SCHEMA_VERSION}", cure="Upgrade distill."
        )
    try:
        return validated(path, model, found)
    except StoreError as error:
        raise StoreError(error.message, cure=_make_again(path.parent)) from error


def _make_again(folder: Path) -> str:
    """A store is only a copy of what the teacher says, so a damaged one may go."""
    return f"Delete {folder} and run `distill export --teacher {folder.parent}`."


def validated(path: Path, model: type[M], found: Any) -> M:
    """`found` as `model`.

    Raises:
        StoreError: it does not fit; names the first few fields that do not.
    """
    try:
        return model.model_validate(found)
    except ValidationError as error:
        first = [f"{'.'.join(map(str, e['loc'])) or 'it'}: {e['msg']}" for e in error.errors(include_input=False)[:3]]
        more = f" (and {error.error_count() - 3} more)" if error.error_count() > 3 else ""
        raise StoreError(
            f"{path}: does not hold what it should: {'; '.join(first)}{more}", cure="The file is damaged, or not ours."
        ) from None


_WORDS = {
    "teacher_digest": "teacher",
    "recipe_digest": "recipe",
    "data_source": "data source",
    "data_fingerprint": "data set",
    "given_labels_sha256": "given labels",
    "label_rule": "label rule",
    "view_count": "number of views",
    "view_seed": "seed of the views",
    "mean": "normalisation mean",
    "std": "normalisation standard deviation",
}


def difference(expected: Origin, found: Origin) -> list[str]:
    """What differs between the origin an opener expects and the one a store has, a sentence each; empty: nothing."""
    sentences = []
    for name in Origin.model_fields:
        ours, theirs = getattr(expected, name), getattr(found, name)
        if ours == theirs:
            continue
        if name == "class_names":
            sentences.append(_classes(ours, theirs))
        elif name == "views":
            keys = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
            changes = ", ".join(f"{key}: store has {theirs.get(key)!r}, expected {ours.get(key)!r}" for key in keys)
            sentences.append(f"views differ: {changes}")
        else:
            sentences.append(f"{_WORDS[name]} differs: store has {theirs!r}, expected {ours!r}")
    return sentences


def _classes(ours: tuple[str, ...], theirs: tuple[str, ...]) -> str:
    what = "class order differs" if sorted(ours) == sorted(theirs) else "classes differ"
    if max(len(ours), len(theirs)) <= 10:
        return f"{what}: store has {theirs!r}, data set has {ours!r}"
    if len(ours) != len(theirs):
        return f"{what}: store has {len(theirs)}, data set has {len(ours)}"
    at = next(c for c in range(len(ours)) if ours[c] != theirs[c])
    return f"{what}: class {at} is {theirs[at]!r} in the store, {ours[at]!r} in the data set"
