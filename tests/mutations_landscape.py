"""Errors in what stands behind BRTW, section 6 and the appendices."""

from mutations import Mutation as M

CRITICAL, KINDS = "deeplin/landscape/critical.py", "deeplin/landscape/classification.py"
SPECTRUM, ESCAPE = "deeplin/problems/spectrum.py", "deeplin/landscape/escape.py"
SQUARES, LAYERS = "deeplin/problems/least_squares.py", "deeplin/network/deep_linear.py"
SADDLES, SEARCH = "tests/test_statements_saddles.py", "tests/test_statements_search.py"
SMOOTH, LIMITS = "tests/test_statements_smooth.py", "tests/test_landscape_limits.py"
MANY, SIZES = "tests/test_many_starts.py", "tests/test_statements_sizes.py"
STATEMENTS, CONNECTION = "tests/test_statements.py", "deeplin/geometry/connection.py"
END_TO_END = "deeplin/flows/end_to_end.py"

FIRST_LAYER = "*([earlier[-1]] if p else []),"
LAST_LAYERS = "*([later[-1]] if p < N else []),"
STRICT = "code = torch.full_like(near.rank, KINDS.index(STRICT))"
GLOBAL = "(near.rank == highest)] = KINDS"
# What tells the limits of many starts apart, and the direction of their flow.
STARTS, VALUE, UP_TO = "tests/many_starts.py", "- sum(J))", "for k in range(most + 1)"
RANK_TWO = "test_many_starts::test_ten_thousand_balanced_starts_of_rank_two"
UNDER_37 = "test_many_starts::test_ten_thousand_balanced_starts_with_condition_37"
FORWARD = "rk4.step(flow, 0.0, y, length / steps)"

LANDSCAPE = (
    M("BRTW Definition 26", KINDS, STRICT, STRICT.replace("STRICT", "NON_STRICT")),
    M("BRTW Definition 27", CRITICAL, "index += inside * larger", "index += inside"),
    M("BRTW (28)", CONNECTION, "self.core * third.M) / 2", "self.core * third.M)"),
    M("BRTW (28)", CONNECTION, "(first.M - second.M", "(first.M + second.M"),
    M("BRTW Theorem 28", LAYERS, FIRST_LAYER, "*([2 * earlier[-1]] if p else []),"),
    M("BRTW Theorem 28", SADDLES, "matrix_exp(-T * H)", "matrix_exp(-2 * T * H)"),
    M(
        "BRTW Theorem 29",
        SADDLES,
        "x, on_it = x - 0.1 * gradient(x)",
        "x, on_it = x + 0.1 * gradient(x)",
    ),
    M(
        "BRTW Theorem 31(1)",
        "tests/landscape_oracles.py",
        "else part.view(shape) @ W\n        return problem",
        "else part.view(shape) @ W.detach()\n        return problem",
    ),
    M("BRTW Theorem 31(2)", SEARCH, "min(widths))[0])", "min(widths))[-1])"),
    M("BRTW Theorem 31(2)", KINDS, "highest = min(highest, *(", "highest = max(highest, *("),
    M("BRTW Theorem 31(3)", KINDS, STRICT, STRICT.replace("STRICT", "MINIMUM")),
    M("BRTW Theorem 31(4)", KINDS, STRICT, STRICT.replace("STRICT", "NON_STRICT")),
    M("BRTW Prop. 32(1)", SPECTRUM, "values.rsqrt()[:, None] * V * s)", "V * s)"),
    M(
        "BRTW Prop. 32(1)",
        SPECTRUM,
        "for count in range(min(k, len(groups[0])), -1, -1):",
        "for count in range(min(k, len(groups[0])), 0, -1):",
        "test_statements_search::test_a_search_on_the_manifold_finds_exactly_the_points_of_32",
    ),
    M(
        "BRTW Prop. 32(1)",
        SEARCH,
        "(U[:, J] * s[J]) @ Vh[J] @ inverse_root",
        "(U[:, J] * s[J]) @ Vh[J] @ inverse_root.matrix_power(2)",
        "test_statements_search::test_a_search_finds_no_critical_point_beyond_the_rank_of_Q",
    ),
    M(
        "BRTW Prop. 32(2)",
        CRITICAL,
        "0.5 * optimum.s[outside].square()",
        "optimum.s[outside].square()",
    ),
    M(
        "BRTW Prop. 33",
        CRITICAL,
        "s[j0 - 1] * torch.outer(u, v.conj())",
        "s[j1 - 1] * torch.outer(u, v.conj())",
        "test_landscape_critical::test_second_derivative_along_the_curve_of_the_proof",
    ),
    M("BRTW Prop. 34(a)", SEARCH, "G = (W @ X - Y) @ X.mT", "G = (W @ X - 2 * Y) @ X.mT"),
    M("BRTW Prop. 34(a)", SEARCH, "(G * (1 - outside)).norm(dim=(1, 2))", "G.norm(dim=(1, 2))"),
    M(
        "BRTW Prop. 34(b)",
        CRITICAL,
        "last, first = U * s, optimum.over_root(V.mH)",
        "last, first = U * s, V.mH",
    ),
    M("BRTW Prop. 35", KINDS, STRICT, STRICT.replace("STRICT", "NON_STRICT")),
    M("BRTW Prop. 36", KINDS, "if len(layers) > 2 and", "if len(layers) > 3 and"),
    M("BRTW Remark 37", KINDS, GLOBAL, "(near.rank == highest) & (near.rank > 0)] = KINDS"),
    M(
        "BRTW Prop. 38",
        KINDS,
        "strict = torch.ones_like(deficient)",
        "strict = torch.zeros_like(deficient)",
    ),
    M("BRTW Theorem 39(a)", STARTS, VALUE, "- sum(J) / 2)"),
    M("BRTW Theorem 39(a) [k]", SIZES, "min(q, width)", "width"),
    M("BRTW Theorem 39(b)", STARTS, FORWARD, FORWARD.replace("length", "-length")),
    M("BRTW Theorem 39(b)", STARTS, UP_TO, UP_TO.replace(" + 1", "")),
    M("BRTW Conjecture 41(a)", STARTS, VALUE, "- sum(J) / 2)"),
    M("BRTW Conjecture 41(a)", STARTS, FORWARD, FORWARD.replace("length", "-length")),
    M("BRTW Theorem 40", STARTS, FORWARD, FORWARD.replace("length", "-length"), RANK_TWO),
    M("BRTW Theorem 40", STARTS, UP_TO, UP_TO.replace(" + 1", ""), RANK_TWO),
    M("BRTW Conjecture 41(c)", STARTS, VALUE, "- sum(J) / 2)", RANK_TWO),
    M("BRTW Conjecture 41(b)", STARTS, VALUE, "- sum(J) / 2)", UNDER_37),
    M(
        "BRTW Conjecture 41(b)",
        END_TO_END,
        "U_dot = torch.addcmul(GV, U, g, value=-1) * (a * p).neg_()",
        "U_dot = torch.addcmul(GV, U, g, value=-1) * (a * p)",
        "test_statements_saddles"
        "::test_starts_of_rank_one_with_condition_37_find_the_first_eigenvector",
    ),
    M("BRTW Remark 42", "deeplin/network/init.py", "False, None), -V]", "False, None), V]"),
    M(
        "BRTW Lemma 43",
        SADDLES,
        "* t ** (1 / p + 1)",
        "* t ** (1 / p)",
        "test_statements_saddles::test_integrals_solve_the_power_equation",
    ),
    M("BRTW (43)", SMOOTH, "resolvent(W @ W.mT, t + u)", "resolvent(W @ W.mT, t)"),
    M(
        "BRTW (43)",
        "tests/metric_oracles.py",
        "torch.linalg.eigh(A + u * torch.eye",
        "torch.linalg.eigh(A - u * torch.eye",
    ),
    M(
        "BRTW (44)",
        SMOOTH,
        "-phi @ (W @ Y.mT + Y @ W.mT) @ phi",
        "-phi @ (W @ Y.mT - Y @ W.mT) @ phi",
    ),
    M("BRTW (45)", SMOOTH, "D_psi = -psi", "D_psi = psi"),
    M(
        "BRTW (46)",
        SMOOTH,
        "zeta[0][:k] = (xi @ (torch.eye(n, dtype=F64) - P))[:k]",
        "zeta[0][:k] = (xi @ (torch.eye(n, dtype=F64) - P))[:k] / 2",
    ),
    M("BRTW (47)", SMOOTH, "Y @ W.mT) @ phi\n", "Y @ W.mT)\n"),
    M(
        "BRTW (47)",
        SMOOTH,
        "resolvent(W @ W.mT, t), resolvent(W.mT @ W, t)",
        "resolvent(W @ W.mT, t), resolvent(W.mT @ W, t**0.5)",
    ),
    M(
        "BRTW Theorem 44",
        STATEMENTS,
        "left[0] ** ((depth - j) / depth)",
        "left[0] ** ((depth - j + 1) / depth)",
    ),
    M(
        "BRTW Theorem 45(1)",
        "deeplin/geometry/metric.py",
        "core = larger(p, p.mT) * torch.expm1(x) / divisor",
        "core = larger(p, p.mT) * (self.depth / 2 + x)",
    ),
    M(
        "BRTW Theorem 45(1)",
        SMOOTH,
        "c * dt * b for a, b in zip(y, slopes",
        "dt * b for a, b in zip(y, slopes",
        "test_statements_smooth::test_flow_is_c1_where_three_singular_values_cross",
    ),
    M("BRTW Theorem 45(2)", STATEMENTS, "math.exp(extended[-1])", "math.exp(extended[-1] / 2)"),
    M(
        "BRTW Theorem 45(2)",
        STATEMENTS,
        "integrated(lambda s, v: -field(s, v), end, t)",
        "integrated(field, end, t)",
    ),
    M("BRTW Lemma 46", SQUARES, "R.mH)) - BRh", "R.mH)) + BRh"),
    M(
        "BRTW Lemma 46",
        SADDLES,
        "W_2 = E[:, list(J)] @ V.mT",
        "W_2 = C @ E[:, list(J)] @ V.mT",
    ),
    M(
        "BRTW Remark 47",
        SQUARES,
        "LhB = matmul(L.mH, self.B)",
        "LhB = self.B[..., : L.shape[-1], :]",
    ),
    M("BRTW Corollary 48(1)", SADDLES, UP_TO, UP_TO.replace(" + 1", "")),
    M("BRTW Corollary 48(1)", LAYERS, LAST_LAYERS, "*([0 * later[-1]] if p < N else []),"),
    M("BRTW Corollary 48(2)", LAYERS, FIRST_LAYER, "*([2 * earlier[-1]] if p else []),"),
    M("BRTW Corollary 48(3)", LAYERS, LAST_LAYERS, "*([0 * later[-1]] if p < N else []),"),
    M(
        "BRTW Corollary 48(3)",
        SADDLES,
        "float(EIGENVALUES[1] + EIGENVALUES[3])",
        "float(EIGENVALUES[1] + EIGENVALUES[2])",
    ),
    M("BRTW Corollary 48(4)", LAYERS, LAST_LAYERS, "*([0 * later[-1]] if p < N else []),"),
    M(
        "BRTW Theorem 49",
        ESCAPE,
        "directions = [torch.outer(u, w.conj())]",
        "directions = [-torch.outer(u, w.conj())]",
    ),
    M("BRTW Remark 50", "deeplin/flows/autoencoder.py", "upper = CW2 - CW1t", "upper = CW2 + CW1t"),
    M(
        "BRTW §7.1.1",
        "deeplin/network/init.py",
        "[root * after @ before.mH for before, after in itertools.pairwise(bases)]",
        "[scale * after @ before.mH for before, after in itertools.pairwise(bases)]",
    ),
    M("BRTW §7.1.1", "deeplin/problems/widths.py", "math.floor(d + 0.5)", "round(d)"),
    M(
        "BRTW §7.2",
        "deeplin/problems/data.py",
        "widths = grid_widths(d, d, depth, rank)",
        "widths = grid_widths(d, d, depth, rank + 1)",
    ),
    M("BRTW §7.3 [sizes]", SIZES, "2 * (depth - j) / depth", "(depth - j) / depth"),
    M(
        "BRTW §7.3 [sizes]",
        "deeplin/geometry/metric.py",
        "sigma ** (2 - 2 / self.depth)",
        "sigma ** (2 - 1 / self.depth)",
    ),
)
