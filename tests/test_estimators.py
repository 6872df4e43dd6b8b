"""Completion and reduced-rank regression with scikit-learn's interface, against dense formulas."""

import numpy as np
import pytest
from scipy import sparse
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.linear_model import LinearRegression
from sklearn.metrics import r2_score
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OrdinalEncoder
from sklearn.utils.estimator_checks import parametrize_with_checks

from deeplin.estimators import LowRankCompletion, ReducedRankRegression

PAIRS = "X is pairs of whole numbers (row, column); the check draws other features"
SMALL = "the default rank is above what the small matrix of the check can have"
ENTRIES = "of a sparse matrix there is one prediction for each stored entry, not for each row"
REFUSED = {
    PAIRS: """check_fit_score_takes_y check_estimators_overwrite_params
        check_dont_overwrite_parameters check_estimators_fit_returns_self
        check_readonly_memmap_input check_n_features_in_after_fitting check_estimators_dtypes
        check_sample_weights_list check_sample_weight_equivalence_on_dense_data
        check_dtype_object check_pipeline_consistency check_estimators_nan_inf
        check_estimators_pickle check_f_contiguous_array_estimator check_regressors_train
        check_regressor_data_not_an_array check_regressors_no_decision_function
        check_supervised_y_2d check_regressors_int check_non_transformer_estimators_n_iter
        check_transformer_data_not_an_array check_transformer_general
        check_transformer_preserve_dtypes check_transformer_n_iter
        check_methods_sample_order_invariance check_methods_subset_invariance
        check_dict_unchanged check_fit_idempotent check_fit_check_is_fitted check_n_features_in
        check_fit2d_predict1d""",
    SMALL: """check_sample_weights_pandas_series check_sample_weights_not_an_array
        check_sample_weights_shape check_sample_weights_not_overwritten
        check_sample_weight_equivalence_on_sparse_data""",
    ENTRIES: """check_estimator_sparse_tag check_estimator_sparse_array
        check_estimator_sparse_matrix""",
}


def failing(estimator):
    """The checks that a completion cannot pass, each with its reason."""
    if isinstance(estimator, ReducedRankRegression):
        return {}
    return {name: reason for reason, names in REFUSED.items() for name in names.split()}


@parametrize_with_checks(
    [ReducedRankRegression(), LowRankCompletion()], expected_failed_checks=failing
)
def test_conventions_of_scikit_learn(estimator, check):
    check(estimator)


# -- completion ------------------------------------------------------------------------------------


@pytest.fixture
def draw():
    return np.random.default_rng(20201015)


def planted(draw, m=40, n=30, rank=2, share=0.6, noise=0.0):
    """(pairs, entries, the matrix), with biases."""
    W = draw.standard_normal((m, rank)) @ draw.standard_normal((rank, n))
    W += 3 + draw.standard_normal((m, 1)) + draw.standard_normal(n)
    pairs = np.argwhere(draw.random((m, n)) < share)
    return pairs, W[*pairs.T] + noise * draw.standard_normal(len(pairs)), W


def every(m, n):
    return np.argwhere(np.ones((m, n), bool))


@pytest.mark.parametrize(("method", "biases"), [("cg", True), ("trust_region", False)])
def test_exact_matrices_are_found(method, biases, draw):
    """Rank 2 and biases are of rank 4 in all, with or without biases being fitted."""
    pairs, entries, W = planted(draw)
    model = LowRankCompletion(4, biases=biases, method=method, random_state=0).fit(pairs, entries)
    np.testing.assert_allclose(model.predict(every(40, 30)), W.ravel(), atol=1e-5)
    assert model.score(pairs, entries) == pytest.approx(1)
    assert model.n_iter_ > 1


def ridge_biases(pairs, y, shape, ridge):
    """μ, a, b from the augmented least-squares problem, dense."""
    m, n = shape
    design = np.zeros((len(pairs) + m + n, m + n))
    design[np.arange(len(pairs)), pairs[:, 0]] = 1
    design[np.arange(len(pairs)), m + pairs[:, 1]] = 1
    design[len(pairs) :] = ridge**0.5 * np.eye(m + n)
    mean = y.mean()
    x = np.linalg.lstsq(design, np.concatenate([y - mean, np.zeros(m + n)]), rcond=None)[0]
    return mean, x[:m], x[m:]


@pytest.mark.parametrize("weight", [None, 2.0])
def test_biases_and_ridge_are_those_in_closed_form(weight, draw):
    """All entries known: W is the truncated SVD of the residual, times w/(w + λ)."""
    pairs, X = every(15, 12), draw.standard_normal((15, 12)) + draw.standard_normal((15, 1))
    model = LowRankCompletion(3, biases=2.0, reg=0.5, tol=1e-10, random_state=0)
    w = 1.0 if weight is None else weight
    model.fit(pairs, X.ravel(), None if weight is None else np.full(180, w))
    mean, a, b = ridge_biases(pairs, X.ravel(), X.shape, 2.0 / w)
    assert model.mean_ == pytest.approx(mean)
    np.testing.assert_allclose(model.row_biases_, a)
    np.testing.assert_allclose(model.column_biases_, b, atol=1e-12)
    U, s, Vh = np.linalg.svd(X - mean - a[:, None] - b)
    np.testing.assert_allclose(model.singular_values_, s[:3] * w / (w + 0.5))
    W = (model.row_components_ * model.singular_values_) @ model.components_
    np.testing.assert_allclose(W, (U[:, :3] * s[:3]) @ Vh[:3] * w / (w + 0.5), atol=1e-8)
    R = X - mean - a[:, None] - b
    loss = 0.5 * w * np.square(R - W).sum() + 0.25 * np.square(W).sum()
    assert model.loss_ == pytest.approx(loss)


def test_the_rank_is_that_above_the_gap(draw):
    pairs, entries, _ = planted(draw, m=80, n=60)
    model = LowRankCompletion("gap", random_state=0).fit(pairs, entries)
    assert model.rank_ == model.gap_.rank == 2
    assert model.gap_.sigma[1] > model.gap_.edge > model.gap_.sigma[2]
    assert not hasattr(model.set_params(rank=2).fit(pairs, entries), "gap_")
    with pytest.raises(ValueError, match=r"no gap: .* give a rank"):
        model.set_params(rank="gap").fit(pairs, draw.standard_normal(len(pairs)))
    model.fit(pairs, np.full(len(pairs), 3.0))  # of which the mean leaves nothing
    assert model.rank_ == 1
    assert not hasattr(model, "gap_")


def test_a_sparse_matrix_is_its_stored_entries(draw):
    pairs, entries, _ = planted(draw, noise=0.1)
    entries[:9] = 0.0  # stored zeros are known
    X = sparse.csr_array((entries, tuple(pairs.T)), (40, 30))
    options = {"rank": 2, "reg": 0.3, "tol": 1e-9, "random_state": 0}
    one = LowRankCompletion(**options).fit(pairs, entries)
    other = LowRankCompletion(**options).fit(X)
    assert other.n_features_in_ == 30
    np.testing.assert_allclose(other.predict(pairs), one.predict(pairs), atol=1e-7)
    assert other.score(X) == pytest.approx(r2_score(entries, one.predict(pairs)))
    again = LowRankCompletion(**options).fit(X.tocoo())
    np.testing.assert_allclose(again.singular_values_, other.singular_values_)


def test_new_rows_with_the_columns_fixed(draw):
    pairs, entries, _ = planted(draw, noise=0.1)
    X = sparse.csr_array((entries, tuple(pairs.T)), (40, 30))
    model = LowRankCompletion(2, reg=0.3, tol=1e-11, max_iter=2000, random_state=0)
    fitted = model.fit_transform(X)
    np.testing.assert_allclose(fitted, model.row_components_ * model.singular_values_)
    np.testing.assert_allclose(model.transform(X), fitted, atol=1e-6)
    assert list(model.get_feature_names_out()) == ["lowrankcompletion0", "lowrankcompletion1"]
    # Another row: its bias alone first, then ridge regression on the columns of V.
    known, x = np.array([1, 4, 7, 20]), np.array([1.0, -2.0, 3.0, 0.5])
    rows = sparse.csr_array((x, (np.ones(4, int), known)), (3, 30))
    z = model.transform(rows)
    rest = x - model.mean_ - model.column_biases_[known]
    rest = rest - rest.sum() / (4 + 1)
    V = model.components_[:, known]
    np.testing.assert_allclose(z[1], np.linalg.solve(V @ V.T + 0.3 * np.eye(2), V @ rest))
    assert not z[[0, 2]].any()


def test_rows_and_columns_never_seen_have_their_biases(draw):
    pairs, entries, _ = planted(draw)
    pairs = pairs[(pairs[:, 0] != 5)]
    model = LowRankCompletion(2, random_state=0, max_iter=50, tol=1e-2).fit(
        pairs, entries[: len(pairs)]
    )
    mean, b = model.mean_, model.column_biases_
    found = model.predict([[5, 3], [99, 3], [5, 99], [10**15, 10**15]])
    np.testing.assert_allclose(found, [mean + b[3], mean + b[3], mean, mean], atol=1e-8)


def test_the_rank_is_that_of_least_held_out_error(draw):
    pairs, entries, _ = planted(draw, 50, 40, noise=0.05)
    model = LowRankCompletion("auto", biases=False, tol=1e-4, random_state=0).fit(pairs, entries)
    assert model.rank_ == 4 == len(model.singular_values_), "biases are of rank 2"
    assert len(model.held_out_rmse_) == 6, "until two more have not lowered the error"
    assert 0.04 < model.held_out_rmse_[3] < 0.1


def test_searches_and_pipelines(draw):
    """Names of rows and columns; the ridge by cross-validation, against noise more than none."""
    pairs, entries, _ = planted(draw, 20, 15, noise=1.0)
    names = np.array([f"name {i}" for i in range(20)], dtype=object)[pairs]
    encoder = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=10**6)
    model = make_pipeline(encoder, LowRankCompletion(2, tol=1e-2, random_state=0))
    search = GridSearchCV(
        model, {"lowrankcompletion__reg": [0.0, 1.0]}, cv=KFold(2, shuffle=True, random_state=0)
    ).fit(names, entries)
    assert search.best_params_ == {"lowrankcompletion__reg": 1.0}
    assert search.predict(names[:4]).shape == (4,)
    X = sparse.csr_array((entries, tuple(pairs.T)), (20, 15))
    y = draw.standard_normal(20)
    both = make_pipeline(LowRankCompletion(2, tol=1e-2, random_state=0), LinearRegression())
    assert both.fit(X, y).predict(X).shape == (20,)


def test_what_biases_explain_leaves_nothing(draw):
    pairs = every(6, 5)
    model = LowRankCompletion(2, biases=0.0, random_state=0).fit(pairs, np.full(30, 4.0))
    np.testing.assert_allclose(model.predict(pairs), 4.0)
    assert model.n_iter_ == 0
    assert not model.singular_values_.any()
    assert clone(model).get_params() == model.get_params()


def test_too_few_iterations_are_said(draw):
    pairs, entries, _ = planted(draw)
    with pytest.warns(ConvergenceWarning, match="after 2 iterations the gradient's norm is"):
        LowRankCompletion(2, max_iter=2, random_state=0).fit(pairs, entries)


@pytest.mark.parametrize(
    ("X", "y", "options", "words"),
    [
        ([[0.0, 1.5]], [1.0], {}, r"whole numbers.*got \[0.0, 1.5\] in row 0.*OrdinalEncoder"),
        ([[0, -1]], [1.0], {}, "Negative values in data.*counted from 0; got -1"),
        ([[0, 1, 2]], [1.0], {}, r"of shape \(p, 2\); got n_samples = 1, n_features = 3"),
        ([[0, 1]], [np.nan], {}, "Input y contains NaN"),
        ([[0, 1]], None, {}, "needs pairs and entries.*target y is None"),
        ([[0, 1], [1, 0]], [1.0, 2.0], {"rank": 3}, r"at most min\(m, n\) = 2 .*got rank=3"),
        ([[0, 1]], [1.0], {"rank": 0}, "'rank' parameter"),
        ([[0, 1]], [1.0], {"method": "als"}, "'method' parameter"),
        ([[0, 1]], [1.0], {"reg": -1.0}, "'reg' parameter"),
        ([[0, 1]], [1.0], {"rank": "auto"}, "needs at least 2; got 1"),
    ],
)
def test_bad_input_is_one_sentence(X, y, options, words):
    with pytest.raises(ValueError, match=words):
        LowRankCompletion(**options).fit(X, y)


def test_bad_use(draw):
    pairs, entries, _ = planted(draw)
    with pytest.raises(NotFittedError):
        LowRankCompletion().predict(pairs)
    model = LowRankCompletion(2, tol=1e-2, random_state=0).fit(pairs, entries)
    with pytest.raises(ValueError, match=r"scipy.sparse matrix of 30 columns.*shape \(1, 2\)"):
        model.transform(np.zeros((1, 2)))


# -- reduced-rank regression -----------------------------------------------------------------------


def by_projection(X, Y, rank, reg=0.0):
    """The least-squares fit, projected onto the leading singular vectors of what it predicts."""
    X = np.concatenate([X, reg**0.5 * np.eye(X.shape[1])])
    Y = np.concatenate([Y, np.zeros((X.shape[1], Y.shape[1]))])
    B = np.linalg.lstsq(X, Y, rcond=None)[0]
    V = np.linalg.svd(X @ B)[2][:rank].T
    return V @ V.T @ B.T


@pytest.mark.parametrize("reg", [0.0, 2.0])
@pytest.mark.parametrize("singular", [False, True])
def test_the_fit_is_that_of_least_squares_projected(reg, singular, draw):
    X, Y = draw.standard_normal((40, 6)), draw.standard_normal((40, 5))
    X[:, 5] = X[:, 0] if singular else X[:, 5]
    model = ReducedRankRegression(2, reg=reg).fit(X, Y)
    W = by_projection(X - X.mean(0), Y - Y.mean(0), 2, reg)
    np.testing.assert_allclose(model.coef_, W, atol=1e-10)
    np.testing.assert_allclose(model.intercept_, Y.mean(0) - W @ X.mean(0), atol=1e-10)
    np.testing.assert_allclose(model.predict(X), X @ W.T + model.intercept_)
    assert model.rank_ == 2 == np.linalg.matrix_rank(model.coef_)
    plain = ReducedRankRegression(2, reg=reg, fit_intercept=False).fit(X, Y)
    np.testing.assert_allclose(plain.coef_, by_projection(X, Y, 2, reg), atol=1e-10)
    assert not plain.intercept_.any()


def test_streams_weights_and_units(draw):
    X, Y = 1e3 + draw.standard_normal((40, 6)), 1e-120 * draw.standard_normal((40, 5))
    whole = ReducedRankRegression(2).fit(X, Y)
    stream = ReducedRankRegression(2)
    for part in np.split(np.arange(40), [1, 7, 30]):
        stream.partial_fit(X[part], Y[part])
    assert stream.n_samples_seen_ == 40
    size = abs(whole.coef_).max()
    np.testing.assert_allclose(stream.coef_ / size, whole.coef_ / size, atol=1e-9)
    expected = by_projection(X - X.mean(0), (Y - Y.mean(0)) * 1e120, 2)
    np.testing.assert_allclose(whole.coef_ * 1e120, expected, atol=1e-9)
    w = draw.integers(0, 3, 40)
    weighted = ReducedRankRegression(2).fit(X, Y, w)
    repeated = ReducedRankRegression(2).fit(np.repeat(X, w, 0), np.repeat(Y, w, 0))
    np.testing.assert_allclose(weighted.coef_ / size, repeated.coef_ / size, atol=1e-9)
    again = stream.fit(X[:20], Y[:20])
    assert again.n_samples_seen_ == 20, "fit begins anew"


def test_labels_that_hold_less(draw):
    X, y = draw.standard_normal((30, 4)), draw.standard_normal(30)
    model = ReducedRankRegression(3).fit(X, y)
    assert model.coef_.shape == (4,)
    assert model.rank_ == 1
    np.testing.assert_allclose(model.coef_, LinearRegression().fit(X, y).coef_)
    constant = ReducedRankRegression(3).fit(X, np.full((30, 2), 7.0))
    assert constant.rank_ == 0
    np.testing.assert_allclose(constant.predict(X), 7.0)
    with pytest.raises(ValueError, match=r"y must have 2 columns.*got 3"):
        constant.partial_fit(X, np.zeros((30, 3)))
