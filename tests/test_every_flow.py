"""Every flow on every loss: fields against autograd and dense formulas, ends against an ODE."""

import functools

import pytest
import torch
from flow_cases import (
    C128,
    F64,
    FLOWS,
    PSD_FLOWS,
    RANK,
    M,
    dense_field,
    draw,
    gradient,
    integrated,
    problems,
    start,
    steep,
)

import deeplin
from deeplin import DeepLinear, init
from deeplin.flows import CoupledAutoencoderFlow, OjaFlow, RiccatiFlow, TangentFlow
from deeplin.integrators import RK4, RKC, DormandPrince, ProjectedRungeKutta, Rosenbrock
from deeplin.problems import from_loss

DTYPES = pytest.mark.parametrize("dtype", [F64, C128], ids=["real", "complex"])


def of(name, problem):
    return {**FLOWS, **PSD_FLOWS}[name](problem)


@functools.cache
def cases(dtype):
    wide = {(f, p): q for f in FLOWS for p, q in problems(dtype).items()}
    square = {(f, p): q for f in PSD_FLOWS for p, q in problems(dtype, (M, M)).items()}
    return wide | square


CASES = [
    pytest.param(
        flow, problem, dtype, id=f"{flow}-{name}-{'complex' if dtype.is_complex else 'real'}"
    )
    for dtype in (F64, C128)
    for (flow, name), problem in cases(dtype).items()
]


def rate_of_W(flow, y):
    """dW/dt by the chain rule, through forward differentiation of `end_to_end` alone."""
    rates = flow.velocity(0.0, y)
    return torch.func.jvp(lambda *z: flow.end_to_end(z), tuple(y), tuple(rates))[1]


@pytest.mark.parametrize(("name", "problem", "dtype"), CASES)
def test_velocity_is_that_of_the_dense_formula(name, problem, dtype):
    flow = of(name, problem)
    y = flow.init_state(start(name, dtype))
    if name == "layers":
        weights = [W_j.detach().requires_grad_() for W_j in y]
        loss = problem.loss(weights[2] @ weights[1] @ weights[0])
        expected = torch.autograd.grad(loss, weights)
        for ours, G_j in zip(flow.velocity(0.0, y), expected, strict=True):
            torch.testing.assert_close(ours, -G_j, rtol=1e-9, atol=1e-11)
        return
    expected = dense_field(name, problem, flow.end_to_end(y))
    torch.testing.assert_close(rate_of_W(flow, y), expected, rtol=1e-8, atol=1e-9)


def slope_of_loss(name, problem, flow, y):
    """d/dt of the loss along the flow: −‖gradient‖² in the flow's own metric."""
    W = flow.end_to_end(y)
    return float((gradient(problem.loss, W).conj() * rate_of_W(flow, y)).real.sum())


@pytest.mark.parametrize(("name", "problem", "dtype"), CASES)
def test_gradient_norm_is_the_slope_of_the_loss(name, problem, dtype):
    flow = of(name, problem)
    y = flow.init_state(start(name, dtype))
    squared = float(flow.gradient_norm(y)) ** 2
    slope = slope_of_loss(name, problem, flow, y)
    if name == "layers":  # its default is the norm of the velocity, which is minus the gradient
        assert squared == pytest.approx(-slope, rel=1e-9)
    elif "rescaled" not in name:
        assert squared == pytest.approx(-slope, rel=1e-7)
    else:
        assert slope < 0


# -- where it ends ---------------------------------------------------------------------------------

# method -> (integrator, rtol or None for 40 steps, the tolerance that it should meet)
METHODS = {
    "dopri5": (DormandPrince, 1e-8, 1e-6),
    "rk4": (RK4, None, 1e-5),
    "rkc": (RKC, 1e-6, 1e-3),
    "rosenbrock": (Rosenbrock, 1e-6, 1e-4),
    "projected 2": (lambda: ProjectedRungeKutta(2), None, 1e-3),
    "projected 4": (lambda: ProjectedRungeKutta(4), None, 1e-5),
}
QUICK = ("least squares", "completion", "logistic", "own class")


def ends():
    for dtype, field in ((F64, "real"), (C128, "complex")):
        for name, label in cases(dtype):
            quick = label in QUICK if field == "real" else label == "own class"
            marks = () if quick else pytest.mark.slow
            case_id = f"{name}-dopri5-{label}-{field}"
            yield pytest.param(name, "dopri5", label, dtype, id=case_id, marks=marks)
    for name, label in cases(F64):
        for method in METHODS:
            fits = label == "least squares" and method != "dopri5"
            if fits and ("dlra" in name or not method.startswith("projected")):
                yield pytest.param(name, method, label, F64, id=f"{name}-{method}-{label}")


@functools.cache
def dense_end(name, label, dtype, t):
    """W(t) by the dense field, once for all methods."""
    problem = cases(dtype)[name, label]
    flow = of(name, problem)
    y = flow.init_state(start(name, dtype, scale=0.7))
    if name == "layers":

        def field(weights):
            weights = [W_j.detach().requires_grad_() for W_j in weights]
            loss = problem.loss(weights[2] @ weights[1] @ weights[0])
            return [-G_j for G_j in torch.autograd.grad(loss, weights)]

        end = integrated(field, y, t)
        return end[2] @ end[1] @ end[0]
    return integrated(lambda W: [dense_field(name, problem, W[0])], [flow.end_to_end(y)], t)[0]


@pytest.mark.parametrize(("name", "method", "label", "dtype"), list(ends()))
def test_end_is_that_of_the_dense_field(name, method, label, dtype):
    """At t = 0.2; each method below a tolerance that its order and rtol leave a factor 10 to."""
    flow, t = of(name, cases(dtype)[name, label]), 0.2
    y = flow.init_state(start(name, dtype, scale=0.7))
    integrator, rtol, tolerance = METHODS[method]
    steps = {"dt": t / 40} if rtol is None else {"rtol": rtol}
    W = flow.end_to_end(deeplin.solve(flow, y, t, integrator=integrator(), **steps).y[-1])
    expected = dense_end(name, label, dtype, t)
    assert float((W - expected).norm()) <= tolerance * float(expected.norm())
    assert float((expected - flow.end_to_end(y)).norm()) > 10 * tolerance


# -- steep losses ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("quartic", "scale"),
    [
        (False, 1e-2),
        pytest.param(False, 1.0, marks=pytest.mark.slow),
        pytest.param(False, 4.0, marks=pytest.mark.slow),
        pytest.param(True, 1e-2, marks=pytest.mark.slow),
        (True, 1.0),
        pytest.param(True, 4.0, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("name", [*FLOWS, *PSD_FLOWS])
def test_a_steep_loss_descends_on_every_flow(name, quartic, scale):
    """Curvature 1000, given by loss(W) alone: the default step lowers the loss at every step."""
    problem = steep(F64, quartic, shape=(M, M) if name.startswith("psd") else None)
    flow = of(name, problem)
    y = flow.init_state(start(name, F64, scale))
    limit = 2.0 if isinstance(flow, TangentFlow) else RK4().stability_limit
    dt = 0.5 * limit / flow.curvature(y)  # what solve chooses
    solution = deeplin.solve(
        flow,
        y,
        40 * dt,
        save_at=[k * dt for k in range(40)],
        observe=lambda t, z: {"loss": problem.loss(flow.end_to_end(z))},
    )
    losses = solution.observed["loss"]
    assert len(losses) == 41
    assert bool((losses[1:] < losses[:-1] * (1 + 1e-14)).all())
    assert float(losses[-1]) < float(losses[0])


# -- starts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*FLOWS, *PSD_FLOWS])
@DTYPES
def test_every_flow_starts_from_a_network_its_layers_or_its_product(name, dtype):
    psd = name.startswith("psd")
    flow = of(name, problems(dtype, (M, M))["approximation"])
    W = (
        start("psd", dtype)
        if psd
        else draw(M, RANK, seed=1, dtype=dtype) @ draw(RANK, M, seed=2, dtype=dtype)
    )
    net = init.balanced_(DeepLinear([M, RANK, M], dtype=dtype), W)
    starts = [net, list(net.weights), *([] if name == "layers" else [W])]
    for given in starts:
        state = flow.init_state(given)
        torch.testing.assert_close(flow.end_to_end(state), W)
        assert flow.batch_shape(state) == ()
        assert not any(part.requires_grad for part in state)


def test_layers_are_asked_for_in_one_sentence():
    flow = of("layers", problems(F64)["approximation"])
    with pytest.raises(ValueError, match=r"starts from layers.*balanced_"):
        flow.init_state(torch.zeros(M, 5, dtype=F64))
    with pytest.raises(ValueError, match=r"\(m, n\) = \(4, 5\)"):
        of("dlra", flow.problem).init_state(torch.zeros(3, 3, dtype=F64))
    with pytest.raises(TypeError, match="network or a list of tensors"):
        flow.init_state([1.0, 2.0])
    with pytest.raises(ValueError, match="square"):
        of("psd dlra", flow.problem)


@DTYPES
def test_factors_of_an_autoencoder_are_those_of_two_layers(dtype):
    C = draw(M, 9, seed=1, dtype=dtype)
    C = C @ C.mH
    V = torch.linalg.qr(draw(M, RANK, seed=2, dtype=dtype)).Q
    tied, untied = [V.mH, V], [draw(RANK, M, seed=3, dtype=dtype), V]

    def error(W):  # ½‖X − WX‖² for XXᴴ = C
        D = torch.eye(M, dtype=dtype) - W
        return 0.5 * (D.conj() * (D @ C)).real.sum((-2, -1))

    problem = from_loss(error, (M, M))
    for flow in (OjaFlow(C), CoupledAutoencoderFlow(C)):
        (state,) = flow.init_state(tied)
        torch.testing.assert_close(state, V)
        with pytest.raises(ValueError, match="tied"):
            flow.init_state(untied)
        # on tied layers both are the mean of the layers' own velocities, half for the second
        (V_dot,) = flow.velocity(0.0, (V,))
        torch.testing.assert_close(V_dot, C @ V - V @ (V.mH @ C @ V), rtol=1e-10, atol=1e-10)
    flow = RiccatiFlow(C)
    y = flow.init_state(untied)
    layers = of("layers", problem)
    W1_dot, W2_dot = layers.velocity(0.0, layers.init_state(untied))
    torch.testing.assert_close(flow.velocity(0.0, y)[0], torch.cat([W1_dot.mH, W2_dot], -2))
    torch.testing.assert_close(flow.end_to_end(y), untied[1] @ untied[0])


# -- transforms ------------------------------------------------------------------------------------

OF_C = {"oja": OjaFlow, "coupled": CoupledAutoencoderFlow, "riccati": RiccatiFlow}


def transformed(name, dtype):
    """A flow on C, X or a user's own loss, and three of its states."""
    if name in OF_C:
        A = draw(M, M, seed=5, dtype=dtype)
        flow = OF_C[name](A @ A.mH)
        rows = 2 * M if name == "riccati" else M
        states = [flow.init_state(draw(rows, RANK, seed=i, dtype=dtype)) for i in range(3)]
    else:
        shape = (M, M) if name.startswith("psd") else (M, 5)
        flow = of(name, problems(dtype, shape)["own class"])
        states = [flow.init_state(start(name, dtype, seed=10 * i)) for i in range(3)]
    return flow, states


@pytest.mark.parametrize("name", [*FLOWS, *PSD_FLOWS, *OF_C])
@DTYPES
def test_velocity_under_vmap_and_jacobians(name, dtype):
    flow, states = transformed(name, dtype)

    def velocity(*y):
        return flow.velocity(0.0, y)

    eager = [velocity(*y) for y in states]
    batched = torch.func.vmap(velocity)(
        *(torch.stack(parts) for parts in zip(*states, strict=True))
    )
    for i, parts in enumerate(eager):
        for part, whole in zip(parts, batched, strict=True):
            torch.testing.assert_close(whole[i], part, rtol=1e-10, atol=1e-10)
    y = states[0]
    direction = tuple(torch.randn_like(part) for part in y)
    _, forward = torch.func.jvp(velocity, y, direction)
    h = 1e-5
    ahead, behind = (
        velocity(*(p + sign * h * d for p, d in zip(y, direction, strict=True))) for sign in (1, -1)
    )
    for a, b, ours in zip(ahead, behind, forward, strict=True):
        assert float(((a - b) / (2 * h) - ours).norm()) <= 1e-6 * float(1 + ours.norm())
    if dtype.is_complex:
        return
    rows = torch.func.jacrev(velocity, argnums=tuple(range(len(y))))(*y)
    for row, ours in zip(rows, forward, strict=True):
        terms = [torch.tensordot(J, d, dims=d.ndim) for J, d in zip(row, direction, strict=True)]
        torch.testing.assert_close(sum(terms), ours, rtol=1e-8, atol=1e-8)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [*FLOWS, *PSD_FLOWS, *OF_C])
def test_velocity_compiles_without_a_break(name):
    flow, (y, *_) = transformed(name, F64)

    def velocity(*parts):
        return flow.velocity(0.0, parts)

    torch._dynamo.reset()
    compiled = torch.compile(velocity, fullgraph=True, backend="eager")(*y)
    for ours, part in zip(compiled, velocity(*y), strict=True):
        torch.testing.assert_close(ours, part, rtol=1e-10, atol=1e-10)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [*FLOWS, *PSD_FLOWS, *OF_C])
def test_velocities_of_ten_thousand_states_agree(name):
    """vmap and compiled code against one eager call, on states drawn about a start."""
    flow, (y, *_) = transformed(name, F64)
    generator = torch.Generator().manual_seed(13)
    states = tuple(
        part + 0.1 * torch.randn(10_000, *part.shape, dtype=part.dtype, generator=generator)
        for part in y
    )

    def velocity(*parts):
        return flow.velocity(0.0, parts)

    torch._dynamo.reset()
    eager = velocity(*states)
    others = (
        torch.func.vmap(velocity)(*states),
        torch.compile(velocity, fullgraph=True, backend="eager")(*states),
    )
    for found in others:
        for ours, part in zip(found, eager, strict=True):
            error = (ours - part).flatten(1).norm(dim=1)
            # Two routes to one SVD, each good to some hundred units of round-off.
            assert float((error / (1 + part.flatten(1).norm(dim=1))).max()) <= 1e-12
