"""Searches as they run: each point is the direct call, under its own labels and keys."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bandits import Schedule, descend, sweep, train
from bandits.losses import DIVERGENCES, METHODS, preferences_by_reward
from bandits.policies import pretraining, tabular_softmax
from bandits.problems.environments import CategoricalBandit, bump_bandit, far_bandit, near_bandit
from bandits.problems.environments import skew_length as skew_length_bandit
from bandits.search import parse_spec, plan, read_spec
from bandits.simulation import simulate
from bandits.training import on_bandit
from theory.bradley_terry import fit_tabular
from theory.distributions import entropy, kl_divergence
from theory.pairs import Pairs

EXAMPLES = Path(__file__).parents[3] / "examples"
STEPS, RECORD = 6, (0, 3, 6)


def perform(content, folder=EXAMPLES):
    return sweep(**vars(plan(parse_spec(content, folder))))


def sampled(environment, record=("expected_reward", "reference_kl"), problem=None, **training):
    named = {} if environment is None else {"environment": environment}
    return {
        "problem": {**named, **(problem or {})},
        "training": {"steps": STEPS, "responses": 4, "contexts": 3, **training},
        "record": {"steps": list(RECORD), "metrics": list(record)},
    }


def exact(problem, metrics, **training):
    """Descents by both KL divergences over β and one more axis."""
    return {
        "problem": problem,
        "training": {
            "methods": ["forward_kl", "reverse_kl"],
            "updates": "exact",
            "optimizer": "sgd",
            "steps": STEPS,
            "hyperparameters": {"beta": [0.2, 0.5]},
            **training,
        },
        "record": {"steps": list(RECORD), "metrics": metrics},
    }


def key(seed):
    return jax.random.split(jax.random.key(seed), 3)[2]


def test_a_point_of_exact_updates_is_a_descent_to_the_gibbs_policy():
    metrics = ["forward_kl", "reverse_kl", "expected_reward", "entropy", "reference_kl"]
    problem = {"environment": "bump", "centre": [20.0, 60.0], "width": 8.0}
    dataset = perform(exact(problem, metrics, learning_rate=[0.5, 2.0]))
    dims = ("loss", "centre", "learning_rate", "beta", "step")
    assert {v.dims for v in dataset.data_vars.values()} == {dims}
    assert set(dataset.data_vars) == set(metrics)
    assert all(v.dtype == np.float32 for v in dataset.data_vars.values())
    bandit = bump_bandit(centre=60.0, width=8.0)
    target = bandit.target_log_probs(0.2)
    start = bandit.reference_log_probs
    log_probs = descend(DIVERGENCES["reverse_kl"], start, target, 2.0, RECORD)
    expected = {
        "forward_kl": kl_divergence(target, log_probs),
        "reverse_kl": kl_divergence(log_probs, target),
        "expected_reward": jnp.exp(log_probs) @ bandit.reward,
        "entropy": entropy(log_probs),
        "reference_kl": kl_divergence(log_probs, start),
    }
    point = dataset.sel(loss="reverse_kl", centre=60.0, learning_rate=2.0, beta=0.2)
    for name, values in expected.items():
        np.testing.assert_allclose(point[name], values, rtol=1e-4, atol=1e-6, err_msg=name)


def test_a_point_of_sampled_updates_is_algorithm_1():
    dataset = perform(
        sampled(
            ["near", "skew_length"],
            problem={"width": [5.0, 9.0], "cut": 10.0},
            methods=["ppo", "dpo"],
            optimizer="sgd",
            learning_rate=[0.5, 1.0],
            minibatch=6,
            responses=3,
            batch=12,
            passes=2,
            least_gap=0.05,
            seeds=[7, 2**32 - 1],
            hyperparameters={"beta": [0.1, 0.3], "clip": 0.1},
        )
    )
    assert dataset["expected_reward"].dims == (
        *("environment", "loss", "width", "learning_rate", "beta", "seed", "step"),
    )
    assert dataset["seed"].values.tolist() == [7, 2**32 - 1]
    assert (dataset["diverged_at"] == -1).all()
    schedule = Schedule(STEPS, group=3, minibatch=6, batch=12, passes=2)
    bandits = {"near": near_bandit(9.0), "skew_length": skew_length_bandit(cut=10.0)}
    for environment, bandit in bandits.items():
        for name, hyperparameters, behaviour in (
            ("ppo", {"beta": 0.3, "clip": 0.1}, bandit.reference_log_probs),
            ("dpo", {"beta": 0.3}, bandit.data_law()),
        ):
            alone = run_alone(bandit, name, hyperparameters, behaviour, schedule, 2**32 - 1)
            point = dataset.sel(
                environment=environment, loss=name, width=9.0,
                learning_rate=1.0, beta=0.3, seed=2**32 - 1,
            )  # fmt: skip
            np.testing.assert_allclose(point["expected_reward"], alone, rtol=1e-4, atol=1e-6)
            assert len(np.unique(alone)) == len(RECORD)


def run_alone(bandit, method, hyperparameters, behaviour, schedule, seed, least_gap=0.05):
    policy = tabular_softmax()
    found = train(
        key(np.uint32(seed)),
        policy,
        bandit.reference_log_probs,
        METHODS[method].bind(**hyperparameters),
        on_bandit(policy, bandit, schedule, label=lambda _, r: preferences_by_reward(r, least_gap)),
        schedule,
        optax.sgd(1.0),
        lambda logits: {"reward": jax.nn.softmax(logits) @ bandit.reward},
        RECORD,
        behaviour=behaviour,
    )
    return found["reward"]


def test_without_passes_offline_methods_keep_their_first_samples_and_others_draw_anew():
    settings = {"optimizer": "sgd", "learning_rate": 1.0}
    found = perform(sampled("far", methods=["dpo", "online_dpo"], **settings))
    said = perform(sampled("far", methods=["dpo"], passes=[1, STEPS], **settings))
    for method, passes in (("dpo", STEPS), ("online_dpo", 1)):
        np.testing.assert_array_equal(
            found["reference_kl"].sel(loss=method),
            said["reference_kl"].sel(loss="dpo", passes=passes),
        )
    assert (said["reference_kl"].isel(step=-1).diff("passes") != 0).all()


def test_a_method_without_the_hyperparameter_repeats_its_run():
    found = perform(
        sampled(
            "near", methods=["best_of_n", "dpo"], learning_rate=0.1,
            hyperparameters={"beta": [0.1, 1.0]},
        )
    )["expected_reward"].isel(step=-1)  # fmt: skip
    assert (found.sel(loss="best_of_n").diff("beta") == 0).all()
    assert (found.sel(loss="dpo").diff("beta") != 0).all()


def test_a_point_on_the_network_is_the_same_run_alone():
    seeds = [3, 2**31]
    common = {"policy": "network", "minibatch": 12, "seeds": seeds}
    dataset = perform(
        sampled(
            ["far", "near"],
            problem={"width": [5.0, 10.0]},
            methods=["best_of_n", "dpo"],
            learning_rate=[1e-3, 3e-3],
            batch=[12, 24],
            passes=[1, 2],
            hyperparameters={"beta": [0.1, 1.0]},
            **common,
        )
    )
    assert dataset["expected_reward"].dims == (
        "environment", "loss", "width", "batch", "passes", "learning_rate", "beta", "seed",
        "step",
    )  # fmt: skip
    assert dataset["environment"].values.tolist() == ["far", "near"]
    assert dataset["loss"].values.tolist() == ["best_of_n", "dpo"]
    assert dataset["seed"].values.tolist() == seeds
    assert (dataset["diverged_at"] == -1).all()
    alone = network_alone(np.array(seeds, np.uint32), far_bandit(5.0))
    point = dataset["expected_reward"].sel(
        environment="far", loss="dpo", width=5.0, batch=24, passes=2, learning_rate=3e-3,
        beta=0.1, seed=2**31,
    )  # fmt: skip
    np.testing.assert_allclose(point, alone, rtol=1e-3)
    assert len(np.unique(alone)) == len(RECORD)
    single = perform(
        sampled(
            "far", problem={"width": 5.0}, methods="dpo", learning_rate=3e-3, batch=24, passes=2,
            hyperparameters={"beta": 0.1}, **common,
        )
    )  # fmt: skip
    assert single["expected_reward"].dims == ("loss", "seed", "step")
    np.testing.assert_allclose(single["expected_reward"].isel(loss=0, seed=1), alone, rtol=1e-3)


def network_alone(seeds, bandit):
    policy = pretraining.published_network(bandit.num_arms)
    starts = pretraining.make_starts(policy, jnp.asarray(seeds), bandit.reference_log_probs)
    params, contexts, fresh = jax.tree.map(lambda leaf: leaf[1], starts)
    schedule = Schedule(STEPS, group=4, minibatch=12, batch=24, passes=2)

    def reward(params):
        log_probs = jax.vmap(policy.log_probs, (None, 0))(params, fresh)
        return {"reward": (jnp.exp(log_probs) @ bandit.reward).mean()}

    return train(
        key(seeds[1]),
        policy,
        params,
        METHODS["dpo"].bind(beta=0.1),
        on_bandit(policy, bandit, schedule, prompts=contexts[:3]),
        schedule,
        optax.adam(3e-3),
        reward,
        RECORD,
    )["reward"]


@pytest.fixture
def files(tmp_path):
    """Files of one bandit, whose last arm the reference excludes, in different orders."""
    (tmp_path / "reference.csv").write_text("count,arm\n3,a\n1,b\n6,c\n0,d\n")
    (tmp_path / "reward.csv").write_text("d,0.4\nc,0.1\nb,1.0\na,0.5\n")
    (tmp_path / "pairs.csv").write_text("b,a,3\nc,a,1\na,c,2\nb,c,1\nc,b,1\na,b,1\nd,a,1\na,d,1\n")
    return tmp_path


def of_files(**problem):
    return {"reference": "reference.csv", "normalize": True, **problem}


def test_exact_updates_on_files_are_those_of_simulate(files):
    metrics = ["expected_reward", "reverse_kl"]
    content = exact(of_files(reward="reward.csv"), metrics, learning_rate=[0.5, 1.0])
    dataset = perform(content, files)
    alone = simulate(
        {"a": 0.3, "b": 0.1, "c": 0.6, "d": 0.0},
        reward={"a": 0.5, "b": 1.0, "c": 0.1, "d": 0.4},
        methods=["forward_kl", "reverse_kl"],
        beta=0.5,
        learning_rate=1.0,
        steps=STEPS,
        record=RECORD,
    )
    point = dataset.sel(learning_rate=1.0, beta=0.5)
    for name in metrics:
        expected = alone[name].transpose("loss", "step")
        np.testing.assert_allclose(point[name], expected, rtol=1e-5, atol=1e-7, err_msg=name)
    assert dataset["arm"].values.tolist() == ["a", "b", "c", "d"]
    np.testing.assert_allclose(dataset["reference"], [0.3, 0.1, 0.6, 0.0])
    np.testing.assert_allclose(dataset["reward"], [0.5, 1.0, 0.1, 0.4])


def test_sampled_updates_on_files_are_algorithm_1_labelled_by_the_fitted_reward(files):
    dataset = perform(
        sampled(
            None,
            problem=of_files(preferences="pairs.csv", pseudocount=0.5, ridge=0.1),
            methods=["ppo", "dpo"],
            optimizer="sgd",
            learning_rate=[0.5, 1.0],
            passes=2,
            least_gap=0.05,
            seeds=[7, 9],
            hyperparameters={"beta": 0.3},
        ),
        files,
    )
    pairs = Pairs([1, 2, 0, 1, 2, 0, 3, 0], [0, 0, 2, 2, 1, 1, 0, 3], [3, 1, 2, 1, 1, 1, 1, 1])
    reward = fit_tabular(jax.tree.map(np.array, pairs), 0.1, num_arms=4)
    bandit = CategoricalBandit.from_arrays(reward, np.array([3.5, 1.5, 6.5, 0.5]) / 12)
    schedule = Schedule(STEPS, group=4, minibatch=12, batch=12, passes=2)
    for name in ("ppo", "dpo"):
        start = bandit.reference_log_probs
        alone = run_alone(bandit, name, {"beta": 0.3}, start, schedule, 9)
        point = dataset["expected_reward"].sel(loss=name, learning_rate=1.0, seed=9)
        np.testing.assert_allclose(point, alone, rtol=1e-4, atol=1e-6)
        assert len(np.unique(alone)) == len(RECORD)


def test_a_network_is_distilled_to_the_reference_of_files(files):
    seeds = [3, 5]
    dataset = perform(
        sampled(
            None,
            problem=of_files(reward="reward.csv", pseudocount=0.5),
            methods=["best_of_n", "dpo"],
            policy="network",
            learning_rate=3e-3,
            minibatch=12,
            batch=24,
            passes=2,
            hyperparameters={"beta": 0.1},
            seeds=seeds,
        ),
        files,
    )
    reward, reference = np.array([0.5, 1.0, 0.1, 0.4]), np.array([3.5, 1.5, 6.5, 0.5]) / 12
    bandit = CategoricalBandit.from_arrays(reward, reference)
    alone = network_alone(np.array(seeds, np.uint32), bandit)
    point = dataset.sel(loss="dpo", seed=5)
    np.testing.assert_allclose(point["expected_reward"], alone, rtol=1e-3)
    assert point["expected_reward"][0] == pytest.approx(reference @ reward, rel=1e-2)
    assert (dataset["reference_kl"].sel(step=0) < 1e-3).all()


def test_the_bandit_of_files_is_an_argument_and_no_constant(files):
    content = sampled(None, problem=of_files(reward="reward.csv"), methods="dpo", learning_rate=0.1)
    spec = parse_spec(content, files)
    planned = plan(spec)
    assert planned.fixed["files"] is spec.files.bandit
    assert planned.axes.keys() == {"loss", "seed"}


def test_runs_of_one_seed_share_their_samples_and_the_seeds_differ():
    found = perform(
        sampled("near", methods="best_of_n", learning_rate=[0.1, 0.2], optimizer="sgd", seeds=2)
    )["reference_kl"].isel(loss=0)
    alone = perform(
        sampled("near", methods="best_of_n", learning_rate=0.2, optimizer="sgd", seeds=[1])
    )["reference_kl"].isel(loss=0, seed=0)
    np.testing.assert_allclose(found.sel(learning_rate=0.2, seed=1), alone, rtol=1e-5, atol=1e-7)
    assert (found.isel(step=-1).diff("seed") != 0).all()


def test_a_plan_names_its_results_and_compiles_only_what_must_be():
    content = sampled(
        "near", problem={"width": [5.0, 9.0]}, methods=["ppo", "dpo"], learning_rate=0.1,
        passes=[1, 2],
    )  # fmt: skip
    planned = plan(parse_spec(content))
    kinds = {name: type(values).__name__ for name, values in planned.axes.items()}
    assert kinds == {"loss": "static", "width": "ndarray", "passes": "static", "seed": "ndarray"}
    assert planned.fixed == {"learning_rate": 0.1, "least_gap": 0.0}
    assert planned.dims == ("step",)
    assert planned.coords == {"step": list(RECORD)}
    assert planned.attributes["reference_kl"]["units"] == "nats"


@pytest.mark.filterwarnings("error")
def test_the_small_example_learns():
    dataset = sweep(**vars(plan(read_spec(EXAMPLES / "small_sweep.toml"))))
    gain = dataset["expected_reward"].isel(step=-1) - dataset["expected_reward"].isel(step=0)
    assert (gain.sel(environment="near").mean("seed") > 0.05).all()
    assert (gain.sel(loss="best_of_n", learning_rate=0.1).mean("seed") > 0.4).all()
