"""I24's four aspects: data, algorithm, reward model and prompts, each from worse to better.

Every cell is tuned alike: PPO and DPO over one grid of learning rates and β, for each bandit the
best on held-out prompts. The effect of an aspect is the gain in true reward of its better value,
all else at its best; its size depends on how far apart the two values are.
"""

import itertools
import textwrap
from dataclasses import dataclass, field

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from bandits import plotting
from bandits.studies.base import Claim, Experiment
from bandits.studies.curves import draw_bar_row, over_seeds, require_no_nan
from bandits.studies.i24.aspects import (
    POLICIES,
    QUICK,
    Aspects,
    Recipe,
    prepare,
    train_recipes,
    tuned,
)
from bandits.studies.intervals import mean_interval

RECIPES = {
    "best": Recipe(),
    "noisy labels": Recipe(label_noise=0.3),
    "narrow responses": Recipe(coverage=0.5),
    "few pairs": Recipe(pairs=100, reward_pairs=100),
    "small reward model": Recipe(reward_features=6),
    "reward model on few pairs": Recipe(reward_pairs=100),
    "more prompts": Recipe(general_prompts=400),
    "target prompts": Recipe(target_prompts=400),
}
OF_DATA = ("noisy labels", "narrow responses", "few pairs")
"""Recipes whose data are worse; fewer pairs also leave fewer prompts and a poorer reward model."""

ASPECTS = ("data quality", "algorithm", "reward model", "prompts")

SAME_SEEDS = "The order is chosen on the seeds that judge it; the interval is not corrected for it."


@dataclass(frozen=True)
class Settings:
    """What is trained.

    Attributes:
      aspects: the setting.
    """

    aspects: Aspects = field(default_factory=Aspects)


def run(settings: Settings) -> xr.Dataset:
    """Tuned shares of the best response's gain: method, policy class, recipe, domain, seed."""
    prepared = prepare(settings.aspects, RECIPES)
    cells = []
    for policy in POLICIES:
        for method in ("dpo", "ppo"):
            # DPO has no reward model and no other prompts.
            names = ["best", *OF_DATA] if method == "dpo" else list(RECIPES)
            trained = train_recipes(settings.aspects, method, names, prepared, policy)
            cells.append(tuned(trained).expand_dims(loss=[method], policy=[policy]))
    return xr.merge(
        [cell.to_dataset(name="share") for cell in cells], join="outer", compat="no_conflicts"
    )


def _effects(dataset: xr.Dataset) -> dict[str, xr.DataArray]:
    """The gain of the better value of each aspect, by policy and seed, on the general domain."""
    share = dataset["share"].sel(domain="general", drop=True)
    best = share.sel(recipe="best", drop=True)
    ppo, best_ppo = share.sel(loss="ppo", drop=True), best.sel(loss="ppo", drop=True)
    return {
        "data quality": best_ppo - _mean([ppo.sel(recipe=n, drop=True) for n in OF_DATA]),
        "algorithm": best_ppo - best.sel(loss="dpo", drop=True),
        "reward model": best_ppo - ppo.sel(recipe="small reward model", drop=True),
        "prompts": ppo.sel(recipe="more prompts", drop=True) - best_ppo,
    }


def _target_effects(dataset: xr.Dataset) -> dict[str, xr.DataArray]:
    """What helps PPO on the target domain, with its gain there by policy and seed."""
    ppo = dataset["share"].sel(domain="target", loss="ppo", drop=True)
    best = ppo.sel(recipe="best", drop=True)
    return {
        "Target prompts without labels help": ppo.sel(recipe="target prompts", drop=True) - best,
        "More general prompts help": ppo.sel(recipe="more prompts", drop=True) - best,
        "A reward model that sees all features instead of half helps": best
        - ppo.sel(recipe="small reward model", drop=True),
    }


def _mean(effects: list[xr.DataArray]) -> xr.DataArray:
    return xr.concat(effects, "value").mean("value", skipna=False)


def plot(dataset: xr.Dataset) -> Figure:
    """The effect of each aspect, and every recipe."""
    figure = plotting.new_figure(15.5, 6.4)
    effects, recipes = figure.subplots(1, 2, width_ratios=[1, 1.5])
    figure.subplots_adjust(0.06, 0.17, 0.99, 0.92, wspace=0.13)
    together = xr.concat(list(_effects(dataset).values()), "aspect").assign_coords(
        aspect=range(len(ASPECTS))
    )
    colors = {"linear": "#4477AA", "network": "#EE6677"}
    for i, policy in enumerate(POLICIES):
        draw_bar_row(
            effects,
            together.sel(policy=policy),
            "aspect",
            shift=0.38 * (i - 0.5),
            width=0.36,
            color=colors[policy],
            label=f"{policy} policy",
        )
    effects.set_xticks(
        range(len(ASPECTS)), ["data", "PPO for\nDPO", "reward\nmodel", "more\nprompts"]
    )
    effects.axhline(0, color=plotting.INK, linewidth=1)
    effects.set(title="What each aspect gains", ylabel="share of the best response's gain")
    effects.legend(loc="upper left")
    names = list(RECIPES)
    for i, method in enumerate(("dpo", "ppo")):
        one = dataset["share"].sel(domain="general", policy="linear", loss=method, recipe=names)
        known = one.dropna("recipe", how="all")
        places = [names.index(name) for name in known["recipe"].values]
        values = np.array(
            [mean_interval(row) for row in known.transpose("recipe", "seed").values]
        ).T
        at = np.array(places) + 0.38 * (i - 0.5)
        recipes.bar(
            at,
            values[0],
            0.36,
            yerr=[values[0] - values[1], values[2] - values[0]],
            color=plotting.METHOD_COLORS[method],
            label=plotting.METHOD_LABELS[method],
            error_kw={"ecolor": plotting.INK, "elinewidth": 1.2},
        )
    lines = [textwrap.fill(name, 10) for name in names]
    recipes.set_xticks(range(len(names)), lines, fontsize=11)
    recipes.set(title="Every recipe, linear policy", ylim=(0, 1))
    recipes.legend()
    return figure


def judge(dataset: xr.Dataset) -> list[Claim]:
    """The effect of each aspect, their order, and gains on the target domain; by seed.

    The order is that of the means over all seeds, and the same seeds give the intervals of its
    differences: they are not corrected for that choice.
    """
    effects, on_target = _effects(dataset), _target_effects(dataset)
    for effect in [*effects.values(), *on_target.values()]:
        require_no_nan(effect.to_dataset(name="share"))
    means = {name: over_seeds(effect) for name, effect in effects.items()}
    order = sorted(ASPECTS, key=lambda name: -means[name].effect)
    published = list(ASPECTS)
    by_class = {
        policy: mean_interval(effects["algorithm"].sel(policy=policy).values) for policy in POLICIES
    }
    algorithm = "; ".join(
        f"{policy} policy {gain.effect:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]"
        for policy, gain in by_class.items()
    )
    first = over_seeds(
        effects["data quality"] - effects[next(n for n in order if n != "data quality")]
    )
    claims = [
        EXPERIMENT.claim(
            "Data quality matters most: its effect minus that of the next aspect",
            first,
            first.low > 0,
            asserted=False,
            note=f"The measured order: {', '.join(order)}. Published: {', '.join(published)}.",
        )
    ]
    sentences = {
        "data quality": "Better data help PPO: mean gain of clean labels, broad responses, more "
        "pairs",
        "algorithm": "PPO is better than DPO at matched tuning: gain",
        "reward model": "A reward model that sees all features instead of half helps PPO: gain",
        "prompts": "More prompts without labels help PPO on their own domain: gain",
    }
    for name in ASPECTS:
        claims.append(
            EXPERIMENT.claim(
                f"{sentences[name]} in shares of the best response's",
                means[name],
                means[name].low > 0,
                asserted=name in ("data quality", "reward model"),
                note=f"By policy class: {algorithm}." if name == "algorithm" else "",
            )
        )
    for better, worse in itertools.pairwise(order):
        difference = over_seeds(effects[better] - effects[worse])
        claims.append(
            EXPERIMENT.claim(
                f"In the measured order: effect of {better} minus that of {worse}",
                difference,
                difference.low > 0,
                asserted=False,
                note=SAME_SEEDS,
            )
        )
    for what_helps, effect in on_target.items():
        gain = over_seeds(effect)
        claims.append(
            EXPERIMENT.claim(
                f"{what_helps} PPO on the target domain: gain in shares of the best response's",
                gain,
                gain.low > 0,
                asserted=False,
            )
        )
    return claims


EXPERIMENT = Experiment(
    name="four_aspects",
    source="I24, sections 3 and 4",
    question="What matters most: data, algorithm, reward model or prompts?",
    full=Settings(),
    quick=Settings(aspects=QUICK),
    run=run,
    plot=plot,
    judge=judge,
)
