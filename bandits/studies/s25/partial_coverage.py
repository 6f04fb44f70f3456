"""What breaks when a response is in no pair: the lecture's table, and the paths that lead there.

Three responses; the data say once that the first is better than the second, and nothing of the
third. Two settings: a table whose winner is unlikely, and the lecture's reference with a policy
whose third response shares the winner's feature, so that it rises with it. (In a table with the
lecture's reference the third response only falls.) RLHF learns a reward for each response, so that
it knows nothing good of the third; or one that shares the feature too, and then it is DPO's equal.
All updates are exact: the group is the whole space, and Adam moves the parameters.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bandits import plotting
from bandits.descent import log_spaced_steps
from bandits.environments import CategoricalBandit
from bandits.losses import METHODS, make_group, switch
from bandits.policies import log_linear
from bandits.reward_models import fit_linear, fit_tabular
from bandits.studies.base import Claim, Experiment
from bandits.studies.curves import require_not_diverged
from bandits.studies.intervals import exact, proportion_interval
from bandits.sweeps import sweep
from bandits.training import Schedule, on_whole_space, own_pairs, train
from theory import gibbs, partial_coverage

LEARNERS = {
    "DPO": "dpo",
    "IPO": "ipo",
    "RLHF, a reward for each response": "rlhf",
    "RLHF, reward and policy of one class": "rlhf",
    "HyPO": "hypo",
    "online DPO": "online_dpo",
}
"""How each is called, and its method: two-stage RLHF is shown with two classes of rewards."""

TABLE_REWARD, SAME_CLASS = list(LEARNERS)[2:4]
REMEDIES = (TABLE_REWARD, "HyPO", "online DPO")
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
      ridge: Of the reward model, 1/s² for a prior of s nats of log-odds; without it the one label
        makes the reward infinite.
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
        without_loser = _without_loser(settings, table["DPO"])
        optima = partial_coverage.is_dpo_optimum(without_loser, PAIR)
        losses = _dpo_losses(without_loser, log_reference, settings.beta)
        ratio = _largest_share_of_bound(settings)
    paths = _follow(settings, fitted)
    winner, loser, _ = settings.unlikely_winner
    dataset = xr.Dataset(
        {
            "table": (("policy", "response"), np.exp([np.asarray(row) for row in table.values()])),
            "dpo_optima": ("policy_without_loser", np.asarray(optima)),
            "dpo_losses": ("policy_without_loser", np.asarray(losses)),
            "share_of_bound": ("instance", ratio),
            "peak": float(partial_coverage.displacement_peak(winner, loser)),
            "parked": float(
                partial_coverage.ipo_parking(winner, loser, _parking_tau(settings)).uncovered
            ),
        },
        coords={"policy": list(table), "response": ["ξ1", "ξ2", "ξ3"]},
    )
    return xr.merge([dataset, paths])


def _without_loser(settings: Settings, row: ArrayLike) -> np.ndarray:
    """The table's row, and random policies that give the loser nothing."""
    shares = np.random.default_rng(settings.seed).uniform(size=settings.instances)
    nothing = np.full_like(shares, -np.inf)
    drawn = np.stack([np.log(shares), nothing, np.log1p(-shares)], axis=1)
    return np.concatenate([np.asarray(row)[None], drawn])


def _dpo_losses(policies: np.ndarray, log_reference: np.ndarray, beta: float) -> Array:
    """DPO's loss near policies without the loser: there it has e^-1000."""
    loss = METHODS["dpo"].bind(beta=beta)

    def near(log_probs: Float[Array, " 3"]) -> Float[Array, ""]:
        held = jnp.maximum(log_probs, -1000.0)
        group = make_group(held, jnp.zeros(3), reference_log_probs=log_reference, preferences=PAIR)
        return loss(group)

    return jax.vmap(near)(jnp.asarray(policies))


def _parking_tau(settings: Settings) -> float:
    """IPO's τ whose target is where the unlikely winner's uncovered mass peaks."""
    winner, loser, _ = settings.unlikely_winner
    return 0.5 / float(partial_coverage.peak_margin(winner, loser))


def _follow(settings: Settings, fitted: np.ndarray) -> xr.Dataset:
    """Every learner from the start in every setting: one program."""
    smooth = np.array(settings.reference) + settings.smoothing * np.eye(3)[2]
    references = np.stack([settings.unlikely_winner, smooth / smooth.sum()])
    shared = np.array(settings.shared_feature)[:, None] * np.eye(3)[0]
    in_class = shared @ np.asarray(fit_linear(shared, PAIR, settings.ridge))
    rewards_of = np.stack([[fitted, fitted], [fitted, in_class]]).astype(np.float32)
    methods = list(dict.fromkeys(LEARNERS.values()))
    which = np.array([methods.index(method) for method in LEARNERS.values()])
    names = list(LEARNERS)
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
        learner: Int[Array, ""],
        which: Int[Array, " n"],
        features: Float[Array, "2 3 F"],
        references: Float[Array, "2 3"],
        rewards_of: Float[Array, "2 2 3"],
        pair: Float[Array, "3 3"],
    ) -> dict[str, Array]:
        policy = log_linear(features[setting], references[setting])
        own = own_pairs(wins)
        learned = rewards_of[setting, jnp.int32(learner == names.index(SAME_CLASS))]
        collect = on_whole_space(
            policy,
            CategoricalBandit(learned, references[setting]),
            lambda drawn: jnp.where(learner == names.index("online DPO"), own(drawn), pair),
        )
        return train(
            jax.random.key(0),
            policy,
            jnp.zeros(3),
            switch(which[learner], losses),
            collect,
            schedule,
            optax.adam(settings.learning_rate),
            lambda theta: {"probability": jnp.exp(policy.log_probs(theta))},
            recorded,
        )

    dataset = sweep(
        run_one,
        {"setting": np.arange(len(TITLES)), "learner": np.arange(len(names))},
        fixed={
            "features": np.stack([np.eye(3), shared]).astype(np.float32),
            "references": np.log(references).astype(np.float32),
            "which": which,
            "rewards_of": rewards_of,
            "pair": PAIR.astype(np.float32),
        },
        dims=["step", "response"],
        coords={"step": list(recorded), "response": ["ξ1", "ξ2", "ξ3"]},
        attributes={"probability": {"long_name": "probability", "units": "1"}},
    ).assign_coords(setting=list(TITLES), learner=names)
    require_not_diverged(dataset)
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
    figure = plotting.new_figure(15, 6)
    first, *panels = figure.subplots(1, 3, width_ratios=[0.85, 1, 1])
    figure.subplots_adjust(0.045, 0.26, 0.99, 0.91, wspace=0.2)
    _draw_table(first, dataset["table"])
    lines = dataset["probability"].sel(response="ξ3").isel(step=slice(1, None))
    for setting, axes in zip(TITLES, panels, strict=True):
        for learner, method in LEARNERS.items():
            one = lines.sel(setting=setting, learner=learner)
            axes.plot(
                one["step"],
                one,
                "-" if learner == SAME_CLASS else plotting.METHOD_LINES[method],
                color=plotting.METHOD_COLORS[method],
                label=learner,
            )
        axes.set(title=TITLES[setting], xscale="log", ylim=(-0.03, 1.03), xlabel="gradient steps")
    panels[0].set_ylabel("probability of ξ3, in no pair")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="lower center", ncols=3)
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
    winner = np.array([1.0, 0.0, 0.0])
    off = 0.5 * float(np.abs(np.array(rows["RLHF"]) - winner).sum())
    optimal = (dataset["dpo_losses"] < 1e-9).values & dataset["dpo_optima"].values
    uncovered = dataset["probability"].sel(response="ξ3")
    path = dataset["probability"].sel(setting="shared features", learner="DPO")
    distance = 0.5 * abs(path - table.sel(policy="DPO", drop=True)).sum("response", skipna=False)
    unlikely = uncovered.sel(setting="unlikely winner")
    leaks = uncovered.sel(setting="shared features")
    leaked = float(leaks.sel(learner="DPO").max(skipna=False))
    held = leaks.sel(learner=list(REMEDIES)).max("step", skipna=False)
    most = {name: float(unlikely.sel(learner=name).max(skipna=False)) for name in LEARNERS}
    peak, parked = float(dataset["peak"]), float(dataset["parked"])
    within = dataset["share_of_bound"].values <= 1 + 1e-9
    broken = float((leaks.sel(learner="DPO").max() / leaks.isel(learner=0, step=0)) / np.exp(2.0))
    return [
        EXPERIMENT.claim(
            "RLHF gives (1, 0, 0), and leaves the uncovered response at the zero that the "
            "reference gives it: total variation from it (holds if below 0.005)",
            exact(off),
            off < 0.005 and rows["RLHF"][2] == 0,
            note=f"The table: {written}.",
            table=rows,
        ),
        EXPERIMENT.claim(
            "DPO does not: every policy that gives the loser nothing attains the infimum of its "
            "loss, 0, the table's last row included. Share of random such policies with a loss "
            "below 1e-9 nats when the loser has e^-1000",
            proportion_interval(int(optimal.sum()), optimal.size),
            bool(optimal.all()),
        ),
        EXPERIMENT.claim(
            "Descent goes there when features are shared: least total variation distance between "
            "the path of DPO and that row (holds if below 0.02)",
            exact(distance.min(skipna=False)),
            float(distance.min(skipna=False)) < 0.02,
            note=f"It goes on to {float(leaks.sel(learner='DPO')[-1]):.3f} on the uncovered "
            "response.",
        ),
        EXPERIMENT.claim(
            "RLHF whose reward shares the feature too goes the same way: its mass on the uncovered "
            "response at the end (holds if above 0.95)",
            exact(leaks.sel(learner=SAME_CLASS)[-1]),
            float(leaks.sel(learner=SAME_CLASS)[-1]) > 0.95,
            note="In one class the two methods are equal; only a reference of exactly zero holds.",
        ),
        EXPERIMENT.claim(
            "RLHF with a reward for each response, HyPO and online DPO hold the uncovered response "
            f"there: largest mass of the three on it, of DPO {leaked:.2f} (holds if below a "
            "quarter of that)",
            exact(held.max(skipna=False)),
            float(held.max(skipna=False)) < 0.25 * leaked,
            note="Not so with the unlikely winner, where the reference has half its mass on it: "
            f"RLHF passes through {most[TABLE_REWARD]:.2f} on its way to the winner, HyPO stays at "
            f"{float(unlikely.sel(learner='HyPO')[-1]):.2f}, online DPO never exceeds "
            f"{most['online DPO']:.2f}.",
        ),
        EXPERIMENT.claim(
            "With an unlikely winner a table leaks on the way: largest mass of DPO on the "
            f"uncovered response (closed form {peak:.3f}; holds if within 0.005)",
            exact(most["DPO"]),
            abs(most["DPO"] - peak) < 0.005,
        ),
        EXPERIMENT.claim(
            "and IPO stays for ever where its τ says, here at that peak: mass on the uncovered "
            f"response at the end (closed form {parked:.3f}; holds if within 0.005)",
            exact(unlikely.sel(learner="IPO")[-1]),
            abs(float(unlikely.sel(learner="IPO")[-1]) - parked) < 0.005,
        ),
        EXPERIMENT.claim(
            "With |r| <= R RLHF never exceeds π_ref e^{2R/β}: share of random problems",
            proportion_interval(int(within.sum()), within.size),
            bool(within.all()),
            note=f"DPO knows no bound: with shared features it goes {broken:,.0f} times above that "
            "of R = β = 1.",
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
