"""Fields that depend on time: each stage sees its own t, in a batch each trajectory's own."""

import itertools
import math

import pytest
import torch
from plain_flow import PlainFlow

import deeplin
from deeplin.integrators import RK4, RKC, DormandPrince, Euler, Rosenbrock
from deeplin.integrators.adaptive import AdaptiveStepper

F64 = torch.float64
METHODS = [Euler(), RK4(), DormandPrince(), RKC(motion_tol=0.0), Rosenbrock()]
CONTROLLED = METHODS[2:]


class Scalars(PlainFlow):
    """One number in each trajectory of a batch, a state (*batch, 1)."""

    def end_to_end(self, y):
        return y[0][..., None]


class Pulled(Scalars):
    """ẏ = −2(y − sin t) + cos t: y = sin t + y(0)e^{−2t}."""

    def velocity(self, t, y):
        t = torch.as_tensor(t, dtype=F64)[..., None]
        return (-2.0 * (y[0] - t.sin()) + t.cos(),)

    def exact(self, t):
        t = torch.as_tensor(t, dtype=F64)[..., None]
        return t.sin() + (-2.0 * t).exp()


class Modulated(Scalars):
    """ẏ = y² cos t: y = 1/(1/y(0) − sin t); t and y do not separate."""

    def velocity(self, t, y):
        return (y[0].square() * torch.as_tensor(t, dtype=F64)[..., None].cos(),)

    def exact(self, t):
        return 1 / (2.0 - torch.as_tensor(t, dtype=F64)[..., None].sin())


class Clock(Scalars):
    """ẏ = t."""

    def velocity(self, t, y):
        return (torch.as_tensor(t, dtype=F64)[..., None].expand_as(y[0]),)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("flow", [Pulled(), Modulated()], ids=lambda f: type(f).__name__)
def test_orders_of_fixed_steps(flow, method):
    n = {"Euler": 160, "RKC": 40, "RK4": 20, "DormandPrince": 40, "Rosenbrock": 20}
    errors = []
    for dt in (1 / n[type(method).__name__], 0.5 / n[type(method).__name__]):
        (y,) = deeplin.solve(flow, (flow.exact(0.0),), 1.0, dt=dt, integrator=method).y[-1]
        errors.append(float((y - flow.exact(1.0)).norm()))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(method.order, abs=0.25)


@pytest.mark.parametrize("method", CONTROLLED, ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("flow", [Pulled(), Modulated()], ids=lambda f: type(f).__name__)
@pytest.mark.parametrize("shape", [(3,), (2, 3)])
def test_a_step_of_a_batch_is_at_each_trajectorys_time(flow, method, shape):
    """One step of length h from (t_b, y(t_b)) errs by O(h^{p+1}), its dense output O(h^p)."""
    t = torch.linspace(0.3, 1.7, math.prod(shape), dtype=F64).reshape(shape)
    lengths = torch.linspace(1.0, 0.7, math.prod(shape), dtype=F64).reshape(shape)
    ends, middles = [], []
    for h in (0.2, 0.1):
        dt = h * lengths
        y = (flow.exact(t),)
        (end,), _, k = method.stages(flow, t, y, dt)
        (middle,) = method.dense(y, dt, k, torch.full_like(dt, 0.37))
        ends.append((end - flow.exact(t + dt)).abs())
        middles.append((middle - flow.exact(t + 0.37 * dt)).abs())
    for errors, least in ((ends, method.order + 1), (middles, method.order)):
        fell = (errors[0].norm() / errors[1].norm()).log2()
        assert float(fell) > least - 0.35


@pytest.mark.parametrize("method", CONTROLLED, ids=lambda m: type(m).__name__)
def test_time_reaches_the_field_of_adaptive_steps(method):
    """ẏ = t from 0 to 2 is 2, in a batch whose trajectories step apart."""
    y0 = (torch.tensor([[0.0], [5.0]], dtype=F64),)
    solution = deeplin.solve(Clock(), y0, 2.0, rtol=1e-8, integrator=method, save_at=[0.5, 1.3])
    for t, (y,) in zip(solution.t, solution.y, strict=True):
        torch.testing.assert_close(y, y0[0] + t**2 / 2, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("method", CONTROLLED, ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("flow", [Pulled(), Modulated()], ids=lambda f: type(f).__name__)
def test_tolerance_sets_the_error_of_adaptive_steps(flow, method):
    rtol = 1e-6 if method.order == 2 else 1e-8
    times = [0.1 * i for i in range(1, 20)]
    solution = deeplin.solve(
        flow, (flow.exact(0.0),), 2.0, rtol=rtol, integrator=method, save_at=times
    )
    for t, (y,) in zip(solution.t, solution.y, strict=True):
        assert abs(float(y - flow.exact(t))) < 200 * rtol


@pytest.mark.parametrize("method", CONTROLLED, ids=lambda m: type(m).__name__)
def test_a_batch_steps_as_its_trajectories_do_alone(method):
    """Pulled from afar and from the solution itself: times drift apart, and results do not."""
    starts = torch.tensor([[1.0], [300.0], [0.01]], dtype=F64)
    together = AdaptiveStepper(Pulled(), (starts,), rtol=1e-6, integrator=method)
    together.advance(1.5)
    for i in range(3):
        oracle = math.sin(1.5) + float(starts[i]) * math.exp(-3.0)
        assert float(together.state[0][i]) == pytest.approx(oracle, rel=2e-4)


def test_stiff():
    """Prothero and Robinson's ẏ = λ(y − φ) + φ' with λ = −10⁴: Rosenbrock keeps to φ."""

    class Stiff(Scalars):
        def velocity(self, t, y):
            t = torch.as_tensor(t, dtype=F64)[..., None]
            return (-1e4 * (y[0] - t.sin()) + t.cos(),)

    phi = [0.0, math.sin(2.0)]
    start = (torch.tensor([phi[0]], dtype=F64),)
    errors = []
    for n in (20, 40):
        (y,) = deeplin.solve(Stiff(), start, 2.0, dt=2.0 / n, integrator=Rosenbrock()).y[-1]
        errors.append(abs(float(y) - phi[1]))
    assert errors[1] < 1e-7
    adaptive = AdaptiveStepper(Stiff(), start, rtol=1e-7, integrator=Rosenbrock())
    adaptive.advance(2.0)
    assert float(adaptive.state[0]) == pytest.approx(phi[1], abs=1e-6)
    assert adaptive.step < 200


def test_one_more_field_is_the_price_of_time_and_autonomous_flows_do_not_pay_it():
    counts = []
    for free in (False, True):

        class Counted(Clock):
            autonomous = free
            count = 0

            def velocity(self, t, y):
                self.count += 1
                return (-y[0],)

        flow, dt = Counted(), torch.tensor(0.1, dtype=F64)
        Rosenbrock().stages(flow, 0.0, (torch.ones(1, dtype=F64),), dt)
        counts.append(flow.count)
    assert counts[0] == counts[1] + 1


@pytest.mark.parametrize("method", CONTROLLED, ids=lambda m: type(m).__name__)
def test_complex_states(method):
    """ż = (−1 + 2i)(z − e^{it}) + ie^{it}, and a real part beside it: orders as for real ones."""
    rate = complex(-1.0, 2.0)

    class Spiral(PlainFlow):
        def velocity(self, t, y):
            phase = torch.exp(1j * torch.as_tensor(t, dtype=F64))[..., None]
            z, x = y
            return rate * (z - phase) + 1j * phase, -x * z.real

        def end_to_end(self, y):
            return y[0][..., None]

    start = torch.tensor([[2.0 + 1.0j], [0.5j]])
    start = start.to(torch.complex128)
    t1 = torch.tensor(1.5, dtype=F64)
    oracle = torch.exp(1j * t1) + (start - 1.0) * torch.exp(rate * t1)
    y0 = (start, torch.ones(2, 1, dtype=F64))
    errors = []
    for n in (10, 20):
        z, x = deeplin.solve(Spiral(), y0, 1.5, dt=1.5 / n, integrator=method).y[-1]
        errors.append(float((z - oracle).norm()))
        assert (z.dtype, x.dtype) == (torch.complex128, F64)
    assert math.log2(errors[0] / errors[1]) == pytest.approx(method.order, abs=0.35)
    z, x = deeplin.solve(Spiral(), y0, 1.5, rtol=1e-7, integrator=method).y[-1]
    torch.testing.assert_close(z, oracle, rtol=1e-5, atol=1e-5)


def test_the_times_of_the_stages_are_those_of_the_method():
    """RKC's from Chebyshev polynomials: c_j = T_s'(w_0)/T_s''(w_0)·T_j''(w_0)/T_j'(w_0)."""
    seen = []

    class Watched(Scalars):
        def velocity(self, t, y):
            seen.append(float(t))
            return (torch.zeros_like(y[0]),)

    method, s = RKC(), 12
    radius = torch.tensor(((s - 1) ** 2 - 1) / 1.54 + 1e-6, dtype=F64)
    method.memory = {"radius": radius, "vector": torch.ones(1, dtype=F64), "age": 0}
    method.stages(Watched(), 3.0, (torch.ones(1, dtype=F64),), torch.tensor(1.0, dtype=F64))
    w0 = 1 + (2 / 13) / s**2

    def ratio(j):
        """T_j''/T_j' at w_0 = cosh a: T_j' = j·sinh(ja)/sinh a."""
        a = math.acosh(w0)
        first = j * math.sinh(j * a) / math.sinh(a)
        second = (j * j * math.cosh(j * a) - first * math.cosh(a)) / math.sinh(a) ** 2
        return second / first

    oracle = [3.0, *(3.0 + ratio(j) / ratio(s) for j in range(2, s)), 4.0]
    assert [*seen[:1], *seen[2:]] == pytest.approx(oracle, abs=1e-9)
    seen.clear()
    DormandPrince().stages(
        Watched(), 3.0, (torch.ones(1, dtype=F64),), torch.tensor(1.0, dtype=F64)
    )
    assert seen == pytest.approx([3.0, 3.2, 3.3, 3.8, 3 + 8 / 9, 4.0, 4.0])
    assert all(a <= b for a, b in itertools.pairwise(seen))
