"""The rules that learned labels are compared with, small, and each one's oracle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from distill.labels.fixed import Bootstrap, VirtualTeacher
from distill.labels.history import History
from distill.labels.online import OnlineSmoothing
from distill.labels.phases import Phases
from distill.labels.predicted import Elr, Joint, Pencil, Predicted
from distill.labels.rules import LabelRule
from distill.labels.tables import LabelTable, class_table, instance_table
from tests.labels import oracles
from tests.labels.cases import CPU, GIVEN, IMAGES, C

EPOCHS = 6
BATCHES = [[0, 1, 2], [3, 3, 4], [5, 0, 5]]  # of each epoch; image 6 is never seen, some are seen twice
Made = Callable[..., LabelRule]


def instance(mass: float, kind: str, dtype: torch.dtype, device: torch.device) -> LabelTable:
    table = instance_table(IMAGES, GIVEN, C, mass, device, "softmax" if kind == "softmax" else "projected")
    start = torch.full((len(GIVEN), C), (1 - mass) / (C - 1), dtype=torch.float64)  # in float64, as the oracles'
    start = start.scatter_(1, GIVEN.unsqueeze(1), mass)
    table.phi = (start.log() if kind == "softmax" else start).to(device, dtype)
    return table


def online(given: float, *, dtype: torch.dtype = torch.float32, device: torch.device = CPU) -> OnlineSmoothing:
    table = class_table(C, 0.5, device)
    table.phi = table.phi.to(dtype)
    return OnlineSmoothing(table, History(table.phi), given=given)


def fixed(make: Callable[[], LabelRule]) -> Made:
    return lambda **_: make()


def predicted(
    rule: type[Predicted],
    *,
    warmup: int = 0,
    freeze: int = 0,
    mass: float = 0.5,
    dtype: torch.dtype = torch.float32,
    device: torch.device = CPU,
    average: int = 1,
    **own: Any,
) -> Predicted:
    table = instance(mass, "softmax" if rule is Pencil else "projected", dtype, device)
    phases = Phases(EPOCHS, warmup_epochs=warmup, freeze_epochs=freeze)
    return rule(table, phases, History(table.phi, average_epochs=average), **own)


def _rows(rule: type[Predicted], **settings: Any) -> Made:
    return lambda **where: predicted(rule, **settings, **where)


Case = tuple[Made, Callable[[], oracles.Oracle]]
_NUMPY = GIVEN.numpy()
CASES: dict[str, Case] = {}

for _share in (0.0, 0.5, 0.7):
    CASES[f"online {_share}"] = (
        lambda share=_share, **where: online(share, **where),
        lambda share=_share: oracles.OnlineSmoothing(_NUMPY, C, share),
    )
for _settings in ((0.99, 20.0, 0.9), (0.9, 1.0, 0.5), (0.6, 3.0, 1.0)):
    CASES[f"tf-kd {_settings}"] = (
        fixed(lambda s=_settings: VirtualTeacher(C, mass=s[0], temperature=s[1], weight=s[2])),
        lambda s=_settings: oracles.VirtualTeacher(_NUMPY, C, *s),
    )
for _target, _beta in (("hard", 0.8), ("soft", 0.95), ("hard", 0.3), ("soft", 0.0)):
    for _warmup in (0, 2):
        CASES[f"bootstrap {_target} {_beta} {_warmup}"] = (
            fixed(lambda t=_target, b=_beta, w=_warmup: Bootstrap(C, Phases(9, warmup_epochs=w), target=t, given=b)),
            lambda t=_target, b=_beta, w=_warmup: oracles.Bootstrap(_NUMPY, C, t, b, w),
        )
for _warmup, _freeze, _window in (
    *((0, 0, 1), (0, 0, 2), (0, 0, 4), (0, 0, 10), (1, 0, 3), (2, 1, 2), (3, 1, 3), (3, 2, 5)),
    *((4, 0, 2), (5, 0, 3), (2, 3, 1), (0, 6, 3)),
):
    _own: dict[str, Any] = {"balance": 1.2, "entropy": 0.8, "window": _window, "warmup": _warmup, "freeze": _freeze}
    CASES[f"joint {_warmup} {_freeze} {_window}"] = (
        _rows(Joint, **_own),
        lambda own=_own: oracles.Joint(_NUMPY, C, epochs=EPOCHS, **own),
    )
for _warmup, _freeze, _alpha in ((0, 0, 0.1), (2, 1, 0.3), (1, 3, 0.0)):
    _step = 0.7
    CASES[f"pencil {_warmup} {_freeze} {_alpha}"] = (
        _rows(Pencil, warmup=_warmup, freeze=_freeze, mass=0.9, step=_step, compatibility=_alpha * C, entropy=0.4),
        lambda w=_warmup, f=_freeze, alpha=_alpha, step=_step: oracles.Pencil(
            _NUMPY,
            C,
            mass=0.9,
            alpha=alpha,
            beta=0.4,
            lambda_of=lambda size: step * size * C,
            epochs=EPOCHS,
            warmup=w,
            freeze=f,
        ),
    )
for _weight, _decay in ((3.0, 0.7), (1.0, 0.0), (7.0, 0.9)):
    CASES[f"elr {_weight} {_decay}"] = (
        _rows(Elr, weight=_weight, decay=_decay),
        lambda w=_weight, d=_decay: oracles.Elr(_NUMPY, C, w, d),
    )

SMALL = [
    *("online 0.5", "tf-kd (0.99, 20.0, 0.9)", "bootstrap hard 0.8 2", "bootstrap soft 0.95 2", "joint 2 1 2"),
    *("joint 0 0 10", "pencil 2 1 0.3", "elr 3.0 0.7"),
]
"""One of each sort, with a warm-up and a freeze where the rule has them."""
