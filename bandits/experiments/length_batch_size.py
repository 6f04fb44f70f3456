"""T24's batch ablation on the length problems: the larger B at fixed M, the older samples."""

from dataclasses import dataclass, field

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from bandits.experiments.base import Claim, Experiment
from bandits.experiments.curves import over_seeds, require_no_nan
from bandits.experiments.lengths import PROBLEMS, Lengths, draw_over, train_lengths

METHODS = ("best_of_n", "reinforce", "ppo", "online_dpo")


@dataclass(frozen=True)
class Settings:
    """What is trained.

    Attributes:
      lengths: the problems.
      batches: B, in responses, multiples of the minibatch.
      minibatch: M.
      steps: gradient steps, each on new responses.
    """

    lengths: Lengths = field(default_factory=Lengths)
    batches: tuple[int, ...] = (40, 200, 1000, 4000)
    minibatch: int = 40
    steps: int = 200


def run(settings: Settings) -> xr.Dataset:
    """Every method, problem and batch; judged half-way and at the end."""
    return train_lengths(
        settings.lengths,
        METHODS,
        {"problem": list(PROBLEMS), "batch": list(settings.batches)},
        steps=settings.steps,
        record=(0, settings.steps // 2, settings.steps),
        minibatch=settings.minibatch,
        most_batch=max(settings.batches),
    ).drop_vars("length_probability")


def plot(dataset: xr.Dataset) -> Figure:
    """True reward over B, a panel a problem."""
    return draw_over(dataset, "batch", "batch size B, responses")


def judge(dataset: xr.Dataset) -> list[Claim]:
    """True reward lost per tenfold batch, by problem, averaged over methods; by seed."""
    require_no_nan(dataset)
    decades = np.log10(dataset["batch"]) - np.log10(dataset["batch"]).mean()
    slopes = -(dataset["gold"] * decades).sum("batch") / (decades**2).sum()
    half, last = (int(step) for step in dataset["step"].values[1:])
    claims = []
    for problem in ("min", "skew"):
        early, late = (over_seeds(slopes.sel(problem=problem, step=s)) for s in (half, last))
        claims.append(
            EXPERIMENT.claim(
                f"Smaller batches are better on {problem.capitalize()} at fixed M: true reward "
                f"lost per tenfold B, after {half} steps",
                early,
                early.low > 0,
                note=f"After {last} steps {late.effect:.3f} [{late.low:.3f}, {late.high:.3f}].",
            )
        )
    apart = over_seeds(slopes.sel(problem="min", step=half) - slopes.sel(problem="mode", step=half))
    claims.append(
        EXPERIMENT.claim(
            "more so than on Mode, where the optimum is the reference's usual length: loss per "
            f"tenfold B on Min minus that on Mode, after {half} steps",
            apart,
            apart.low > 0,
        )
    )
    return claims


EXPERIMENT = Experiment(
    name="length_batch_size",
    source="T24, section 5.1: synthetic length problems",
    question="How often must samples be renewed, with a learned reward?",
    full=Settings(),
    quick=Settings(lengths=Lengths(seeds=3, pairs=200), batches=(40, 1000), steps=40),
    run=run,
    plot=plot,
    judge=judge,
)
