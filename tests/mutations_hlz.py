"""Errors in what stands behind HLZ."""

from mutations import Mutation as M

DLRA, SPURIOUS = "deeplin/flows/dlra.py", "deeplin/landscape/spurious.py"
COORDINATES, CURVATURE = "deeplin/geometry/coordinates.py", "deeplin/landscape/curvature.py"
APOCALYPSE = "tests/test_statements_apocalypse.py"
DISCUSSION = "tests/test_statements_discussion.py"
TESTS, ESCAPES = "tests/test_statements_hlz.py", "tests/test_statements_escape.py"
SADDLES, LIMITS = "tests/test_statements_saddles.py", "tests/test_landscape_limits.py"

PSD_RATE = "return Tangent(hermitian_part(along - K), Up, Up)"
BOUND = "test_statements_escape::test_the_last_eigenvalue_keeps_its_bound_and_may_attain_it"

HLZ = (
    M(
        "HLZ Example 1.1",
        DLRA,
        "plus_tall_times(N, U, along, beta=h, alpha=-h)",
        "plus_tall_times(N, U, along, beta=-h, alpha=h)",
    ),
    M("HLZ §1", CURVATURE, "left = left + self._G22 @ B", "left = left - self._G22 @ B"),
    M(
        "HLZ §1",
        CURVATURE,
        "right = right + self._G22.mH @ A / self.sigma",
        "right = right + self._G22.mH @ A",
    ),
    M(
        "HLZ §1 [19]",
        APOCALYPSE,
        "(fall / torch.linalg.matrix_norm(Y - Z)).max()",
        "(fall / torch.linalg.matrix_norm(Y - Z) ** 2).max()",
    ),
    M(
        "HLZ §1 [19]",
        DLRA,
        "tangent_step(U, S - M, V, Up, Vp)",
        "tangent_step(U, S + M, V, Up, Vp)",
    ),
    M("HLZ §1 [23]", APOCALYPSE, "(s > max(delta, 1e-12)).sum()", "(s > 1e-12).sum()"),
    M("HLZ §1 [23]", APOCALYPSE, "(eye - right), r - k)", "(eye - right), 0)"),
    M(
        "HLZ §1 [30]",
        ESCAPES,
        "mu**2 * (Z.square().sum() + core.square().sum())",
        "mu**2 * Z.square().sum()",
    ),
    M("HLZ §1 [30]", ESCAPES, "(1 + 2 * mu**2)) ** 0.25", "(1 + 2 * mu**2)) ** 0.5"),
    M("HLZ Lemma 2.1(1)", TESTS, "norm() - math.sqrt(2) * eps", "norm() - eps"),
    M(
        "HLZ Lemma 2.1(2)",
        ESCAPES,
        "    s = (1 - t[:, None]) * s_0 +",
        "    s = (1 - 2 * t[:, None]) * s_0 +",
        "test_statements_escape::test_any_two_general_matrices_of_rank_r_are_joined",
    ),
    M(
        "HLZ Lemma 2.1(2)",
        ESCAPES,
        "if len(A) > r and float(s_1[-1]) < 0:",
        "if len(A) > r + 1 and float(s_1[-1]) < 0:",
        "test_statements_escape::test_any_two_general_matrices_of_rank_r_are_joined",
    ),
    M(
        "HLZ Lemma 2.1(2)",
        ESCAPES,
        "crossed = s_0 * s_1 < 0",
        "crossed = s_0 * s_1 > 0",
        "test_statements_escape::test_hermitian_matrices_of_rank_r_have_one_branch_for_every_signature",
    ),
    M(
        "HLZ Lemma 2.1(3)",
        COORDINATES,
        "Up = plus_tall_times(Zu, point.U, left, alpha=-1)",
        "Up = Zu",
    ),
    M(
        "HLZ Lemma 2.1(4)",
        TESTS,
        "nearest = W - 0.3 * U[:, 2:] @",
        "nearest = W - 0.29 * U[:, 2:] @",
    ),
    M(
        "HLZ Lemma 2.2",
        COORDINATES,
        "plus_tall_times(ZhU, point.V, other, alpha=-1))",
        "ZhU)",
    ),
    M(
        "HLZ Definition 2.3",
        "deeplin/geometry/retractions.py",
        "T = point.S + tangent.M\n        batch",
        "T = point.S - tangent.M\n        batch",
    ),
    M(
        "HLZ Lemma 2.4(1)",
        SPURIOUS,
        "return (self.U * self.d) @ self.V.mH",
        "return (self.U * self.d**2) @ self.V.mH",
        "test_landscape_spurious::test_all_partial_sums_are_critical",
    ),
    M(
        "HLZ Lemma 2.4(1)",
        LIMITS,
        "G @ P - P @ G @ P)",
        "G @ P - 2 * P @ G @ P)",
        "test_landscape_limits::test_limits_of_riemannian_gradient_descent_are_named",
    ),
    M("HLZ Lemma 2.4(2)", SPURIOUS, "ranks = range(r - 1, -1, -1)", "ranks = range(r, -1, -1)"),
    M(
        "HLZ Definition 2.5",
        SPURIOUS,
        "kept = [j - 1 for j in J]",
        "kept = [known.rank - j for j in J]",
    ),
    M(
        "HLZ Lemma 2.6",
        DLRA,
        "U_dot = torch.linalg.solve(point.S, tangent.Up, left=False)",
        "U_dot = torch.linalg.solve(point.S.mH, tangent.Up, left=False)",
    ),
    M("HLZ Lemma 2.6", DLRA, PSD_RATE, PSD_RATE.replace("along - K", "along - 2 * K")),
    M("HLZ Lemma 2.7", DLRA, PSD_RATE, PSD_RATE.replace("along - K", "along - 2 * K"), BOUND),
    M(
        "HLZ Definition 2.9",
        "deeplin/landscape/critical.py",
        "real_dim = 2 if W.is_complex() else 1",
        "real_dim = 1",
    ),
    M(
        "HLZ Theorem 2.10",
        SADDLES,
        "on_it - 0.1 * gradient(on_it)",
        "on_it + 0.1 * gradient(on_it)",
    ),
    M("HLZ Definition 2.11", TESTS, "torch.linalg.inv(S) * sigma, (", "torch.linalg.inv(S), ("),
    M(
        "HLZ Definition 2.12",
        SPURIOUS,
        "return ExtendedJacobian(0.0, d, vector",
        "return ExtendedJacobian(0.0, -d, vector",
    ),
    M(
        "HLZ Theorem 2.13",
        SADDLES,
        "x - 0.1 * gradient(x), on_it - 0.1",
        "x + 0.1 * gradient(x), on_it + 0.1",
    ),
    M("HLZ Theorem 3.1", DLRA, PSD_RATE, PSD_RATE.replace("along - K", "along - 2 * K")),
    M("HLZ Lemma 3.2", TESTS, "(n - 2 * r + s) * q", "(n - r + s) * q"),
    M(
        "HLZ Lemma 3.2",
        TESTS,
        "basis[:, r:] @ turn[:, : r - s]",
        "basis[:, r:] @ turn[:, : r - s] * 0 + basis[:, r : 2 * r - s]",
    ),
    M(
        "HLZ Lemma 3.3",
        DLRA,
        "return torch.linalg.eigvalsh(S)[..., 0]",
        "return torch.linalg.eigvalsh(S)[..., 0] ** 2",
    ),
    M(
        "HLZ Lemma 3.4",
        TESTS,
        "(-S + U.mT @ XU) * sigma",
        "-S + U.mT @ XU + torch.eye(len(S), dtype=F64)",
    ),
    M(
        "HLZ Lemma 3.4",
        SPURIOUS,
        "G = G - known.U @ (known.U.mH @ G)",
        "G = G - point.U @ (point.U.mH @ G)",
    ),
    M("HLZ Lemma 3.5", DLRA, PSD_RATE, PSD_RATE.replace("along - K", "along - 2 * K"), BOUND),
    M(
        "HLZ Lemma 3.6",
        DLRA,
        "return tuple(scale * part for part in rates)",
        "return (scale * rates[0], *rates[1:])",
    ),
    M(
        "HLZ Lemma 3.7",
        SPURIOUS,
        "return ExtendedJacobian(0.0, d, vector",
        "return ExtendedJacobian(-1.0, d, vector",
    ),
    M(
        "HLZ Lemma 3.8",
        SPURIOUS,
        "return float(known.s[j]), near.U",
        "return 2 * float(known.s[j]), near.U",
    ),
    M("HLZ Lemma 4.1", SPURIOUS, "1.0 + alpha * d, (vector,)", "1.0 + 2 * alpha * d, (vector,)"),
    M(
        "HLZ Lemma 4.1",
        DLRA,
        "M = (0.5 * h) * (M + M.mH)",
        "M = h * (M + M.mH)",
        "test_statements_escape::test_descent_with_the_varying_step_leaves_every_point_of_rank_r_minus_1",
    ),
    M(
        "HLZ Lemma 4.1",
        DLRA,
        "Up = plus_tall_times(N, U, along, beta=h, alpha=-h)",
        "Up = plus_tall_times(N, U, along, beta=-h, alpha=h)",
        "test_statements_escape::test_descent_with_the_varying_step_leaves_every_point_of_rank_r_minus_1",
    ),
    M("HLZ Remark 4.2(1)", TESTS, "(P @ G + G @ P - P @ G @ P)", "(P @ G + G @ P + P @ G @ P)"),
    M("HLZ Remark 4.2(2)", SPURIOUS, "rate * (forward + backward)", "rate * forward"),
    M("HLZ (4)", TESTS, "@ N.mT @ inverse @ U.mT", "@ N.mT @ U.mT"),
    M("HLZ Lemma A.1", TESTS, "float(a[-k] - b[-k - 1])", "float(a[-1] - b[-k - 1])"),
    M("HLZ Lemma B.2", TESTS, "inner = Q1.mT @ V1 + V2.mT @ Q2", "inner = Q1.mT @ V1 - V2.mT @ Q2"),
    M("HLZ Lemma B.2", TESTS, "n * k - k * (k + 1) // 2", "n * k - k * (k - 1) // 2"),
    M("HLZ §6", DISCUSSION, "(P @ G + G @ Q - P @ G @ Q)", "(P @ G + G @ Q)"),
    M(
        "HLZ §6",
        DLRA,
        "plus_tall_times(GhU, V, M.mH, beta=-h, alpha=h)",
        "plus_tall_times(GhU, V, M.mH, beta=h, alpha=-h)",
        "test_statements_discussion::test_descent_leaves_every_spurious_point",
    ),
    M(
        "HLZ §6",
        DISCUSSION,
        "/ values * values.min()",
        "/ values * values.max()",
        "test_statements_discussion::test_the_rescaled_field_has_no_limit_at_lower_ranks",
    ),
)
