"""How much is collected at a time: smaller batches at the same minibatch are more on-policy.

Every run takes the same gradient steps on minibatches of M responses, each response used once; B
responses are drawn from the policy at a time.
"""

from dataclasses import dataclass, field

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from bandits import plotting
from bandits.experiments.base import Claim, Experiment
from bandits.experiments.curves import draw_means, over_seeds
from bandits.experiments.published import Bandit, run_methods
from bandits.sweeps import static

METHODS = ("best_of_n", "reward_weighted", "reinforce", "ppo")


@dataclass(frozen=True)
class Settings:
    """What is trained.

    Attributes:
      bandit: the problem.
      contexts: training prompts.
      batches: B, in responses.
      minibatch: M, in responses.
      steps: gradient steps, each on new responses.
    """

    bandit: Bandit = field(default_factory=Bandit)
    contexts: int = 10
    batches: tuple[int, ...] = (50, 200, 1000, 5000)
    minibatch: int = 50
    steps: int = 200


def run(settings: Settings) -> xr.Dataset:
    """Every method, reward and batch size; the policy is judged on the way and at the end."""
    return run_methods(
        settings.bandit,
        METHODS,
        {"reward": ["R1", "R2"], "batch": list(settings.batches), "passes": static([1])},
        contexts=settings.contexts,
        steps=settings.steps,
        record=(0, settings.steps // 2, settings.steps),
        minibatch=settings.minibatch,
        most_batch=max(settings.batches),
    ).squeeze("passes")


def plot(dataset: xr.Dataset) -> Figure:
    """A panel a reward: reward against batch size, half-way through training."""
    figure = plotting.new_figure(13, 5.6)
    panels = figure.subplots(1, 2, sharey=True)
    figure.subplots_adjust(0.065, 0.13, 0.985, 0.92, wspace=0.06)
    half = int(dataset["step"].values[1])
    for axes, reward in zip(panels, ("R1", "R2"), strict=True):
        for method in METHODS:
            one = dataset["expected_reward"].sel(loss=method, reward=reward)
            draw_means(axes, one.sel(step=half), "batch", method)
        axes.set(xscale="log", xlabel="batch size B, responses", ylim=(0, 1.04))
        axes.set_xticks(dataset["batch"].values, dataset["batch"].values)
        axes.minorticks_off()
        axes.set_title(f"{reward}, after {half} steps")
    panels[0].set_ylabel("expected reward")
    panels[1].legend(loc="lower left")
    return figure


def judge(dataset: xr.Dataset) -> list[Claim]:
    """Reward lost per tenfold batch, half-way through training, averaged over methods, by seed."""
    half = int(dataset["step"].values[1])
    reward = dataset["expected_reward"].sel(step=half)
    decades = np.log10(dataset["batch"]) - np.log10(dataset["batch"]).mean()
    lost = -(reward * decades).sum("batch") / (decades**2).sum()
    far = over_seeds(lost.sel(reward="R1"))
    difference = over_seeds(lost.sel(reward="R1") - lost.sel(reward="R2"))
    smallest, best = _smallest_against_best(reward.sel(reward="R1"))
    return [
        EXPERIMENT.claim(
            f"Smaller batches are better at fixed M: reward lost on R1 per tenfold B, after {half} "
            "steps",
            far,
            far.low > 0,
            note=f"The smallest batch is not the best: B = {smallest[0]} gives {smallest[1]:.3f}, "
            f"B = {best[0]} {best[1]:.3f} (means over methods and seeds)."
            if best[0] != smallest[0]
            else "",
        ),
        EXPERIMENT.claim(
            "The batch matters mostly where the peak is far: the loss per tenfold B on R1 minus "
            "that on R2",
            difference,
            difference.low > 0,
        ),
    ]


def _smallest_against_best(reward: xr.DataArray) -> tuple[tuple[int, float], tuple[int, float]]:
    means = reward.mean(("loss", "seed"))
    best = means.isel(batch=int(means.argmax("batch")))
    first = means.isel(batch=0)
    return (int(first["batch"]), float(first)), (int(best["batch"]), float(best))


EXPERIMENT = Experiment(
    name="on_policy_batch_size",
    source="T24, section 5.1",
    question="How often must samples be renewed?",
    full=Settings(),
    quick=Settings(bandit=Bandit(seeds=3), batches=(50, 1000), steps=40),
    run=run,
    plot=plot,
    judge=judge,
)
