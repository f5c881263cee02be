"""What stored logits belong to, and in which words two such things differ. Nothing here imports torch."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue, SerializerFunctionWrapHandler, model_serializer

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Strings = Annotated[tuple[str, ...], Field(strict=False, min_length=1, max_length=2**24)]
Floats = Annotated[tuple[float, ...], Field(strict=False, min_length=1, max_length=64)]


class Closed(BaseModel):
    """Frozen, no unknown field, no silent conversion."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())


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
    decoders: dict[str, str] | None = Field(
        default=None, description="Versions of what decoded the images; not there: nothing did, or it was not noted."
    )

    @model_serializer(mode="wrap")
    def _written(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """One without decoders is written as it was before they were noted."""
        content: dict[str, Any] = write(self)
        return {name: value for name, value in content.items() if name != "decoders" or value is not None}


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
        elif name == "decoders":
            if changes := _decoders(ours, theirs):
                sentences.append(f"decoders of the images differ, so their pixels may: {changes}")
        elif name == "views":
            keys = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
            changes = ", ".join(f"{key}: store has {theirs.get(key)!r}, expected {ours.get(key)!r}" for key in keys)
            sentences.append(f"views differ: {changes}")
        else:
            sentences.append(f"{_WORDS[name]} differs: store has {theirs!r}, expected {ours!r}")
    return sentences


def cure(expected: Origin, found: Origin) -> str:
    """What can be done about their differences."""
    theirs = found.decoders or {}
    differing = _differing(expected.decoders or {}, theirs)
    if not differing or len(difference(expected, found)) > 1:
        return "Use the store that was made for it, or export it again: distill export --teacher RUN"
    if "Pillow" in differing:  # its wheels bring the libraries along
        made_with = f"pip install pillow=={theirs['Pillow']}"
    else:
        made_with = "a Pillow built with " + ", ".join(f"{name} {theirs[name]}" for name in differing)
    return f"Export it again: distill export --teacher RUN; or install what it was made with: {made_with}"


def _decoders(ours: dict[str, str] | None, theirs: dict[str, str] | None) -> str:
    """What differs in two sets of versions; empty: nothing. A store that does not say is taken at its word."""
    if ours is None or theirs is None:
        return ""
    return ", ".join(f"{name}: store has {theirs[name]!r}, here is {ours[name]!r}" for name in _differing(ours, theirs))


def _differing(ours: dict[str, str], theirs: dict[str, str]) -> list[str]:
    return sorted(name for name in ours.keys() & theirs.keys() if ours[name] != theirs[name])


def _classes(ours: tuple[str, ...], theirs: tuple[str, ...]) -> str:
    what = "class order differs" if sorted(ours) == sorted(theirs) else "classes differ"
    if max(len(ours), len(theirs)) <= 10:
        return f"{what}: store has {theirs!r}, data set has {ours!r}"
    if len(ours) != len(theirs):
        return f"{what}: store has {len(theirs)}, data set has {len(ours)}"
    at = next(c for c in range(len(ours)) if ours[c] != theirs[c])
    return f"{what}: class {at} is {theirs[at]!r} in the store, {ours[at]!r} in the data set"
