"""What tests of the optimizers share: closures, loops, a completion."""

import torch

from deeplin import MatrixCompletion

F64 = torch.float64


def closure_of(optimizer, loss):
    def closure():
        optimizer.zero_grad()
        value = loss()
        value.sum().backward()
        return value

    return closure


def run(optimizer, loss, steps):
    for _ in range(steps):
        optimizer.step(closure_of(optimizer, loss))
        if bool(optimizer.finished.all()):
            break
    return optimizer


def completion(randn, *batch, shape=(30, 25), rank=2, known=400, **options):
    rows = torch.arange(known) * 7 % shape[0]
    cols = torch.arange(known) * 11 % shape[1] + torch.arange(known) // 330
    truth = randn(*batch, shape[0], rank) @ randn(*batch, rank, shape[1])
    cols = cols % shape[1]
    return truth, MatrixCompletion(rows, cols, truth[..., rows, cols], shape, **options)


def planted(seed=0, *, shape=(60, 50), rank=3, oversampling=3.0, **options):
    """(completion of a random matrix, its factors)."""
    return MatrixCompletion.planted(
        shape,
        rank,
        oversampling=oversampling,
        generator=torch.Generator().manual_seed(seed),
        dtype=F64,
        **options,
    )
