"""Ask why online methods beat offline ones: four hypotheses, an experiment for each.

H1: on-policy labels add information. H2: offline methods fail to stay near the reference. H5:
reward models generalise better out of distribution. H6: there is a generation–verification gap.
The numbers are the source's. H1 and H2 run on sequences of three tokens with product policies,
whose updates are expectations over the whole space; H5 and H6 take the results of
`generation_verification_gap`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from jaxtyping import Array, Float, Int, PRNGKeyArray
from matplotlib.figure import Figure

from bandits import plotting
from bandits.keys import split_into
from bandits.losses import METHODS, Loss, normalize_preferences
from bandits.policies import all_sequences, log_linear
from bandits.problems.environments import CategoricalBandit
from bandits.problems.preferences import preference_probabilities
from bandits.problems.reward_models import fit_linear
from bandits.studies.curves import draw_bar_row, draw_means, over_seeds, require_not_diverged
from bandits.studies.expected import bind_known
from bandits.studies.intervals import Interval
from bandits.studies.s25 import generation_verification_gap as gap
from bandits.studies.study import Claim, Criterion, Study, claim, surely_within
from bandits.sweeps import choices, sweep
from bandits.training import PairsOfPolicy, Schedule, on_whole_space, own_pairs, train
from bandits.training.descent import log_spaced_steps
from theory import distributions, gibbs
from theory.generation_verification import token_features

LABELS = {
    "offline DPO": (False, False),
    "online DPO, learned labels": (True, True),
    "online DPO, true labels": (True, False),
}
"""For each learner of H1: whether its pairs are its own samples, and whether a reward model of the
data labels them instead of the true reward."""


class Held(NamedTuple):
    """Hold a method of H2, and how it is drawn.

    ``width`` is that of its reward's prior, relative to the law of the true rewards.
    """

    method: str
    label: str
    width: float = 1.0
    line: str = ""


# RLHF's reward has a prior, and DPO's implicit reward has none; so RLHF is run with two priors.
WIDER, WIDE = 10.0, "rlhf, wide prior"
HELD = {
    "dpo": Held("dpo", "DPO"),
    "hypo": Held("hypo", "HyPO"),
    "rlhf": Held("rlhf", "RLHF"),
    WIDE: Held("rlhf", "RLHF, wide prior", WIDER, ":"),
}


class OnlineOfflineHypotheses(Study):
    """Run the experiments of H1 and H2, and those of H5 and H6."""

    source = "S25; arXiv:2503.01067, section 4"
    question = "Why does online fine-tuning beat offline: which of four hypotheses survive?"
    quick = {
        "seeds": 4,
        "steps": 100,
        "verification": gap.GenerationVerificationGap(pairs=(200,), seeds=4),
    }

    values: int = 4  # V
    length: int = 3  # L
    reward_scale: float = 1.0  # standard deviation of token rewards, in nats of log-odds
    reference_scale: float = 1.0  # standard deviation of the reference's token logits
    beta: float = 0.5  # of the KL penalty and of DPO
    kl_coefficient: float = 0.1  # λ of HyPO
    noisy_pairs: int = 150  # of H1
    labels: int = 2  # of each of those, by a Bradley–Terry labeller
    clean_pairs: int = 20  # of H2, labelled without noise: DPO can fit them without bound
    learning_rate: float = 0.15  # of Adam; for H1 it falls to 0 along a cosine
    steps: int = 500  # of Adam
    seeds: int = 20  # independent problems
    # H5 and H6, at one number of pairs.
    verification: gap.GenerationVerificationGap = gap.GenerationVerificationGap(pairs=(200,))

    def run(self) -> xr.Dataset:
        tokens = all_sequences(self.values, self.length)
        fixed = {"features": jnp.asarray(token_features(tokens, self.values))}
        seeds = np.arange(self.seeds)
        learners = {"learner": choices(LABELS), "seed": seeds}
        labels = require_not_diverged(
            sweep(self._learn_labels, learners, fixed=fixed, dims=["end"])
        )
        numbers = {"beta": self.beta, "kl_coefficient": self.kl_coefficient}
        losses = {n: (bind_known(METHODS[h.method], **numbers), h.width) for n, h in HELD.items()}
        held = require_not_diverged(
            sweep(
                self._stay_near,
                {"loss": choices(losses), "seed": seeds},
                fixed=fixed,
                dims=["step"],
                coords={"step": list(log_spaced_steps(self.steps, per_decade=15))},
                attributes={"reference_kl": {"long_name": "KL(policy‖reference)", "units": "nats"}},
            )
        )
        of_gap = self.verification.run().isel(pairs=0)
        of_gap = of_gap.rename(seed="gap_seed", learner="gap_learner")
        return xr.Dataset(
            {
                "label_share": labels["share"].squeeze("end"),
                "reference_kl": held["reference_kl"],
                "held_value": held["value"],
                "accuracy": of_gap["accuracy"],
                "gap_share": of_gap["share"],
            }
        )

    def _learn_labels(
        self, learner: tuple[Array, Array], seed: Int[Array, ""], features: Float[Array, "K F"]
    ) -> dict[str, Array]:
        """Run H1: learn from given pairs, or online from labels, learned from them or true."""
        is_online, is_learned = learner
        keys, bandit = self._problem(seed, features)
        wins = preference_probabilities(bandit.reward, temperature=1.0)
        counts = _count_pairs(keys.noisy_pairs, wins, bandit, self.noisy_pairs, self.labels)
        # Half a label for each order makes the optimum finite.
        counts = counts + 0.5 * (counts + counts.T > 0)
        learned = features @ fit_linear(features, counts, ridge=0.0)
        judged = jnp.where(is_learned, learned, bandit.reward)
        online = own_pairs(preference_probabilities(judged, temperature=1.0))
        given = normalize_preferences(counts)
        results = self._descend(
            keys.training,
            bandit,
            judged,
            METHODS["dpo"].bind(beta=self.beta),
            lambda drawn: jnp.where(is_online, online(drawn), given),
            features,
            (self.steps,),
            optax.cosine_decay_schedule(self.learning_rate, self.steps),
        )
        best = gibbs.optimal_value(bandit.reward, bandit.reference_log_probs, self.beta)
        start = jnp.exp(bandit.reference_log_probs) @ bandit.reward
        return results | {"share": (results["value"] - start) / (best - start)}

    def _stay_near(
        self,
        loss: tuple[Loss, Float[Array, ""]],
        seed: Int[Array, ""],
        features: Float[Array, "K F"],
    ) -> dict[str, Array]:
        """Run H2: measure the KL to the reference while learning from few pairs without noise."""
        method, width = loss
        keys, bandit = self._problem(seed, features)
        wins = preference_probabilities(bandit.reward)
        counts = _count_pairs(keys.clean_pairs, wins, bandit, self.clean_pairs, labels=1)
        learned = features @ fit_linear(features, counts, 1.0 / (self.reward_scale * width) ** 2)
        return self._descend(
            keys.training,
            bandit,
            learned,
            method,
            normalize_preferences(counts),
            features,
            log_spaced_steps(self.steps, per_decade=15),
            self.learning_rate,
        )

    def _problem(
        self, seed: Int[Array, ""], features: Float[Array, "K F"]
    ) -> tuple["_Keys", CategoricalBandit]:
        """Return a seed's keys, and its bandit of an additive reward and a product reference."""
        keys = split_into(_Keys, jax.random.key(seed))
        columns = (features.shape[1],)
        reward = features @ (self.reward_scale * jax.random.normal(keys.reward, columns))
        logits = features @ (self.reference_scale * jax.random.normal(keys.reference, columns))
        return keys, CategoricalBandit(reward, jax.nn.log_softmax(logits))

    def _descend(
        self,
        key: PRNGKeyArray,
        bandit: CategoricalBandit,
        judged: Float[Array, " K"],
        loss: Loss,
        pairs: Float[Array, "K K"] | PairsOfPolicy,
        features: Float[Array, "K F"],
        record: Sequence[int],
        learning_rate: float | optax.Schedule,
    ) -> dict[str, Array]:
        """Train a product policy without noise from the reference, with rewards ``judged``."""
        reference = bandit.reference_log_probs
        policy = log_linear(features, reference)

        def evaluate(theta: Float[Array, " F"]) -> dict[str, Array]:
            own = policy.log_probs(theta)
            return {
                "reference_kl": distributions.kl_divergence(own, reference),
                "value": gibbs.regularised_objective(own, bandit.reward, reference, self.beta),
            }

        return train(
            key,
            policy,
            jnp.zeros(features.shape[1]),
            loss,
            on_whole_space(policy, CategoricalBandit(judged, reference), pairs),
            Schedule.whole_space(self.steps, len(features)),
            optax.adam(learning_rate),
            evaluate,
            record,
        )

    @classmethod
    def plot(cls, dataset: xr.Dataset) -> Figure:
        """Draw a panel for each hypothesis."""
        figure = plotting.new_figure(14, 10)
        (labels, held), (generalise, gaps) = figure.subplots(2, 2)
        figure.subplots_adjust(0.065, 0.07, 0.985, 0.955, wspace=0.18, hspace=0.32)
        colors = [plotting.METHOD_COLORS["dpo"], "#D8B26B", plotting.METHOD_COLORS["online_dpo"]]
        draw_bar_row(labels, dataset["label_share"], "learner", color=colors, width=0.7)
        labels.set_xticks(range(3), [name.replace("online DPO", "online") for name in LABELS])
        labels.set(ylabel="share of the optimum's value", ylim=(0, 1.08))
        labels.set_title("H1: do on-policy labels inform?")
        for name, (method, label, _, line) in HELD.items():
            one = dataset["reference_kl"].sel(loss=name).isel(step=slice(1, None))
            style = {"label": label, "linestyle": line or plotting.METHOD_LINES[method]}
            draw_means(held, one, "step", method, marker="", **style)
        held.set(xscale="log", xlabel="gradient steps", ylabel="KL(policy‖reference), nats")
        held.set_ylim(bottom=0)
        held.legend(loc="upper left")
        held.set_title("H2: does DPO stay near the reference?")
        for learner, shift in ((gap.RLHF_ADDITIVE, -0.19), (gap.DPO_ALL, 0.19)):
            bars = {"width": 0.36, "color": gap.STYLES[learner][0], "label": learner}
            draw_bar_row(generalise, _accuracy(dataset, learner), "judged_on", shift, **bars)
        generalise.axhline(0.5, color=plotting.INK, linewidth=1, linestyle=":")
        generalise.set_xticks([0, 1], ["pairs as in the data", "pairs of the best of many"])
        generalise.set(ylabel="accuracy on fresh pairs", ylim=(0, 1.3))
        generalise.set_yticks(np.arange(0, 1.1, 0.25))
        generalise.set_title("H5: do rewards generalise better?")
        generalise.legend(loc="upper left", fontsize=12)
        draw_bar_row(gaps, _gaps(dataset), "problem", color="#777777", width=0.7)
        gaps.set_xticks(range(3), ["simple reward", "random reward", "one token"])
        gaps.set(ylabel="share: RLHF − DPO on all policies", ylim=(-0.4, 1))
        gaps.axhline(0, color=plotting.INK, linewidth=1)
        gaps.set_title("H6: does the gap need a simple reward?")
        return figure

    @classmethod
    def judge(cls, dataset: xr.Dataset) -> list[Claim]:
        offline, learned, true = (dataset["label_share"].sel(learner=name) for name in LABELS)
        better = _accuracy(dataset, gap.RLHF_ADDITIVE) - _accuracy(dataset, gap.DPO_ALL)
        inside, outside = (better.sel(judged_on=law) for law in better["judged_on"].values)
        gaps = _gaps(dataset)
        additive, random, one_token = (over_seeds(gaps.sel(problem=name)) for name in gap.PANELS)
        return [
            claim(
                "H1 fails: labels of a reward model of the same data add nothing. Share of the "
                "optimum's value, online DPO with them minus offline DPO",
                learned - offline,
                surely_within(0.02),
                note="The exact preference of every pair of its own samples, far more than the "
                f"data hold, adds {_brief(true - offline)}.",
            ),
            *_judge_distances(dataset),
            claim(
                "H5 holds: out of distribution the reward model orders more pairs right than the "
                "implicit reward of DPO on all policies, by",
                outside,
                note=f"In distribution too: by {_brief(inside)}.",
            ),
            claim(
                "H6 holds: the gap of RLHF with an additive reward over DPO on all policies goes "
                "with the simplicity of the true reward. Share of the optimum's reward, gap where "
                "it is additive minus gap where it is a random table",
                gaps.sel(problem="simple") - gaps.sel(problem="random"),
                Criterion(lambda apart: apart.low > 0 and additive.low > 0, ""),
                note=f"The gaps: additive {_brief(additive)}, random {_brief(random)}, one token "
                f"{_brief(one_token)}.",
            ),
        ]


class _Keys(NamedTuple):
    """Hold the keys of what one seed decides: the problem, the data of H1 and H2, and training."""

    reward: PRNGKeyArray
    reference: PRNGKeyArray
    noisy_pairs: PRNGKeyArray
    clean_pairs: PRNGKeyArray
    training: PRNGKeyArray


def _count_pairs(
    key: PRNGKeyArray,
    wins: Float[Array, "K K"],
    bandit: CategoricalBandit,
    number: int,
    labels: int,
) -> Float[Array, "K K"]:
    """Label pairs of different samples of the reference; return counts [winner, loser]."""
    pair_key, label_key = jax.random.split(key)
    # The two largest of Gumbel's trick are two draws without replacement.
    noise = jax.random.gumbel(pair_key, (number, bandit.num_arms))
    first, second = jax.lax.top_k(bandit.reference_log_probs + noise, 2)[1].T
    right = jax.random.binomial(label_key, labels, wins[first, second])
    counts = jnp.zeros_like(wins).at[first, second].add(right)
    return counts.at[second, first].add(labels - right)


def _judge_distances(dataset: xr.Dataset) -> list[Claim]:
    distance, steps = dataset["reference_kl"], dataset["step"].values
    last = distance.isel(step=-1)
    moved = last - distance.isel(step=int(np.abs(steps - steps[-1] / 2).argmin()))
    drifts = over_seeds(moved.sel(loss="dpo"))
    ends = {name: float(last.sel(loss=name).mean()) for name in HELD}
    values = dataset["held_value"].isel(step=-1).mean("seed")
    listed = [f"{held.label} {float(values.sel(loss=n)):.2f}" for n, held in HELD.items()]
    return [
        claim(
            "H2 holds where data can be fitted without bound: DPO's own regularisation does not "
            "keep it near the reference, a KL on its own samples does. KL(π‖π_ref) in nats at the "
            "end, DPO minus HyPO",
            last.sel(loss="dpo") - last.sel(loss="hypo"),
            Criterion(
                lambda apart: apart.low > 0 and drifts.low > 0,
                "surely above 0, and DPO surely still moves away",
            ),
            note=f"In the second half of the steps DPO moves by {_brief(drifts)}, HyPO by "
            f"{float(moved.sel(loss='hypo').mean()):+.3f}. They end at DPO {ends['dpo']:.2f}, HyPO "
            f"{ends['hypo']:.2f} nats. The true reward less β KL at the end: {', '.join(listed)}.",
        ),
        claim(
            "What holds RLHF near in the same setting is the prior of its reward, not the second "
            f"stage. KL(π‖π_ref) in nats at the end, RLHF with a prior {WIDER:g} times as wide "
            "minus RLHF with the law of the true rewards as its prior",
            last.sel(loss=WIDE) - last.sel(loss="rlhf"),
            note=f"RLHF ends at {ends['rlhf']:.2f} nats with the narrow prior and at "
            f"{ends[WIDE]:.2f} with the wide one; DPO, which has none, at {ends['dpo']:.2f}.",
        ),
    ]


def _accuracy(dataset: xr.Dataset, learner: str) -> xr.DataArray:
    """Return a learner's accuracy on additive rewards, by the pairs' law and seed."""
    return dataset["accuracy"].sel(problem="simple", gap_learner=learner).rename(gap_seed="seed")


def _gaps(dataset: xr.Dataset) -> xr.DataArray:
    """Return RLHF with an additive reward minus DPO on all policies, by problem and seed."""
    share = dataset["gap_share"].rename(gap_seed="seed")
    small, large = (share.sel(gap_learner=n, drop=True) for n in (gap.RLHF_ADDITIVE, gap.DPO_ALL))
    return small - large


def _brief(samples: xr.DataArray | Interval) -> str:
    interval = samples if isinstance(samples, Interval) else over_seeds(samples)
    # Adding 0 turns a rounded −0 into 0.
    effect, low, high = (round(value, 3) + 0.0 for value in interval)
    return f"{effect:g} [{low:g}, {high:g}]"
