"""Offline data alone: does it help to push dispreferred responses down?

Likelihood methods and contrastive ones on the same offline responses of the reference, over the
number of training prompts. The published pairs of IPO are those whose rewards differ by at least
0.2; on R1 few prompts have one, and that choice alone tells good responses from bad. So Pref-FT and
IPO are both run on those pairs and on all, to tell the negative gradient from the choice of pairs.
Best-of-N has no pairs and learns from every prompt.
"""

from dataclasses import dataclass, field

import xarray as xr
from matplotlib.figure import Figure

from bandits import plotting
from bandits.experiments.base import Claim, Experiment
from bandits.experiments.curves import draw_points, new_reward_panels, over_seeds
from bandits.experiments.published import Bandit, Variant, run_methods
from bandits.sweeps import static

ALL_PAIRS = ", all pairs"
VARIANTS = {
    "best_of_n": Variant("best_of_n"),
    "preference_likelihood": Variant("preference_likelihood"),
    "dpo": Variant("dpo"),
    "ipo": Variant("ipo"),
    "preference_likelihood" + ALL_PAIRS: Variant("preference_likelihood", least_gap=0.0),
    "ipo" + ALL_PAIRS: Variant("ipo", least_gap=0.0),
}


@dataclass(frozen=True)
class Settings:
    """What is trained.

    Attributes:
      bandit: the problem.
      contexts: numbers of training prompts.
      steps: full-batch gradient steps.
    """

    bandit: Bandit = field(default_factory=Bandit)
    contexts: tuple[int, ...] = (5, 30)
    steps: int = 200


def run(settings: Settings) -> xr.Dataset:
    """Every method, reward and number of prompts."""
    return run_methods(
        settings.bandit,
        VARIANTS,
        {"reward": ["R1", "R2"], "contexts": static(settings.contexts)},
        steps=settings.steps,
    )


def plot(dataset: xr.Dataset) -> Figure:
    """A panel a reward: final reward against the number of training prompts."""
    figure, panels = new_reward_panels(bottom=0.22, height=6.2)
    final = dataset["expected_reward"].isel(step=-1)
    for reward, axes in panels.items():
        for i, (name, variant) in enumerate(VARIANTS.items()):
            marker = "s" if name.endswith(ALL_PAIRS) else "o"
            one = final.sel(loss=name, reward=reward)
            label = plotting.METHOD_LABELS[variant.method] + (ALL_PAIRS if marker == "s" else "")
            shift = 1.06 ** (i - 2.5)  # side by side
            draw_points(axes, one, "contexts", variant.method, shift, label=label, marker=marker)
        axes.set(xscale="log", xlabel="training prompts")
        axes.set_xticks(final["contexts"].values, final["contexts"].values)
        axes.minorticks_off()
    figure.legend(*panels["R1"].get_legend_handles_labels(), loc="lower center", ncols=6)
    return figure


def judge(dataset: xr.Dataset) -> list[Claim]:
    """Differences averaged over the numbers of prompts, by seed."""
    final = dataset["expected_reward"].isel(step=-1)
    contrastive = final.sel(loss=["dpo", "ipo"]).mean("loss")
    over_best = contrastive - final.sel(loss="best_of_n")
    same_pairs = contrastive - final.sel(loss="preference_likelihood")
    all_pairs = final.sel(loss="ipo" + ALL_PAIRS) - final.sel(
        loss="preference_likelihood" + ALL_PAIRS
    )
    far, near = (over_seeds(over_best.sel(reward=reward)) for reward in ("R1", "R2"))
    filtered, unfiltered = (over_seeds(gain.sel(reward="R1")) for gain in (same_pairs, all_pairs))
    return [
        EXPERIMENT.claim(
            "As published, DPO and IPO on pairs with a gap of 0.2 beat best-of-N offline on R1 by",
            far,
            far.low > 0,
            note=_by_prompts(over_best),
        ),
        EXPERIMENT.claim(
            "On all pairs the negative gradient helps where the peak is far: IPO minus Pref-FT on "
            "R1",
            unfiltered,
            unfiltered.low > 0,
            note=_by_prompts(all_pairs),
        ),
        EXPERIMENT.claim(
            "On pairs with a gap of 0.2 it helps too: DPO and IPO minus Pref-FT on R1",
            filtered,
            filtered.low > 0,
            asserted=False,
            note=f"{_by_prompts(same_pairs)} Those winners are good responses already, so raising "
            "them alone goes far.",
        ),
        EXPERIMENT.claim(
            "It gains little where the peak is near: DPO and IPO minus best-of-N on R2 (holds if "
            "the interval lies below that of R1)",
            near,
            near.high < far.low,
        ),
    ]


def _by_prompts(gain: xr.DataArray) -> str:
    means = gain.sel(reward="R1").mean("seed")
    parts = [f"{float(means.sel(contexts=n)):+.2f} with {n}" for n in means["contexts"].values]
    return f"By the number of prompts: {', '.join(parts)}."


EXPERIMENT = Experiment(
    name="negative_gradient",
    source="T24, section 5.2",
    question="Does pushing responses down help offline?",
    full=Settings(),
    quick=Settings(bandit=Bandit(seeds=3), contexts=(5,), steps=60),
    run=run,
    plot=plot,
    judge=judge,
)
