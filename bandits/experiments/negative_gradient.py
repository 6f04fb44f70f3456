"""Offline data alone: does it help to push dispreferred responses down?

Likelihood methods and contrastive ones on the same offline responses of the reference, over the
number of training prompts. The published pairs are those whose rewards differ by at least 0.2. On
R1 that choice already tells good responses from bad, so Pref-FT is run on all pairs too.
"""

from dataclasses import dataclass, field

import xarray as xr
from matplotlib.figure import Figure

from bandits import plotting
from bandits.experiments.base import Claim, Experiment
from bandits.experiments.curves import draw_means, over_seeds
from bandits.experiments.published import Bandit, Variant, run_methods
from bandits.sweeps import static

ALL_PAIRS = "preference_likelihood, all pairs"
VARIANTS = {
    "best_of_n": Variant("best_of_n"),
    "preference_likelihood": Variant("preference_likelihood"),
    ALL_PAIRS: Variant("preference_likelihood", least_gap=0.0),
    "dpo": Variant("dpo"),
    "ipo": Variant("ipo"),
}
CONTRASTIVE = ("dpo", "ipo")
NAMES = {
    "best_of_n": "best-of-N",
    "preference_likelihood": "Pref-FT on the same pairs",
    ALL_PAIRS: "Pref-FT on all pairs",
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
    contexts: tuple[int, ...] = (5, 20, 60)
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
    figure = plotting.new_figure(13, 5.6)
    panels = figure.subplots(1, 2, sharey=True)
    figure.subplots_adjust(0.065, 0.13, 0.985, 0.92, wspace=0.06)
    for axes, reward in zip(panels, ("R1", "R2"), strict=True):
        for name, variant in VARIANTS.items():
            one = dataset["expected_reward"].sel(loss=name, reward=reward).isel(step=-1)
            label = NAMES.get(name, plotting.METHOD_LABELS[variant.method])
            marker = "s" if name == ALL_PAIRS else "o"
            draw_means(axes, one, "contexts", variant.method, label=label, marker=marker)
        axes.set(xscale="log", xlabel="training prompts", ylim=(0, 1.04))
        axes.set_xticks(dataset["contexts"].values, dataset["contexts"].values, minor=False)
        axes.minorticks_off()
    panels[0].set_title("R1: the peak is far from the reference")
    panels[1].set_title("R2: the peak is near")
    panels[0].set_ylabel("expected reward")
    panels[1].legend(loc="lower right", ncols=2)
    return figure


def judge(dataset: xr.Dataset) -> list[Claim]:
    """Contrastive minus likelihood, averaged over prompts, by seed."""
    final = dataset["expected_reward"].isel(step=-1)
    contrastive = final.sel(loss=list(CONTRASTIVE)).mean("loss")
    gains = {name: contrastive - final.sel(loss=name) for name in NAMES}
    claims = []
    for name, gain in gains.items():
        far = over_seeds(gain.sel(reward="R1"))
        by_prompts = ", ".join(
            f"{n} prompts {float(gain.sel(reward='R1', contexts=n).mean()):+.2f}"
            for n in dataset["contexts"].values
        )
        claims.append(
            EXPERIMENT.claim(
                f"A negative gradient helps offline where the peak is far: DPO and IPO minus "
                f"{NAMES[name]} on R1",
                far,
                far.low > 0,
                asserted=name != "preference_likelihood",
                note=f"By the number of prompts: {by_prompts}.",
            )
        )
    near = over_seeds(gains["best_of_n"].sel(reward="R2"))
    far = over_seeds(gains["best_of_n"].sel(reward="R1"))
    claims.append(
        EXPERIMENT.claim(
            "It helps little where the peak is near: DPO and IPO minus best-of-N on R2 (holds if "
            "the interval lies below that of R1)",
            near,
            near.high < far.low,
        )
    )
    return claims


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
