"""Shared by all tests: one thread (repeatable bits, no contention) and seeded draws."""

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(20201015)


@pytest.fixture
def randn(generator):
    """Standard Gaussian tensors in float64."""

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    return draw
