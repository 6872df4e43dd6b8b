"""The options of a run: what each means, and which values it takes, in one place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from deeplin.runner import kinds
from deeplin.runner.kinds import Kind, choice, list_of, null, number, shown, switch, whole
from deeplin.runner.named_flows import FLOWS

__all__ = ["OBJECTIVES", "OF_HYDRA", "OF_OPTIMIZERS", "OPTIONS", "Option"]


@dataclass(frozen=True)
class Option:
    """What an option means, and the kind of its values."""

    help: str
    kind: Kind

    def check(self, key: str, value: object) -> None:
        """Raise ValueError with one sentence for a value that the option cannot take."""
        if not self.kind.holds(value):
            raise ValueError(f"{key} must be {self.kind.must}; got {shown(value)}.")


_SEED = whole(0, 2**31 - 1)
_RANK = whole(1)
# As network.rank is, whose default it is; where it is used `check_planted_rank` asks for a number.
_OF_MATRIX = Kind(_RANK.must, lambda value: _RANK.holds(value) or value in ("auto", "gap"))
_EIGENVALUE = number("", lambda x: abs(x) < float("inf"))

# What a sweeper may be asked to make small.
OBJECTIVES = (
    *("loss", "relative_excess_loss", "distance_to_limit", "balancedness_gap_final"),
    *("steps", "flow_time", "seconds", "held_out"),
)

# By dotted name, in the order in which they are checked. An option of a group means the same in
# all files of the group. One that is not here is held against its default's type alone.
OPTIONS: Mapping[str, Option] = {
    "flow": Option(
        "what the method advances: layers, compressed (hidden widths of rank W), end_to_end, oja, "
        "coupled, riccati, pqw, dlra, dlra_rescaled, psd_dlra, psd_dlra_rescaled; auto: what the "
        "method is made for",
        choice("auto", *FLOWS),
    ),
    "seed": Option("of data, initial values and mini-batches", _SEED),
    "repeats": Option(
        "initial values at once, as a batch; figures show their median and range", whole(1)
    ),
    "dtype": Option("of all numbers", choice("float64", "float32")),
    "device": Option("cpu, or cuda", kinds.device),
    "threads": Option(
        "of torch: one is fastest for small matrices, and its bits do not depend on the machine's "
        "load; more for widths of several hundred, null for all",
        whole(1, 1024) | null,
    ),
    "resume": Option("folder of a run to continue", kinds.path | null),
    "objective": Option(
        "what a sweeper such as Optuna's makes small, a number of summary.json; auto: the relative "
        "excess loss, where no optimum is known the loss; held_out, with problem.test: 1 - R², of "
        "entries of a matrix the RMSE",
        choice("auto", *OBJECTIVES),
    ),
    "stop.grad_norm": Option(
        "stop when the gradient norm of every repeat is below; null: never",
        kinds.not_negative | null,
    ),
    "stop.stagnation": Option(
        "stop when nothing has moved for this fraction of t1; null: never", kinds.positive | null
    ),
    "stop.held_out": Option(
        "stop when the score of what is held out, problem.test, was best so many records before; "
        "deeplin.load then gives the W of that record; null: never",
        whole(1) | null,
    ),
    "stop.max_steps": Option("stop after so many steps; null: never", whole(1) | null),
    "log.records": Option("about so many moments of a whole run are recorded", whole(1, 10**7)),
    "log.singular_values": Option("so many of them go to TensorBoard; files hold all", whole(0)),
    "log.checkpoint_seconds": Option("between two checkpoints", kinds.not_negative),
    "log.factors": Option(
        "record W(t) too, as two thin factors, in the checkpoint's history", switch
    ),
    "problem.target": Option(
        "of digits what the labels are: x itself, or one-hot digits; of a custom problem what "
        "makes it, or with problem.shape is its loss",
        choice("autoencoder", "labels") | kinds.member | null,
    ),
    "problem.shape": Option(
        "of W, where the target is its loss; null: where it makes a problem; of a completion, "
        "null: as large as the data say, of a random matrix [200,200]",
        kinds.shape | null,
    ),
    "problem.options": Option("what the target is called with", kinds.mapping),
    "problem.standardize": Option(
        "drop constant columns, centre, divide by the standard deviation", switch
    ),
    "problem.normalize": Option("divide samples by sqrt(m), so that XXᵀ is the covariance", switch),
    "problem.singular": Option(
        "a singular XXᵀ: keep it (and warn), project onto its range, or whiten",
        choice("keep", "project", "whiten"),
    ),
    "problem.path": Option(
        "the file, or a pattern of files such as shards/*.npz", kinds.path | null
    ),
    "problem.labels": Option(
        "where there is no y the columns that are labels: so many last ones, or those of these "
        "names; 0: autoencoder",
        whole(0) | kinds.text | list_of(kinds.text, "a list of names of columns, such as [a,b]"),
    ),
    "problem.separator": Option(
        "between the cells of a table of text; null: found out",
        Kind("one character, such as ;", lambda v: isinstance(v, str) and len(v) == 1) | null,
    ),
    "problem.missing": Option(
        "of rows where a cell is missing: refuse them, drop them, or take their column's mean",
        choice("error", "drop", "mean"),
    ),
    "problem.categories": Option(
        "columns of whole numbers that are classes or categories, as words are",
        list_of(kinds.text, "a list of names of columns, such as [a,b]", 0),
    ),
    "problem.test": Option(
        "share of the samples that is held out, for scores beside the loss: R², variance "
        "explained, of classes the accuracy",
        number("a number in [0, 1)", lambda x: 0 <= x < 1),
    ),
    "problem.d": Option("dimension of the samples", whole(1)),
    "problem.m": Option("number of samples; null: 3d", whole(1) | null),
    "problem.n": Option("size of the matrix X", whole(1)),
    "problem.spectrum": Option(
        "eigenvalues of X, of a general one singular values; choose network.rank for r; singular "
        "values of a teacher, null: those of its layers; of a sensed matrix, null: ones; of one "
        "to be completed, null: by problem.condition",
        list_of(_EIGENVALUE, "a list of finite numbers, such as [3,2,1]") | null,
    ),
    "problem.kind": Option(
        "of X: semidefinite, Hermitian with eigenvalues of either sign, or any matrix",
        choice("psd", "hermitian", "general"),
    ),
    "problem.field": Option("of X, and so of all matrices of the run", choice("real", "complex")),
    "problem.rows": Option("of a general X; null: n", whole(1) | null),
    "problem.rotate": Option("singular vectors at random; false: X is diagonal", switch),
    "problem.measurements": Option(
        "of a sensed matrix; null: four times the dimension of its rank", whole(1) | null
    ),
    "problem.operators": Option("that measure it", choice("gaussian", "rank_one")),
    "problem.noise": Option(
        "standard deviation, of a measurement of norm 1, or of a known entry", kinds.not_negative
    ),
    "problem.data": Option(
        "scikit-learn's bundled samples that are classified",
        choice("digits", "breast_cancer", "iris", "wine"),
    ),
    "problem.rank": Option("of the teacher, or of the matrix that is sought", _OF_MATRIX),
    "problem.depth": Option("of the teacher", whole(2, 1000)),
    "problem.columns": Option(
        "of a table of triples the names of row, column and value; null: the first three",
        list_of(kinds.text, "a list of three names, such as [user,item,rating]", 3) | null,
    ),
    "problem.weights": Option("the column, or array, of weights; null: none", kinds.text | null),
    "problem.codes": Option(
        "whole numbers are labels of rows and columns, which are numbered as words are; false: "
        "they are indices from 0; auto: labels where most numbers are missing",
        choice(True, False, "auto"),
    ),
    "problem.duplicates": Option(
        "entries that are listed twice are refused, or kept, and count twice",
        choice("error", "keep"),
    ),
    "problem.biases": Option(
        "fit a mean, and a bias for each row and column, first, and take them off", switch
    ),
    "problem.ridge": Option(
        "of the biases: worth so many further entries of bias 0 in each row and column",
        kinds.not_negative,
    ),
    "problem.reg": Option("λ of ½λ‖W‖², which is added to the loss", kinds.not_negative),
    "problem.condition": Option(
        "of a random matrix: its largest singular value over its smallest",
        number("a number >= 1", lambda x: 1 <= x < float("inf")),
    ),
    "problem.oversampling": Option(
        "known entries of a random matrix, for each dimension of the matrices of its rank",
        number("a number >= 1", lambda x: 1 <= x < float("inf")),
    ),
    "problem.seed": Option("of the data, and of the choice of what is held out", _SEED),
    "network.depth": Option("number of layers N", whole(2, 1000)),
    "network.rank": Option(
        "smallest width, d_1, at most those of the data; auto: the largest that a minimum can "
        "have, at most 10; gap, of a completion: the singular values of its entries that stand out",
        _RANK | choice("auto") | choice("gap"),
    ),
    "network.widths": Option(
        "all widths [d_0,...,d_N] instead of depth and rank",
        list_of(_RANK, "a list of at least two positive integers, such as [64,10,64]", 2) | null,
    ),
    "init.matrix": Option("W(0) itself", kinds.matrix | null),
    "init.path": Option(
        "or a file that holds W(0), d_y by d_x; null: a product of Gaussians", kinds.path | null
    ),
    "init.scale": Option("spectral norm of W(0)", kinds.positive),
    "init.psd": Option("W(0) is positive semidefinite", switch),
    "init.rotate": Option("random bases of the hidden layers", switch),
    "init.std": Option(
        "of the entries: fan_max, 1/sqrt(max(d_j, d_{j-1})); null: 1/sqrt(d_j); a number, or one "
        "per layer",
        kinds.positive | list_of(kinds.positive, "a list of them") | choice("fan_max") | null,
    ),
    "init.rank": Option("of W(0); null: the smallest width", _RANK | null),
    "init.tied": Option(
        "U_0 = U_N, which gives condition (37); auto: for an autoencoder",
        choice(True, False, "auto"),
    ),
    "init.share": Option(
        "each rank ends where the gradient norm is this times the pair that is missing",
        number("in (0, 1]", lambda x: 0 < x <= 1),
    ),
    "init.rtol": Option("of the singular values that it is made of", kinds.positive),
    "init.sweeps": Option(
        "of alternating least squares after it, at most; auto: 5 of a completion, whose small "
        "singular values the first start does not see",
        whole(0) | choice("auto"),
    ),
    "init.keep": Option(
        "the eigenvalues of X that Z_# keeps; it misses the others",
        list_of(_RANK, "a list of positive integers, such as [1,2,4]", 0),
    ),
    "init.radius": Option("of the neighbourhood", kinds.positive),
    "init.law": Option(
        "ball, or fan: directions from the stable one, evenly, to the missing eigenvector",
        choice("ball", "fan"),
    ),
    "method.dt": Option(
        "the step, of an optimizer its learning rate; auto: safety times the stability limit",
        kinds.positive | choice("auto"),
    ),
    "method.safety": Option(
        "fraction of the stability limit that dt=auto takes",
        number("a number in (0, 1]", lambda x: 0 < x <= 1),
    ),
    "method.t1": Option(
        "flow time; auto: 20/rho, rho the local rate of balanced layers",
        kinds.time | choice("auto"),
    ),
    "method.schedule": Option(
        "of the learning rate, by a class of torch.optim.lr_scheduler and its options",
        kinds.named | null,
    ),
    "manifold.rank": Option("of W; null: that of W(0)", _RANK | null),
    "manifold.depth": Option(
        "of the metric; null: that of the network whose product W(0) is",
        number("a number >= 1 or inf", lambda x: x >= 1) | null,
    ),
    "manifold.retraction": Option(
        "svd: to the nearest point; orthographic; splitting: the cheapest; layers: what steps of "
        "the layers do; auto: the layers' where the depth is a whole number >= 2, else svd",
        choice("auto", "svd", "orthographic", "splitting", "layers"),
    ),
    "manifold.metric": Option(
        "another metric than a depth's, made by a file of conf/ of your own", kinds.mapping | null
    ),
    "manifold.factored": Option("W as U, S, V; false: as the matrix itself", switch),
    "method.batch_size": Option(
        "samples of a step; null: all at once, from the moments", whole(1) | null
    ),
    "method.rebalance": Option(
        "project the layers back onto exact balancedness after each step", switch
    ),
    "method.compiled": Option(
        "layers of widths <= 8: steps in C, by the system's compiler", switch
    ),
    "method.rtol": Option(
        "of the error of a step, relative to the norm of each part of the state",
        kinds.not_negative,
    ),
    "method.atol": Option("of the error of a step, absolute", kinds.not_negative),
    "method.order": Option("of the projected Runge-Kutta method", choice(1, 2, 4)),
}

# Of the optimizers of torch and geoopt, whose own words for these would be the answer.
OF_OPTIMIZERS: Mapping[str, Option] = {
    "method.optimizer.lr": Option("the learning rate", kinds.positive),
    "method.optimizer.momentum": Option("of heavy balls", kinds.not_negative),
    "method.optimizer.dampening": Option("of the momentum", _EIGENVALUE),
    "method.optimizer.weight_decay": Option("times W, added to the gradient", kinds.not_negative),
    "method.optimizer.betas": Option(
        "of the running averages of the gradient and its square",
        list_of(
            number("", lambda x: 0 <= x < 1), "a list of two numbers in [0, 1), as [0.9,0.999]", 2
        ),
    ),
    "method.optimizer.eps": Option("added to what is divided by", kinds.not_negative),
    "method.optimizer.alpha": Option("of the running average of squares", kinds.not_negative),
    "method.optimizer.max_iter": Option("iterations of a step", whole(1)),
    "method.optimizer.history_size": Option("pairs that the Hessian is made of", whole(1)),
    "method.optimizer.tolerance_grad": Option("a gradient that is at rest", kinds.not_negative),
    "method.optimizer.tolerance_change": Option("a step that is at rest", kinds.not_negative),
    "method.optimizer.line_search_fn": Option(
        "strong_wolfe; null: steps of length lr", choice("strong_wolfe") | null
    ),
    "method.optimizer.line_search_method": Option("of a step", choice("armijo", "wolfe")),
    "method.optimizer.theta": Option(
        "truncated CG stops at |g| min((|g|/|g_0|)^theta, kappa)", kinds.not_negative
    ),
    "method.optimizer.kappa": Option(
        "truncated CG stops at |g| min((|g|/|g_0|)^theta, kappa)",
        number("a number in [0, 1]", lambda x: 0 <= x <= 1),
    ),
    "method.optimizer.hessian": Option(
        "gauss_newton: without the curvature of the manifold; null: the exact one",
        choice("gauss_newton") | null,
    ),
    "method.optimizer.preconditioner": Option(
        "blocks of the Hessian of completion, at depth 1; auto: where there are some; null: none",
        choice("auto", "blocks") | null,
    ),
    "method.optimizer.most": Option("products with the Hessian in a step", whole(1)),
    "method.optimizer.cg_method": Option(
        "of the direction: Polak-Ribiere, Fletcher-Reeves, or the gradient alone",
        choice("pr", "fr", "steepest"),
    ),
}

# What a user can set of Hydra's own.
OF_HYDRA: Mapping[str, Option] = {
    "hydra.run.dir": Option("folder of the run", kinds.path),
    "hydra.sweep.dir": Option("folder of the runs of a sweep", kinds.path),
    "hydra.sweep.subdir": Option("of each run, in it", kinds.path),
    "hydra.mode": Option("one run, or a sweep", choice("RUN", "MULTIRUN") | null),
    "hydra.output_subdir": Option("for Hydra's own record of a run", kinds.path | null),
    "hydra.job.chdir": Option("run in the run's folder", switch | null),
    "hydra.job.name": Option("of the log", kinds.text),
    "hydra.verbose": Option(
        "log more, of all or of these loggers", switch | kinds.text | list_of(kinds.text, "a list")
    ),
    "hydra.sweeper.max_batch_size": Option("runs of a sweep at a time", whole(1) | null),
}
