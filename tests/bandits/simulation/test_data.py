"""The sampled methods on a bandit of the user's own: all run, learn what theirs is, or refuse."""

import numpy as np
import pytest
from scipy.special import expit, log_softmax

from bandits.files.tables import Vector
from bandits.losses import METHODS
from bandits.problems.reward_models import fit_tabular
from bandits.simulation import plot, simulate, summarise
from bandits.sweeps import DivergenceWarning
from theory.checks import InvalidInput

pytestmark = pytest.mark.filterwarnings("ignore::bandits.simulation.UndeterminedWarning")

REFERENCE = Vector(np.array([0.1, 0.2, 0.3, 0.4]), tuple("abcd"))
REWARD = Vector(np.array([1.0, 0.5, 0.2, 0.0]), tuple("abcd"))
TARGET = Vector(np.array([0.4, 0.3, 0.2, 0.1]), tuple("abcd"))
PREFERENCES = np.array([[0, 3, 4, 0], [1, 0, 2, 0], [1, 0, 0, 2.5], [0, 0, 0.5, 0]])
FROM_PAIRS = ["dpo", "ipo", "preference_likelihood"]
FROM_REWARD = [name for name in METHODS if name not in ("spin", "rlhf")]
RATE, STEPS = 0.3, 40


@pytest.fixture(scope="module")
def every_method():
    return simulate(
        REFERENCE,
        reward=REWARD,
        methods=FROM_REWARD,
        steps=4,
        learning_rate=0.1,
        responses=4,
        batch=16,
        passes=2,
    )


def from_pairs(seed, methods=FROM_PAIRS, **hyperparameters):
    return simulate(
        REFERENCE,
        preferences=PREFERENCES,
        methods=methods,
        hyperparameters=hyperparameters,
        beta=0.5,
        learning_rate=RATE,
        steps=STEPS,
        seed=seed,
    )


@pytest.fixture(scope="module")
def learned():
    return from_pairs(seed=0, tau=0.25)


def test_every_method_runs_from_the_reference(every_method):
    assert every_method["loss"].values.tolist() == FROM_REWARD
    probs = np.exp(every_method["log_probs"])
    np.testing.assert_allclose(probs.sum("arm"), 1, rtol=1e-5)
    for name in FROM_REWARD:
        one = probs.sel(loss=name)
        np.testing.assert_allclose(one.isel(step=0), REFERENCE.values, rtol=1e-5)
        assert np.abs(one.isel(step=-1) - REFERENCE.values).max() > 1e-4, name
    expected = probs.values @ REWARD.values
    np.testing.assert_allclose(every_method["expected_reward"], expected, rtol=1e-5)


def test_methods_that_see_the_reward_raise_it(every_method):
    reward = every_method["expected_reward"]
    gain = reward.isel(step=-1) - reward.isel(step=0)
    for name in FROM_REWARD:
        if METHODS[name].needs != "responses":
            assert gain.sel(loss=name) > 0, name


def test_every_method_is_drawn_and_summarised(every_method):
    assert [row[0] for row in summarise(every_method)] == ["method", *FROM_REWARD]
    figure = plot(every_method)
    assert len(figure.axes[1].lines) == len(FROM_REWARD)


def weights_of(name, ratios):
    """−∂loss/∂log π of each arm, from the pairs' shares, written out."""
    shares = PREFERENCES / PREFERENCES.sum()
    margins = ratios[:, None] - ratios[None, :]
    if name == "preference_likelihood":
        return shares.sum(axis=1)
    pushes = shares * {"dpo": 0.5 * expit(-0.5 * margins), "ipo": -2 * (margins - 2)}[name]
    return pushes.sum(axis=1) - pushes.sum(axis=0)


@pytest.mark.parametrize("name", FROM_PAIRS)
def test_learning_from_pairs_alone_is_plain_gradient_descent_on_the_table(learned, name):
    reference = np.log(REFERENCE.values)
    logits = reference.copy()
    for _ in range(STEPS):
        log_p = log_softmax(logits)
        weights = weights_of(name, log_p - reference)
        logits += RATE * (weights - np.exp(log_p) * weights.sum())
    found = learned["log_probs"].sel(loss=name, step=STEPS)
    np.testing.assert_allclose(found, log_softmax(logits), atol=1e-4)
    assert np.abs(np.exp(found) - REFERENCE.values).max() > 0.01


def test_learning_from_pairs_alone_does_not_depend_on_the_seed(learned):
    other = from_pairs(seed=7, methods=["dpo"])
    assert (other.seed, learned.seed) == (7, 0)
    expected = learned["log_probs"].sel(loss=["dpo"])
    np.testing.assert_allclose(other["log_probs"], expected, atol=1e-6)


def test_pairs_alone_give_a_target_in_their_favour(learned):
    gain = learned["target_log_probs"] - learned["reference_log_probs"]
    assert gain.sel(arm="a") > gain.sel(arm="c") > gain.sel(arm="d")
    assert (learned["expected_reward"].isel(step=-1) > learned["expected_reward"][:, 0]).all()


ONLY_PAIRS = {"reward": None, "preferences": PREFERENCES}
ONLY_TARGET = {"reward": None, "target": TARGET}
WITHOUT_C = {"reference": Vector(np.array([0.5, 0.5, 0.0, 0.0]), tuple("abcd"))}
REFUSED = [
    ("rlhf", {}, "rlhf fits its reward to preferences, but none are given; add --preferences"),
    ("spin", {}, "spin learns from demonstrations, but no target is given; add --target"),
    ("spin", {**ONLY_TARGET, **WITHOUT_C}, "reference is zero on arm 2 where target is not"),
    ("supervised", ONLY_PAIRS, "learns from responses, .* only preferences are given; add --rew"),
    ("supervised", ONLY_PAIRS, "from --preferences: .*dpo, ipo, hypo, hinge, slic, rlhf$"),
    ("best_of_n", ONLY_TARGET, "best_of_n samples its own responses, .* only a target is given"),
    ("dpo", ONLY_TARGET, "dpo learns from responses, .* only a target is given"),
    ("ipo", {"hyperparameters": {"tauu": 1.0}}, "unknown hyperparameter 'tauu'; .* 'tau'"),
    ("dpo", {"hyperparameters": {"tau": 1.0}}, "unknown hyperparameter 'tau'"),
    ("ipo", {"hyperparameters": {"tau": 0.0}}, "tau is 0; it must be a finite number > 0"),
    ("ipo", {"hyperparameters": {"tau": [0.1, -1.0]}}, "tau is -1; it must be a finite"),
    ("dpo", {"hyperparameters": {"beta": 0.2}}, "set it with --beta"),
    ("forward_kl", {"hyperparameters": {"tau": 0.2}}, "forward_kl has none but --beta"),
    ("ipo", {"responses": 1, "batch": 4}, "responses is 1; it must be a whole number of at least"),
    ("ipo", {"responses": 4, "batch": 10}, "batch is 10; it must be a multiple of responses, 4"),
    ("ipo", {"responses": 4, "batch": 2}, "batch is 2"),
    ("ppo", {"passes": 0}, "passes is 0; it must be a whole"),
    ("ppo", {"natural_gradient": True}, "is for exact descent of a divergence; ppo"),
    ("dpo", {**WITHOUT_C, "preferences": np.eye(4, k=1)}, "name arm 'c', which the reference excl"),
    ("dpo", {**ONLY_TARGET, "preferences": np.zeros((4, 4))}, "preferences is zero everywhere"),
    ("dpo", {"preferences": np.eye(3, k=1)}, "reference has 4 arms but preferences has 3"),
]


@pytest.mark.parametrize(("method", "arguments", "message"), REFUSED)
def test_what_a_method_cannot_do_is_refused_before_any_work(
    method, arguments, message, monkeypatch
):
    monkeypatch.delattr("bandits.simulation.run.sweep")
    given = {"reference": REFERENCE, "reward": REWARD, "steps": 4, "methods": [method]}
    with pytest.raises(InvalidInput, match=message):
        simulate(**given | arguments)


def test_a_method_that_diverges_is_said_with_its_steps():
    with pytest.warns(
        DivergenceWarning,
        match=r"became NaN after [1-4] steps, with learning_rate=1e\+30, tau=0.05",
    ):
        simulate(REFERENCE, preferences=PREFERENCES, methods=["ipo"], steps=4, learning_rate=1e30)


def test_two_stages_end_at_the_gibbs_policy_of_the_fitted_reward():
    dataset = simulate(
        REFERENCE, preferences=PREFERENCES, methods=["rlhf"], beta=0.5, learning_rate=4, steps=4000
    )
    fitted = np.asarray(fit_tabular(PREFERENCES))
    expected = log_softmax(np.log(REFERENCE.values) + fitted / 0.5)
    np.testing.assert_allclose(dataset["log_probs"].isel(step=-1)[0], expected, atol=2e-4)


def test_two_stages_learn_from_the_pairs_even_beside_a_reward():
    both = {"methods": ["rlhf"], "preferences": PREFERENCES, "steps": 20}
    beside = simulate(REFERENCE, reward=Vector(-REWARD.values, tuple("abcd")), **both)
    alone = simulate(REFERENCE, **both)
    np.testing.assert_array_equal(beside["log_probs"], alone["log_probs"])


def test_hypo_stays_nearer_to_the_reference_than_dpo():
    dataset = from_pairs(0, ["dpo", "hypo"], kl_coefficient=1.0)
    log_ratio = dataset["log_probs"].isel(step=-1) - np.log(REFERENCE.values)
    kl = (np.exp(dataset["log_probs"].isel(step=-1)) * log_ratio).sum("arm")
    assert kl.sel(loss="hypo") < 0.7 * kl.sel(loss="dpo")


def test_self_play_moves_to_its_demonstrations():
    dataset = simulate(
        REFERENCE, target=TARGET, methods=["spin"], beta=1.0, learning_rate=1, steps=600
    )
    np.testing.assert_allclose(
        np.exp(dataset["log_probs"].isel(step=-1)[0]), TARGET.values, atol=0.01
    )


def test_policy_gradients_are_the_second_stage_where_only_pairs_are_given():
    dataset = simulate(
        REFERENCE,
        preferences=PREFERENCES,
        methods=["rlhf", "reinforce"],
        beta=0.5,
        hyperparameters={"prompt_baseline": 1.0},
        learning_rate=0.3,
        steps=600,
        batch=400,
    )
    probs = np.exp(dataset["log_probs"].isel(step=-1))
    np.testing.assert_allclose(probs.sel(loss="reinforce"), probs.sel(loss="rlhf"), atol=0.03)
    assert dataset["expected_reward"].attrs["long_name"] == "expected learned reward"
