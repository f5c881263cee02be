"""int8: 255 levels between a row's smallest and largest logit.

    z = centre + scale * code,    code = round((z - centre) / scale) in -127 ... 127
    centre = (max z + min z) / 2,    scale = (max z - min z) / 254

The error is at most scale / 2, a 508th of the row's range, and a few units in the last place of float32 on top.
`centre` is the zero point. It takes four bytes a row, and pays for them: without it the range would be twice the
largest magnitude, and trained logits lie lopsided, one large and the rest a little below 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

LEVELS = 127
# Beyond this, centre + scale * code could overflow float32 by rounding.
LIMIT = 2.0**127


def encode(logits: Tensor) -> dict[str, Tensor]:
    """Logits [R, C], finite, up to 2^127 -> `codes` int8 [R, C], `centre` and `scale` float32 [R], on the CPU."""
    z = logits.detach().to("cpu", torch.float64)
    low, high = z.aminmax(dim=-1)
    centre, scale = ((low + high) / 2).float(), ((high - low) / (2 * LEVELS)).float()
    # Codes are nearest to the values as `decode` will see centre and scale: rounded to float32.
    step = torch.where(scale > 0, scale.double(), torch.inf)
    codes = ((z - centre.double().unsqueeze(-1)) / step.unsqueeze(-1)).round_().clamp_(-LEVELS, LEVELS)
    return {"codes": codes.to(torch.int8), "centre": centre, "scale": scale}


def decode(parts: dict[str, Tensor]) -> Tensor:
    """The inverse of `encode`, but for the error: float32 [R, C]."""
    return torch.addcmul(parts["centre"].unsqueeze(-1), parts["codes"].float(), parts["scale"].unsqueeze(-1))


def problem(parts: dict[str, Tensor]) -> str:
    """Why no `encode` has made these, or ""."""
    centre, scale = parts["centre"], parts["scale"]
    # Written so that NaN, which is neither above nor below anything, counts as a problem.
    if not bool(((scale >= 0) & (centre.abs() + LEVELS * scale <= 1.001 * LIMIT)).all()):
        return "holds a scale or a centre that is NaN, infinite or negative"
    return "holds a code of -128, which is never written" if int(parts["codes"].amin()) < -LEVELS else ""


def bound(logits: Tensor) -> Tensor:
    """The largest error that storing may make: float64 [R, C] -> float64 [R]."""
    low, high = logits.aminmax(dim=-1)
    return (high - low) / (4 * LEVELS) + 2.0**-22 * torch.maximum(high.abs(), low.abs()) + 2.0**-126


def excess(parts: dict[str, Tensor], logits: Tensor, slack: Tensor) -> Tensor:
    """How far what is stored lies beyond the error bound from logits that were made again; see `plain.excess`."""
    logits = logits.double()
    off = (decode(parts).double() - logits).abs().amax(-1)
    return off - bound(logits) - slack
