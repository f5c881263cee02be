"""What the parts of the bilevel step promise each other.

Inner step: theta' = optimiser(theta, g), g the gradient of the mean soft cross-entropy of a batch x [B] with labels
y [B, C]. Outer objective: L_meta(theta'), the cross-entropy of another batch with its given labels. Wanted: dL_meta/dy.
Cross-entropy is linear in y, so without approximation and without a second-order graph

    dL_meta/dy[i, c] = -(1/B) * < grad_theta log p(c | x_i; theta), v >,    v = (d theta'/d g)^T grad L_meta(theta').

An estimator is one way to take that directional derivative. Its laws, by their numbers in
`tests/bilevel/test_contract.py`, in float64 unless said otherwise:

1. An exact estimator equals `unrolled` to rounding, through every optimiser with a rule, at the first step and later,
   with groups and clipping, and so do the labels that whole steps learn with it; a finite difference does to its error.
2. `unrolled` equals differences of the real meta loss, through torch's own optimiser, in labels and in table rows.
3. A finite difference's error falls with its order in the step.
4. `last-layer` equals `unrolled` when only the classifier trains; else it is an approximation.
5. Parameters, gradients, buffers, optimiser, generators and flags are bit-identical afterwards, also when it raises.
6. Buffers change in the training forward only, and with label step 0 training is the plain loop, to the bit.
7. An image's row gets the sum over its views, a class's row the mean over its images, no other row is written; renamed
   classes give renamed labels. A mixed image's derivative goes to both rows, in its shares (`test_mixing.py`).
8. A zero meta gradient gives zero. A missing tangent, eval mode or an unknown optimiser is an error, never a zero.
9. The derivative is linear in the meta gradient, and blind to the labels that it is taken at (SGD); the probabilities
   weigh it to zero; it comes in the order of the images.
10. `higher` and `torchopt` agree (`tests/bilevel/test_peers.py`).
11. In float32, and the exact ones in bfloat16 too, it stays close to float64.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor, nn

from distill.bilevel.lookahead import LookAhead

Tensors = dict[str, Tensor]  # by parameter name


@dataclass(frozen=True)
class InnerStep:
    """What one training step leaves behind, so that its labels can be judged afterwards."""

    theta: Tensors  # the parameters *before* the step, detached copies; the Jacobian must be taken here
    look_ahead: LookAhead  # how the step depends on the gradient
    images: Tensor  # [B, ch, H, W]
    labels: Tensor  # y, [B, C], as trained on
    log_probabilities: Tensor  # log softmax of the training forward, detached, [B, C]
    seed: int  # of the training forward, so that dropout's masks can be drawn again
    precision: str  # of the training forward: "float32", or "bfloat16" and "float16" for autocast
    buffers: Tensors = field(default_factory=dict)  # those that the training forward moved, as they were before it
    features: Tensor | None = None  # what the classifier saw in the training forward, [B, D], if the estimator asks


class Estimator(Protocol):
    """One way to take dL_meta/dy."""

    @property
    def name(self) -> str:
        """As a recipe names it."""
        ...

    @property
    def needs_state(self) -> bool:
        """Whether the look-ahead must keep the optimiser's buffers."""
        ...

    @property
    def needs_features(self) -> bool:
        """Whether the training forward must keep what the classifier saw."""
        ...

    def __call__(self, model: nn.Module, inner: InnerStep, meta_gradient: Tensors) -> Tensor:
        """dL_meta/dy [B, C], given the meta gradient at theta', by parameter name.

        Raises:
            BilevelError: this model or optimiser cannot be differentiated this way.
        """
        ...
