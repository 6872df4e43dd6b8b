"""Files as they come: marks, headers, damage, sizes; each read whole and right, or refused."""

import io
import zipfile

import numpy as np
import pytest
import torch

from deeplin import DeepLinear
from deeplin.problems import LeastSquares, memory
from deeplin.problems.data import one_hot, prepare
from deeplin.problems.readers import from_file, read_matrices
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
