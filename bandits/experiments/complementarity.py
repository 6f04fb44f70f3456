"""On-policy samples and negative gradients: each alone, and both together.

Best-of-N has no negative gradient, DPO and IPO have one. Each trains offline, and on-policy with
few and with many collections in the same number of steps: the fewer, the older the samples.
"""

from dataclasses import dataclass, field

import xarray as xr
from matplotlib.figure import Figure

from bandits import plotting
from bandits.experiments.base import Claim, Experiment
from bandits.experiments.curves import draw_bars, new_reward_panels, over_seeds
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
    figure, panels = new_reward_panels(bottom=0.22, height=6)
    final = dataset["expected_reward"].isel(step=-1)
    for reward, axes in panels.items():
        draw_bars(axes, final.sel(reward=reward), "collections", (LIKELIHOOD, *CONTRASTIVE))
        axes.set_xticks(axes.get_xticks(), [_name(n) for n in final["collections"].values])
        axes.set_xlabel("collections of samples")
    figure.legend(*panels["R1"].get_legend_handles_labels(), loc="lower center", ncols=4)
    return figure


def _name(collections: int) -> str:
    return "1 (offline)" if collections == 1 else f"{collections}"


def judge(dataset: xr.Dataset) -> list[Claim]:
    """On R1, both ingredients against each alone; on R2, all ways against each other; by seed."""
    final = dataset["expected_reward"].isel(step=-1)
    contrastive = final.sel(loss=list(CONTRASTIVE)).mean("loss")
    likelihood = final.sel(loss=LIKELIHOOD)
    claims = []
    for collections in dataset["collections"].values[1:]:
        both = contrastive.sel(reward="R1", collections=collections)
        gains = {
            "on-policy best-of-N": both - likelihood.sel(reward="R1", collections=collections),
            "offline DPO and IPO": both - contrastive.sel(reward="R1", collections=1),
        }
        alone = float(likelihood.sel(reward="R1", collections=collections).mean())
        for single, gain in gains.items():
            interval = over_seeds(gain)
            claims.append(
                EXPERIMENT.claim(
                    f"With {collections} collections, online DPO and IPO are better on R1 than "
                    f"{single} by",
                    interval,
                    interval.low > 0,
                    # Where samples are renewed often, on-policy likelihood may be enough.
                    asserted=bool(collections == dataset["collections"].values[1]),
                    note=f"On-policy best-of-N ends at {alone:.2f}, online DPO and IPO at "
                    f"{float(both.mean()):.2f}.",
                )
            )
    near = final.sel(reward="R2").stack(way=("loss", "collections"))
    means = near.mean("seed")
    best, worst = int(means.argmax("way")), int(means.argmin("way"))
    apart = over_seeds(near.isel(way=best, drop=True) - near.isel(way=worst, drop=True))
    names = [
        f"{plotting.METHOD_LABELS[loss]} with {_name(collections)}"
        for loss, collections in (means["way"].values[i] for i in (best, worst))
    ]
    claims.append(
        EXPERIMENT.claim(
            "All are alike on R2: final reward of the best method and number of collections minus "
            f"that of the worst (holds if surely below {ALIKE:g})",
            apart,
            apart.high < ALIKE,
            asserted=False,
            note=f"The best is {names[0]}, the worst {names[1]}.",
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
