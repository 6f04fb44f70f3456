"""Plan a search for `sweep`: one traceable run, the axes that it takes, and their labels."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bandits.keys import split_seed
from bandits.losses import DIVERGENCES, METHODS, Loss, preferences_by_reward, switch
from bandits.policies import pretraining, tabular_softmax
from bandits.problems.environments import CategoricalBandit
from bandits.problems.metrics import ATTRIBUTES, DIVERGED_AT, measure
from bandits.search.entries import values_of
from bandits.search.spec import MARKS, OPTIMIZERS, Spec, build_environment, pick
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
      run: The traceable run; its arguments are the axes and the fixed values.
      axes: Values by name, in the order of the dataset's dimensions; `static` where a value needs a
        program of its own.
      fixed: Arrays that all runs share, by name.
      dims: Dimensions of the results, ``["step"]``.
      coords: Labels of the step, and of those axes whose values are places in a list of names; for
        a bandit of files also its arms, reference and reward.
      attributes: Names and units of the results and axes.
      block_runs: Most runs in one vmapped program.
    """

    run: Callable[..., dict[str, Array]]
    axes: dict[str, Any]
    fixed: dict[str, Any]
    dims: tuple[str, ...]
    coords: dict[str, Any]
    attributes: dict[str, dict[str, str]]
    block_runs: int


LABELS = {
    **{name: marks[1] for name, marks in MARKS.items() if len(marks) > 1},
    "reference": "probability of the reference",
    "reward": "reward",
    "seed": "seed",
    DIVERGED_AT: "steps after which the run diverged, -1 if never",
}
"""Names of what has the unit 1 and is not in `bandits.problems.metrics.ATTRIBUTES`."""


NAMED = {"environment": "environment", "loss": "method"}
"""Names of dimensions whose labels are names, too."""


def plan(spec: Spec) -> Plan:
    """Return how the search is run.

    A run returns the metrics, float32 ``[step]``, and for sampled updates ``diverged_at``, as
    `train` does. Random numbers depend on the seed alone, so runs of one seed share them along all
    other axes.

    This distils networks, for all seeds at once.
    """
    axes: dict[str, Any] = dict(spec.axes)
    coords: dict[str, Any] = {"step": list(spec.record)}
    fixed = {name: value for name, value in spec.settings.items() if isinstance(value, float)}
    # Names and sizes are part of the program.
    built_in = {n: value for n, value in spec.settings.items() if n not in fixed | spec.axes}
    fixed |= spec.shared
    if spec.files is not None:
        coords["arm"] = list(spec.files.labels)
        coords |= {n: ("arm", list(getattr(spec.files, n))) for n in ("reference", "reward")}
    perform, block_runs = _train_table, BLOCK_RUNS
    if spec.updates == "exact":
        perform = _descend
    elif spec.policy == "network":
        perform, block_runs = _train_network, pretraining.BLOCK_RUNS
        fixed |= _starts(spec)
        for name in ("environment", "loss"):
            if name in axes:
                coords[name] = list(axes[name])
                axes[name] = np.arange(len(axes[name]))

    def run(**given: Any) -> dict[str, Array]:
        return perform(spec, built_in | given)

    attributes = {name: {"long_name": label, "units": "1"} for name, label in LABELS.items()}
    attributes |= ATTRIBUTES | {name: {"long_name": label} for name, label in NAMED.items()}
    return Plan(
        run,
        {
            name: static(list(values))
            if name in spec.static
            else np.asarray(values, np.uint32 if name == "seed" else None)
            for name, values in axes.items()
        },
        fixed,
        ("step",),
        coords,
        attributes,
        block_runs,
    )


def _descend(spec: Spec, values: Values) -> dict[str, Array]:
    """Move a table by expected updates, from the reference to the Gibbs policy."""
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
    """Train a table by Algorithm 1, from the reference; offline data follow their own law."""
    bandit = build_environment(values["environment"], values)
    method, policy = METHODS[values["loss"]], tabular_softmax()
    return _train(
        spec,
        values,
        bandit,
        policy,
        policy.init(bandit.reference_log_probs),
        method.bind(**pick(method.hyperparameters, values)),
        spec.default_passes(values["loss"]),
        lambda logits: _measure(spec, bandit, policy.log_probs(logits)),
        behaviour=None if method.on_policy else policy.init(bandit.data_law()),
    )


def _train_network(spec: Spec, values: Values) -> dict[str, Array]:
    """Train the published network; environments and methods are places in their lists."""
    bandits = [build_environment(name, values) for name in spec.environments]
    place = values["environment"] if isinstance(spec.environment, tuple) else 0
    bandit = CategoricalBandit(
        jnp.stack([b.reward for b in bandits])[place], bandits[0].reference_log_probs
    )
    policy = pretraining.published_network(bandit.num_arms)
    seed = jnp.argmax(values["seeds"] == values["seed"])
    params, contexts, fresh = jax.tree.map(lambda leaf: leaf[seed], values["starts"])
    methods = [METHODS[name] for name in spec.methods]
    losses = [m.bind(**pick(m.hyperparameters, values)) for m in methods]
    passes = jnp.array([spec.default_passes(name) for name in spec.methods])[values["loss"]]

    def evaluate(params: Any) -> dict[str, Array]:
        log_probs = jax.vmap(policy.log_probs, in_axes=(None, 0))(params, fresh)
        return jax.tree.map(jnp.mean, _measure(spec, bandit, log_probs))

    return _train(
        spec,
        values,
        bandit,
        policy,
        params,
        switch(values["loss"], losses),
        passes,
        evaluate,
        prompts=contexts[: values["contexts"]],
    )


def _train(
    spec: Spec,
    values: Values,
    bandit: CategoricalBandit,
    policy: Any,
    params: Any,
    loss: Loss,
    passes: Any,
    evaluate: Callable[[Any], dict[str, Array]],
    prompts: Any = None,
    behaviour: Any = None,
) -> dict[str, Array]:
    """Train a policy by Algorithm 1; ``passes`` is T where the search sets none."""
    everything = values["contexts"] * values["responses"]
    is_traced = "batch" in spec.axes and "batch" not in spec.static
    schedule = Schedule(
        steps=spec.steps,
        group=values["responses"],
        minibatch=values.get("minibatch", everything),
        batch=values.get("batch", everything),
        passes=values.get("passes", passes),
        most_batch=max(spec.axes["batch"]) if is_traced else None,
    )

    def label(_: Array, rewards: Array) -> Array:
        return preferences_by_reward(rewards, values["least_gap"])

    return train(
        split_seed(values["seed"]).training,
        policy,
        params,
        loss,
        on_bandit(policy, bandit, schedule, prompts=prompts, label=label),
        schedule,
        OPTIMIZERS[spec.optimizer](values["learning_rate"]),
        evaluate,
        spec.record,
        behaviour=behaviour,
    )


def _starts(spec: Spec) -> dict[str, Any]:
    """Return a distilled network and contexts for every seed."""
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


def _measure(
    spec: Spec,
    bandit: CategoricalBandit,
    log_probs: Float[Array, "*batch K"],
    target: Float[Array, " K"] | None = None,
) -> dict[str, Array]:
    """Return what is recorded of policies; divergences are from the target, where there is one."""
    reference = bandit.reference_log_probs
    measured = measure(log_probs, reference if target is None else target, bandit.reward)
    measured["reference_kl"] = distributions.kl_divergence(log_probs, reference)
    return pick(spec.metrics, measured)
