"""problem=approximation of every kind of X: general, Hermitian, semidefinite; real and complex."""

import json
import math
import re

import pytest
import torch
from runner import train

from deeplin.linalg import is_semidefinite
from deeplin.problems.data import approximation

RUN = ["problem=approximation", "problem.n=6", "network.depth=2", "network.rank=3"]


def seen(folder):
    return json.loads((folder / "summary.json").read_text())


@pytest.mark.parametrize("rotate", [True, False])
@pytest.mark.parametrize("field", ["real", "complex"])
@pytest.mark.parametrize(
    ("kind", "spectrum", "rows"),
    [
        ("psd", [3.0, 1.0, 1.0], None),
        ("hermitian", [2.0, 2.0, -2.0, -1.0], None),
        ("general", [3.0, 2.0, 2.0], 4),
        ("general", [1.0], 9),
        ("general", [2.0, 1.0], None),
    ],
)
def test_the_matrix_is_of_its_kind(generator, kind, spectrum, rows, field, rotate):
    data = approximation(
        6, spectrum, kind=kind, field=field, rows=rows, rotate=rotate, generator=generator
    )
    problem, X = data.problem, data.problem.B
    assert problem.field == field
    assert X.is_complex() == (field == "complex")
    assert X.shape == (rows or 6, 6)
    values = torch.tensor(spectrum, dtype=torch.float64)
    expected = values.abs().sort(descending=True).values
    s = torch.linalg.svdvals(X)
    torch.testing.assert_close(s[: len(values)], expected, rtol=0, atol=1e-13)
    assert not bool((s[len(values) :] > 1e-13).any())
    hermitian = X.shape[0] == X.shape[1] and bool(torch.allclose(X, X.mH, rtol=0, atol=1e-14))
    assert hermitian == (kind != "general" or (not rotate and rows is None))
    if kind != "general":
        eigenvalues = torch.linalg.eigvalsh(X)
        least = min(0.0, float(values.min()))
        torch.testing.assert_close(float(eigenvalues[0]), least, rtol=0, atol=1e-13)
        assert is_semidefinite(X) == (kind == "psd")
    if rotate and field == "complex":
        assert float(X.imag.abs().max()) > 0.01
    Z = torch.randn(*X.shape, dtype=X.dtype, generator=generator)
    half = 0.5 * (Z - X).abs().square().sum()
    torch.testing.assert_close(problem.loss(Z), half, rtol=1e-13, atol=0)


def test_the_real_semidefinite_matrix_is_that_of_before(generator):
    """The frames of X take the same draws as they always did: runs can be repeated."""
    X = approximation(5, [2.0, 1.0], generator=torch.Generator().manual_seed(3)).problem.B
    A = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    Q, R = torch.linalg.qr(A)
    Q = Q * R.diagonal().sign()
    torch.testing.assert_close(X, (Q * torch.tensor([2.0, 1.0])) @ Q.mT, rtol=0, atol=1e-14)


RUNS = {
    "general, complex, layers": [
        *("problem.kind=general", "problem.rows=4", "problem.spectrum=[3,2,2]", "method=rk4"),
        *("problem.field=complex", "init=balanced", "repeats=2", "log.factors=true"),
    ],
    "general, real, on M_r": [
        *("problem.kind=general", "problem.rows=8", "problem.spectrum=[3,2,2,1]", "method=rgd"),
        *("init=orthogonal", "method.t1=60"),
    ],
    "hermitian, complex, on M_r": [
        *("problem.kind=hermitian", "problem.spectrum=[2,-1,-1]", "problem.field=complex"),
        *("init=balanced", "method=rgd", "method.t1=60", "repeats=2"),
    ],
    "psd, complex, on the cone from a spurious point": [
        *("problem.spectrum=[2,2,1]", "problem.field=complex", "init=spurious", "repeats=3"),
        *("init.keep=[1,3]", "method=rgd", "flow=psd_dlra", "method.t1=60"),
    ],
    "general, complex, from a spurious point": [
        *("problem.kind=general", "problem.field=complex", "problem.spectrum=[3,2,1]"),
        *("init=spurious", "init.keep=[1,3]", "method=rgd", "method.t1=60", "repeats=3"),
    ],
    "psd, complex, gradient descent": [
        *("problem.spectrum=[3,2,1]", "problem.field=complex", "init=gaussian", "method=sgd"),
        "method.t1=40",
    ],
    "psd, complex, float32": [
        *("problem.spectrum=[3,2,1]", "problem.field=complex", "init=orthogonal", "method=rk4"),
        *("dtype=float32", "stop.grad_norm=1e-4"),
    ],
}


@pytest.mark.filterwarnings("error:Casting complex")
@pytest.mark.parametrize("words", RUNS.values(), ids=RUNS)
def test_runs_reach_their_optimum(tmp_path, words):
    assert train(*RUN, *words, folder=tmp_path) == 0
    end = seen(tmp_path)
    assert end["distance_to_limit"] < (1e-3 if "dtype=float32" in words else 1e-6)
    assert end["rank"] == 3
    if "dtype=float32" not in words:
        assert end["verdict"].startswith("Theory and run agree"), end["verdict"]


def test_a_complex_run_resumes_to_the_same_bits(tmp_path):
    words = [*RUN, *RUNS["general, complex, layers"], "method.t1=2"]
    assert train(*words, "stop.max_steps=5", folder=tmp_path / "part") == 0
    assert train(f"resume={tmp_path}/part", "stop.max_steps=null") == 0
    assert train(*words, folder=tmp_path / "whole") == 0
    ends = [
        torch.load(tmp_path / name / "checkpoint.pt", weights_only=True)["stepper"]["state"]
        for name in ("part", "whole")
    ]
    for a, b in zip(*ends, strict=True):
        assert a.is_complex()
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_a_complex_start_is_typed_in(tmp_path):
    words = ["problem.n=2", "problem.spectrum=[2,1]", "network.rank=2", "problem.field=complex"]
    start = ["init=balanced", "init.matrix=[[1,2j],[0,1-1j]]", "method=rk4", "method.t1=1e-6"]
    assert train(*RUN, *words, *start, folder=tmp_path) == 0
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["stepper"]["state"]
    W = torch.tensor([[1, 2j], [0, 1 - 1j]], dtype=torch.complex128)
    torch.testing.assert_close(saved[1] @ saved[0], W, rtol=0, atol=1e-4)


CONE = [*RUN, "init=balanced", "init.psd=true", "method=rgd", "flow=psd_dlra"]


@pytest.mark.parametrize(
    ("words", "loss", "rate"),
    [
        # The best matrix of rank 3 has eigenvalues 2, 1, −0.9: what the cone reaches is another.
        (["problem.spectrum=[2,1,-0.9,0.5,0.2]"], 0.5 * (0.9**2 + 0.2**2), 1 - 0.2 / 0.5),
        (["problem.spectrum=[2,1,-0.3,0.5]"], 0.5 * 0.3**2, 1.0),
    ],
)
def test_on_the_cone_the_limit_is_that_of_the_positive_part(tmp_path, words, loss, rate):
    """Gradient steps of length h decay by log(1 − ρh)/h."""
    words = [*words, "problem.kind=hermitian", "method.t1=60", "method.dt=0.2"]
    assert train(*CONE, *words, folder=tmp_path) == 0
    end = seen(tmp_path)
    assert end["verdict"].startswith("Theory and run agree"), end["verdict"]
    assert "of X the positive part of ½(X + Xᴴ) counts" in end["verdict"]
    assert end["loss"] == pytest.approx(loss)
    assert end["optimal_loss"] == pytest.approx(loss, rel=1e-12)
    assert end["rate_predicted"] == pytest.approx(-math.log1p(-0.2 * rate) / 0.2)
    assert end["rate_measured"] == pytest.approx(end["rate_predicted"], rel=0.05)


def test_a_run_to_the_edge_of_the_cone_is_neither_praised_nor_blamed(tmp_path):
    words = ["problem.kind=hermitian", "problem.spectrum=[2,1,-0.9]", "method.t1=60"]
    assert train(*CONE, *words, folder=tmp_path) == 0
    verdict = seen(tmp_path)["verdict"]
    assert verdict.startswith("No verdict: X has fewer positive eigenvalues"), verdict


@pytest.mark.parametrize(
    "words",
    [
        ["problem=teacher", "problem.d=5", "network.depth=2"],  # no ½‖W − X‖²: nothing is known
        [*RUN, "problem.kind=hermitian", "problem.spectrum=[2,1,-0.9]"],  # to the edge
    ],
)
def test_without_a_prediction_the_cone_asks_for_a_time(tmp_path, capsys, words):
    assert train(*words, "network.rank=3", *CONE[len(RUN) :], folder=tmp_path) == 2
    assert "give method.t1=<flow time>" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["problem.spectrum=[2,-1]"], "positive eigenvalues; got .* problem.kind=hermitian"),
        (["problem.kind=hermitian", "problem.spectrum=[2,0]"], "eigenvalues other than 0"),
        (["problem.kind=general", "problem.spectrum=[2,-1]"], "positive singular values"),
        (["problem.kind=general", "problem.rows=1", "problem.spectrum=[2,1]"], r"min\(rows, n\)"),
        (["problem.rows=7"], "problem.rows=7 with n = 6 needs problem.kind=general"),
        (["problem.kind=odd"], "problem.kind must be psd, hermitian or general; got 'odd'"),
        (["problem.field=dual"], "problem.field must be real or complex; got 'dual'"),
    ],
)
def test_what_is_no_matrix_of_the_kind(tmp_path, capsys, words, sentence):
    assert train(*RUN, *words, folder=tmp_path) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert re.search(sentence, error), error
