"""Initial values of a network that need more than the network: the problem, a file, a matrix.

A start is a function of those of `net`, `problem` and `generator` that it names, and of the
options of its file in conf/init.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from deeplin.landscape import fan_around, neighbours_of, spurious_point
from deeplin.network import DeepLinear, init
from deeplin.problems import LeastSquares, alternating_start
from deeplin.problems.contract import Problem
from deeplin.problems.readers import read_matrices

__all__ = ["balanced", "orthogonal", "special", "spectral", "spurious"]


def orthogonal(
    net: DeepLinear,
    problem: Problem,
    generator: torch.Generator,
    *,
    scale: float = 1.0,
    tied: bool | Literal["auto"] = "auto",
    rank: int | None = None,
) -> None:
    """W(0) = scale U_NU_0ᵀ; tied=auto ties the ends for an autoencoder. Source: BRTW §7.1.1."""
    if isinstance(tied, str):
        tied = isinstance(problem, LeastSquares) and problem.is_autoencoder
    init.orthogonal_balanced_(net, scale=scale, tied=tied, rank=rank, generator=generator)


def balanced(
    net: DeepLinear,
    generator: torch.Generator,
    *,
    matrix: Sequence[Sequence[float]] | None = None,
    path: str | None = None,
    scale: float = 1.0,
    psd: bool = False,
    rotate: bool = False,
) -> None:
    """Balanced layers of W(0): as given, of a file, or a product of Gaussian factors.

    A `matrix` can be a list of matrices, one for each repeat.
    That product has the spectral norm `scale`; with `psd` its two factors are equal, and it is
    positive semidefinite.
    """
    dtype = net.weights[0].dtype
    if matrix is not None:
        try:
            W = torch.tensor(_numbers(matrix), dtype=dtype)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"init.matrix must be a list of rows of numbers; got {matrix}: for instance "
                "init.matrix=[[1,0],[0,2]], or [[1,2j],[0,1+1j]] for problem.field=complex."
            ) from error
    elif path is not None:
        W = read_matrices(Path(path), dtype)
    else:
        W = _gaussian_product(net, generator, scale, psd)
    init.balanced_(net, W, rotate=rotate, generator=generator)


def _numbers(node: object) -> object:
    """Nested sequences as lists of numbers; complex ones come as text, 1+2j."""
    if isinstance(node, str):
        return complex(node.replace(" ", ""))
    return [_numbers(part) for part in node] if isinstance(node, Sequence) else node


def _gaussian_product(
    net: DeepLinear, generator: torch.Generator, scale: float, psd: bool
) -> Tensor:
    dtype = net.weights[0].dtype
    init.check_scale(scale)
    k, batch = min(net.widths), net.batch_shape
    d_in, d_out = net.widths[0], net.widths[-1]
    left = torch.randn(*batch, d_out, k, dtype=dtype, generator=generator)
    if psd and d_in != d_out:
        raise ValueError(
            f"init.psd=true needs d_x = d_y; got {d_in} and {d_out}: use init.psd=false."
        )
    right = left if psd else torch.randn(*batch, d_in, k, dtype=dtype, generator=generator)
    W = left @ right.mH
    return scale * W / torch.linalg.matrix_norm(W, 2, keepdim=True)


def special(net: DeepLinear, problem: Problem, *, scale: float = 1.0) -> None:
    """W(0) = −scale V_rV_rᵀ, V_r the leading eigenvectors of XXᵀ. Source: BRTW Remark 42."""
    if not isinstance(problem, LeastSquares):
        raise ValueError(
            "init=special needs the eigenvectors of XXᵀ of least squares; got "
            f"{type(problem).__name__}: use another init."
        )
    init.special_(net, problem.spectrum.vectors[:, : min(net.widths)].cpu(), scale=scale)


def spurious(
    net: DeepLinear,
    problem: Problem,
    generator: torch.Generator,
    *,
    keep: Sequence[int],
    radius: float = 1e-3,
    law: Literal["ball", "fan"] = "ball",
) -> None:
    """A W(0) for each repeat, near the spurious Z_# that keeps these singular values of X.

    Source: HLZ §5; HLZ Example 1.1.
    """
    if not isinstance(problem, LeastSquares) or not _is_identity(problem.C):
        raise ValueError(
            "init=spurious lies near a spurious critical point of the approximation of a matrix, "
            "½‖W − X‖²; this problem is another: use problem=approximation."
        )
    point = spurious_point(problem.B, list(keep))
    count = math.prod(net.batch_shape)
    if law == "fan":
        W = fan_around(point, radius, count)
    else:
        W = neighbours_of(point, radius, min(net.widths), count, generator=generator)
    init.balanced_(net, W.reshape(*net.batch_shape, *W.shape[-2:]))


def spectral(
    net: DeepLinear,
    problem: Problem,
    generator: torch.Generator,
    *,
    rtol: float = 1e-2,
    sweeps: int | Literal["auto"] = "auto",
) -> None:
    """Balanced layers of W(0), the best approximation of −∇f(0), of the best length.

    Of rank min_j d_j; of a completion −∇f(0) has the known entries. Every repeat has the same.
    After it come at most so many sweeps of alternating least squares, as long as they pay; auto:
    five of a completion.
    Source: [KMO10], `deeplin.problems.spectral`; sweeps: `deeplin.problems.alternating`.
    """
    has_blocks = type(problem).inverse_blocks is not Problem.inverse_blocks
    if isinstance(sweeps, str):
        sweeps = 5 if has_blocks else 0
    if sweeps and not has_blocks:
        raise ValueError(
            "init.sweeps must be 0 or auto where rows cannot be fitted one by one, as those of "
            f"problem=completion can; got init.sweeps={sweeps} with another problem: leave it out."
        )
    dtype, rank = net.weights[0].dtype, min(net.widths)
    with torch.no_grad():
        point = alternating_start(
            problem, rank, most=sweeps, generator=generator, dtype=dtype, rtol=rtol
        )
    P, s, Q = point.spectrum
    init.balanced_factors_(net, point.U @ P, s, point.V @ Q)


def _is_identity(C: Tensor) -> bool:
    return torch.equal(C, torch.eye(len(C), dtype=C.dtype, device=C.device))
