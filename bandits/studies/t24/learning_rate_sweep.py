"""Both KLs over four decades of step size: one vmapped sweep of more than ten thousand descents.

The target and starts are those of `mode_seeking`. How far each KL gets in a given number of steps
depends on the step size; what it does on the way does not, until the step is too large. Forward KL
is 1/2-smooth in the logits of a softmax (its Hessian is diag(p) − ppᵀ), so plain descent is sure to
make progress for every step size below 4; reverse KL has no such bound.
"""

from dataclasses import dataclass, field

import jax
import numpy as np
import xarray as xr
from jaxtyping import Array, Float
from matplotlib.figure import Figure

from bandits import plotting
from bandits.descent import descend
from bandits.losses import DIVERGENCES
from bandits.metrics import ATTRIBUTES, measure
from bandits.studies.base import Claim, Experiment
from bandits.studies.intervals import mean_interval, proportion_interval
from bandits.studies.t24.three_modes import ThreeModes
from bandits.sweeps import sweep

PAIR = ("forward_kl", "reverse_kl")
SMOOTH_LIMIT = 4.0
"""Below this step size, 2 over the smoothness constant 1/2, forward KL cannot increase."""

COLLAPSED = 1.0
"""Entropy in nats below which a policy holds fewer than e arms; the target has 3.9."""


@dataclass(frozen=True)
class Settings:
    """What is swept.

    Attributes:
      problem: the target and the law of the starts.
      starts: random starts.
      least_learning_rate, most_learning_rate, learning_rates: the axis, log-spaced.
      steps: when the policy is measured.
    """

    problem: ThreeModes = field(default_factory=ThreeModes)
    starts: int = 64
    least_learning_rate: float = 0.01
    most_learning_rate: float = 100.0
    learning_rates: int = 81
    steps: tuple[int, ...] = (0, 10, 100, 1000)


def run(settings: Settings) -> xr.Dataset:
    """Every KL, step size and start; the policy is measured after the given steps."""
    problem = settings.problem

    def descend_once(
        loss: str,
        learning_rate: Float[Array, ""],
        start: Float[Array, "3"],
        target_log_probs: Float[Array, " K"],
    ) -> dict[str, Array]:
        log_probs = descend(
            DIVERGENCES[loss],
            problem.start_log_probs(start),
            target_log_probs,
            learning_rate,
            settings.steps,
        )
        return measure(log_probs, target_log_probs)

    return sweep(
        descend_once,
        {
            "loss": PAIR,
            "learning_rate": np.geomspace(
                settings.least_learning_rate, settings.most_learning_rate, settings.learning_rates
            ),
            "start": problem.random_starts(settings.starts),
        },
        fixed={"target_log_probs": jax.jit(problem.target_log_probs)()},
        dims=["step"],
        coords={"step": list(settings.steps)},
        attributes=ATTRIBUTES,
    )


def plot(dataset: xr.Dataset) -> Figure:
    """A row a quantity, a column a number of steps: median and middle 80% of the starts."""
    steps = dataset["step"].values[1:]
    figure = plotting.new_figure(5.2 * len(steps), 10)
    panels = figure.subplots(3, len(steps), sharex=True, sharey="row", squeeze=False)
    figure.subplots_adjust(0.065, 0.07, 0.985, 0.96, wspace=0.06, hspace=0.1)
    for column, step in zip(panels.T, steps, strict=True):
        for name in PAIR:
            one = dataset.sel(loss=name, step=step).transpose("start", "learning_rate")
            for axes, metric in zip(column, ("mode_mass", "modes_held", "reverse_kl"), strict=True):
                plotting.draw_band(axes, one["learning_rate"], one[metric].values, name)
        column[0].set(title=f"after {step:,} steps", xscale="log", ylim=(0, 1.02))
        column[1].set(ylim=(0, 3.2), yticks=[0, 1, 2, 3])
        column[2].set(xlabel="step size", yscale="log")
    panels[0, 0].set_ylabel("mass on the target's modes")
    panels[1, 0].set_ylabel("modes held, of 3")
    panels[2, 0].set_ylabel("KL(p‖q) in nats")
    panels[0, 0].legend(loc="upper left")
    return figure


def judge(dataset: xr.Dataset) -> list[Claim]:
    """Intervals are over starts, each averaged over the step sizes named in the claim."""
    steps = dataset["step"]
    early, last = int(steps[steps <= 100].max()), int(steps.max())
    smooth = dataset.sel(learning_rate=slice(None, SMOOTH_LIMIT))
    difference = smooth.sel(loss="reverse_kl") - smooth.sel(loss="forward_kl")
    more_mass = mean_interval(difference["mode_mass"].sel(step=early).mean("learning_rate"))
    fewer_modes = mean_interval(-difference["modes_held"].sel(step=last).mean("learning_rate"))
    forward = smooth["forward_kl"].sel(loss="forward_kl")
    collapsed = dataset["entropy"].sel(step=last) < COLLAPSED
    first_collapse = dataset["learning_rate"].where(collapsed).min("learning_rate")
    collapse = first_collapse.sel(loss="reverse_kl").values
    descends = (forward.diff("step") <= 1e-6).all("step").values
    return [
        EXPERIMENT.claim(
            f"At equal step size below {SMOOTH_LIMIT:g}, reverse KL has put this much more mass on "
            f"the target's modes after {early} steps",
            more_mass,
            more_mass.low > 0,
        ),
        EXPERIMENT.claim(
            f"At equal step size below {SMOOTH_LIMIT:g}, reverse KL holds this many modes fewer "
            f"after {last:,} steps",
            fewer_modes,
            fewer_modes.low > 0,
        ),
        EXPERIMENT.claim(
            f"Forward KL descends from one measurement to the next at every step size below "
            f"{SMOOTH_LIMIT:g}: {int(descends.sum()):,} of {descends.size:,} runs",
            proportion_interval(int(descends.sum()), descends.size),
            descends.all(),
        ),
        EXPERIMENT.claim(
            f"Reverse KL collapses when the step is too large, forward KL does not: the smallest "
            f"step size at which reverse KL ends with an entropy below {COLLAPSED:g} nat "
            f"({np.isfinite(collapse).sum()} of {collapse.size} starts)",
            mean_interval(collapse[np.isfinite(collapse)]),
            np.isfinite(collapse).all() and not collapsed.sel(loss="forward_kl").any(),
        ),
    ]


EXPERIMENT = Experiment(
    name="learning_rate_sweep",
    source="T24, section 6, over step sizes",
    question="Does the step size change which KL spreads and which one seeks?",
    full=Settings(),
    quick=Settings(starts=16, learning_rates=17, steps=(0, 10, 100, 300)),
    run=run,
    plot=plot,
    judge=judge,
)
