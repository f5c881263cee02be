"""Is an estimator right for this model? Asked on the first batch, before anything is trained, and now and then later.

End accuracy cannot tell: a bug in the finite-difference factor shipped in three known projects and hardly moved it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from distill.bilevel import hygiene, lookahead
from distill.bilevel.contract import Estimator, InnerStep, Tensors
from distill.bilevel.estimators import APPROXIMATIONS, ESTIMATORS, EXACT, ORDER, described, variants
from distill.bilevel.finite_difference import FiniteDifference
from distill.bilevel.lookahead import LookAhead
from distill.bilevel.optimizer_rules import SGDRule
from distill.bilevel.step import Training
from distill.bilevel.targets import meta_loss, soft_loss
from distill.bilevel.update import gradient_by_name
from distill.data.loader import Batch
from distill.errors import BilevelError
from distill.labels.learned import Learned

MINIMUM_COSINE = {"float32": 0.999, "bfloat16": 0.99, "float16": 0.99}  # half precision rounds the function itself
MAXIMUM_SCALE = 1.05  # the cosine does not see a wrong factor
PROBED_IMAGES = 32
DOUBLE_REACHES = (1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4)  # of the reference in float64
CONFIRMED = 0.9999
ROUNDED = 0.9  # cosine that an exact estimator may fall to by rounding alone
SAME_FUNCTION = 0.99  # cosine of the log-probabilities in both precisions, half precision's rounding allowed for


def choose_estimator(name: str, training: Training, batch: Batch, meta: Batch) -> tuple[Estimator, str]:
    """The estimator to use and a sentence that says how it did on the first batch.

    Args:
        name: one of `ESTIMATORS`, or "auto" for the cheapest that passes. A finite difference comes with the reach that
            does best here.
        training: the model in train mode with its optimiser; left as it was, to the bit.
        batch: the first training batch.
        meta: what judges it.

    Raises:
        BilevelError: the estimator that was asked for, or under "auto" every one, has a cosine below .999 (.99 in
            half precision) with the reference, or a wrong scale, or cannot differentiate this model at all. An exact
            one may have .9 where it passes in float64: then this model's gradients as such are so rounded today.
    """
    names = tuple(n for n in ORDER[training.precision] if suits(n, training.rule)) if name == "auto" else (name,)
    minimum = MINIMUM_COSINE[training.precision]
    inner, r = _trial(names, training, batch, meta)
    reference, kind = reference_gradient(training.model, inner, r)
    failures = []
    for candidate in names:
        try:
            estimator, cosine, scale = _best(candidate, training.model, inner, r, reference)
        except BilevelError as error:
            failures.append(error.message)
            continue
        if candidate in APPROXIMATIONS:
            return estimator, f"label gradient by {candidate}, an approximation: cosine {cosine:.4f} with {kind}"
        told = f"label gradient by {described(estimator)}: cosine {cosine:.6f} with {kind}"
        skipped = f" (passed over: {'; '.join(failures)})" if failures else ""
        if _passes(cosine, scale, minimum):
            return estimator, told + skipped
        if candidate in EXACT and _passes(cosine, scale, ROUNDED) and _right_in_double(estimator, training, inner, r):
            return estimator, f"{told}; right in float64, the rest is rounding in {training.precision}{skipped}"
        failures.append(
            f"{candidate}: cosine {cosine:.4f}, scale {scale:.3f} against {kind}, "
            f"expected {minimum} or more, and 1 to within {MAXIMUM_SCALE - 1:.0%}"
        )
    raise BilevelError(
        "learned labels: no estimator passes on this model: " + "; ".join(failures),
        cure="try another "
        + ("" if name == "auto" else 'teacher.labels.estimator, or "auto"; or another ')
        + 'teacher.model; or teacher.precision = "float32".',
    )


def suits(name: str, rule: object) -> bool:
    """Whether an estimator takes the step that the rule trains by: `Unrolled` unrolls plain soft cross-entropy."""
    plain = not isinstance(rule, Learned) or (rule.divergence == "forward" and not rule.answer_entropy)
    return plain or name != "unrolled"


def tuned(names: Iterable[str], training: Training, batch: Batch, meta: Batch) -> dict[str, Estimator]:
    """The best form of each estimator today, by name. See `choose_estimator`."""
    names = list(names)
    inner, r = _trial(names, training, batch, meta)
    reference, _ = reference_gradient(training.model, inner, r)
    return {name: _best(name, training.model, inner, r, reference)[0] for name in names}


def _best(
    name: str, model: nn.Module, inner: InnerStep, r: Tensors, reference: Tensor
) -> tuple[Estimator, float, float]:
    tried = [(estimator, *agreement(estimator(model, inner, r), reference)) for estimator in variants(name)]
    return max(tried, key=lambda found: found[1] if math.isfinite(found[1]) else -math.inf)


def _passes(cosine: float, scale: float, minimum: float) -> bool:
    return cosine >= minimum and 1 / MAXIMUM_SCALE <= scale <= MAXIMUM_SCALE


def _right_in_double(estimator: Estimator, training: Training, inner: InnerStep, r: Tensors) -> bool:
    """Whether the method itself is right for this model, whatever its own precision makes of it."""
    try:
        twin = in_double(training.model, inner, r)
        return _passes(*agreement(estimator(*twin), _differences(*twin)), MINIMUM_COSINE["float32"])
    except (RuntimeError, TypeError, copy.Error, BilevelError):
        return False


def _head(batch: Batch) -> Batch:
    """The first images: enough for a cosine, and a big model in float64 then needs little memory."""
    return batch.head(PROBED_IMAGES)


def _trial(names: Sequence[str], training: Training, batch: Batch, meta: Batch) -> tuple[InnerStep, Tensors]:
    """`trial_step` on the first images, with what any of these estimators needs."""
    candidates = [ESTIMATORS[name] for name in names]
    return trial_step(
        training,
        _head(batch),
        _head(meta),
        keep_features=any(candidate.needs_features for candidate in candidates),
        keep_state=any(candidate.needs_state for candidate in candidates),
    )


def trial_step(
    training: Training, batch: Batch, meta: Batch, *, keep_features: bool = False, keep_state: bool = False
) -> tuple[InnerStep, Tensors]:
    """An inner step and a meta gradient at today's parameters, without stepping."""
    parameters = lookahead.trained_parameters(training.model)
    seed = training.forward_seed(0)
    with torch.no_grad(), hygiene.kept_features(training.model, wanted=keep_features) as features:
        logits = hygiene.silent_forward(
            training.model, parameters, batch.images, seed=seed, precision=training.precision
        )
        _, target = soft_loss(training.rule, logits, batch)
    # Refuses an optimiser without a rule.
    inner = training.record(batch, 0, logits, target.labels, None, keep_state=False, features=features)
    # A direction is all that is needed, and in float16 one would have to find a scale for its loss first.
    precision = "float32" if training.precision == "float16" else training.precision
    inner = replace(inner, look_ahead=_todays_look_ahead(training, batch, seed, precision, keep_state=keep_state))
    meta_logits = hygiene.silent_forward(training.model, parameters, meta.images, seed=seed, precision=precision)
    judged = meta_loss(meta_logits, meta, training.meta_loss_q).mean()
    return inner, gradient_by_name(judged, training.model, retain_graph=False)


def _todays_look_ahead(training: Training, batch: Batch, seed: int, precision: str, *, keep_state: bool) -> LookAhead:
    """How a step would move the parameters today: a finite difference goes along that, and only that, direction.

    A plain step stands in for SGD's, whose direction is the same, and for an optimiser that has no state yet.
    """
    parameters = lookahead.trained_parameters(training.model)
    optimizer = training.optimizer
    if optimizer.state and not isinstance(optimizer, torch.optim.SGD):
        logits = hygiene.silent_forward(training.model, parameters, batch.images, seed=seed, precision=precision)
        losses, _ = soft_loss(training.rule, logits, batch)
        gradients = gradient_by_name(losses.mean(), training.model, retain_graph=False)
        real = lookahead.record(optimizer, parameters, keep_state=keep_state, gradients=gradients)
        if real.lr:
            return real
    plain = SGDRule(lr=1.0, momentum=0.0, dampening=0.0, nesterov=False, weight_decay=0.0, first=True)
    return LookAhead(dict.fromkeys(parameters, plain))


def reference_gradient(model: nn.Module, inner: InnerStep, r: Tensors) -> tuple[Tensor, str]:
    """dL_meta/dy [B, C] by central differences, and how they were taken.

    In float64 on a copy of the model, where a small reach leaves neither kinks of ReLUs nor rounding behind. In float32
    differences are themselves off by more than the probe allows on deep ReLU networks at their initial weights, so they
    stand in only where the model has no float64 form, or draws other dropout masks there.
    """
    try:
        twin, exact, direction = in_double(model, inner, r)
        with torch.no_grad():
            logits = hygiene.silent_forward(twin, exact.theta, exact.images, seed=exact.seed, precision=exact.precision)
        cosine, _ = agreement(torch.log_softmax(logits, dim=-1), inner.log_probabilities)
        if cosine > SAME_FUNCTION:
            return _differences(twin, exact, direction), "float64 central differences"
    except (RuntimeError, TypeError, copy.Error):
        pass
    single = FiniteDifference(central=True)(model, replace(inner, precision="float32"), r)
    return single, "float32 central differences"


def _differences(model: nn.Module, inner: InnerStep, r: Tensors) -> Tensor:
    """Central differences in float64, at the reach that one ten times as far confirms best.

    The smallest that will do: on deep BatchNorm networks at their initial weights 1e-6 still meets kinks and curvature
    (cosine .983 on inception_v4). But a model may compute a part in float32 whatever it is given (efficientvit_mit):
    there 1e-9 is all noise, or lost to rounding altogether, and two zeros confirm nothing.
    """
    near = FiniteDifference(central=True, reach=DOUBLE_REACHES[0])(model, inner, r)
    best, confirmed = near, -math.inf
    for reach in DOUBLE_REACHES[1:]:
        far = FiniteDifference(central=True, reach=reach)(model, inner, r)
        cosine, _ = agreement(near, far)
        if cosine > confirmed and near.any():
            best, confirmed = near, cosine
        if confirmed >= CONFIRMED:
            break
        near = far
    return best


def in_double(model: nn.Module, inner: InnerStep, r: Tensors) -> tuple[nn.Module, InnerStep, Tensors]:
    """Copies of model, step and meta gradient in float64, without autocast."""
    moved = {name: getattr(inner, name).double() for name in ("images", "labels", "log_probabilities")}
    step = replace(inner, theta=_double(inner.theta), precision="float32", **moved)
    return copy.deepcopy(model).double(), step, _double(r)


def _double(tensors: Tensors) -> Tensors:
    return {name: t.double() for name, t in tensors.items()}


def agreement(found: Tensor, reference: Tensor) -> tuple[float, float]:
    """Cosine, and norm over norm. NaN for what is not finite."""
    a, b = found.double().flatten(), reference.double().flatten()
    norms = float(a.norm()), float(b.norm())
    if norms == (0.0, 0.0):
        return 1.0, 1.0
    if not all(math.isfinite(norm) and norm > 0 for norm in norms):
        return math.nan, math.nan
    return float(a @ b) / (norms[0] * norms[1]), norms[0] / norms[1]
