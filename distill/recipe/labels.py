"""`[teacher.labels]`: what a teacher is trained on. Imports no torch.

A rule has a table of its own for what only it has, `[teacher.labels.pencil]`, so that one recipe can name all of them
and compare them; what the rules that learn their labels share stands in `[teacher.labels]` itself.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from distill.recipe.base import Table
from distill.recipe.ranges import Count, Share

LabelRule = Literal[
    "onehot",
    "smoothing",
    "online-smoothing",
    "tf-kd",
    "bootstrap",
    "joint",
    "pencil",
    "elr",
    "class",
    "instance",
    "class+instance",
]
RULES: dict[LabelRule, str] = {
    "onehot": "fixed: all mass on the given class",
    "smoothing": "fixed: eps/C on every class, as in timm",
    "online-smoothing": "a label for each class, the mean of the right answers of the epoch before (OLS, 2011.12562)",
    "tf-kd": "fixed: a virtual teacher that is nearly sure of the given class (Tf-KD, 1909.11723)",
    "bootstrap": "the given label mixed with the network's answer, hard or soft (1412.6596)",
    "joint": "a label for each image, the mean of the network's answers (joint optimisation, 1803.11364)",
    "pencil": "a label for each image, learned from the training loss itself (PENCIL, 1903.07788)",
    "elr": "given labels, and a pull towards the network's early answers (ELR, 2007.00151)",
    "class": "learned: one label for each class (arXiv 2009.09496)",
    "instance": "learned: one label for each training image (arXiv 2009.09496)",
    "class+instance": "learned: one label for each training image, on what its given class shares",
}
"""Every rule, and a sentence about it."""

LEARNED_RULES: frozenset[str] = frozenset({"class", "instance", "class+instance"})
"""Rules whose labels the bilevel step moves."""

ANSWER_RULES: frozenset[str] = frozenset({"online-smoothing", "bootstrap", "joint", "pencil", "elr"})
"""Rules that read the network's answer to an image; they have no use for one to two mixed images."""

KEPT_RULES: frozenset[str] = LEARNED_RULES | {"online-smoothing", "joint", "pencil", "elr"}
"""Rules whose labels are written with the teacher, and can teach a student."""

SETTINGS: dict[str, dict[str, Any]] = {
    "robust": {
        "divergence": "reverse",
        "answer_entropy": 0.2,
        "meta_gradient_mean": 0.95,
        "meta_loss_q": 0.7,
        "freeze_patience": 2,
        "pulls": {"posterior": 1.0, "learn_confusions": True},
    },
    "trusted": {
        "parametrisation": "fixed-mass",
        "true_class_mass": 0.9,
        "meta_gradient_mean": 0.95,
        "step": 3.0,
        "pulls": {"answers": 3.0},
    },
}
"""What `settings` stands for: learned labels where given ones may be wrong, by recipes/labels/search_defaults.toml and
search_robust.toml, and where they are right, by search_clean_10000.toml."""

_ROWS = frozenset({"warmup_epochs", "freeze_epochs", "average_epochs"})
_READS: dict[str, frozenset[str]] = {
    "onehot": frozenset(),
    "smoothing": frozenset({"smoothing"}),
    "online-smoothing": frozenset({"online_smoothing", "average_epochs"}),
    "tf-kd": frozenset({"tf_kd"}),
    "bootstrap": frozenset({"bootstrap", "warmup_epochs"}),
    "joint": _ROWS | {"joint"},
    "pencil": _ROWS | {"pencil", "known_mass"},
    "elr": frozenset({"elr", "average_epochs"}),
}


def reads(rule: LabelRule) -> frozenset[str]:
    """The fields of `[teacher.labels]` that a rule reads; the others do not decide a teacher that is trained by it."""
    if rule not in LEARNED_RULES:
        return _READS[rule] | {"rule"}
    of_others = frozenset().union(*_READS.values()) - _ROWS - {"known_mass"}
    own = frozenset(LabelsRecipe.model_fields) - of_others - {"settings"}
    return own if rule == "class+instance" else own - {"prior_step"}


_Weight = Annotated[float, Field(ge=0, le=1e6)]


class PullsRecipe(Table):
    """What a learned label is drawn to besides what the meta images say: weights of losses of the label y itself."""

    start: _Weight = Field(default=0.0, description="Of KL(y_0 || y): towards the label that it started from.")
    answers: _Weight = Field(
        default=0.0, description="Of KL(p || y): towards the network's own answer p in the training forward."
    )
    posterior: _Weight = Field(
        default=0.0,
        description="Of KL(q || y), q proportional to p y_0: towards the answer once the given label has had its say.",
    )
    learn_confusions: bool = Field(
        default=False,
        description="Posterior: in place of y_0, how often each class is given as which, estimated after each epoch.",
    )
    learn_temperature: bool = Field(
        default=False,
        description="Posterior: how much less sure p is made first, by the temperature that makes given labels "
        "likeliest, estimated after each epoch.",
    )
    calibrated: bool = Field(
        default=False,
        description="Posterior: p is believed as far as it is right on validation images, which train nothing: it is "
        "taken at the temperature that makes their given labels likeliest, fitted after each epoch.",
    )
    proximal: bool = Field(
        default=False,
        description="Their step is taken from where it ends, so that labels do not overshoot however large it is.",
    )
    repeats: float = Field(
        default=1.0,
        ge=1,
        le=1e4,
        description="Proximal, a row for each image: how many times as strong the posterior's pull gets at most, by "
        "once for each epoch in a row in which it prefers the same class.",
    )
    entropy: _Weight = Field(default=0.0, description="Of -H(y): towards softness.")
    ema_decay: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Take p from a running mean of the weights with this decay a step; 0: from the network itself.",
    )


class OnlineSmoothingRecipe(Table):
    """The rule "online-smoothing"."""

    given: Share = Field(default=0.5, description="Share of the given label; the rest is the class's online label.")


class TfKdRecipe(Table):
    """The rule "tf-kd": (1 - weight) CE + weight T^2 KL(u^T || p^T), u the virtual teacher."""

    mass: Annotated[float, Field(gt=0, lt=1)] = Field(default=0.99, description="Of u on the given class.")
    temperature: Annotated[float, Field(ge=0.01, le=1000)] = Field(default=20.0, description="T.")
    weight: Share = Field(default=0.9, description="Of the virtual teacher.")


class BootstrapRecipe(Table):
    """The rule "bootstrap"."""

    target: Literal["hard", "soft"] = Field(
        default="hard", description="The network's likeliest class, or all of its answer."
    )
    given: Share | None = Field(
        default=None, description="Share of the given label, beta; default: the paper's, .8 for hard, .95 for soft."
    )


class JointRecipe(Table):
    """The rule "joint": KL(y || p) + balance KL(prior || mean p) + entropy H(p); y the mean of p over some epochs."""

    balance: _Weight = Field(default=1.2, description="Keeps the mean answer of a batch at the classes' frequencies.")
    entropy: _Weight = Field(default=0.8, description="Of the answers' entropy, which is brought down.")
    history: Count = Field(default=10, description="Epochs whose answers a label is the mean of.")


class PencilRecipe(Table):
    """The rule "pencil": KL(p || y) + entropy H(p); phi <- phi - step ((y - p) + compatibility (y - given))."""

    mass: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.999, description="Probability on the given class at first; the paper's 10 onehot is .9996 at C = 10."
    )
    step: _Weight = Field(default=0.5, description="Label step; the paper's lambda / (B C).")
    compatibility: _Weight = Field(
        default=0.5, description="Pull towards the given label, the paper's alpha C; from 1 on no label is corrected."
    )
    entropy: _Weight = Field(default=0.4, description="Of the answers' entropy, the paper's beta.")
    keep_meta: bool = Field(
        default=False,
        description="The meta images' labels stay as they are, as those of learned labels that meta images join do: it "
        "is told that they are right.",
    )


class ElrRecipe(Table):
    """The rule "elr": CE + weight log(1 - <p, t>), t a running mean of p."""

    weight: _Weight = Field(default=3.0, description="Of the regulariser, the paper's lambda.")
    decay: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.7, description="Of the running mean.")


class LabelsRecipe(Table):
    """The labels that the teacher is trained on."""

    rule: LabelRule = Field(
        default="onehot", description="What the teacher is trained on; `distill list labels` says more."
    )
    settings: Literal["robust", "trusted"] | None = Field(
        default=None,
        description="Learned: a word for several fields, for labels that may be wrong or are right; what is given "
        "beside it wins. Without it: the paper's method.",
    )
    smoothing: float = Field(
        default=0.1, ge=0, lt=1, description="Smoothing eps: eps/C goes to every class, as in timm."
    )
    parametrisation: Literal["softmax", "projected", "fixed-mass"] = Field(
        default="softmax",
        description="Learned: softmax of free rows; rows put back on the simplex; true_class_mass kept, the rest free.",
    )
    true_class_mass: float = Field(
        default=0.9, gt=0, lt=1, description="Learned: probability on the given class before learning starts."
    )
    divergence: Literal["forward", "reverse"] = Field(
        default="forward",
        description="Learned: the network is trained by KL(y || p), or by KL(p || y), whose gradient vanishes where p "
        "is sure, so that it learns wrong labels by heart later.",
    )
    answer_entropy: _Weight = Field(
        default=0.0, description="Learned: weight of H(p), the answers' entropy, in the network's training loss."
    )
    meta: Literal["held-out", "next-batch"] = Field(
        default="next-batch", description="Learned: what judges the labels, the meta images or the next training batch."
    )
    meta_batch_size: Count = Field(default=128, description="Held-out: meta images a step.")
    meta_joins: Literal["never", "frozen", "always"] = Field(
        default="never",
        description="Held-out: train on the meta images too, each on the label that its row starts from, which stays: "
        "in the last epochs, while labels are frozen, or in all.",
    )
    known_mass: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None,
        description="Meta images that join, or that PENCIL keeps: probability of the given class, which is known to be "
        "right; none: what other rows start from.",
    )
    meta_loss_q: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="What judges is (1 - p^q) / q of the given class, which wrong ones hardly move; 0: cross-entropy.",
    )
    estimator: Literal["auto", "unrolled", "forward-mode", "one-sided", "central", "last-layer"] = Field(
        default="auto", description="How the directional derivative is taken; auto: the cheapest that passes the probe."
    )
    step: float = Field(
        default=1.0,
        ge=0,
        le=1e6,
        description="Label step, on the derivative freed of batch size and of the network's step (lr); 0: labels stay.",
    )
    prior_step: float = Field(
        default=1.0, ge=0, le=1e6, description="class+instance: label step of what the rows of a class share."
    )
    step_schedule: Literal["constant", "linear", "cosine"] = Field(
        default="constant", description="Label step from the end of warm-up on: as it is, or falling to 0 at the end."
    )
    optimizer: Literal["sgd", "normalised", "adam"] = Field(
        default="sgd",
        description="Label optimiser, on touched rows only; the steps of the other two hardly depend on how large the "
        "derivative is.",
    )
    momentum: float = Field(default=0.0, ge=0, lt=1, description="Momentum of the label step, per row; sgd only.")
    meta_gradient_mean: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Decay of a running mean of the meta gradient; 0: none, the exact derivative.",
    )
    warmup_epochs: int = Field(default=0, ge=0, description="Epochs before the labels begin to move.")
    freeze_epochs: int = Field(default=0, ge=0, description="Last epochs, in which the labels stay as they are.")
    freeze_patience: int = Field(
        default=0,
        ge=0,
        description="Learned: labels stay once no more of them have moved for so many epochs; 0: they go on.",
    )
    every: Count = Field(default=1, description="Update the labels every k-th step.")
    average_epochs: Count = Field(default=1, description="Exported labels are the mean over so many last epochs.")
    backend: Literal["auto", "reference", "triton"] = Field(
        default="auto", description="Which code moves the label rows: auto takes Triton's kernels on a GPU."
    )
    pulls: PullsRecipe = Field(default_factory=PullsRecipe, description="Learned: what else draws the labels.")
    online_smoothing: OnlineSmoothingRecipe = Field(
        default_factory=OnlineSmoothingRecipe, description='The rule "online-smoothing".'
    )
    tf_kd: TfKdRecipe = Field(default_factory=TfKdRecipe, description='The rule "tf-kd".')
    bootstrap: BootstrapRecipe = Field(default_factory=BootstrapRecipe, description='The rule "bootstrap".')
    joint: JointRecipe = Field(default_factory=JointRecipe, description='The rule "joint".')
    pencil: PencilRecipe = Field(default_factory=PencilRecipe, description='The rule "pencil".')
    elr: ElrRecipe = Field(default_factory=ElrRecipe, description='The rule "elr".')
