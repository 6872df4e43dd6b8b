"""Flows of an autoencoder's factors: Oja's, the tied one, and the untied one of two layers."""

from __future__ import annotations

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from deeplin.flows.contract import Flow, Start, State
from deeplin.flows.starts import start_layers

__all__ = ["CoupledAutoencoderFlow", "OjaFlow", "RiccatiFlow"]

Single = tuple[Tensor]


class OjaFlow(Flow):
    """V̇ = (I − VVᴴ)CV: principal components as a flow.

    Conserved: VᴴV, if V(0)ᴴV(0) = I; the range of V meets every invariant subspace of C in the
    same dimension at all times.
    Source: BRTW §5, after [YHM94]; closed form `deeplin.exact.oja`.
    Shapes: C (d, d) Hermitian; a state is the tuple of one V (*batch, d, r).
    Cost: O(d²r).
    Raises: ValueError if C is not square or a state does not fit it.
    """

    autonomous = True

    def __init__(self, C: Inexact[Tensor, "d d"]):
        if C.ndim != 2 or C.shape[0] != C.shape[1]:
            raise ValueError(
                f"{type(self).__name__}(C) needs a square matrix C = XXᴴ; got shape "
                f"{tuple(C.shape)}."
            )
        self.C = C

    def init_state(self, start: Start, rank: int | None = None) -> Single:
        """The state V, or that of two tied layers, V = W_2 = W_1ᴴ; copied.

        Raises: ValueError if V does not fit C or is not of the given rank, or layers are not tied.
        """
        if not isinstance(start, Tensor):
            start = self._of_layers(*self._two_layers(start))
        return self._state(start, rank, "d", len(self.C))

    def _two_layers(self, start: Start) -> tuple[Tensor, Tensor]:
        layers = start_layers(start, type(self).__name__)
        if len(layers) != 2:
            raise ValueError(
                f"{type(self).__name__} is the flow of an autoencoder of two layers; got "
                f"{len(layers)}: give a network of depth 2, or V."
            )
        return layers[0], layers[1]

    def _of_layers(self, W_1: Tensor, W_2: Tensor) -> Tensor:
        """V = W_2."""
        tied = W_1.shape == W_2.mH.shape
        if not tied or float((W_2 - W_1.mH).abs().max()) > 1e-12 * float(W_2.abs().max()):
            raise ValueError(
                f"{type(self).__name__} needs tied layers, W_2 = W_1ᴴ; got others: start from "
                "deeplin.init.orthogonal_balanced_(net, tied=True), or take RiccatiFlow."
            )
        return W_2

    def _state(self, V: Tensor, rank: int | None, name: str, rows: int) -> Single:
        if V.ndim < 2 or V.shape[-2] != rows:
            raise ValueError(
                f"V must be (*batch, {name}, r) with {name} = {rows}; got {tuple(V.shape)}"
                f"{': stack W1.mH and W2 along dim -2.' if name == '2d' else '.'}"
            )
        if rank not in (None, V.shape[-1]):
            raise ValueError(f"a V of {V.shape[-1]} columns has not rank={rank}: leave it out.")
        return (V.detach().clone(),)

    def velocity(self, t: float | Tensor, y: State) -> Single:
        """(V̇,); autonomous."""
        (V,) = y
        CV = self.C @ V
        return (CV - V @ (V.mH @ CV),)

    def end_to_end(self, y: State) -> Inexact[Tensor, "*batch d d"]:
        """VVᴴ."""
        return y[0] @ y[0].mH

    def gradient_norm(self, y: State) -> Float[Tensor, "*batch"]:
        """‖V̇‖_F."""
        return torch.linalg.matrix_norm(self.velocity(0.0, y)[0])

    def conserved(self, y: State) -> dict[str, Tensor]:
        """VᴴV, constant for orthonormal starts."""
        return {"VtV": y[0].mH @ y[0]}

    def curvature(self, y: State) -> float:
        """2λ_1(C)·max(1, ‖V‖²): the rate at which the norm of V settles."""
        size = float(torch.linalg.matrix_norm(y[0], 2).amax()) ** 2
        return 2 * max(1.0, size) * float(torch.linalg.eigvalsh(self.C)[-1])


class CoupledAutoencoderFlow(OjaFlow):
    """V̇ = (I − VVᴴ)CV + C(I − VVᴴ)V, minus the gradient of E(V) = ½‖X − VVᴴX‖_F².

    Equals Oja's flow for V(0)ᴴV(0) = I, where the second term is 0. That keeps W_2 = W_1ᴴ = V by
    force; the untied flow, `RiccatiFlow`, leaves it at once and regains it in the limit.

    Conserved: VᴴV, if V(0)ᴴV(0) = I.
    Source: BRTW (25), BRTW (26), BRTW Remark 21.
    Shapes, Cost, Raises: those of `OjaFlow`.
    """

    def velocity(self, t: float | Tensor, y: State) -> Single:
        """(V̇,); autonomous."""
        (V,) = y
        CV = self.C @ V
        return (2 * CV - V @ (V.mH @ CV) - CV @ (V.mH @ V),)

    def curvature(self, y: State) -> float:
        """4λ_1(C)·max(1, ‖V‖²): both terms settle the norm of V."""
        return 2 * super().curvature(y)


class RiccatiFlow(OjaFlow):
    """V̇ = (I + D_1VVᴴE_1 + D_2VVᴴE_2)FV for V = (W_1ᴴ; W_2), the two-layer autoencoder.

    With D_1 = [[−C, 0], [0, 0]], E_1 = [[0, 0], [C^{-1}, 0]], D_2 = [[0, 0], [0, −I]],
    E_2 = [[0, I], [0, 0]], F = [[0, C], [C, 0]]. For W_1 and W_2 this is (48), and it is computed
    in the form in which C^{-1}C has cancelled, which needs no inverse:
    Ẇ_1ᴴ = CW_2 − CW_1ᴴ(W_2ᴴW_2),  Ẇ_2 = CW_1ᴴ − W_2(W_1CW_1ᴴ).

    Conserved: W_2ᴴW_2 − W_1W_1ᴴ.
    Source: BRTW (53), BRTW Remark 50; BRTW (48).
    Shapes: C (d, d); a state is the tuple of one V (*batch, 2d, r).
    Cost: O(d²r).
    """

    def init_state(self, start: Start, rank: int | None = None) -> Single:
        """The state V = (W_1ᴴ; W_2), given so or as two layers; copied."""
        if not isinstance(start, Tensor):
            W_1, W_2 = self._two_layers(start)
            start = torch.cat([W_1.mH, W_2], -2)
        return self._state(start, rank, "2d", 2 * len(self.C))

    def _halves(self, y: State) -> tuple[Tensor, Tensor]:
        d = len(self.C)
        return y[0][..., :d, :], y[0][..., d:, :]

    def velocity(self, t: float | Tensor, y: State) -> Single:
        """(V̇,); autonomous."""
        W1t, W2 = self._halves(y)
        CW1t, CW2 = self.C @ W1t, self.C @ W2
        upper = CW2 - CW1t @ (W2.mH @ W2)
        return (torch.cat([upper, CW1t - W2 @ (W1t.mH @ CW1t)], dim=-2),)

    def end_to_end(self, y: State) -> Inexact[Tensor, "*batch d d"]:
        """W = W_2W_1."""
        W1t, W2 = self._halves(y)
        return W2 @ W1t.mH

    def conserved(self, y: State) -> dict[str, Tensor]:
        """W_2ᴴW_2 − W_1W_1ᴴ."""
        W1t, W2 = self._halves(y)
        return {"W2tW2 - W1W1t": W2.mH @ W2 - W1t.mH @ W1t}
