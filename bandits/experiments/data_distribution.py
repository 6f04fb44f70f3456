"""On-policy samples against a fixed dataset, where the reward's peak is far and where it is near.

The same methods take the same number of steps on responses of the current policy, on a dataset of
the reference's, and on a dataset of a flatter reference's, which covers more (C2).
"""

from dataclasses import dataclass, field

import xarray as xr
from matplotlib.figure import Figure

from bandits import plotting
from bandits.experiments.base import Claim, Experiment
from bandits.experiments.curves import draw_bars, new_reward_panels, over_seeds
from bandits.experiments.published import Bandit, run_methods
from bandits.sweeps import static

METHODS = ("best_of_n", "reward_weighted", "ipo")
OFFLINE, WIDE, ON_POLICY = "reference", "flat reference", "on-policy"


@dataclass(frozen=True)
class Settings:
    """What is trained.

    Attributes:
      bandit: the problem.
      temperature: of the flatter reference, whose law is π_ref^(1/τ)/Z.
      contexts: training prompts.
      steps: gradient steps.
      passes: T of the on-policy runs, steps on each collection.
    """

    bandit: Bandit = field(default_factory=Bandit)
    temperature: float = 4.0
    contexts: int = 10
    steps: int = 240
    passes: int = 15


def run(settings: Settings) -> xr.Dataset:
    """Every method, reward and source of data."""
    axes = {
        "reward": ["R1", "R2"],
        "temperature": [1.0, settings.temperature],
        "passes": static([settings.steps, settings.passes]),
    }
    results = run_methods(
        settings.bandit, METHODS, axes, contexts=settings.contexts, steps=settings.steps
    )
    offline, on_policy = (
        results.sel(passes=passes, drop=True) for passes in (settings.steps, settings.passes)
    )
    sources = {
        OFFLINE: offline.sel(temperature=1.0, drop=True),
        WIDE: offline.sel(temperature=settings.temperature, drop=True),
        ON_POLICY: on_policy.sel(temperature=1.0, drop=True),
    }
    return xr.concat(sources.values(), xr.Variable("data", list(sources)))


def plot(dataset: xr.Dataset) -> Figure:
    """A panel a reward: final reward of every method on each source of data."""
    figure, panels = new_reward_panels(bottom=0.17, height=6)
    for reward, axes in panels.items():
        results = dataset["expected_reward"].sel(reward=reward)
        draw_bars(axes, results.isel(step=-1), "data", METHODS)
        start = float(results.isel(step=0).mean())
        axes.axhline(start, color=plotting.INK, linestyle=":", linewidth=1.4, label="start")
    figure.legend(*panels["R1"].get_legend_handles_labels(), loc="lower center", ncols=4)
    return figure


def judge(dataset: xr.Dataset) -> list[Claim]:
    """Gains over offline data of the reference, averaged over methods, by seed."""
    gain = dataset["expected_reward"].isel(step=-1)
    gain = gain - gain.sel(data=OFFLINE)
    on_policy, wide = gain.sel(data=ON_POLICY), gain.sel(data=WIDE)
    far = over_seeds(on_policy.sel(reward="R1"))
    difference = over_seeds(on_policy.sel(reward="R1") - on_policy.sel(reward="R2"))
    coverage = over_seeds(wide.sel(reward="R1"))
    return [
        EXPERIMENT.claim(
            "On-policy samples raise the final reward on R1 by this much over offline samples of "
            "the reference",
            far,
            far.low > 0,
        ),
        EXPERIMENT.claim(
            "On-policy sampling helps more where the peak is far: its gain on R1 minus that on R2",
            difference,
            difference.low > 0,
        ),
        EXPERIMENT.claim(
            "Coverage is part of it: offline samples of a flatter reference raise the final reward "
            "on R1 by this much",
            coverage,
            coverage.low > 0,
        ),
    ]


EXPERIMENT = Experiment(
    name="data_distribution",
    source="T24, section 5.1",
    question="When do on-policy samples help?",
    full=Settings(),
    quick=Settings(bandit=Bandit(seeds=3), steps=60),
    run=run,
    plot=plot,
    judge=judge,
)
