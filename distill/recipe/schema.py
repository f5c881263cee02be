"""What a recipe may say: every field with its type, range, default and a sentence.

Frozen and closed: an unknown field is an error. `load.py` reads TOML into these and words the errors; nothing here
imports torch, so that a bad recipe is refused within a fraction of a second.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
LabelRule = Literal["onehot", "smoothing", "class", "instance"]
LEARNED_RULES: frozenset[str] = frozenset({"class", "instance"})


class Table(BaseModel):
    """A table of a recipe: frozen, no unknown field, no silent conversion ("3" is not 3)."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=()
    )


class NoiseRecipe(Table):
    """Wrong labels, planted on purpose. The true labels are kept, for evaluation only."""

    kind: Literal["none", "symmetric", "asymmetric", "file"] = Field("none", description="How labels are made wrong.")
    rate: Share = Field(0.0, description="Share of the labels that are drawn again.")
    redraw: Literal["all", "others"] = Field(
        "all",
        description="Symmetric: draw again from all classes (the literature's way; rate/C stay right) or from the others.",
    )
    pairs: dict[str, str] = Field(
        default_factory=dict,
        description="Asymmetric: which class turns into which, by name; empty: each class into the next.",
    )
    file: str = Field("", description="A noise file of one's own: .npy of N integers, or .csv with columns index,label.")
    clean: Annotated[tuple[Literal["meta", "validation"], ...], Field(strict=False)] = Field(
        ("meta", "validation"), description="Parts that keep their true labels; the test part always does."
    )


class DataRecipe(Table):
    """Which images, and how they are divided. All parts are disjoint."""

    source: Literal["digits", "fashion-mnist", "cifar10", "cifar100", "folder"] = Field(
        "digits", description="The data set."
    )
    root: str = Field("", description="Where its files are; empty: the usual place for the source.")
    download: bool = Field(False, description="Let torchvision download the files when they are missing.")
    image_size: int = Field(0, ge=0, le=4096, description="Side in pixels of a folder's images after resizing; 0: 224.")
    train: Count | None = Field(None, description="Use only so many training images; default: all that are left.")
    validation: int | float = Field(0.1, ge=0, description="Images to choose by: a number, or a share of the rest.")
    meta: int | float = Field(0, ge=0, description="Images that judge the labels: a number, or a share of the rest.")
    test: int | float = Field(
        0.2, ge=0, description="Images to report on, for sources without a test part of their own: a number or a share."
    )
    noise: NoiseRecipe = Field(default_factory=NoiseRecipe, description="Wrong labels, planted on purpose.")


class ViewsRecipe(Table):
    """Augmentation. View k of image i is always the same pixels."""

    crop_padding: int = Field(0, ge=0, le=256, description="Pad by so many pixels, then crop back at a random place.")
    flip: bool = Field(False, description="Mirror half of the views.")
    count: Count | Literal["orbit"] = Field(
        1, description="Views a store holds of each image: a number, or 'orbit' for every crop and flip there is."
    )


class OptimizerRecipe(Table):
    """The optimiser and its schedule, built by timm."""

    name: str = Field("momentum", description="timm's name; 'momentum' is SGD with momentum, 'sgd' is Nesterov.")
    lr: float = Field(0.1, gt=0, description="Peak learning rate.")
    momentum: float = Field(0.9, ge=0, lt=1, description="Momentum, for optimisers that have it.")
    weight_decay: float = Field(5e-4, ge=0, description="Weight decay.")
    decay_norm_and_bias: bool = Field(
        True, description="Decay normalisation weights and biases too, as the KD literature does and timm does not."
    )
    schedule: Literal["constant", "cosine", "multistep"] = Field("cosine", description="Learning rate over time.")
    warmup_epochs: int = Field(0, ge=0, description="Epochs of linear warm-up, part of `epochs`.")
    min_lr: float = Field(0.0, ge=0, description="Cosine ends here.")
    milestones: Annotated[tuple[Count, ...], Field(strict=False)] = Field(
        (), description="Multistep: the epochs from which on the rate is lower."
    )
    gamma: float = Field(0.1, gt=0, lt=1, description="Multistep: the factor at each milestone.")


class LabelsRecipe(Table):
    """The labels that the teacher is trained on."""

    rule: LabelRule = Field("onehot", description="Fixed (onehot, smoothing) or learned (class, instance) labels.")
    smoothing: float = Field(0.1, ge=0, lt=1, description="Smoothing eps: eps/C goes to every class, as in timm.")
    true_class_mass: float = Field(
        0.9, gt=0, lt=1, description="Learned: probability on the given class before learning starts."
    )
    meta: Literal["held-out", "next-batch"] = Field(
        "next-batch", description="Learned: what judges the labels, the meta images or the next training batch."
    )
    meta_batch_size: Count = Field(128, description="Held-out: meta images a step.")
    estimator: Literal["auto", "unrolled", "forward-mode", "one-sided", "central"] = Field(
        "auto", description="How the directional derivative is taken; auto: the cheapest that passes the probe."
    )
    step: float = Field(1.0, ge=0, description="Label step, on the derivative without the factor lr/B; 0: labels stay.")
    momentum: float = Field(0.0, ge=0, lt=1, description="Momentum of the label step, per row.")
    meta_gradient_mean: float = Field(
        0.0, ge=0, lt=1, description="Decay of a running mean of the meta gradient; 0: none, the exact derivative."
    )
    warmup_epochs: int = Field(0, ge=0, description="Epochs before the labels begin to learn.")
    every: Count = Field(1, description="Update the labels every k-th step.")
    average_epochs: Count = Field(1, description="Exported labels are the mean over so many last epochs.")


class StageRecipe(Table):
    """What teacher and student training share."""

    model: str = Field("resnet20", description="A timm model or one of the KD literature's CIFAR nets.")
    model_args: dict[str, Any] = Field(default_factory=dict, description="More arguments for timm.create_model.")
    pretrained: bool = Field(False, description="Start from timm's pretrained weights (needs them on disk or a network).")
    epochs: Count = Field(30, description="Passes over the training images.")
    batch_size: Annotated[int, Field(ge=2)] = Field(64, description="Images a step.")
    precision: Literal["float32", "bfloat16"] = Field("float32", description="Precision of the forward passes.")
    select: Literal["last", "best"] = Field("last", description="Weights to go on with: last epoch, or best validation.")


class TeacherRecipe(StageRecipe):
    """Stage one."""

    optimizer: OptimizerRecipe = Field(default_factory=OptimizerRecipe, description="Optimiser and schedule.")
    labels: LabelsRecipe = Field(default_factory=LabelsRecipe, description="The teacher's labels.")


class ExportRecipe(Table):
    """Stage two."""

    format: Literal["float16", "float32"] = Field("float16", description="Type of the stored logits.")
    batch_size: Count = Field(512, description="Images a forward pass.")
    shard_rows: Count = Field(65536, description="Rows in a file, at most.")


class LossRecipe(Table):
    """What the student learns from."""

    name: Literal["kd", "ce"] = Field("kd", description="kd: Hinton's distillation; ce: hard labels only, a control.")
    temperature: float = Field(4.0, gt=0, description="Temperature of teacher and student in the distillation term.")
    hard_weight: float = Field(0.1, ge=0, description="Weight of the cross-entropy with the hard labels.")
    soft_weight: float = Field(0.9, ge=0, description="Weight of T^2 KL(teacher || student).")


class StudentRecipe(StageRecipe):
    """Stage three."""

    model: str = Field("resnet8", description="A timm model or one of the KD literature's CIFAR nets.")
    optimizer: OptimizerRecipe = Field(default_factory=OptimizerRecipe, description="Optimiser and schedule.")
    loss: LossRecipe = Field(default_factory=LossRecipe, description="The distillation loss.")


class CompareRecipe(Table):
    """Which teachers are compared. All else in the recipe is the same for each."""

    teachers: Annotated[tuple[LabelRule, ...], Field(strict=False, min_length=1)] = Field(
        ("onehot", "smoothing", "instance"), description="Label rules, one teacher each."
    )
    seeds: Annotated[tuple[int, ...], Field(strict=False, min_length=1)] = Field(
        (0,), description="Every teacher and student is trained once with each."
    )
    temperatures: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(strict=False)] = Field(
        (), description="Student temperatures; validation chooses one per teacher. Empty: the student's own."
    )


class Recipe(Table):
    """One file describes one run."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100, description="The run folder's name."
    )
    seed: int = Field(0, ge=0, description="Seed of the split, the noise, the weights, the order and the views.")
    checkpoints: str = Field("checkpoints", min_length=1, description="Folder where runs land.")
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto, cpu, cuda or cuda:N.")
    threads: int = Field(0, ge=0, description="CPU threads for torch; 0: torch's own choice. Results depend on it.")
    data: DataRecipe = Field(default_factory=DataRecipe, description="The images.")
    views: ViewsRecipe = Field(default_factory=ViewsRecipe, description="Augmentation.")
    teacher: TeacherRecipe = Field(default_factory=TeacherRecipe, description="Stage one.")
    export: ExportRecipe = Field(default_factory=ExportRecipe, description="Stage two.")
    student: StudentRecipe = Field(default_factory=StudentRecipe, description="Stage three.")
    compare: CompareRecipe = Field(default_factory=CompareRecipe, description="The comparison of teachers.")
