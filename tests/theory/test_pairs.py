import jax
import numpy as np
import pytest

from theory.checks import InvalidInput
from theory.pairs import Pairs, require_pairs, require_pairs_in_support

TABLE = np.array([[0, 2.0, 0], [0.5, 0, 0], [1.0, 0, 0]])


def test_a_table_and_its_list_hold_the_same():
    pairs = Pairs.from_table(TABLE)
    assert list(zip(pairs.winners, pairs.losers, pairs.weights, strict=True)) == [
        (0, 1, 2.0), (1, 0, 0.5), (2, 0, 1.0),
    ]  # fmt: skip
    np.testing.assert_array_equal(pairs.to_table(3), TABLE)
    require_pairs("pairs", pairs, 3)


@pytest.mark.parametrize(
    ("winners", "losers", "weights", "num_arms", "message"),
    [
        ([0, 1], [1, 2], [1.0], 3, "one length"),
        ([[0]], [[1]], [[1.0]], 3, "three lists"),
        ([0], [1], [1.0], 1, "at least 2 arms"),
        ([0], [3], [1.0], 3, r"losers is 3; arms go from 0 to 2"),
        ([-1], [1], [1.0], 3, r"winners is -1"),
        ([0.5], [1], [1.0], 3, "integer"),
        ([0], [1], [-1.0], 3, "must be >= 0"),
        ([0], [1], [np.nan], 3, "finite"),
        ([0, 1], [1, 2], [0.0, 0.0], 3, "zero everywhere"),
        ([0, 2], [1, 2], [1.0, 1.0], 3, "prefers arm 2 to itself"),
    ],
)
def test_bad_lists_are_refused(winners, losers, weights, num_arms, message):
    pairs = Pairs(np.array(winners), np.array(losers), np.array(weights))
    with pytest.raises(InvalidInput, match=message):
        require_pairs("pairs", pairs, num_arms)


def test_an_arm_may_be_listed_beside_itself_with_weight_zero():
    require_pairs("pairs", Pairs(np.array([0, 1]), np.array([0, 0]), np.array([0.0, 1.0])), 2)


ONE, EXCLUDED = Pairs(np.array([0]), np.array([2]), np.ones(1)), [0.0, -np.inf, -np.inf]


@pytest.mark.parametrize(
    ("pairs", "reference", "labels", "arm"),
    [
        (ONE.to_table(3), EXCLUDED, [], "2"),
        (ONE, EXCLUDED, [], "2"),
        (np.array([[0, 0], [0.1, 0]]), [0.0, -np.inf], [], "1"),
        (ONE, [-np.inf, 0.0, 0.0], ["left", "middle", "right"], "'left'"),
    ],
)
def test_pairs_of_excluded_arms_are_refused(pairs, reference, labels, arm):
    message = f"^labels name arm {arm}, which the reference excludes; .* > 0 there, or leave its"
    with pytest.raises(InvalidInput, match=message):
        require_pairs_in_support("labels", pairs, reference, labels)
    with pytest.raises(InvalidInput, match="excludes; look, or leave its pairs out"):
        require_pairs_in_support("labels", pairs, reference, labels, remedy="look")


def test_pairs_of_other_arms_and_traced_ones_pass():
    require_pairs_in_support("n", np.diag([1, 0], 1), [-1.0, -1.0, -np.inf])
    require_pairs_in_support("n", np.ones((2, 2)), [-1e38, 0.0])

    @jax.jit
    def run(table, reference):
        require_pairs_in_support("n", table, np.array([0.0, -np.inf]))
        require_pairs_in_support("n", np.ones((2, 2)), reference)
        return table

    run(np.ones((2, 2)), np.array([0.0, -np.inf]))
