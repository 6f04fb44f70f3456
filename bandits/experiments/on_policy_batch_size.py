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
from bandits.experiments.curves import draw_means, new_reward_panels, over_seeds
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
    """A panel a reward: against batch size, half-way (thin) and at the end (bold)."""
    figure, panels = new_reward_panels(bottom=0.22, height=6.2)
    half, last = (int(step) for step in dataset["step"].values[1:])
    for reward, axes in panels.items():
        for method in METHODS:
            one = dataset["expected_reward"].sel(loss=method, reward=reward)
            name = plotting.METHOD_LABELS[method]
            for step, width in ((half, 1.2), (last, 3.0)):
                label = f"{name}, {step} steps"
                draw_means(axes, one.sel(step=step), "batch", method, linewidth=width, label=label)
        axes.set(xscale="log", xlabel="batch size B, responses")
        axes.set_xticks(dataset["batch"].values, dataset["batch"].values)
        axes.minorticks_off()
    figure.legend(*panels["R1"].get_legend_handles_labels(), loc="lower center", ncols=4)
    return figure


def judge(dataset: xr.Dataset) -> list[Claim]:
    """Reward lost per tenfold batch, half-way and at the end, averaged over methods, by seed."""
    decades = np.log10(dataset["batch"]) - np.log10(dataset["batch"]).mean()
    claims = []
    for step in dataset["step"].values[1:]:
        reward = dataset["expected_reward"].sel(step=step)
        lost = -(reward * decades).sum("batch") / (decades**2).sum()
        far = over_seeds(lost.sel(reward="R1"))
        difference = over_seeds(lost.sel(reward="R1") - lost.sel(reward="R2"))
        claims += [
            EXPERIMENT.claim(
                f"Smaller batches are better at fixed M: reward lost on R1 per tenfold B, after "
                f"{step} steps",
                far,
                far.low > 0,
                note=_smallest_against_best(reward.sel(reward="R1")),
            ),
            EXPERIMENT.claim(
                f"The batch matters mostly where the peak is far: the loss per tenfold B on R1 "
                f"minus that on R2, after {step} steps",
                difference,
                difference.low > 0,
            ),
        ]
    return claims


def _smallest_against_best(reward: xr.DataArray) -> str:
    means = reward.mean(("loss", "seed"))
    first, best = means.isel(batch=0), means.isel(batch=int(means.argmax("batch")))
    if best["batch"] == first["batch"]:
        return "The smallest batch is the best."
    return (
        f"The smallest batch is not the best: B = {int(first['batch'])} gives {float(first):.3f}, "
        f"B = {int(best['batch'])} {float(best):.3f} (means over methods and seeds)."
    )


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
