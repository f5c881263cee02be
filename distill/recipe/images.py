"""The tables that say which images are shown, and how: `[data]`, `[data.noise]`, `[views]`. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from distill.recipe.base import Table
from distill.recipe.ranges import AreaRange, Concentration, Count, ErasingRange, Part, RatioRange, Share, Strength


class NoiseRecipe(Table):
    """Wrong labels, planted on purpose. The true labels are kept, for evaluation only."""

    kind: Literal["none", "symmetric", "asymmetric", "file"] = Field(
        default="none", description="How labels are made wrong."
    )
    rate: Share = Field(default=0.0, description="Share of the labels that are drawn again.")
    redraw: Literal["all", "others"] = Field(
        default="all",
        description="Symmetric: draw again from all classes (the literature's way; rate/C stay right) or the others.",
    )
    pairs: dict[str, str] = Field(
        default_factory=dict,
        description="Asymmetric: which class turns into which, by name; empty: each class into the next.",
    )
    file: str = Field(
        default="", description="A noise file of one's own: .npy of N integers, or .csv with columns index,label."
    )
    clean: Annotated[tuple[Literal["meta", "validation"], ...], Field(strict=False)] = Field(
        default=("meta", "validation"), description="Parts that keep their true labels; the test part always does."
    )


class DataRecipe(Table):
    """Which images, and how they are divided. All parts are disjoint."""

    source: Literal["digits", "fashion-mnist", "cifar10", "cifar100", "folder"] = Field(
        default="digits", description="The data set."
    )
    root: str = Field(default="", description="Where its files are; empty: the usual place for the source.")
    download: bool = Field(default=False, description="Let torchvision download the files when they are missing.")
    image_size: int = Field(
        default=0, ge=0, le=4096, description="Side in pixels of a folder's images after resizing; 0: 224."
    )
    unreadable: Literal["error", "leave-out"] = Field(
        default="error",
        description="A folder's images that cannot be decoded: an error that names the first, or in no part.",
    )
    train: Count | None = Field(
        default=None, description="Use only so many training images; default: all that are left."
    )
    validation: Part = Field(
        default=0.1, ge=0, description="Images to choose by: a number, or a share of the training pool."
    )
    meta: Part = Field(
        default=0, ge=0, description="Images that judge the labels: a number, or a share of the training pool."
    )
    test: Part = Field(
        default=0.2,
        ge=0,
        description="Images to report on, for sources without a test part of their own: a number or a share.",
    )
    corrections: str = Field(
        default="",
        description="A .csv file of labels that were looked at and are to be others, with columns index and label: "
        "suspected_errors.csv with a column label, filled where it is to be another.",
    )
    noise: NoiseRecipe = Field(default_factory=NoiseRecipe, description="Wrong labels, planted on purpose.")

    @property
    def truth_known(self) -> bool:
        """Whether it is known which labels are right. Of a folder it is not, unless wrong ones were planted in it."""
        return self.source != "folder" or self.noise.kind != "none"


class ViewsRecipe(Table):
    """Augmentation. View k of image i is always the same pixels."""

    crop_padding: int = Field(
        default=0, ge=0, le=256, description="Pad by so many pixels, then crop back at a random place."
    )
    resized_crop: AreaRange = Field(
        default=(),
        description="Crop a rectangle of such a share of the area, resize it to the old size; empty: do not.",
    )
    resized_crop_ratio: RatioRange = Field(default=(3 / 4, 4 / 3), description="Width over height of that rectangle.")
    flip: bool = Field(default=False, description="Mirror half of the views.")
    randaugment: int = Field(
        default=0, ge=0, le=10, description="RandAugment: operations one after the other; 0: none, 2 is usual."
    )
    randaugment_magnitude: int = Field(
        default=9, ge=0, le=30, description="RandAugment: their magnitude on torchvision's scale from 0 to 30."
    )
    brightness: Strength = Field(default=0.0, description="Colour jitter: factor within 1 - this and 1 + this.")
    contrast: Strength = Field(default=0.0, description="Colour jitter: likewise, away from the mean grey.")
    saturation: Strength = Field(default=0.0, description="Colour jitter: likewise, away from the grey image.")
    hue: float = Field(
        default=0.0, ge=0, le=0.5, description="Colour jitter: shift by at most this part of the colour circle."
    )
    erasing: Share = Field(default=0.0, description="Random erasing: probability; the rectangle is filled with noise.")
    erasing_area: ErasingRange = Field(default=(0.02, 1 / 3), description="Random erasing: share of the area.")
    erasing_ratio: RatioRange = Field(default=(0.3, 1 / 0.3), description="Random erasing: width over height.")
    mixup: Concentration = Field(default=0.0, description="Mixup: alpha of the Beta distribution; 0: none.")
    cutmix: Concentration = Field(
        default=0.0,
        description="CutMix: alpha of the Beta distribution; 0: none. With mixup: either one, half and half.",
    )
    mix_probability: Share = Field(default=1.0, description="Share of the views that mixup and CutMix mix.")
    count: Count | Literal["orbit"] = Field(
        default=1,
        description="Views a store holds of each image: a number, or 'orbit' for every crop and flip there is.",
    )

    @property
    def drawn(self) -> tuple[str, ...]:
        """The fields in use whose views cannot be enumerated, so that an orbit has no end."""
        names = ("resized_crop", "randaugment", "brightness", "contrast", "saturation", "hue", "erasing")
        return tuple(name for name in (*names, "mixup", "cutmix") if getattr(self, name))

    @property
    def mixes(self) -> bool:
        """Whether images are mixed with others."""
        return (self.mixup > 0 or self.cutmix > 0) and self.mix_probability > 0
