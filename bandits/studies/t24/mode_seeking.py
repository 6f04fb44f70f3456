"""T24's numerical example: few steps of reverse KL take a policy to some of a target's modes.

From starts far from a target of three modes that the policy can represent exactly, both KLs are
descended step by step. Forward KL spreads the mass over all modes; reverse KL has long put nearly
all of it on a part of them. Given time, both should end at the target: how much time, and what it
depends on, is measured too.
"""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bandits import plotting
from bandits.animation import Frames
from bandits.descent import descend, log_spaced_steps
from bandits.losses import DIVERGENCES
from bandits.metrics import ATTRIBUTES, basin_masses, find_basins, measure
from bandits.studies.base import Claim, Experiment
from bandits.studies.intervals import mean_interval, proportion_interval
from bandits.studies.t24.three_modes import ThreeModes
from bandits.sweeps import sweep

PAIR = ("forward_kl", "reverse_kl")
MOST_MASS = 0.9
"""The share of the policy's mass that has to lie on the target's modes."""

ARRIVED = 0.05
"""A policy has arrived at the target when KL(p‖q) is below this, in nats."""


@dataclass(frozen=True)
class Settings:
    """What is descended, from where, and for how long.

    Attributes:
      problem: the target and the law of the starts.
      shown_start: (centre, width, floor) of the start whose distributions are drawn.
      random_starts: how many starts the intervals are taken over.
      learning_rate: step size of the plain gradient.
      last_step: length of the descent.
      steps_per_decade: of the record.
    """

    problem: ThreeModes = field(default_factory=ThreeModes)
    shown_start: tuple[float, float, float] = (5.0, 12.0, 1e-6)
    random_starts: int = 64
    learning_rate: float = 1.0
    last_step: int = 10_000
    steps_per_decade: int = 20


def run(settings: Settings) -> xr.Dataset:
    """Both descents from every start; start 0 is the one that is drawn."""
    problem = settings.problem
    steps = _recorded_steps(settings)
    starts = np.vstack([settings.shown_start, problem.random_starts(settings.random_starts)])

    def descend_both(
        start: Float[Array, "3"], target_log_probs: Float[Array, " K"]
    ) -> dict[str, Array]:
        start_log_probs = problem.start_log_probs(start)
        log_probs = jnp.stack(
            [
                descend(
                    DIVERGENCES[name],
                    start_log_probs,
                    target_log_probs,
                    settings.learning_rate,
                    steps,
                )
                for name in PAIR
            ]
        )
        basins = find_basins(target_log_probs)
        start_masses = basin_masses(jnp.exp(start_log_probs), basins)
        return {
            **measure(log_probs, target_log_probs),
            "log_probs": log_probs,
            "least_basin": jnp.min(jnp.where(basins.is_mode, start_masses, 1.0)),
        }

    target = jax.jit(problem.target_log_probs)()
    dataset = sweep(
        descend_both,
        {"start": starts},
        fixed={"target_log_probs": target},
        dims=["loss", "step", "arm"],
        coords={"loss": list(PAIR), "step": list(steps)},
        attributes=ATTRIBUTES,
    )
    dataset["log_probs"] = dataset["log_probs"].sel(start=0)
    dataset["target_log_probs"] = ("arm", np.asarray(target))
    return dataset


def plot(dataset: xr.Dataset) -> Figure:
    """Above, the distributions step by step; below, mass on modes, modes held, KLs, arrival."""
    figure = plotting.new_figure(16, 11.5)
    margins = {"left": 0.055, "right": 0.985, "top": 0.965, "bottom": 0.06}
    grid = figure.add_gridspec(3, 4, wspace=0.18, hspace=0.36, **margins)
    shown = [s for s in (1, 3, 10, 30, 100, 300, 1_000, 10_000) if s in dataset["step"]]
    first = None
    for i, step in enumerate(shown):
        first = figure.add_subplot(grid[i // 4, i % 4], sharey=first)
        _plot_distributions(first, dataset, step)
        if i % 4:
            first.tick_params(labelleft=False)
        else:
            first.set_ylabel("probability")
        if i == 0:
            first.legend(loc="upper right")

    mass, held, kls, arrival = (figure.add_subplot(grid[2, i]) for i in range(4))
    for name in PAIR:
        one = dataset.sel(loss=name).isel(start=slice(1, None), step=slice(1, None))
        plotting.draw_band(mass, one["step"], one["mode_mass"].values, name)
        plotting.draw_band(held, one["step"], one["modes_held"].values, name)
        color = plotting.METHOD_COLORS[name]
        for metric, line in (("forward_kl", "-"), ("reverse_kl", "--")):
            kls.plot(one["step"], one[metric].median("start"), line, color=color)
    mass.axhline(MOST_MASS, color=plotting.INK, linewidth=1, linestyle=":")
    mass.set(title="Mass on the target's modes", ylim=(0, 1))
    held.set(title="Modes held, of 3", ylim=(0, 3.2), yticks=[0, 1, 2, 3])
    kls.set(title="KL to the target in nats", yscale="log")
    kls.plot([], [], "-", color=plotting.INK, label="KL(q‖p)")
    kls.plot([], [], "--", color=plotting.INK, label="KL(p‖q)")
    for axes in (mass, held, kls):
        axes.set(xscale="log", xlabel="gradient steps")
    mass.legend(loc="lower right")
    kls.legend(loc="lower left")
    _plot_arrival(arrival, dataset)
    return figure


def animate(dataset: xr.Dataset) -> Frames:
    """Both policies step by step, from one start, over the target."""
    arms = np.arange(dataset.sizes["arm"])
    target = np.exp(dataset["target_log_probs"].values)
    probs = np.exp(dataset["log_probs"].values)
    figure = plotting.new_figure(12, 4.6)
    panels = figure.subplots(1, 2, sharey=True)
    figure.subplots_adjust(0.07, 0.14, 0.99, 0.84, wspace=0.06)
    lines = []
    for i, (axes, name) in enumerate(zip(panels, PAIR, strict=True)):
        axes.fill_between(arms, target, color=plotting.TARGET_COLOR, label="target q", linewidth=0)
        axes.plot(
            arms, probs[i, 0], color=plotting.INK, linewidth=1.2, linestyle=":", label="start"
        )
        color = plotting.METHOD_COLORS[name]
        lines.append(axes.plot(arms, probs[i, 0], color=color, label="policy p")[0])
        axes.set(xlabel="arm", ylim=(0, 1.1 * probs.max()))
        axes.legend(loc="upper right")
    panels[0].set_ylabel("probability")
    said = figure.suptitle("", fontsize=15)
    kl = {"forward_kl": "KL(q‖p)", "reverse_kl": "KL(p‖q)"}

    def draw(frame: int) -> None:
        at = dataset.isel(step=frame, start=0)
        step = int(at["step"])
        said.set_text(f"after {step:,} gradient step{'' if step == 1 else 's'}")
        for i, (axes, name) in enumerate(zip(panels, PAIR, strict=True)):
            lines[i].set_ydata(probs[i, frame])
            held = int(at["modes_held"].sel(loss=name))
            axes.set_title(
                f"{plotting.METHOD_LABELS[name]}, {kl[name]}: "
                f"{float(at['mode_mass'].sel(loss=name)):.0%} on modes, {held} of 3 held"
            )

    return Frames(figure, draw, dataset.sizes["step"])


def judge(dataset: xr.Dataset) -> list[Claim]:
    """Faster, on fewer modes, and whether both arrive."""
    random = dataset.isel(start=slice(1, None))
    time = _steps_until(random, random["mode_mass"] >= MOST_MASS)
    reached = time.notnull().all("loss").values
    log_ratio = np.log((time.sel(loss="forward_kl") / time.sel(loss="reverse_kl")).values)
    ratio = mean_interval(log_ratio[reached])
    held = random["modes_held"].sel(step=time.fillna(0))
    difference = held.sel(loss="forward_kl") - held.sel(loss="reverse_kl")
    fewer = mean_interval(difference.values[reached])
    arrived = _steps_until(random, random["reverse_kl"] < ARRIVED).notnull()
    both = arrived.all("loss").values
    least = random["least_basin"].values
    last = int(dataset["step"].max())
    return [
        EXPERIMENT.claim(
            "Reverse KL moves mass faster: forward KL needs this many times the steps to put 90% "
            f"on the target's modes (geometric mean, {reached.sum()} of {reached.size} starts)",
            type(ratio)(*np.exp(ratio)),
            ratio.low > 0,
        ),
        EXPERIMENT.claim(
            "Reverse KL takes only a subset: at that moment it holds this many modes fewer than "
            "forward KL does at its own",
            fewer,
            fewer.low > 0,
        ),
        EXPERIMENT.claim(
            f"Both KLs end at a target that the policy can represent: share of starts from which "
            f"both have KL(p||q) < {ARRIVED:g} nats after {last:,} steps",
            proportion_interval(int(both.sum()), both.size),
            both.all(),
            asserted=False,
            note=_where_both_arrive(least, both),
        ),
    ]


def _recorded_steps(settings: Settings) -> tuple[int, ...]:
    """Log-spaced, with 1, 3, 10, 30, … among them to draw."""
    drawn = [k * 10**d for d in range(6) for k in (1, 3) if k * 10**d <= settings.last_step]
    spaced = log_spaced_steps(settings.last_step, settings.steps_per_decade)
    return tuple(sorted({*spaced, *drawn}))


def _where_both_arrive(least: np.ndarray, both: np.ndarray) -> str:
    """The least mass on a basin from which every start arrives, and below which none does."""
    if both.all():
        return "From every start."
    if not both.any():
        return "From no start: reverse KL is still on a subset of the modes."
    return (
        "A mode with little mass has a reverse gradient in proportion to that mass, so reverse KL "
        f"stays on the others: no start with less than {least[both].min():.1e} on some mode's "
        f"basin arrives, every start with more than {least[~both].max():.1e} on each does."
    )


def _steps_until(dataset: xr.Dataset, reached: xr.DataArray) -> xr.DataArray:
    """The first recorded step at which ``reached`` is true, NaN where it never is."""
    return dataset["step"].where(reached).min("step")


def _plot_distributions(axes: Axes, dataset: xr.Dataset, step: int) -> None:
    arms = np.arange(dataset.sizes["arm"])
    target = np.exp(dataset["target_log_probs"].values)
    axes.fill_between(arms, target, color=plotting.TARGET_COLOR, label="target", linewidth=0)
    start = np.exp(dataset["log_probs"].sel(step=0, loss="forward_kl").values)
    axes.plot(arms, start, color=plotting.INK, linewidth=1, linestyle=":", label="start")
    for name in PAIR:
        probs = np.exp(dataset["log_probs"].sel(step=step, loss=name).values)
        axes.plot(
            arms, probs, color=plotting.METHOD_COLORS[name], label=plotting.METHOD_LABELS[name]
        )
    axes.set(title=f"after {step:,} step{'s' if step > 1 else ''}", xlabel="arm", ylim=(0, 0.12))


def _plot_arrival(axes: Axes, dataset: xr.Dataset) -> None:
    random = dataset.isel(start=slice(1, None))
    time = _steps_until(random, random["reverse_kl"] < ARRIVED)
    last = float(dataset["step"].max())
    for name in PAIR:
        steps = time.sel(loss=name).values
        never = np.isnan(steps)
        color = plotting.METHOD_COLORS[name]
        axes.plot(random["least_basin"][~never], steps[~never], "o", color=color)
        axes.plot(random["least_basin"][never], np.full(never.sum(), 1.5 * last), "x", color=color)
    axes.axhline(last, color=plotting.INK, linewidth=1, linestyle=":")
    axes.text(0.98, 0.97, "× not yet arrived", transform=axes.transAxes, va="top", ha="right")
    axes.set(
        title="Steps to arrive at the target",
        xlabel="start's mass on poorest mode",
        xscale="log",
        yscale="log",
        ylim=(None, 3 * last),
    )


EXPERIMENT = Experiment(
    name="mode_seeking",
    source="T24, section 6, numerical example",
    question="What do a few steps of each KL do to a policy far from a target of three modes?",
    full=Settings(),
    quick=Settings(random_starts=16, last_step=2_000, steps_per_decade=12),
    run=run,
    plot=plot,
    judge=judge,
    animate=animate,
)
