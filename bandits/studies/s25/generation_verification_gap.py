"""How many preferences a reward needs, and how many a policy.

Responses are sequences of tokens under a uniform reference. Pairs of them are labelled by a
Bradley–Terry labeller of the true reward, which adds up over tokens (simple) or is a random table;
and once the horizon is a single token, so that policies are as simple as rewards. Four learners see
the same pairs: RLHF with an additive reward or a table of rewards, both soft-optimised exactly, and
DPO on product policies or on all policies. Every fitted parameter, a reward or an implicit reward,
has the same Gaussian prior, that of the true token rewards. By the equivalence of RLHF and DPO the
four are two: additive rewards and product policies are one class, and so are the two tables.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from jaxtyping import Array, Float, Int
from matplotlib.figure import Figure

from bandits import plotting
from bandits.fitting import minimize
from bandits.losses import METHODS, make_pair
from bandits.policies import Policy, all_sequences, log_linear, tabular_softmax
from bandits.studies.base import Claim, Experiment
from bandits.studies.curves import draw_mean_line, log_axis, require_no_nan, with_legend
from bandits.studies.intervals import exact, mean_interval
from bandits.sweeps import sweep
from theory import convex, gibbs
from theory.generation_verification import class_sizes, token_features

RLHF_ADDITIVE, DPO_PRODUCT = "RLHF, additive reward", "DPO, product policies"
"""The small searches: one class, seen as rewards and as policies."""

RLHF_TABLE, DPO_ALL = "RLHF, table of rewards", "DPO, all policies"
"""The large ones. The gap is that of RLHF with an additive reward over DPO on all policies."""

LEARNERS = (RLHF_ADDITIVE, DPO_PRODUCT, RLHF_TABLE, DPO_ALL)

STYLES = {
    RLHF_ADDITIVE: (plotting.METHOD_COLORS["rlhf"], "-"),
    DPO_PRODUCT: (plotting.METHOD_COLORS["dpo"], "--"),
    RLHF_TABLE: ("#66C2A5", "-"),
    DPO_ALL: (plotting.METHOD_COLORS["online_ipo"], "--"),
}
PANELS = {
    "simple": "Simple reward: adds up over tokens",
    "random": "Complicated reward: a random table",
    "one token": "Simple policy: a single token",
}


class Space(NamedTuple):
    """A space of responses and its classes.

    Attributes:
      features: ``[K, F]``, of additive rewards and product policies.
      tokens: L, the number of places.
    """

    features: Float[Array, "K F"]
    tokens: int


@dataclass(frozen=True)
class Settings:
    """The problems and the learners.

    Attributes:
      values: V.
      length: L, of the sequences.
      token_values: V where the horizon is one.
      reward_scale: standard deviation of token rewards, in nats of log-odds of the labeller.
      other_scales: noisier labellers, tried at one number of pairs.
      beta: of the KL penalty and of DPO.
      pairs: numbers of labelled pairs.
      learning_rate: of Adam, for the tables; the others are solved by Newton's method.
      steps: of Adam.
      judged: fresh pairs on which each learner's order is judged.
      best_of: the out-of-distribution pairs are the best of so many responses each.
      seeds: independent problems.
    """

    values: int = 4
    length: int = 5
    token_values: int = 20
    reward_scale: float = 4.0
    other_scales: tuple[float, ...] = (1.0, 2.0)
    beta: float = 0.5
    pairs: tuple[int, ...] = (25, 50, 100, 200, 400, 800)
    learning_rate: float = 0.3
    steps: int = 150
    judged: int = 1000
    best_of: int = 16
    seeds: int = 20


def run(settings: Settings) -> xr.Dataset:
    """Share of the optimum's reward, and accuracy on fresh pairs, for each learner and problem."""
    sequences = Space(
        jnp.asarray(
            token_features(all_sequences(settings.values, settings.length), settings.values)
        ),
        settings.length,
    )
    one_token = Space(jnp.eye(settings.token_values), 1)
    scale = (settings.reward_scale,)
    parts = [
        _learn_all(settings, sequences, ["simple", "random"], scale, settings.pairs),
        _learn_all(settings, one_token, ["simple"], scale, settings.pairs).assign_coords(
            problem=["one token"]
        ),
    ]
    dataset = xr.concat(parts, "problem").squeeze("scale", drop=True)
    middle = (_nearest_to_200(settings.pairs),)
    noisier = _learn_all(settings, sequences, ["simple"], settings.other_scales, middle)
    sizes = class_sizes(settings.values, settings.length)
    return dataset.assign(
        noisier_share=noisier["share"].squeeze(("problem", "pairs"), drop=True),
        noisier_label_accuracy=noisier["label_accuracy"].squeeze(("problem", "pairs"), drop=True),
    ).assign_attrs(policy_parameters=sizes.policies, reward_parameters=sizes.additive_rewards)


def _nearest_to_200(pairs: Sequence[int]) -> int:
    """The number at which the gap is judged."""
    return min(pairs, key=lambda number: abs(number - 200))


def _learn_all(
    settings: Settings,
    space: Space,
    rewards: Sequence[str],
    scales: Sequence[float],
    numbers: Sequence[int],
) -> xr.Dataset:
    """Every learner on every problem, reward scale and number of pairs."""
    most = max(numbers)

    def run_one(
        problem: Int[Array, ""],
        scale: Float[Array, ""],
        pairs: Int[Array, ""],
        seed: Int[Array, ""],
        features: Float[Array, "K F"],
    ) -> dict[str, Array]:
        reward_key, pair_key, label_key, in_key, out_key = jax.random.split(jax.random.key(seed), 5)
        reward = scale * _true_reward(reward_key, problem, space._replace(features=features))
        size = len(reward)
        drawn = jax.random.randint(pair_key, (most, 2), 0, size)
        gaps = reward[drawn[:, 0]] - reward[drawn[:, 1]]
        right = jax.random.uniform(label_key, (most,)) < jax.nn.sigmoid(gaps)
        ordered = jnp.where(right[:, None], drawn, drawn[:, ::-1])
        # The first of the pairs; the others are masked, so that one program serves all numbers.
        weights = (jnp.arange(most) < pairs) / pairs
        ridge = 1.0 / (pairs * scale**2)
        learned = _learn(ordered, weights, ridge, features, settings)
        policies = jax.nn.log_softmax(learned / settings.beta, axis=-1)
        reference = jnp.full(size, -jnp.log(size))
        best = jnp.exp(gibbs.gibbs_log_probs(reward, reference, settings.beta)) @ reward
        start = reward.mean()
        fresh = jax.random.randint(in_key, (settings.judged, 2), 0, size)
        many = jax.random.randint(out_key, (settings.judged, 2, settings.best_of), 0, size)
        chosen = jnp.argmax(reward[many], axis=-1, keepdims=True)
        better = jnp.take_along_axis(many, chosen, axis=-1)[..., 0]
        return {
            "share": (jnp.exp(policies) @ reward - start) / (best - start),
            "accuracy": jnp.stack([_accuracy(learned, reward, d) for d in (fresh, better)]),
            "label_accuracy": jnp.mean(right == (gaps > 0)),
        }

    dataset = sweep(
        run_one,
        {
            "problem": np.arange(len(rewards)),
            "scale": np.array(scales, np.float32),
            "pairs": np.array(numbers),
            "seed": np.arange(settings.seeds),
        },
        fixed={"features": space.features},
        dims={"share": ["learner"], "accuracy": ["judged_on", "learner"]},
        coords={"learner": list(LEARNERS), "judged_on": ["data's law", "best of many"]},
        attributes={"share": {"long_name": "share of the optimum's reward", "units": "1"}},
        block_runs=10,
    ).assign_coords(problem=list(rewards), scale=list(scales))
    require_no_nan(dataset)
    return dataset


def _true_reward(key: Array, problem: Int[Array, ""], space: Space) -> Float[Array, " K"]:
    """Additive in standard normal token rewards, or a table of the same variance."""
    token_key, table_key = jax.random.split(key)
    size, columns = space.features.shape
    additive = space.features @ jax.random.normal(token_key, (columns,))
    table = space.tokens**0.5 * jax.random.normal(table_key, (size,))
    return jnp.where(problem == 0, additive, table)


def _learn(
    pairs: Int[Array, "n 2"],
    weights: Float[Array, " n"],
    ridge: Float[Array, ""],
    features: Float[Array, "K F"],
    settings: Settings,
) -> Float[Array, "4 K"]:
    """The reward, learned or implicit, of each of `LEARNERS`."""
    size, columns = features.shape

    def likelihood(rewards: Float[Array, " K"]) -> Float[Array, ""]:
        margins = rewards[pairs[:, 0]] - rewards[pairs[:, 1]]
        return -weights @ jax.nn.log_sigmoid(margins)

    def dpo_loss(policy: Policy, params: Array) -> Float[Array, ""]:
        return weights @ _dpo_of_pairs(policy.log_probs(params), pairs, settings.beta)

    def prior(params: Array) -> Float[Array, ""]:
        return ridge / 2 * jnp.sum(params**2)

    def descend(loss: convex.Objective) -> Float[Array, " K"]:
        return minimize(loss, jnp.zeros(size), optax.adam(settings.learning_rate), settings.steps)

    product, table = log_linear(features), tabular_softmax()
    start = jnp.zeros(columns)
    # DPO's parameters are multiplied by β to be rewards, so that the priors are the same.
    additive = convex.minimize(lambda w: likelihood(features @ w) + prior(w), start)
    of_product = convex.minimize(lambda w: dpo_loss(product, w / settings.beta) + prior(w), start)
    rewards = descend(lambda r: likelihood(r) + prior(r))
    of_table = descend(lambda r: dpo_loss(table, r / settings.beta) + prior(r))
    return jnp.stack([features @ additive, features @ of_product, rewards, of_table])


def _dpo_of_pairs(
    log_probs: Float[Array, " K"], pairs: Int[Array, "n 2"], beta: float
) -> Float[Array, " n"]:
    """DPO's loss of each pair, the winner first, from a uniform reference."""
    loss = METHODS["dpo"].bind(beta=beta)
    uniform = jnp.full(2, -jnp.log(log_probs.size))

    def of_pair(pair: Float[Array, " 2"]) -> Float[Array, ""]:
        return loss(make_pair(pair, reference_log_probs=uniform))

    return jax.vmap(of_pair)(log_probs[pairs])


def _accuracy(
    learned: Float[Array, "4 K"], reward: Float[Array, " K"], pairs: Int[Array, "n 2"]
) -> Float[Array, " 4"]:
    """Share of pairs with different rewards that are ordered right; a tie counts as half."""
    truth = jnp.sign(reward[pairs[:, 0]] - reward[pairs[:, 1]])
    said = jnp.sign(learned[:, pairs[:, 0]] - learned[:, pairs[:, 1]])
    told_apart = truth != 0
    right = jnp.where(told_apart, 0.5 * (1.0 + said * truth), 0.0)
    return right.sum(axis=-1) / jnp.maximum(told_apart.sum(), 1)


def plot(dataset: xr.Dataset) -> Figure:
    """A panel a problem: share of the optimum's reward over the number of pairs."""
    figure = plotting.new_figure(15.5, 5.8)
    panels = figure.subplots(1, 3, sharey=True)
    figure.subplots_adjust(0.06, 0.24, 0.99, 0.91, wspace=0.06)
    for problem, axes in zip(PANELS, panels, strict=True):
        one = dataset["share"].sel(problem=problem)
        for learner in LEARNERS:
            color, line = STYLES[learner]
            draw_mean_line(
                axes, one.sel(learner=learner), "pairs", color=color, linestyle=line, label=learner
            )
        axes.axhline(1, color=plotting.INK, linewidth=1)
        log_axis(axes, dataset["pairs"].values)
        axes.set(title=PANELS[problem], xlabel="labelled pairs", ylim=(-0.03, 1.08))
    panels[0].set_ylabel("share of the optimum's reward")
    return with_legend(figure, panels[0], ncols=4)


def judge(dataset: xr.Dataset) -> list[Claim]:
    """The gap at 200 pairs, or the number next to it, and when it closes or reverses; by seed."""
    at = _nearest_to_200(dataset["pairs"].values.tolist())
    share = dataset["share"].sel(pairs=at)

    def gap(problem: str, one: str, other: str) -> np.ndarray:
        of_problem = share.sel(problem=problem)
        return (of_problem.sel(learner=one) - of_problem.sel(learner=other)).values

    simple = share.sel(problem="simple")
    small, large = (mean_interval(simple.sel(learner=n).values) for n in (RLHF_ADDITIVE, DPO_ALL))
    labels = dataset["label_accuracy"].sel(problem="simple", pairs=at)
    noisier = dataset["noisier_share"].mean("seed")
    accuracies = dataset["noisier_label_accuracy"].mean("seed")
    others = "; ".join(
        f"one right on {float(accuracies.sel(scale=scale)):.0%}, RLHF "
        f"{float(noisier.sel(scale=scale, learner=RLHF_ADDITIVE)):.2f} and DPO "
        f"{float(noisier.sel(scale=scale, learner=DPO_ALL)):.2f}"
        for scale in dataset["scale"].values
    )
    reverses = mean_interval(gap("random", RLHF_ADDITIVE, DPO_ALL))
    closes = mean_interval(gap("one token", RLHF_ADDITIVE, DPO_ALL))
    same = np.abs(
        np.stack(
            [
                gap(problem, one, other)
                for problem in PANELS
                for one, other in ((RLHF_ADDITIVE, DPO_PRODUCT), (RLHF_TABLE, DPO_ALL))
            ]
        )
    )
    return [
        EXPERIMENT.claim(
            f"With {at} pairs RLHF with the additive reward reaches this share of the optimum's "
            "reward (holds if the mean is above 0.98)",
            small,
            small.effect > 0.98,
            note=f"The labeller is right on {float(labels.mean()):.0%} of pairs. With {others}.",
        ),
        EXPERIMENT.claim(
            f"With the same {at} pairs DPO on all policies reaches (holds if the mean is below "
            "0.3)",
            large,
            large.effect < 0.3,
            note=f"It searches {dataset.attrs['policy_parameters']:,} free parameters, the reward "
            f"has {dataset.attrs['reward_parameters']}.",
        ),
        EXPERIMENT.claim(
            "Where the reward is a random table the gap reverses: RLHF with an additive reward "
            "minus DPO on all policies, in shares",
            reverses,
            reverses.high < 0,
        ),
        EXPERIMENT.claim(
            "Where the horizon is one token it closes, for both search one class: the same "
            "difference (holds if surely within 0.01)",
            closes,
            max(abs(closes.low), abs(closes.high)) < 0.01,
        ),
        EXPERIMENT.claim(
            "It closes too where DPO searches only the policies that are optimal for additive "
            "rewards, or RLHF all rewards: largest difference between learners of one class "
            "(holds if below 0.01)",
            exact(same.max()),
            float(same.max()) < 0.01,
        ),
    ]


EXPERIMENT = Experiment(
    name="generation_verification_gap",
    source="S25; arXiv:2503.01067, section 5",
    question="Why can two stages need fewer preferences than one?",
    full=Settings(),
    quick=Settings(pairs=(50, 200), other_scales=(1.0,), seeds=4),
    run=run,
    plot=plot,
    judge=judge,
)
