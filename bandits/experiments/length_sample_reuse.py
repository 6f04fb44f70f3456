"""T24's ablation of sample reuse on the length problems: T passes over each batch."""

from dataclasses import dataclass, field

import xarray as xr
from matplotlib.figure import Figure

from bandits.experiments.base import Claim, Experiment
from bandits.experiments.curves import over_seeds, require_no_nan
from bandits.experiments.lengths import PROBLEMS, Lengths, draw_over, train_lengths

METHODS = ("best_of_n", "reward_weighted", "ppo", "online_dpo")


@dataclass(frozen=True)
class Settings:
    """What is trained.

    Attributes:
      lengths: the problems.
      passes: T.
      batch: B = M, in responses.
      steps: gradient steps.
    """

    lengths: Lengths = field(default_factory=Lengths)
    passes: tuple[int, ...] = (1, 5, 20, 100)
    batch: int = 40
    steps: int = 200


def run(settings: Settings) -> xr.Dataset:
    """Every method, problem and number of passes; judged half-way and at the end."""
    return train_lengths(
        settings.lengths,
        METHODS,
        {"problem": list(PROBLEMS), "passes": list(settings.passes)},
        steps=settings.steps,
        record=(0, settings.steps // 2, settings.steps),
        minibatch=settings.batch,
    ).drop_vars("length_probability")


def plot(dataset: xr.Dataset) -> Figure:
    """True reward over T, a panel a problem."""
    return draw_over(dataset, "passes", "passes T over each batch")


def judge(dataset: xr.Dataset) -> list[Claim]:
    """True reward lost against T = 1 on Min, and PPO against best-of-N; by seed."""
    require_no_nan(dataset)
    final = dataset["gold"].isel(step=-1).sel(problem="min")
    lost = final.isel(passes=0) - final
    moderate, largest = (int(dataset["passes"][i]) for i in (1, -1))
    saved, hurts = (over_seeds(lost.sel(passes=t)) for t in (moderate, largest))
    tolerates = over_seeds(
        lost.sel(loss="best_of_n", passes=largest) - lost.sel(loss="ppo", passes=largest)
    )
    return [
        EXPERIMENT.claim(
            f"Moderate reuse saves samples: with T = {moderate}, true reward lost on Min (holds if "
            "surely below 0.025, a token)",
            saved,
            saved.high < 0.025,
        ),
        EXPERIMENT.claim(
            f"Large T hurts: true reward lost on Min with T = {largest}",
            hurts,
            hurts.low > 0,
        ),
        EXPERIMENT.claim(
            f"PPO tolerates more reuse than best-of-N: what best-of-N loses with T = {largest} "
            "minus what PPO does",
            tolerates,
            tolerates.low > 0,
            asserted=False,
            note="PPO's clip holds it near old samples; best-of-N goes as far as they allow.",
        ),
    ]


EXPERIMENT = Experiment(
    name="length_sample_reuse",
    source="T24, section 5.1: synthetic length problems",
    question="How often may a sample be used, with a learned reward?",
    full=Settings(),
    quick=Settings(lengths=Lengths(seeds=3, pairs=200), passes=(1, 5, 40), steps=40),
    run=run,
    plot=plot,
    judge=judge,
)
