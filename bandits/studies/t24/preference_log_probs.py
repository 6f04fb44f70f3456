"""Follow the winner and the loser of its own pairs through contrastive training.

The margin log π(y_w) − log π(y_l) can grow because the winner rises, because the loser falls, or
because both fall and the loser falls faster: the mass then goes to responses that are in no pair.
Which of them happens may depend on the number of training prompts. The data are one random pair
for each prompt, labelled by its rewards.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from jaxtyping import Array, Float, Int
from matplotlib.figure import Figure

from bandits import plotting
from bandits.keys import split_seed
from bandits.policies import Params
from bandits.problems.preferences import label_pairs
from bandits.studies.curves import draw_means, over_seeds
from bandits.studies.study import Claim, Criterion, Study, claim
from bandits.studies.t24.published import NUM_ARMS, PEAKS, Bandit, Learner, Start
from bandits.sweeps import static
from bandits.training import Schedule, from_dataset, on_bandit, train

LIKELIHOOD, CONTRASTIVE = "preference_likelihood", ("dpo", "ipo")
NAMES = (LIKELIHOOD, *CONTRASTIVE)


class PreferenceLogProbs(Study):
    """Record log-probabilities of winners and losers, by method and number of prompts."""

    source = "T24, section 5.2"
    question = "Does a contrastive loss raise the winner, or only lower the loser more?"
    quick = {"bandit": Bandit(seeds=3), "contexts": (20,), "steps": 60, "records": 6}

    bandit: Bandit = Bandit()
    reward: str = "R1"  # of `PEAKS`
    contexts: tuple[int, ...] = (5, 100)  # numbers of training prompts
    steps: int = 200  # full-batch gradient steps
    records: int = 20  # how often the log-probabilities are taken

    ATTRIBUTES = {
        "winner": {"long_name": "winner's log-probability over its start", "units": "nats"},
        "loser": {"long_name": "loser's log-probability over its start", "units": "nats"},
        "outside": {"long_name": "mass on responses in no pair", "units": "1"},
        "step": {"long_name": "gradient steps", "units": "1"},
    }
    TITLES = {"winner": "Winner", "loser": "Loser", "outside": "Mass in no pair"}

    def run(self) -> xr.Dataset:
        axes = {"contexts": static(self.contexts)}
        return self.bandit.sweep(self._train, NAMES, axes, self._recorded(), self.ATTRIBUTES)

    def _recorded(self) -> list[int]:
        return np.linspace(0, self.steps, self.records + 1).round().astype(int).tolist()

    def _train(
        self,
        loss: Learner,
        contexts: int,
        seed: Int[Array, ""],
        start: Start,
        reference_log_probs: Float[Array, " K"],
    ) -> dict[str, Array]:
        """Train on one dataset of pairs and return what happens to them, by recorded step."""
        bandit, keys = self.bandit, split_seed(seed)
        policy, group = bandit.policy(), bandit.responses
        start_params = jax.tree.map(lambda leaf: leaf[seed], start.params)
        everything = contexts * group
        schedule = Schedule(self.steps, group, everything, everything, self.steps)
        collect = on_bandit(
            policy,
            bandit.problem(PEAKS[self.reward], reference_log_probs),
            schedule,
            prompts=start.contexts[seed, :contexts],
            label=lambda key, rewards: label_pairs(key, rewards, "random"),
        )
        dataset = collect(start_params, keys.data, jnp.int32(0))
        won, lost = (dataset.groups.pair_weights.sum(axis) for axis in (2, 1))
        in_pairs = jnp.zeros((contexts, NUM_ARMS))
        in_pairs = in_pairs.at[jnp.arange(contexts)[:, None], dataset.responses].max(won + lost)

        on_contexts = jax.vmap(policy.log_probs, in_axes=(None, 0))

        def measure(params: Params) -> dict[str, Array]:
            log_probs = on_contexts(params, dataset.contexts)
            rise = log_probs - on_contexts(start_params, dataset.contexts)
            own = jnp.take_along_axis(rise, dataset.responses, 1)
            outside = jnp.sum(jnp.where(in_pairs > 0, 0.0, jnp.exp(log_probs)), axis=1)
            return {
                "winner": jnp.sum(won * own) / jnp.sum(won),
                "loser": jnp.sum(lost * own) / jnp.sum(lost),
                "outside": jnp.mean(outside),
            }

        return train(
            keys.training, policy, start_params, loss.loss, from_dataset(dataset, schedule),
            schedule, optax.adam(loss.learning_rate), measure, self._recorded(),
        )  # fmt: skip

    @classmethod
    def plot(cls, dataset: xr.Dataset) -> Figure:
        """Draw a row for each number of prompts: winner, loser, and the mass outside the pairs."""
        counts = dataset["contexts"].values
        bottom, top = 0.8, 0.6  # inches, so that the labels fit below any number of rows
        height = 4.2 * len(counts) + bottom + top
        edges = (0.07, bottom / height, 0.985, 1 - top / height)
        figure, panels = plotting.new_grid(
            len(counts), 3, 16, height, edges, 0.28, 0.22, sharex=True, sharey=False
        )
        for row, count in zip(panels, counts, strict=True):
            for axes, (quantity, title) in zip(row, cls.TITLES.items(), strict=True):
                for name in NAMES:
                    one = dataset[quantity].sel(loss=name, contexts=count)
                    draw_means(axes, one, "step", name, marker="")
                axes.set_title(f"{title}, {count} prompts")
            for axes in row[:2]:
                axes.axhline(0, color=plotting.INK, linewidth=1, linestyle=":")
                axes.set_ylabel("nats over its start")
            row[2].set(ylim=(0, 1), ylabel="probability")
        for axes in panels[-1]:
            axes.set_xlabel("gradient steps")
        panels[0, 0].legend(loc="best")
        return figure

    @classmethod
    def judge(cls, dataset: xr.Dataset) -> list[Claim]:
        return [claim for name in CONTRASTIVE for claim in _claims_of(dataset, name)]


def _claims_of(dataset: xr.Dataset, name: str) -> list[Claim]:
    """Return the claims about a contrastive method, at the last step but for the notes."""
    label, is_ipo = plotting.METHOD_LABELS[name], name == "ipo"
    final, one = dataset.isel(step=-1), dataset.sel(loss=name)
    few, many = dataset["contexts"].values[[0, -1]]
    margins = final["winner"] - final["loser"]
    at_few, at_many = (one.sel(contexts=count) for count in (few, many))
    loser_of_few = over_seeds(at_few["loser"].isel(step=-1))
    loser_of_many = over_seeds(at_many["loser"].isel(step=-1))
    margin_of_many = over_seeds(margins.sel(loss=name, contexts=many))
    highest = at_few["winner"].mean("seed")
    return [
        claim(
            f"{label}'s margin exceeds that of Pref-FT by this many nats",
            margins.sel(loss=name) - margins.sel(loss=LIKELIHOOD),
            asserted=False,
            note=_when_wider(dataset, name),
        ),
        claim(
            f"With {few} prompts {label} raises the winner and lowers the loser: the winner's rise "
            "in nats",
            at_few["winner"].isel(step=-1),
            Criterion(lambda rise: rise.low > 0 and loser_of_few.high < 0, ""),
            asserted=False,
            note=f"The loser moves by {loser_of_few.effect:+.1f} nats; the winner's mean is "
            f"highest after {int(highest.idxmax())} steps, {float(highest.max()):+.2f}.",
        ),
        claim(
            f"With {many} prompts {label} lowers both while the margin grows: the winner's rise in "
            "nats",
            at_many["winner"].isel(step=-1),
            Criterion(
                lambda rise: rise.high < 0 and loser_of_many.high < 0 and margin_of_many.low > 0,
                "surely negative, the loser's too, and the margin positive",
            ),
            asserted=is_ipo,
            note=f"The loser moves by {loser_of_many.effect:+.1f} nats; the winner's lowest mean "
            f"on the way is {float(at_many['winner'].mean('seed').min()):+.2f}.",
        ),
        claim(
            f"The mass goes to other responses: what responses in no pair gain under {label} with "
            f"{many} prompts",
            at_many["outside"].isel(step=-1) - at_many["outside"].isel(step=0),
            asserted=is_ipo,
        ),
    ]


def _when_wider(dataset: xr.Dataset, name: str) -> str:
    """Say when the mean margin exceeds that of Pref-FT, for each number of prompts."""
    margin = (dataset["winner"] - dataset["loser"]).mean("seed")
    wider = margin.sel(loss=name) > margin.sel(loss=LIKELIHOOD)
    parts = []
    for count in dataset["contexts"].values:
        steps = dataset["step"].values[wider.sel(contexts=count).values]
        span = f"from step {steps[0]} to {steps[-1]}" if steps.size else "at no step"
        parts.append(f"with {count} prompts it does {span}")
    return f"By the means, {'; '.join(parts)}."
