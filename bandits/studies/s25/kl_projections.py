"""Fit a unimodal family to a bimodal target by each divergence: covering, seeking, between.

Discretised Gaussians, log p(a) = −((a − centre)/width)²/2 + constant, cannot have two modes. The
forward KL finds the one with the target's mean and variance, from any start, and so puts mass where
the target has none. The reverse KL mostly sits on one mode, and the start decides on which.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int
from matplotlib.figure import Figure

from bandits import plotting
from bandits.fitting import minimize
from bandits.losses import DIVERGENCES
from bandits.losses.divergences import Divergence
from bandits.problems.environments import gaussian_reference
from bandits.studies.curves import require_no_nan
from bandits.studies.intervals import mean_interval, share_interval
from bandits.studies.study import Claim, Criterion, Study, below, claim
from bandits.sweeps import choices, sweep

UNIT = 10.0
"""Number of arms in a unit of the centre, so that Adam's steps suit centre and width alike."""


class Gaussian(NamedTuple):
    """Hold a member of the family: its centre in `UNIT` arms, and the logarithm of its width."""

    centre: Float[Array, ""]
    log_width: Float[Array, ""]

    def log_probs(self, num_arms: int) -> Float[Array, " K"]:
        """Return the log-probability of every arm."""
        return gaussian_reference(num_arms, UNIT * self.centre, jnp.exp(self.log_width))


class KlProjections(Study):
    """Minimise every divergence to random targets of two Gaussians each, from several starts."""

    source = "S25: projections; T24, section 6"
    question = "Where does each divergence put a policy that cannot cover the target?"
    quick = {"targets": 12}

    num_arms: int = 100  # K
    targets: int = 100
    # Lowest and highest centre of the lower mode; the upper one's mirror them. Closer to the ends,
    # the target would be as wide as a uniform law, the family's widest.
    centres: tuple[float, float] = (26.0, 40.0)
    widths: tuple[float, float] = (3.0, 6.0)  # least and largest of a mode
    shares: tuple[float, float] = (0.3, 0.7)  # least and largest of the lower mode
    starts: tuple[float, ...] = (10.0, 30.0, 50.0, 70.0, 90.0)  # centres, in arms
    start_width: float = 10.0  # of all starts
    learning_rate: float = 0.1  # of Adam, falling to 0 along a cosine
    steps: int = 1500  # of it

    NAMES = ("forward_kl", "reverse_kl", "jeffreys", "jensen_shannon")

    def run(self) -> xr.Dataset:
        axes = {
            "loss": choices({name: DIVERGENCES[name] for name in self.NAMES}),
            "target": np.arange(self.targets),
            "start": list(self.starts),
        }
        dataset = require_no_nan(sweep(self._fit, axes, dims=["arm"]))
        # A target is the same whatever is fitted to it.
        once = [name for name in dataset.data_vars if str(name).startswith("target_")]
        return dataset.assign(dataset[once].isel(loss=0, start=0, drop=True))

    def _fit(
        self, loss: Divergence, target: Int[Array, ""], start: Float[Array, ""]
    ) -> dict[str, Array]:
        """Return a fit, its moments and those of its target, and its mass above the valley."""
        goal, valley = self._draw_target(target)
        begin = Gaussian(start / UNIT, jnp.log(self.start_width))
        adam = optax.adam(optax.cosine_decay_schedule(self.learning_rate, self.steps))
        fit = minimize(lambda p: loss(p.log_probs(self.num_arms), goal), begin, adam, self.steps)
        log_probs = fit.log_probs(self.num_arms)
        above = jnp.sum(jnp.where(jnp.arange(self.num_arms) > valley, jnp.exp(log_probs), 0.0))
        (mean, deviation), (goal_mean, goal_deviation) = _moments(log_probs), _moments(goal)
        return {
            "log_probs": log_probs,
            "target_log_probs": goal,
            "mean": mean,
            "deviation": deviation,
            "target_mean": goal_mean,
            "target_deviation": goal_deviation,
            "upper_mass": above,
        }

    def _draw_target(self, seed: ArrayLike) -> tuple[Float[Array, " K"], Float[Array, ""]]:
        """Return a random mixture of two Gaussians, and the arm half-way between them."""
        ranges = (self.centres, self.centres, self.widths, self.widths, self.shares)
        low, high = jnp.array(ranges).T
        lower, mirrored, lower_width, upper_width, share = jax.random.uniform(
            jax.random.key(seed), (5,), minval=low, maxval=high
        )
        upper = self.num_arms - 1 - mirrored
        first = jnp.log(share) + gaussian_reference(self.num_arms, lower, lower_width)
        second = jnp.log1p(-share) + gaussian_reference(self.num_arms, upper, upper_width)
        return jnp.logaddexp(first, second), 0.5 * (lower + upper)

    @classmethod
    def plot(cls, dataset: xr.Dataset) -> Figure:
        """Draw the fits of each divergence from every start; below, the fits to all targets."""
        figure = plotting.new_figure(15.5, 8)
        grid = figure.add_gridspec(2, 4, height_ratios=[1, 1.05])
        figure.subplots_adjust(0.055, 0.085, 0.99, 0.95, wspace=0.12, hspace=0.4)
        first = figure.add_subplot(grid[0, 0])
        panels = [first, *(figure.add_subplot(grid[0, i], sharey=first) for i in range(1, 4))]
        # The target of middling width stands for all.
        by_width = dataset["target_deviation"].argsort()
        drawn = dataset.isel(target=int(by_width[by_width.size // 2]))
        target = np.exp(drawn["target_log_probs"].values)
        for axes, name in zip(panels, cls.NAMES, strict=True):
            fits = np.exp(drawn["log_probs"].sel(loss=name).transpose("arm", "start").values)
            axes.fill_between(range(target.size), target, color=plotting.TARGET_COLOR, linewidth=0)
            axes.plot(fits, color=plotting.METHOD_COLORS[name], alpha=0.75)
            axes.set(title=plotting.METHOD_LABELS[name], xlabel="arm")
            axes.tick_params(labelleft=axes is first)
        first.set(ylabel="probability (target in grey)", ylim=(0, None))
        widths, sides = figure.add_subplot(grid[1, :2]), figure.add_subplot(grid[1, 2:])
        one = dataset.isel(start=dataset.sizes["start"] // 2)
        for name in cls.NAMES:
            color, label = plotting.METHOD_COLORS[name], plotting.METHOD_LABELS[name]
            points: dict[str, Any] = {"color": color, "label": label, "markersize": 5}
            widths.plot(one["target_deviation"], one["deviation"].sel(loss=name), "o", **points)
            masses = np.sort(_larger_side(dataset).sel(loss=name).values.ravel())
            sides.plot(masses, np.linspace(0, 1, masses.size), color=color)
        span = [one["target_deviation"].min(), one["target_deviation"].max()]
        widths.plot(span, span, ":", color=plotting.INK, linewidth=1.5)
        widths.set(
            xlabel="standard deviation of the target, in arms",
            ylabel="of the fit started half-way",
            title="Covering is as wide as the target",
            ylim=(0, None),
        )
        widths.legend(ncols=2, fontsize=12)
        sides.set(
            xlabel="mass of the fit on its side of the valley",
            ylabel="share of fits below",
            title="Seeking takes one side",
            xlim=(0.49, 1.01),
        )
        return figure

    @classmethod
    def judge(cls, dataset: xr.Dataset) -> list[Claim]:
        require_no_nan(dataset)
        forward, reverse = (dataset.sel(loss=name) for name in cls.NAMES[:2])
        moments = [abs(forward[m] - dataset[f"target_{m}"]).max() for m in ("mean", "deviation")]
        spread = forward["mean"].max("start") - forward["mean"].min("start")
        one_side = _larger_side(dataset) > 0.95
        share = {name: float(one_side.sel(loss=name).mean()) for name in cls.NAMES}
        upper = (reverse["upper_mass"] > 0.5).mean("start")
        ratio = (forward["deviation"] / reverse["deviation"]).mean("start")
        others = ", ".join(
            f"{plotting.METHOD_LABELS[name]} {share[name]:.2f}" for name in cls.NAMES[2:]
        )
        return [
            claim(
                "Forward KL matches the target's mean and standard deviation: largest error, in "
                "arms",
                max(moments),
                below(0.1),
            ),
            claim(
                "from any start: largest distance of its means, in arms",
                spread.max(),
                below(0.1),
            ),
            claim(
                "Reverse KL takes one mode more often than not, forward KL never: share of reverse "
                "fits with 95% of their mass on one side of the valley",
                share_interval(one_side.sel(loss="reverse_kl")),
                Criterion(
                    lambda interval: interval.effect > 0.5 and share["forward_kl"] == 0,
                    "above a half",
                ),
                note=f"Forward KL {share['forward_kl']:.2f}, {others}.",
            ),
            claim(
                "and the start decides which: share of targets where it ends on different sides",
                share_interval((upper > 0) & (upper < 1)),
                Criterion(lambda interval: interval.effect > 0.5, "above a half"),
            ),
            claim(
                "Covering is wider than seeking: ratio of the standard deviations of the two fits",
                mean_interval(ratio.values),
                Criterion(lambda interval: interval.low > 1, ""),
            ),
        ]


def _moments(log_probs: Float[Array, " K"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Return the mean and the standard deviation, in arms."""
    arms, probs = jnp.arange(log_probs.size), jnp.exp(log_probs)
    mean = probs @ arms
    return mean, jnp.sqrt(probs @ (arms - mean) ** 2)


def _larger_side(dataset: xr.Dataset) -> xr.DataArray:
    """Return the mass of each fit on the side of the valley where it has more."""
    upper = dataset["upper_mass"]
    return upper.where(upper > 0.5, 1 - upper)
