"""What a recipe may say: every field with its type, range, default and a sentence.

Frozen and closed: an unknown field is an error. `load.py` reads TOML into these and words the errors; nothing here
imports torch, so that a bad recipe is refused within a fraction of a second.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from distill.recipe.base import Table
from distill.recipe.compare import CompareRecipe
from distill.recipe.images import DataRecipe, NoiseRecipe, ViewsRecipe
from distill.recipe.labels import LEARNED_RULES, LabelRule, LabelsRecipe
from distill.recipe.losses import LossRecipe, Weight
from distill.recipe.ranges import Count, Words

__all__ = [
    "LEARNED_RULES",
    "CompareRecipe",
    "DataRecipe",
    "ExportRecipe",
    "ImportedRecipe",
    "LabelRule",
    "LabelsRecipe",
    "LossRecipe",
    "NoiseRecipe",
    "OptimizerRecipe",
    "Recipe",
    "StageRecipe",
    "StudentRecipe",
    "TeacherRecipe",
    "ViewsRecipe",
]


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
    test_every_epoch: bool = Field(
        default=True,
        description="Score the test part after every epoch; false: once, of the last and validation's best.",
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

    epochs: int = Field(
        default=30, ge=0, description="Passes over the training images; 0: an untrained teacher, a control."
    )
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
        default=False, description="Store the attention maps of the teacher's stages too, in float16, for `attention`."
    )
    # 64: on a CPU the activations of larger batches come from fresh pages in every layer (docs/log.md).
    batch_size: Count = Field(default=64, description="Images a forward pass.")
    shard_rows: Count = Field(default=65536, description="Rows in a file, at most.")


class StudentRecipe(StageRecipe):
    """Stage three."""

    model: str = Field(
        default="", description="A timm model or one of the KD literature's CIFAR nets; empty: one that suits the data."
    )
    seed: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="Seed of the student's weights and order; default: the recipe's."
    )
    ema_decay: float = Field(
        default=0.0, ge=0, lt=1, description="Judge and keep a running mean of the weights with this decay; 0: none."
    )
    micro_batches: Count = Field(
        default=1, description="Compute each step's batch in so many parts, one after the other, to save memory."
    )
    compile: bool = Field(default=False, description="Let torch.compile the network's training pass.")
    patience: int = Field(
        default=0, ge=0, description="Stop after so many epochs without a better one by validation; 0: never."
    )
    online: bool = Field(
        default=False,
        description="Run the teacher on every batch, on views without an end, and not from its store: the slow way.",
    )
    more_teachers: Annotated[tuple[str, ...], Field(strict=False)] = Field(
        default=(), description="More teachers, run folders or their names: the student learns from the stores' mean."
    )
    teacher_weights: Annotated[tuple[Weight, ...], Field(strict=False)] = Field(
        default=(), description="Weight of each teacher in that mean, the run's own first; empty: all the same."
    )
    combine: Literal["logits", "probabilities"] = Field(
        default="logits", description="Several teachers: what the mean is taken of."
    )
    optimizer: OptimizerRecipe = Field(default_factory=OptimizerRecipe, description="Optimiser and schedule.")
    loss: LossRecipe = Field(default_factory=LossRecipe, description="The distillation loss.")


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
