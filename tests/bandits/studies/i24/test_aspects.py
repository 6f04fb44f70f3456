"""What the recipes of I24 come to: the learned reward, prompts, data, tuning and training."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
from scipy import special

from bandits.problems.contextual import draw_preferences, random_contextual_bandit
from bandits.studies.i24 import aspects
from bandits.studies.i24.aspects import GENERAL, POLICIES, TARGET, Aspects, Recipe, tuned
from theory.checks import InvalidInput

KEY = jax.random.key(20240414)
D, K = 4, 3
TINY = Aspects(
    num_arms=K, num_features=D, most_pairs=40, most_prompts=20, reward_steps=60, steps=30,
    minibatch=8, learning_rates=(0.02, 0.1), betas=(0.1,), widths=(8,), fresh=64, seeds=3,
)  # fmt: skip
BEST = Recipe(pairs=40, label_noise=0.0, reward_features=D, reward_pairs=40)
RECIPES = {"best": BEST, "flipped": BEST._replace(label_noise=1.0)}

fit_reward = jax.jit(Aspects._fit_reward, static_argnums=0)
training_prompts = jax.jit(Aspects._training_prompts, static_argnums=0)
dataset_of = jax.jit(aspects._dataset)


@pytest.fixture(scope="module")
def bandit():
    return random_contextual_bandit(KEY, K, D)


@pytest.fixture(scope="module")
def prepared():
    return TINY.prepare(RECIPES)


@pytest.fixture(scope="module")
def trained(prepared):
    """Both methods and both classes of policies, in two programs."""
    return {
        (method, policy): TINY.train(method, list(RECIPES), prepared, policy)
        for method, policy in (("ppo", "linear"), ("dpo", "network"))
    }


# The learned reward


@pytest.fixture(scope="module")
def much(bandit):
    """Many pairs without noise."""
    settings = dataclasses.replace(TINY, most_pairs=4000, reward_steps=200)
    prompts = bandit.draw_prompts(KEY, GENERAL, 4000)
    pairs = draw_preferences(KEY, bandit, prompts, temperature=0.1)
    recipe = BEST._replace(pairs=4000, reward_pairs=4000)
    return settings, prompts, pairs, recipe


def test_the_reward_model_recovers_the_order_of_true_rewards_with_many_clean_pairs(bandit, much):
    learned = np.asarray(fit_reward(*much))
    fresh = bandit.draw_prompts(jax.random.key(1), GENERAL, 200)
    true, found = np.asarray(bandit.rewards(fresh)), np.asarray(fresh @ learned)
    gaps, learned_gaps = (r[:, :, None] - r[:, None, :] for r in (true, found))
    clear = gaps > 0.1
    assert clear.sum() > 200
    assert (learned_gaps[clear] > 0).mean() > 0.995
    # Centred, the weights are the true ones, up to the temperature and a shrinkage by the ridge.
    centred = [w - w.mean(axis=1, keepdims=True) for w in (np.asarray(bandit.weights), learned)]
    assert np.corrcoef(*(w.ravel() for w in centred))[0, 1] > 0.99


def test_flipped_labels_teach_the_opposite(bandit, much):
    settings, prompts, pairs, recipe = much
    learned, opposite = (fit_reward(settings, prompts, p, recipe) for p in (pairs, pairs[:, ::-1]))
    np.testing.assert_allclose(opposite, -learned, atol=1e-3)


@pytest.mark.parametrize(("features", "seen"), [(1, [0]), (2, [0, 2]), (4, [0, 1, 2, 3])])
def test_the_reward_model_sees_nothing_of_hidden_features(much, features, seen):
    settings, prompts, pairs, recipe = much
    recipe = recipe._replace(reward_features=features)
    hidden = np.setdiff1d(np.arange(D), seen)
    learned = np.asarray(fit_reward(settings, prompts, pairs, recipe))
    assert (learned[hidden] == 0).all()
    assert (learned[seen] != 0).all()
    other = prompts.at[:, hidden].set(7.0)
    np.testing.assert_array_equal(fit_reward(settings, other, pairs, recipe), learned)


@pytest.mark.parametrize("count", [1, 3, 5, 6, 8, 12])
def test_as_many_features_are_seen_as_asked_and_some_of_either_domain(count):
    settings = dataclasses.replace(TINY, num_features=12, most_pairs=4, reward_steps=2)
    prompts = jnp.ones((4, 12))
    pairs = jnp.array([[0, 1]] * 4)
    learned = fit_reward(settings, prompts, pairs, Recipe(4, reward_pairs=4, reward_features=count))
    seen = np.asarray(learned != 0).any(axis=1)
    assert seen.sum() == count
    if count > 1:
        assert abs(int(seen[:6].sum()) - int(seen[6:].sum())) <= 1


@pytest.mark.parametrize(
    ("recipe", "first"),
    [
        (BEST._replace(reward_pairs=10), 10),
        (BEST._replace(pairs=10), 10),
        (BEST._replace(pairs=15, reward_pairs=10), 10),
        (BEST, 40),
    ],
)
def test_the_reward_model_is_fitted_to_the_first_pairs_alone(bandit, recipe, first):
    prompts = bandit.draw_prompts(KEY, GENERAL, 40)
    pairs = draw_preferences(KEY, bandit, prompts)
    learned = fit_reward(TINY, prompts, pairs, recipe)
    others = jnp.arange(40)[:, None] >= first
    changed = fit_reward(
        TINY, jnp.where(others, 9.0, prompts), jnp.where(others, pairs[:, ::-1], pairs), recipe
    )
    np.testing.assert_array_equal(changed, learned)
    last = jnp.arange(40)[:, None] == first - 1
    differ = fit_reward(TINY, prompts, jnp.where(last, jnp.array([0, 2]), pairs), recipe)
    again = fit_reward(TINY, prompts, jnp.where(last, jnp.array([2, 0]), pairs), recipe)
    assert (np.asarray(differ) != np.asarray(again)).any()


def test_two_equal_responses_teach_nothing(bandit):
    prompts = bandit.draw_prompts(KEY, GENERAL, 40)
    learned = fit_reward(TINY, prompts, jnp.full((40, 2), 1), BEST)
    np.testing.assert_array_equal(learned, 0)


# Prompts


def uses(prompts, labelled, bandit, key):
    """How often each labelled prompt, general one and target one is among the prompts."""
    general_key, target_key, _ = jax.random.split(key, 3)
    general = bandit.draw_prompts(general_key, GENERAL, TINY.most_prompts)
    target = bandit.draw_prompts(target_key, TARGET, TINY.most_prompts)
    assert len(prompts) == TINY.most_pairs + 2 * TINY.most_prompts
    is_one = [
        np.isclose(np.asarray(prompts)[:, None], kind, atol=1e-5).all(-1)
        for kind in (labelled, general, target)
    ]
    assert (np.concatenate(is_one, axis=1).sum(1) == 1).all()
    return [found.sum(0) for found in is_one]


@pytest.mark.parametrize(
    ("pairs", "general", "target"),
    [(1, 0, 0), (40, 0, 0), (7, 0, 0), (5, 10, 0), (5, 0, 20), (5, 20, 3), (40, 20, 20)],
)
def test_the_asked_prompts_and_no_others_are_used_equally_often(bandit, pairs, general, target):
    recipe = BEST._replace(pairs=pairs, general_prompts=general, target_prompts=target)
    labelled = bandit.draw_prompts(jax.random.key(1), GENERAL, TINY.most_pairs)
    prompts = training_prompts(TINY, KEY, bandit, labelled, recipe)
    least, left_over = divmod(len(prompts), pairs + general + target)
    found = uses(prompts, labelled, bandit, KEY)
    for times, asked in zip(found, (pairs, general, target), strict=True):
        assert not times[asked:].any()
        assert np.isin(times[:asked], [least, least + 1]).all()
    assert (np.concatenate(found) == least + 1).sum() == left_over


def test_chance_decides_which_prompts_are_used_once_more(bandit):
    """Of 2 labelled prompts and 1 of the target domain, 2 are used 27 times and 1 is 26 times."""
    recipe = BEST._replace(pairs=2, target_prompts=1)
    labelled = bandit.draw_prompts(jax.random.key(1), GENERAL, TINY.most_pairs)
    more = []
    for key in jax.random.split(KEY, 60):
        prompts = training_prompts(TINY, key, bandit, labelled, recipe)
        of_labelled, _, of_target = uses(prompts, labelled, bandit, key)
        more.append(np.array([*of_labelled[:2], of_target[0]]) == 27)
    np.testing.assert_allclose(np.mean(more, axis=0), 2 / 3, atol=0.2)


# DPO's data


def test_the_dataset_repeats_the_first_pairs_and_ignores_those_of_equal_responses(bandit):
    prompts = bandit.draw_prompts(KEY, GENERAL, 7)
    pairs = jnp.array([[0, 1], [2, 2], [2, 0], [1, 0], [1, 1], [0, 2], [2, 1]])
    data = dataset_of(bandit, prompts, pairs, 3)
    at = [0, 1, 2, 0, 1, 2, 0]
    np.testing.assert_array_equal(data.contexts, prompts[jnp.array(at)])
    np.testing.assert_array_equal(data.responses, pairs[jnp.array(at)])
    first_wins = np.array([[0, 1], [0, 0]])
    expected = [first_wins * (a != 1) for a in at]
    np.testing.assert_array_equal(data.groups.pair_weights, expected)
    logits = np.asarray(prompts[jnp.array(at)] @ bandit.reference_weights, np.float64)
    reference = np.take_along_axis(special.log_softmax(logits, axis=-1), pairs[jnp.array(at)], 1)
    for name in ("log_probs", "reference_log_probs", "behaviour_log_probs"):
        np.testing.assert_allclose(getattr(data.groups, name), reference, rtol=1e-5)
    np.testing.assert_array_equal(data.groups.rewards, 0)


# What is prepared


def test_recipes_share_bandits_and_prompts_and_differ_in_what_they_say(prepared):
    assert prepared.recipes == ("best", "flipped")
    for shared in (prepared.bandit.weights, prepared.fresh, prepared.prompts):
        np.testing.assert_array_equal(*shared)
    best, flipped = prepared.pairs.responses
    np.testing.assert_array_equal(np.sort(best), np.sort(flipped))
    assert (np.asarray(best) != np.asarray(flipped)).any(axis=(1, 2)).all()
    contexts = np.asarray(prepared.pairs.contexts)
    np.testing.assert_array_equal(contexts[0], contexts[1])
    assert not (contexts[0, 0] == contexts[0, 1]).any()
    assert np.corrcoef(np.ravel(prepared.learned[0]), np.ravel(prepared.learned[1]))[0, 1] < -0.3


def test_fresh_prompts_are_not_those_of_training_and_have_the_spread_of_their_domain(prepared):
    fresh = np.asarray(prepared.fresh[0], np.float64)
    of_general = fresh[:, :, GENERAL].reshape(3, -1, 1, D)
    training = np.asarray(prepared.prompts)[0][:, None]
    assert not np.isclose(of_general, training, atol=1e-5).all(-1).any()
    tuning, judging = fresh[:, 0], fresh[:, 1]
    assert not (tuning == judging).all(-1).any()
    own = np.array([[True, True, False, False], [False, False, True, True]])
    spread = fresh.std(axis=(0, 1, 3))
    np.testing.assert_allclose(spread, np.where(own, 1.0, 0.3), rtol=0.15)


# Tuning


def test_policies_are_tuned_by_what_is_validated_and_judged_by_their_share():
    share = np.arange(32.0).reshape(2, 2, 2, 2, 2)
    validated = np.zeros_like(share)  # but for the best, which need not have the best share
    # [learning rate, beta] that is best, by recipe, seed and domain.
    best = {
        (0, 0, 0): (0, 1), (0, 1, 0): (1, 0), (1, 0, 0): (0, 0), (1, 1, 0): (1, 1),
        (0, 0, 1): (1, 1), (0, 1, 1): (0, 0), (1, 0, 1): (1, 0), (1, 1, 1): (0, 1),
    }  # fmt: skip
    for (recipe, seed, domain), (rate, beta) in best.items():
        validated[recipe, rate, beta, seed, domain] = 0.5
    coords = {
        "recipe": ["a", "b"], "learning_rate": [0.1, 0.2], "beta": [1.0, 2.0], "seed": [0, 1],
        "domain": ["general", "target"],
    }  # fmt: skip
    dims = list(coords)
    dataset = xr.Dataset({"share": (dims, share), "validated": (dims, validated)}, coords)
    found = tuned(dataset)
    assert set(found.coords) == set(found.dims) == {"recipe", "seed", "domain"}
    for name in found.dims:
        np.testing.assert_array_equal(found[name], dataset[name])
    for (recipe, seed, domain), (rate, beta) in best.items():
        at = found.isel(recipe=recipe, seed=seed, domain=domain)
        assert at == share[recipe, rate, beta, seed, domain]


# Training


@pytest.mark.parametrize("which", [("ppo", "linear"), ("dpo", "network")])
def test_training_gains_true_reward_and_on_flipped_labels_loses_it(trained, which):
    dataset = trained[which]
    np.testing.assert_allclose(dataset["learning_rate"], TINY.learning_rates, rtol=1e-6)
    for name in ("share", "validated"):
        assert (dataset[name] <= 1 + 1e-5).all()  # the best response's
    assert (dataset["share"] != dataset["validated"]).all()
    assert tuned(dataset).sel(domain="general", recipe="best").mean("seed") > 0.15
    mean = dataset["share"].sel(domain="general").mean(["seed", "learning_rate"])
    assert (mean.sel(recipe="flipped") < 0).all()


@pytest.mark.parametrize("names", [["flipped"], ["flipped", "best"]])
def test_recipes_are_trained_by_name_whatever_their_order(prepared, trained, names):
    dataset = TINY.train("ppo", names, prepared)
    assert dataset["recipe"].values.tolist() == names
    expected = trained["ppo", "linear"]["share"].sel(recipe=names)
    np.testing.assert_allclose(dataset["share"], expected, atol=1e-3)


@pytest.mark.parametrize("policy_class", POLICIES)
def test_both_classes_start_at_the_reference_whose_share_is_zero(bandit, policy_class):
    policy, start = TINY._policy(policy_class, bandit, KEY)
    prompts = jnp.stack([bandit.draw_prompts(KEY, domain, 64) for domain in (GENERAL, TARGET)])
    found = jax.vmap(policy.log_probs, (None, 0))(start, prompts[0])
    np.testing.assert_allclose(found, bandit.reference_log_probs(prompts[0]), atol=1e-6)
    np.testing.assert_allclose(aspects._share(bandit, policy, start, prompts), 0, atol=1e-6)


def test_the_share_is_one_of_the_best_response_and_linear_in_between(bandit):
    policy, reference = TINY._policy("linear", bandit, KEY)
    prompts = jnp.stack([bandit.draw_prompts(KEY, domain, 64) for domain in (GENERAL, TARGET)])
    best = 1e6 * bandit.weights
    np.testing.assert_allclose(aspects._share(bandit, policy, best, prompts), 1, atol=1e-5)
    uniform = aspects._share(bandit, policy, jnp.zeros((D, K)), prompts)
    for found, of_domain in zip(uniform, np.asarray(prompts, np.float64), strict=True):
        rewards = of_domain @ np.asarray(bandit.weights) / D**0.5
        start = special.softmax(of_domain @ np.asarray(reference), axis=1)
        earned = (start * rewards).sum(1).mean()
        expected = (rewards.mean() - earned) / (rewards.max(1).mean() - earned)
        assert found == pytest.approx(expected, abs=1e-5)


# Bad input


@pytest.mark.parametrize(
    ("method", "policy", "recipes", "message"),
    [
        ("dop", "linear", ["best"], "unknown method 'dop'; did you mean 'dpo'"),
        ("ppo", "liner", ["best"], "unknown policy 'liner'; did you mean 'linear'"),
        ("ppo", "linear", ["best", "fliped"], "unknown recipe 'fliped'; did you mean 'flipped'"),
        ("ppo", "linear", [], "give at least one name"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_it_runs(
    prepared, monkeypatch, method, policy, recipes, message
):
    monkeypatch.setattr(aspects, "sweep", lambda *_, **__: pytest.fail("it was accepted"))
    with pytest.raises(InvalidInput, match=message):
        TINY.train(method, recipes, prepared, policy)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("pairs", 41),
        ("reward_pairs", 0),
        ("general_prompts", 21),
        ("target_prompts", 21),
        ("reward_features", D + 1),
        ("label_noise", 1.5),
        ("coverage", 0),
        ("pairs", 7.5),
    ],
)
def test_a_recipe_that_is_out_of_range_or_asks_for_more_than_there_is_is_refused(field, value):
    with pytest.raises(InvalidInput, match=f"{field} of other is {value}"):
        TINY.prepare({"best": BEST, "other": BEST._replace(**{field: value})})


def test_no_recipes_are_refused():
    with pytest.raises(InvalidInput, match="recipes is empty"):
        TINY.prepare({})
