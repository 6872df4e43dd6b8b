"""Places of a small matrix, in no order, for tests of products there."""

import pytest
import torch
from runner import needs_compiler

F64 = torch.float64
M, N = 7, 5
# Rows 1 and 6 and column 3 have no place; (2, 4) is listed three times.
ROWS = torch.tensor([5, 2, 0, 2, 3, 2, 4, 0, 3, 2, 5, 4])
COLS = torch.tensor([1, 4, 0, 4, 2, 4, 1, 2, 0, 1, 4, 0])
WAYS = [pytest.param("compiled", marks=needs_compiler), "torch"]


def draws(randn, *batch, k=3, dtype=F64):
    def draw(*shape):
        real = randn(*batch, *shape).to(dtype)
        return real + 1j * randn(*batch, *shape).to(dtype) if dtype.is_complex else real

    return draw(M, k), draw(N, k), draw(len(ROWS))
