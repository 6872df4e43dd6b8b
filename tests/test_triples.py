"""Files of triples: what they hold, what they are called, and one sentence for each that is bad."""

import numpy as np
import pandas
import pytest
import scipy.sparse
import torch

from deeplin.problems.biases import fit_biases
from deeplin.problems.entries import completion
from deeplin.problems.pairs import Labels, Pairs
from deeplin.problems.triples import read_triples

CSV = "user,item,rating\nann,300,4\nbob,brazil,2.5\nann,brazil,3\ncy,300,1\n"


def written(path, text):
    path.write_text(text)
    return path


def test_words_are_numbered_and_kept(tmp_path):
    found = read_triples(written(tmp_path / "r.csv", CSV))
    assert found.names == ("user", "item", "rating")
    assert found.labels[0].of.tolist() == ["ann", "bob", "cy"]
    assert found.labels[1].of.tolist() == ["300", "brazil"]  # a column of both is one of words
    assert found.rows.tolist() == [0, 1, 0, 2]
    assert found.cols.tolist() == [0, 1, 1, 0]
    assert found.values.tolist() == [4, 2.5, 3, 1]


def test_the_same_triples_from_every_kind_of_file(tmp_path):
    rng = np.random.default_rng(0)
    dense = rng.normal(size=(5, 4)) * (rng.random((5, 4)) < 0.6)
    dense[4, 3] = 1.0
    rows, cols = dense.nonzero()
    values = dense[rows, cols]
    np.savez(tmp_path / "a.npz", rows=rows, cols=cols, values=values)
    scipy.sparse.save_npz(tmp_path / "s.npz", scipy.sparse.csr_array(dense))
    frame = pandas.DataFrame({"i": rows, "j": cols, "v": values})
    frame.to_csv(tmp_path / "t.csv", index=False)
    frame.to_csv(tmp_path / "t.tsv", index=False, sep="\t")
    frame.assign(w=1.0)[["w", "v", "j", "i"]].to_parquet(tmp_path / "p.parquet")
    for name, told in {
        "a.npz": {}, "s.npz": {}, "t.csv": {}, "t.tsv": {},
        "p.parquet": {"columns": ["i", "j", "v"], "weights": "w"},
    }.items():  # fmt: skip
        data = completion(tmp_path / name, **told)
        problem = data.problem
        assert problem.shape == (5, 4)
        G = torch.zeros(5, 4, dtype=torch.float64)
        np.testing.assert_allclose(problem.egrad(G).numpy(), -dense, atol=1e-12)
        assert (problem.weights is not None) == ("weights" in told)


def test_numbers_are_indices_unless_most_are_missing(tmp_path):
    text = "a,b,c\n5,70000,1\n0,3,2\n1,70000,3\n2,9,4\n"
    found = read_triples(written(tmp_path / "r.csv", text))
    assert found.labels[0].of is None
    assert found.labels[0].size == 6
    assert found.labels[1].of.tolist() == [3, 9, 70000]
    coded = read_triples(tmp_path / "r.csv", codes=True)
    assert coded.labels[0].of.tolist() == [0, 1, 2, 5]
    plain = read_triples(tmp_path / "r.csv", codes=False, shape=[10, 70001])
    assert (plain.labels[0].size, plain.labels[1].size) == (10, 70001)


BAD = {
    "no file": ("gone.csv", None, {}, "there is none"),
    "two columns": ("r.csv", "a,b\n1,2\n", {}, "must have three columns"),
    "no entry": ("r.csv", "a,b,c\n", {}, "no sample"),
    "negative": (
        "r.csv",
        "a,b,c\n0,1,2\n0,-1,2\n",
        {},
        r"row 2 of .* index >= 0; it is -1",
    ),
    "no index": ("r.csv", "a,b,c\n0.5,1,2\n", {}, "row 1 of .* whole number.* it is 0.5"),
    "missing": ("r.csv", "a,b,c\n0,1,2\n0,,2\n", {}, "column 'b', line 3 .* is missing"),
    "no number": ("r.csv", "a,b,c\n0,1,2\n0,2,x\n", {}, "column 'c', line 3 .* must be a number"),
    "words": ("r.csv", "a,b,c\n0,1,y\n0,2,x\n", {}, "'c' .* must hold numbers; it holds words"),
    "infinite": ("r.csv", "a,b,c\n0,1,2\n0,2,inf\n", {}, "must be finite; it is inf"),
    "twice": ("r.csv", "a,b,c\n0,1,2\n1,1,2\n0,1,3\n", {}, r"\(0, 1\) is in rows 1 and 3"),
    "too small": ("r.csv", "a,b,c\n0,1,2\n", {"shape": [1, 1]}, "index below 1.* it is 1"),
    "another size": ("r.csv", CSV, {"shape": [9, 2]}, "null where user is coded, .* the 3 labels"),
    "columns": ("r.csv", CSV, {"columns": ["user", "what", "rating"]}, "has no column 'what'"),
    "two names": ("r.csv", CSV, {"columns": ["user", "item"]}, "must be three names"),
    "weights": ("r.csv", "a,b,c,w\n0,1,2,-1\n", {"weights": "w"}, "finite and >= 0; it is -1"),
    "share": ("r.csv", CSV, {"test": 0.9}, "problem.test=0.9 of 4 entries holds out 4"),
    "kind": ("r.txt", CSV, {}, "must end in .csv"),
    "arrays": ("r.npz", {"rows": [0], "cols": [0]}, {}, "arrays rows, cols and values; it holds"),
    "long": ("r.npz", {"rows": [0], "cols": [0], "values": [1.0, 2.0]}, {}, "equally long"),
    "empty": ("r.npz", {"rows": [], "cols": [], "values": []}, {}, "known entries; it holds none"),
}


@pytest.mark.parametrize("case", BAD.values(), ids=BAD)
def test_a_bad_file_is_told_in_a_sentence(case, tmp_path):
    name, content, told, sentence = case
    if isinstance(content, str):
        written(tmp_path / name, content)
    elif content is not None:
        np.savez(tmp_path / name, **{key: np.array(value) for key, value in content.items()})
    with pytest.raises((ValueError, FileNotFoundError), match=sentence) as refusal:
        completion(tmp_path / name, **told)
    assert "\n" not in str(refusal.value)
    assert str(refusal.value).endswith(".")


def test_entries_kept_twice_count_twice(tmp_path):
    path = written(tmp_path / "r.csv", "a,b,c\n0,1,2\n1,0,1\n0,1,3\n")
    problem = completion(path, duplicates="keep").problem
    assert problem.curvature(torch.zeros(2, 2)) == 2


def test_biases_are_fitted_to_what_is_not_held_out_and_given_back(tmp_path):
    rng = np.random.default_rng(1)
    rows, cols = np.divmod(rng.permutation(48)[:30], 6)
    values = 3 + rng.normal(size=8)[rows] + rng.normal(size=6)[cols]
    np.savez(tmp_path / "r.npz", rows=rows, cols=cols, values=values)
    generator = torch.Generator().manual_seed(3)
    told = {"biases": True, "ridge": 0.5, "test": 0.2, "shape": [8, 6]}
    data = completion(tmp_path / "r.npz", **told, generator=generator)
    problem, pairs = data.problem, data.preparation
    i, j, *_ = problem.held_out
    assert len(i) == 6
    known = {*zip(problem.rows.tolist(), problem.cols.tolist(), strict=True)}
    assert known.isdisjoint(zip(i.tolist(), j.tolist(), strict=True))
    original = dict(zip(zip(rows, cols, strict=True), values, strict=True))
    left = torch.tensor([original[p] for p in zip(problem.rows.tolist(), problem.cols.tolist(),
                                                  strict=True)])  # fmt: skip
    fit = fit_biases(problem.rows, problem.cols, left.double(), (8, 6), ridge=0.5)
    torch.testing.assert_close(pairs.biases.rows, fit.rows)
    torch.testing.assert_close(problem.values, left - fit.at(problem.rows, problem.cols))
    # The RMSE is in the user's units: of W and biases against the values of the file.
    A, B = torch.randn(8, 2, dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64)
    predicted = pairs.predicted(A, B, torch.stack([i, j], 1))
    told = np.array([original[p] for p in zip(i.tolist(), j.tolist(), strict=True)])
    expected = np.sqrt(np.mean((predicted.numpy() - told) ** 2))
    assert float(problem.report_pair(A, B)["test_rmse"]) == pytest.approx(expected, rel=1e-12)
    assert float(problem.report(A @ B.T)["test_rmse"]) == pytest.approx(expected, rel=1e-12)


def test_pairs_are_asked_by_their_labels():
    words = Labels.coded(np.array(["b", "a", "c"]))[0]
    pairs = Pairs(words, Labels(4), None, ("user", "item", "rating"))
    again = Pairs.from_state_dict(pairs.state_dict())
    A, B = torch.eye(3).double(), torch.arange(12.0).reshape(4, 3).double()
    for of in (pairs, again):
        x = np.array([["a", 2], ["c", 0], ["z", 1]], dtype=object)
        assert of.predicted(A, B, x).tolist() == [6.0, 2.0, 0.0]  # z was not there
        frame = pandas.DataFrame({"item": [2, 0], "x": 0, "user": ["a", "c"]})
        assert of.predicted(A, B, frame).tolist() == [6.0, 2.0]
    with pytest.raises(ValueError, match=r"item in 0..3; pair 2 has 4"):
        pairs.places(np.array([["a", 0], ["a", 4]], dtype=object))
    with pytest.raises(ValueError, match=r"shape \(p, 2\), user and item of each"):
        pairs.places(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="a column 'user'"):
        pairs.places(pandas.DataFrame({"item": [1]}))
    numbers = Pairs(Labels.coded(np.array([10**9, 7]))[0], Labels(2))
    assert numbers.places(np.array([[7, 0], [10**9, 1], [8, 1]]))[0].tolist() == [0, 1, -1]
    with pytest.raises(ValueError, match=r"whole numbers for row, as the data had; pair 1 has"):
        numbers.places(np.array([["x", 0]], dtype=object))
