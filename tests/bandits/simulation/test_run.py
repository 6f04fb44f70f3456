"""A bandit of the user's own: it arrives where theory says, and bad input is refused."""

import numpy as np
import pytest
from scipy.special import softmax

from bandits.files import tables
from bandits.files.comparisons import Comparisons
from bandits.problems.environments import CoverageWarning
from bandits.simulation import UndeterminedWarning, plot, simulate, to_distribution
from bandits.sweeps import DivergenceWarning
from theory.checks import InvalidInput
from theory.gibbs import gibbs_log_probs

pytestmark = pytest.mark.filterwarnings("ignore::bandits.simulation.UndeterminedWarning")

PAIR = ["forward_kl", "reverse_kl"]
P, Q = (0.2, 0.25, 0.55), (0.5, 0.4, 0.1)


def vector(values, labels=None):
    return tables.Vector(np.array(values, float), None if labels is None else tuple(labels))


@pytest.fixture(scope="module")
def to_target():
    return simulate(vector(P, "abc"), target=vector((0.1, 0.4, 0.5), "cba"), steps=3000)


@pytest.fixture(scope="module")
def to_reward():
    return simulate(vector(P), reward=vector([0.5, 1.0, -0.25]), beta=0.5, steps=3000)


def test_both_methods_reach_a_target_in_the_order_of_the_references_labels(to_target):
    probs = np.exp(to_target["log_probs"])
    assert to_target["arm"].values.tolist() == ["a", "b", "c"]
    assert to_target["loss"].values.tolist() == PAIR
    for name in PAIR:
        np.testing.assert_allclose(probs.sel(loss=name, step=3000), Q, atol=1e-4)
        np.testing.assert_allclose(probs.sel(loss=name, step=0), P, rtol=1e-6)
    np.testing.assert_allclose(np.exp(to_target["target_log_probs"]), Q, rtol=1e-6)
    np.testing.assert_allclose(np.exp(to_target["reference_log_probs"]), P, rtol=1e-6)


def test_metrics_are_those_of_the_recorded_policies(to_target):
    p = np.exp(to_target["log_probs"].values.astype(float))
    q = np.array(Q)
    expected = {
        "forward_kl": (q * np.log(q / p)).sum(axis=-1),
        "reverse_kl": (p * np.log(p / q)).sum(axis=-1),
        "entropy": -(p * np.log(p)).sum(axis=-1),
        "optimal_mass": p[..., 0],
    }
    for name, values in expected.items():
        np.testing.assert_allclose(to_target[name], values, atol=1e-6)
    assert to_target["forward_kl"].attrs["units"] == "nats"
    assert "expected_reward" not in to_target


def test_a_reward_leads_to_the_gibbs_policy_of_theory(to_reward):
    expected = gibbs_log_probs(np.array([0.5, 1.0, -0.25]), np.log(P), 0.5)
    np.testing.assert_allclose(to_reward["target_log_probs"], expected, rtol=1e-5)
    for name in PAIR:
        final = np.exp(to_reward["log_probs"].sel(loss=name, step=3000))
        np.testing.assert_allclose(final, np.exp(expected), atol=1e-4)
        np.testing.assert_allclose(
            to_reward["expected_reward"].sel(loss=name, step=3000),
            np.exp(expected) @ [0.5, 1.0, -0.25],
            atol=1e-4,
        )


def test_the_geometry_is_reported(to_target, to_reward):
    assert to_target.concentrability == pytest.approx(0.5 / 0.2, rel=1e-6)
    gibbs = softmax(np.log(P) + np.array([1.0, 2.0, -0.5]))
    assert to_reward.concentrability == pytest.approx((gibbs / P).max(), rel=1e-5)
    assert to_reward.beta == 0.5
    assert to_reward.peak_distance == 1  # the reward peaks on arm 1; the median of P is arm 2
    assert "beta" not in to_target.attrs


def test_arms_take_the_targets_names_or_are_numbered(to_reward):
    assert to_reward["arm"].values.tolist() == [0, 1, 2]
    named = simulate(vector(P), target=vector(Q, "xyz"), methods=["reverse_kl"] * 2, steps=1)
    assert named["arm"].values.tolist() == ["x", "y", "z"]
    assert named["loss"].values.tolist() == ["reverse_kl"]  # and a method named twice is run once


@pytest.mark.parametrize(
    ("rate", "options", "step"),
    [
        (0.25, {"natural_gradient": True}, 0.25 * np.subtract(Q, P) / P),
        (0.01, {"optimizer": "adam"}, 0.01 * np.sign(np.subtract(Q, P))),  # its first has size 0.01
    ],
)
def test_the_first_step_on_forward_kl_is_the_closed_form(rate, options, step):
    common = {"methods": ["forward_kl"], "steps": 1, "learning_rate": rate}
    dataset = simulate(vector(P), target=vector(Q), **common, **options)
    expected = softmax(np.log(P) + step)
    np.testing.assert_allclose(np.exp(dataset["log_probs"][0, -1]), expected, rtol=1e-5)
    assert dataset.natural_gradient == options.get("natural_gradient", 0)


ZERO = {"reverse_kl": (P, (0.5, 0.5, 0.0)), "forward_kl": ((0.5, 0.5, 0.0), Q)}


@pytest.mark.parametrize("method", PAIR)
def test_a_zero_that_makes_a_kl_infinite_is_refused_with_the_remedy(method):
    reference, target = ZERO[method]
    where = "target" if method == "reverse_kl" else "reference"
    message = rf"{where} is zero on arm 'c' .* so {method} is infinite; .*--pseudocount"
    with pytest.raises(InvalidInput, match=message):
        simulate(vector(reference, "abc"), target=vector(target), methods=[method])


@pytest.mark.parametrize("method", PAIR)
def test_a_zero_that_leaves_the_kl_finite_is_run(method):
    (other,) = set(PAIR) - {method}
    reference, target = ZERO[other]
    dataset = simulate(vector(reference), target=vector(target), methods=[method], steps=10)
    assert np.isfinite(dataset[method]).all()
    excluded = np.exp(dataset["target_log_probs" if target[2] == 0 else "reference_log_probs"])
    assert excluded[2] == 0


def test_an_arm_that_the_reference_excludes_stays_excluded_whatever_its_reward():
    reference, reward = vector([0.5, 0.5, 0.0]), vector([0.0, 1.0, 50.0])
    with pytest.warns(CoverageWarning, match="highest reward, 50; .* it can reach is 1"):
        dataset = simulate(reference, reward=reward, methods=PAIR[1:])
    assert (np.exp(dataset["log_probs"].isel(arm=2)) == 0).all()
    assert np.isfinite(dataset["reverse_kl"]).all()


def test_a_probability_too_small_for_float32_is_no_zero():
    try:
        dataset = simulate(
            vector([1e-50, 0.5, 0.5]), target=vector(Q), methods=["forward_kl"], steps=5
        )
    except InvalidInput as error:
        assert "learning_rate" not in str(error)  # noqa: PT017
    else:
        assert np.isfinite(dataset["forward_kl"]).all()


@pytest.mark.parametrize(
    ("learning_rate", "sentence"),
    [
        (2.0, r"ended worse than it began.*learning_rate=2.*; try learning_rate=0\.2"),
        (1e38, r"became NaN after \d+ steps.*; try learning_rate=0\.56$"),
    ],
)
def test_a_descent_that_diverges_is_said_with_the_step_size_to_try(learning_rate, sentence):
    with pytest.warns(DivergenceWarning, match=f"forward_kl diverged: it {sentence}") as said:
        dataset = simulate(
            vector([0.01, 0.29, 0.7]),
            target=vector([0.7, 0.2, 0.1]),
            methods=["forward_kl", "reverse_kl"],
            learning_rate=learning_rate,
            natural_gradient=True,
            steps=100,
        )
    assert bool(dataset["diverged"].sel(loss="forward_kl"))
    assert len([w for w in said if "forward_kl" in str(w.message)]) == 1


def test_one_method_that_diverges_leaves_the_results_of_the_others():
    pairs = [("a", "b", 3), ("b", "a", 1)]
    with pytest.warns(DivergenceWarning, match="dpo diverged: it does not settle"):
        dataset = simulate(
            {"a": 0.5, "b": 0.5},
            preferences=pairs,
            beta=10,
            methods=["dpo", "preference_likelihood"],
            learning_rate=1.0,
        )
    assert dataset["diverged"].values.tolist() == [True, False]
    liked = np.exp(dataset["log_probs"].sel(loss="preference_likelihood", arm="a")[-1])
    assert liked == pytest.approx(0.75, abs=1e-3)


@pytest.mark.parametrize("beta", [0.01, 0.1, 1.0, 10.0])
def test_the_chosen_step_size_brings_every_method_of_pairs_to_its_optimum(beta):
    pairs = [("a", "b", 3), ("b", "a", 1)]
    dataset = simulate(
        {"a": 0.5, "b": 0.5}, preferences=pairs, beta=beta, ridge=0.0, steps=3000,
        methods=["dpo", "rlhf", "ipo"], hyperparameters={"tau": beta},
    )  # fmt: skip
    margin = dataset["log_probs"].isel(step=-1, arm=0) - dataset["log_probs"].isel(step=-1, arm=1)
    noisy = np.log(3) / beta
    assert float(margin.sel(loss="dpo")) == pytest.approx(noisy, rel=0.02)
    assert float(margin.sel(loss="ipo")) == pytest.approx(0.5 / (2 * beta), rel=0.02)
    final = np.exp(dataset["log_probs"].sel(loss="rlhf", arm="a")[-1])
    assert float(final) == pytest.approx(1 / (1 + np.exp(-noisy)), abs=0.01)
    assert not dataset["diverged"].any()


def test_hyperparameters_given_as_lists_are_axes_and_equal_single_runs():
    pairs = [("a", "b", 3), ("b", "c", 2), ("c", "a", 1)]
    common = {"preferences": pairs, "steps": 50}
    swept = simulate(
        methods=["dpo", "ipo"], beta=[0.1, 1.0], hyperparameters={"tau": [0.1, 0.5]}, **common
    )
    assert swept["log_probs"].dims == ("loss", "beta", "tau", "step", "arm")
    for beta in (0.1, 1.0):
        single = simulate(methods=["dpo"], beta=beta, **common)
        np.testing.assert_allclose(
            swept["log_probs"].sel(loss="dpo", beta=beta, tau=0.5), single["log_probs"][0],
            atol=1e-5,
        )  # fmt: skip
    rates = simulate(methods=["dpo"], learning_rate=[0.1, 1.0], **common)
    assert rates.sizes["learning_rate"] == 2


def test_at_beta_zero_the_target_is_the_best_arms_alone():
    dataset = simulate(
        vector(P), reward=vector([1.0, 0.0, 1.0]), beta=0.0, methods=["forward_kl", "reinforce"],
        steps=200,
    )  # fmt: skip
    shares = np.array([0.2, 0.0, 0.55]) / 0.75
    np.testing.assert_allclose(np.exp(dataset["target_log_probs"]), shares, rtol=1e-5)
    assert float(dataset["expected_reward"].sel(loss="reinforce")[-1]) > 0.9


def test_what_a_trainer_logs_is_recomputed_from_the_policies():
    pairs = [("a", "b", 3), ("b", "c", 1)]
    dataset = simulate(
        dict(zip("abcd", (0.1, 0.2, 0.3, 0.4), strict=True)), preferences=pairs, beta=0.5,
        methods=["dpo"], steps=100,
    )  # fmt: skip
    ratios = dataset["log_probs"][0].values.astype(float) - np.log([0.1, 0.2, 0.3, 0.4])
    chosen = 0.75 * ratios[:, 0] + 0.25 * ratios[:, 1]
    rejected = 0.75 * ratios[:, 1] + 0.25 * ratios[:, 2]
    first, second = ratios[:, 0] - ratios[:, 1], ratios[:, 1] - ratios[:, 2]
    loss = 0.75 * np.log1p(np.exp(-0.5 * first)) + 0.25 * np.log1p(np.exp(-0.5 * second))
    for name, expected in {
        "rewards_chosen": 0.5 * chosen,
        "rewards_rejected": 0.5 * rejected,
        "reward_margin": 0.5 * (chosen - rejected),
        "training_loss": loss,
        "covered_mass": np.exp(dataset["log_probs"][0, :, :3]).sum("arm"),
    }.items():
        np.testing.assert_allclose(dataset[name][0], expected, atol=2e-6, err_msg=name)
    assert float(dataset["training_loss"][0, 0]) == pytest.approx(np.log(2), abs=1e-6)
    assert float(dataset["reward_accuracy"][0, 0]) == 0.5
    assert float(dataset["reward_accuracy"][0, -1]) == 1.0
    assert dataset["in_pairs"].values.tolist() == [True, True, True, False]


def test_a_bandit_for_each_prompt_is_each_prompt_alone():
    labels = ("yes", "no", "maybe")
    comparisons = Comparisons(
        labels,
        np.array([0, 1, 2, 0]),
        np.array([1, 0, 0, 1]),
        np.array([3.0, 1.0, 2.0, 5.0]),
        ("p", "q"),
        np.array([0, 0, 0, 1]),
    )
    together = simulate(preferences=comparisons, per_prompt=True, methods=["dpo"], steps=30)
    assert together["arm"].values.tolist() == ["yes", "no", "maybe", "yes", "no"]
    assert together["prompt"].values.tolist() == ["p", "p", "p", "q", "q"]
    rates = {
        "p": [("yes", "no", 3), ("no", "yes", 1), ("maybe", "yes", 2)],
        "q": [("yes", "no", 5)],
    }
    losses = []
    for name, pairs in rates.items():
        alone = simulate(preferences=pairs, methods=["dpo"], steps=30)
        part = together["log_probs"][0].values[:, together["prompt"].values == name]
        np.testing.assert_allclose(part, alone["log_probs"][0], atol=1e-5)
        losses.append(alone["training_loss"][0])
    np.testing.assert_allclose(together["training_loss"][0], sum(losses) / 2, atol=1e-6)
    with pytest.raises(InvalidInput, match="have no prompts"):
        simulate(preferences=[("a", "b")], per_prompt=True)


def test_rewards_that_the_prior_decides_are_said():
    with pytest.warns(UndeterminedWarning, match=r"a never loses to b.*ridge 0\.01"):
        simulate(preferences=[("a", "b")], methods=["dpo"], steps=2)


def test_steps_are_recorded_on_a_log_scale_or_on_request(to_target):
    assert to_target["step"].values[[0, 1, -1]].tolist() == [0, 1, 3000]
    assert (np.diff(to_target["step"]) > 0).all()
    dataset = simulate(vector(P), target=vector(Q), steps=9, record=[0, 3, 9])
    assert dataset["step"].values.tolist() == [0, 3, 9]


BY_REWARD = {"target": None, "reward": vector([0, 1, 2])}
REFUSED = [
    ({"target": None}, "either a reward or a target"),
    ({"reward": vector(Q)}, "either a reward or a target"),
    ({"methods": []}, "method is empty"),
    ({"methods": ["revers_kl"]}, "'revers_kl'; did you mean 'reverse_kl'"),
    ({"optimizer": "sgdd"}, "unknown optimizer 'sgdd'; did you mean 'sgd'"),
    ({"learning_rate": 0.0}, "learning_rate is 0; it must be .* > 0"),
    ({"learning_rate": -1.0}, "learning_rate is -1; it must be"),
    ({"learning_rate": np.nan}, "learning_rate is nan; it must be"),
    ({"steps": 0}, "^steps is 0"),
    ({"steps": 2**33}, "^steps is 8589934592"),
    ({"steps": 9, "record": [0, 11]}, r"record is \[0, 11\]"),
    ({"target": vector(Q[:2])}, "target has 2 arms but reference has 3"),
    ({"target": vector([0.5, 0.2, 0.2])}, "target sums to 0.9"),
    ({"reference": vector([0.5, 0.5, 0.1])}, "reference sums to 1.1"),
    ({"target": vector([1.1, 0.2, -0.3])}, r"target\[2\] is -0.3; it must"),
    ({"target": vector([np.nan, 0.5, 0.5])}, r"target\[0\] is nan; it must"),
    ({**BY_REWARD, "reward": vector([0, np.inf, 0])}, r"reward\[1\] is inf; it must be a finite"),
    ({**BY_REWARD, "reward": vector([0, 1, 2, 3])}, "reward has 4 arms but reference has 3"),
    ({**BY_REWARD, "beta": 0}, "beta is 0, where the optimum"),
    ({**BY_REWARD, "beta": 1e-300}, "beta is 1e-300"),
    ({"reference": vector([1.0]), "target": vector([1.0])}, "1 arms; at least 2"),
    ({"target": None, "preferences": [("a", "b")], "per_prompt": True}, "no reference fits them"),
    ({**BY_REWARD, "reference": "uniform", "per_prompt": True}, "needs preferences"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED, ids=[said for _, said in REFUSED])
def test_bad_input_is_refused_in_a_sentence(arguments, message):
    with pytest.raises(InvalidInput, match=message):
        simulate(**{"reference": vector(P), "target": vector(Q), **arguments})


def test_counts_become_probabilities_and_a_pseudocount_fills_zeros():
    counts = vector([1, 0, 3], "abc")
    assert to_distribution("target", counts, True, 0.0).values.tolist() == [0.25, 0, 0.75]
    smoothed = to_distribution("target", counts, False, 1.0)
    np.testing.assert_allclose(smoothed.values, [2 / 7, 1 / 7, 4 / 7])
    assert smoothed.labels == ("a", "b", "c")
    assert to_distribution("target", vector(P), False, 0.0).values.tolist() == list(P)


@pytest.mark.parametrize(
    ("values", "normalize", "pseudocount", "message"),
    [
        ([1, 2], False, 0.0, "target sums to 3; .*--normalize"),
        ([0, 0], True, 0.0, "target is zero on every arm"),
        ([1, -1], True, 0.0, r"target\[1\] is -1; it must be >= 0"),
        ([1, -1], False, 2.0, r"target\[1\] is -1; it must be >= 0"),
        ([1, np.nan], True, 0.0, r"target\[1\] is nan"),
        ([1, np.inf], True, 1.0, r"target\[1\] is inf"),
        ([5], True, 0.0, "target has 1 arms"),
        ([], True, 1.0, "target has 0 arms"),
        ([1, 2], True, -1.0, "pseudocount is -1; it must be >= 0"),
        ([1, 2], True, np.nan, "pseudocount is nan"),
        ([1, 2], True, np.inf, "pseudocount is inf"),
    ],
)
def test_weights_that_are_no_distribution_are_refused(values, normalize, pseudocount, message):
    with pytest.raises(InvalidInput, match=message):
        to_distribution("target", vector(values), normalize, pseudocount)


def test_the_picture_names_the_arms_and_shows_both_methods(to_target):
    figure = plot(to_target)
    figure.canvas.draw()
    top, *below = figure.axes
    assert [label.get_text() for label in top.get_xticklabels()] == ["a", "b", "c"]
    heights = [bar.get_height() for bar in top.patches]
    np.testing.assert_allclose(heights, Q, rtol=1e-5)
    legend = {text.get_text() for text in top.get_legend().get_texts()}
    assert legend == {"target", "reference", "forward KL", "reverse KL"}
    assert [len(axes.lines) for axes in below] == [2, 2, 2]


@pytest.mark.parametrize("label", [r"$\frac$", "$5-$10", "100%", "a_b^c", ""])
def test_any_label_is_drawn_as_it_stands(to_target, label):
    figure = plot(to_target.assign_coords(arm=[label, "b", "c"]))
    figure.canvas.draw()
    drawn = figure.axes[0].get_xticklabels()[0]
    plain = figure.text(0, 0, label, fontproperties=drawn.get_fontproperties(), parse_math=False)
    widths = [text.get_window_extent().width for text in (drawn, plain)]
    assert widths[0] == pytest.approx(widths[1], abs=1)
