"""Over-optimisation: the true reward against the pressure that is put on a learned one.

On Mode, the length problem whose best length is the usual one, a reward model is fitted to noisy
pairs. The policy of highest *learned* reward at each KL from the reference is exact; its *true*
reward rises, and then falls where the model is wrong: more so with less data, and where the model's
capacity does not suit them.
"""

import dataclasses
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bandits import plotting
from bandits.experiments.base import Claim, Experiment
from bandits.experiments.curves import draw_mean_line, over_seeds, require_no_nan
from bandits.experiments.lengths import Lengths, draw_pairs, fit_proxy, require_noise
from bandits.sweeps import static, sweep
from theory import gibbs

COLORS = ("#332288", "#0072B2", "#44AA99", "#DDAA33", "#CC6677")


@dataclass(frozen=True)
class Settings:
    """The reward models and the pressure.

    Attributes:
      lengths: the problem; its labeller is noisy.
      pairs: numbers of labelled pairs, at the middle capacity.
      bumps: capacities: how many bumps the reward model adds up, at the middle number of pairs.
      largest: KL from the reference, in nats.
      divergences: how many of them, evenly from 0.
      seeds: independent data.
    """

    lengths: Lengths = field(default_factory=lambda: Lengths(temperature=0.3))
    pairs: tuple[int, ...] = (30, 100, 300, 1000, 3000)
    bumps: tuple[int, ...] = (3, 6, 12, 24)
    largest: float = 2.8
    divergences: int = 29
    seeds: int = 200


def run(settings: Settings) -> xr.Dataset:
    """Gold and proxy reward over the KL, for reward models of growing data and capacity."""
    middle_pairs = settings.pairs[len(settings.pairs) // 2]
    middle_bumps = settings.bumps[len(settings.bumps) // 2]
    by_data = _pressed(settings, settings.pairs, (middle_bumps,)).squeeze("bumps")
    by_capacity = _pressed(settings, (middle_pairs,), settings.bumps).squeeze("pairs")
    dataset = xr.merge(
        [
            by_data.rename(gold="gold_by_data", proxy="proxy_by_data").drop_vars("bumps"),
            by_capacity.rename(gold="gold_by_capacity", proxy="proxy_by_capacity").drop_vars(
                "pairs"
            ),
        ]
    )
    require_no_nan(dataset)
    return dataset.assign_attrs(middle_pairs=middle_pairs, middle_bumps=middle_bumps)


def _pressed(settings: Settings, pairs: tuple[int, ...], bumps: tuple[int, ...]) -> xr.Dataset:
    """Reward models of these sizes; smaller data are the first of the largest."""
    require_noise(settings.lengths)
    most = dataclasses.replace(settings.lengths, pairs=max(pairs))
    bandit = most.bandit("mode")
    divergences = np.linspace(0, settings.largest, settings.divergences).astype(np.float32)

    def run_one(
        pairs: Int[Array, ""],
        bumps: int,
        seed: Int[Array, ""],
        gold: Float[Array, " K"],
        reference: Float[Array, " K"],
        divergences: Float[Array, " n"],
    ) -> dict[str, Array]:
        drawn = draw_pairs(jax.random.key(seed), reference, gold, most)
        used = jnp.arange(most.pairs) < pairs
        features = dataclasses.replace(most, bumps=bumps).features()
        proxy = most.temperature * fit_proxy(drawn, features, most.ridge, used)
        policies = jnp.exp(gibbs.gibbs_at_kl(proxy, reference, divergences))
        start = jnp.exp(reference)
        return {"gold": policies @ gold, "proxy": (policies - start) @ proxy + start @ gold}

    return sweep(
        run_one,
        {"pairs": np.array(pairs), "bumps": static(list(bumps)), "seed": np.arange(settings.seeds)},
        fixed={
            "gold": bandit.reward,
            "reference": bandit.reference_log_probs,
            "divergences": divergences,
        },
        dims=["kl"],
        coords={"kl": divergences},
    )


def plot(dataset: xr.Dataset) -> Figure:
    """True reward (solid) and learned one (dotted) over the KL, by data and by capacity."""
    figure = plotting.new_figure(14, 6)
    by_data, by_capacity = figure.subplots(1, 2, sharey=True)
    figure.subplots_adjust(0.07, 0.13, 0.985, 0.91, wspace=0.05)
    _draw(by_data, dataset, "data", "pairs", "{} pairs")
    _draw(by_capacity, dataset, "capacity", "bumps", "{} bumps")
    by_data.set(
        title=f"More data, {dataset.attrs['middle_bumps']} bumps", ylabel="reward, maximum lengths"
    )
    by_capacity.set_title(f"More capacity, {dataset.attrs['middle_pairs']} pairs")
    return figure


def _draw(axes: Axes, dataset: xr.Dataset, kind: str, along: str, label: str) -> None:
    for value, color in zip(dataset[along].values, COLORS, strict=False):
        one = dataset.sel({along: value})
        name = label.format(value)
        draw_mean_line(axes, one[f"gold_by_{kind}"], "kl", color=color, label=name, marker="")
        learned = one[f"proxy_by_{kind}"].mean("seed")
        axes.plot(learned["kl"], learned, ":", color=color, linewidth=1.4)
    axes.plot([], [], ":", color=plotting.INK, linewidth=1.4, label="as learned")
    axes.set(xlabel="KL(policy‖reference), nats", ylim=(-0.27, 0.06))
    axes.legend(loc="lower right", ncols=2, fontsize=12)


def judge(dataset: xr.Dataset) -> list[Claim]:
    """What the last nats cost, and how that goes with data and capacity; by seed."""
    require_no_nan(dataset)
    falls = _fall(dataset["gold_by_data"])
    few, many = (falls.isel(pairs=i) for i in (0, -1))
    end = dataset["gold_by_capacity"].isel(kl=-1)
    best_bumps = int(end.mean("seed").idxmax("bumps"))
    suited = end.sel(bumps=best_bumps)
    too = {"few": end.isel(bumps=0), "many": end.isel(bumps=-1)}
    tried = ", ".join(
        f"{b} bumps {float(end.sel(bumps=b).mean()):.3f}" for b in dataset["bumps"].values
    )
    at = int(dataset["pairs"][0])
    gold = dataset["gold_by_data"].isel(pairs=0).mean("seed")
    best = float(gold["kl"][int(gold.argmax("kl"))])
    fall, less = over_seeds(few), over_seeds(few - many)
    return [
        EXPERIMENT.claim(
            "Pressure on a learned reward ends by lowering the true one: its fall from the best KL "
            f"to the largest, {at} pairs",
            fall,
            fall.low > 0,
            note=f"The best KL is {best:.1f} nats.",
        ),
        EXPERIMENT.claim(
            f"More data put that off: the fall with {at} pairs minus that with "
            f"{int(dataset['pairs'][-1])}",
            less,
            less.low > 0,
        ),
        *(
            EXPERIMENT.claim(
                f"Capacity must suit the data: true reward at the largest KL with {best_bumps} "
                f"bumps, the best number, minus that with too {how}, "
                f"{int(other['bumps'])}",
                interval := over_seeds(suited.drop_vars("bumps") - other.drop_vars("bumps")),
                interval.low > 0,
                note=f"True reward at the largest KL: {tried}.",
            )
            for how, other in too.items()
        ),
    ]


def _fall(gold: xr.DataArray) -> xr.DataArray:
    """From the KL that is best on average to the largest.

    The best is chosen on one half of the seeds and judged on the other, both ways: chosen where it
    is judged, it would fall for no other reason.
    """
    halves = [gold.isel(seed=slice(i, None, 2)) for i in (0, 1)]
    falls = [
        judged.isel(kl=chosen.mean("seed").argmax("kl").drop_vars("kl", errors="ignore"))
        - judged.isel(kl=-1)
        for chosen, judged in (halves, halves[::-1])
    ]
    return xr.concat(falls, "seed").sortby("seed")


EXPERIMENT = Experiment(
    name="overoptimisation",
    source="I24 and T24: proxy and true reward",
    question="When does pressure on a learned reward lower the true one?",
    full=Settings(),
    quick=Settings(pairs=(30, 300), bumps=(3, 12), seeds=20),
    run=run,
    plot=plot,
    judge=judge,
)
