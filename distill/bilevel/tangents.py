"""Forward-mode rules for the layers where the time goes, in fewer passes over memory than torch's own.

torch differentiates a layer from its elementary operations: a train-mode BatchNorm takes ten passes over the
activations, attention computes a softmax's derivative by hand. The rules here use that the Jacobians of normalisation
and of softmax are symmetric, so that torch's fused *backward* kernels, given a tangent, return a tangent.

A call that a rule does not cover (a mask, dropout inside attention, running statistics) goes to torch as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F  # noqa: N812
from torch.overrides import TorchFunctionMode

aten = torch.ops.aten


class FusedTangents(TorchFunctionMode):
    """While it is active, the functions in `_RULES` differentiate themselves. Float32 and float64, no autocast."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Takes the rule of `func`, or calls it."""
        rule = _RULES.get(func)
        result = NotImplemented if rule is None else rule(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {})) if result is NotImplemented else result


def unpack(tensor: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Primal and tangent; None where there is none."""
    if tensor is None:
        return None, None
    primal, tangent = forward_ad.unpack_dual(tensor)  # type: ignore[no-untyped-call]
    return primal, tangent


def dual(primal: Tensor, tangent: Tensor | None) -> Tensor:
    """A tensor with its tangent; without one, the tensor."""
    if tangent is None:
        return primal
    made: Tensor = forward_ad.make_dual(primal, tangent)  # type: ignore[no-untyped-call]
    return made


def _plus(total: Tensor | None, term: Tensor) -> Tensor:
    """In place: every total here is fresh."""
    return term if total is None else total.add_(term)


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    """y = x W^T + b, [..., in] -> [..., out]; dy = x dW^T + db + dx W^T, the sum taken inside the matrix product."""
    (x, dx), (w, dw), (b, db) = unpack(input), unpack(weight), unpack(bias)
    assert x is not None
    assert w is not None
    if dw is None or x.dtype != w.dtype:
        return NotImplemented
    y, dy = F.linear(x, w, b), F.linear(x, dw, db)
    if dx is not None:
        dy.view(-1, dy.shape[-1]).addmm_(dx.reshape(-1, dx.shape[-1]), w.t())
    return dual(y, dy)


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    """y = gamma x^ + beta with the batch's own statistics, [B, ch, ...].

    dy = gamma s (dx - mean dx - x^ mean(x^ dx)) + dgamma x^ + dbeta, s one over the deviation. The first part is what
    the backward kernel returns for an output gradient dx, the second an eval-mode BatchNorm.
    """
    if not training or running_mean is not None or running_var is not None:
        return NotImplemented
    (x, dx), (gamma, dgamma), (beta, dbeta) = unpack(input), unpack(weight), unpack(bias)
    assert x is not None
    if (gamma is not None and gamma.dtype != x.dtype) or (dgamma is None) != (dbeta is None):
        return NotImplemented
    y, mean, s = torch.native_batch_norm(x, gamma, beta, None, None, True, momentum, eps)
    dy = None
    if dgamma is not None:
        dy, _, _ = torch.native_batch_norm(x, dgamma, dbeta, mean, s.square().reciprocal_(), False, 0.0, 0.0)
    if dx is not None:
        only_input = [True, False, False]
        moved, _, _ = aten.native_batch_norm_backward(dx, x, gamma, None, None, mean, s, True, eps, only_input)
        dy = _plus(dy, moved)
    return dual(y, dy)


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Any:
    """y = gamma x^ + beta, normalised over the last dimensions; dy = gamma s P dx + dgamma x^ + dbeta, as above."""
    (x, dx), (gamma, dgamma), (beta, dbeta) = unpack(input), unpack(weight), unpack(bias)
    if gamma is None or beta is None or dgamma is None or dbeta is None or x is None or gamma.dtype != x.dtype:
        return NotImplemented
    shape = list(normalized_shape)
    normal, mean, s = torch.native_layer_norm(x, shape, None, None, eps)
    dy = torch.addcmul(dbeta, normal, dgamma)
    if dx is not None:
        only_input = [True, False, False]
        moved, _, _ = aten.native_layer_norm_backward(dx, x, shape, mean, s, None, None, only_input)
        dy.addcmul_(moved, gamma)
    return dual(torch.addcmul(beta, normal, gamma), dy)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """softmax(c Q K^T) V, [..., L, E], [..., S, E], [..., S, D] -> [..., L, D]. The softmax's Jacobian is symmetric."""
    if attn_mask is not None or dropout_p > 0 or is_causal or enable_gqa:
        return NotImplemented
    (q, dq), (k, dk), (v, dv) = unpack(query), unpack(key), unpack(value)
    if q is None or k is None or v is None or dq is None or dk is None or dv is None:
        return NotImplemented
    if not q.shape[:-2] == k.shape[:-2] == v.shape[:-2]:
        return NotImplemented
    c = q.shape[-1] ** -0.5 if scale is None else scale
    batch = q.shape[:-2]
    (q, dq), (k, dk), (v, dv) = ((t.flatten(0, -3), d.flatten(0, -3)) for t, d in ((q, dq), (k, dk), (v, dv)))
    p = torch.softmax(torch.bmm(q, k.mT).mul_(c), dim=-1)
    ds = torch.bmm(dq, k.mT).baddbmm_(q, dk.mT, beta=c, alpha=c)
    dp = aten._softmax_backward_data(ds, p, -1, p.dtype)
    out, dout = torch.bmm(p, v), torch.bmm(dp, v).baddbmm_(p, dv)
    return dual(out.view(*batch, *out.shape[1:]), dout.view(*batch, *dout.shape[1:]))


_RULES: dict[Any, Callable[..., Any]] = {
    F.linear: linear,
    F.batch_norm: batch_norm,
    F.layer_norm: layer_norm,
    F.scaled_dot_product_attention: attention,
}
