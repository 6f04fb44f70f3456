"""I24's fourth aspect: prompts without preference data, added to PPO's training.

The reward model knows the general domain. Prompts of that domain, or of the target domain, are
added in growing numbers to those that have labels; PPO is tuned at each number, and judged on fresh
prompts of both domains.
"""

import itertools
from dataclasses import dataclass, field

import xarray as xr
from matplotlib.figure import Figure

from bandits import plotting
from bandits.studies.base import Claim, Experiment
from bandits.studies.curves import draw_mean_line, over_seeds, require_no_nan
from bandits.studies.i24.aspects import QUICK, Aspects, Recipe, prepare, train_recipes, tuned
from theory.checks import InvalidInput

NONE = "none"
"""The recipe without added prompts, the same for both kinds."""

COLORS = {"general": "#4477AA", "target": "#EE6677"}


@dataclass(frozen=True)
class Settings:
    """What is trained.

    Attributes:
      aspects: the setting; ``most_prompts`` of it bounds the numbers.
      labelled: prompts with a labelled pair.
      added: numbers of prompts without: 0, then more and more.
    """

    aspects: Aspects = field(default_factory=lambda: Aspects(seeds=12))
    labelled: int = 100
    added: tuple[int, ...] = (0, 100, 400)

    def __post_init__(self) -> None:
        """Refuse numbers that make no curve of gains over none."""
        rises = all(a < b for a, b in itertools.pairwise(self.added))
        if not self.added or self.added[0] != 0 or not rises:
            raise InvalidInput(f"added is {self.added}; it must start with 0 and rise")
        if self.added[-1] > self.aspects.most_prompts:
            raise InvalidInput(
                f"added goes to {self.added[-1]}; most_prompts of these aspects is "
                f"{self.aspects.most_prompts}"
            )


def run(settings: Settings) -> xr.Dataset:
    """Tuned shares of the best response's gain, by kind and number of added prompts and domain."""
    labelled = Recipe(pairs=settings.labelled, reward_pairs=settings.labelled)
    recipes = {NONE: labelled} | {
        f"{kind} {count}": labelled._replace(**{f"{kind}_prompts": count})
        for kind in COLORS
        for count in settings.added[1:]
    }
    prepared = prepare(settings.aspects, recipes)
    share = tuned(train_recipes(settings.aspects, "ppo", list(recipes), prepared))
    names = [[NONE, *(f"{kind} {count}" for count in settings.added[1:])] for kind in COLORS]
    axes = {"kind": list(COLORS), "added": list(settings.added)}
    return (
        share.sel(recipe=xr.DataArray(names, axes, list(axes)))
        .drop_vars("recipe")
        .transpose("kind", "added", "domain", "seed")
        .to_dataset(name="share")
    )


def plot(dataset: xr.Dataset) -> Figure:
    """A panel a domain: what the added prompts of either kind gain in true reward."""
    figure = plotting.new_figure(13, 5.8)
    panels = figure.subplots(1, 2, sharey=True)
    figure.subplots_adjust(0.075, 0.13, 0.985, 0.91, wspace=0.06)
    for axes, domain in zip(panels, dataset["domain"].values, strict=True):
        for kind, color in COLORS.items():
            one = dataset["share"].sel(domain=domain, kind=kind)
            gain = one - one.isel(added=0, drop=True)
            draw_mean_line(axes, gain, "added", color=color, label=f"{kind} prompts added")
        axes.set(title=f"Judged on the {domain} domain", xlabel="prompts without labels")
        axes.axhline(0, color=plotting.INK, linewidth=1)
    panels[0].set_ylabel("gain, in shares of the best response's")
    panels[0].legend()
    return figure


def judge(dataset: xr.Dataset) -> list[Claim]:
    """What the most added prompts gain on the domain that they match, and on the other."""
    require_no_nan(dataset)
    share = dataset["share"]
    gain = share.isel(added=-1) - share.isel(added=0)
    matched = over_seeds(gain.sel(kind="target", domain="target"))
    in_domain = over_seeds(gain.sel(kind="general", domain="general"))
    against = over_seeds(
        gain.sel(kind="target", domain="target") - gain.sel(kind="general", domain="target")
    )
    most = int(dataset["added"][-1])
    return [
        EXPERIMENT.claim(
            f"Prompts of the target domain help there, though they have no labels: gain by {most}",
            matched,
            matched.low > 0,
            asserted=False,
            note="More prompts do not teach the reward model.",
        ),
        EXPERIMENT.claim(
            f"They help there more than as many of the general domain: difference of gains, {most}",
            against,
            against.low > 0,
            asserted=False,
        ),
        EXPERIMENT.claim(
            f"So do more prompts of the general domain, on it: gain by {most}",
            in_domain,
            in_domain.low > 0,
            asserted=False,
        ),
    ]


EXPERIMENT = Experiment(
    name="unlabelled_prompts",
    source="I24, section 3.4",
    question="Do prompts without preference data help?",
    full=Settings(),
    quick=Settings(
        aspects=QUICK,
        added=(0, 200),
    ),
    run=run,
    plot=plot,
    judge=judge,
)
