"""The length problems: pairs, the learned reward, and training against it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
from scipy import special, stats

from bandits.policies.variable_length import lengths as lengths_of
from bandits.policies.variable_length import require_responses
from bandits.problems.metrics import DIVERGED_AT
from bandits.studies.t24 import lengths
from bandits.studies.t24.lengths import PROBLEMS, REWARD_MODELS, Lengths, train_lengths
from theory.checks import InvalidInput

TINY = Lengths(max_length=6, mode=3.0, cut=3, pairs=40, bumps=4, seeds=2)
STEPS = (0, 10, 40)

draw_pairs = jax.jit(lengths.draw_pairs, static_argnums=3)
fit_proxy = jax.jit(lengths.fit_proxy)


EVERY_PROBLEM = {"problem": PROBLEMS}
MODELS = {"reward_model": REWARD_MODELS}
SMALL = dataclasses.replace(TINY, policy="recurrent", width=3, widths=(4,))


@pytest.fixture(scope="module")
def offline():
    return train_lengths(TINY, ("dpo",), EVERY_PROBLEM, steps=40, record=STEPS)


@pytest.fixture(scope="module")
def online():
    return train_lengths(TINY, ("reinforce",), EVERY_PROBLEM, steps=40, record=STEPS)


@pytest.fixture(scope="module")
def both_models():
    axes = {"problem": ["min", "skew"], **MODELS}
    return train_lengths(SMALL, ("reinforce",), axes, steps=20, record=(0, 10, 20))


@pytest.fixture(params=["offline", "online", "both_models"])
def trained(request):
    return request.getfixturevalue(request.param)


def draw(problem, **changes):
    """Return the changed settings, the problem's true reward, and pairs of its data."""
    settings = dataclasses.replace(TINY, **changes)
    bandit = settings.bandit(problem)
    pairs = draw_pairs(jax.random.key(20240414), bandit.data_law(), bandit.reward, settings)
    return settings, np.asarray(bandit.reward), pairs


# The problems


@pytest.mark.parametrize("problem", PROBLEMS)
def test_the_gold_reward_is_that_of_the_problem(problem):
    bandit = TINY.bandit(problem)
    best = 3 if problem == "mode" else 0
    np.testing.assert_allclose(bandit.reward, -np.abs(np.arange(7) - best) / 6, rtol=1e-6)
    assert np.argmax(bandit.reference_log_probs) == 3


def test_features_are_bumps_over_all_lengths():
    features = np.asarray(TINY.features())
    assert features.shape == (7, 4)
    np.testing.assert_allclose(features[[0, 2, 4, 6], range(4)], 1, rtol=1e-6)
    np.testing.assert_allclose(features[[2, 0], [0, 1]], np.exp(-1), rtol=1e-6)
    assert np.linalg.matrix_rank(features) == 4


# The data


def test_pairs_follow_the_law_and_the_labeller():
    _, gold, pairs = draw("min", pairs=20_000, temperature=0.2)
    law = np.exp(TINY.bandit("min").reference_log_probs).astype(float)
    assert pairs.shape == (20_000, 2)
    counts = np.zeros((7, 7))
    np.add.at(counts, tuple(np.asarray(pairs).T), 1)
    # Both orders of two lengths come to the same ordered pair, if the labeller prefers so.
    prefers = special.expit((gold[:, None] - gold[None, :]) / 0.2)
    expected = 2 * np.outer(law, law) * prefers * 20_000
    expected[0] = expected[:, 0] = 0
    assert counts[0].sum() == counts[:, 0].sum() == 0
    held = expected > 5
    assert held.sum() > 30
    scaled = expected[held] * counts[held].sum() / expected[held].sum()
    assert stats.chisquare(counts[held], scaled).pvalue > 1e-3


def test_the_dataset_holds_the_pairs_as_responses_the_preferred_first():
    reference = TINY.bandit("min").reference_log_probs
    pairs = jnp.array([[1, 5], [6, 2], [3, 3], [0, 1]])
    data = lengths._dataset(pairs, reference, 6)
    require_responses("responses", data.responses, 1, 6)
    np.testing.assert_array_equal(lengths_of(data.responses), pairs)
    wins = [[0, 1], [0, 0]]
    expected = [wins, wins, np.zeros((2, 2)), wins]  # two of one length say nothing
    np.testing.assert_array_equal(data.groups.pair_weights, expected)
    for name in ("log_probs", "reference_log_probs", "behaviour_log_probs"):
        np.testing.assert_array_equal(getattr(data.groups, name), reference[pairs])


# The learned reward


@pytest.mark.parametrize("problem", ["min", "mode"])
def test_proxy_and_gold_coincide_where_the_reward_model_is_exact(problem):
    """As many bumps as lengths, all data: the log-odds are the gold reward over the temperature."""
    settings, gold, pairs = draw(problem, pairs=200_000, temperature=0.3, bumps=7)
    proxy = settings.temperature * np.asarray(fit_proxy(pairs, settings.features(), 1e-8))
    found, expected = (x[1:] - x[1:].mean() for x in (proxy, gold))
    np.testing.assert_allclose(found, expected, atol=0.03)
    assert np.corrcoef(found, expected)[0, 1] > 0.998


def test_two_of_one_length_say_nothing():
    pairs = jnp.array([[1, 2], [2, 3], [1, 3], [3, 1]])
    same = jnp.array([[4, 4]] * 9 + [[0, 0]])
    alone, beside = (
        fit_proxy(data, TINY.features(), 1e-2) for data in (pairs, jnp.concatenate([pairs, same]))
    )
    np.testing.assert_allclose(beside, alone, atol=1e-6)
    with pytest.raises(InvalidInput, match="counts is zero everywhere"):
        lengths.fit_proxy(same[:1], TINY.features(), 1e-2)


def test_beyond_the_data_of_skew_the_proxy_is_the_ridges_guess():
    """The order is learned up to the cut only."""
    settings, _, pairs = draw("skew", pairs=4000, bumps=7)
    proxy = np.asarray(fit_proxy(pairs, settings.features(), 1e-4))
    assert (np.diff(proxy[1:4]) < 0).all()
    assert proxy[6] > proxy[3]


# Training


def test_runs_are_labelled(offline, online):
    for run in (offline, online):
        assert run["gold"].dims == ("loss", "problem", "seed", "step")
        assert run["gold"].shape == (1, 3, 2, 3)
        assert run["length_probability"].dims == (*run["gold"].dims, "length")
        labels = {"problem": list(PROBLEMS), "step": list(STEPS), "length": list(range(7))}
        assert {name: run[name].values.tolist() for name in labels} == labels
        assert (run[DIVERGED_AT] == -1).all()
        assert run["proxy"].attrs["units"] == run["gold"].attrs["units"]


REFERENCE = np.exp(TINY.bandit("min").reference_log_probs)
"""The same for all problems."""


def test_step_zero_is_the_reference(trained):
    start = trained.isel(step=0)
    law = start["length_probability"]
    np.testing.assert_allclose(law, np.broadcast_to(REFERENCE, law.shape), atol=1e-6)
    np.testing.assert_allclose(start["reference_kl"], 0, atol=1e-6)
    for problem, gold in start["gold"].groupby("problem"):
        np.testing.assert_allclose(gold, REFERENCE @ TINY.bandit(problem).reward, rtol=1e-5)


def test_laws_sum_to_one_and_what_the_reference_excludes_stays_excluded(trained):
    law = trained["length_probability"]
    np.testing.assert_allclose(law.sum("length"), 1, rtol=1e-5)
    assert (law >= 0).all()
    assert (law.sel(length=0) == 0).all()


def test_numbers_are_those_of_the_law(trained):
    law = trained["length_probability"]
    np.testing.assert_allclose(trained["mean_length"], law @ trained["length"], rtol=1e-5)
    kl = special.rel_entr(law.values, REFERENCE).sum(-1)
    np.testing.assert_allclose(trained["reference_kl"], kl, atol=1e-5)
    for problem in trained["problem"].values:
        gold = xr.DataArray(np.asarray(TINY.bandit(problem).reward), dims="length")
        found, expected = (array.sel(problem=problem) for array in (trained["gold"], law))
        np.testing.assert_allclose(found, expected @ gold, atol=1e-6)


def test_all_methods_learn_from_the_same_pairs_of_the_problems_law(offline, online):
    """Skew's law is cut, the others are whole; the proxy is fitted to the pairs of the seed."""
    learned = lengths.learn_proxies(TINY)
    for row, problem in enumerate(PROBLEMS):
        bandit = TINY.bandit(problem)
        reference = bandit.reference_log_probs
        for seed in range(TINY.seeds):
            pairs = learned.pairs[row, seed]
            assert (pairs.max() <= TINY.cut) == (problem == "skew")
            proxy = TINY.temperature * fit_proxy(pairs, TINY.features(), TINY.ridge)
            probs = jnp.exp(reference)
            proxy = proxy - probs @ proxy + probs @ bandit.reward
            for run in (offline, online):
                one = run.sel(problem=problem, seed=seed).isel(step=-1)
                expected = one["length_probability"].values @ proxy
                np.testing.assert_allclose(one["proxy"], expected, atol=1e-4)


def test_training_moves_the_way_that_it_is_rewarded(online):
    proxy, gold = online["proxy"], online["gold"]
    assert (proxy.diff("step") > 0).all()
    assert (online["reference_kl"].diff("step") > 0).all()
    gain = gold.isel(step=-1) - gold.isel(step=0)
    assert (gain.sel(problem=["min", "mode"]) > 0).all()


def test_offline_methods_do_not_depend_on_the_proxy(offline):
    settings = dataclasses.replace(TINY, ridge=1.0, bumps=3)
    other = train_lengths(settings, ("dpo",), EVERY_PROBLEM, steps=40, record=STEPS)
    for name in ("gold", "reference_kl", "length_probability"):
        np.testing.assert_allclose(other[name], offline[name], atol=1e-6)
    assert (abs(other["proxy"] - offline["proxy"]) > 1e-4).mean() > 0.6


# Reward models and policies


def test_a_recurrent_policy_learns_otherwise_than_a_table(both_models):
    assert (both_models["proxy"].diff("step") > 0).all()
    table = dataclasses.replace(SMALL, policy="hazard_table")
    axes = {"problem": ["min", "skew"], **MODELS}
    other = train_lengths(table, ("reinforce",), axes, steps=20, record=(0, 10, 20))
    assert (abs(other["gold"] - both_models["gold"]).isel(step=-1) > 1e-3).all()


def test_reward_models_are_a_labelled_axis_of_rewards_of_their_own(both_models):
    assert both_models["gold"].dims == ("loss", "problem", "reward_model", "seed", "step")
    assert both_models["reward_model"].values.tolist() == ["bumps", "network"]
    assert both_models["problem"].values.tolist() == ["min", "skew"]
    learned = lengths.learn_proxies(SMALL, REWARD_MODELS)
    for model, proxies in zip(REWARD_MODELS, learned.proxies, strict=True):
        for problem in ("min", "skew"):
            one = both_models.sel(reward_model=model, problem=problem).isel(loss=0)
            proxy = np.asarray(proxies[PROBLEMS.index(problem)])
            expected = (one["length_probability"].values * proxy[:, None]).sum(-1)
            np.testing.assert_allclose(one["proxy"], expected, atol=1e-5)
    bumps, network = (both_models["proxy"].sel(reward_model=m, step=20) for m in REWARD_MODELS)
    assert (abs(network - bumps) > 1e-3).all()


def test_the_default_reward_model_is_the_bumps_of_the_axis_bit_for_bit(offline, online):
    for run in (offline, online):
        axes = EVERY_PROBLEM | MODELS
        both = train_lengths(TINY, tuple(run["loss"].values), axes, steps=40, record=STEPS)
        assert "reward_model" not in run.coords
        for name in run.data_vars:
            np.testing.assert_array_equal(both[name].sel(reward_model="bumps"), run[name])


def test_reward_models_come_in_the_order_asked_for_with_one_mean_and_the_same_pairs():
    both = lengths.learn_proxies(SMALL, ("bumps", "network"))
    turned = lengths.learn_proxies(SMALL, ("network", "bumps"))
    default = lengths.learn_proxies(SMALL)
    probs = np.exp(both.reference)
    means = np.broadcast_to((both.golds @ probs)[:, None], both.proxies.shape[:-1])
    np.testing.assert_allclose(both.proxies @ probs, means, atol=1e-5)
    np.testing.assert_allclose(turned.proxies, both.proxies[::-1], atol=1e-5)
    np.testing.assert_allclose(default.proxies, both.proxies[:1], atol=1e-5)
    assert (np.abs(both.proxies[0] - both.proxies[1]).max(-1) > 1e-2).all()
    for other in (turned, default):
        np.testing.assert_array_equal(other.pairs, both.pairs)


def test_networks_learn_the_order_of_lengths_on_nearly_noiseless_data():
    """All lengths of the data of Min, and of the short data of Skew."""
    settings = dataclasses.replace(TINY, pairs=2000, temperature=0.02, widths=(16,), seeds=3)
    learned = lengths.learn_proxies(settings, ("network",))
    (proxies,) = learned.proxies
    for problem, longest in (("min", 6), ("skew", settings.cut)):
        row = PROBLEMS.index(problem)
        assert set(np.unique(learned.pairs[row])) == set(range(1, longest + 1))
        gold = learned.golds[row, 1 : longest + 1]
        for proxy in proxies[row]:
            order = stats.spearmanr(proxy[1 : longest + 1], gold).statistic
            assert order == pytest.approx(1)


def test_networks_of_different_seeds_start_at_different_weights():
    """On the same data, the fits that differ do so because of where they started."""
    pairs = jnp.array([[1, 2], [2, 3], [1, 3], [3, 1]])
    keys = [lengths._keys(seed).reward_model for seed in range(2)]
    first, second = (np.asarray(lengths._fit("network", SMALL, key, pairs)) for key in keys)
    assert np.abs(first - first.mean() - (second - second.mean())).max() > 1e-3


# Bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cut": 1}, "cut is 1; at least 2 is needed"),
        ({"bumps": 1}, "bumps is 1; at least 2"),
        ({"mode": 7.0}, "mode is 7.0; lengths go from 1 up to 6"),
        ({"mode": 0.5}, "mode is 0.5; lengths go from 1 up to 6"),
        ({"max_length": 1}, "max_length is 1; at least 2"),
        ({"spread": 0.0}, "spread is 0; it must be a finite number > 0"),
        ({"temperature": 0.0}, "temperature is 0; it must be a finite number > 0"),
        ({"policy": "recurent"}, "unknown policy 'recurent'; did you mean 'recurrent'?"),
        ({"policy": "recurrent", "width": 0}, "width is 0; at least 1 is needed"),
        ({"widths": (0,)}, r"widths is \(0,\); every hidden layer needs a unit"),
        ({"ridge": -1.0}, "ridge is -1; it must be >= 0"),
        ({"pairs": 10}, "batch is 20; it must be a multiple of minibatch, 40"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_settings_that_make_no_problem_are_refused(change, message):
    def attempt():
        settings = dataclasses.replace(TINY, **change)
        train_lengths(settings, ("dpo",), {"problem": ["skew"]}, steps=4, record=(0, 4))

    with pytest.raises(InvalidInput, match=message):
        attempt()


@pytest.mark.parametrize(
    ("methods", "axes", "message"),
    [
        ((), {}, "choices are (); give at least one name"),
        (("ddpo",), {}, "unknown method 'ddpo'; did you mean 'dpo'? "),
        (("dpo", "pppo"), {}, "unknown method 'pppo'; did you mean 'ppo'? "),
        (("dpo",), {"reward_model": []}, "choices are (); give at least one name"),
        (("dpo",), {"reward_model": ["bumps", "netwrk"]}, "unknown reward_model 'netwrk'; "),
        (("dpo",), {"problem": ["min", "mod"]}, "unknown problem 'mod'; did you mean 'mode'? "),
        (("dpo", "reinforce"), {"problem": ["min"]},
         "methods is ('dpo', 'reinforce'); give offline ones or on-policy ones, not both"),
    ],
    ids=["no method", "method", "second method", "no model", "reward model", "problem", "both"],
)  # fmt: skip
def test_names_that_are_not_known_and_none_at_all_are_refused_in_one_sentence(
    methods, axes, message
):
    with pytest.raises(InvalidInput) as refused:
        train_lengths(TINY, methods, axes, steps=4, record=(0, 4))
    assert str(refused.value).startswith(message)
    assert "\n" not in str(refused.value)
