"""The method that fits: what method=auto takes, and what a run could take instead of another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from omegaconf import DictConfig, OmegaConf

from deeplin.flows.contract import Flow, State
from deeplin.integrators import (
    RKC,
    AdaptiveStepper,
    DormandPrince,
    ErrorControlled,
    Rosenbrock,
    Stepper,
)
from deeplin.network import DeepLinear
from deeplin.prediction import Prediction
from deeplin.problems.contract import Problem
from deeplin.runner.cost import (
    LARGEST_STEP,
    Cost,
    Stiffness,
    adaptive_cost,
    cost_of,
    multiplications,
    rosenbrock_step,
    seconds_of,
    size_of,
    time_of,
    tolerance_of,
)
from deeplin.runner.named_flows import FLOWS, choose_flow, make_flow

__all__ = ["METHODS", "Fit", "Forecast", "as_chosen", "fitting", "is_for_sgd", "kept_choice"]

# How many times less another method must cost to be told of, beyond what the steps of either are
# known to, and how many seconds it must save.
_CHEAPER, _WORTH = 3, 10

# What a call of a field costs beyond its products, some forty operations of torch, in
# multiplications: it only weighs few large fields against many small ones.
_CALL = 1e5

_STRUCTURED = ("end_to_end", "dlra", "dlra_rescaled")
# What may be chosen, with the flows that each is made for. Not rk4, nor any method of fixed steps:
# nothing holds their errors. Nor SGD, unless it is asked for.
METHODS: dict[str, tuple[type[ErrorControlled], Sequence[str]]] = {
    "rkc": (RKC, FLOWS),
    "rosenbrock": (Rosenbrock, ("end_to_end", *(f for f in FLOWS if f != "end_to_end"))),
    "dopri5": (DormandPrince, FLOWS),
    "structure": (DormandPrince, _STRUCTURED),
}


@dataclass(frozen=True)
class Fit:
    """A method for a run, with its flow from its start, and what it will cost.

    `work` is in multiplications, by count: not what a clock says, so that the same run is given
    the same method on every day. `keeps`: whether it was taken for what it conserves.
    """

    name: str
    flow: Flow
    state: State
    cost: Cost
    work: float
    keeps: bool

    @property
    def size(self) -> int:
        """The number of real entries of a trajectory's state."""
        return size_of(self.flow, self.state)

    def stepper(self, t1: float) -> AdaptiveStepper:
        """What advances a copy of the start, with the tolerances of the method's file."""
        integrator = METHODS[self.name][0]()
        rtol = tolerance_of(integrator)
        start = tuple(part.clone() for part in self.state)
        return AdaptiveStepper(
            self.flow, start, rtol=rtol, atol=1e-4 * rtol, stretch=t1, integrator=integrator
        )


def is_for_sgd(options: DictConfig) -> bool:
    """Whether SGD is the point: mini-batches or a learning rate are asked for."""
    return options.batch_size is not None or not isinstance(options.dt, str)


def as_chosen(options: DictConfig, name: str) -> DictConfig:
    """The options of the method that `auto` took, from its file and from those of `auto`."""
    own = OmegaConf.to_container(options._methods_[name], resolve=True)
    assert isinstance(own, dict)
    given = ("t1", "dt", "batch_size") if name == "sgd" else ("t1",)
    return OmegaConf.create({**own, **{key: options[key] for key in given}})


def kept_choice(options: DictConfig, stored: DictConfig) -> DictConfig:
    """Options as they are; those of `auto` as of the method that the stored run goes by."""
    if options.name != "auto":
        return options
    name = "sgd" if is_for_sgd(options) else stored.name
    return as_chosen(options, name) if name in options._methods_ else options


def fitting(
    problem: Problem,
    network: DeepLinear,
    flow: str,
    prediction: Prediction,
    stiffness: Stiffness,
) -> Fit:
    """The method that costs least, among those whose errors are held and that fit the flow.

    Where what is conserved decides the limit, and the flow is free, only those that keep it: on the
    end-to-end flow rank and sign of det W cannot change.

    Raises: ValueError where none fits.
    """
    kept = flow == "auto" and any(case.why for case in prediction.cases or (prediction,))
    found: list[Fit] = []
    reasons: list[str] = []
    for name, (made, flows) in METHODS.items():
        if flow not in ("auto", *flows):
            continue
        if name == "structure" and not (kept or flow == "end_to_end"):
            continue
        try:
            chosen = choose_flow(flow, name, list(flows), network)[0]
            if kept and chosen != "end_to_end":
                continue
            of, state = make_flow(chosen, network, problem, multiplicative=name == "structure")
        except ValueError as error:
            reasons.append(str(error))
            continue
        integrator = made()
        if isinstance(integrator, Rosenbrock) and not _is_small(of, state, integrator):
            continue
        cost = adaptive_cost(integrator, tolerance_of(integrator), stiffness)
        assert cost is not None
        found.append(Fit(name, of, state, cost, _work(integrator, of, state, cost), kept))
    if not found:
        raise ValueError(reasons[0] if reasons else f"no method of {', '.join(METHODS)} fits.")
    return min(found, key=lambda fit: fit.work)


def _is_small(flow: Flow, state: State, integrator: Rosenbrock) -> bool:
    return (
        size_of(flow, state) <= integrator.max_size and rosenbrock_step(flow, state) <= LARGEST_STEP
    )


def _work(integrator: ErrorControlled, flow: Flow, state: State, cost: Cost) -> float:
    if isinstance(integrator, Rosenbrock):
        return cost.steps * (rosenbrock_step(flow, state) + 9 * _CALL)
    return cost.fields * max(multiplications(flow, state), _CALL)


@dataclass(frozen=True)
class Forecast:
    """What a run will cost, and which method would cost least; None where that is not known.

    `stepper` is a copy that may be spent on measuring; `other` finds the method that fits, which
    takes a while.
    """

    stiffness: Stiffness
    stepper: Stepper
    cost: Cost | None
    other: Callable[[], Fit | None]

    @classmethod
    def of(
        cls,
        problem: Problem,
        network: DeepLinear,
        flow: str,
        prediction: Prediction,
        *,
        stiffness: Stiffness,
        stepper: Stepper,
        max_steps: int | None,
    ) -> Forecast:
        free = "auto" if flow in ("layers", "end_to_end") else flow

        def other() -> Fit | None:
            try:
                return fitting(problem, network, free, prediction, stiffness)
            except ValueError:
                return None

        return cls(stiffness, stepper, cost_of(stepper, stiffness, max_steps), other)

    def line(
        self, name: str, observe: Callable[[float, State], object], records: int, t1: float
    ) -> str:
        """One line: what the run will cost, and the other method where it costs ten times less.

        - `records`: at most so many in a whole run, the time of which is counted too
        """
        share = records * self.stiffness.end / t1

        def told(cost: Cost, seconds: float) -> str:
            return f"about {_counted(cost.steps)} steps, {_clock(seconds)}"

        if self.cost is None:
            return f"{name}: {self.stiffness}; its steps are not known in advance"
        state = self.stepper.state

        def see(count: int) -> None:
            for _ in range(count):
                observe(0.0, state)

        seeing = time_of(see)
        whole = seconds_of(self.cost, self.stepper, t1) + min(self.cost.steps, share) * seeing
        line = f"{name}: {told(self.cost, whole)} ({self.stiffness})"
        other = self.other() if whole >= _WORTH else None
        if other is None or other.name == name:
            return line
        steps = min(other.cost.steps, share)
        less = seconds_of(other.cost, other.stepper(t1), t1) + steps * seeing
        if whole < _CHEAPER * less or whole - less < _WORTH:
            return line
        return f"{line}; method={other.name}: {told(other.cost, less)}"


def _counted(number: float) -> str:
    """A count to two digits: 700, 19 000, 3.0 million."""
    if number >= 1e6:
        return f"{number / 1e6:.2g} million" if number < 1e8 else f"{number:.1e}"
    digits = max(0, len(str(round(number))) - 2)
    return f"{round(number, -digits):.0f}" if number < 1e4 else f"{round(number, -digits):,.0f}"


def _clock(seconds: float) -> str:
    if seconds < 1:
        return "less than a second"
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    if seconds < 172800:
        return f"{seconds / 3600:.0f} hours"
    return f"{seconds / 86400:.0f} days"
