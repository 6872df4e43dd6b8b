"""Data sources and files."""

import numpy as np
import pytest
import torch

from deeplin.problems import data
from deeplin.problems.data import prepare
from deeplin.problems.readers import from_file


def test_digits_are_standardised_and_of_full_rank():
    source = data.digits()
    x = source.x
    assert x.shape == (1797, 61)
    torch.testing.assert_close(x.mean(0), torch.zeros(61, dtype=torch.float64), rtol=0, atol=1e-15)
    torch.testing.assert_close(x.square().sum(0), torch.ones(61, dtype=torch.float64))
    assert source.problem.rank_X == 61
    assert source.problem.is_autoencoder
    assert any("3 columns that never vary were removed" in note for note in source.notes)
    labelled = data.digits(target="labels")
    assert (labelled.problem.d_x, labelled.problem.d_y) == (61, 10)
    torch.testing.assert_close(
        labelled.y.sum(0), torch.zeros(10, dtype=torch.float64), rtol=0, atol=1e-13
    )


def test_raw_digits_name_their_rank():
    source = data.digits(standardize=False)
    assert source.problem.d_x == 64
    assert "rank 61 of 64" in source.notes[-1]
    assert "problem.singular=project" in source.notes[-1]
    for singular in ("project", "whiten"):
        regular = data.digits(standardize=False, singular=singular)
        assert regular.problem.d_x == 61
        assert regular.problem.rank_warning() is None
        torch.testing.assert_close(
            regular.problem.singular_values, source.problem.singular_values, rtol=1e-8, atol=1e-8
        )
        # The samples are transformed with the problem: mini-batches see the same loss.
        W = torch.ones(regular.problem.d_y, 61, dtype=torch.float64)
        direct = 0.5 * (regular.y - regular.x @ W.mT).square().sum()
        dropped = 0.5 * (source.problem.yy - regular.problem.yy)
        torch.testing.assert_close(regular.problem.loss(W) - dropped, direct)


@pytest.mark.statement("BRTW §7.1.1")
def test_gaussian_data(generator, seen):
    source = data.gaussian(200, generator=generator)
    assert source.x.shape == (600, 200)
    values = source.problem.spectrum.values
    # λ_1 ≈ 7.5 and λ_d ≈ 0.54, the edges 3(1 ± 3^{-1/2})² of the spectrum.
    seen(values[0] - 7.46, 0.5)
    seen(values[-1] - 0.54, 0.1)


@pytest.mark.statement("BRTW §7.2")
@pytest.mark.statement("BRTW §7.2, E8")
def test_teacher_data(generator, seen):
    source = data.teacher(20, rank=2, depth=5, generator=generator)
    problem = source.problem
    assert problem.rank_Q == 2
    seen.below(problem.optimal_loss(2), 1e-25)
    # Outside Kawaguchi's hypotheses (BRTW Theorem 31), and without a saddle on M_r.
    rank = torch.linalg.matrix_rank(problem.B, rtol=1e-9)
    points = list(problem.optimum.critical_points(2))
    seen.number("rank XYᵀ, where Theorem 31 asks for d_y = 20", rank)
    seen.number("critical points on M_r", len(points))
    assert (int(rank), len(points)) == (2, 1)
    torch.testing.assert_close(source.x @ problem.minimizer(2).mT, source.y)


def test_a_teacher_of_given_singular_values_is_the_same_for_every_depth():
    def drawn(depth, seed=0, **options):
        generator = torch.Generator().manual_seed(seed)
        return data.teacher(9, rank=2, depth=depth, generator=generator, **options)

    two, twenty = (drawn(depth, spectrum=[0.5, 3]) for depth in (2, 20))
    assert two.truth is not None
    assert twenty.truth is not None
    expected = torch.tensor([3, 0.5] + 7 * [0.0], dtype=torch.float64)
    torch.testing.assert_close(torch.linalg.svdvals(two.truth), expected)
    assert torch.equal(two.truth, twenty.truth)
    assert two.x is not None
    assert twenty.x is not None
    assert torch.equal(two.x, twenty.x)
    assert not torch.allclose(two.truth, drawn(2, 1, spectrum=[0.5, 3]).truth)
    assert torch.equal(two.x, drawn(2).x), "X is that of the teacher of layers"
    for wrong in ([1.0], [1.0, 2.0, 3.0], [1.0, 0.0], [1.0, -1.0], [1.0, float("nan")], []):
        with pytest.raises(ValueError, match=r"must be problem\.rank = 2 <= d = 9 positive"):
            drawn(2, spectrum=wrong)


def test_seeds_repeat_bit_for_bit():
    draws = [data.gaussian(7, generator=torch.Generator().manual_seed(s)).x for s in (5, 5, 6)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def table(randn, m=30):
    x, y = randn(m, 4), randn(m, 2)
    x[:, 2] = 3.0
    return x, y


def test_every_format_gives_the_same_problem(randn, tmp_path):
    x, y = table(randn)
    np.savez(tmp_path / "d.npz", x=x.numpy(), y=y.numpy())
    torch.save({"x": x, "y": y}, tmp_path / "d.pt")
    np.savetxt(
        tmp_path / "d.csv", torch.cat([x, y], 1).numpy(), delimiter=",", header="a,b,c,d,e,f"
    )
    np.savetxt(tmp_path / "plain.csv", torch.cat([x, y], 1).numpy(), delimiter=",")
    for i in range(3):
        np.savez(tmp_path / f"shard{i}.npz", x=x[i::3].numpy(), y=y[i::3].numpy())
    reference = prepare(x, y).problem
    assert reference.d_x == 3
    for name, labels in [
        ("d.npz", 0),
        ("d.pt", 0),
        ("d.csv", 2),
        ("plain.csv", 2),
        ("shard*.npz", 0),
    ]:
        problem = from_file(tmp_path / name, labels=labels).problem
        torch.testing.assert_close(problem.C, reference.C)
        torch.testing.assert_close(problem.B, reference.B)
        assert problem.m == 30


def test_files_without_labels_are_autoencoders(randn, tmp_path):
    x, _ = table(randn)
    np.save(tmp_path / "x.npy", x.numpy())
    np.savez(tmp_path / "x.npz", x.numpy())
    torch.save(x, tmp_path / "x.pt")
    np.savetxt(tmp_path / "x.csv", x.numpy(), delimiter=",")
    for name in ("x.npz", "x.pt", "x.csv", "x*.npz"):
        source = from_file(tmp_path / name)
        assert source.problem.is_autoencoder
        assert (source.x is None) == ("*" in name)


def test_integer_classes_become_one_hot(randn, tmp_path):
    x, _ = table(randn, m=6)
    np.savez(tmp_path / "c.npz", x=x.numpy(), y=np.array([7, 3, 3, 9, 7, 7]))
    y = from_file(tmp_path / "c.npz", standardize=False, normalize=False).y
    assert y.sum(0).tolist() == [2, 3, 1]


def test_standardising_a_stream_loses_no_digits(randn, tmp_path):
    x = randn(60, 3) + 1e6
    np.savez(tmp_path / "a0.npz", x=x[:50].numpy())
    np.savez(tmp_path / "a1.npz", x=x[50:].numpy())
    C = from_file(tmp_path / "a*.npz").problem.C
    torch.testing.assert_close(C, torch.corrcoef(x.mT), rtol=0, atol=1e-8)


def bad(tmp_path, name):
    return {
        "missing": lambda: from_file(tmp_path / "nothing.npz"),
        "no match": lambda: from_file(tmp_path / "no*.npz"),
        "ending": lambda: (tmp_path / "x.txt").touch() or from_file(tmp_path / "x.txt"),
        "no array": lambda: (
            np.savez(tmp_path / "b.npz", a=np.ones(2), b=np.ones(2))
            or from_file(tmp_path / "b.npz")
        ),
        "vector": lambda: (
            np.savez(tmp_path / "v.npz", x=np.ones(3)) or from_file(tmp_path / "v.npz")
        ),
        "nan": lambda: (
            np.savez(tmp_path / "n.npz", x=np.array([[1.0, np.nan], [1, 2]]))
            or from_file(tmp_path / "n.npz")
        ),
        "rows": lambda: (
            np.savez(tmp_path / "r.npz", x=np.ones((3, 2)), y=np.ones((2, 1)))
            or from_file(tmp_path / "r.npz")
        ),
        "words": lambda: (
            (tmp_path / "w.csv").write_text("a,b\n1,2\n3,cat\n") and from_file(tmp_path / "w.csv")
        ),
        "empty": lambda: (tmp_path / "e.csv").touch() or from_file(tmp_path / "e.csv"),
        "broken": lambda: (tmp_path / "z.pt").write_bytes(b"no") and from_file(tmp_path / "z.pt"),
        "constant": lambda: (
            np.savez(tmp_path / "c.npz", x=np.ones((3, 2))) or from_file(tmp_path / "c.npz")
        ),
        "labels": lambda: (
            np.savez(tmp_path / "l.npz", x=np.eye(3)) or from_file(tmp_path / "l.npz", labels=3)
        ),
        "classes in shards": lambda: (
            np.savez(tmp_path / "k0.npz", x=np.eye(3), y=np.arange(3))
            or from_file(tmp_path / "k*.npz")
        ),
        "columns of shards": lambda: (
            np.savez(tmp_path / "q0.npz", x=np.eye(3))
            or np.savez(tmp_path / "q1.npz", x=np.eye(4))
            or from_file(tmp_path / "q*.npz")
        ),
        "singular": lambda: data.gaussian(3, singular="drop"),
        "target": lambda: data.digits(target="pixels"),
        "dimension": lambda: data.gaussian(0),
    }[name]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("missing", "there is none"),
        ("no match", "no file matches"),
        ("ending", r"must end in \.csv, \.tsv, \.npz, \.npy, \.pt or \.parquet"),
        ("no array", r"array named x .* it holds \['a', 'b'\]"),
        ("vector", "matrix with a sample per row"),
        ("nan", r"column 'x2', row 1 of .*n\.npz, is missing: fill in .*problem\.missing=mean"),
        ("rows", "equally many rows; got 3 and 2"),
        ("words", "column 'b', line 3 of .*w.csv, must be a number, as .*; it is 'cat'"),
        ("empty", "has no sample"),
        ("broken", "cannot be read with torch.load"),
        ("constant", "no column of x varies"),
        ("labels", "0 <= labels < 3"),
        ("classes in shards", "store them one-hot"),
        ("columns of shards", "q0.npz and .*q1.npz have x of 3 and 4 columns"),
        ("singular", "one of keep, project, whiten"),
        ("target", "autoencoder or labels"),
        ("dimension", "must be >= 1"),
    ],
)
def test_bad_input(tmp_path, name, sentence):
    with pytest.raises((ValueError, FileNotFoundError), match=sentence):
        bad(tmp_path, name)()
