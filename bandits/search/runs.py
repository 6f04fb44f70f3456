"""A search as `sweep` runs it: one traceable run, the axes that it takes, and their labels."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bandits.keys import split_seed
from bandits.losses import DIVERGENCES, METHODS, preferences_by_reward, switch
from bandits.policies import pretraining, tabular_softmax
from bandits.problems.environments import CategoricalBandit
from bandits.problems.metrics import ATTRIBUTES, DIVERGED_AT, measure
from bandits.search.entries import values_of
from bandits.search.parse import OPTIMIZERS
from bandits.search.spec import Spec, build_environment, pick
from bandits.sweeps import static
from bandits.sweeps.programs import BLOCK_RUNS
from bandits.training import Schedule, on_bandit, train
from bandits.training.descent import descend
from theory import distributions

Values = Mapping[str, Any]
"""What is set of one run, by the name of its dimension."""


@dataclass(frozen=True)
class Plan:
    """What `bandits.sweeps.sweep` takes, under its names.

    Attributes:
      run: the traceable run: its arguments are the axes and the fixed values.
      axes: name -> values, in the order of the dataset's dimensions; `static` where a value needs a
        program of its own.
      fixed: name -> arrays that all runs share.
      dims: of the results, ``["step"]``.
      coords: of the step, and of those axes whose values are places in a list of names; for a
        bandit of files also its arms, reference and reward.
      attributes: names and units of the results and axes.
      block_runs: most runs in one vmapped program.
    """

    run: Callable[..., dict[str, Array]]
    axes: dict[str, Any]
    fixed: dict[str, Any]
    dims: tuple[str, ...]
    coords: dict[str, Any]
    attributes: dict[str, dict[str, str]]
    block_runs: int


def plan(spec: Spec) -> Plan:
    """How the search is run.

    A run returns the metrics, float32 ``[step]``, and for sampled updates ``diverged_at``, as
    `train` does. Random numbers depend on the seed alone, so runs of one seed share them along all
    other axes.

    Networks are distilled here, for all seeds at once.
    """
    axes: dict[str, Any] = dict(spec.axes)
    coords: dict[str, Any] = {"step": list(spec.record)}
    fixed = {name: value for name, value in spec.settings.items() if isinstance(value, float)}
    held = {
        name: value for name, value in spec.settings.items() if name not in fixed | spec.axes
    }  # names and sizes, part of the program
    fixed |= spec.shared
    if spec.files is not None:
        coords["arm"] = list(spec.files.labels)
        coords |= {
            name: ("arm", list(getattr(spec.files, name))) for name in ("reference", "reward")
        }
    perform = _descend if spec.updates == "exact" else _train_table
    block_runs = BLOCK_RUNS
    if spec.policy == "network":
        perform, block_runs = _train_network, pretraining.BLOCK_RUNS
        fixed |= _starts(spec)
        for name in ("environment", "loss"):
            if name in axes:
                coords[name] = list(axes[name])
                axes[name] = np.arange(len(axes[name]))

    def run(**given: Any) -> dict[str, Array]:
        return perform(spec, {**held, **given})

    return Plan(
        run,
        {name: _axis(name, values, spec) for name, values in axes.items()},
        fixed,
        ("step",),
        coords,
        ATTRIBUTES | AXES,
        block_runs,
    )


AXES = {
    "environment": {"long_name": "environment"},
    "loss": {"long_name": "method"},
    "reference": {"long_name": "probability of the reference", "units": "1"},
    "reward": {"long_name": "reward", "units": "1"},
    "contexts": {"long_name": "prompts", "units": "1"},
    "responses": {"long_name": "responses N to a prompt", "units": "1"},
    "minibatch": {"long_name": "minibatch M in responses", "units": "1"},
    "batch": {"long_name": "batch B in responses", "units": "1"},
    "passes": {"long_name": "passes T over each batch", "units": "1"},
    "least_gap": {"long_name": "least difference in reward of a labelled pair", "units": "1"},
    "seed": {"long_name": "seed", "units": "1"},
    DIVERGED_AT: {"long_name": "steps after which the run diverged, -1 if never", "units": "1"},
}
"""Names and units of what `bandits.problems.metrics.ATTRIBUTES` does not have."""


def _descend(spec: Spec, values: Values) -> dict[str, Array]:
    """Expected updates of a table from the reference to the Gibbs policy."""
    bandit = build_environment(values["environment"], values)
    method = values["loss"]
    beta = values.get("beta", METHODS[method].hyperparameters["beta"])
    target = bandit.target_log_probs(beta)
    log_probs = descend(
        DIVERGENCES[method],
        bandit.reference_log_probs,
        target,
        values["learning_rate"],
        spec.record,
        OPTIMIZERS[spec.optimizer],
    )
    return _measure(spec, bandit, log_probs, target)


def _train_table(spec: Spec, values: Values) -> dict[str, Array]:
    """Algorithm 1 on a table, from the reference; offline data follow their own law."""
    bandit = build_environment(values["environment"], values)
    method, policy = METHODS[values["loss"]], tabular_softmax()
    schedule = _schedule(spec, values, spec.default_passes(values["loss"]))
    return train(
        split_seed(values["seed"]).training,
        policy,
        policy.init(bandit.reference_log_probs),
        method.bind(**pick(method.hyperparameters, values)),
        on_bandit(policy, bandit, schedule, label=_label(values)),
        schedule,
        OPTIMIZERS[spec.optimizer](values["learning_rate"]),
        lambda logits: _measure(spec, bandit, policy.log_probs(logits)),
        spec.record,
        behaviour=None if method.on_policy else policy.init(bandit.data_law()),
    )


def _train_network(spec: Spec, values: Values) -> dict[str, Array]:
    """Algorithm 1 on the published network; environments and methods are places in their lists."""
    bandits = [build_environment(name, values) for name in spec.environments]
    place = values["environment"] if isinstance(spec.environment, tuple) else 0
    bandit = CategoricalBandit(
        jnp.stack([b.reward for b in bandits])[place], bandits[0].reference_log_probs
    )
    policy = pretraining.published_network(bandit.num_arms)
    own = jnp.argmax(values["seeds"] == values["seed"])
    params, contexts, fresh = jax.tree.map(lambda leaf: leaf[own], values["starts"])
    methods = [METHODS[name] for name in spec.methods]
    losses = [m.bind(**pick(m.hyperparameters, values)) for m in methods]
    passes = jnp.array([spec.default_passes(name) for name in spec.methods])[values["loss"]]
    schedule = _schedule(spec, values, passes)

    def evaluate(params: Any) -> dict[str, Array]:
        log_probs = jax.vmap(policy.log_probs, in_axes=(None, 0))(params, fresh)
        return jax.tree.map(jnp.mean, _measure(spec, bandit, log_probs))

    return train(
        split_seed(values["seed"]).training,
        policy,
        params,
        switch(values["loss"], losses),
        on_bandit(
            policy,
            bandit,
            schedule,
            prompts=contexts[: values["contexts"]],
            label=_label(values),
        ),
        schedule,
        OPTIMIZERS[spec.optimizer](values["learning_rate"]),
        evaluate,
        spec.record,
    )


def _starts(spec: Spec) -> dict[str, Any]:
    """A distilled network and contexts for every seed."""
    first = {name: values[0] for name, values in spec.axes.items()}
    reference = build_environment(
        spec.environments[0], spec.settings | first | spec.shared
    ).reference_log_probs
    seeds = jnp.asarray(np.array(spec.seeds, np.uint32))
    starts = pretraining.make_starts(
        pretraining.published_network(len(reference)),
        seeds,
        reference,
        training_contexts=max(pretraining.TRAINING_CONTEXTS, *values_of(spec.contexts)),
    )
    return {"starts": starts, "seeds": seeds}


def _schedule(spec: Spec, values: Values, passes: Any) -> Schedule:
    everything = values["contexts"] * values["responses"]
    is_traced = "batch" in spec.axes and "batch" not in spec.static
    return Schedule(
        steps=spec.steps,
        group=values["responses"],
        minibatch=values.get("minibatch", everything),
        batch=values.get("batch", everything),
        passes=values.get("passes", passes),
        most_batch=max(spec.axes["batch"]) if is_traced else None,
    )


def _label(values: Values) -> Callable[[Array, Array], Array]:
    return lambda _, rewards: preferences_by_reward(rewards, values["least_gap"])


def _measure(
    spec: Spec,
    bandit: CategoricalBandit,
    log_probs: Float[Array, "*batch K"],
    target: Float[Array, " K"] | None = None,
) -> dict[str, Array]:
    """What is recorded of policies; the divergences are from the target, where there is one."""
    reference = bandit.reference_log_probs
    measured = measure(log_probs, reference if target is None else target, bandit.reward)
    measured["reference_kl"] = distributions.kl_divergence(log_probs, reference)
    return pick(spec.metrics, measured)


def _axis(name: str, values: Any, spec: Spec) -> Any:
    if name in spec.static:
        return static(list(values))
    return np.asarray(values, np.uint32 if name == "seed" else None)
