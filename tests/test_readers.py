"""Files as they come: marks, headers, damage, sizes; each read whole and right, or refused."""

import io
import zipfile

import numpy as np
import pandas
import pytest
import torch
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import StandardScaler

from deeplin import DeepLinear
from deeplin.problems import LeastSquares, memory
from deeplin.problems.data import one_hot, prepare
from deeplin.problems.readers import from_file, from_frame, read_matrices
from deeplin.runner import starts

F64 = torch.float64
ROWS = "0.5,1,2\n1.5,-1,0\n-2,0.25,1\n3,1,4\n"
X = torch.tensor([[0.5, 1, 2], [1.5, -1, 0], [-2, 0.25, 1], [3, 1, 4]], dtype=F64)


def read(path, content, **options):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return from_file(path, standardize=False, normalize=False, **options)


# -- tables of text --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "header"),
    [
        (ROWS, None),
        ("\ufeff" + ROWS, None),  # as Excel saves "CSV UTF-8"
        ("\ufeffa,b,c\n" + ROWS, "a, b, c"),
        ("# a,b,c\n" + ROWS, "# a, b, c"),
        ('"a,b",c,d\n' + ROWS, "a,b, c, d"),
        (",b,c\n" + ROWS, ", b, c"),
        ("\n  \n" + ROWS, None),
        ("\n\na,b,c\n" + ROWS, "a, b, c"),
        (ROWS.replace("\n", "\r\n"), None),
        (ROWS.replace("0.5,", '"0.5", '), None),
        (ROWS.replace("\n", "\n\n"), None),
    ],
)
def test_every_sample_of_a_table_is_read(tmp_path, text, header):
    data = read(tmp_path / "a.csv", text)
    assert torch.equal(data.x, X)
    told = f", 3 columns ({header})" if header else ""
    assert data.notes[0] == f"{tmp_path / 'a.csv'}, 4 samples{told}"


@pytest.mark.parametrize("cell", ["NA", "", "0x10", "True", "1\x00", "1_0", "6#7", "#9"])
@pytest.mark.parametrize("line", [1, 2, 5])
def test_a_cell_that_is_no_number_is_named_wherever_it_is(tmp_path, cell, line):
    lines = ROWS.splitlines()
    lines.insert(line - 1, f"4,5,{cell}")
    with pytest.raises(ValueError, match=rf"column 'x3', line {line}( of .*a.csv, | has a zero)"):
        read(tmp_path / "a.csv", "\n".join(lines))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "no sample"),
        ("\n\n", "no sample"),
        ("a,b,c\n", "no sample"),
        (ROWS + "1,2\n", "line 5 has 2 cells, the first line 3, with ',' between"),
        ("a" * 200_000 + ",b\n1,2\n", "field larger than"),
        (ROWS.encode("utf-16"), "text in UTF-8"),
        ("é,b\n".encode("latin-1") + b"1,2\n", "text in UTF-8"),
        (ROWS + "nan,1,2\n", "column 'x1', line 5 of .*a.csv, is missing"),
        (ROWS + "1e400,1,2\n", "column 'x1', row 5 of .*a.csv, must be finite"),
    ],
)
def test_a_table_that_is_none_is_refused(tmp_path, content, sentence):
    with pytest.raises(ValueError, match=sentence):
        read(tmp_path / "a.csv", content)


# -- tables as people have them --------------------------------------------------------------------

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


# -- shards ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("second", "what"),
    [
        ({}, "y of 3 columns and no y"),
        ({"y": X[:, :1]}, "y of 3 columns and y of 1 columns"),
    ],
)
@pytest.mark.parametrize("standardize", [True, False])
def test_shards_that_do_not_fit_each_other_are_named(tmp_path, second, what, standardize):
    np.savez(tmp_path / "s0.npz", x=X, y=X + 1)
    np.savez(tmp_path / "s1.npz", x=X, **second)
    with pytest.raises(ValueError, match=rf"s0.npz and .*s1.npz have {what}"):
        from_file(tmp_path / "s*.npz", standardize=standardize)
    np.savez(tmp_path / "s1.npz", x=X[:, :2], y=X + 1)
    with pytest.raises(ValueError, match=r"s0.npz and .*s1.npz have x of 3 and 2 columns"):
        from_file(tmp_path / "s*.npz", standardize=standardize)


def test_names_in_shards_are_told(tmp_path):
    for i in range(2):
        (tmp_path / f"s{i}.csv").write_text("a,b,c\n" * i + ROWS)
    data = from_file(tmp_path / "s*.csv")
    assert data.problem.m == 8
    assert "1 of them with names, s1.csv, 3 columns (a, b, c)" in data.notes[1]


def test_a_file_whose_name_looks_like_a_pattern_is_a_file(tmp_path):
    np.savez(tmp_path / "data[1].npz", x=X)
    assert from_file(tmp_path / "data[1].npz", standardize=False, normalize=False).x.equal(X)


# -- tensors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (lambda: {"x": X, "y": [1, 2, 3, 4]}, "y in .* must be a tensor; it is a list"),
        (lambda: {"x": X, "y": "abc"}, "y in .* must be a tensor; it is a str"),
        (lambda: X.to_sparse(), "sparse"),
        (lambda: {"x": X.to_sparse_csr()}, "sparse"),
        (lambda: torch.nested.nested_tensor([X[:2], X]), "nested"),
        (lambda: X.to("meta"), "meta"),
    ],
    ids=["list", "str", "sparse", "csr", "nested", "meta"],
)
@pytest.mark.filterwarnings("ignore:Sparse CSR|The PyTorch API of nested")
def test_what_is_no_dense_tensor_is_refused(tmp_path, content, sentence):
    torch.save(content(), tmp_path / "a.pt")
    with pytest.raises(ValueError, match=sentence):
        from_file(tmp_path / "a.pt")


def test_parameters_are_read_as_numbers(tmp_path):
    torch.save({"x": torch.nn.Parameter(X), "y": X[:, :1].requires_grad_()}, tmp_path / "a.pt")
    data = from_file(tmp_path / "a.pt")
    assert not data.x.requires_grad
    assert not data.problem.B.requires_grad


# -- archives --------------------------------------------------------------------------------------


def archive(compressed):
    file = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(file, x=X, y=X[:, :1])
    return file.getvalue()


@pytest.mark.parametrize("compressed", [False, True])
def test_a_damaged_archive_is_refused_or_harmless(tmp_path, compressed):
    """Cut anywhere, and 300 flipped bits: the same numbers or one sentence, nothing else."""
    good, path = archive(compressed), tmp_path / "a.npz"
    draws = np.random.default_rng(0).integers(8 * len(good), size=300)
    damaged = [good[: len(good) * part // 100] for part in (0, 1, 10, 50, 90, 99)]
    for bit in draws:
        flipped = bytearray(good)
        flipped[bit // 8] ^= 1 << (bit % 8)
        damaged.append(bytes(flipped))
    refused = []
    for content in damaged:
        try:
            data = read(path, content)
        except ValueError as error:
            refused.append(str(error))
        else:
            assert torch.equal(data.x, X)
            assert torch.equal(data.y, X[:, :1])
    assert len(refused) > len(damaged) / 2  # what lies in dates and attributes changes nothing
    assert all(str(path) in sentence for sentence in refused)


def claiming(path, shape, stored, **options):
    """An archive whose array claims a shape and holds so many bytes of zeros."""
    with (
        zipfile.ZipFile(path, "w", **options) as file,
        file.open("x.npy", "w", force_zip64=True) as array,
    ):
        header = {"descr": "<f8", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(array, header)
        array.write(bytes(stored))


def test_an_array_that_claims_more_than_it_holds_is_refused(tmp_path):
    claiming(tmp_path / "a.npz", (10**6, 8 * 10**6), 24)
    with pytest.raises(ValueError, match=r"claims the shape \(1000000, 8000000\).* 24 bytes"):
        from_file(tmp_path / "a.npz")


def test_memory_is_asked_for_before_it_is_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_memory", lambda: 2**20)
    claiming(tmp_path / "bomb.npz", (2**14, 8), 2**20, compression=zipfile.ZIP_DEFLATED)
    assert (tmp_path / "bomb.npz").stat().st_size < 2**12
    torch.save(torch.zeros(1, 1, dtype=F64).expand(2**14, 8), tmp_path / "expanded.pt")
    for name in ("bomb.npz", "expanded.pt"):
        with pytest.raises(ValueError, match=r"needs 2 MiB of memory; the machine has 1 MiB"):
            from_file(tmp_path / name)
    with pytest.raises(ValueError, match=r"XXᴴ of 400 columns of x needs 3.66 MiB"):
        LeastSquares.from_samples(torch.zeros(2, 400, dtype=F64), torch.zeros(2, 400, dtype=F64))
    with pytest.raises(ValueError, match="a column for each of 1000 classes"):
        one_hot(torch.arange(1000), F64)


@pytest.mark.parametrize("name", ["y", "x"])
def test_other_byte_orders_are_read_and_labels_alone_are_not(tmp_path, name):
    np.savez(tmp_path / "a.npz", **{name: X.numpy().astype(">f8")})
    if name == "x":
        assert from_file(tmp_path / "a.npz", standardize=False, normalize=False).x.equal(X)
    else:
        with pytest.raises(ValueError, match=r"must hold an array named x .* \['y'\]"):
            from_file(tmp_path / "a.npz")


# -- sizes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1e-300, 1e-200, 1e-160, 1e160, 1e200, 1e300, None])
def test_standardising_does_not_depend_on_the_size(tmp_path, randn, size):
    """To round-off, the condition of the data (below 10) times 1e-15; None mixes the sizes."""
    x = randn(40, 3)
    sizes = torch.tensor([1e-300, 1.0, 1e300] if size is None else [size] * 3, dtype=F64)
    np.savez(tmp_path / "a.npz", x=x * sizes)
    for i in range(2):
        np.savez(tmp_path / f"s{i}.npz", x=(x * sizes)[i::2])
    expected = np.corrcoef(x.numpy().T)
    for name in ("a.npz", "s*.npz"):
        C = from_file(tmp_path / name).problem.C
        np.testing.assert_allclose(C, expected, rtol=0, atol=1e-14)


def test_a_column_that_begins_with_zeros_keeps_its_digits(randn, tmp_path):
    x = randn(40, 2)
    x[:20, 1] = 0
    for i, part in enumerate((x[:20], x[20:])):
        np.savez(tmp_path / f"s{i}.npz", x=part * torch.tensor([1.0, 1e-300], dtype=F64))
    C = from_file(tmp_path / "s*.npz").problem.C
    np.testing.assert_allclose(C, np.corrcoef(x.numpy().T), rtol=0, atol=1e-14)


def test_standardising_of_float64_for_float32_happens_in_float64(randn, tmp_path):
    x = randn(40, 3)
    np.savez(tmp_path / "a.npz", x=x * 1e60 + 1e62)
    data = from_file(tmp_path / "a.npz", dtype=torch.float32)
    assert data.x.dtype == data.problem.C.dtype == torch.float32
    np.testing.assert_allclose(data.problem.C, np.corrcoef(x.numpy().T), rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match=r"beyond float32: use dtype=float64"):
        from_file(tmp_path / "a.npz", dtype=torch.float32, standardize=False)


@pytest.mark.parametrize(
    ("x_size", "y_size", "sentence"),
    [
        (1.0, 1e200, "‖Y‖² must be between"),
        (1.0, 1e-200, "‖Y‖² must be between"),
        (1e160, 1.0, "tr XXᴴ must be between"),
        (1e-160, 1.0, "tr XXᴴ must be between"),
        (0.0, 1.0, "tr XXᴴ must be between"),
    ],
)
def test_squares_that_leave_the_number_format_are_refused(randn, x_size, y_size, sentence):
    x, y = x_size * randn(20, 3), y_size * randn(20, 2)
    with pytest.raises(ValueError, match=sentence):
        prepare(x, y, standardize=False)
    with pytest.raises(ValueError, match=sentence):
        LeastSquares.from_batches([(x, y)])


@pytest.mark.parametrize("y", [torch.ones(20, 1), torch.full((20, 2), 0.1), torch.ones(20).int()])
def test_labels_that_never_vary_are_refused(randn, tmp_path, y):
    """Centred they are 0, and no direction is left to learn."""
    np.savez(tmp_path / "a.npz", x=randn(20, 3), y=y)
    with pytest.raises(ValueError, match="no column of y varies"):
        from_file(tmp_path / "a.npz")


def test_a_constant_column_of_labels_is_centred_to_zero(randn):
    y = torch.cat([randn(20, 1), torch.full((20, 1), 0.1, dtype=F64)], 1)
    assert prepare(randn(20, 3), y).y[:, 1].eq(0).all()


# -- W(0) ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [F64, torch.complex128])
@pytest.mark.parametrize("batch", [(), (3,)])
def test_matrices_of_a_file_may_be_complex_or_a_stack(tmp_path, randn, dtype, batch):
    W = randn(*batch, 4, 3)
    W = torch.complex(W, randn(*batch, 4, 3)) if dtype.is_complex else W
    np.savez(tmp_path / "W.npz", W=W.numpy())
    torch.save({"x": W}, tmp_path / "W.pt")
    for name in ("W.npz", "W.pt"):
        assert torch.equal(read_matrices(tmp_path / name, dtype), W)
    if dtype.is_complex:
        with pytest.raises(ValueError, match="must hold a real, non-empty matrix"):
            read_matrices(tmp_path / "W.npz", F64)


def test_a_stack_of_starts_is_one_for_each_repeat(tmp_path, randn):
    generator = torch.Generator().manual_seed(0)
    W = randn(3, 4, 2) @ randn(3, 2, 5)
    np.savez(tmp_path / "W.npz", W=W)
    net = DeepLinear([5, 2, 4], batch_shape=(3,), dtype=F64)
    starts.balanced(net, generator, path=str(tmp_path / "W.npz"))
    torch.testing.assert_close(net.end_to_end().detach(), W)
    for batch in ((), (2,)):
        net = DeepLinear([5, 2, 4], batch_shape=batch, dtype=F64)
        with pytest.raises(ValueError, match=r"a stack of shape \(3,\)"):
            starts.balanced(net, generator, path=str(tmp_path / "W.npz"))
    complex_net = DeepLinear([5, 2, 4], dtype=torch.complex128)
    Z = torch.complex(W[0], W[0])
    torch.save(Z, tmp_path / "Z.pt")
    starts.balanced(complex_net, generator, path=str(tmp_path / "Z.pt"))
    torch.testing.assert_close(complex_net.end_to_end().detach(), Z)
