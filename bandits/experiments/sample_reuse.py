"""How often each sample is used: T passes over a collection before the next.

Every run takes the same gradient steps; with T passes it draws T times fewer samples.
"""

from dataclasses import dataclass, field

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from bandits import plotting
from bandits.experiments.base import Claim, Experiment
from bandits.experiments.curves import draw_means, over_seeds
from bandits.experiments.published import Bandit, run_methods

METHODS = ("best_of_n", "reward_weighted", "ppo")


@dataclass(frozen=True)
class Settings:
    """What is trained.

    Attributes:
      bandit: the problem.
      contexts: training prompts, all of them in every batch.
      passes: T.
      steps: gradient steps.
    """

    # More seeds than published: of five, the interval of what PPO tolerates touches 0.
    bandit: Bandit = field(default_factory=lambda: Bandit(seeds=8))
    contexts: int = 10
    passes: tuple[int, ...] = (1, 5, 20, 100)
    steps: int = 240


def run(settings: Settings) -> xr.Dataset:
    """Every method, reward and number of passes, on the way too."""
    dataset = run_methods(
        settings.bandit,
        METHODS,
        {"reward": ["R1", "R2"], "passes": list(settings.passes)},
        contexts=settings.contexts,
        steps=settings.steps,
        record=tuple(np.linspace(0, settings.steps, 7).round().astype(int).tolist()),
    )
    responses = settings.contexts * settings.bandit.responses
    collections = -(-dataset["step"] // dataset["passes"])
    samples = (responses * collections).assign_attrs(long_name="responses drawn", units="1")
    return dataset.assign(samples=samples)


def plot(dataset: xr.Dataset) -> Figure:
    """Above, reward against T after all steps; below, against the samples drawn so far, on R1."""
    figure = plotting.new_figure(13, 10)
    panels = figure.subplots(2, 2, sharey=True)
    figure.subplots_adjust(0.07, 0.07, 0.985, 0.96, wspace=0.06, hspace=0.3)
    steps = int(dataset["step"][-1])
    for axes, reward in zip(panels[0], ("R1", "R2"), strict=True):
        for method in METHODS:
            one = dataset["expected_reward"].sel(loss=method, reward=reward, step=steps)
            draw_means(axes, one, "passes", method)
        axes.set(xscale="log", xlabel="passes T over each batch", ylim=(0, 1.04))
        axes.set_xticks(dataset["passes"].values, dataset["passes"].values)
        axes.minorticks_off()
        axes.set_title(f"{reward}, after {steps} steps")
    widths = np.linspace(1.2, 4.2, dataset.sizes["passes"])
    for axes, method in zip(panels[1], ("best_of_n", "ppo"), strict=True):
        for passes, width in zip(dataset["passes"].values, widths, strict=True):
            way = dataset.sel(loss=method, reward="R1", passes=passes).isel(step=slice(1, None))
            axes.plot(
                way["samples"],
                way["expected_reward"].mean("seed"),
                color=plotting.METHOD_COLORS[method],
                linewidth=width,
                marker="o",
                label=f"T = {passes}",
            )
        axes.set(xscale="log", xlabel="responses drawn")
        axes.set_title(f"R1, {plotting.METHOD_LABELS[method]}")
        axes.legend(loc="lower right")
    for axes in panels[:, 0]:
        axes.set_ylabel("expected reward")
    panels[0, 0].legend(loc="lower left")
    return figure


def judge(dataset: xr.Dataset) -> list[Claim]:
    """Rewards lost on R1 after all steps, against T = 1, by seed."""
    final = dataset["expected_reward"].sel(reward="R1").isel(step=-1)
    lost = final.isel(passes=0) - final
    once, moderate, *_, largest = dataset["passes"].values
    saved = over_seeds(lost.sel(passes=moderate))
    hurts = over_seeds(lost.sel(passes=largest))
    tolerance = lost.sel(loss="best_of_n") - lost.sel(loss="ppo")
    tolerates = over_seeds(tolerance.sel(passes=largest))
    between = ", ".join(
        f"T = {t}: {over_seeds(tolerance.sel(passes=t)).effect:+.2f}"
        for t in dataset["passes"].values[1:-1]
    )
    return [
        EXPERIMENT.claim(
            f"Moderate reuse saves samples: T = {moderate} draws {moderate // once} times fewer "
            "and loses this much reward on R1 (holds if surely below 0.1)",
            saved,
            saved.high < 0.1,
        ),
        EXPERIMENT.claim(
            f"Large T hurts: reward lost on R1 with T = {largest}",
            hurts,
            hurts.low > 0,
        ),
        EXPERIMENT.claim(
            f"PPO tolerates more reuse than best-of-N: what best-of-N loses with T = {largest} "
            "minus what PPO does",
            tolerates,
            tolerates.low > 0,
            note=f"In between: {between}." if between else "",
        ),
    ]


EXPERIMENT = Experiment(
    name="sample_reuse",
    source="T24, section 5.1",
    question="How often may a sample be used?",
    full=Settings(),
    quick=Settings(bandit=Bandit(seeds=3), passes=(1, 5, 60), steps=60),
    run=run,
    plot=plot,
    judge=judge,
)
