"""Measure over-optimisation: the true reward under pressure on a learned one.

On Mode, the length problem whose best length is the usual one, a reward model is fitted to noisy
pairs. The policy of highest *learned* reward at each KL from the reference is exact. Its *true*
reward rises, and then falls where the model is wrong: more so with less data, and where the model's
capacity does not suit them. Every number of pairs is tried with every capacity.
"""

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import xarray as xr
from jaxtyping import Array, Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bandits import plotting
from bandits.problems.environments import CategoricalBandit
from bandits.studies.curves import draw_mean_line, log_axis, over_seeds, require_no_nan
from bandits.studies.study import Claim, Study, claim
from bandits.studies.t24.lengths import Lengths, draw_pairs, fit_proxy
from bandits.sweeps import static, sweep
from theory import checks, gibbs
from theory.checks import InvalidInput

COLORMAPS = {"pairs": "viridis", "bumps": "plasma"}
"""Two sequential, colour-blind safe colormaps, so that data are not taken for capacity."""

MOST_LARGE = 8
"""Most entries of a legend in large letters; a longer one is small, to stay on the page."""

PALEST = 0.85
"""Share of a colormap that is used; beyond it, lines fade into the paper."""

LABELS = {"pairs": "{} pairs", "bumps": "{} bumps"}


class Overoptimisation(Study):
    """Fit reward models to growing data, and follow the best policy at growing KL."""

    source = "I24 and T24: proxy and true reward"
    question = "When does pressure on a learned reward lower the true one?"
    quick = {"pairs": (30, 300), "bumps": (3, 12), "seeds": 20}

    max_length: int = 40  # T
    mode: float = 12.0  # of the reference's lengths, and the best one
    spread: float = 0.6  # of their logarithm
    temperature: float = 0.3  # of the labeller, in units of the gold reward
    ridge: float = 1e-4  # of the reward models, relative to the mean loss of a label
    pairs: tuple[int, ...] = (30, 100, 300, 1000, 3000)  # numbers of labelled pairs, growing
    bumps: tuple[int, ...] = (3, 6, 12, 24)  # capacities, growing: bumps that are added up
    largest: float = 2.8  # KL from the reference, in nats
    divergences: int = 29  # how many of them, evenly from 0
    # Independent data, at least 4: what is best is chosen on one half, judged on the other.
    seeds: int = 200

    def __post_init__(self) -> None:
        """Refuse what cannot be run or judged."""
        # Without noise rewards have no finite unit; without a ridge few pairs have no finite fit.
        for name in ("mode", "spread", "temperature", "ridge", "largest"):
            checks.require_positive(name, getattr(self, name))
        for name, least in (("max_length", 2), ("divergences", 2), ("seeds", 4)):
            checks.require_whole(name, getattr(self, name), least)
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
        """Return the problem with the most data and a reward model of one capacity."""
        return Lengths(
            max_length=self.max_length,
            mode=self.mode,
            spread=self.spread,
            pairs=self.pairs[-1],
            temperature=self.temperature,
            bumps=bumps,
            ridge=self.ridge,
        )

    def run(self) -> xr.Dataset:
        bandit = self.model(self.bumps[0]).bandit("mode")
        divergences = np.linspace(0, self.largest, self.divergences).astype(np.float32)

        def run_one(
            pairs: Int[Array, ""],
            bumps: int,
            seed: Int[Array, ""],
            bandit: CategoricalBandit,
            divergences: Float[Array, " n"],
        ) -> dict[str, Array]:
            model, gold, reference = self.model(bumps), bandit.reward, bandit.reference_log_probs
            # Smaller data are the first of the largest, so that they differ in size alone.
            drawn = draw_pairs(jax.random.key(seed), reference, gold, model)
            used = jnp.arange(model.pairs) < pairs
            proxy = model.temperature * fit_proxy(drawn, model.features(), model.ridge, used)
            policies = jnp.exp(gibbs.gibbs_at_kl(proxy, reference, divergences))
            start = jnp.exp(reference)
            # No constant is learned: the proxy is given the gold one's mean under the reference.
            return {"gold": policies @ gold, "proxy": (policies - start) @ proxy + start @ gold}

        pairs, bumps = list(self.pairs), static(self.bumps)
        return require_no_nan(
            sweep(
                run_one,
                {"pairs": pairs, "bumps": bumps, "seed": np.arange(self.seeds)},
                fixed={"bandit": bandit, "divergences": divergences},
                dims=["kl"],
                coords={"kl": divergences},
            )
        )

    @classmethod
    def plot(cls, dataset: xr.Dataset) -> Figure:
        """Draw rewards over the KL by data and by capacity; true ones at the largest KL by both."""
        edges = (0.068, 0.29, 0.985, 0.93)
        figure, grid = plotting.new_grid(1, 3, 15, 6.2, edges, wspace=0.06)
        by_data, by_capacity, by_both = grid[0]
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
        # The true reward sets the scale. Learned ones end far above it; the legend says where.
        low, high = by_data.get_ylim()
        top = high + 0.3 * (high - low)
        for axes, cut, along in cuts:
            _draw_learned(axes, cut["proxy"], along, top)
        by_data.set(title=f"More data, {bumps} bumps", ylim=(low, top))
        by_data.set_ylabel("reward, maximum lengths")
        by_capacity.set_title(f"More capacity, {pairs} pairs")
        by_both.set_title(f"True reward at {float(dataset['kl'][-1]):.3g} nats")
        by_both.set_xlabel("labelled pairs")
        log_axis(by_both, dataset["pairs"].values)
        below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.15), "frameon": False}
        for axes in grid[0]:
            size = 14 if len(axes.get_legend_handles_labels()[0]) <= MOST_LARGE else 9
            axes.legend(**below, ncols=2, handlelength=1.5, fontsize=size)
        return figure

    @classmethod
    def judge(cls, dataset: xr.Dataset) -> list[Claim]:
        require_no_nan(dataset)
        pairs, bumps = _middle(dataset)
        fewest, most = (int(dataset["pairs"][i]) for i in (0, -1))
        by_data, ends = dataset.sel(bumps=bumps), dataset["gold"].isel(kl=-1)
        falls = _on_other_half(by_data["gold"], _fall)
        best = by_data["gold"].sel(pairs=fewest).mean("seed").idxmax("kl")
        excess = (by_data["proxy"] - by_data["gold"]).isel(kl=-1)
        return [
            claim(
                "Pressure on a learned reward ends by lowering the true one: its fall from the "
                f"best KL to the largest, {fewest} pairs",
                falls.sel(pairs=fewest),
                note=f"The best KL is {float(best):.1f} nats.",
            ),
            claim(
                f"More data put that off: the fall with {fewest} pairs minus that with {most}",
                falls.sel(pairs=fewest) - falls.sel(pairs=most),
            ),
            claim(
                "More data bring the learned reward nearer the true one: learned minus true reward "
                f"at the largest KL, with {fewest} pairs minus with {most}",
                excess.sel(pairs=fewest) - excess.sel(pairs=most),
                note="That the learned one rises with the KL is no finding: the policies maximise "
                f"it. Learned minus true: {_listed(excess, 'pairs')}.",
            ),
            *_judge_capacity(ends.sel(pairs=pairs)),
            _judge_capacity_by_data(ends.isel(pairs=[0, -1])),
        ]


def _colors(gold: xr.DataArray, along: str) -> np.ndarray:
    """Return a colour for each value, from dark for the least to pale."""
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


def _judge_capacity(ends: xr.DataArray) -> list[Claim]:
    """Judge capacity at one number of pairs, on other seeds than those that choose the best."""
    suited = _on_other_half(ends, lambda chosen, judged: _with_bumps(judged, _best_bumps(chosen)))
    return [
        claim(
            "Capacity must suit the data: true reward at the largest KL with the best number of "
            f"bumps minus that with too {how}, {int(other['bumps'])}; {int(ends['pairs'])} pairs",
            suited - other,
            note=f"Best: {int(_best_bumps(ends))}. True reward: {_listed(ends, 'bumps')}.",
        )
        for how, other in (("few", ends.isel(bumps=0)), ("many", ends.isel(bumps=-1)))
    ]


def _judge_capacity_by_data(ends: xr.DataArray) -> Claim:
    """Judge capacity at two numbers of pairs; each must gain by a number of bumps of its own."""
    gains = _on_other_half(ends, _gain_of_own_capacity)
    fewest, most = (int(n) for n in ends["pairs"])
    small, large = (int(n) for n in _best_bumps(ends))
    return claim(
        "More data want more capacity: true reward at the largest KL with the best number of bumps "
        "minus that with the number that is best for the other data, the lesser of the gains with "
        f"{fewest} and with {most} pairs",
        min((over_seeds(gains.isel(pairs=i)) for i in (0, 1)), key=lambda gain: gain.low),
        note=f"Best: {small} bumps with {fewest} pairs, {large} with {most}.",
    )


def _gain_of_own_capacity(chosen: xr.DataArray, judged: xr.DataArray) -> xr.DataArray:
    """Return the gain of each number of pairs; negative where fewer pairs want more capacity."""
    own = _best_bumps(chosen)
    gain = _with_bumps(judged, own) - _with_bumps(judged, own.copy(data=own.values[::-1]))
    return gain * np.sign(own.values[-1] - own.values[0])


def _fall(chosen: xr.DataArray, judged: xr.DataArray) -> xr.DataArray:
    """Return the fall from the KL that is best on average to the largest."""
    best = chosen.mean("seed").argmax("kl").drop_vars("kl", errors="ignore")
    return judged.isel(kl=best) - judged.isel(kl=-1)


def _on_other_half(
    values: xr.DataArray, effect: Callable[[xr.DataArray, xr.DataArray], xr.DataArray]
) -> xr.DataArray:
    """Return an effect of what is best on one half of the seeds, judged on the other, both ways.

    What is best by chance would look better on the seeds that chose it.
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
    """Return the numbers of pairs and of bumps at which the other is varied alone."""
    pairs, bumps = (int(dataset[name][dataset.sizes[name] // 2]) for name in ("pairs", "bumps"))
    return pairs, bumps
