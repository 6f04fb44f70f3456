import jax
import jax.numpy as jnp
import numpy as np
import pytest

from theory import checks

NAN, INF = np.nan, np.inf

REFUSED = [
    ("distribution", [0.5, -0.1, 0.6], r"x\[1\] is -0.1; .* between 0 and 1"),
    ("distribution", [0.5, NAN], r"x\[1\] is nan; it must be a number"),
    ("distribution", [INF, 0.5], r"x\[0\] is inf; it must lie between 0 and 1"),
    ("distribution", [0.5, 0.6], "x sums to 1.1; probabilities must sum to 1"),
    ("distribution", [0.5, 0.499989], "x sums to"),  # beyond one part in 100,000
    ("distribution", [0, 0], "x sums to 0; probabilities must sum to 1"),
    ("distribution", [1.0], "x has 1 arms; at least 2 are needed"),
    ("distribution", 1.0, "x has no axis of arms; at least 2 are needed"),
    ("distribution", [], "x has 0 arms; at least 2 are needed"),
    ("distribution", [[0.5, 0.5], [0.2, 0.9]], "x sums to 1.1; probabilities must sum to 1"),
    ("distribution", [[0.5, 0.5], [-1.0, 2.0]], r"x\[1, 0\] is -1"),
    ("log_distribution", [0.0, 0.0], r"exp\(x\) sums to 2; .* sum to 1"),
    ("log_distribution", [NAN, 0.0], r"exp\(x\)\[0\] is nan"),
    ("log_distribution", [1e4, 0.0], r"exp\(x\)\[0\] is inf"),
    ("log_distribution", [0.0], r"exp\(x\) has 1 arms; at least 2 are needed"),
    ("arms", np.ones((3, 1)), "x has 1 arms; at least 2 are needed"),
    ("finite", [0.0, NAN], r"x\[1\] is nan; .* a finite number"),
    ("finite", -INF, "x is -inf; it must be a finite number"),
    ("finite", [0.0, 1e39], r"x\[1\] is 1e\+39; it must be a finite number within 32 bits"),
    ("finite", "x", "x is 'x'; it must be a finite number"),
    ("positive", 1e39, r"x is 1e\+39; .* > 0 within 32 bits"),
    ("positive", 0.0, "x is 0; it must be a finite number > 0"),
    ("positive", [1.0, -2.0], r"x\[1\] is -2; .* a finite number > 0"),
    ("positive", INF, "x is inf; it must be a finite number > 0"),
    ("positive", NAN, "x is nan; it must be a finite number > 0"),
    ("whole", 0, "x is 0; it must be a whole number of at least 1"),
    ("whole", 2.5, "x is 2.5; it must be a whole number of at least 1"),
    ("whole", True, "x is True; it must be a whole number"),
    ("whole", "3", "x is 3; it must be a whole number"),
    ("whole", (-1, 0, 9), "x is -1; it must be a whole number from 0 to 9"),
    ("whole", (10**20, 0, 9), "x is 10{20}; .* from 0 to 9"),
    ("nonnegative", -1e-9, "x is -1e-09; it must be >= 0"),
    ("nonnegative", NAN, "x is nan; it must be >= 0"),
    ("index", (3, 3), "x is 3; arms go from 0 to 2"),
    ("index", ([0, -1], 3), "x is -1; arms go from 0 to 2"),
    ("index", (1.0, 3), "x is 1.0; an arm is an integer from 0 to 2"),
    ("support", ([0.2, 0.4, 0.4], "q", [0.5, 0.5, 0.0]),
     "q is zero on arm 2 where x is not, .*; q must be positive wherever x is"),
    ("features", np.ones(4), r"x has shape \(4,\); it must be \[K, F\], a row for each arm"),
    ("features", 1.0, r"x has shape \(\); it must be"),
    ("features", np.ones((4, 0)), r"x has shape \(4, 0\)"),
    ("features", np.ones((0, 4)), r"x has shape \(0, 4\)"),
    ("features", np.ones((2, 2, 2)), r"x has shape \(2, 2, 2\)"),
    ("features", [[0.0], [NAN]], r"x\[1, 0\] is nan; .* a finite number"),
    ("features", [[0.0, INF], [1, 0]], r"x\[0, 1\] is inf"),
    ("features", [[1.0, -2.0], [1.0, -2.0]],
     "x has rank 0: every column is the same on all arms; at least one must differ"),
    ("preferences", np.zeros((4, 4)), "x is zero everywhere; there must be"),
    ("preferences", np.eye(3)[[1, 0, 2]], "x prefers arm 2 to itself; a pair"),
    ("preferences", [[0, 1], [-1, 0]], r"x\[1, 0\] is -1; it must be >= 0"),
    ("preferences", [[0, NAN], [1, 0]], r"x\[0, 1\] is nan; .* finite number"),
    ("preferences", np.ones((3, 4)), r"x has shape \(3, 4\); .* \[K, K\]"),
    ("preferences", np.ones(4), r"x has shape \(4,\); it must be \[K, K\]"),
    ("preferences", np.zeros((1, 1)), r"x has shape \(1, 1\); .* K >= 2 arms"),
    ("preferences", np.float64(1.0), r"x has shape \(\); it must be \[K, K\]"),
    ("probability", 1.1, "x is 1.1; it must lie between 0 and 1"),
    ("probability", NAN, "x is nan; it must lie between 0 and 1"),
    ("integer", 0.5, "x is 0.5; it must be a whole number"),
    ("integer", True, "x is True; it must be a whole number"),
    ("two", 1, "x is 1; at least 2 are needed"),
    ("count", [4, 2.5], r"x\[1\] is 2.5; it must be a whole number >= 1"),
    ("count", INF, "x is inf; it must be a whole number >= 1"),
    ("multiple", (5, "D", 2), "x is 5; it must be a multiple of D, 2"),
    ("known", ("revers_kl", ["forward_kl", "reverse_kl"]),
     r"unknown x 'revers_kl'; did you mean 'reverse_kl'\? allowed: forward_kl, reverse_kl"),
    ("known", ("zzz", ["a", "b"]), "unknown x 'zzz'; allowed: a, b$"),
]  # fmt: skip
PASS = [
    ("distribution", [1, 0]),
    ("distribution", np.full(100_000, 1e-5, np.float32)),
    ("distribution", [0.5, 0.500009]),
    ("distribution", [[0.5, 0.5], [0.1, 0.9]]),
    ("log_distribution", [0.0, -INF]),
    ("log_distribution", np.log([0.25, 0.75])),
    ("finite", [-1e38, 0]),
    ("nonnegative", [0.0, 1.0]),
    ("positive", 1e-300),
    ("index", ([0, 2], 3)),
    ("support", ([0.5, 0.5, 0.0], "q", [0.5, 0.5, 0.0])),
    ("known", ("a", ["a", "b"])),
    ("features", [[1, 0], [1, 1]]),
    ("features", [[1e38], [-1e38]]),
    ("preferences", [[0, 1], [0, 0]]),
    ("integer", 10**30),
    ("count", [1.0, 3.0]),
]


def require(kind, given):
    getattr(checks, f"require_{kind}")("x", *(given if isinstance(given, tuple) else (given,)))


@pytest.mark.parametrize(("kind", "given", "message"), REFUSED)
def test_bad_value_is_refused_in_a_sentence_that_names_it(kind, given, message):
    with pytest.raises(checks.InvalidInput, match=f"^{message}"):
        require(kind, given)


@pytest.mark.parametrize(("kind", "given"), PASS)
def test_good_value_passes(kind, given):
    require(kind, given)


def test_refusal_is_a_value_error():
    assert issubclass(checks.InvalidInput, ValueError)


def test_different_numbers_of_arms_are_refused_with_both_names_and_lengths():
    with pytest.raises(checks.InvalidInput, match=r"^q has 3 arms but p has 2; they must match$"):
        checks.require_same_arms(p=np.ones(2), q=np.ones(3))
    with pytest.raises(checks.InvalidInput, match=r"^r has (no axis of|0) arms"):
        checks.require_same_arms(p=np.ones(2), q=np.ones((4, 2)), r=1.0)


@pytest.mark.parametrize(
    ("given", "meant"),
    [("DPO", "dpo"), ("Forward-KL", "forward_kl"), ("online dpo", "online_dpo"), ("Fit-1", "fit1")],
)
def test_case_dashes_and_spaces_hide_no_name(given, meant):
    names = ["online_dpo", "forward_kl", "dpo", "fit1", "fit2"]
    with pytest.raises(checks.InvalidInput, match=f"did you mean '{meant}'[?] allowed: online_dpo"):
        checks.require_known("method", given, names)


def test_values_are_not_checked_while_traced_but_lengths_are():
    @jax.jit
    def run(values, index):
        for kind in ("distribution", "log_distribution", "finite", "nonnegative", "positive",
                     "count", "two", "probability", "integer", "whole"):  # fmt: skip
            require(kind, values)
        require("index", (index, 2))
        require("support", (values, "q", jnp.zeros(2)))
        require("features", values[:, None])
        require("preferences", values[:, None] * values)
        return values

    run(jnp.array([-1.0, jnp.nan]), 7)
    with pytest.raises(checks.InvalidInput, match="x has 1 arms"):
        run(jnp.ones(1), 0)
    with pytest.raises(checks.InvalidInput, match=r"x has shape \(3,\)"):
        jax.jit(lambda x: checks.require_features("x", x))(jnp.ones(3))
    with pytest.raises(checks.InvalidInput, match="q has 3 arms but p has 2"):
        jax.jit(lambda p, q: checks.require_same_arms(p=p, q=q))(jnp.ones(2), jnp.ones(3))


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [(checks.positive, [0.5, 2.0], [0.0, -1.0, np.inf, np.nan]),
     (checks.nonnegative, [0.0, 2.0], [-1.0, np.inf, np.nan])],
)  # fmt: skip
def test_a_number_out_of_range_is_refused_and_while_traced_becomes_nan(check, good, bad):
    for value in bad:
        with pytest.raises(checks.InvalidInput, match="x is"):
            check("x", value)
        assert np.isnan(jax.jit(lambda v: check("x", v))(value))
    for value in good:
        assert check("x", value) == value
        assert jax.jit(lambda v: check("x", v))(value) == value
