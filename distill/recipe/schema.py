"""What a recipe may say: every field with its type, range, default and a sentence.

Frozen and closed: an unknown field is an error. `load.py` reads TOML into these and words the errors; nothing here
imports torch, so that a bad recipe is refused within a fraction of a second.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from distill.recipe.ranges import (
    AreaRange,
    Concentration,
    Count,
    ErasingRange,
    Part,
    RatioRange,
    Share,
    Strength,
    Temperature,
    Words,
)

LabelRule = Literal["onehot", "smoothing", "class", "instance"]
LEARNED_RULES: frozenset[str] = frozenset({"class", "instance"})


class Table(BaseModel):
    """A table of a recipe: frozen, no unknown field, no silent conversion ("3" is not 3)."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())


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
    noise: NoiseRecipe = Field(default_factory=NoiseRecipe, description="Wrong labels, planted on purpose.")


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


class OptimizerRecipe(Table):
    """The optimiser and its schedule, built by timm."""

    name: str = Field(
        default="momentum", description="timm's name; 'momentum' is SGD with momentum, 'sgd' is Nesterov."
    )
    lr: float = Field(default=0.1, gt=0, description="Peak learning rate.")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="Momentum, for optimisers that have it.")
    weight_decay: float = Field(default=5e-4, ge=0, description="Weight decay.")
    decay_norm_and_bias: bool = Field(
        default=True,
        description="Decay normalisation weights and biases too, as the KD literature does and timm does not.",
    )
    schedule: Literal["constant", "cosine", "multistep"] = Field(
        default="cosine", description="Learning rate over time."
    )
    warmup_epochs: int = Field(default=0, ge=0, description="Epochs of linear warm-up, part of `epochs`.")
    min_lr: float = Field(default=0.0, ge=0, description="Cosine ends here.")
    milestones: Annotated[tuple[Count, ...], Field(strict=False)] = Field(
        default=(), description="Multistep: the epochs from which on the rate is lower."
    )
    gamma: float = Field(default=0.1, gt=0, lt=1, description="Multistep: the factor at each milestone.")


class LabelsRecipe(Table):
    """The labels that the teacher is trained on."""

    rule: LabelRule = Field(
        default="onehot", description="Fixed (onehot, smoothing) or learned (class, instance) labels."
    )
    smoothing: float = Field(
        default=0.1, ge=0, lt=1, description="Smoothing eps: eps/C goes to every class, as in timm."
    )
    parametrisation: Literal["softmax", "projected"] = Field(
        default="softmax", description="Learned: softmax of free rows, or rows that are put back on the simplex."
    )
    true_class_mass: float = Field(
        default=0.9, gt=0, lt=1, description="Learned: probability on the given class before learning starts."
    )
    meta: Literal["held-out", "next-batch"] = Field(
        default="next-batch", description="Learned: what judges the labels, the meta images or the next training batch."
    )
    meta_batch_size: Count = Field(default=128, description="Held-out: meta images a step.")
    estimator: Literal["auto", "unrolled", "forward-mode", "one-sided", "central", "last-layer"] = Field(
        default="auto", description="How the directional derivative is taken; auto: the cheapest that passes the probe."
    )
    step: float = Field(
        default=1.0, ge=0, le=1e6, description="Label step, on the derivative without the factor lr/B; 0: labels stay."
    )
    optimizer: Literal["sgd", "adam"] = Field(
        default="sgd",
        description="Label optimiser, on touched rows only; adam's step hardly depends on the derivative's size.",
    )
    momentum: float = Field(default=0.0, ge=0, lt=1, description="Momentum of the label step, per row; sgd only.")
    meta_gradient_mean: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Decay of a running mean of the meta gradient; 0: none, the exact derivative.",
    )
    warmup_epochs: int = Field(default=0, ge=0, description="Epochs before the labels begin to learn.")
    every: Count = Field(default=1, description="Update the labels every k-th step.")
    average_epochs: Count = Field(default=1, description="Exported labels are the mean over so many last epochs.")
    backend: Literal["auto", "reference", "triton"] = Field(
        default="auto", description="Which code moves the label rows: auto takes Triton's kernels on a GPU."
    )


class StageRecipe(Table):
    """What teacher and student training share."""

    model: str = Field(default="resnet20", description="A timm model or one of the KD literature's CIFAR nets.")
    model_args: dict[str, Any] = Field(default_factory=dict, description="More arguments for timm.create_model.")
    pretrained: bool = Field(
        default=False, description="Start from timm's pretrained weights (needs them on disk or a network)."
    )
    epochs: Count = Field(default=30, description="Passes over the training images.")
    batch_size: Annotated[int, Field(ge=2)] = Field(default=64, description="Images a step.")
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32", description="Precision of the forward passes; with float16 the losses are scaled."
    )
    clip_norm: float = Field(
        default=0.0, ge=0, description="Clip the gradient to this global norm before each step; 0: no clipping."
    )
    channels_last: bool = Field(
        default=False,
        description="Weights in channels-last order. Often faster; on a CPU torch's BatchNorm then loses four digits.",
    )
    select: Literal["last", "best"] = Field(
        default="last", description="Epoch whose weights are kept as the model: the last, or validation's best."
    )


class ImportedRecipe(Table):
    """A teacher that was trained elsewhere. `distill export --teacher timm:NAME` and its like fill this table in."""

    source: str = Field(
        default="",
        description="Where its weights come from: timm:NAME, local-dir:FOLDER or a file; empty: it is trained here.",
    )
    weights_sha256: Annotated[str, Words("64 hexadecimal digits")] = Field(
        default="", pattern=r"^([0-9a-f]{64})?$", description="Digest of the file that its weights were read from."
    )
    channels: int = Field(default=0, ge=0, le=4096, description="Channels of the images that it takes.")
    image_size: int = Field(
        default=0,
        ge=0,
        le=4096,
        description="Side in pixels that images are brought to before it; 0: its own, where it takes no other.",
    )
    mean: Annotated[tuple[float, ...], Field(strict=False)] = Field(
        default=(), description="Mean of each channel, of pixels from 0 to 1, that it wants taken off; empty: its own."
    )
    std: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(strict=False)] = Field(
        default=(), description="What each channel is then divided by; empty: its own."
    )


class TeacherRecipe(StageRecipe):
    """Stage one."""

    optimizer: OptimizerRecipe = Field(default_factory=OptimizerRecipe, description="Optimiser and schedule.")
    labels: LabelsRecipe = Field(default_factory=LabelsRecipe, description="The teacher's labels.")
    imported: ImportedRecipe = Field(default_factory=ImportedRecipe, description="A teacher from elsewhere.")


class ExportRecipe(Table):
    """Stage two."""

    format: Literal["float16", "float32", "int8", "topk"] = Field(
        default="float16",
        description="How logits are stored; int8: 255 levels a row; topk: the k largest, for very many classes.",
    )
    k: Count | None = Field(default=None, description="topk: logits kept of each row.")
    features: bool = Field(
        default=False, description="Store what the teacher's last layer is given too, in float16, for feature losses."
    )
    maps: bool = Field(
        default=False, description="Store the attention maps of the teacher's stages too, in float16, for `at`."
    )
    # 64: on a CPU the activations of larger batches come from fresh pages in every layer (docs/log.md).
    batch_size: Count = Field(default=64, description="Images a forward pass.")
    shard_rows: Count = Field(default=65536, description="Rows in a file, at most.")


class LossRecipe(Table):
    """What the student learns from."""

    name: Literal["kd", "ce"] = Field(
        default="kd", description="kd: Hinton's distillation; ce: hard labels only, a control."
    )
    temperature: Temperature = Field(
        default=4.0, description="Temperature of teacher and student in the distillation term."
    )
    hard_weight: float = Field(default=0.1, ge=0, description="Weight of the cross-entropy with the hard labels.")
    soft_weight: float = Field(default=0.9, ge=0, description="Weight of T^2 KL(teacher || student).")
    allow_topk: bool = Field(
        default=False,
        description="Learn from a top-k store also where its evenly spread tail is wrong, at T above 1.",
    )


class StudentRecipe(StageRecipe):
    """Stage three."""

    model: str = Field(default="resnet8", description="A timm model or one of the KD literature's CIFAR nets.")
    seed: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="Seed of the student's weights and order; default: the recipe's."
    )
    optimizer: OptimizerRecipe = Field(default_factory=OptimizerRecipe, description="Optimiser and schedule.")
    loss: LossRecipe = Field(default_factory=LossRecipe, description="The distillation loss.")


class CompareRecipe(Table):
    """Which teachers are compared. All else in the recipe is the same for each."""

    teachers: Annotated[tuple[LabelRule, ...], Field(strict=False, min_length=1)] = Field(
        default=("onehot", "smoothing", "instance"), description="Label rules, one teacher each."
    )
    seeds: Annotated[tuple[int, ...], Field(strict=False, min_length=1)] = Field(
        default=(0,), description="Every teacher and student is trained once with each."
    )
    temperatures: Annotated[tuple[Temperature, ...], Field(strict=False)] = Field(
        default=(), description="Student temperatures; validation chooses one per teacher. Empty: the student's own."
    )


class Recipe(Table):
    """One file describes one run."""

    name: Annotated[str, Words("at most 100 letters, digits, . _ -, the first a letter or a digit")] = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100, description="The run folder's name."
    )
    seed: int = Field(
        default=0, ge=0, description="Seed of the split, the noise, the weights, the order and the views."
    )
    checkpoints: str = Field(default="checkpoints", min_length=1, description="Folder where runs land.")
    device: Annotated[str, Words("auto, cpu, cuda or cuda:N")] = Field(
        default="auto",
        pattern=r"^(auto|cpu|cuda(:\d+)?)$",
        description="Where torch computes.",
    )
    threads: int = Field(
        default=0, ge=0, le=1024, description="CPU threads for torch; 0: torch's own choice. Results depend on it."
    )
    data: DataRecipe = Field(default_factory=DataRecipe, description="The images.")
    views: ViewsRecipe = Field(default_factory=ViewsRecipe, description="Augmentation.")
    teacher: TeacherRecipe = Field(default_factory=TeacherRecipe, description="Stage one.")
    export: ExportRecipe = Field(default_factory=ExportRecipe, description="Stage two.")
    student: StudentRecipe = Field(default_factory=StudentRecipe, description="Stage three.")
    compare: CompareRecipe = Field(default_factory=CompareRecipe, description="The comparison of teachers.")
