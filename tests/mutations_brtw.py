"""Errors in what stands behind BRTW, sections 2 to 5."""

from mutations import Mutation as M

LAYERS, FLOW = "deeplin/network/deep_linear.py", "deeplin/flows/layers.py"
METRIC, POWERS = "deeplin/geometry/metric.py", "deeplin/linalg/powers.py"
END_TO_END, TIED = "deeplin/flows/end_to_end.py", "deeplin/flows/autoencoder.py"
SQUARES, BOUNDS = "deeplin/problems/least_squares.py", "tests/test_statements_bounds.py"
STATEMENTS = "tests/test_statements.py"

FIRST_LAYER = "*([earlier[-1]] if p else []),"
GROWTH = "divisor = 2 * x if infinite else torch.expm1(x * (2 / self.depth))"
OJA = "return (CV - V @ (V.mH @ CV),)"
COUPLED = "return (2 * CV - V @ (V.mH @ CV) - CV @ (V.mH @ V),)"

BRTW = (
    M(
        "BRTW Definition 1",
        "deeplin/network/init.py",
        "factors = [Vh[..., :k, :].mH, *bases, U[..., :k]]",
        "factors = [2 * Vh[..., :k, :].mH, *bases, U[..., :k] / 2]",
    ),
    M("BRTW Definition 1", LAYERS, "after.mH @ after - before", "after.mH @ after + before"),
    M("BRTW Lemma 2(1)", SQUARES, "R.mH)) - BRh", "R.mH)) + BRh"),
    M("BRTW Lemma 2(1)", LAYERS, FIRST_LAYER, "*([2 * earlier[-1]] if p else []),"),
    M("BRTW Lemma 2(2)", FLOW, "G_j.neg_() for G_j", "G_j for G_j"),
    M("BRTW Lemma 2(2)", STATEMENTS, "@ G @ before.mT @ before", "@ G"),
    M("BRTW Lemma 2(3)", LAYERS, FIRST_LAYER, "*([2 * earlier[-1]] if p else []),"),
    M(
        "BRTW Lemma 2(4)",
        "tests/test_flows_layers.py",
        "power(W.mT @ W, (j - 1) / N) for j",
        "power(W.mT @ W, j / N) for j",
        "test_flows_layers::test_balanced_product_obeys_the_end_to_end_equation",
    ),
    M(
        "BRTW Lemma 2(4)",
        LAYERS,
        FIRST_LAYER,
        "*([2 * earlier[-1]] if p else []),",
        "test_flows_layers::test_balanced_product_obeys_the_end_to_end_equation",
    ),
    M(
        "BRTW Definition 3",
        METRIC,
        "sigma ** (2 - 2 / self.depth)",
        "sigma ** (2 - 1 / self.depth)",
    ),
    M("BRTW Definition 3", POWERS, "high ** (2 - 2 / depth)", "high ** (2 - 1 / depth)"),
    M("BRTW Theorem 4", LAYERS, FIRST_LAYER, "*([-earlier[-1]] if p else []),"),
    M(
        "BRTW Theorem 5",
        BOUNDS,
        ".sqrt() + Y.norm()) * inverse",
        ".sqrt()) * inverse",
        "test_statements_bounds::test_the_bound_of_the_product_is_attained_and_can_be_broken",
    ),
    M(
        "BRTW Theorem 5",
        FLOW,
        "G_j.neg_() for G_j",
        "G_j for G_j",
        "test_statements_bounds::test_the_bound_of_the_product_is_attained_and_can_be_broken",
    ),
    M("BRTW §3", LAYERS, FIRST_LAYER, "*([2 * earlier[-1]] if p else []),"),
    M(
        "BRTW Lemma 7",
        "deeplin/geometry/coordinates.py",
        "plus_tall_times(ZhU, point.V, other, alpha=-1))",
        "ZhU)",
    ),
    M("BRTW Lemma 8", METRIC, "1 / metric.core(sigma), inverse", "metric.core(sigma), inverse"),
    M(
        "BRTW Definition 9",
        METRIC,
        "(sides / metric.side(sigma)",
        "(sides * metric.side(sigma)",
    ),
    M("BRTW Prop. 10", POWERS, "expm1_ratio(2 * x) / expm1", "expm1_ratio(x) / expm1"),
    M(
        "BRTW Prop. 10",
        "tests/manifold_oracles.py",
        "math.exp(si * (1 / N + 1))",
        "math.exp(si * 2 / N)",
    ),
    M("BRTW Prop. 11", METRIC, "return rows + columns", "return 2 * torch.maximum(rows, columns)"),
    M(
        "BRTW Prop. 11",
        METRIC,
        "return rows + columns",
        "return 2 * torch.maximum(rows, columns)",
        "test_statements_smooth::test_metric_is_c1_at_double_and_triple_singular_values",
    ),
    M("BRTW (22)", METRIC, "ratio = metric.side_ratio(sigma)", "ratio = metric.side(sigma)"),
    M(
        "BRTW Prop. 12",
        "deeplin/geometry/retractions.py",
        "left, right = sigma ** ((N - j) / N), sigma ** ((j - 1) / N)",
        "left, right = sigma ** ((N - j) / N), sigma ** (j / N)",
        "test_manifolds_retractions::test_the_bridge_one_sgd_step_on_layers_is_one_retraction",
    ),
    M("BRTW (23)", "deeplin/flows/pqw.py", "return -(WhG + WhG.mH)", "return (WhG + WhG.mH)"),
    M("BRTW (23)", "deeplin/flows/pqw.py", "total = Q @ total + power", "total = total + power"),
    M(
        "BRTW Remark 13",
        METRIC,
        "1.0 if infinite else 1 - 2 / self",
        "1.0 if infinite else 2 - 2 / self",
    ),
    M("BRTW Remark 14", FLOW, "G_j.neg_() for G_j", "G_j for G_j"),
    M("BRTW Lemma 15", METRIC, "return rows + columns", "return 2 * torch.maximum(rows, columns)"),
    M("BRTW Corollary 16", METRIC, GROWTH, GROWTH.replace("2 / self", "1 / self")),
    M(
        "BRTW Corollary 16",
        STATEMENTS,
        "integrated(lambda s, v: -field(s, v), end, t)",
        "integrated(field, end, t)",
    ),
    M("BRTW Corollary 17", METRIC, GROWTH, GROWTH.replace("2 / self", "1 / self")),
    M("BRTW Theorem 18", METRIC, GROWTH, GROWTH.replace("2 / self", "1 / self")),
    M(
        "BRTW Theorem 18",
        STATEMENTS,
        "np.concatenate([rate.ravel() for rate in rates])",
        "np.concatenate([(j + 1) * rate.ravel() for j, rate in enumerate(rates)])",
    ),
    M("BRTW Theorem 18", STATEMENTS, "chained(W, len(C)) @ C - B", "chained(W, len(C)) @ C + B"),
    M(
        "BRTW Remark 19",
        POWERS,
        "torch.where(low > 0, expm1_ratio(2 * x)",
        "torch.where(low > 0, expm1_ratio(x)",
    ),
    M("BRTW (25)", TIED, COUPLED, OJA),
    M("BRTW Theorem 20(1)", TIED, OJA, OJA.replace("CV - V", "CV - 2 * V")),
    M("BRTW Theorem 20(2)", TIED, OJA, OJA.replace("CV - V", "CV - 2 * V")),
    M("BRTW Theorem 20(3)", TIED, OJA, "return (CV - V,)"),
    M("BRTW Theorem 20(4)", TIED, OJA, "return (2 * (CV - V @ (V.mH @ CV)),)"),
    M("BRTW Theorem 20(5)", TIED, COUPLED, COUPLED.replace("2 * CV", "CV")),
    M(
        "BRTW Remark 21",
        TIED,
        COUPLED,
        COUPLED.replace("2 * CV - V", "-2 * CV + V").replace("- CV", "+ CV"),
    ),
    M("BRTW Theorem 22", STATEMENTS, "best, values[2:].sum() / m", "best, values[1:].sum() / m"),
    M(
        "BRTW Theorem 22",
        STATEMENTS,
        "best = objective(V, V.mT @ X)",
        "best = objective(V, 2 * V.mT @ X)",
    ),
    M(
        "BRTW Theorem 23",
        TIED,
        COUPLED,
        COUPLED.replace("2 * CV - V", "-2 * CV + V").replace("- CV", "+ CV"),
    ),
    M(
        "BRTW Corollary 24",
        TIED,
        COUPLED,
        COUPLED.replace("2 * CV - V", "-2 * CV + V").replace("- CV", "+ CV"),
    ),
    M(
        "BRTW Theorem 25",
        "deeplin/landscape/escape.py",
        "torch.outer(u, u_i.conj()) + torch",
        "torch.outer(u, u_i.conj()) - torch",
    ),
)
