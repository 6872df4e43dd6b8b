"""Flows of an autoencoder's factors: Oja's, the tied one, and the untied one of two layers."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from deeplin.flows.contract import Flow

__all__ = ["CoupledAutoencoderFlow", "OjaFlow", "RiccatiFlow"]

Single = tuple[Tensor]


class OjaFlow(Flow):
    """V̇ = (I − VVᵀ)CV: principal components as a flow.

    Conserved: VᵀV, if V(0)ᵀV(0) = I; the range of V meets every invariant subspace of C in the
    same dimension at all times.
    Source: BRTW §5, after Yan, Helmke, Moore 1994; closed form `deeplin.exact.oja`.
    Shapes: C (d, d) symmetric; a state is the tuple of one V (*batch, d, r).
    Cost: O(d²r).
    Raises: ValueError if C is not square or a state does not fit it.
    """

    def __init__(self, C: Float[Tensor, "d d"]):
        if C.ndim != 2 or C.shape[0] != C.shape[1]:
            raise ValueError(
                f"{type(self).__name__}(C) needs a square matrix C = XXᵀ; got shape "
                f"{tuple(C.shape)}."
            )
        self.C = C

    def init_state(self, V: Float[Tensor, "*batch d r"]) -> Single:
        """The state V; copied."""
        if V.ndim < 2 or V.shape[-2] != len(self.C):
            raise ValueError(
                f"V must be (*batch, d, r) with d = {len(self.C)}; got {tuple(V.shape)}."
            )
        return (V.detach().clone(),)

    def velocity(self, t: float, y: Single) -> Single:
        """(V̇,); autonomous."""
        (V,) = y
        CV = self.C @ V
        return (CV - V @ (V.mT @ CV),)

    def end_to_end(self, y: Single) -> Float[Tensor, "*batch d d"]:
        """VVᵀ."""
        return y[0] @ y[0].mT

    def gradient_norm(self, y: Single) -> Float[Tensor, "*batch"]:
        """‖V̇‖_F."""
        return torch.linalg.matrix_norm(self.velocity(0.0, y)[0])

    def conserved(self, y: Single) -> dict[str, Tensor]:
        """VᵀV, constant for orthonormal starts."""
        return {"VtV": y[0].mT @ y[0]}

    def curvature(self, y: Single) -> float:
        """2λ_1(C)·max(1, ‖V‖²): the rate at which the norm of V settles."""
        size = float(torch.linalg.matrix_norm(y[0], 2).amax()) ** 2
        return 2 * max(1.0, size) * float(torch.linalg.eigvalsh(self.C)[-1])


class CoupledAutoencoderFlow(OjaFlow):
    """V̇ = (I − VVᵀ)CV + C(I − VVᵀ)V, minus the gradient of E(V) = ½‖X − VVᵀX‖_F².

    Equals Oja's flow for V(0)ᵀV(0) = I, where the second term is 0. That keeps W_2 = W_1ᵀ = V by
    force; the untied flow, `RiccatiFlow`, leaves it at once and regains it in the limit.

    Conserved: VᵀV, if V(0)ᵀV(0) = I.
    Source: BRTW (25), (26), Prop. 21.
    Shapes, Cost, Raises: those of `OjaFlow`.
    """

    def velocity(self, t: float, y: Single) -> Single:
        """(V̇,); autonomous."""
        (V,) = y
        CV = self.C @ V
        return (2 * CV - V @ (V.mT @ CV) - CV @ (V.mT @ V),)

    def curvature(self, y: Single) -> float:
        """4λ_1(C)·max(1, ‖V‖²): both terms settle the norm of V."""
        return 2 * super().curvature(y)


class RiccatiFlow(OjaFlow):
    """V̇ = (I + D_1VVᵀE_1 + D_2VVᵀE_2)FV for V = (W_1ᵀ; W_2), the two-layer autoencoder.

    With D_1 = [[−C, 0], [0, 0]], E_1 = [[0, 0], [C^{-1}, 0]], D_2 = [[0, 0], [0, −I]],
    E_2 = [[0, I], [0, 0]], F = [[0, C], [C, 0]]. For W_1 and W_2 this is (48), and it is computed
    in the form in which C^{-1}C has cancelled, which needs no inverse:
    Ẇ_1ᵀ = CW_2 − CW_1ᵀ(W_2ᵀW_2),  Ẇ_2 = CW_1ᵀ − W_2(W_1CW_1ᵀ).

    Conserved: W_2ᵀW_2 − W_1W_1ᵀ.
    Source: BRTW (53), Remark 50; (48).
    Shapes: C (d, d); a state is the tuple of one V (*batch, 2d, r).
    Cost: O(d²r).
    """

    def init_state(self, V: Float[Tensor, "*batch d2 r"]) -> Single:
        """The state V = (W_1ᵀ; W_2); copied."""
        if V.ndim < 2 or V.shape[-2] != 2 * len(self.C):
            raise ValueError(
                "V = (W_1ᵀ; W_2) must be (*batch, 2d, r) with 2d = "
                f"{2 * len(self.C)}; got {tuple(V.shape)}: stack W1.mT and W2 along dim -2."
            )
        return (V.detach().clone(),)

    def _halves(self, y: Single) -> tuple[Tensor, Tensor]:
        d = len(self.C)
        return y[0][..., :d, :], y[0][..., d:, :]

    def velocity(self, t: float, y: Single) -> Single:
        """(V̇,); autonomous."""
        W1t, W2 = self._halves(y)
        CW1t, CW2 = self.C @ W1t, self.C @ W2
        upper = CW2 - CW1t @ (W2.mT @ W2)
        return (torch.cat([upper, CW1t - W2 @ (W1t.mT @ CW1t)], dim=-2),)

    def end_to_end(self, y: Single) -> Float[Tensor, "*batch d d"]:
        """W = W_2W_1."""
        W1t, W2 = self._halves(y)
        return W2 @ W1t.mT

    def conserved(self, y: Single) -> dict[str, Tensor]:
        """W_2ᵀW_2 − W_1W_1ᵀ."""
        W1t, W2 = self._halves(y)
        return {"W2tW2 - W1W1t": W2.mT @ W2 - W1t.mT @ W1t}
