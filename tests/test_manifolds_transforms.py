"""torch.func's vmap and jacrev and torch.compile, on every operation of the four manifolds.

The oracle is the plain operation, one matrix at a time. Packed factors are compared through the
matrices they stand for: the svd retraction leaves the signs of singular vectors open.
"""

import copy
import math
import shutil

import pytest
import torch
from manifold_oracles import generator, randn

from deeplin.manifolds import FixedRank, FixedRankFactored, PSDFixedRank, PSDFixedRankFactored
from deeplin.manifolds.factored import FactoredManifold

F64 = torch.float64
# The depths that ask for different formulas, with the retractions that are defined for them.
PAIRS = [
    (depth, retraction)
    for depth in (1, 2, 3.5, 10)
    for retraction in ("svd", "orthographic", "splitting", "layers")
    if depth in {"layers": (2, 10), "splitting": (1,)}.get(retraction, (1, 2, 3.5, 10))
]
POINT, VECTOR, NUMBER = "point", "vector", "number"


def manifolds(depth, retraction, m=5, n=4, r=2):
    """The four manifolds, with the shape of a point."""
    return [
        (FixedRank(r, depth, retraction), (m, n)),
        (PSDFixedRank(r, depth, retraction), (m, m)),
        (FixedRankFactored(m, n, r, depth, retraction), (m + n + r, r)),
        (PSDFixedRankFactored(m, r, depth, retraction), (m + r, r)),
    ]


def operations(manifold):
    """Name -> (function of x, y, u, v; what its results are)."""
    return {
        "projx": (lambda x, y, u, v: manifold.projx(x), (POINT,)),
        "proju": (lambda x, y, u, v: manifold.proju(x, u), (VECTOR,)),
        "egrad2rgrad": (lambda x, y, u, v: manifold.egrad2rgrad(x, u), (VECTOR,)),
        "inner": (lambda x, y, u, v: manifold.inner(x, u, v), (NUMBER,)),
        "norm": (lambda x, y, u, v: manifold.norm(x, u), (NUMBER,)),
        "retr": (lambda x, y, u, v: manifold.retr(x, u), (POINT,)),
        "transp": (lambda x, y, u, v: manifold.transp(x, y, v), ("vector at y",)),
        "retr_transp": (lambda x, y, u, v: manifold.retr_transp(x, u, v), (POINT, "at the end")),
    }


NAMES = list(operations(None))


def draw(manifold, shape, batch, seed, dtype=F64):
    """Points with singular values over two orders of magnitude; steps from 0.01 to 10 of them."""
    x, y = (manifold.random(batch, *shape, dtype=dtype, generator=generator(s)) for s in (seed, -1))
    x, y = x.as_subclass(torch.Tensor), y.as_subclass(torch.Tensor)
    scales = 10 ** (-2 + 3 * torch.rand(batch, 1, 1, generator=generator(seed + 1), dtype=F64))
    u = manifold.proju(x, randn(batch, *shape, seed=seed + 2, dtype=dtype))
    u = scales.to(dtype.to_real()) * u / torch.linalg.vector_norm(u, dim=(-2, -1), keepdim=True)
    return x, y, u, manifold.proju(x, randn(batch, *shape, seed=seed + 3, dtype=dtype))


def comparable(manifold, kinds, outputs, x, y):
    """The outputs as matrices and numbers that no gauge can change."""
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    if not isinstance(manifold, FactoredManifold):
        return outputs
    at = {VECTOR: x, "vector at y": y, "at the end": outputs[0]}
    return tuple(
        value
        if kind == NUMBER
        else manifold.to_dense(value)
        if kind == POINT
        else manifold.tangent_to_dense(at[kind], value)
        for kind, value in zip(kinds, outputs, strict=True)
    )


def distance(manifold, kinds, ours, theirs, x, y, u, v):
    """The largest distance, relative to the sizes that went in and out, over a batch."""
    dims = {NUMBER: ()}
    worst = 0.0
    pairs = zip(
        kinds,
        comparable(manifold, kinds, ours, x, y),
        comparable(manifold, kinds, theirs, x, y),
        strict=True,
    )
    for kind, a, b in pairs:
        assert a.shape == b.shape
        dim = dims.get(kind, (-2, -1))
        size = torch.linalg.vector_norm(b, dim=dim) if dim else b.abs()
        error = torch.linalg.vector_norm(a - b, dim=dim) if dim else (a - b).abs()
        worst = max(worst, float((error / (1 + size)).nan_to_num(nan=math.inf).max()))
    return worst


def compiled(f, backend="eager"):
    torch._dynamo.reset()
    return torch.compile(f, fullgraph=True, backend=backend)


# Round-off, times a factor of a thousand for the condition of the core and for the gap between
# σ_r and σ_{r+1} of W + ξ, where plain code and transforms take different ways to the nearest
# matrix; elsewhere they do the same operations.
CLOSE = 1e-12


@pytest.mark.parametrize(("depth", "retraction"), PAIRS)
def test_vmap_is_a_loop(depth, retraction):
    for manifold, shape in manifolds(depth, retraction):
        inputs = draw(manifold, shape, 12, seed=10)
        for name, (f, kinds) in operations(manifold).items():
            ours = torch.func.vmap(f)(*inputs)
            rows = [f(*(part[i] for part in inputs)) for i in range(12)]
            theirs = (
                tuple(torch.stack(parts) for parts in zip(*rows, strict=True))
                if isinstance(rows[0], tuple)
                else torch.stack(rows)
            )
            assert distance(manifold, kinds, ours, theirs, *inputs) < CLOSE, (manifold, name)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("which", range(4))
def test_compiled_in_one_graph_is_eager(which, name):
    """fullgraph=True raises at the first graph break, so that none is left."""
    pairs = {
        "retr": [(1, "svd"), (3.5, "orthographic"), (10, "layers")],
        "retr_transp": [(2, "layers")],
    }
    for depth, retraction in pairs.get(name, [(3.5, "svd")]):
        manifold, shape = manifolds(depth, retraction)[which]
        f, kinds = operations(manifold)[name]
        g = compiled(f)
        inputs = draw(manifold, shape, 24, seed=20)
        assert distance(manifold, kinds, g(*inputs), f(*inputs), *inputs) < CLOSE


@pytest.mark.slow
@pytest.mark.parametrize(("depth", "retraction"), PAIRS)
def test_no_operation_breaks_the_graph(depth, retraction):
    for manifold, shape in manifolds(depth, retraction):
        inputs = draw(manifold, shape, 3, seed=10)
        for name, (f, _) in operations(manifold).items():
            torch._dynamo.reset()
            told = torch._dynamo.explain(f)(*inputs)
            assert (told.graph_count, told.graph_break_count) == (1, 0), (manifold, name)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch._prims_common.check` is deprecated:FutureWarning")
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_compiled_to_machine_code():
    manifold, shape = manifolds(2, "orthographic")[2]
    inputs = draw(manifold, shape, 8, seed=10)
    f, kinds = operations(manifold)["retr_transp"]
    assert distance(manifold, kinds, compiled(f, "inductor")(*inputs), f(*inputs), *inputs) < CLOSE


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128])
def test_other_dtypes(dtype):
    for manifold, shape in manifolds(2, "svd") + manifolds(3.5, "orthographic"):
        inputs = draw(manifold, shape, 8, seed=10, dtype=dtype)
        for name, (f, kinds) in operations(manifold).items():
            ours, theirs = torch.func.vmap(f)(*inputs), f(*inputs)
            bound = CLOSE * torch.finfo(dtype).eps / torch.finfo(F64).eps
            assert distance(manifold, kinds, ours, theirs, *inputs) < bound, (manifold, name)


# What flows through: tangent vectors, everywhere but through svd, whose result is detached.
@pytest.mark.parametrize(("depth", "retraction"), PAIRS)
def test_jacrev_is_finite_differences(depth, retraction):
    """Of the result by u and v, along a random direction; the points are constants.

    ``retr`` with retraction="svd" has derivative 0: nothing is taped through an SVD.
    """
    h = 1e-5
    for manifold, shape in manifolds(depth, retraction):
        x, y, u, v = (part[0] for part in draw(manifold, shape, 1, seed=40))
        u = 0.1 * u / torch.linalg.vector_norm(u)
        direction = manifold.proju(x, randn(*shape, seed=41))
        for name, (f, _) in operations(manifold).items():
            if name == "retr_transp":  # retr, then transp
                continue

            def g(u, f=f, at=(x, y), other=None if name in ("transp", "inner") else v):
                return f(*at, u, u if other is None else other)

            J = torch.func.jacrev(g)(u)
            slope = (J * direction).sum((-2, -1))
            if name == "projx" or (name == "retr" and retraction == "svd"):
                assert torch.equal(slope, torch.zeros_like(slope))
                continue
            difference = (g(u + h * direction) - g(u - h * direction)) / (2 * h)
            error = torch.linalg.vector_norm(slope - difference)
            assert error < 1e-7 * (1 + torch.linalg.vector_norm(difference)), (manifold, name)


def test_points_are_constants_of_the_derivative():
    for manifold, shape in manifolds(2, "orthographic"):
        x, y, u, v = (part[0] for part in draw(manifold, shape, 1, seed=40))
        for f, kinds in operations(manifold).values():
            if len(kinds) == 1:
                J = torch.func.jacrev(f)(x, y, u, v)
                assert float(J.abs().max()) == 0


@pytest.mark.parametrize("retraction", ["svd", "orthographic", "splitting", "layers"])
def test_shortened_steps_are_the_same_under_transforms(retraction):
    """One matrix of the batch each: usual, −W (halved), far out (a safe length), not finite."""
    for manifold, shape in manifolds(2, retraction):
        x = draw(manifold, shape, 4, seed=10)[0]
        core = manifold.inverse_orthographic(x, x)  # 0, as a tangent vector
        radial = manifold.proju(x, x) if not isinstance(manifold, FactoredManifold) else core
        if isinstance(manifold, FactoredManifold):
            radial = radial.clone()
            radial[..., -2:, :] = x[..., -2:, :]  # M = S: ξ = W
        scale = 2.0 if retraction == "layers" else 1.0
        u = -radial * torch.tensor([0.1, scale, 1e3 * scale, 1.0], dtype=F64)[:, None, None]
        u[3] = math.nan
        with pytest.warns(RuntimeWarning, match="the step holds nan or inf"):
            eager = manifold.retr(x, u)
        kinds = (POINT,)
        assert manifold.check_point_on_manifold(eager)
        assert distance(manifold, kinds, eager[3], x[3], x, x, u, u) < 1e-13
        transformed = [torch.func.vmap(manifold.retr)]
        if isinstance(manifold, PSDFixedRankFactored):  # a compilation takes its time
            transformed.append(compiled(manifold.retr))
        for f in transformed:
            assert distance(manifold, kinds, f(x, u), eager, x, x, u, u) < CLOSE


def test_what_raises_in_plain_code_is_nan_or_silent_under_a_transform():
    manifold = FixedRank(2)
    zero = torch.zeros(3, 5, 4, dtype=F64)
    with pytest.raises(RuntimeError, match="x must have rank 2, and has not"):
        manifold.retr(zero, zero)
    with pytest.raises(ValueError, match="it has less"):
        manifold.projx(zero)
    assert bool(torch.func.vmap(manifold.retr)(zero, zero).isnan().all())
    assert bool(compiled(manifold.retr)(zero, zero).isnan().all())
    assert torch.equal(torch.func.vmap(manifold.projx)(zero), zero)


def test_manifolds_still_copy_after_they_were_compiled():
    manifold, shape = manifolds(2, "svd")[2]
    inputs = draw(manifold, shape, 2, seed=10)
    compiled(manifold.retr)(inputs[0], inputs[2])
    assert repr(copy.deepcopy(manifold)) == repr(manifold)


@pytest.mark.slow
@pytest.mark.parametrize(("depth", "retraction"), PAIRS)
def test_vmap_and_compile_on_many_draws(depth, retraction):
    """10 pairs of depth and retraction, 1000 draws each, on all operations of all manifolds."""
    for manifold, shape in manifolds(depth, retraction):
        inputs = draw(manifold, shape, 1000, seed=100)
        for name, (f, kinds) in operations(manifold).items():
            theirs = f(*inputs)
            for g in (torch.func.vmap(f), compiled(f)):
                error = distance(manifold, kinds, g(*inputs), theirs, *inputs)
                assert error < CLOSE, (manifold, name)
