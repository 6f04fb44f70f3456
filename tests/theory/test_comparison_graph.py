import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from theory.bradley_terry import fit_tabular, require_finite_optimum
from theory.checks import InvalidInput
from theory.comparison_graph import Finding, describe, undetermined
from theory.pairs import Pairs


def pairs_of(text):
    """Of "ab ca": a preferred to b, c to a."""
    arms = np.array([[ord(letter) - ord("a") for letter in pair] for pair in text.split()])
    return Pairs(arms[:, 0], arms[:, 1], np.ones(len(arms)))


def sentences(text, labels, ridge=0.01):
    return [describe(f, labels, ridge) for f in undetermined(pairs_of(text), len(labels))]


@pytest.mark.parametrize(
    ("text", "num_arms", "expected"),
    [
        ("ab ba", 2, []),
        ("ab bc ca", 3, []),
        ("ab ba cd dc", 4, [Finding("never compared", ((0, 1), (2, 3)))]),
        ("ab ba", 4, [Finding("no data", ((2, 3),))]),
        ("ab", 2, [Finding("separable", ((0,), (1,)), unbeaten=0)]),
        ("ab ba bc cb db", 4, [Finding("separable", ((3,), (0, 1, 2)), unbeaten=0)]),
        ("ab ba bc cb bd", 4, [Finding("separable", ((3,), (0, 1, 2)), unbeaten=1)]),
        (
            "ab bc ac",
            3,
            [
                Finding("separable", ((0,), (1, 2)), unbeaten=0),
                Finding("separable", ((2,), (0, 1)), unbeaten=1),
            ],
        ),
        (
            "ab cd dc fg ga af gf",
            8,
            [
                Finding("no data", ((4, 7),)),
                Finding("never compared", ((2, 3), (0, 1, 5, 6))),
                Finding("separable", ((1,), (0, 5, 6)), unbeaten=1),
            ],
        ),
    ],
)
def test_findings_are_what_the_graph_shows(text, num_arms, expected):
    assert undetermined(pairs_of(text), num_arms) == expected


def test_pairs_of_weight_zero_do_not_count():
    pairs = Pairs(np.array([0, 1, 1]), np.array([1, 0, 0]), np.array([1.0, 0.0, 0.0]))
    assert [finding.kind for finding in undetermined(pairs, 2)] == ["separable"]


@given(st.integers(0, 2**32 - 1), st.integers(2, 6), st.integers(1, 12))
def test_findings_hold_in_the_table_and_none_is_missing(seed, num_arms, number):
    rng = np.random.default_rng(seed)
    winners = rng.integers(0, num_arms, number)
    losers = (winners + rng.integers(1, num_arms, number)) % num_arms
    pairs = Pairs(winners, losers, np.ones(number))
    table = np.zeros((num_arms, num_arms))
    np.add.at(table, (winners, losers), 1)
    findings = undetermined(pairs, num_arms)
    for finding in findings:
        groups = [list(group) for group in finding.groups]
        assert sorted(map(len, groups)) == list(map(len, groups))
        if finding.kind == "no data":
            assert not (table + table.T)[groups[0]].any()
        elif finding.kind == "never compared":
            for one, other in itertools.permutations(groups, 2):
                assert not table[np.ix_(one, other)].any()
        else:
            unbeaten, beaten = groups[finding.unbeaten], groups[1 - finding.unbeaten]
            assert table[np.ix_(unbeaten, beaten)].any()
            assert not table[np.ix_(beaten, unbeaten)].any()
    # The linear programme knows nothing of graphs.
    separable = any(finding.kind == "separable" for finding in findings)
    try:
        require_finite_optimum(np.eye(num_arms), table)
    except InvalidInput:
        assert separable
    else:
        assert not separable
        assert np.isfinite(fit_tabular(pairs, 0.0, num_arms=num_arms)).all()


def test_sentences_name_arms_by_their_labels():
    assert sentences("ab ba cd dc", "abcd") == [
        "the pairs never compare a, b with c, d: the prior alone sets the gap between these groups"
    ]
    assert sentences("ab ba bc cb db", "abcd") == [
        "d never loses to the others: the data put no upper bound on its reward, the prior "
        "(ridge 0.01) does"
    ]
    assert sentences("ca cb ab ba da", ["x", "y", "z", "w", "v"], ridge=0.5) == [
        "no pair has v: the prior alone sets its reward to the mean",
        "z, w never lose to x, y: the data put no upper bound on their rewards, the prior "
        "(ridge 0.5) does",
    ]
    assert sentences("ab", "ab") == [
        "a never loses to b: the data put no upper bound on its reward, the prior (ridge 0.01) does"
    ]
    assert sentences("ab ba bc", "abc")[0].startswith(
        "c never wins against the others: the data put no lower bound on its reward"
    )


def test_sentences_about_many_arms_say_how_many_others_there_are():
    ends = 2 * np.arange(100), 2 * np.arange(100) + 1
    both = Pairs(np.append(*ends), np.append(*ends[::-1]), np.ones(200))
    without, apart = [describe(f, range(217), 0.01) for f in undetermined(both, 217)]
    assert without.startswith("no pair has 200, 201, 202, 203, 204 and 12 others: the prior")
    assert "(0, 1), (2, 3), (4, 5), (6, 7), (8, 9) and 95 other groups: the prior" in apart


@pytest.mark.parametrize("shape", ["rank", "star", "pairs"])
def test_a_hundred_thousand_pairs_are_no_problem(shape):
    size = 100_000
    first, second = np.arange(size - 1), np.arange(1, size)
    if shape == "star":
        first, second = second, np.zeros_like(first)
    if shape == "pairs":
        first, second = first[::2], second[::2]
    findings = undetermined(Pairs(first, second, np.ones(len(first))), size)
    assert len(findings) == {"rank": 2, "star": 1, "pairs": size // 2 + 1}[shape]
