"""A run that is loaded: what it showed, what it learned, and predictions in the user's units.

The oracle of predictions is reduced-rank regression put together from scikit-learn's pieces and the
SVD of the fitted labels; none of deeplin's code is in it.
"""

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from runner import ROOT
from sklearn.datasets import load_digits, load_iris, load_linnerud, load_wine
from sklearn.decomposition import PCA
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression
from sklearn.metrics import r2_score
from sklearn.preprocessing import LabelBinarizer, StandardScaler

import deeplin
import deeplin.runner.cli  # its resolvers stand in the configurations
from deeplin.problems.data import prepare
from deeplin.runner import checkpoints
from deeplin.runner.run import run as run_in

# Where a run ends is as exact as this, whatever the steps on the way err by.
TIGHT = ["method=rosenbrock", "stop.grad_norm=1e-13", "method.t1=60/rho", "log.records=50"]
TIGHT += ["method.rtol=1e-5"]


def reduced_rank(x, y, rank):
    """The function x -> ŷ of reduced-rank regression: least squares, then an SVD."""
    full = LinearRegression().fit(x, y)
    fitted = full.predict(x) - y.mean(0)
    V = np.linalg.svd(fitted, full_matrices=False)[2][:rank]
    return lambda new: y.mean(0) + (full.predict(new) - y.mean(0)) @ V.T @ V


def trained(folder, *words):
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        cfg = compose("train", [*words])
    assert run_in(cfg, folder, draw=False) == 0
    return deeplin.load(folder)


@pytest.fixture(scope="module")
def linnerud(tmp_path_factory):
    """(x, y, the loaded run of rank 2): labels in three units, samples far from mean 0."""
    folder = tmp_path_factory.mktemp("linnerud")
    x, y = load_linnerud(return_X_y=True)
    np.savez(folder / "linnerud.npz", x=x, y=y)
    run = trained(folder / "run", "problem=file", f"problem.path={folder}/linnerud.npz",
                  "network.rank=2", *TIGHT)  # fmt: skip
    return x, y, run


def test_labels_are_predicted_in_their_own_units(linnerud):
    x, y, run = linnerud
    new = x[:5] + 3.0
    expected = reduced_rank(x, y, 2)(new)
    np.testing.assert_allclose(run.predict(new), expected, rtol=1e-8)
    np.testing.assert_allclose(run.predict(torch.as_tensor(new)), expected, rtol=1e-8)
    assert run.predict(new).shape == (5, 3)
    assert np.abs(expected - y.mean(0)).max() > 1  # it is no prediction of the mean


def test_what_a_run_showed_is_arrays(linnerud):
    _, _, run = linnerud
    history = run.history
    assert history["step"].shape == history["t"].shape == history["loss"].shape
    assert history["singular_values"].shape == (len(history["t"]), 2)
    assert history["loss"][-1] == pytest.approx(run.summary["loss"], rel=1e-12)
    frame = history.to_frame()
    assert frame["singular_values_2"].to_numpy() == pytest.approx(history["singular_values"][:, 1])
    assert len(frame) == len(history["t"])
    assert run.config.network.rank == 2


def test_a_run_has_its_matrix_its_layers_its_problem_and_its_prediction(linnerud):
    _, _, run = linnerud
    assert torch.equal(run.problem.C, run.problem.C.mT)
    assert run.problem.shape == tuple(run.W.shape) == (3, 3)
    assert isinstance(run.network, deeplin.DeepLinear)
    assert run.network.widths == (3, 2, 3, 3)
    torch.testing.assert_close(run.network.end_to_end().detach(), run.W)
    torch.testing.assert_close(run.prediction.limit, run.W, rtol=0, atol=1e-9)
    assert float(run.problem.loss(run.W)) == pytest.approx(run.summary["loss"], rel=1e-12)


@pytest.mark.parametrize(
    ("target", "singular"),
    [
        ("labels", "keep"),
        ("labels", "whiten"),
        ("autoencoder", "project"),
        ("autoencoder", "whiten"),
    ],
)
def test_whatever_was_done_to_the_samples_is_done_to_new_ones(tmp_path, singular, target):
    """Constant columns, coordinates, whitening; against scikit-learn's on the raw samples."""
    x, labels = load_wine(return_X_y=True)
    x = np.column_stack([x[:, 9:11], np.full(len(x), 7.0), x[:, 12]])
    classes = {"y": np.array([3, 7, 9])[labels]} if target == "labels" else {}
    np.savez(tmp_path / "wine.npz", x=x, **classes)
    run = trained(tmp_path / "run", "problem=file", f"problem.path={tmp_path}/wine.npz",
                  "network.rank=2", f"problem.singular={singular}", *TIGHT)  # fmt: skip
    new = x[::17] * 1.1
    if target == "labels":
        y = LabelBinarizer().fit_transform(labels).astype(float)
        expected = reduced_rank(x, y, 2)(new)
        np.testing.assert_allclose(run.decision_function(new), expected, rtol=0, atol=1e-8)
        assert run.predict(new).tolist() == np.array([3, 7, 9])[expected.argmax(1)].tolist()
        return
    scaler = StandardScaler().fit(x)
    pca = PCA(2).fit(scaler.transform(x))
    z = scaler.transform(new)
    expected = scaler.inverse_transform(pca.inverse_transform(pca.transform(z)))
    expected[:, 2] = 7.0
    np.testing.assert_allclose(run.predict(new), expected, rtol=1e-8)


@pytest.mark.parametrize(
    "words",
    [["method=sgd"], ["flow=compressed", "method=rk4"], ["method=rgd", "method.dt=0.1"],
     ["method=structure"], ["flow=oja", "init.tied=true", "method=dopri5"]],
    ids=" ".join,
)  # fmt: skip
def test_every_state_gives_the_matrix_and_a_network(tmp_path, words):
    """W of the state is where the loss is what the last record says it is."""
    small = ["problem=gaussian", "problem.d=6", "network.rank=2", "network.depth=2"]
    limits = ["method.t1=3", "log.records=30", "log.singular_values=2"]
    run = trained(tmp_path / "run", *small, *words, *limits)
    loss = float(run.problem.loss(run.W))
    assert loss == pytest.approx(run.history["loss"][-1], rel=1e-9)
    torch.testing.assert_close(run.network.end_to_end().detach(), run.W)
    x = np.random.default_rng(0).normal(size=(4, 6))
    np.testing.assert_allclose(run.predict(x), x @ run.W.numpy().T)


def test_repeats_are_a_first_axis(tmp_path):
    words = ["problem=digits", "problem.target=labels", "network.rank=3", "repeats=2"]
    method = ["method=rk4", "method.t1=0.5", "log.records=5"]
    run, x = trained(tmp_path / "run", *words, *method), load_digits().data[:7]
    assert run.W.shape == (2, 10, 61)
    assert run.decision_function(x).shape == (2, 7, 10)
    assert run.predict(x).shape == (2, 7)
    assert run.history["loss"].shape[1:] == (2,)
    assert run.history.to_frame()["loss_2"].iloc[-1] == run.history["loss"][-1, 1]


def test_a_run_needs_its_data_for_its_problem_alone(linnerud, tmp_path):
    x, y, _ = linnerud
    path = tmp_path / "moving.npz"
    np.savez(path, x=x, y=y)
    options = ["network.rank=2", "method=rk4", "method.t1=1", "log.records=5"]
    trained(tmp_path / "run", "problem=file", f"problem.path={path}", *options)
    np.savez(path, x=x + 1, y=y)
    run = deeplin.load(tmp_path / "run")
    ours = y.mean(0) + (x - x.mean(0)) / x.std(0) @ run.W.numpy().T
    np.testing.assert_allclose(run.predict(x), ours)
    with pytest.raises(ValueError, match=r"moving.npz, which has changed since: .*predict needs"):
        _ = run.problem
    path.unlink()
    with pytest.raises(ValueError, match=r"moving.npz, which is not there"):
        _ = deeplin.load(tmp_path / "run").prediction


# -- tables ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def flowers(tmp_path_factory):
    """(the frame, the run): a column of words, one that is missing in places, classes by name."""
    folder = tmp_path_factory.mktemp("flowers")
    frame = load_iris(as_frame=True).frame.rename(columns=lambda name: name.split(" (")[0])
    frame["size"] = np.where(frame.pop("petal length") > 4, "large", "small")
    frame["target"] = np.array(["setosa", "versicolor", "virginica"])[frame["target"]]
    frame.loc[::10, "sepal width"] = np.nan
    frame.to_csv(folder / "iris.csv")
    words = ["problem=file", f"problem.path={folder}/iris.csv", "problem.labels=target"]
    return frame, trained(folder / "run", *words, "problem.missing=mean", *TIGHT)


def test_a_table_is_predicted_from_by_names(flowers):
    """The rank is the largest that three centred classes have, of itself."""
    frame, run = flowers
    assert min(run.network.widths) == 2
    x = frame.drop(columns=["size", "target"]).assign(size=1.0 * (frame["size"] == "small"))
    filled = SimpleImputer().fit_transform(x)
    expected = reduced_rank(filled, LabelBinarizer().fit_transform(frame["target"]), 2)
    new = frame.iloc[::7, ::-1]  # any order, the labels too
    np.testing.assert_allclose(run.decision_function(new), expected(filled[::7]), atol=1e-8)
    classes = np.array(["setosa", "versicolor", "virginica"])
    assert run.predict(new).tolist() == classes[expected(filled[::7]).argmax(1)].tolist()
    assert run.columns == ("sepal length", "sepal width", "petal width", "size")
    with pytest.raises(ValueError, match=r"column 'size', row 1 of x, must be one of large, small"):
        run.predict(new.assign(size="huge"))
    with pytest.raises(ValueError, match="has no column 'size'"):
        run.predict(new.drop(columns="size"))
    with pytest.raises(ValueError, match="must be a pandas table, since size held words"):
        run.predict(filled)


def test_what_is_exported_predicts_without_deeplin(flowers, tmp_path):
    frame, run = flowers
    run.export(tmp_path / "W.npz")
    with np.load(tmp_path / "W.npz") as saved:
        assert saved["columns"].tolist()[-1] == "size=small"
        x = np.column_stack([frame.iloc[1:9, :3], frame["size"].iloc[1:9] == "small"])
        y = (x - saved["centre"]) @ saved["W"].T + saved["offset"]
        names = saved["classes"][y.argmax(1)]
    np.testing.assert_allclose(y, run.decision_function(frame.iloc[1:9]), atol=1e-12)
    assert names.tolist() == run.predict(frame.iloc[1:9]).tolist()
    run.export(tmp_path / "W.pt2")
    program = torch.export.load(tmp_path / "W.pt2").module()
    np.testing.assert_allclose(program(torch.from_numpy(x.astype(float))), y, atol=1e-12)
    with pytest.raises(ValueError, match=r"export writes files .npz, .pt2 and .onnx; got W.txt"):
        run.export(tmp_path / "W.txt")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["network.rank=3"],
            r"rank 3 has no minimum .* rank 2, as those of 3 classes do once cent",
        ),
        (["network.rank=9"], r"min\(d_x, d_y\) = 3; got 9: network.rank=2, or auto"),
    ],
)
def test_a_rank_that_the_labels_do_not_have_is_answered_with_theirs(
    flowers, tmp_path, words, sentence
):
    _, run = flowers
    given = ["problem=file", f"problem.path={run.config.problem.path}", "problem.labels=target"]
    with pytest.raises(ValueError, match=sentence):
        trained(tmp_path / "run", *given, "problem.missing=drop", *words)


# -- held out --------------------------------------------------------------------------------------


def split_like(run, m):
    """The rows of (training, test) samples: those that a permutation of the run's seed chooses."""
    generator = torch.Generator().manual_seed(run.config.problem.seed)
    order = torch.randperm(m, generator=generator).numpy()
    count = round(run.config.problem.test * m)
    return np.sort(order[count:]), np.sort(order[:count])


@pytest.mark.parametrize("singular", ["keep", "project", "whiten"])
@pytest.mark.parametrize("target", ["labels", "autoencoder"])
def test_held_out_scores_are_those_of_scikit_learn(tmp_path, target, singular):
    """From scikit-learn's metrics of its own answer, to 1e-6 of them; the run ends at 1e-13."""
    x, labels = load_wine(return_X_y=True)
    x = x[:, 9:]
    classes = {"y": labels} if target == "labels" else {}
    np.savez(tmp_path / "wine.npz", x=x, **classes)
    options = ["network.rank=2", "problem.test=0.25", "problem.seed=3", *TIGHT]
    options.append(f"problem.singular={singular}")
    path = f"problem.path={tmp_path}/wine.npz"
    run = trained(tmp_path / "run", "problem=file", path, *options)
    train, test = split_like(run, len(x))
    scaler = StandardScaler().fit(x[train])
    z = scaler.transform(x)
    if target == "labels":
        y = LabelBinarizer().fit_transform(labels).astype(float)
        predicted = reduced_rank(z[train], y[train], 2)(z[test])
        right = (predicted.argmax(1) == labels[test]).mean()
        assert run.summary["test_accuracy"] == right
        assert 0.5 < right < 1
        assert (run.predict(x[test]) == labels[test]).mean() == right
    else:
        y, pca = z, PCA(2).fit(z[train])
        predicted = pca.inverse_transform(pca.transform(z[test]))
    for name, average in [("r2", "uniform_average"), ("variance_explained", "variance_weighted")]:
        expected = r2_score(y[test], predicted, multioutput=average)
        assert run.summary[f"test_{name}"] == pytest.approx(expected, rel=1e-6)
        assert run.history[f"test_{name}"][-1] == run.summary[f"test_{name}"]


def test_held_out_scores_stand_in_the_table_beside_those_of_the_limit(tmp_path, capsys):
    words = ["problem=digits", "problem.target=labels", "problem.test=0.2", "network.rank=9"]
    run = trained(tmp_path / "run", *words, "method=rk4", "method.t1=1", "log.records=5")
    out = capsys.readouterr().out
    assert "359 of 1797 samples are held out" in out
    limit = run.problem.report(run.problem.minimizer(9))
    rows = [" ".join(line.split()) for line in out.splitlines()]
    for name, value in limit.items():
        shown = f"{run.summary[name]:.10g} {float(value):.10g}"
        assert f"{name.replace('_', ' ')} {shown}" in rows
    assert run.problem.m == 1797 - 359


@pytest.mark.parametrize("test", [0.001, 0.999])
def test_a_share_that_leaves_too_few_samples_is_refused(linnerud, test):
    x, y, _ = linnerud
    with pytest.raises(ValueError, match=r"of 20 samples holds out (0|20); at least 2"):
        prepare(torch.as_tensor(x), torch.as_tensor(y), test=test)


# -- refusals --------------------------------------------------------------------------------------


def test_what_is_no_table_of_the_columns_is_refused(linnerud):
    x, _, run = linnerud
    for wrong in (x[:, :2], x[0], x > 0):
        with pytest.raises(
            ValueError, match=r"the 3 columns of the data without labels; got shape"
        ):
            run.predict(wrong)
    with pytest.raises(ValueError, match="x must be finite"):
        run.predict(np.where(x > 100, np.nan, x))


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"must be the folder of a run; it holds no config.yaml"):
        deeplin.load(tmp_path)


def test_a_run_of_another_format_is_refused_in_a_sentence(linnerud, tmp_path, monkeypatch):
    """As one of format 3 reads, which knew nothing of what was done to the data."""
    small = ["problem=gaussian", "problem.d=4", "network.rank=2", "method=rk4", "method.t1=1"]
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "FORMAT", 3)
        patch.setattr(deeplin, "load", lambda folder: None)
        patch.setattr("deeplin.runner.folder.FORMAT", 3)
        trained(tmp_path / "run", *small)
    with pytest.raises(
        ValueError, match=r"format 3 of run folders \(deeplin before .*\)"
    ) as caught:
        deeplin.load(tmp_path / "run")
    assert "\n" not in str(caught.value)
