import jax
import jax.numpy as jnp
import numpy as np
import pytest

from theory import checks

NAN, INF = np.nan, np.inf

REFUSED = [
    (checks.require_distribution, ("p", [0.5, -0.1, 0.6]), r"p\[1\] is -0.1; .* between 0 and 1"),
    (checks.require_distribution, ("p", [0.5, NAN]), r"p\[1\] is nan; it must be a number"),
    (checks.require_distribution, ("p", [INF, 0.5]), r"p\[0\] is inf; it must lie between 0 and 1"),
    (checks.require_distribution, ("p", [0.5, 0.6]), "p sums to 1.1; probabilities must sum to 1"),
    (checks.require_distribution, ("p", [0, 0]), "p sums to 0; probabilities must sum to 1"),
    (checks.require_distribution, ("p", [1.0]), "p has 1 arms; at least 2 are needed"),
    (checks.require_distribution, ("p", 1.0), "p has no axis of arms; at least 2 are needed"),
    (checks.require_distribution, ("p", []), "p has 0 arms; at least 2 are needed"),
    (
        checks.require_distribution,
        ("p", [[0.5, 0.5], [0.2, 0.9]]),
        "p sums to 1.1; probabilities must sum to 1",
    ),
    (checks.require_distribution, ("p", [[0.5, 0.5], [-1.0, 2.0]]), r"p\[1, 0\] is -1"),
    (checks.require_log_distribution, ("x", [0.0, 0.0]), r"exp\(x\) sums to 2; .* sum to 1"),
    (checks.require_log_distribution, ("x", [NAN, 0.0]), r"exp\(x\)\[0\] is nan"),
    (checks.require_log_distribution, ("x", [1e4, 0.0]), r"exp\(x\)\[0\] is inf"),
    (checks.require_log_distribution, ("x", [0.0]), r"exp\(x\) has 1 arms; at least 2 are needed"),
    (checks.require_arms, ("reward", np.ones((3, 1))), "reward has 1 arms; at least 2 are needed"),
    (checks.require_finite, ("reward", [0.0, NAN]), r"reward\[1\] is nan; .* a finite number"),
    (checks.require_finite, ("centre", -INF), "centre is -inf; it must be a finite number"),
    (
        checks.require_finite,
        ("reward", [0.0, 1e39]),
        r"reward\[1\] is 1e\+39; it must be a finite number within 32 bits",
    ),
    (checks.require_finite, ("ridge", "x"), "ridge is 'x'; it must be a finite number"),
    (checks.require_positive, ("rate", 1e39), r"rate is 1e\+39; .* > 0 within 32 bits"),
    (checks.require_whole, ("steps", 0), "steps is 0; it must be a whole number of at least 1"),
    (checks.require_whole, ("steps", 2.5), "steps is 2.5; it must be a whole number of at least 1"),
    (checks.require_whole, ("steps", True), "steps is True; it must be a whole number"),
    (checks.require_whole, ("steps", "3"), "steps is 3; it must be a whole number"),
    (checks.require_whole, ("seed", -1, 0, 9), "seed is -1; it must be a whole number from 0 to 9"),
    (checks.require_whole, ("seed", 10**20, 0, 9), "seed is 10{20}; .* from 0 to 9"),
    (checks.require_nonnegative, ("a", -1e-9), "a is -1e-09; it must be >= 0"),
    (checks.require_nonnegative, ("a", NAN), "a is nan; it must be >= 0"),
    (checks.require_positive, ("beta", 0.0), "beta is 0; it must be a finite number > 0"),
    (checks.require_positive, ("beta", [1.0, -2.0]), r"beta\[1\] is -2; .* a finite number > 0"),
    (checks.require_positive, ("beta", INF), "beta is inf; it must be a finite number > 0"),
    (checks.require_positive, ("beta", NAN), "beta is nan; it must be a finite number > 0"),
    (checks.require_index, ("first", 3, 3), "first is 3; arms go from 0 to 2"),
    (checks.require_index, ("first", [0, -1], 3), "first is -1; arms go from 0 to 2"),
    (checks.require_index, ("first", 1.0, 3), "first is 1.0; an arm is an integer from 0 to 2"),
    (
        checks.require_support,
        ("p", [0.2, 0.4, 0.4], "q", [0.5, 0.5, 0.0]),
        "q is zero on arm 2 where p is not, .*; q must be positive wherever p is",
    ),
    (
        checks.require_features,
        ("x", np.eye(3), 4),
        r"x has shape \(3, 3\); it needs one row for each of 4 arms, and columns",
    ),
    (checks.require_features, ("x", np.ones(4), 4), r"x has shape \(4,\); it needs one row"),
    (checks.require_features, ("x", 1.0, 1), r"x has shape \(\); it needs one row"),
    (checks.require_features, ("x", np.ones((4, 0)), 4), r"x has shape \(4, 0\); .* columns"),
    (checks.require_features, ("x", np.ones((2, 2, 2)), 2), r"x has shape \(2, 2, 2\)"),
    (checks.require_features, ("x", [[0.0], [NAN]], 2), r"x\[1, 0\] is nan; .* a finite number"),
    (checks.require_features, ("x", [[0.0, INF], [1, 0]], 2), r"x\[0, 1\] is inf"),
    (
        checks.require_features,
        ("x", [[1.0, -2.0], [1.0, -2.0]], 2),
        "x has rank 0: every column is the same on all arms; at least one must differ",
    ),
    (checks.require_preferences, ("n", np.zeros((4, 4))), "n is zero everywhere; there must be"),
    (checks.require_preferences, ("n", np.eye(3)[[1, 0, 2]]), "n prefers arm 2 to itself; a pair"),
    (checks.require_preferences, ("n", [[0, 1], [-1, 0]]), r"n\[1, 0\] is -1; it must be >= 0"),
    (checks.require_preferences, ("n", [[0, NAN], [1, 0]]), r"n\[0, 1\] is nan; .* finite number"),
    (
        checks.require_preferences,
        ("n", np.ones((3, 4))),
        r"n has shape \(3, 4\); .* \[K, K\]",
    ),
    (checks.require_preferences, ("n", np.ones(4)), r"n has shape \(4,\); it must be \[K, K\]"),
    (checks.require_preferences, ("n", np.zeros((1, 1))), r"n has shape \(1, 1\); .* K >= 2 arms"),
    (checks.require_preferences, ("n", np.float64(1.0)), r"n has shape \(\); it must be \[K, K\]"),
    (checks.require_probability, ("epsilon", 1.1), "epsilon is 1.1; it must lie between 0 and 1"),
    (checks.require_probability, ("epsilon", NAN), "epsilon is nan; it must lie between 0 and 1"),
    (checks.require_integer, ("arms", 0.5), "arms is 0.5; it must be a whole number"),
    (checks.require_integer, ("arms", True), "arms is True; it must be a whole number"),
    (checks.require_two, ("num_arms", 1), "num_arms is 1; at least 2 are needed"),
    (checks.require_count, ("n", [4, 2.5]), r"n\[1\] is 2.5; it must be a whole number >= 1"),
    (checks.require_count, ("n", INF), "n is inf; it must be a whole number >= 1"),
    (checks.require_multiple, ("d", 5, "D", 2), "d is 5; it must be a multiple of D, 2"),
    (
        checks.require_known,
        ("method", "revers_kl", ["forward_kl", "reverse_kl"]),
        r"unknown method 'revers_kl'; did you mean 'reverse_kl'\? allowed: forward_kl, reverse_kl",
    ),
]


@pytest.mark.parametrize(("check", "arguments", "message"), REFUSED)
def test_bad_value_is_refused_in_a_sentence_that_names_it(check, arguments, message):
    with pytest.raises(checks.InvalidInput, match=f"^{message}"):
        check(*arguments)


def test_refusal_is_a_value_error():
    assert issubclass(checks.InvalidInput, ValueError)


def test_different_numbers_of_arms_are_refused_with_both_names_and_lengths():
    with pytest.raises(checks.InvalidInput, match=r"^q has 3 arms but p has 2; they must match$"):
        checks.require_same_arms(p=np.ones(2), q=np.ones(3))
    with pytest.raises(checks.InvalidInput, match=r"^r has (no axis of|0) arms"):
        checks.require_same_arms(p=np.ones(2), q=np.ones((4, 2)), r=1.0)


def test_no_suggestion_is_made_where_nothing_is_near():
    with pytest.raises(checks.InvalidInput, match=r"^unknown method 'zzz'; allowed: a, b$"):
        checks.require_known("method", "zzz", ["a", "b"])


@pytest.mark.parametrize(
    ("given", "meant"),
    [("DPO", "dpo"), ("Forward-KL", "forward_kl"), ("online dpo", "online_dpo"), ("Fit-1", "fit1")],
)
def test_case_dashes_and_spaces_hide_no_name(given, meant):
    names = ["online_dpo", "forward_kl", "dpo", "fit1", "fit2"]
    with pytest.raises(checks.InvalidInput, match=f"did you mean '{meant}'[?] allowed: online_dpo"):
        checks.require_known("method", given, names)


@pytest.mark.parametrize(
    ("check", "arguments"),
    [
        (checks.require_distribution, ("p", [1, 0])),
        (checks.require_distribution, ("p", np.full(100_000, 1e-5, np.float32))),
        (checks.require_distribution, ("p", [0.5, 0.500009])),
        (checks.require_distribution, ("p", [[0.5, 0.5], [0.1, 0.9]])),
        (checks.require_log_distribution, ("x", [0.0, -INF])),
        (checks.require_log_distribution, ("x", np.log([0.25, 0.75]))),
        (checks.require_finite, ("reward", [-1e38, 0])),
        (checks.require_nonnegative, ("a", [0.0, 1.0])),
        (checks.require_positive, ("beta", 1e-300)),
        (checks.require_index, ("first", [0, 2], 3)),
        (checks.require_support, ("p", [0.5, 0.5, 0.0], "q", [0.5, 0.5, 0.0])),
        (checks.require_known, ("method", "a", ["a", "b"])),
        (checks.require_features, ("x", [[1, 0], [1, 1]], 2)),
        (checks.require_features, ("x", [[1e38], [-1e38]], 2)),
        (checks.require_preferences, ("n", [[0, 1], [0, 0]])),
        (checks.require_integer, ("n", 10**30)),
        (checks.require_count, ("n", [1.0, 3.0])),
    ],
)
def test_good_value_passes(check, arguments):
    assert check(*arguments) is None


def test_sum_is_refused_beyond_one_part_in_100_000():
    with pytest.raises(checks.InvalidInput, match=r"^p sums to"):
        checks.require_distribution("p", [0.5, 0.499989])


def test_values_are_not_checked_while_traced_but_lengths_are():
    @jax.jit
    def run(values, index):
        checks.require_distribution("p", values)
        checks.require_log_distribution("p", values)
        checks.require_finite("p", values)
        checks.require_nonnegative("p", values)
        checks.require_positive("p", values)
        checks.require_index("first", index, 2)
        checks.require_support("p", values, "q", jnp.zeros(2))
        checks.require_features("x", values[:, None], 2)
        checks.require_preferences("n", values[:, None] * values)
        checks.require_count("n", values)
        checks.require_two("n", values)
        return values

    run(jnp.array([-1.0, jnp.nan]), 7)
    with pytest.raises(checks.InvalidInput, match="p has 1 arms"):
        run(jnp.ones(1), 0)
    with pytest.raises(checks.InvalidInput, match=r"x has shape .*one row for each of 4 arms"):
        jax.jit(lambda x: checks.require_features("x", x, 4))(jnp.eye(3))
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
