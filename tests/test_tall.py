"""Products with tall matrices in compiled code: torch's numbers, whatever the layout in memory."""

import ctypes
import mmap

import pytest
import torch
from runner import needs_compiler

from deeplin.linalg import adjoint_products, plus_tall_times, sum_of_tall, tall, tall_times

F64, F32 = torch.float64, torch.float32


@pytest.fixture
def any_size(monkeypatch):
    """Matrices of all sizes go through the loops, in chunks of 100 rows."""
    for name, value in {"_LEAST": 1, "_WIDEST": {F64: 32, F32: 64}, "_CHUNK": 100}.items():
        monkeypatch.setattr(tall, name, value)


@pytest.fixture
def used(monkeypatch):
    """The loops that were asked for, None where BLAS had to do it."""
    seen, given = [], tall._loops_for

    def asked(*args):
        seen.append(given(*args))
        return seen[-1]

    monkeypatch.setattr(tall, "_loops_for", asked)
    return seen


def layouts(randn, rows, columns, dtype):
    """The same kind of matrix: by itself, rows and columns of a larger one, column by column."""
    wide, high = randn(rows, columns + 3).to(dtype), randn(rows + 7, columns).to(dtype)
    by_columns = randn(columns, rows).to(dtype).mT
    return randn(rows, columns).to(dtype), wide[:, 2 : 2 + columns], high[4 : 4 + rows], by_columns


@needs_compiler
@pytest.mark.parametrize("dtype", [F64, F32], ids=str)
@pytest.mark.parametrize("columns", [1, 2, 3, 4, 7, 10, 13, 20, 27, 32])
@pytest.mark.parametrize("rows", [1, 2, 3, 64, 66, 100, 101, 777])
def test_products_are_those_of_torch(rows, columns, dtype, randn, any_size, used):
    eps = torch.finfo(dtype).eps
    others = layouts(randn, rows, min(columns + 2, 32), dtype)
    given = layouts(randn, rows, columns, dtype)
    pairs = [(A, B) for A in others for B in given]
    for (A, B), found in zip(pairs, adjoint_products(*pairs, group=None), strict=True):
        torch.testing.assert_close(found, A.mT @ B, rtol=0, atol=30 * eps * rows**0.5 * 4)
    small = randn(columns, 5).to(dtype), randn(5, columns).to(dtype).mT
    for C in (None, *layouts(randn, rows, 5, dtype)):
        terms = [(A, T) for A in given for T in small]
        want = sum(A.double() @ T.double() for A, T in terms) + (0 if C is None else C.double())
        found = sum_of_tall(*terms, plus=C)
        assert found.dtype == dtype
        assert found.is_contiguous()
        torch.testing.assert_close(found.double(), want, rtol=0, atol=100 * eps * columns**0.5 * 8)
        if C is not None:
            found = plus_tall_times(C, given[0], small[1], beta=0.3, alpha=-2.0)
            want = 0.3 * C - 2 * given[0] @ small[1]
            torch.testing.assert_close(found, want, rtol=0, atol=100 * eps * columns**0.5)
    assert None not in used


@needs_compiler
def test_several_heights_at_once(randn, any_size, used):
    A, B, C, D = randn(300, 4), randn(300, 6), randn(200, 5), randn(200, 2)
    pairs = (A, B), (C, D), (B, A), (D, D), (A, A)
    for (one, other), found in zip(pairs, adjoint_products(*pairs, group=None), strict=True):
        torch.testing.assert_close(found, one.mT @ other)
    assert len(used) == 2
    assert None not in used


@needs_compiler
def test_threads_change_no_bit(randn, any_size):
    A, B, T = randn(950, 7), randn(950, 5), randn(7, 5)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append((*adjoint_products((A, B), group=None), plus_tall_times(B, A, T)))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@needs_compiler
@pytest.mark.parametrize("columns", [1, 3, 5, 10])
def test_nothing_is_read_behind_the_last_row(columns, randn, any_size, used):
    """Matrices that end where the next page of memory may not be touched."""
    size, rows = mmap.PAGESIZE, 37
    libc = ctypes.CDLL(None, use_errno=True)
    region = mmap.mmap(-1, 2 * size)
    start = ctypes.addressof(ctypes.c_char.from_buffer(region))
    assert libc.mprotect(ctypes.c_void_p(start + size), ctypes.c_size_t(size), 0) == 0
    page = torch.frombuffer(region, dtype=F64, count=size // 8)
    A = page[-rows * columns :].view(rows, columns)
    A.copy_(randn(rows, columns))
    B, T = A.clone(), randn(columns, columns)
    torch.testing.assert_close(adjoint_products((A, A), group=None)[0], B.mT @ B)
    torch.testing.assert_close(plus_tall_times(A, A, T), B + B @ T)
    A = B.clone()
    T = page[-columns * columns :].view(columns, columns)
    T.copy_(randn(columns, columns))
    torch.testing.assert_close(plus_tall_times(A, A, T), A + A @ T.clone())
    assert len(used) == 3
    assert None not in used
    assert libc.mprotect(ctypes.c_void_p(start + size), ctypes.c_size_t(size), 3) == 0


@needs_compiler
def test_what_is_left_to_torch(randn, any_size, used):
    """Derivatives, transforms, complex numbers, wide matrices, batches, shapes that broadcast."""
    A, B, T = randn(50, 4), randn(50, 3), randn(4, 3)
    taped = A.clone().requires_grad_()
    (adjoint_products((taped, B), group=None)[0].sum() + tall_times(taped, T).sum()).backward()
    want = B.sum(1, keepdim=True) + T.sum(1)
    torch.testing.assert_close(taped.grad, want.expand(50, 4))
    in_T = T.clone().requires_grad_()
    plus_tall_times(B, A, in_T).sum().backward()
    torch.testing.assert_close(in_T.grad, A.sum(0)[:, None].expand(4, 3))
    mapped = torch.func.vmap(lambda T: plus_tall_times(B, A, T))(torch.stack([T, 2 * T]))
    torch.testing.assert_close(mapped[1], B + 2 * A @ T)
    Z = torch.complex(A, A)
    torch.testing.assert_close(adjoint_products((Z, Z), group=None)[0], Z.mH @ Z)
    wide = randn(50, 33)
    torch.testing.assert_close(adjoint_products((wide, wide), group=None)[0], wide.mT @ wide)
    adjoint_products((wide, A), group=None)
    assert used[-1] is None
    # A minus that is not done yet.
    for lazy in (Z.conj().imag, randn(50, 4)):
        lazy = torch._neg_view(lazy) if not lazy.is_neg() else lazy
        plain = lazy.resolve_neg().clone()
        torch.testing.assert_close(adjoint_products((lazy, lazy), group=None)[0], plain.mT @ plain)
        found = plus_tall_times(lazy, lazy, lazy[:4])
        torch.testing.assert_close(found, plain + plain @ plain[:4])
    batch = randn(2, 50, 4)
    torch.testing.assert_close(adjoint_products((batch, B), group=None)[0], batch.mT @ B)
    torch.testing.assert_close(plus_tall_times(B[:1], A, T), B[:1] + A @ T)
    torch.testing.assert_close(plus_tall_times(B[:, :1], A, T), B[:, :1] + A @ T)
    with pytest.raises(RuntimeError, match="shape"):
        adjoint_products((A, B[:40]), group=None)
    with pytest.raises(RuntimeError, match="shape"):
        plus_tall_times(B, A, T[:3])


def test_small_matrices_and_machines_without_a_compiler(randn, monkeypatch, tmp_path, used):
    A, B = randn(400, 4), randn(400, 3)
    torch.testing.assert_close(adjoint_products((A, B), group=None)[0], A.mT @ B)
    assert used == []
    monkeypatch.setenv("CC", "no-such-compiler")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    A, B = randn(20_000, 4), randn(20_000, 3)
    torch.testing.assert_close(adjoint_products((A, B), group=None)[0], A.mT @ B)
    torch.testing.assert_close(plus_tall_times(A, B, randn(3, 4) * 0), A)
    assert used == [None, None]
