"""Tables as people have them: names, words, gaps, an index, separators, other formats."""

import io

import numpy as np
import pandas
import pytest
import torch
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import StandardScaler

from deeplin.problems.data import prepare
from deeplin.problems.readers import from_file, from_frame

F64 = torch.float64


def read(path, content, **options):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return from_file(path, standardize=False, normalize=False, **options)


TABLE = """{0}size{1}kind{1}price
{2}1.5{1}red{1}10
{3}2.5{1}white{1}20
{4}4{1}red{1}35
{5}5{1}rosé{1}30
"""


def table(mark=",", index=True):
    first = [mark, mark, *(f"{i}{mark}" for i in range(4))] if index else ["", mark, *4 * [""]]
    return TABLE.format(*first)


@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
@pytest.mark.parametrize("index", [True, False])
def test_names_words_index_and_separators_are_understood(tmp_path, mark, index):
    """Against the same numbers, encoded by hand; red is what white and rosé are told from."""
    data = read(tmp_path / "a.csv", table(mark, index), labels="price")
    by_hand = torch.tensor([[1.5, 0, 0], [2.5, 0, 1], [4, 0, 0], [5, 1, 0]], dtype=F64)
    assert torch.equal(data.x, by_hand)
    assert data.y.ravel().tolist() == [10, 20, 35, 30]
    assert data.preparation.x.names == ("size", "kind=rosé", "kind=white")
    assert ("which counts the rows, left out" in data.notes[0]) == index


def test_a_column_that_does_not_count_is_kept(tmp_path):
    text = "".join(f"{i * i},{i}.5,{i}\n" for i in range(4))
    assert read(tmp_path / "a.csv", ",b,c\n" + text).x.shape == (4, 3)
    counting = "".join(f"{i},{i}.5,1\n" for i in range(4))
    assert read(tmp_path / "b.csv", "a,b,c\n" + counting).x.shape == (4, 3)


@pytest.mark.parametrize("labels", [1, "price", ["price"]])
@pytest.mark.parametrize("name", ["a.csv", "a.parquet", "frame"])
def test_every_table_gives_the_same(tmp_path, labels, name):
    frame = pandas.read_csv(io.StringIO(table()), index_col=0)
    path = tmp_path / name
    if name == "frame":
        data = from_frame(frame, labels)
    else:
        (frame.to_csv if name == "a.csv" else frame.to_parquet)(path)
        data = from_file(path, labels=labels)
    expected = prepare(
        torch.tensor([[1.5, 0, 0], [2.5, 0, 1], [4, 0, 0], [5, 1, 0]], dtype=F64),
        torch.tensor([[10.0], [20], [35], [30]], dtype=F64),
    )
    torch.testing.assert_close(data.problem.C, expected.problem.C)
    torch.testing.assert_close(data.problem.B, expected.problem.B)


def test_words_and_named_whole_numbers_are_classes(tmp_path):
    words = read(tmp_path / "a.csv", "x,kind\n1,b\n2,a\n4,b\n", labels="kind")
    assert words.preparation.classes == ("a", "b")
    assert words.y.tolist() == [[0, 1], [1, 0], [0, 1]]
    text = "x,kind\n1,7\n2,3\n4,7\n5,9\n"
    numbers = read(tmp_path / "b.csv", text, labels="kind", categories=["kind"])
    assert numbers.preparation.classes == (3, 7, 9)
    plain = read(tmp_path / "b.csv", text, labels="kind")
    assert plain.y.ravel().tolist() == [7, 3, 7, 9]
    assert any("problem.categories=[kind] makes classes" in note for note in plain.notes)


GAPS = "a,b,kind,y\n1,2,red,1\n,3,white,2\n5,NA,red,4\n6,7,,3\n8,9,red,\n2,2,white,7\n"


def test_cells_that_are_missing_are_named_dropped_or_filled(tmp_path):
    """Filled as scikit-learn's SimpleImputer fills, the mean of one-hot columns for a word."""
    path = tmp_path / "a.csv"
    with pytest.raises(ValueError, match=r"column 'a', line 3 of .*a\.csv, and cells of 3 other"):
        read(path, GAPS, labels=1)
    assert read(path, GAPS, labels=1, missing="drop").y.ravel().tolist() == [1, 7]
    encoded = np.array([[1, 2, 0], [np.nan, 3, 1], [5, np.nan, 0], [6, 7, np.nan], [2, 2, 1]])
    filled = SimpleImputer().fit_transform(encoded)
    data = read(path, GAPS, labels=1, missing="mean")
    np.testing.assert_allclose(data.x, filled)
    assert data.y.ravel().tolist() == [1, 2, 4, 3, 7]
    assert any("1 rows that miss a label were left out" in note for note in data.notes)
    scaled = StandardScaler().fit_transform(filled)
    made = from_file(path, labels=1, missing="mean", normalize=False)
    np.testing.assert_allclose(made.x, scaled, atol=1e-15)
    halves = GAPS.splitlines()
    for i, part in enumerate((halves[1:3], halves[3:4] + halves[5:])):
        body = "\n".join(line.replace("red", "0").replace("white", "1") for line in part)
        (tmp_path / f"s{i}.csv").write_text(f"{halves[0]}\n{body}\n")
    streamed = from_file(tmp_path / "s*.csv", labels=1, missing="mean").problem
    encoded = encoded[[0, 1, 2, 4]]
    z = StandardScaler().fit_transform(SimpleImputer().fit_transform(encoded)) / 2
    np.testing.assert_allclose(streamed.C, z.T @ z, atol=1e-15)


@pytest.mark.parametrize(
    ("text", "options", "sentence"),
    [
        (GAPS, {"labels": "yy"}, r"has no column 'yy'; near are 'y'"),
        (GAPS, {"labels": ["a", "b", "kind", "y"]}, "must leave columns for x; it names all"),
        (GAPS, {"categories": ["c"]}, r"has no column 'c'"),
        ("a;b\n1,5;2,5\n2,5;3,5\n", {}, "write decimal points, or give .* problem.separator"),
        ("a,b\n1.5,2\n2,3\n", {"categories": ["a"]}, "whole numbers; 'a' of .* holds others"),
        ("a,b\n1,x\n2,y\n,z\n", {"missing": "no"}, "one of error, drop, mean; got 'no'"),
    ],
)
def test_what_no_table_has_is_named(tmp_path, text, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        read(tmp_path / "a.csv", text, **options)


def test_words_in_a_stream_are_refused(tmp_path):
    for i in range(2):
        (tmp_path / f"s{i}.csv").write_text(table())
    with pytest.raises(ValueError, match=r"column 'kind' of .*s0\.csv holds words"):
        from_file(tmp_path / "s*.csv", labels=1)


def test_times_in_a_frame_are_refused_by_their_column():
    frame = pandas.DataFrame(
        {"a": [1, 2], "when": pandas.to_datetime(["2020-01-01", "2021-01-01"])}
    )
    with pytest.raises(ValueError, match=r"column 'when' of the table must hold numbers or words"):
        from_frame(frame)
