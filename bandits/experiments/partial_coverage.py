"""What breaks when a response is in no pair: the lecture's table, and the paths that lead there.

Three responses; the data say once that the first is better than the second, and nothing of the
third. Two settings: a table whose winner is unlikely, and the lecture's reference with a policy
whose third response shares the winner's feature, so that it rises with it. (In a table with the
lecture's reference the third response only falls.) All updates are exact: the group is the whole
space, and Adam moves the parameters.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from jaxtyping import Array, Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bandits import plotting
from bandits.descent import log_spaced_steps
from bandits.environments import CategoricalBandit
from bandits.experiments.base import Claim, Experiment
from bandits.experiments.curves import require_converged
from bandits.experiments.intervals import exact, proportion_interval
from bandits.losses import METHODS, make_group, switch
from bandits.policies import log_linear
from bandits.reward_models import fit_tabular
from bandits.sweeps import sweep
from bandits.training import Schedule, on_whole_space, own_pairs, train
from theory import gibbs, partial_coverage

NAMES = ("dpo", "ipo", "rlhf", "hypo", "online_dpo")
REMEDIES = ("rlhf", "hypo", "online_dpo")
PAIR = np.array([[0, 1, 0], [0, 0, 0], [0, 0, 0]])
"""ξ1 ≻ ξ2, the only preference."""

TITLES = {
    "unlikely winner": "A table, where the winner is unlikely",
    "shared features": "ξ3 shares the winner's feature",
}


@dataclass(frozen=True)
class Settings:
    """The problem and the descents.

    Attributes:
      reference: the lecture's, which excludes ξ3.
      smoothing: the probability that a softmax, which knows no zero, gives ξ3 instead.
      unlikely_winner: another reference.
      shared_feature: of the three responses, where they share one.
      true_reward: labels the pairs that online DPO draws; ξ3 is the worst.
      uncovered_mass: of the DPO optimum that the lecture shows.
      beta: of DPO and of the KL penalty.
      kl_coefficient: λ of HyPO.
      ridge: of the reward model, without which one pair makes it infinite.
      learning_rate: of Adam.
      steps: of it.
      instances: random problems on which RLHF's bound is tried.
      seed: of those.
    """

    reference: tuple[float, ...] = (0.5, 0.5, 0.0)
    smoothing: float = 1e-3
    unlikely_winner: tuple[float, ...] = (0.001, 0.499, 0.5)
    shared_feature: tuple[float, ...] = (1.0, 0.0, 2.0)
    true_reward: tuple[float, ...] = (1.0, 0.0, -1.0)
    uncovered_mass: float = 0.9
    beta: float = 0.1
    kl_coefficient: float = 0.1
    ridge: float = 1e-3
    learning_rate: float = 0.02
    steps: int = 3000
    instances: int = 2000
    seed: int = 0


def run(settings: Settings) -> xr.Dataset:
    """The table, the paths of each method in each setting, and the bound on random problems."""
    with jax.enable_x64(True):
        reference = np.array(settings.reference)
        with np.errstate(divide="ignore"):
            log_reference = np.log(reference)
        fitted = np.asarray(fit_tabular(PAIR, settings.ridge))
        table = {
            "reference": log_reference,
            "RLHF": gibbs.gibbs_log_probs(fitted, log_reference, settings.beta),
            "DPO": partial_coverage.dpo_optimum(log_reference, PAIR, settings.uncovered_mass),
        }
        # The limit at which the loser vanishes, in numbers: its probability is e^-1000.
        limit = make_group(
            jnp.maximum(table["DPO"], -1000.0),
            fitted,
            reference_log_probs=log_reference,
            preferences=PAIR,
        )
        loss = float(METHODS["dpo"].bind(beta=settings.beta)(limit))
        ratio = _largest_share_of_bound(settings)
    paths = _follow(settings, fitted)
    winner, loser, _ = settings.unlikely_winner
    dataset = xr.Dataset(
        {
            "table": (("policy", "response"), np.exp([np.asarray(row) for row in table.values()])),
            "dpo_loss": loss,
            "share_of_bound": ("instance", ratio),
            "peak": float(partial_coverage.displacement_peak(winner, loser)),
            "parked": float(
                partial_coverage.ipo_parking(winner, loser, _parking_tau(settings)).uncovered
            ),
        },
        coords={"policy": list(table), "response": ["ξ1", "ξ2", "ξ3"]},
    )
    return xr.merge([dataset, paths])


def _parking_tau(settings: Settings) -> float:
    """IPO's τ whose target is where the unlikely winner's uncovered mass peaks."""
    winner, loser, _ = settings.unlikely_winner
    return 0.5 / float(partial_coverage.peak_margin(winner, loser))


def _follow(settings: Settings, fitted: np.ndarray) -> xr.Dataset:
    """Every method from the start in every setting: one program."""
    smooth = np.array(settings.reference) + settings.smoothing * np.eye(3)[2]
    references = np.stack([settings.unlikely_winner, smooth / smooth.sum()])
    shared = np.array(settings.shared_feature)[:, None] * np.eye(3)[0]
    losses = [
        METHODS["dpo"].bind(beta=settings.beta),
        METHODS["ipo"].bind(tau=_parking_tau(settings)),
        METHODS["rlhf"].bind(beta=settings.beta),
        METHODS["hypo"].bind(beta=settings.beta, kl_coefficient=settings.kl_coefficient),
        METHODS["online_dpo"].bind(beta=settings.beta),
    ]
    rewards = np.array(settings.true_reward)
    wins = jnp.asarray(rewards[:, None] > rewards, float)
    recorded = log_spaced_steps(settings.steps, per_decade=40)
    schedule = Schedule.whole_space(settings.steps, 3)

    def run_one(
        setting: Int[Array, ""],
        loss: Int[Array, ""],
        features: Float[Array, "2 3 F"],
        references: Float[Array, "2 3"],
        fitted: Float[Array, " 3"],
        pair: Float[Array, "3 3"],
    ) -> dict[str, Array]:
        policy = log_linear(features[setting], references[setting])
        own = own_pairs(wins)
        collect = on_whole_space(
            policy,
            CategoricalBandit(fitted, references[setting]),
            lambda log_probs: jnp.where(loss == NAMES.index("online_dpo"), own(log_probs), pair),
        )
        return train(
            jax.random.key(0),
            policy,
            jnp.zeros(3),
            switch(loss, losses),
            collect,
            schedule,
            optax.adam(settings.learning_rate),
            lambda theta: {"probability": jnp.exp(policy.log_probs(theta))},
            recorded,
        )

    dataset = sweep(
        run_one,
        {"setting": np.arange(len(TITLES)), "loss": np.arange(len(NAMES))},
        fixed={
            "features": np.stack([np.eye(3), shared]).astype(np.float32),
            "references": np.log(references).astype(np.float32),
            "fitted": fitted.astype(np.float32),
            "pair": PAIR.astype(np.float32),
        },
        dims=["step", "response"],
        coords={"step": list(recorded), "response": ["ξ1", "ξ2", "ξ3"]},
        attributes={"probability": {"long_name": "probability", "units": "1"}},
    ).assign_coords(setting=list(TITLES), loss=list(NAMES))
    require_converged(dataset)
    return dataset


def _largest_share_of_bound(settings: Settings) -> np.ndarray:
    """Largest π*/(π_ref e^{2R/β}) of RLHF on random rewards, references and β; at most 1."""
    random = np.random.default_rng(settings.seed)
    bound = random.uniform(0.1, 3.0, settings.instances)
    beta = random.uniform(0.05, 2.0, settings.instances)
    reward = random.uniform(-1.0, 1.0, (settings.instances, 3)) * bound[:, None]
    reference = np.log(random.dirichlet(np.ones(3), settings.instances))
    policy = gibbs.gibbs_log_probs(reward, reference, beta)
    excess = policy - partial_coverage.rlhf_bound(reference, bound, beta)
    return np.exp(np.asarray(excess).max(axis=-1))


def plot(dataset: xr.Dataset) -> Figure:
    """The table, and for each setting the mass on the uncovered response over training."""
    figure = plotting.new_figure(15, 5.6)
    first, *panels = figure.subplots(1, 3, width_ratios=[0.85, 1, 1])
    figure.subplots_adjust(0.045, 0.23, 0.99, 0.91, wspace=0.2)
    _draw_table(first, dataset["table"])
    lines = dataset["probability"].sel(response="ξ3").isel(step=slice(1, None))
    for setting, axes in zip(TITLES, panels, strict=True):
        for name in NAMES:
            one = lines.sel(setting=setting, loss=name)
            axes.plot(
                one["step"],
                one,
                plotting.METHOD_LINES[name],
                color=plotting.METHOD_COLORS[name],
                label=plotting.METHOD_LABELS[name],
            )
        axes.set(title=TITLES[setting], xscale="log", ylim=(-0.03, 1.03), xlabel="gradient steps")
    panels[0].set_ylabel("probability of ξ3, in no pair")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="lower center", ncols=len(NAMES))
    return figure


def _draw_table(axes: Axes, table: xr.DataArray) -> None:
    """The probabilities as bars in rows, so that they are read at a glance."""
    rows = table["policy"].values
    for y, policy in enumerate(rows):
        for x, value in enumerate(table.sel(policy=policy).values):
            color = plotting.PUSHED if x == 2 else plotting.RAISED
            axes.barh(-y, 0.8 * value, left=x, height=0.42, color=color)
            axes.text(x, -y + 0.27, f"{round(value, 3):g}", fontsize=15)
    axes.set_yticks(
        [-y for y in range(len(rows))], ["π_ref" if r == "reference" else r for r in rows]
    )
    axes.set_xticks([0.4, 1.4, 2.4], ["ξ1\nwins", "ξ2\nloses", "ξ3\nin no pair"])
    axes.set(title="Optima", xlim=(-0.05, 3), ylim=(0.6 - len(rows), 0.6))
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)


def judge(dataset: xr.Dataset) -> list[Claim]:
    """The table, the way there, the transient and IPO's parking, the remedies, the bound."""
    table = dataset["table"]
    rows = {
        str(name): [float(v) for v in table.sel(policy=name)] for name in table["policy"].values
    }
    written = "; ".join(
        f"{name} ({', '.join(f'{round(v, 3):g}' for v in row)})" for name, row in rows.items()
    )
    uncovered = dataset["probability"].sel(response="ξ3")
    path = dataset["probability"].sel(setting="shared features", loss="dpo")
    distance = 0.5 * abs(path - table.sel(policy="DPO", drop=True)).sum("response")
    unlikely = uncovered.sel(setting="unlikely winner")
    leaks = uncovered.sel(setting="shared features")
    leaked, held = float(leaks.sel(loss="dpo").max()), leaks.sel(loss=list(REMEDIES))
    held = held.max("step", skipna=False)
    peak, parked = float(dataset["peak"]), float(dataset["parked"])
    worst = str(held.idxmax("loss").item())
    within = dataset["share_of_bound"].values <= 1 + 1e-9
    kept = float(unlikely.sel(loss="hypo")[-1])
    return [
        EXPERIMENT.claim(
            "RLHF leaves the uncovered response at the zero that the reference gives it: its "
            "probability",
            exact(rows["RLHF"][2]),
            rows["RLHF"][2] == 0,
            note=f"The table: {written}.",
            table=rows,
        ),
        EXPERIMENT.claim(
            "DPO does not: the policy in the table's last row attains the infimum of its loss, 0: "
            "loss, in nats, with e^-1000 for the loser",
            exact(dataset["dpo_loss"]),
            0 <= float(dataset["dpo_loss"]) < 1e-9,
            note="So does every policy that gives the loser nothing.",
        ),
        EXPERIMENT.claim(
            "Descent goes there when features are shared: least total variation distance between "
            "the path of DPO and that row (holds if below 0.02)",
            exact(distance.min()),
            float(distance.min()) < 0.02,
            note=f"It goes on to {float(leaks.sel(loss='dpo')[-1]):.3f} on the uncovered response.",
        ),
        EXPERIMENT.claim(
            "With an unlikely winner a table leaks on the way: largest mass of DPO on the "
            f"uncovered response (closed form {peak:.3f}; holds if within 0.005)",
            exact(unlikely.sel(loss="dpo").max()),
            abs(float(unlikely.sel(loss="dpo").max()) - peak) < 0.005,
        ),
        EXPERIMENT.claim(
            "and IPO stays there for ever: mass on the uncovered response at the end (closed form "
            f"{parked:.3f}; holds if within 0.005)",
            exact(unlikely.sel(loss="ipo")[-1]),
            abs(float(unlikely.sel(loss="ipo")[-1]) - parked) < 0.005,
        ),
        EXPERIMENT.claim(
            "RLHF, HyPO and online DPO hold the uncovered response where features are shared: "
            f"largest mass of the three on it, of DPO {leaked:.2f} (holds if below a quarter)",
            exact(held.max(skipna=False)),
            float(held.max(skipna=False)) < 0.25 * leaked,
            note=f"The largest is {plotting.METHOD_LABELS[worst]}'s. HyPO holds what the reference "
            f"holds: with the unlikely winner it ends at {kept:.3f} on ξ3.",
        ),
        EXPERIMENT.claim(
            "With |r| <= R RLHF never exceeds π_ref e^{2R/β}: share of random problems",
            proportion_interval(int(within.sum()), within.size),
            bool(within.all()),
        ),
    ]


EXPERIMENT = Experiment(
    name="partial_coverage",
    source="S25: partial coverage; arXiv:2406.01462",
    question="What does DPO do to a response that is in no pair, and who holds it?",
    full=Settings(),
    quick=Settings(steps=1500, instances=200),
    run=run,
    plot=plot,
    judge=judge,
)
