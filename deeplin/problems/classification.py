"""Multinomial logistic regression: classes of samples from a linear map of them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from deeplin.linalg import matmul
from deeplin.problems.contract import Problem

__all__ = ["LogisticRegression"]


class LogisticRegression(Problem):
    """f(W) = (1/m)Σ_i [log Σ_c exp (Wx_i)_c − (Wx_i)_{label_i}], the mean cross entropy.

    Not strongly convex: f does not change where all rows of W move by one vector, and where the
    classes are separable it has no minimizer but an infimum 0, with ‖W‖ → ∞.

    Shapes: x (m, d), a sample per row; labels (m,), integers 0..classes−1; W (*batch, classes, d).
        `classes` is by default the largest label plus one.
    Cost: O(m d classes) for a loss or a gradient, O(m k (d + classes)) for a factor pair of k
        columns: unlike the quadratic losses every step visits all m samples.
    Raises: TypeError for labels that are no integers or x that is no real floating-point tensor;
        ValueError for shapes that do not fit, labels outside 0..classes−1 or x not finite.

    >>> problem = LogisticRegression(torch.eye(3), torch.tensor([0, 1, 1]))
    >>> problem.shape
    (2, 3)
    >>> problem.loss(torch.zeros(2, 3))  # log 2
    tensor(0.6931)
    """

    def __init__(
        self, x: Float[Tensor, "m d"], labels: Int[Tensor, " m"], *, classes: int | None = None
    ):
        if not isinstance(x, Tensor) or not x.is_floating_point():
            given = f"dtype {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(
                f"LogisticRegression: x must be a real floating-point tensor; got {given}: convert "
                "it with torch.as_tensor(x, dtype=torch.float64)."
            )
        labels = torch.as_tensor(labels, device=x.device)
        if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
            raise TypeError(
                f"LogisticRegression: labels must be integers 0, 1, …; got dtype {labels.dtype}: "
                "number the classes with labels.unique(return_inverse=True)[1]."
            )
        if x.ndim != 2 or 0 in x.shape or labels.shape != x.shape[:1]:
            raise ValueError(
                "LogisticRegression(x, labels) needs x (m, d), a sample per row, and one label per "
                f"sample; got shapes {tuple(x.shape)} and {tuple(labels.shape)}."
            )
        if not bool(torch.isfinite(x).all()):
            raise ValueError("LogisticRegression: x must be finite; it holds NaN or ±inf.")
        low, high = int(labels.min()), int(labels.max())
        classes = high + 1 if classes is None else classes
        if low < 0 or high >= classes:
            raise ValueError(
                f"LogisticRegression: labels must lie in 0..{classes - 1}; got values in "
                f"{low}..{high}: number the classes with labels.unique(return_inverse=True)[1]."
            )
        self.x, self.labels = x, labels.long()
        self.shape = (classes, x.shape[1])

    # Logits are (*batch, m, classes), a sample per row.

    def _logits(self, W: Tensor) -> Tensor:
        return matmul(self.x, W.mT)

    def _pair_logits(self, A: Tensor, B: Tensor) -> Tensor:
        (m, d), c, k = self.x.shape, A.shape[-2], A.shape[-1]
        if m * k * (d + c) > c * d * (k + m):
            return self._logits(A @ B.mT)
        return matmul(self.x, B) @ A.mT

    def _cross_entropy(self, logits: Tensor) -> Tensor:
        labels = self.labels[:, None].expand(*logits.shape[:-1], 1)
        return (logits.logsumexp(-1) - logits.gather(-1, labels)[..., 0]).mean(-1)

    def _slopes(self, logits: Tensor) -> Tensor:
        """The gradient of f by the logits: (probabilities − those of the labels)/m."""
        truth = torch.nn.functional.one_hot(self.labels, self.shape[0])
        return (logits.softmax(-1) - truth) / len(self.labels)

    def loss(self, W: Float[Tensor, "*#batch c d"]) -> Float[Tensor, "*#batch"]:
        """The mean cross entropy of the samples."""
        return self._cross_entropy(self._logits(W))

    def egrad(self, W: Float[Tensor, "*#batch c d"]) -> Float[Tensor, "*#batch c d"]:
        """∇f(W) = Rᵀx, R (m, classes) the probabilities minus those of the labels, over m."""
        return self._slopes(self._logits(W)).mT @ self.x

    def pair_loss(
        self, A: Float[Tensor, "*#batch c k"], B: Float[Tensor, "*#batch d k"]
    ) -> Float[Tensor, "*#batch"]:
        """f(ABᵀ); where k is small, without forming ABᵀ."""
        return self._cross_entropy(self._pair_logits(A, B))

    def egrad_times(
        self, A: Tensor, B: Tensor, P: Tensor, Q: Tensor
    ) -> tuple[Float[Tensor, "*#batch c p"], Float[Tensor, "*#batch d q"]]:
        """(GP, GᵀQ) of G = ∇f(ABᵀ) = Rᵀx as Rᵀ(xP) and xᵀ(RQ).

        Shapes: A (*batch, classes, k), B (*batch, d, k), P (*batch, d, p), Q (*batch, classes, q).
        """
        R = self._slopes(self._pair_logits(A, B))
        return R.mT @ matmul(self.x, P), matmul(self.x.mT, R @ Q)

    def hessian_times(
        self, A: Tensor, B: Tensor, left: Tensor, right: Tensor, P: Tensor, Q: Tensor
    ) -> tuple[Float[Tensor, "*#batch c p"], Float[Tensor, "*#batch d q"]]:
        """(HP, HᵀQ) of H = (dR)ᵀx, dR = (p∘z − p⟨p, z⟩)/m by rows, z the logits of left·rightᵀ."""
        p, z = self._pair_logits(A, B).softmax(-1), self._pair_logits(left, right)
        dR = p * (z - (p * z).sum(-1, keepdim=True)) / len(self.labels)
        return dR.mT @ matmul(self.x, P), matmul(self.x.mT, dR @ Q)

    @cached_property
    def _bound(self) -> float:
        return float(torch.linalg.matrix_norm(self.x, 2).square()) / (2 * len(self.labels))

    def curvature(self, W: Float[Tensor, "*#batch c d"]) -> float:
        """½λ_1(xᵀx)/m, an upper bound of the curvature at every W. Computed once.

        diag(p) − ppᵀ is at most ½ for all probabilities p, and is ½ at two equal ones. A bound and
        not the curvature at W, because that grows along the way and a step must not.

        Source: Böhning 1992. Cost: the singular values of x, once.
        """
        return self._bound

    def pair_curvature(self, A: Tensor, B: Tensor) -> float:
        """½λ_1(xᵀx)/m, as `curvature`."""
        return self._bound

    def report(self, W: Float[Tensor, "*#batch c d"]) -> Mapping[str, Float[Tensor, "*#batch"]]:
        """The accuracy: the share of samples whose largest logit is that of their label."""
        right = self._logits(W).argmax(-1) == self.labels
        return {"accuracy": right.to(W.dtype).mean(-1)}
