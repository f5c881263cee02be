"""top-k: a row's k largest logits with their classes, and how much there is besides.

    values float16 [R, k], classes [R, k] ascending, tail = log sum exp(z_c) over the other C - k classes, float32 [R]

Of equal logits the lower class is kept. What `decode` gives is a *reconstruction*: the tail is spread evenly, so
softmax at temperature 1 is right for the kept classes and for the rest taken together, and for no other temperature.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from distill.store.formats import plain
from distill.store.formats.layout import class_dtype

LIMIT = torch.finfo(torch.float16).max


def encode(logits: Tensor, k: int) -> dict[str, Tensor]:
    """Logits [R, C], finite, up to 65504; 1 <= k <= C -> `values`, `classes` and `tail`, on the CPU."""
    z = logits.detach().to("cpu")
    z = z.float() if z.itemsize < 4 else z
    # torch.topk leaves open which of several equal logits it takes, so only its threshold is used.
    threshold = z.topk(k, dim=-1).values[:, -1:]
    above, equal = z > threshold, z == threshold
    kept = above | (equal & (equal.cumsum(-1) <= k - above.sum(-1, keepdim=True)))
    classes = kept.nonzero()[:, 1].view(-1, k)
    tail = z.double().masked_fill(kept, -torch.inf).logsumexp(-1)
    dtype = getattr(torch, class_dtype(z.shape[1]))
    return {"values": z.gather(1, classes).half(), "classes": classes.to(dtype), "tail": tail.float()}


def decode(parts: dict[str, Tensor], classes: int) -> Tensor:
    """The reconstruction, float32 [R, C]: kept logits where they were kept, elsewhere tail - log(C - k)."""
    k = parts["values"].shape[1]
    even = parts["tail"] - math.log(max(1, classes - k))
    logits = even.unsqueeze(-1).repeat(1, classes)
    return logits.scatter_(1, parts["classes"].long(), parts["values"].float())


def problem(parts: dict[str, Tensor], classes: int) -> str:
    """Why no `encode` has made these, or ""."""
    values, kept, tail = parts["values"].float(), parts["classes"].long(), parts["tail"]
    k = values.shape[1]
    if not bool(values.isfinite().all()):
        return "holds values that are NaN or infinite"
    if int(kept.amin()) < 0 or int(kept.amax()) >= classes or not bool((kept.diff(dim=-1) > 0).all()):
        return f"holds classes outside 0 to {classes - 1}, or not in ascending order"
    if k == classes:
        return "" if bool((tail == -torch.inf).all()) else "holds a tail though every class is kept"
    # The others are at most as large as the smallest that was kept, which was rounded to float16.
    smallest = values.amin(-1)
    most = smallest + 2.0**-10 * smallest.abs() + 1e-3 + math.log(classes - k)
    if not bool((tail.isfinite() & (tail <= most)).all()):
        return "holds a tail that is NaN, infinite, or more than the kept values leave room for"
    return ""


def excess(parts: dict[str, Tensor], logits: Tensor, slack: Tensor, classes: int) -> Tensor:
    """How far what is stored lies beyond the error bound from logits that were made again; see `plain.excess`.

    Kept values have to agree, no other class may be clearly larger than a kept one, and the tails have to agree.
    """
    logits = logits.double()
    places = parts["classes"].long()
    again = logits.gather(1, places)
    values = (parts["values"].double() - again).abs() - plain.bound(again, "float16")
    rest = logits.scatter(1, places, -torch.inf)
    choice = rest.amax(-1) - again.amin(-1) - slack
    stored, tail = parts["tail"].double(), rest.logsumexp(-1)
    # Written so that two empty tails agree.
    off = torch.where(stored == tail, 0.0, (stored - tail).abs() - 2.0**-22 * (tail.abs() + 1))
    return torch.stack([values.amax(-1), choice, off]).amax(0) - slack
