"""The estimators by name, cheapest first where there is a choice."""

from __future__ import annotations

from dataclasses import replace

from distill.bilevel.contract import Estimator
from distill.bilevel.finite_difference import FiniteDifference
from distill.bilevel.forward_mode import ForwardMode
from distill.bilevel.last_layer import LastLayer
from distill.bilevel.unrolled import Unrolled

ESTIMATORS: dict[str, Estimator] = {
    "one-sided": FiniteDifference(),
    "central": FiniteDifference(central=True),
    "forward-mode": ForwardMode(),
    "unrolled": Unrolled(),
    "last-layer": LastLayer(),
}
APPROXIMATIONS = frozenset({"last-layer"})  # taken when asked for, whatever the cosine, which is told
EXACT = frozenset({"forward-mode", "unrolled"})  # but for rounding
# What "auto" tries. In half precision one-sided differences drown in rounding (cosine .3 in bfloat16); central ones are
# made in float32, and cost less than a dual pass (resnet8 on a CPU).
ORDER = {
    "float32": ("one-sided", "central", "forward-mode", "unrolled"),
    "bfloat16": ("central", "forward-mode", "unrolled"),
    "float16": ("central", "forward-mode", "unrolled"),
}
# Far enough for rounding to be small beside the difference, near enough for kinks and curvature. Which is best depends
# on the network and on how long it has trained, so the probe tries them.
REACHES = (3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5, 3e-6)


def variants(name: str) -> list[Estimator]:
    """The forms of an estimator that the probe chooses from."""
    estimator = ESTIMATORS[name]
    if isinstance(estimator, FiniteDifference):
        return [replace(estimator, reach=reach) for reach in REACHES]
    return [estimator]


def described(estimator: Estimator) -> str:
    """Name, and reach where there is one."""
    reach = f" (reach {estimator.reach:g})" if isinstance(estimator, FiniteDifference) else ""
    return estimator.name + reach


def state_of(estimator: Estimator) -> dict[str, str | float]:
    """For a resume state."""
    reach = estimator.reach if isinstance(estimator, FiniteDifference) else 0.0
    return {"name": estimator.name, "reach": reach}


def from_state(state: dict[str, str | float]) -> Estimator:
    """The inverse of `state_of`."""
    estimator = ESTIMATORS[str(state["name"])]
    if isinstance(estimator, FiniteDifference):
        return replace(estimator, reach=float(state["reach"]))
    return estimator
