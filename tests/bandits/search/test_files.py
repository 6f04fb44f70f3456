"""Bandits of the user's own files: what they hold, what identifies them, and what is refused."""

import shutil

import numpy as np
import pytest

from bandits.problems.environments import CoverageWarning
from bandits.search import parse_spec
from bandits.search.files import read_files
from bandits.simulation import UndeterminedWarning
from theory.bradley_terry import fit_tabular
from theory.checks import InvalidInput
from theory.pairs import Pairs

TRAINING = {"methods": ["dpo"], "steps": 20, "learning_rate": 0.1}
CONTENT = {
    "reference.csv": "letter,count\na,3\nb,1\nc,6\n",
    "zero.csv": "a,0.5\nb,0.5\nc,0\n",
    "reward.csv": "c,0.1\nb,1.0\na,0.5\n",
    "plain.csv": "0.5\n1.0\n0.1\n",
    "pairs.csv": "winner,loser,count\nb,a,3\nc,a,1\na,c,2\nb,c,1\nc,b,1\na,b,1\n",
    "stranger.csv": "winner,loser\nb,a\na,x\n",
    "never.csv": "winner,loser\nb,a\nc,a\n",
    "short.csv": "a,1\nb,2\n",
    "one.csv": "a,1\n",
    "bad.csv": "a,1\nb,x\nc,3\n",
    "huge.csv": "a,1\nb,1e300\nc,3\n",
}
FILES = {"reference": "reference.csv", "normalize": True, "reward": "reward.csv"}
PAIRS = {"reference": "reference.csv", "normalize": True, "preferences": "pairs.csv"}


@pytest.fixture
def folder(tmp_path):
    for name, text in CONTENT.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def parse(problem, folder, **training):
    return parse_spec({"problem": problem, "training": TRAINING | training}, folder)


def test_a_reward_is_brought_into_the_order_of_the_reference(folder):
    found = read_files(FILES, folder)
    assert found.labels == ("a", "b", "c")
    assert found.reference == pytest.approx((0.3, 0.1, 0.6))
    assert found.reward == (0.5, 1.0, 0.1)
    np.testing.assert_allclose(np.exp(found.bandit.reference_log_probs), found.reference, rtol=1e-6)
    np.testing.assert_allclose(found.bandit.reward, found.reward)
    assert found.bandit is found.bandit


def test_a_reward_is_fitted_to_preferences(folder):
    pairs = Pairs([1, 2, 0, 1, 2, 0], [0, 0, 2, 2, 1, 1], [3, 1, 2, 1, 1, 1])
    for given, ridge in (({}, 0.01), ({"ridge": 2}, 2.0)):
        expected = fit_tabular(Pairs(*map(np.array, vars(pairs).values())), ridge, num_arms=3)
        np.testing.assert_allclose(read_files(PAIRS | given, folder).reward, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("other", "labels"),
    [
        ({"reward": "reward.csv"}, "cba"),
        ({"reward": "plain.csv"}, "012"),
        ({"preferences": "pairs.csv"}, "bac"),
    ],
)
def test_a_uniform_reference_is_over_the_arms_that_the_other_file_names(folder, other, labels):
    found = read_files({"reference": "uniform", **other}, folder)
    assert found.labels == tuple(labels)
    assert found.reference == pytest.approx((1 / 3,) * 3)


def test_either_file_may_name_the_arms(folder):
    found = read_files({**FILES, "reward": "plain.csv"}, folder)
    assert (found.labels, found.reward) == (("a", "b", "c"), (0.5, 1.0, 0.1))
    found = read_files({**FILES, "reference": "plain.csv"}, folder)
    assert (found.labels, found.reward) == (("c", "b", "a"), (0.1, 1.0, 0.5))


def test_counts_are_smoothed_before_they_are_divided(folder):
    found = read_files({**FILES, "normalize": False, "pseudocount": 0.5}, folder)
    assert found.reference == pytest.approx(np.array([3.5, 1.5, 6.5]) / 11.5)


def test_the_numbers_and_names_are_the_identity_and_the_place_is_not(folder, tmp_path):
    described = parse(FILES, folder).describe()
    assert described["problem"] == {
        "environment": "files",
        "labels": ["a", "b", "c"],
        "reference": pytest.approx([0.3, 0.1, 0.6]),
        "reward": [0.5, 1.0, 0.1],
    }
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    shutil.copy(folder / "reference.csv", moved / "counts.txt")
    (moved / "r.json").write_text('{"a": 0.5, "b": 1, "c": 0.1}')
    elsewhere = {**FILES, "reference": "elsewhere/counts.txt", "reward": str(moved / "r.json")}
    assert parse(elsewhere, folder).describe() == described
    for name, text in (
        ("reference.csv", CONTENT["reference.csv"].replace("a,3", "a,4")),
        ("reward.csv", CONTENT["reward.csv"].replace("0.5", "0.6")),
    ):
        (folder / name).write_text(text)
        assert parse(FILES, folder).describe() != described
        (folder / name).write_text(CONTENT[name])
    for name in ("reference.csv", "reward.csv"):
        (folder / name).write_text(CONTENT[name].replace("b,1", "z,1"))
    assert parse(FILES, folder).describe() != described


@pytest.mark.parametrize(
    ("problem", "says"),
    [
        ({**FILES, "environment": "far"}, "problem has both 'environment' and 'reference'; give"),
        ({**FILES, "preferences": "pairs.csv"}, "problem has both 'reward' and 'preferences'"),
        ({"reference": "uniform"}, "problem has neither 'reward' nor 'preferences'; give one"),
        ({"reward": "reward.csv"}, "problem has no 'reference'; add it"),
        ({**FILES, "refrence": "x"}, "problem: unknown key 'refrence'; did you mean 'reference'?"),
        ({"refrence": "x", "rewrd": "y"}, "problem: unknown key 'refrence'; did you mean 'refere"),
        ({**FILES, "width": 3.0}, "problem: unknown key 'width'; "),
        ({}, "problem has no 'environment'; add it, or a reference and its reward"),
        ({**FILES, "reference": 3}, "problem.reference is 3; it must be a file's name, or 'unifo"),
        ({**FILES, "reference": ["a"]}, "problem.reference is ['a']; it must be a file's name"),
        ({**FILES, "reward": ""}, "problem.reward is ''; it must be a file's name"),
        ({**FILES, "reward": "a\0b"}, "problem.reward is 'a\\x00b'; it must be a file's name"),
        ({**FILES, "normalize": 1}, "problem.normalize is 1; it must be true or false"),
        ({**FILES, "pseudocount": -1}, "problem.pseudocount is -1; it must be a finite number >="),
        ({**FILES, "pseudocount": [0, 1]}, "problem.pseudocount is [0, 1]; it must be a finite"),
        ({**PAIRS, "ridge": [0.1, 1.0]}, "problem.ridge is [0.1, 1.0]; it must be a finite number"),
        ({**FILES, "ridge": 0.1}, "problem.ridge does nothing, for the reward is given, not fitte"),
        ({**FILES, "reference": "uniform"}, "problem.normalize does nothing, for the reference is"),
        ({**FILES, "normalize": False}, "problem.reference: reference sums to 10; probabilities "
         "must sum to 1 (to divide by the sum, add normalize = true)"),
        ({**FILES, "reference": "none.csv"}, "problem.reference: cannot read {}none.csv: No such"),
        ({**FILES, "reference": "bad.csv"}, "problem.reference: {}bad.csv, line 2: 'x' is not a"),
        ({**FILES, "reward": "bad.csv"}, "problem.reward: {}bad.csv, line 2: 'x' is not a number"),
        ({**FILES, "reward": "short.csv"}, "problem.reward: reward has 2 arms but reference has 3"),
        ({**FILES, "reward": "huge.csv"}, "problem.reward: arm 'b' has 1e+300; it must be a finit"),
        ({"reference": "uniform", "reward": "one.csv"}, "problem.reward: reward has 1 arms; at le"),
        ({**FILES, "reference": "one.csv"}, "problem.reference: reference has 1 arms; at least 2"),
        ({**PAIRS, "preferences": "stranger.csv"}, "problem.preferences: {}stranger.csv, line 3: "
         "unknown arm 'x'; "),
        ({**PAIRS, "preferences": "never.csv", "ridge": 0}, "problem.preferences: the preferences"
         " are separable, so "),
        ({"reference": "zero.csv", "preferences": "pairs.csv"}, "problem.preferences: preferences "
         "name arm 'c', which the reference excludes; give it a probability > 0 there ("
         "pseudocount = 0.5 for counts), or"),
    ],
)  # fmt: skip
def test_what_is_no_bandit_is_refused_with_its_key(folder, problem, says):
    with pytest.raises(InvalidInput) as refusal:
        parse(problem, folder)
    assert str(refusal.value).startswith(says.replace("{}", f"{folder}/"))
    assert len(str(refusal.value).splitlines()) == 1


def test_a_network_needs_a_reference_without_zeros(folder):
    problem = {"reference": "zero.csv", "reward": "reward.csv"}
    assert parse(problem, folder).files.reference == (0.5, 0.5, 0.0)
    with pytest.raises(
        InvalidInput, match=r"^problem\.reference is zero on arm 'c', but a network"
    ):
        parse(problem, folder, policy="network")
    assert parse({**problem, "pseudocount": 0.5}, folder, policy="network").policy == "network"


def test_a_reward_beyond_the_range_of_beta_is_refused(folder):
    training = {"methods": "forward_kl", "updates": "exact", "hyperparameters": {"beta": 1e-40}}
    with pytest.raises(InvalidInput, match=r"reward / beta of problem\.reward is beyond range"):
        parse(FILES, folder, **training)


def test_what_the_files_leave_open_is_said(folder):
    with pytest.warns(UndeterminedWarning, match="a never wins against"):
        parse({**PAIRS, "preferences": "never.csv"}, folder)
    (folder / "reward.csv").write_text("a,1\nb,2\nc,3\n")
    with pytest.warns(CoverageWarning, match="reference is zero on every arm of the highest"):
        parse({"reference": "zero.csv", "reward": "reward.csv"}, folder)
