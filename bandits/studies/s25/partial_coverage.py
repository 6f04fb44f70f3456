"""Show what breaks when a response is in no pair: the lecture's table, and the paths to it.

There are three responses; the data say once that the first is better than the second, and nothing
of the third. There are two settings. In a table the winner is unlikely. With the lecture's
reference, the policy's third response shares the winner's feature, so that it rises with it; in a
table with that reference it only falls. RLHF learns a reward for each response, and then it knows
nothing good of the third; or a reward that shares the feature too, and then it equals DPO. All
updates are exact: the group is the whole space, and Adam moves the parameters.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from jax.typing import ArrayLike
from jaxtyping import Array, Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bandits import plotting
from bandits.losses import METHODS, Loss, make_group
from bandits.policies import log_linear
from bandits.problems.environments import CategoricalBandit
from bandits.problems.reward_models import fit_linear, fit_tabular
from bandits.studies.curves import require_not_diverged, with_legend
from bandits.studies.expected import bind_known
from bandits.studies.intervals import share_interval
from bandits.studies.study import ALWAYS, Claim, Criterion, Study, above, below, claim
from bandits.sweeps import choices, sweep
from bandits.training import PairsOfPolicy, Schedule, on_whole_space, own_pairs, train
from bandits.training.descent import log_spaced_steps
from theory import gibbs, partial_coverage

LEARNERS = {
    "DPO": "dpo",
    "IPO": "ipo",
    "RLHF, a reward for each response": "rlhf",
    "RLHF, reward and policy of one class": "rlhf",
    "HyPO": "hypo",
    "online DPO": "online_dpo",
}
"""The name of each learner, and its method; two-stage RLHF has two classes of rewards."""

TABLE_REWARD, SAME_CLASS = list(LEARNERS)[2:4]
REMEDIES = (TABLE_REWARD, "HyPO", "online DPO")
RESPONSES = ["ξ1", "ξ2", "ξ3"]
PAIR = np.array([[0, 1, 0], [0, 0, 0], [0, 0, 0]])
"""ξ1 ≻ ξ2, the only preference."""

UNLIKELY, SHARED = "unlikely winner", "shared features"
TITLES = {
    UNLIKELY: "A table, where the winner is unlikely",
    SHARED: "ξ3 shares the winner's feature",
}


class Setting(NamedTuple):
    """Say where paths start, and what moves together."""

    features: Float[Array, "3 F"]  # of the policy
    reference: Float[Array, " 3"]  # log π_ref
    rewards: Float[Array, "2 3"]  # fitted to the pair: one for each response, one for each feature


class Learner(NamedTuple):
    """Say what moves the policy: the loss, the pairs, and which of the rewards it has learned."""

    loss: Loss
    pairs: PairsOfPolicy
    reward: int


class PartialCoverage(Study):
    """Compute optima of the one pair, descents of every learner, and RLHF's bound."""

    source = "S25: partial coverage; arXiv:2406.01462"
    question = "What does DPO do to a response that is in no pair, and who holds it?"
    quick = {"steps": 1500, "instances": 200}

    reference: tuple[float, ...] = (0.5, 0.5, 0.0)  # the lecture's, which excludes ξ3
    smoothing: float = 1e-3  # what a softmax, which knows no zero, gives ξ3 instead
    unlikely_winner: tuple[float, ...] = (0.001, 0.499, 0.5)  # another reference
    shared_feature: tuple[float, ...] = (1.0, 0.0, 2.0)  # of the responses, where they share one
    true_reward: tuple[float, ...] = (1.0, 0.0, -1.0)  # labels the pairs that online DPO draws
    uncovered_mass: float = 0.9  # of the DPO optimum that the lecture shows
    beta: float = 0.1  # of DPO and of the KL penalty
    kl_coefficient: float = 0.1  # λ of HyPO
    # Of the reward model, 1/s² for a prior of s nats of log-odds; without it the one label makes
    # the reward infinite.
    ridge: float = 1e-3
    learning_rate: float = 0.02  # of Adam
    steps: int = 3000  # of it
    instances: int = 2000  # random problems on which RLHF's bound is tried
    seed: int = 0  # of those

    def run(self) -> xr.Dataset:
        winner, loser, _ = self.unlikely_winner
        with jax.enable_x64(True):
            with np.errstate(divide="ignore"):
                log_reference = np.log(self.reference)
            fitted = fit_tabular(PAIR, self.ridge)
            rlhf = gibbs.gibbs_log_probs(fitted, log_reference, self.beta)
            dpo = partial_coverage.dpo_optimum(log_reference, PAIR, self.uncovered_mass)
            table = np.exp([np.asarray(row) for row in (log_reference, rlhf, dpo)])
            without_loser = self._draw_without_loser(dpo)
            optima = np.asarray(partial_coverage.is_dpo_optimum(without_loser, PAIR))
            losses = np.asarray(dpo_losses(without_loser, log_reference, self.beta))
            share = self._largest_share_of_bound()
        parked = partial_coverage.ipo_parking(winner, loser, self._parking_tau).uncovered
        dataset = xr.Dataset(
            {
                "table": (("policy", "response"), table),
                "dpo_optima": ("policy_without_loser", optima),
                "dpo_losses": ("policy_without_loser", losses),
                "share_of_bound": ("instance", share),
                "peak": float(partial_coverage.displacement_peak(winner, loser)),
                "parked": float(parked),
            },
            coords={"policy": ["reference", "RLHF", "DPO"], "response": RESPONSES},
        )
        return xr.merge([dataset, self._follow(np.asarray(fitted))])

    def _draw_without_loser(self, row: ArrayLike) -> np.ndarray:
        """Return the row of the table, then random policies that give the loser nothing."""
        shares = np.random.default_rng(self.seed).uniform(size=self.instances)
        nothing = np.full_like(shares, -np.inf)
        drawn = np.stack([np.log(shares), nothing, np.log1p(-shares)], axis=1)
        return np.vstack([row, drawn])

    def _largest_share_of_bound(self) -> np.ndarray:
        """Return the largest π*/(π_ref e^{2R/β}) of RLHF on each random problem; 1 at most."""
        random = np.random.default_rng(self.seed)
        bound = random.uniform(0.1, 3.0, self.instances)
        beta = random.uniform(0.05, 2.0, self.instances)
        reward = random.uniform(-1.0, 1.0, (self.instances, 3)) * bound[:, None]
        reference = np.log(random.dirichlet(np.ones(3), self.instances))
        policy = gibbs.gibbs_log_probs(reward, reference, beta)
        excess = policy - partial_coverage.rlhf_bound(reference, bound, beta)
        return np.exp(np.asarray(excess).max(axis=-1))

    @property
    def _parking_tau(self) -> float:
        """Return the τ for which IPO parks where the unlikely winner's uncovered mass peaks."""
        winner, loser, _ = self.unlikely_winner
        return 0.5 / float(partial_coverage.peak_margin(winner, loser))

    def _follow(self, fitted: np.ndarray) -> xr.Dataset:
        """Train every learner in every setting, in one program."""
        recorded = log_spaced_steps(self.steps, per_decade=40)

        def run_one(setting: Setting, learner: Learner) -> dict[str, Array]:
            policy = log_linear(setting.features, setting.reference)
            bandit = CategoricalBandit(setting.rewards[learner.reward], setting.reference)
            return train(
                jax.random.key(0),
                policy,
                jnp.zeros(3),
                learner.loss,
                on_whole_space(policy, bandit, learner.pairs),
                Schedule.whole_space(self.steps, 3),
                optax.adam(self.learning_rate),
                lambda theta: {"probability": jnp.exp(policy.log_probs(theta))},
                recorded,
            )

        return require_not_diverged(
            sweep(
                run_one,
                {"setting": choices(self._settings(fitted)), "learner": choices(self._learners())},
                dims=["step", "response"],
                coords={"step": list(recorded), "response": RESPONSES},
                attributes={"probability": {"long_name": "probability", "units": "1"}},
            )
        )

    def _settings(self, fitted: np.ndarray) -> dict[str, Setting]:
        """Return both settings; ``fitted`` is the reward that is learned for each response."""
        smooth = np.array(self.reference) + self.smoothing * np.eye(3)[2]
        shared = np.array(self.shared_feature)[:, None] * np.eye(3)[0]
        in_class = shared @ np.asarray(fit_linear(shared, PAIR, self.ridge))
        table = (np.eye(3), np.log(self.unlikely_winner), np.stack([fitted, fitted]))
        sharing = (shared, np.log(smooth / smooth.sum()), np.stack([fitted, in_class]))
        return {
            UNLIKELY: Setting(*map(jnp.asarray, table)),
            SHARED: Setting(*map(jnp.asarray, sharing)),
        }

    def _learners(self) -> dict[str, Learner]:
        """Return every learner: online DPO labels its own pairs, all others have the one."""
        rewards = np.array(self.true_reward)
        own = own_pairs(jnp.asarray(rewards[:, None] > rewards, float))
        hyperparameters = {
            "beta": self.beta,
            "tau": self._parking_tau,
            "kl_coefficient": self.kl_coefficient,
        }

        def the_pair(_: Float[Array, " 3"]) -> Float[Array, "3 3"]:
            return jnp.asarray(PAIR, float)

        return {
            name: Learner(
                bind_known(METHODS[method], **hyperparameters),
                own if name == "online DPO" else the_pair,
                int(name == SAME_CLASS),
            )
            for name, method in LEARNERS.items()
        }

    @classmethod
    def plot(cls, dataset: xr.Dataset) -> Figure:
        """Draw the table, and the uncovered mass over training in each setting."""
        figure = plotting.new_figure(15, 6)
        first, *panels = figure.subplots(1, 3, width_ratios=[0.85, 1, 1])
        figure.subplots_adjust(0.045, 0.26, 0.99, 0.91, wspace=0.2)
        _draw_table(first, dataset["table"])
        lines = dataset["probability"].sel(response="ξ3").isel(step=slice(1, None))
        for (setting, title), axes in zip(TITLES.items(), panels, strict=True):
            for learner, method in LEARNERS.items():
                one = lines.sel(setting=setting, learner=learner)
                line = "-" if learner == SAME_CLASS else plotting.METHOD_LINES[method]
                color = plotting.METHOD_COLORS[method]
                axes.plot(one["step"], one, line, color=color, label=learner)
            axes.set(title=title, xscale="log", ylim=(-0.03, 1.03), xlabel="gradient steps")
        panels[0].set_ylabel("probability of ξ3, in no pair")
        return with_legend(figure, panels[0], ncols=3)

    @classmethod
    def judge(cls, dataset: xr.Dataset) -> list[Claim]:
        uncovered = dataset["probability"].sel(response="ξ3")
        leaks, unlikely = (uncovered.sel(setting=setting) for setting in (SHARED, UNLIKELY))
        path = dataset["probability"].sel(setting=SHARED, learner="DPO")
        optimum = dataset["table"].sel(policy="DPO", drop=True)
        distance = 0.5 * abs(path - optimum).sum("response", skipna=False)
        leaked = float(leaks.sel(learner="DPO").max(skipna=False))
        held = leaks.sel(learner=list(REMEDIES)).max(skipna=False)
        most = {name: float(unlikely.sel(learner=name).max(skipna=False)) for name in LEARNERS}
        peak, parked = float(dataset["peak"]), float(dataset["parked"])
        broken = leaks.sel(learner="DPO").max() / leaks.isel(learner=0, step=0) / np.exp(2.0)
        return [
            *_judge_optima(dataset),
            claim(
                "Descent goes there when features are shared: least total variation distance "
                "between the path of DPO and that row",
                distance.min(skipna=False),
                below(0.02),
                note=f"It goes on to {float(leaks.sel(learner='DPO')[-1]):.3f} on the uncovered "
                "response.",
            ),
            claim(
                "RLHF whose reward shares the feature too goes the same way: its mass on the "
                "uncovered response at the end",
                leaks.sel(learner=SAME_CLASS)[-1],
                above(0.95),
                note="In one class the two methods are equal; only a reference of exactly zero "
                "holds.",
            ),
            claim(
                "RLHF with a reward for each response, HyPO and online DPO hold the uncovered "
                f"response there: largest mass of the three on it, of DPO {leaked:.2f}",
                held,
                Criterion(lambda most: most.effect < 0.25 * leaked, "below a quarter of that"),
                note="Not so with the unlikely winner, where the reference has half its mass on "
                f"it: RLHF passes through {most[TABLE_REWARD]:.2f} on its way to the winner, HyPO "
                f"stays at {float(unlikely.sel(learner='HyPO')[-1]):.2f}, online DPO never exceeds "
                f"{most['online DPO']:.2f}.",
            ),
            claim(
                "With an unlikely winner a table leaks on the way: largest mass of DPO on the "
                f"uncovered response (closed form {peak:.3f}; holds if within 0.005)",
                most["DPO"],
                Criterion(lambda interval: abs(interval.effect - peak) < 0.005, ""),
            ),
            claim(
                "and IPO stays for ever where its τ says, here at that peak: mass on the uncovered "
                f"response at the end (closed form {parked:.3f}; holds if within 0.005)",
                unlikely.sel(learner="IPO")[-1],
                Criterion(lambda interval: abs(interval.effect - parked) < 0.005, ""),
            ),
            claim(
                "With |r| <= R RLHF never exceeds π_ref e^{2R/β}: share of random problems",
                share_interval(dataset["share_of_bound"] <= 1 + 1e-9),
                ALWAYS,
                note="DPO knows no bound: with shared features it goes "
                f"{float(broken):,.0f} times above that of R = β = 1.",
            ),
        ]


def _judge_optima(dataset: xr.Dataset) -> list[Claim]:
    """Judge the table, and whether DPO's loss is 0 wherever it says so."""
    table = dataset["table"]
    rows = {str(name): table.sel(policy=name).values.tolist() for name in table["policy"].values}
    written = "; ".join(
        f"{name} ({', '.join(f'{round(v, 3):g}' for v in row)})" for name, row in rows.items()
    )
    off = 0.5 * np.abs(np.array(rows["RLHF"]) - [1.0, 0.0, 0.0]).sum()
    return [
        claim(
            "RLHF gives (1, 0, 0), and leaves the uncovered response at the zero that the "
            "reference gives it: total variation from it",
            off,
            Criterion(lambda off: off.effect < 0.005 and rows["RLHF"][2] == 0, "below 0.005"),
            note=f"The table: {written}.",
            table=rows,
        ),
        claim(
            "DPO does not: every policy that gives the loser nothing attains the infimum of its "
            "loss, 0, the table's last row included. Share of random such policies with a loss "
            "below 1e-9 nats when the loser has e^-1000",
            share_interval((dataset["dpo_losses"] < 1e-9) & dataset["dpo_optima"]),
            ALWAYS,
        ),
    ]


def dpo_losses(
    policies: Float[ArrayLike, "n 3"], log_reference: Float[ArrayLike, " 3"], beta: float
) -> Float[Array, " n"]:
    """Return DPO's loss of the pair, near policies without the loser: it is given e^-1000."""
    loss = METHODS["dpo"].bind(beta=beta)

    def near(log_probs: Float[Array, " 3"]) -> Float[Array, ""]:
        held = jnp.maximum(log_probs, -1000.0)
        group = make_group(held, jnp.zeros(3), reference_log_probs=log_reference, preferences=PAIR)
        return loss(group)

    return jax.vmap(near)(jnp.asarray(policies))


def _draw_table(axes: Axes, table: xr.DataArray) -> None:
    """Draw probabilities as rows of bars, so that they are read at a glance."""
    rows = table["policy"].values
    for y, policy in enumerate(rows):
        for x, value in enumerate(table.sel(policy=policy).values):
            color = plotting.PUSHED if x == 2 else plotting.RAISED
            axes.barh(-y, 0.8 * value, left=x, height=0.42, color=color)
            axes.text(x, -y + 0.27, f"{round(value, 3):g}", fontsize=15)
    names = ["π_ref" if name == "reference" else name for name in rows]
    axes.set_yticks([-y for y in range(len(rows))], names)
    axes.set_xticks([0.4, 1.4, 2.4], ["ξ1\nwins", "ξ2\nloses", "ξ3\nin no pair"])
    axes.set(title="Optima", xlim=(-0.05, 3), ylim=(0.6 - len(rows), 0.6))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
