"""On-policy samples and negative gradients: each alone, and both together.

Best-of-N has no negative gradient, DPO and IPO have one. Each trains offline, and on-policy with
few and with many collections in the same number of steps: the fewer, the older the samples.
"""

from dataclasses import dataclass, field

import xarray as xr
from matplotlib.figure import Figure

from bandits import plotting
from bandits.experiments.base import Claim, Experiment
from bandits.experiments.curves import draw_bars, over_seeds
from bandits.experiments.published import Bandit, run_methods

LIKELIHOOD, CONTRASTIVE = "best_of_n", ("dpo", "ipo")
ALIKE = 0.1
"""Final rewards within this of each other are called alike."""


@dataclass(frozen=True)
class Settings:
    """What is trained.

    Attributes:
      bandit: the problem.
      contexts: training prompts.
      steps: gradient steps.
      passes: T of the on-policy runs, falling; offline it is all steps.
    """

    bandit: Bandit = field(default_factory=Bandit)
    contexts: int = 10
    steps: int = 300
    passes: tuple[int, ...] = (100, 15)


def run(settings: Settings) -> xr.Dataset:
    """Best-of-N, DPO and IPO, offline and on-policy."""
    dataset = run_methods(
        settings.bandit,
        (LIKELIHOOD, *CONTRASTIVE),
        {"reward": ["R1", "R2"], "passes": [settings.steps, *settings.passes]},
        contexts=settings.contexts,
        steps=settings.steps,
    )
    collections = [-(-settings.steps // passes) for passes in dataset["passes"].values]
    return dataset.rename(passes="collections").assign_coords(collections=collections)


def plot(dataset: xr.Dataset) -> Figure:
    """A panel a reward: final reward over the number of collections, a bar a method."""
    figure = plotting.new_figure(13, 6)
    panels = figure.subplots(1, 2, sharey=True)
    figure.subplots_adjust(0.065, 0.22, 0.985, 0.92, wspace=0.06)
    final = dataset["expected_reward"].isel(step=-1)
    titles = {"R1": "R1: the peak is far from the reference", "R2": "R2: the peak is near"}
    for axes, (reward, title) in zip(panels, titles.items(), strict=True):
        draw_bars(axes, final.sel(reward=reward), "collections", (LIKELIHOOD, *CONTRASTIVE))
        axes.set_xticks(axes.get_xticks(), [_name(n) for n in final["collections"].values])
        axes.set(title=title, ylim=(0, 1.04), xlabel="collections of samples")
    panels[0].set_ylabel("expected reward")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="lower center", ncols=4)
    return figure


def _name(collections: int) -> str:
    return "1 (offline)" if collections == 1 else f"{collections}"


def judge(dataset: xr.Dataset) -> list[Claim]:
    """On R1, both ingredients against the better single one; on R2, the spread; by seed."""
    final = dataset["expected_reward"].isel(step=-1)
    contrastive = final.sel(loss=list(CONTRASTIVE)).mean("loss")
    likelihood = final.sel(loss=LIKELIHOOD)
    claims = []
    for collections in dataset["collections"].values[1:]:
        far = {
            "on-policy samples": likelihood.sel(reward="R1", collections=collections),
            "a negative gradient": contrastive.sel(reward="R1", collections=1),
        }
        better = max(far, key=lambda name: float(far[name].mean()))
        both = over_seeds(contrastive.sel(reward="R1", collections=collections) - far[better])
        few = collections == dataset["collections"].values[1]
        claims.append(
            EXPERIMENT.claim(
                f"With {collections} collections, online DPO and IPO are best on R1: their final "
                f"reward minus that of {better} alone, the better single ingredient",
                both,
                both.low > 0,
                asserted=bool(few),
                note=""
                if few
                else "Where samples are renewed often, on-policy best-of-N already finds the peak.",
            )
        )
    near = xr.concat(
        [likelihood.sel(reward="R2"), contrastive.sel(reward="R2")], "way", coords="minimal"
    )
    spread = over_seeds(near.max(("way", "collections")) - near.min(("way", "collections")))
    claims.append(
        EXPERIMENT.claim(
            "All are alike on R2: the largest final reward minus the smallest (holds if surely "
            f"below {ALIKE:g})",
            spread,
            spread.high < ALIKE,
            asserted=False,
        )
    )
    return claims


EXPERIMENT = Experiment(
    name="complementarity",
    source="T24, section 5.3",
    question="Do on-policy samples and negative gradients add up?",
    full=Settings(),
    quick=Settings(bandit=Bandit(seeds=3), steps=60, passes=(20, 5)),
    run=run,
    plot=plot,
    judge=judge,
)
