"""Descend both KLs to a target of three modes, as in T24's numerical example.

K arms lie on a line. The target q has three equal modes, which a tabular policy can represent
exactly. A start is a Gaussian near the left end, mixed with a little of the uniform distribution:
how much decides how far the policy's support reaches. Forward KL spreads the mass over all modes.
Reverse KL is faster, and first puts nearly all of it on a part of them.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bandits import plotting
from bandits.animation import Frames
from bandits.losses import DIVERGENCES
from bandits.problems.environments import gaussian_reference
from bandits.problems.metrics import ATTRIBUTES, basin_masses, find_basins, measure
from bandits.studies.intervals import Interval, mean_interval, share_interval
from bandits.studies.study import ALWAYS, Claim, Criterion, Study, claim
from bandits.sweeps import sweep
from bandits.training.descent import descend, log_spaced_steps

PAIR = ("forward_kl", "reverse_kl")


@dataclass(frozen=True)
class ThreeModes:
    """Set the target and the distribution of the starts."""

    num_arms: int = 100  # K
    modes: tuple[float, ...] = (20.0, 50.0, 80.0)  # centres of the target's modes, in arms
    mode_width: float = 4.0  # their standard deviation, in arms
    centre_range: tuple[float, float] = (0.0, 20.0)  # of the starts' Gaussians, in arms
    width_range: tuple[float, float] = (8.0, 16.0)  # of the same, in arms
    floor_range: tuple[float, float] = (1e-6, 1e-2)  # of a start's uniform part, log-uniform
    seed: int = 0  # of the random starts

    def target_log_probs(self) -> Float[Array, " K"]:
        """Return log q: the equal mixture of the modes."""
        modes = jax.vmap(lambda c: gaussian_reference(self.num_arms, c, self.mode_width))
        components = modes(jnp.asarray(self.modes))
        return jax.nn.logsumexp(components, axis=0) - jnp.log(len(self.modes))

    def start_log_probs(self, start: Float[Array, "3"]) -> Float[Array, " K"]:
        """Return log p_0 of a start (centre, width, floor)."""
        centre, width, floor = start
        gaussian = gaussian_reference(self.num_arms, centre, width)
        return jnp.logaddexp(jnp.log1p(-floor) + gaussian, jnp.log(floor) - jnp.log(self.num_arms))

    def random_starts(self, count: int) -> np.ndarray:
        """Return ``[count, 3]`` starts, uniform in their ranges, the same for the same seed."""
        uniform = np.random.default_rng(self.seed).uniform(size=(count, 3))
        ranges = (self.centre_range, self.width_range, tuple(np.log(self.floor_range)))
        low, high = np.array(ranges).T
        starts = low + uniform * (high - low)
        starts[:, 2] = np.exp(starts[:, 2])
        return starts


class ModeSeeking(Study):
    """Measure which KL is faster, on how many modes, and when both arrive at the target."""

    source = "T24, section 6, numerical example"
    question = "What do a few steps of each KL do to a policy far from a target of three modes?"
    quick = {"random_starts": 16, "last_step": 2_000, "steps_per_decade": 12}

    problem: ThreeModes = ThreeModes()
    # Centre, width and floor of the start whose distributions are drawn; it is start 0.
    shown_start: tuple[float, float, float] = (5.0, 12.0, 1e-6)
    random_starts: int = 64  # over which the intervals are taken
    learning_rate: float = 1.0  # of the plain gradient
    last_step: int = 10_000
    steps_per_decade: int = 20  # that are recorded

    DRAWN = (1, 3, 10, 30, 100, 300, 1_000, 10_000)  # steps whose distributions are drawn
    MOST_MASS = 0.9  # of the policy, when most of it counts as moved to the target's modes
    ARRIVED = 0.05  # KL(p‖q) in nats below which a policy has arrived at the target

    def run(self) -> xr.Dataset:
        problem = self.problem
        # Log-spaced steps, and 1, 3, 10, 30, … among them to draw.
        drawn = [k * 10**d for d in range(6) for k in (1, 3) if k * 10**d <= self.last_step]
        steps = sorted({*log_spaced_steps(self.last_step, self.steps_per_decade), *drawn})

        def descend_both(
            start: Float[Array, "3"], target_log_probs: Float[Array, " K"]
        ) -> dict[str, Array]:
            start_log_probs = problem.start_log_probs(start)
            ends = (start_log_probs, target_log_probs)
            log_probs = jnp.stack(
                [descend(DIVERGENCES[n], *ends, self.learning_rate, tuple(steps)) for n in PAIR]
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
            {"start": np.vstack([self.shown_start, problem.random_starts(self.random_starts)])},
            fixed={"target_log_probs": target},
            dims=["loss", "step", "arm"],
            coords={"loss": list(PAIR), "step": steps},
            attributes=ATTRIBUTES,
        )
        dataset["log_probs"] = dataset["log_probs"].sel(start=0)
        dataset["target_log_probs"] = ("arm", np.asarray(target))
        return dataset

    @classmethod
    def plot(cls, dataset: xr.Dataset) -> Figure:
        """Draw the distributions step by step; below, mass on modes, modes held, KLs, arrival."""
        figure = plotting.new_figure(16, 11.5)
        margins = {"left": 0.055, "right": 0.985, "top": 0.965, "bottom": 0.06}
        grid = figure.add_gridspec(3, 4, wspace=0.18, hspace=0.36, **margins)
        first = None
        for i, step in enumerate(step for step in cls.DRAWN if step in dataset["step"]):
            first = figure.add_subplot(grid[i // 4, i % 4], sharey=first)
            _draw_ends(first, dataset, "target")
            for name in PAIR:
                probs = np.exp(dataset["log_probs"].sel(step=step, loss=name))
                label = plotting.METHOD_LABELS[name]
                first.plot(probs, color=plotting.METHOD_COLORS[name], label=label)
            title = f"after {step:,} step{'s' if step > 1 else ''}"
            first.set(title=title, xlabel="arm", ylim=(0, 0.12))
            if i % 4:
                first.tick_params(labelleft=False)
            else:
                first.set_ylabel("probability")
            if i == 0:
                first.legend(loc="upper right")
        mass, held, kls, arrival = (figure.add_subplot(grid[2, i]) for i in range(4))
        _draw_metrics(mass, held, kls, dataset)
        mass.axhline(cls.MOST_MASS, color=plotting.INK, linewidth=1, linestyle=":")
        cls._draw_arrival(arrival, dataset)
        return figure

    @classmethod
    def _draw_arrival(cls, axes: Axes, dataset: xr.Dataset) -> None:
        """Draw when each random start arrives, over its mass on the poorest mode."""
        random = dataset.isel(start=slice(1, None))
        time = _first_step(random["reverse_kl"] < cls.ARRIVED)
        last = float(dataset["step"].max())
        for name in PAIR:
            steps, color = time.sel(loss=name), plotting.METHOD_COLORS[name]
            axes.plot(random["least_basin"], steps, "o", color=color)
            never = random["least_basin"][steps.isnull().values]
            axes.plot(never, np.full(never.size, 1.5 * last), "x", color=color)
        axes.axhline(last, color=plotting.INK, linewidth=1, linestyle=":")
        axes.text(0.98, 0.97, "× not yet arrived", transform=axes.transAxes, va="top", ha="right")
        axes.set(xscale="log", yscale="log", xlabel="start's mass on poorest mode")
        axes.set(title="Steps to arrive at the target", ylim=(None, 3 * last))

    @classmethod
    def animate(cls, dataset: xr.Dataset) -> Frames:
        """Draw both policies step by step, from one start, over the target."""
        probs = np.exp(dataset["log_probs"].values)
        figure, grid = plotting.new_grid(1, 2, 12, 4.6, (0.07, 0.14, 0.99, 0.84), wspace=0.06)
        panels = dict(zip(PAIR, grid[0], strict=True))
        lines = []
        for i, (name, axes) in enumerate(panels.items()):
            _draw_ends(axes, dataset, "target q")
            color = plotting.METHOD_COLORS[name]
            lines += axes.plot(probs[i, 0], color=color, label="policy p")
            axes.set(xlabel="arm", ylim=(0, 1.1 * probs.max()))
            axes.legend(loc="upper right")
        panels["forward_kl"].set_ylabel("probability")
        title = figure.suptitle("", fontsize=15)
        kl = {"forward_kl": "KL(q‖p)", "reverse_kl": "KL(p‖q)"}

        def draw(frame: int) -> None:
            now = dataset.isel(step=frame, start=0)
            step = int(now["step"])
            title.set_text(f"after {step:,} gradient step{'' if step == 1 else 's'}")
            for i, (name, axes) in enumerate(panels.items()):
                lines[i].set_ydata(probs[i, frame])
                one = now.sel(loss=name)
                axes.set_title(
                    f"{plotting.METHOD_LABELS[name]}, {kl[name]}: "
                    f"{float(one['mode_mass']):.0%} on modes, {int(one['modes_held'])} of 3 held"
                )

        return Frames(figure, draw, dataset.sizes["step"])

    @classmethod
    def judge(cls, dataset: xr.Dataset) -> list[Claim]:
        random = dataset.isel(start=slice(1, None))
        time = _first_step(random["mode_mass"] >= cls.MOST_MASS)
        reached = time.notnull().all("loss").values
        ratio = time.sel(loss="forward_kl") / time.sel(loss="reverse_kl")
        held = random["modes_held"].sel(step=time.fillna(0))
        fewer = held.sel(loss="forward_kl") - held.sel(loss="reverse_kl")
        both = _first_step(random["reverse_kl"] < cls.ARRIVED).notnull().all("loss").values
        return [
            claim(
                "Reverse KL moves mass faster: forward KL needs this many times the steps to put "
                f"90% on the target's modes (geometric mean, {reached.sum()} of {reached.size} "
                "starts)",
                Interval(*np.exp(mean_interval(np.log(ratio.values[reached])))),
                Criterion(lambda ratio: ratio.low > 1, ""),
            ),
            claim(
                "Reverse KL takes only a subset: at that moment it holds this many modes fewer "
                "than forward KL does at its own",
                mean_interval(fewer.values[reached]),
            ),
            claim(
                "Both KLs end at a target that the policy can represent: share of starts from "
                f"which both have KL(p||q) < {cls.ARRIVED:g} nats after "
                f"{int(dataset['step'].max()):,} steps",
                share_interval(both),
                ALWAYS,
                asserted=False,
                note=_where_both_arrive(random["least_basin"].values, both),
            ),
        ]


def _first_step(reached: xr.DataArray) -> xr.DataArray:
    """Return the first recorded step at which ``reached`` is true, NaN where it never is."""
    return reached["step"].where(reached).min("step")


def _where_both_arrive(least: np.ndarray, both: np.ndarray) -> str:
    """Say from which least mass on a basin every start arrives, and below which none does."""
    if both.all():
        return "From every start."
    if not both.any():
        return "From no start: reverse KL is still on a subset of the modes."
    return (
        "A mode with little mass has a reverse gradient in proportion to that mass, so reverse KL "
        f"stays on the others: no start with less than {least[both].min():.1e} on some mode's "
        f"basin arrives, every start with more than {least[~both].max():.1e} on each does."
    )


def _draw_ends(axes: Axes, dataset: xr.Dataset, label: str) -> None:
    """Draw the target, filled, and the start of both descents, dotted."""
    target = np.exp(dataset["target_log_probs"])
    axes.fill_between(dataset["arm"], target, color=plotting.TARGET_COLOR, label=label, linewidth=0)
    start = np.exp(dataset["log_probs"].isel(step=0).sel(loss="forward_kl"))
    axes.plot(start, color=plotting.INK, linewidth=1, linestyle=":", label="start")


def _draw_metrics(mass: Axes, held: Axes, kls: Axes, dataset: xr.Dataset) -> None:
    """Draw three metrics of the random starts over the steps: median and middle 80%."""
    for name in PAIR:
        one = dataset.sel(loss=name).isel(start=slice(1, None), step=slice(1, None))
        plotting.draw_band(mass, one["step"], one["mode_mass"].values, name)
        plotting.draw_band(held, one["step"], one["modes_held"].values, name)
        for metric, line in (("forward_kl", "-"), ("reverse_kl", "--")):
            color = plotting.METHOD_COLORS[name]
            kls.plot(one["step"], one[metric].median("start"), line, color=color)
    mass.set(title="Mass on the target's modes", ylim=(0, 1))
    held.set(title="Modes held, of 3", ylim=(0, 3.2), yticks=[0, 1, 2, 3])
    kls.set(title="KL to the target in nats", yscale="log")
    kls.plot([], [], "-", color=plotting.INK, label="KL(q‖p)")
    kls.plot([], [], "--", color=plotting.INK, label="KL(p‖q)")
    for axes in (mass, held, kls):
        axes.set(xscale="log", xlabel="gradient steps")
    mass.legend(loc="lower right")
    kls.legend(loc="lower left")


class LearningRateSweep(Study):
    """Descend both KLs at step sizes over four decades, more than ten thousand times.

    How far each KL gets in a given number of steps depends on the step size; what it does on the
    way does not, until the step is too large. Forward KL is 1/2-smooth in the logits of a softmax
    (its Hessian is diag(p) − ppᵀ), so plain descent is sure to make progress for every step size
    below 4; reverse KL has no such bound.
    """

    source = "T24, section 6, over step sizes"
    question = "Does the step size change which KL spreads and which one seeks?"
    quick = {"starts": 16, "learning_rates": 17, "steps": (0, 10, 100, 300)}

    problem: ThreeModes = ThreeModes()
    starts: int = 64  # drawn at random
    least_learning_rate: float = 0.01
    most_learning_rate: float = 100.0
    learning_rates: int = 81  # log-spaced, from the least to the most
    steps: tuple[int, ...] = (0, 10, 100, 1000)  # when the policy is measured

    SMOOTH_LIMIT = 4.0  # 2 over the smoothness constant 1/2; below it forward KL cannot increase
    COLLAPSED = 1.0  # entropy in nats below which a policy holds fewer than e arms; q has 3.9

    def run(self) -> xr.Dataset:
        problem = self.problem

        def descend_once(
            loss: str,
            learning_rate: Float[Array, ""],
            start: Float[Array, "3"],
            target_log_probs: Float[Array, " K"],
        ) -> dict[str, Array]:
            ends = (problem.start_log_probs(start), target_log_probs)
            log_probs = descend(DIVERGENCES[loss], *ends, learning_rate, self.steps)
            return measure(log_probs, target_log_probs)

        limits = (self.least_learning_rate, self.most_learning_rate)
        return sweep(
            descend_once,
            {
                "loss": PAIR,
                "learning_rate": np.geomspace(*limits, self.learning_rates),
                "start": problem.random_starts(self.starts),
            },
            fixed={"target_log_probs": jax.jit(problem.target_log_probs)()},
            dims=["step"],
            coords={"step": list(self.steps)},
            attributes=ATTRIBUTES,
        )

    @classmethod
    def plot(cls, dataset: xr.Dataset) -> Figure:
        """Draw a row for each quantity: median and middle 80% of the starts, by number of steps."""
        steps = dataset["step"].values[1:]
        edges = (0.065, 0.07, 0.985, 0.96)
        figure, panels = plotting.new_grid(
            3, len(steps), 5.2 * len(steps), 10, edges, 0.06, 0.1, sharex=True, sharey="row"
        )
        for column, step in zip(panels.T, steps, strict=True):
            metrics = dict(zip(("mode_mass", "modes_held", "reverse_kl"), column, strict=True))
            for name in PAIR:
                one = dataset.sel(loss=name, step=step).transpose("start", "learning_rate")
                for metric, axes in metrics.items():
                    plotting.draw_band(axes, one["learning_rate"], one[metric].values, name)
            column[0].set(title=f"after {step:,} steps", xscale="log", ylim=(0, 1.02))
            column[1].set(ylim=(0, 3.2), yticks=[0, 1, 2, 3])
            column[2].set(xlabel="step size", yscale="log")
        labels = ("mass on the target's modes", "modes held, of 3", "KL(p‖q) in nats")
        for axes, label in zip(panels[:, 0], labels, strict=True):
            axes.set_ylabel(label)
        panels[0, 0].legend(loc="upper left")
        return figure

    @classmethod
    def judge(cls, dataset: xr.Dataset) -> list[Claim]:
        """Return the claims; intervals are over starts, averaged over the claim's step sizes."""
        steps = dataset["step"]
        early, last = int(steps[steps <= 100].max()), int(steps.max())
        smooth = dataset.sel(learning_rate=slice(None, cls.SMOOTH_LIMIT))
        difference = smooth.sel(loss="reverse_kl") - smooth.sel(loss="forward_kl")
        difference = difference.mean("learning_rate")
        forward = smooth["forward_kl"].sel(loss="forward_kl")
        descends = (forward.diff("step") <= 1e-6).all("step")
        collapsed = dataset["entropy"].sel(step=last) < cls.COLLAPSED
        first_collapse = dataset["learning_rate"].where(collapsed).min("learning_rate")
        collapse = first_collapse.sel(loss="reverse_kl")
        of_reverse = collapse.notnull()
        only_reverse = bool(of_reverse.all() and not collapsed.sel(loss="forward_kl").any())
        below = f"below {cls.SMOOTH_LIMIT:g}"
        return [
            claim(
                f"At equal step size {below}, reverse KL has put this much more mass on the "
                f"target's modes after {early} steps",
                mean_interval(difference["mode_mass"].sel(step=early)),
            ),
            claim(
                f"At equal step size {below}, reverse KL holds this many modes fewer after "
                f"{last:,} steps",
                mean_interval(-difference["modes_held"].sel(step=last)),
            ),
            claim(
                "Forward KL descends from one measurement to the next at every step size "
                f"{below}: {int(descends.sum()):,} of {descends.size:,} runs",
                share_interval(descends),
                ALWAYS,
            ),
            claim(
                "Reverse KL collapses when the step is too large, forward KL does not: the "
                "smallest step size at which reverse KL ends with an entropy below "
                f"{cls.COLLAPSED:g} nat ({int(of_reverse.sum())} of {collapse.size} starts)",
                mean_interval(collapse.dropna("start")),
                Criterion(lambda _: only_reverse, ""),
            ),
        ]
