"""A unimodal family fitted to a bimodal target by each divergence: covering, seeking, between.

Discretised Gaussians, log p(a) = −((a − centre)/width)²/2 + constant, cannot have two modes. The
forward KL finds the one with the target's mean and variance, from any start, and so puts mass where
the target has none; the reverse KL mostly sits on one mode, and which one depends on the start.
"""

from dataclasses import dataclass
from typing import NamedTuple

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
from bandits.environments import gaussian_reference
from bandits.fitting import minimize
from bandits.losses import DIVERGENCES
from bandits.studies.base import Claim, Experiment
from bandits.studies.curves import require_no_nan
from bandits.studies.intervals import exact, mean_interval, proportion_interval
from bandits.sweeps import sweep

NAMES = ("forward_kl", "reverse_kl", "jeffreys", "jensen_shannon")
UNIT = 10.0
"""Arms in a unit of the centre that Adam moves, so that its steps suit centre and width alike."""


class Gaussian(NamedTuple):
    """The family's parameters: the centre in units of arms, and the logarithm of the width."""

    centre: Float[Array, ""]
    log_width: Float[Array, ""]

    def log_probs(self, num_arms: int) -> Float[Array, " K"]:
        """Of every arm."""
        return gaussian_reference(num_arms, UNIT * self.centre, jnp.exp(self.log_width))


@dataclass(frozen=True)
class Settings:
    """The targets and the fits.

    Attributes:
      num_arms: K.
      targets: random ones, two Gaussians each.
      centres: lowest and highest centre of the lower mode; the upper one's mirror them. Closer to
        the ends, the target would be as wide as a uniform law, the family's widest.
      widths: least and largest of a mode.
      shares: least and largest of the lower mode.
      starts: centres at which fits start, in arms.
      start_width: of all starts.
      learning_rate: of Adam, falling to 0 along a cosine.
      steps: of it.
    """

    num_arms: int = 100
    targets: int = 100
    centres: tuple[float, float] = (26.0, 40.0)
    widths: tuple[float, float] = (3.0, 6.0)
    shares: tuple[float, float] = (0.3, 0.7)
    starts: tuple[float, ...] = (10.0, 30.0, 50.0, 70.0, 90.0)
    start_width: float = 10.0
    learning_rate: float = 0.1
    steps: int = 1500


def run(settings: Settings) -> xr.Dataset:
    """The fit of each divergence to every target from every start."""
    divergences = [DIVERGENCES[name] for name in NAMES]

    def run_one(
        loss: Int[Array, ""], target: Int[Array, ""], start: Float[Array, ""]
    ) -> dict[str, Array]:
        goal, valley = _random_target(target, settings)

        def distance(fit: Gaussian) -> Float[Array, ""]:
            return jax.lax.switch(loss, divergences, fit.log_probs(settings.num_arms), goal)

        begin = Gaussian(start / UNIT, jnp.log(settings.start_width))
        schedule = optax.cosine_decay_schedule(settings.learning_rate, settings.steps)
        fit = minimize(distance, begin, optax.adam(schedule), settings.steps)
        log_probs = fit.log_probs(settings.num_arms)
        above = jnp.sum(jnp.where(jnp.arange(settings.num_arms) > valley, jnp.exp(log_probs), 0.0))
        moments, wanted = _moments(log_probs), _moments(goal)
        return {
            "log_probs": log_probs,
            "target_log_probs": goal,
            "mean": moments[0],
            "deviation": moments[1],
            "target_mean": wanted[0],
            "target_deviation": wanted[1],
            "upper_mass": above,
        }

    dataset = sweep(
        run_one,
        {
            "loss": np.arange(len(NAMES)),
            "target": np.arange(settings.targets),
            "start": np.array(settings.starts, np.float32),
        },
        dims=["arm"],
    ).assign_coords(loss=list(NAMES), start=list(settings.starts))
    require_no_nan(dataset)
    # A target is the same whatever is fitted to it.
    once = [name for name in dataset.data_vars if str(name).startswith("target_")]
    return dataset.assign({name: dataset[name].isel(loss=0, start=0, drop=True) for name in once})


def _random_target(
    seed: ArrayLike, settings: Settings
) -> tuple[Float[Array, " K"], Float[Array, ""]]:
    """A mixture of two Gaussians, and the arm half-way between them."""
    low, high = (jnp.array(pair) for pair in zip(
        settings.centres, settings.centres, settings.widths, settings.widths, settings.shares,
        strict=True,
    ))  # fmt: skip
    draws = jax.random.uniform(jax.random.key(seed), (5,), minval=low, maxval=high)
    lower, mirrored, *widths, share = draws
    upper = settings.num_arms - 1 - mirrored
    modes = [
        gaussian_reference(settings.num_arms, centre, width)
        for centre, width in zip((lower, upper), widths, strict=True)
    ]
    mixture = jnp.logaddexp(jnp.log(share) + modes[0], jnp.log1p(-share) + modes[1])
    return mixture, 0.5 * (lower + upper)


def _moments(log_probs: Float[Array, " K"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Mean and standard deviation, in arms."""
    arms, probs = jnp.arange(log_probs.size), jnp.exp(log_probs)
    mean = probs @ arms
    return mean, jnp.sqrt(probs @ (arms - mean) ** 2)


def plot(dataset: xr.Dataset) -> Figure:
    """A panel a divergence, with the fits from every start; below, the fits to all targets."""
    figure = plotting.new_figure(15.5, 8)
    grid = figure.add_gridspec(2, 4, height_ratios=[1, 1.05])
    figure.subplots_adjust(0.055, 0.085, 0.99, 0.95, wspace=0.12, hspace=0.4)
    # The target of middling width stands for all.
    deviations = dataset["target_deviation"].values
    drawn = dataset.isel(target=int(np.argsort(deviations)[deviations.size // 2]))
    target = np.exp(drawn["target_log_probs"].values)
    arms = np.arange(target.size)
    first: Axes | None = None
    for i, name in enumerate(NAMES):
        axes = figure.add_subplot(grid[0, i], sharey=first)
        first = first or axes
        axes.fill_between(arms, target, color=plotting.TARGET_COLOR, linewidth=0)
        for start in dataset["start"].values:
            fit = np.exp(drawn["log_probs"].sel(loss=name, start=start).values)
            axes.plot(arms, fit, color=plotting.METHOD_COLORS[name], alpha=0.75)
        axes.set(title=plotting.METHOD_LABELS[name], xlabel="arm")
        axes.tick_params(labelleft=i == 0)
    assert first is not None
    first.set(ylabel="probability (target in grey)", ylim=(0, None))
    widths, sides = figure.add_subplot(grid[1, :2]), figure.add_subplot(grid[1, 2:])
    for name in NAMES:
        color, label = plotting.METHOD_COLORS[name], plotting.METHOD_LABELS[name]
        one = dataset.sel(loss=name).isel(start=len(dataset["start"]) // 2)
        widths.plot(
            one["target_deviation"], one["deviation"], "o", color=color, label=label, markersize=5
        )
        masses = np.sort(_larger_side(dataset).sel(loss=name).values.ravel())
        sides.plot(masses, np.linspace(0, 1, masses.size), color=color, label=label)
    span = [deviations.min(), deviations.max()]
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


def _larger_side(dataset: xr.Dataset) -> xr.DataArray:
    """Mass of a fit on the side of the valley where it has more."""
    upper = dataset["upper_mass"]
    return upper.where(upper > 0.5, 1 - upper)


def judge(dataset: xr.Dataset) -> list[Claim]:
    """Moments and starts of the forward KL, sides of the reverse KL, and the valley."""
    require_no_nan(dataset)
    forward, reverse = (dataset.sel(loss=name) for name in NAMES[:2])
    moments = max(
        float(abs(forward[name] - dataset[f"target_{name}"]).max())
        for name in ("mean", "deviation")
    )
    spread = forward["mean"].max("start") - forward["mean"].min("start")
    one_side = {name: (_larger_side(dataset).sel(loss=name) > 0.95).values for name in NAMES}
    sides = (reverse["upper_mass"] > 0.5).mean("start").values
    both = (sides > 0) & (sides < 1)
    ratio = mean_interval((forward["deviation"] / reverse["deviation"]).mean("start").values)
    others = ", ".join(
        f"{plotting.METHOD_LABELS[name]} {one_side[name].mean():.2f}" for name in NAMES[2:]
    )
    return [
        EXPERIMENT.claim(
            "Forward KL matches the target's mean and standard deviation: largest error, in arms "
            "(holds if below 0.1)",
            exact(moments),
            moments < 0.1,
        ),
        EXPERIMENT.claim(
            "from any start: largest distance of its means, in arms (holds if below 0.1)",
            exact(spread.max()),
            float(spread.max()) < 0.1,
        ),
        EXPERIMENT.claim(
            "Reverse KL takes one mode more often than not, forward KL never: share of reverse "
            "fits with 95% of their mass on one side of the valley (holds if above a half)",
            proportion_interval(int(one_side["reverse_kl"].sum()), one_side["reverse_kl"].size),
            one_side["reverse_kl"].mean() > 0.5 and not one_side["forward_kl"].any(),
            note=f"Forward KL {one_side['forward_kl'].mean():.2f}, {others}.",
        ),
        EXPERIMENT.claim(
            "and the start decides which: share of targets where it ends on different sides (holds "
            "if above a half)",
            proportion_interval(int(both.sum()), both.size),
            both.mean() > 0.5,
        ),
        EXPERIMENT.claim(
            "Covering is wider than seeking: ratio of the standard deviations of the two fits",
            ratio,
            ratio.low > 1,
        ),
    ]


EXPERIMENT = Experiment(
    name="kl_projections",
    source="S25: projections; T24, section 6",
    question="Where does each divergence put a policy that cannot cover the target?",
    full=Settings(),
    quick=Settings(targets=12),
    run=run,
    plot=plot,
    judge=judge,
)
