"""A loss of the user's own in train.py, and the losses of which no optimum is known."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from hydra.core.hydra_config import HydraConfig
from runner import ROOT, train
from sklearn.datasets import load_iris

from deeplin import load
from deeplin.loop import Kind, Result
from deeplin.problems import LeastSquares, LogisticRegression, Problem, from_loss
from deeplin.problems.unpredicted import classification, sensing
from deeplin.runner.custom import custom, digest_of
from deeplin.runner.unpredicted import place_of

MODULE = """
import functools
from os import system

import numpy
import torch
from torch.hub import load
from deeplin.problems import LeastSquares, Problem, from_loss

SPECTRUM = torch.tensor([2.0, 1.0, 0.5], dtype=torch.float64)
HALF = functools.partial(max, default=0)
NUMBER = 3

def distance(W, scale=1.0):
    return 0.5 * scale * (W - torch.diag(SPECTRUM)).square().sum((-2, -1))

def least_squares(generator, dtype, *, d=4):
    x = torch.randn(20, d, dtype=dtype, generator=generator)
    return LeastSquares.from_samples(x, x)

class Quartic(Problem):
    shape = (4, 3)
    def __init__(self, scale: float = 1.0):
        self.scale = torch.tensor(scale)  # float32: the run's dtype comes after
    def loss(self, W):
        return self.scale * ((W - 1).pow(4)).sum((-2, -1))

class Wrong(Quartic):
    def egrad(self, W):
        return -super().egrad(W)

ONE = Quartic()

def whole(W):
    return W.square().sum()

def cut(W):
    return (W.detach() * W).sum((-2, -1))

def outside(W):
    return torch.as_tensor(numpy.square(W.numpy()).sum((-2, -1)))

def nothing():
    return {}

def fails():
    return {}["of nothing"]
"""
HERE = "my_own_losses"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory that holds the module above, forgotten afterwards."""
    (tmp_path / f"{HERE}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)  # of a test before
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, HERE, raising=False)
    yield tmp_path
    sys.modules.pop(HERE, None)


def end_of(folder):
    return json.loads((Path(folder) / "summary.json").read_text())


def made(name, **given):
    generator = torch.Generator().manual_seed(0)
    return custom(target=name, generator=generator, dtype=torch.float64, **given)


def test_a_function_of_W_runs_to_its_best_matrix_of_the_rank(here):
    """diag(2, 0, 0), where the Hessian on the matrices of rank 1 has 1 − σ_2/σ_1 = 1/2."""
    words = [f"problem.target={HERE}:distance", "problem.shape=[3,3]", "network.rank=1"]
    words += ["network.depth=2", "method=rkc", "log.records=50", "stop.grad_norm=1e-5"]
    assert train("problem=custom", *words, "+problem.options.scale=3", folder=here / "run") == 0
    end = end_of("run")
    assert end["loss"] == pytest.approx(3 * 0.5 * (1 + 0.25), rel=1e-9)
    assert end["optimal_loss"] is end["rate_predicted"] is None
    assert "W came to rest at loss 1.875" in end["verdict"]
    least = re.search(
        r"of least eigenvalue (\S+), is positive there: a local minimum", end["verdict"]
    )
    assert least
    assert float(least[1]) == pytest.approx(1.5, rel=1e-3)


def test_least_squares_of_ones_own_are_held_against_the_theory(here):
    words = [f"problem.target={HERE}:least_squares", "network.rank=2", "method=rkc", "repeats=2"]
    assert train("problem=custom", *words, "log.records=50", folder=here / "run") == 0
    assert end_of("run")["verdict"].startswith("Theory and run agree")


def test_what_makes_a_problem(here):
    data = made(f"{HERE}:Quartic", options={"scale": 2.0})
    assert data.problem.shape == (4, 3)
    assert data.problem.loss(torch.zeros(4, 3).double()) == 24
    assert data.problem.scale.dtype == torch.float64
    assert made(f"{HERE}:ONE").problem.loss(torch.zeros(4, 3).double()) == 12
    drawn, again = (made(f"{HERE}:least_squares", options={"d": 3}).problem for _ in range(2))
    assert isinstance(drawn, LeastSquares)
    assert torch.equal(drawn.C, again.C)
    known = made("deeplin.problems.data:gaussian", options={"d": 3}).problem
    assert torch.equal(known.C, made("deeplin.problems.data:gaussian", options={"d": 3}).problem.C)


ERRORS = {
    "no_such_module:loss": "there is no module no_such_module in",
    f"{HERE}.py:loss": "leave .py away",
    f"{HERE}:distanse": f"{HERE} has no distanse; it has distance",
    f"{HERE}:NUMBER": "of yours",
    f"{HERE}:distance": "takes W, which nothing gives: the loss of a matrix needs problem.shape",
    f"{HERE}:nothing": "must return a deeplin.problems.Problem; it returned a dict",
    f"{HERE}:fails": "fails (KeyError: 'of nothing')",
    f"{HERE}:Wrong": "must give the derivative of its loss",
    f"{HERE}:distance [4,3]": "fails at a random W (4, 3) (RuntimeError: The size of tensor a",
    f"{HERE}:whole [3,3]": "a tensor of shape (2,); it gave one of shape ()",
    f"{HERE}:cut [3,3]": "must give the derivative of its loss",
    f"{HERE}:outside [3,3]": "has no derivative (",
    f"{HERE}:nothing [3,3]": "fails at a random W (3, 3) (TypeError",
    f"{HERE}:Quartic [3,3]": "leave out problem.shape",
    # What a stored configuration from elsewhere must not be able to call.
    "os:system": "os is a module of Python's",
    "subprocess:run [3,3]": "subprocess is a module of Python's",
    f"{HERE}:system [3,3]": "which is not your own",
    f"{HERE}:HALF [3,3]": "which is not your own",
    f"{HERE}:load [3,3]": "is defined in torch.hub, which is not your own",
    "torch.hub:load": "is defined in torch.hub, which is not your own",
    "torch:hub.load": "is defined in torch.hub, which is not your own",
    "deeplin.runner.files:sweep": "is defined in deeplin.runner.files, which is not your own",
}


@pytest.mark.parametrize("case", ERRORS)
def test_what_is_no_problem_is_told_in_a_sentence(here, case):
    target, _, shape = case.partition(" ")
    with pytest.raises(ValueError, match=re.escape(ERRORS[case])) as refused:
        made(target, shape=json.loads(shape) if shape else None)
    assert "\n" not in str(refused.value)


def test_a_module_that_cannot_be_imported_says_why(here):
    (here / f"{HERE}.py").write_text("import no_such_module_either")
    with pytest.raises(ValueError, match=r"importing my_own_losses \(ModuleNotFoundError"):
        made(f"{HERE}:loss")
    (here / f"{HERE}.py").write_text("def f(:")
    with pytest.raises(ValueError, match=r"importing my_own_losses \(SyntaxError"):
        made(f"{HERE}:loss")


WORDS = {
    "": "problem=custom needs problem.target=MODULE:NAME",
    "problem.target=my.loss": "problem.target must be autoencoder, labels, MODULE:NAME",
    "problem.target=a:b problem.shape=[3]": "problem.shape must be two positive integers [m,n]",
    "problem.target=a:b problem.options=3": "problem.options must be names with their values",
    "+problem._target_=os.system": "stands in its file in conf/ alone",
    "+problem.options._target_=os.system": "stands in its file in conf/ alone",
    f"problem.target={HERE}:least_squares +problem.options.d=x": "options.d must be a number",
    f"problem.target={HERE}:least_squares +problem.options.e=1": "there is no problem.options.e",
    f"problem.target={HERE}:infinite problem.shape=[3,3]": "at the start the loss is inf",
}


@pytest.mark.parametrize("words", WORDS)
def test_words_that_name_no_problem(here, words, capsys):
    with open(f"{HERE}.py", "a") as module:
        module.write("\ndef infinite(W):\n    return W.square().sum((-2, -1)) / 0\n")
    assert train("problem=custom", "network.rank=2", *words.split(), folder=here / "run") == 2
    error = capsys.readouterr().err
    assert WORDS[words] in error
    assert error.count("\n") == 1
    assert "Traceback" not in error


def test_a_run_goes_on_with_the_same_file_only(here, capsys):
    words = ["problem=custom", f"problem.target={HERE}:distance", "problem.shape=[3,3]"]
    assert train(*words, "network.rank=1", "stop.max_steps=3", folder=here / "run") == 0
    before = digest_of(f"{HERE}:distance")
    assert before in (here / "run" / "provenance.json").read_text()
    with open(f"{HERE}.py", "a") as module:
        module.write("\n# of another day\n")
    assert digest_of(f"{HERE}:distance") == before  # that of what this process has imported
    del sys.modules[HERE]
    assert digest_of(f"{HERE}:distance") != before
    capsys.readouterr()
    assert train("resume=run", "stop.max_steps=5") == 2
    assert f"holds a run on problem.target={HERE}:distance with SHA-256" in capsys.readouterr().err
    (here / f"{HERE}.py").write_text(MODULE)
    del sys.modules[HERE]
    assert train("resume=run", "stop.max_steps=5") == 0
    assert end_of("run")["steps"] == 5


def test_the_example_of_the_readme(here):
    text = (ROOT / "README.md").read_text().partition("### Your own loss")[2].partition("\n### ")[0]
    (here / "my_loss.py").write_text(re.search(r"^```python\n(.*?)^```$", text, re.M | re.S)[1])
    commands = re.findall(r"^    python scripts/train.py (.*)$", text, re.M)
    assert len(commands) == 2
    for number, words in enumerate(commands):
        given = [word.strip("'") for word in words.split()]
        assert train(*given, "stop.max_steps=3", folder=here / str(number)) == 0
        assert end_of(str(number))["verdict"].startswith("Nothing is predicted for this loss")


# -- of what W came to rest on ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "at", "least", "told"),
    [
        ([3, 2, 1], [3, 0, 0], 1 - 2 / 3, "is positive there: a local minimum"),
        ([3, 2, 1], [0, 2, 0], 1 - 3 / 2, "has a direction of descent there: a saddle"),
        ([2, 2, 1], [2, 0, 0], 0, "is flat in some direction there and negative in none"),
    ],
)
def test_the_hessian_where_W_came_to_rest(target, at, least, told):
    """Of ½‖W − X‖² on the matrices of rank 1: 1 ∓ σ_j/σ_i is its spectrum at σ_i u_i v_iᵀ."""
    X, W = (torch.diag(torch.tensor(values, dtype=torch.float64)) for values in (target, at))
    problem = from_loss(lambda Z: 0.5 * (Z - X).square().sum((-2, -1)), (3, 3))
    place = place_of(problem, [W], Result(Kind.CONVERGED, "."))
    assert place.bounds
    assert place.bounds[0] == pytest.approx(least, abs=1e-12)
    assert told in place.sentence
    assert place_of(problem, [W], Result(Kind.TIME, ".")).sentence == ""
    assert place_of(problem, [0 * W], Result(Kind.CONVERGED, ".")).sentence == ""


def test_a_loss_without_a_second_derivative_is_told_without_a_hessian():
    class Once(Problem):
        shape = (3, 3)

        def loss(self, W):
            return W.square().sum((-2, -1))

        def hessian_times(self, A, B, left, right, P, Q):
            raise RuntimeError("derivative for this is not implemented")

    place = place_of(Once(), [torch.eye(3).double()], Result(Kind.CONVERGED, "."))
    assert place.bounds is None
    assert place.sentence == ""


# -- sensing and classification --------------------------------------------------------------------


@pytest.mark.parametrize("field", ["real", "complex"])
@pytest.mark.parametrize("operators", ["gaussian", "rank_one"])
def test_sensing_measures_a_matrix_of_the_rank(operators, field):
    generator = torch.Generator().manual_seed(1)
    data = sensing(
        6, rows=5, rank=2, spectrum=[3, 1], operators=operators, field=field, generator=generator
    )
    W, problem = data.truth, data.problem
    torch.testing.assert_close(
        torch.linalg.svdvals(W), torch.tensor([3.0, 1, 0, 0, 0]).double(), atol=1e-12, rtol=1e-12
    )
    assert problem.field == field
    assert float(problem.loss(W)) < 1e-24
    assert float(problem.report(W)["relative_error"]) == 0
    assert float(problem.report(0 * W)["relative_error"]) == pytest.approx(1)
    A = problem.operators
    if operators == "rank_one":
        A = torch.einsum("pm,pn->pmn", A[0], A[1].conj())
    assert A.shape == (4 * 2 * (5 + 6 - 2), 5, 6)
    Z = torch.randn(5, 6, dtype=A.dtype, generator=generator)
    b = torch.einsum("pmn,mn->p", A.conj(), W)
    expected = 0.5 * (torch.einsum("pmn,mn->p", A.conj(), Z) - b).abs().square().sum()
    torch.testing.assert_close(problem.loss(Z), expected)


def test_the_operators_keep_lengths_in_the_mean_and_noise_has_its_size():
    for operators in ("gaussian", "rank_one"):
        generator = torch.Generator().manual_seed(0)
        data = sensing(
            8, rank=1, measurements=4000, operators=operators, noise=0.5, generator=generator
        )
        # Σ|⟨A, W⟩|² and the noise, twice the loss of the truth, are means of 4000 terms.
        assert float(data.problem.measure(data.truth).square().sum()) == pytest.approx(1, rel=0.15)
        assert 2 * float(data.problem.loss(data.truth)) == pytest.approx(0.25, rel=0.15)


def test_classification_is_the_cross_entropy_of_the_bundled_samples():
    data = classification(data="iris")
    assert isinstance(data.problem, LogisticRegression)
    assert data.problem.shape == (3, 4)
    W = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x, labels = load_iris(return_X_y=True)
    logits = torch.as_tensor((x - x.mean(0)) / x.std(0)) @ W.T
    expected = torch.nn.functional.cross_entropy(logits, torch.as_tensor(labels))
    torch.testing.assert_close(data.problem.loss(W), expected)


@pytest.mark.parametrize(
    ("make", "options", "match"),
    [
        (sensing, {"rank": 0}, "problem.rank must be from 1 to 20"),
        (sensing, {"rank": 2, "spectrum": [1]}, "so many positive"),
        (sensing, {"operators": "dct"}, "gaussian or rank_one"),
        (classification, {"data": "mnist"}, "digits, breast_cancer, iris, wine"),
    ],
)
def test_what_cannot_be_sensed_or_classified(make, options, match):
    with pytest.raises(ValueError, match=match):
        make(**options)


def test_both_run_without_further_options(tmp_path, capsys):
    small = ["method=rkc", "network.depth=2", "log.records=50"]
    assert train("problem=sensing", "network.rank=2", *small, folder=tmp_path / "s") == 0
    end = end_of(tmp_path / "s")
    assert end["relative_error"] < 1e-6
    assert "W came to rest" in end["verdict"]
    words = ["problem=classification", "problem.data=iris", "network.rank=2", "method.t1=100"]
    assert train(*words, *small, folder=tmp_path / "c") == 0
    accuracy = end_of(tmp_path / "c")["accuracy"]
    assert accuracy > 0.8
    iris = load_iris()
    right = load(tmp_path / "c").predict(iris["data"]) == iris["target_names"][iris["target"]]
    assert right.mean() == pytest.approx(accuracy)
    assert "accuracy" in capsys.readouterr().out
    assert train(*words, "method=sgd", "method.batch_size=5", folder=tmp_path / "b") == 2
    assert "method.batch_size takes mini-batches of least squares" in capsys.readouterr().err
