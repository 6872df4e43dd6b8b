"""Errors in the bounds of BRTW's proof of Theorem 5, (10) to (15)."""

from mutations import Mutation as M

TESTS = "tests/test_statements_bounds.py"
ON_RUNS = "test_statements_bounds::test_bounds_of_layers_with_the_constants_of_their_start"
GROWTH = "test_statements_bounds::test_growth_of_layers_whose_gaps_are_fixed"
ATTAINED = "test_statements_bounds::test_bounds_of_layers_are_attained"

BOUNDS = (
    M("BRTW (10)", TESTS, "[math.sqrt(d), math.sqrt(max(t, 0.0))]", "[math.sqrt(d), 0.0]", ON_RUNS),
    M(
        "BRTW (10)",
        TESTS,
        "[math.sqrt(d), math.sqrt(max(t, 0.0))]",
        "[1.0, math.sqrt(max(t, 0.0))]",
        ON_RUNS,
    ),
    M("BRTW (10)", TESTS, "G in A[i:])", "G in A[i + 1 :])", ON_RUNS),
    M(
        "BRTW (10)",
        TESTS,
        "float(W.norm()) ** (1 / N)",
        "float(W.norm()) ** (1 / (N + 1))",
        ATTAINED,
    ),
    M(
        "BRTW (10)",
        TESTS,
        "at_most(slope - 1 / depth, 1e-4)",
        "at_most(slope - 1 / (depth + 1), 1e-4)",
        GROWTH,
    ),
    M(
        "BRTW (12)",
        TESTS,
        "power(squared, i) @ gap @ power(M,",
        "power(M, i) @ gap @ power(M,",
        ON_RUNS,
    ),
    M(
        "BRTW (12)",
        TESTS,
        "A, start=1):\n        after",
        "A[:-1], start=1):\n        after",
        ON_RUNS,
    ),
    M(
        "BRTW (12)",
        "deeplin/network/deep_linear.py",
        "*([earlier[-1]] if p else []),",
        "*([2 * earlier[-1]] if p else []),",
        ON_RUNS,
    ),
    M(
        "BRTW (12)",
        TESTS,
        "degree - (2 * depth - 2), 1e-2",
        "degree - (2 * depth - 3), 1e-2",
        GROWTH,
    ),
    M("BRTW (13)", TESTS, "square + rest)]", "square)]", ON_RUNS),
    M("BRTW (13)", TESTS, "factor in linear[j:]:", "factor in linear[j + 1 :]:", ON_RUNS),
    M("BRTW (14)", TESTS, "2 * square + 2 * C", "2 * square + C", ATTAINED),
    M("BRTW (14)", TESTS, "2 * square + 2 * C", "square + 2 * C", ATTAINED),
    M("BRTW (14)", TESTS, "[0.5] + [0.0] * (2 * N)", "[1.0] + [0.0] * (2 * N)", ATTAINED),
    M("BRTW (14)", TESTS, "quotient - math.sqrt(2), 0", "quotient - math.sqrt(0.5), 0", GROWTH),
    M("BRTW (15)", TESTS, "root = 2 ** (1 / (2 * N)) * ", "root = ", ATTAINED),
    M("BRTW (15)", TESTS, "+ (2 * C) ** (1 / (2 * N))", "+ C ** (1 / (2 * N))", ATTAINED),
    M("BRTW (15)", TESTS, "+ (2 * C) ** (1 / (2 * N))", "+ (2 * C) ** (1 / N)", ATTAINED),
)
