"""Over-optimisation: the true reward against the pressure that is put on a learned one.

On Mode, the length problem whose best length is the usual one, a reward model is fitted to noisy
pairs. The policy of highest *learned* reward at each KL from the reference is exact; its *true*
reward rises, and then falls where the model is wrong: more so with less data, and where the model's
capacity does not suit them. Every number of pairs is tried with every capacity.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import xarray as xr
from jaxtyping import Array, Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bandits import plotting
from bandits.studies.base import Claim, Experiment
from bandits.studies.curves import draw_mean_line, over_seeds, require_no_nan
from bandits.studies.t24.lengths import Lengths, draw_pairs, fit_proxy
from bandits.sweeps import static, sweep
from theory import checks, gibbs
from theory.checks import InvalidInput

COLORMAPS = {"pairs": "viridis", "bumps": "plasma"}
"""Sequential and colour-blind safe; two, so that data are not taken for capacity."""

MOST_LARGE = 8
"""Entries of a legend in large letters; more are drawn small, to stay on the page."""

PALEST = 0.85
"""Of a colormap: beyond it, lines fade into the paper."""

LABELS = {"pairs": "{} pairs", "bumps": "{} bumps"}


@dataclass(frozen=True)
class Settings:
    """The problem, the reward models and the pressure.

    Attributes:
      max_length: T.
      mode: of the reference's lengths, and the best one.
      spread: of their logarithm.
      temperature: of the labeller, in units of the gold reward.
      ridge: Of the reward models, relative to the mean loss of a label.
      pairs: numbers of labelled pairs, growing.
      bumps: capacities, growing: how many bumps over the lengths the reward model adds up.
      largest: KL from the reference, in nats.
      divergences: how many of them, evenly from 0.
      seeds: independent data, at least 4: what is best is chosen on one half, judged on the other.
    """

    max_length: int = 40
    mode: float = 12.0
    spread: float = 0.6
    temperature: float = 0.3
    ridge: float = 1e-4
    pairs: tuple[int, ...] = (30, 100, 300, 1000, 3000)
    bumps: tuple[int, ...] = (3, 6, 12, 24)
    largest: float = 2.8
    divergences: int = 29
    seeds: int = 200

    def __post_init__(self) -> None:
        """Refuse what cannot be run or judged."""
        # Without noise rewards have no finite unit, without a ridge few pairs have no finite fit.
        for name in ("mode", "spread", "temperature", "ridge", "largest"):
            checks.require_positive(name, getattr(self, name))
        for name, least in (("max_length", 2), ("divergences", 2), ("seeds", 4)):
            value = getattr(self, name)
            checks.require_whole(name, value)
            if value < least:
                raise InvalidInput(f"{name} is {value}; at least {least} are needed")
        if not 1 <= self.mode <= self.max_length:
            raise InvalidInput(f"mode is {self.mode}; lengths go from 1 up to {self.max_length}")
        for name, least in (("pairs", 1), ("bumps", 2)):
            values = getattr(self, name)
            rising = all(a < b for a, b in itertools.pairwise(values))
            if len(values) < 2 or not rising or values[0] < least:
                raise InvalidInput(
                    f"{name} is {values}; give at least two numbers, growing from {least} or more"
                )
            checks.require_whole(name, values)

    def model(self, bumps: int) -> Lengths:
        """The problem with the most data and a reward model of one capacity."""
        return Lengths(
            max_length=self.max_length,
            mode=self.mode,
            spread=self.spread,
            pairs=self.pairs[-1],
            temperature=self.temperature,
            bumps=bumps,
            ridge=self.ridge,
        )


def run(settings: Settings) -> xr.Dataset:
    """Gold and proxy reward over the KL, for every number of pairs and every capacity."""
    bandit = settings.model(settings.bumps[0]).bandit("mode")
    divergences = np.linspace(0, settings.largest, settings.divergences).astype(np.float32)

    def run_one(
        pairs: Int[Array, ""],
        bumps: int,
        seed: Int[Array, ""],
        gold: Float[Array, " K"],
        reference: Float[Array, " K"],
        divergences: Float[Array, " n"],
    ) -> dict[str, Array]:
        model = settings.model(bumps)
        # Smaller data are the first of the largest, so that sizes differ by nothing else.
        drawn = draw_pairs(jax.random.key(seed), reference, gold, model)
        used = jnp.arange(model.pairs) < pairs
        proxy = model.temperature * fit_proxy(drawn, model.features(), model.ridge, used)
        policies = jnp.exp(gibbs.gibbs_at_kl(proxy, reference, divergences))
        start = jnp.exp(reference)
        # A constant is not learned: the proxy is given the gold one's mean under the reference.
        return {"gold": policies @ gold, "proxy": (policies - start) @ proxy + start @ gold}

    dataset = sweep(
        run_one,
        {
            "pairs": np.array(settings.pairs),
            "bumps": static(list(settings.bumps)),
            "seed": np.arange(settings.seeds),
        },
        fixed={
            "gold": bandit.reward,
            "reference": bandit.reference_log_probs,
            "divergences": divergences,
        },
        dims=["kl"],
        coords={"kl": divergences},
    )
    require_no_nan(dataset)
    return dataset


def plot(dataset: xr.Dataset) -> Figure:
    """Rewards over the KL by data and by capacity; true ones at the largest KL by both."""
    figure = plotting.new_figure(15, 6.2)
    panels = by_data, by_capacity, by_both = figure.subplots(1, 3, sharey=True)
    figure.subplots_adjust(0.068, 0.29, 0.985, 0.93, wspace=0.06)
    pairs, bumps = _middle(dataset)
    cuts = (
        (by_data, dataset.sel(bumps=bumps), "pairs"),
        (by_capacity, dataset.sel(pairs=pairs), "bumps"),
    )
    for axes, cut, along in cuts:
        _draw_true(axes, cut["gold"], along, "kl", marker="")
        axes.set_xlabel("KL(policy‖reference), nats")
    _draw_true(by_both, dataset["gold"].isel(kl=-1), "bumps", "pairs")
    start = float(dataset["gold"].isel(kl=0).mean())
    by_both.axhline(start, color=plotting.INK, linestyle="--", linewidth=1.4, label="reference")
    # The true reward sets the scale: learned ones end far above it, and the legend says where.
    low, high = by_data.get_ylim()
    top = high + 0.3 * (high - low)
    for axes, cut, along in cuts:
        _draw_learned(axes, cut["proxy"], along, top)
    by_data.set(
        title=f"More data, {bumps} bumps", ylabel="reward, maximum lengths", ylim=(low, top)
    )
    by_capacity.set_title(f"More capacity, {pairs} pairs")
    by_both.set(
        title=f"True reward at {float(dataset['kl'][-1]):.3g} nats",
        xlabel="labelled pairs",
        xscale="log",
    )
    by_both.set_xticks(dataset["pairs"].values, [str(n) for n in dataset["pairs"].values])
    by_both.minorticks_off()
    for axes in panels:
        axes.legend(
            loc="upper center",
            bbox_to_anchor=(0.5, -0.15),
            ncols=2,
            handlelength=1.5,
            fontsize=14 if len(axes.get_legend_handles_labels()[0]) <= MOST_LARGE else 9,
            frameon=False,
        )
    return figure


def _colors(gold: xr.DataArray, along: str) -> np.ndarray:
    """From dark, for the least, to pale, as many as there are values."""
    return mpl.colormaps[COLORMAPS[along]](np.linspace(0, PALEST, gold.sizes[along]))


def _draw_true(axes: Axes, gold: xr.DataArray, along: str, x: str, **line: object) -> None:
    for value, color in zip(gold[along].values, _colors(gold, along), strict=True):
        name = LABELS[along].format(value)
        draw_mean_line(axes, gold.sel({along: value}), x, color=color, label=name, **line)


def _draw_learned(axes: Axes, proxy: xr.DataArray, along: str, top: float) -> None:
    means = proxy.mean("seed")
    for value, color in zip(proxy[along].values, _colors(proxy, along), strict=True):
        axes.plot(proxy["kl"], means.sel({along: value}), ":", color=color, linewidth=2)
    most = float(means.max())
    name = "learned" if most <= top else f"learned, up to {most:.2f}"
    axes.plot([], [], ":", color=plotting.INK, linewidth=2, label=name)


def judge(dataset: xr.Dataset) -> list[Claim]:
    """What the last nats cost, and how that goes with data and capacity; by seed."""
    require_no_nan(dataset)
    pairs, bumps = _middle(dataset)
    fewest, most = (int(dataset["pairs"][i]) for i in (0, -1))
    by_data, ends = dataset.sel(bumps=bumps), dataset["gold"].isel(kl=-1)
    falls = _on_other_half(by_data["gold"], _fall)
    gold = by_data["gold"].sel(pairs=fewest).mean("seed")
    excess = (by_data["proxy"] - by_data["gold"]).isel(kl=-1)
    fall = over_seeds(falls.sel(pairs=fewest))
    less = over_seeds(falls.sel(pairs=fewest) - falls.sel(pairs=most))
    nearer = over_seeds(excess.sel(pairs=fewest) - excess.sel(pairs=most))
    return [
        EXPERIMENT.claim(
            "Pressure on a learned reward ends by lowering the true one: its fall from the best KL "
            f"to the largest, {fewest} pairs",
            fall,
            fall.low > 0,
            note=f"The best KL is {float(gold.idxmax('kl')):.1f} nats.",
        ),
        EXPERIMENT.claim(
            f"More data put that off: the fall with {fewest} pairs minus that with {most}",
            less,
            less.low > 0,
        ),
        EXPERIMENT.claim(
            "More data bring the learned reward nearer the true one: learned minus true reward at "
            f"the largest KL, with {fewest} pairs minus with {most}",
            nearer,
            nearer.low > 0,
            note="That the learned one rises with the KL is no finding: the policies maximise it. "
            f"Learned minus true: {_listed(excess, 'pairs')}.",
        ),
        *_judge_capacity(ends.sel(pairs=pairs)),
        _judge_capacity_by_data(ends.isel(pairs=[0, -1])),
    ]


def _judge_capacity(ends: xr.DataArray) -> list[Claim]:
    """At one number of pairs; the number of bumps is chosen on other seeds than it is judged on."""
    suited = _on_other_half(ends, lambda chosen, judged: _with_bumps(judged, _best_bumps(chosen)))
    note = f"Best: {int(_best_bumps(ends))}. True reward: {_listed(ends, 'bumps')}."
    claims = []
    for how, i in (("few", 0), ("many", -1)):
        other = ends.isel(bumps=i)
        interval = over_seeds(suited - other)
        claims.append(
            EXPERIMENT.claim(
                "Capacity must suit the data: true reward at the largest KL with the best number "
                f"of bumps minus that with too {how}, {int(other['bumps'])}; {int(ends['pairs'])} "
                "pairs",
                interval,
                interval.low > 0,
                note=note,
            )
        )
    return claims


def _judge_capacity_by_data(ends: xr.DataArray) -> Claim:
    """At two numbers of pairs; both must gain by a number of bumps of their own."""
    gains = _on_other_half(ends, _gain_of_own_capacity)
    least = min((over_seeds(gains.isel(pairs=i)) for i in (0, 1)), key=lambda one: one.low)
    fewest, most = (int(n) for n in ends["pairs"])
    small, large = (int(n) for n in _best_bumps(ends))
    return EXPERIMENT.claim(
        "More data want more capacity: true reward at the largest KL with the best number of bumps "
        "minus that with the number that is best for the other data, the lesser of the gains with "
        f"{fewest} and with {most} pairs",
        least,
        least.low > 0,
        note=f"Best: {small} bumps with {fewest} pairs, {large} with {most}.",
    )


def _gain_of_own_capacity(chosen: xr.DataArray, judged: xr.DataArray) -> xr.DataArray:
    """Negative where it is the fewer pairs that want the larger capacity."""
    own = _best_bumps(chosen)
    gain = _with_bumps(judged, own) - _with_bumps(judged, own.copy(data=own.values[::-1]))
    return gain * np.sign(own.values[-1] - own.values[0])


def _fall(chosen: xr.DataArray, judged: xr.DataArray) -> xr.DataArray:
    """From the KL that is best on average to the largest."""
    best = chosen.mean("seed").argmax("kl").drop_vars("kl", errors="ignore")
    return judged.isel(kl=best) - judged.isel(kl=-1)


def _on_other_half(
    values: xr.DataArray, effect: Callable[[xr.DataArray, xr.DataArray], xr.DataArray]
) -> xr.DataArray:
    """An effect of what is best on one half of the seeds, judged on the other, both ways.

    Chosen where it is judged, the best would be better for no other reason.
    """
    halves = [values.isel(seed=slice(i, None, 2)) for i in (0, 1)]
    found = [effect(chosen, judged) for chosen, judged in (halves, halves[::-1])]
    return xr.concat(found, "seed", coords="minimal", compat="override").sortby("seed")


def _best_bumps(ends: xr.DataArray) -> xr.DataArray:
    return ends.mean("seed").idxmax("bumps")


def _with_bumps(ends: xr.DataArray, bumps: xr.DataArray) -> xr.DataArray:
    return ends.sel(bumps=bumps).drop_vars("bumps")


def _listed(ends: xr.DataArray, along: str) -> str:
    means = zip(ends[along].values, ends.transpose(along, "seed").values, strict=True)
    return ", ".join(f"{LABELS[along].format(n)} {row.mean():.3f}" for n, row in means)


def _middle(dataset: xr.Dataset) -> tuple[int, int]:
    """The numbers of pairs and of bumps at which the other one is looked at alone."""
    pairs, bumps = (int(dataset[name][dataset.sizes[name] // 2]) for name in ("pairs", "bumps"))
    return pairs, bumps


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
