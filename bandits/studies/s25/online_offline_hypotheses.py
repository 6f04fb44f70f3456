"""Why online methods beat offline ones: four hypotheses, an experiment each.

H1 on-policy labels add information. H2 offline methods fail to stay near the reference. H5 reward
models generalise better out of distribution. H6 the generation–verification gap. The first two run
on sequences of three tokens with product policies, whose updates are expectations over the whole
space; the last two are those of `generation_verification_gap`. Numbers as in the source.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from jaxtyping import Array, Float, Int, PRNGKeyArray
from matplotlib.figure import Figure

from bandits import plotting
from bandits.descent import log_spaced_steps
from bandits.environments import CategoricalBandit
from bandits.keys import split_into
from bandits.losses import METHODS, Loss, normalize_preferences, switch
from bandits.policies import all_sequences, log_linear
from bandits.preferences import preference_probabilities
from bandits.reward_models import fit_linear
from bandits.studies.base import Claim, Experiment
from bandits.studies.curves import draw_bar_row, draw_mean_line, require_not_diverged
from bandits.studies.intervals import Interval, mean_interval
from bandits.studies.s25 import generation_verification_gap as gap
from bandits.sweeps import sweep
from bandits.training import PairsOfPolicy, Schedule, on_whole_space, own_pairs, train
from theory import distributions, gibbs
from theory.generation_verification import token_features

LABELS = ("offline DPO", "online DPO, learned labels", "online DPO, true labels")
# RLHF's reward has a prior, which DPO's implicit one has not; so it is measured with two: the law
# of the true token rewards, and one so many times as wide.
WIDER = 10.0
HELD = ("dpo", "hypo", "rlhf", "rlhf, wide prior")
HELD_METHODS = ("dpo", "hypo", "rlhf", "rlhf")
HELD_LABELS = ("DPO", "HyPO", "RLHF", "RLHF, wide prior")
HELD_LINES = (*(plotting.METHOD_LINES[name] for name in HELD_METHODS[:3]), ":")


@dataclass(frozen=True)
class Settings:
    """The problems of H1 and H2, and those of H5 and H6.

    Attributes:
      values, length: V and L of the sequences.
      reward_scale: standard deviation of token rewards, in nats of log-odds.
      reference_scale: standard deviation of the reference's token logits.
      beta: of the KL penalty and of DPO.
      kl_coefficient: λ of HyPO.
      noisy_pairs: of H1.
      labels: of each of those, by a Bradley–Terry labeller, and half a label for each order, so
        that the optimum is finite.
      clean_pairs: of H2, labelled without noise: what DPO can fit without bound.
      learning_rate: of Adam; for H1 it falls to 0 along a cosine.
      steps: of it.
      seeds: independent problems.
      verification: settings of H5 and H6, at one number of pairs.
    """

    values: int = 4
    length: int = 3
    reward_scale: float = 1.0
    reference_scale: float = 1.0
    beta: float = 0.5
    kl_coefficient: float = 0.1
    noisy_pairs: int = 150
    labels: int = 2
    clean_pairs: int = 20
    learning_rate: float = 0.15
    steps: int = 500
    seeds: int = 20
    verification: gap.Settings = field(default_factory=lambda: gap.Settings(pairs=(200,)))


def run(settings: Settings) -> xr.Dataset:
    """The numbers of all four."""
    features = jnp.asarray(
        token_features(all_sequences(settings.values, settings.length), settings.values)
    )
    shown = log_spaced_steps(settings.steps, per_decade=15)
    axes = {"seed": np.arange(settings.seeds)}
    labels = sweep(
        lambda learner, seed, features: _learn_labels(learner, seed, features, settings),
        {"learner": np.arange(len(LABELS)), **axes},
        fixed={"features": features},
        dims=["end"],
    )
    held = sweep(
        lambda loss, seed, features: _stay_near(loss, seed, features, settings, shown),
        {"loss": np.arange(len(HELD)), **axes},
        fixed={"features": features},
        dims=["step"],
        coords={"step": list(shown)},
        attributes={"reference_kl": {"long_name": "KL(policy‖reference)", "units": "nats"}},
    )
    for dataset in (labels, held):
        require_not_diverged(dataset)
    of_gap = (
        gap.run(settings.verification).isel(pairs=0).rename(seed="gap_seed", learner="gap_learner")
    )
    return xr.Dataset(
        {
            "label_share": labels["share"].squeeze("end").assign_coords(learner=list(LABELS)),
            "reference_kl": held["reference_kl"].assign_coords(loss=list(HELD)),
            "held_value": held["value"].assign_coords(loss=list(HELD)),
            "accuracy": of_gap["accuracy"],
            "gap_share": of_gap["share"],
        }
    )


def _learn_labels(
    learner: Int[Array, ""],
    seed: Int[Array, ""],
    features: Float[Array, "K F"],
    settings: Settings,
) -> dict[str, Array]:
    """H1: from the same pairs, offline; and online with labels of a model of them, or true ones."""
    reward, reference, keys = _problem(seed, features, settings)
    wins = preference_probabilities(reward, temperature=1.0)
    counts = _count_pairs(keys.noisy_pairs, wins, reference, settings.noisy_pairs, settings.labels)
    counts = counts + 0.5 * (counts + counts.T > 0)
    learned = features @ fit_linear(features, counts, ridge=0.0)
    judged = jnp.where(learner == 1, learned, reward)
    online = own_pairs(preference_probabilities(judged, temperature=1.0))
    given = normalize_preferences(counts)
    best = gibbs.optimal_value(reward, reference, settings.beta)
    start = jnp.exp(reference) @ reward

    def evaluate(log_probs: Float[Array, " K"]) -> dict[str, Array]:
        value = gibbs.regularised_objective(log_probs, reward, reference, settings.beta)
        return {"share": (value - start) / (best - start)}

    return _descend(
        keys.training,
        METHODS["dpo"].bind(beta=settings.beta),
        CategoricalBandit(judged, reference),
        lambda drawn: jnp.where(learner == 0, given, online(drawn)),
        features,
        settings,
        evaluate,
        (settings.steps,),
        optax.cosine_decay_schedule(settings.learning_rate, settings.steps),
    )


def _stay_near(
    loss: Int[Array, ""],
    seed: Int[Array, ""],
    features: Float[Array, "K F"],
    settings: Settings,
    record: tuple[int, ...],
) -> dict[str, Array]:
    """H2: the KL to the reference over training, on few pairs without noise."""
    reward, reference, keys = _problem(seed, features, settings)
    wins = preference_probabilities(reward)
    counts = _count_pairs(keys.clean_pairs, wins, reference, settings.clean_pairs, 1)
    scale = settings.reward_scale * jnp.where(loss == 3, WIDER, 1.0)
    learned = features @ fit_linear(features, counts, 1.0 / scale**2)
    hypo = METHODS["hypo"].bind(beta=settings.beta, kl_coefficient=settings.kl_coefficient)
    losses = [METHODS["dpo"].bind(beta=settings.beta), hypo]
    losses += [METHODS["rlhf"].bind(beta=settings.beta)]
    return _descend(
        keys.training,
        switch(jnp.minimum(loss, 2), losses),
        CategoricalBandit(learned, reference),
        normalize_preferences(counts),
        features,
        settings,
        lambda log_probs: {
            "reference_kl": distributions.kl_divergence(log_probs, reference),
            "value": gibbs.regularised_objective(log_probs, reward, reference, settings.beta),
        },
        record,
        settings.learning_rate,
    )


class _Keys(NamedTuple):
    """What one seed decides: the problem, the data of H1 and of H2, and training."""

    reward: PRNGKeyArray
    reference: PRNGKeyArray
    noisy_pairs: PRNGKeyArray
    clean_pairs: PRNGKeyArray
    training: PRNGKeyArray


def _problem(
    seed: Int[Array, ""], features: Float[Array, "K F"], settings: Settings
) -> tuple[Float[Array, " K"], Float[Array, " K"], _Keys]:
    """An additive reward, a product reference, and keys for the data."""
    keys = split_into(_Keys, jax.random.key(seed))
    columns = (features.shape[1],)
    reward = features @ (settings.reward_scale * jax.random.normal(keys.reward, columns))
    logits = features @ (settings.reference_scale * jax.random.normal(keys.reference, columns))
    return reward, jax.nn.log_softmax(logits), keys


def _count_pairs(
    key: Array,
    wins: Float[Array, "K K"],
    reference: Float[Array, " K"],
    number: int,
    labels: int,
) -> Float[Array, "K K"]:
    """So many pairs of different samples of the reference, each labelled: [winner, loser]."""
    pair_key, label_key = jax.random.split(key)
    # Gumbel's two largest are two draws without replacement.
    noise = jax.random.gumbel(pair_key, (number, len(reference)))
    first, second = jax.lax.top_k(reference + noise, 2)[1].T
    right = jax.random.binomial(label_key, labels, wins[first, second])
    counts = jnp.zeros_like(wins).at[first, second].add(right)
    return counts.at[second, first].add(labels - right)


def _descend(
    key: PRNGKeyArray,
    loss: Loss,
    bandit: CategoricalBandit,
    pairs: Float[Array, "K K"] | PairsOfPolicy,
    features: Float[Array, "K F"],
    settings: Settings,
    evaluate: Callable[[Float[Array, " K"]], dict[str, Array]],
    record: Sequence[int],
    learning_rate: float | optax.Schedule,
) -> dict[str, Array]:
    """Train a product policy from the reference, without noise."""
    policy = log_linear(features, bandit.reference_log_probs)
    return train(
        key,
        policy,
        jnp.zeros(features.shape[1]),
        loss,
        on_whole_space(policy, bandit, pairs),
        Schedule.whole_space(settings.steps, len(features)),
        optax.adam(learning_rate),
        lambda theta: evaluate(policy.log_probs(theta)),
        record,
    )


def plot(dataset: xr.Dataset) -> Figure:
    """A panel a hypothesis."""
    figure = plotting.new_figure(14, 10)
    (labels, held), (generalise, gaps) = figure.subplots(2, 2)
    figure.subplots_adjust(0.065, 0.07, 0.985, 0.955, wspace=0.18, hspace=0.32)
    colors = [plotting.METHOD_COLORS["dpo"], "#D8B26B", plotting.METHOD_COLORS["online_dpo"]]
    draw_bar_row(labels, dataset["label_share"], "learner", color=colors, width=0.7)
    labels.set_xticks(range(3), ["offline DPO", "online, learned labels", "online, true labels"])
    labels.set(ylabel="share of the optimum's value", ylim=(0, 1.08))
    labels.set_title("H1: do on-policy labels inform?")
    for name, method, label, line in zip(HELD, HELD_METHODS, HELD_LABELS, HELD_LINES, strict=True):
        one = dataset["reference_kl"].sel(loss=name).isel(step=slice(1, None))
        color = plotting.METHOD_COLORS[method]
        draw_mean_line(held, one, "step", color=color, linestyle=line, label=label, marker="")
    held.set(xscale="log", xlabel="gradient steps", ylabel="KL(policy‖reference), nats")
    held.set_ylim(bottom=0)
    held.set_title("H2: does DPO stay near the reference?")
    held.legend(loc="upper left")
    learners = (gap.RLHF_ADDITIVE, gap.DPO_ALL)
    simple = dataset["accuracy"].sel(problem="simple", gap_learner=list(learners))
    for i, learner in enumerate(learners):
        draw_bar_row(
            generalise,
            simple.sel(gap_learner=learner).rename(gap_seed="seed"),
            "judged_on",
            shift=0.38 * (i - 0.5),
            width=0.36,
            color=gap.STYLES[learner][0],
            label=learner,
        )
    generalise.axhline(0.5, color=plotting.INK, linewidth=1, linestyle=":")
    generalise.set_xticks([0, 1], ["pairs as in the data", "pairs of the best of many"])
    generalise.set(ylabel="accuracy on fresh pairs", ylim=(0, 1.3), yticks=np.arange(0, 1.1, 0.25))
    generalise.set_title("H5: do rewards generalise better?")
    generalise.legend(loc="upper left", fontsize=12)
    each = xr.concat(list(_gaps(dataset).values()), "problem").rename(gap_seed="seed")
    draw_bar_row(gaps, each.assign_coords(problem=range(3)), "problem", color="#777777", width=0.7)
    gaps.set_xticks(range(3), ["simple reward", "random reward", "one token"])
    gaps.set(ylabel="share: RLHF − DPO on all policies", ylim=(-0.4, 1))
    gaps.axhline(0, color=plotting.INK, linewidth=1)
    gaps.set_title("H6: does the gap need a simple reward?")
    return figure


def _gaps(dataset: xr.Dataset) -> dict[str, xr.DataArray]:
    """RLHF with an additive reward minus DPO on all policies, by problem."""
    share = dataset["gap_share"]
    apart = share.sel(gap_learner=gap.RLHF_ADDITIVE, drop=True) - share.sel(
        gap_learner=gap.DPO_ALL, drop=True
    )
    return {problem: apart.sel(problem=problem, drop=True) for problem in gap.PANELS}


def judge(dataset: xr.Dataset) -> list[Claim]:
    """One claim a hypothesis, and one on what holds RLHF in H2."""
    share = dataset["label_share"]
    offline, learned, true = (share.sel(learner=name) for name in LABELS)
    added, informed = (
        mean_interval((learned - offline).values),
        mean_interval((true - offline).values),
    )
    last = dataset["reference_kl"].isel(step=-1)
    steps = dataset["step"].values
    half = dataset["reference_kl"].isel(step=int(np.abs(steps - steps[-1] / 2).argmin()))
    drifts = mean_interval((last - half).sel(loss="dpo").values)
    apart = mean_interval((last.sel(loss="dpo") - last.sel(loss="hypo")).values)
    of_prior = mean_interval((last.sel(loss=HELD[3]) - last.sel(loss="rlhf")).values)
    ends = dict(zip(HELD, last.mean("seed").sel(loss=list(HELD)).values, strict=True))
    values = dataset["held_value"].isel(step=-1).mean("seed").sel(loss=list(HELD)).values
    simple = dataset["accuracy"].sel(problem="simple")
    better = simple.sel(gap_learner=gap.RLHF_ADDITIVE) - simple.sel(gap_learner=gap.DPO_ALL)
    inside, outside = (
        mean_interval(better.sel(judged_on=law).values) for law in better["judged_on"].values
    )
    gaps = {problem: mean_interval(values.values) for problem, values in _gaps(dataset).items()}
    explained = mean_interval((_gaps(dataset)["simple"] - _gaps(dataset)["random"]).values)
    return [
        EXPERIMENT.claim(
            "H1 fails: labels of a reward model of the same data add nothing. Share of the "
            "optimum's value, online DPO with them minus offline DPO (holds if surely within 0.02)",
            added,
            max(abs(added.low), abs(added.high)) < 0.02,
            note=f"The exact preference of every pair of its own samples, far more than the data "
            f"hold, adds {_brief(informed)}.",
        ),
        EXPERIMENT.claim(
            "H2 holds where data can be fitted without bound: DPO's own regularisation does not "
            "keep it near the reference, a KL on its own samples does. KL(π‖π_ref) in nats at the "
            "end, DPO minus HyPO (holds if surely above 0, and DPO surely still moves away)",
            apart,
            apart.low > 0 and drifts.low > 0,
            note=f"In the second half of the steps DPO moves by {_brief(drifts)}, HyPO by "
            f"{float((last - half).sel(loss='hypo').mean()):+.3f}. They end at DPO "
            f"{ends['dpo']:.2f}, HyPO {ends['hypo']:.2f} nats. The true reward less β KL at the "
            "end: "
            + ", ".join(
                f"{label} {value:.2f}" for label, value in zip(HELD_LABELS, values, strict=True)
            )
            + ".",
        ),
        EXPERIMENT.claim(
            "What holds RLHF near in the same setting is the prior of its reward, not the second "
            "stage. KL(π‖π_ref) in nats at the end, RLHF with a prior "
            f"{WIDER:g} times as wide minus RLHF with the law of the true rewards as its prior",
            of_prior,
            of_prior.low > 0,
            note=f"RLHF ends at {ends['rlhf']:.2f} nats with the narrow prior and at "
            f"{ends[HELD[3]]:.2f} with the wide one; DPO, which has none, at {ends['dpo']:.2f}.",
        ),
        EXPERIMENT.claim(
            "H5 holds: out of distribution the reward model orders more pairs right than the "
            "implicit reward of DPO on all policies, by",
            outside,
            outside.low > 0,
            note=f"In distribution too: by {_brief(inside)}.",
        ),
        EXPERIMENT.claim(
            "H6 holds: the gap of RLHF with an additive reward over DPO on all policies goes with "
            "the simplicity of the true reward. Share of the optimum's reward, gap where it is "
            "additive minus gap where it is a random table",
            explained,
            explained.low > 0 and gaps["simple"].low > 0,
            note=f"The gaps: additive {_brief(gaps['simple'])}, random {_brief(gaps['random'])}, "
            f"one token {_brief(gaps['one token'])}.",
        ),
    ]


def _brief(interval: Interval) -> str:
    # + 0 turns a rounded −0 into 0.
    effect, low, high = (round(value, 3) + 0.0 for value in interval)
    return f"{effect:g} [{low:g}, {high:g}]"


EXPERIMENT = Experiment(
    name="online_offline_hypotheses",
    source="S25; arXiv:2503.01067, section 4",
    question="Why does online fine-tuning beat offline: which of four hypotheses survive?",
    full=Settings(),
    quick=Settings(seeds=4, steps=100, verification=gap.Settings(pairs=(200,), seeds=4)),
    run=run,
    plot=plot,
    judge=judge,
)
