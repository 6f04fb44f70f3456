"""What contrastive training does to the winner and to the loser of its own pairs.

The margin log π(y_w) − log π(y_l) can grow because the winner rises, because the loser falls, or
because both fall and the loser falls faster: the mass then goes to responses that are in no pair.
Which of them happens is followed over the steps, for few training prompts and for many. The data
are those of a preference dataset: one random pair a prompt, labelled by its rewards.
"""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from jaxtyping import Array, Float, Int
from matplotlib.figure import Figure

from bandits import plotting
from bandits.environments import CategoricalBandit, bump_reward, tanh_cauchy_reference
from bandits.keys import split_seed
from bandits.losses import METHODS, switch
from bandits.policies import Params
from bandits.preferences import label_pairs
from bandits.studies.base import Claim, Experiment
from bandits.studies.curves import draw_means, over_seeds, require_not_diverged
from bandits.studies.t24.published import (
    BLOCK_RUNS,
    LEARNING_RATES,
    NUM_ARMS,
    PEAKS,
    Bandit,
    Start,
    make_starts,
)
from bandits.sweeps import static, sweep
from bandits.training import Schedule, from_dataset, on_bandit, train

NAMES = ("preference_likelihood", "dpo", "ipo")
CONTRASTIVE = ("dpo", "ipo")


@dataclass(frozen=True)
class Settings:
    """What is trained.

    Attributes:
      bandit: the problem.
      reward: of `PEAKS`.
      contexts: numbers of training prompts.
      steps: full-batch gradient steps.
      records: how often the log-probabilities are taken.
    """

    bandit: Bandit = field(default_factory=Bandit)
    reward: str = "R1"
    contexts: tuple[int, ...] = (5, 100)
    steps: int = 200
    records: int = 20


def run(settings: Settings) -> xr.Dataset:
    """Every method and number of prompts: log-probabilities relative to the start."""
    bandit = settings.bandit
    policy, group = bandit.policy(), bandit.responses
    record = tuple(np.linspace(0, settings.steps, settings.records + 1).round().astype(int))
    losses = [METHODS[name].bind() for name in NAMES]

    def run_one(
        loss: Int[Array, ""],
        contexts: int,
        seed: Int[Array, ""],
        start: Start,
        learning_rates: Float[Array, " n"],
        reference_log_probs: Float[Array, " K"],
    ) -> dict[str, Array]:
        start_params = jax.tree.map(lambda leaf: leaf[seed], start.params)
        problem = CategoricalBandit(
            bump_reward(NUM_ARMS, PEAKS[settings.reward], bandit.width), reference_log_probs
        )
        everything = contexts * group
        schedule = Schedule(settings.steps, group, everything, everything, settings.steps)
        keys = split_seed(seed)
        collect = on_bandit(
            policy,
            problem,
            schedule,
            prompts=start.contexts[seed, :contexts],
            label=lambda key, rewards: label_pairs(key, rewards, "random"),
        )
        dataset = collect(start_params, keys.data, jnp.int32(0))
        won, lost = (dataset.groups.pair_weights.sum(axis) for axis in (2, 1))
        in_pairs = jnp.zeros((contexts, NUM_ARMS))
        in_pairs = in_pairs.at[jnp.arange(contexts)[:, None], dataset.responses].max(won + lost)

        def of_contexts(params: Params) -> Float[Array, "n K"]:
            return jax.vmap(policy.log_probs, in_axes=(None, 0))(params, dataset.contexts)

        def follow(params: Params) -> dict[str, Array]:
            log_probs = of_contexts(params)
            own = jnp.take_along_axis(log_probs - of_contexts(start_params), dataset.responses, 1)
            return {
                "winner": jnp.sum(won * own) / jnp.sum(won),
                "loser": jnp.sum(lost * own) / jnp.sum(lost),
                "outside": jnp.mean(
                    jnp.sum(jnp.where(in_pairs > 0, 0.0, jnp.exp(log_probs)), axis=1)
                ),
            }

        return train(
            keys.training, policy, start_params, switch(loss, losses),
            from_dataset(dataset, schedule), schedule, optax.adam(learning_rates[loss]),
            follow, record,
        )  # fmt: skip

    results = sweep(
        run_one,
        {
            "loss": np.arange(len(NAMES)),
            "contexts": static(settings.contexts),
            "seed": np.arange(bandit.seeds),
        },
        fixed={
            "start": make_starts(bandit),
            "learning_rates": np.array([LEARNING_RATES[METHODS[n].family] for n in NAMES]),
            "reference_log_probs": tanh_cauchy_reference(NUM_ARMS),
        },
        dims=["step"],
        coords={"step": list(record)},
        attributes={
            "winner": {"long_name": "winner's log-probability over its start", "units": "nats"},
            "loser": {"long_name": "loser's log-probability over its start", "units": "nats"},
            "outside": {"long_name": "mass on responses in no pair", "units": "1"},
            "step": {"long_name": "gradient steps", "units": "1"},
        },
        block_runs=BLOCK_RUNS,
    ).assign_coords(loss=list(NAMES))
    require_not_diverged(results)
    return results


def plot(dataset: xr.Dataset) -> Figure:
    """A row a number of prompts: winner, loser, and the mass outside the pairs, over steps."""
    counts = dataset["contexts"].values
    bottom, top = 0.8, 0.6  # inches, so that the labels fit below any number of rows
    height = 4.2 * len(counts) + bottom + top
    figure = plotting.new_figure(16, height)
    panels = figure.subplots(len(counts), 3, sharex=True, squeeze=False)
    figure.subplots_adjust(0.07, bottom / height, 0.985, 1 - top / height, wspace=0.28, hspace=0.22)
    for row, count in zip(panels, counts, strict=True):
        for axes, quantity in zip(row, ("winner", "loser", "outside"), strict=True):
            for name in NAMES:
                one = dataset[quantity].sel(loss=name, contexts=count)
                draw_means(axes, one, "step", name, marker="")
            axes.set_title(f"{_TITLES[quantity]}, {count} prompts")
        for axes in row[:2]:
            axes.axhline(0, color=plotting.INK, linewidth=1, linestyle=":")
            axes.set_ylabel("nats over its start")
        row[2].set(ylim=(0, 1), ylabel="probability")
    for axes in panels[-1]:
        axes.set_xlabel("gradient steps")
    panels[0, 0].legend(loc="best")
    return figure


def judge(dataset: xr.Dataset) -> list[Claim]:
    """Margins, and where the winner and the loser are, at the end; by seed."""
    final = dataset.isel(step=-1)
    margin = final["winner"] - final["loser"]
    few, many = dataset["contexts"].values[[0, -1]]
    claims = []
    for name in CONTRASTIVE:
        label = plotting.METHOD_LABELS[name]
        wider = over_seeds(margin.sel(loss=name) - margin.sel(loss="preference_likelihood"))
        claims.append(
            EXPERIMENT.claim(
                f"{label}'s margin exceeds that of Pref-FT by this many nats",
                wider,
                wider.low > 0,
                asserted=False,
                note=_when_wider(dataset, name),
            )
        )
        winner, loser = (final[q].sel(loss=name) for q in ("winner", "loser"))
        rises, falls = over_seeds(winner.sel(contexts=few)), over_seeds(loser.sel(contexts=few))
        claims.append(
            EXPERIMENT.claim(
                f"With {few} prompts {label} raises the winner and lowers the loser: the winner's "
                "rise in nats",
                rises,
                rises.low > 0 and falls.high < 0,
                asserted=False,
                note=f"The loser moves by {falls.effect:+.1f} nats; "
                f"{_highest(dataset, name, few)}.",
            )
        )
        winner, loser = winner.sel(contexts=many), loser.sel(contexts=many)
        fallen = over_seeds(winner)
        lost = over_seeds(loser)
        least = float(dataset["winner"].sel(loss=name, contexts=many).mean("seed").min())
        claims.append(
            EXPERIMENT.claim(
                f"With {many} prompts {label} lowers both while the margin grows: the winner's "
                "rise in nats (holds if surely negative, the loser's too, and the margin positive)",
                fallen,
                fallen.high < 0 and lost.high < 0 and over_seeds(winner - loser).low > 0,
                asserted=name == "ipo",
                note=f"The loser moves by {lost.effect:+.1f} nats; the winner's lowest mean on the "
                f"way is {least:+.2f}.",
            )
        )
        outside = dataset["outside"].sel(loss=name, contexts=many)
        moved = over_seeds(outside.isel(step=-1) - outside.isel(step=0))
        claims.append(
            EXPERIMENT.claim(
                f"The mass goes to other responses: what responses in no pair gain under {label} "
                f"with {many} prompts",
                moved,
                moved.low > 0,
                asserted=name == "ipo",
            )
        )
    return claims


def _highest(dataset: xr.Dataset, name: str, contexts: int) -> str:
    mean = dataset["winner"].sel(loss=name, contexts=contexts).mean("seed")
    step = int(mean["step"][int(mean.argmax("step"))])
    return f"the winner's mean is highest after {step} steps, {float(mean.max()):+.2f}"


def _when_wider(dataset: xr.Dataset, name: str) -> str:
    """The steps at which the mean margin exceeds that of Pref-FT, for each number of prompts."""
    margin = (dataset["winner"] - dataset["loser"]).mean("seed")
    wider = margin.sel(loss=name) > margin.sel(loss="preference_likelihood")
    parts = []
    for count in dataset["contexts"].values:
        steps = dataset["step"].values[wider.sel(contexts=count).values]
        span = f"from step {steps[0]} to {steps[-1]}" if steps.size else "at no step"
        parts.append(f"with {count} prompts it does {span}")
    return f"By the means, {'; '.join(parts)}."


_TITLES = {"winner": "Winner", "loser": "Loser", "outside": "Mass in no pair"}

EXPERIMENT = Experiment(
    name="preference_log_probs",
    source="T24, section 5.2",
    question="Does a contrastive loss raise the winner, or only lower the loser more?",
    full=Settings(),
    quick=Settings(bandit=Bandit(seeds=3), contexts=(20,), steps=60, records=6),
    run=run,
    plot=plot,
    judge=judge,
)
