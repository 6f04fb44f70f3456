"""Measure I24's four aspects: data, algorithm, reward model and prompts; then prompts alone.

Every cell is tuned alike: PPO and DPO over one grid of learning rates and β, of which each bandit
takes the best on held-out prompts.
"""

import itertools
import textwrap

import xarray as xr
from matplotlib.figure import Figure

from bandits import plotting
from bandits.studies.curves import draw_bar_row, draw_mean_line, over_seeds, require_no_nan
from bandits.studies.i24.aspects import POLICIES, QUICK, Aspects, Recipe, tuned
from bandits.studies.study import Claim, Study, claim
from theory.checks import InvalidInput

COLORS = ("#4477AA", "#EE6677")
"""The colours of the classes of policies, and of the domains."""


class FourAspects(Study):
    """Improve each aspect from a worse to a better value.

    The effect of an aspect is the gain in true reward of its better value, all else at its best;
    its size depends on how far apart the two values are.
    """

    source = "I24, sections 3 and 4"
    question = "What matters most: data, algorithm, reward model or prompts?"
    quick = {"aspects": QUICK}

    aspects: Aspects = Aspects()

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
    # Recipes with worse data; fewer pairs also leave fewer prompts and a poorer reward model.
    OF_DATA = ("noisy labels", "narrow responses", "few pairs")
    # DPO has no reward model and no other prompts.
    TRAINED = {"dpo": ["best", *OF_DATA], "ppo": list(RECIPES)}
    SENTENCES = {
        "data quality": "Better data help PPO: mean gain of clean labels, broad responses, more "
        "pairs",
        "algorithm": "PPO is better than DPO at matched tuning: gain",
        "reward model": "A reward model that sees all features instead of half helps PPO: gain",
        "prompts": "More prompts without labels help PPO on their own domain: gain",
    }

    def run(self) -> xr.Dataset:
        prepared = self.aspects.prepare(self.RECIPES)
        cells = [
            tuned(self.aspects.train(method, names, prepared, policy))
            .expand_dims(loss=[method], policy=[policy])
            .to_dataset(name="share")
            for policy in POLICIES
            for method, names in self.TRAINED.items()
        ]
        return xr.merge(cells, join="outer", compat="no_conflicts")

    @classmethod
    def plot(cls, dataset: xr.Dataset) -> Figure:
        """Draw the effect of each aspect, and every recipe."""
        figure = plotting.new_figure(15.5, 6.4)
        left, right = figure.subplots(1, 2, width_ratios=[1, 1.5])
        figure.subplots_adjust(0.06, 0.17, 0.99, 0.92, wspace=0.13)
        effects = xr.concat(_effects(dataset).values(), "aspect")
        share = dataset["share"].sel(domain="general", policy="linear")
        for i, shift in enumerate((-0.19, 0.19)):
            bars = {"width": 0.36, "color": COLORS[i], "label": f"{POLICIES[i]} policy"}
            draw_bar_row(left, effects.sel(policy=POLICIES[i]), "aspect", shift, **bars)
            method, names = list(cls.TRAINED.items())[i]  # DPO's recipes are the first of PPO's
            color, label = plotting.METHOD_COLORS[method], plotting.METHOD_LABELS[method]
            known, bars = share.sel(loss=method, recipe=names), {"color": color, "label": label}
            draw_bar_row(right, known, "recipe", shift, width=0.36, **bars)
        left.set_xticks(range(4), ["data", "PPO for\nDPO", "reward\nmodel", "more\nprompts"])
        left.axhline(0, color=plotting.INK, linewidth=1)
        left.set(title="What each aspect gains", ylabel="share of the best response's gain")
        left.legend(loc="upper left")
        lines = [textwrap.fill(name, 10) for name in cls.RECIPES]
        right.set_xticks(range(len(lines)), lines, fontsize=11)
        right.set(title="Every recipe, linear policy", ylim=(0, 1))
        right.legend()
        return figure

    @classmethod
    def judge(cls, dataset: xr.Dataset) -> list[Claim]:
        effects, on_target = _effects(dataset), _target_effects(dataset)
        for effect in [*effects.values(), *on_target.values()]:
            require_no_nan(effect.to_dataset(name="share"))
        order = sorted(effects, key=lambda name: -over_seeds(effects[name]).effect)
        next_to_data = next(name for name in order if name != "data quality")
        by_class = {p: over_seeds(effects["algorithm"].sel(policy=p)) for p in POLICIES}
        algorithm = "; ".join(
            f"{policy} policy {gain.effect:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]"
            for policy, gain in by_class.items()
        )
        return [
            claim(
                "Data quality matters most: its effect minus that of the next aspect",
                effects["data quality"] - effects[next_to_data],
                asserted=False,
                note=f"The measured order: {', '.join(order)}. Published: {', '.join(effects)}.",
            ),
            *(
                claim(
                    f"{sentence} in shares of the best response's",
                    effects[name],
                    asserted=name in ("data quality", "reward model"),
                    note=f"By policy class: {algorithm}." if name == "algorithm" else "",
                )
                for name, sentence in cls.SENTENCES.items()
            ),
            *(
                claim(
                    f"In the measured order: effect of {better} minus that of {worse}",
                    effects[better] - effects[worse],
                    asserted=False,
                    note="The order is chosen on the seeds that judge it; the interval is not "
                    "corrected for it.",
                )
                for better, worse in itertools.pairwise(order)
            ),
            *(
                claim(
                    f"{what_helps} PPO on the target domain: gain in shares of the best response's",
                    effect,
                    asserted=False,
                )
                for what_helps, effect in on_target.items()
            ),
        ]


def _effects(dataset: xr.Dataset) -> dict[str, xr.DataArray]:
    """Return the gain of each aspect's better value on the general domain, in published order."""
    share = dataset["share"].sel(domain="general", drop=True)
    dpo, ppo = (share.sel(loss=method, drop=True) for method in ("dpo", "ppo"))
    best = ppo.sel(recipe="best", drop=True)
    of_data = ppo.sel(recipe=list(FourAspects.OF_DATA)).mean("recipe", skipna=False)
    return {
        "data quality": best - of_data,
        "algorithm": best - dpo.sel(recipe="best", drop=True),
        "reward model": best - ppo.sel(recipe="small reward model", drop=True),
        "prompts": ppo.sel(recipe="more prompts", drop=True) - best,
    }


def _target_effects(dataset: xr.Dataset) -> dict[str, xr.DataArray]:
    """Return what may help PPO on the target domain, with its gain there, by policy and seed."""
    ppo = dataset["share"].sel(domain="target", loss="ppo", drop=True)
    best, target, general, small = (
        ppo.sel(recipe=name, drop=True)
        for name in ("best", "target prompts", "more prompts", "small reward model")
    )
    return {
        "Target prompts without labels help": target - best,
        "More general prompts help": general - best,
        "A reward model that sees all features instead of half helps": best - small,
    }


class UnlabelledPrompts(Study):
    """Add prompts without preference data to PPO's training, more and more.

    The reward model knows the general domain. The prompts are of that domain, or of the target
    domain; PPO is tuned at each number, and judged on fresh prompts of both domains.
    """

    source, question = "I24, section 3.4", "Do prompts without preference data help?"
    quick = {"aspects": QUICK, "added": (0, 200)}

    aspects: Aspects = Aspects(seeds=12)  # its most_prompts bounds the numbers
    labelled: int = 100  # prompts with a labelled pair
    added: tuple[int, ...] = (0, 100, 400)  # numbers of prompts without: 0, then more and more

    KINDS = dict(zip(("general", "target"), COLORS, strict=True))

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

    def run(self) -> xr.Dataset:
        labelled = Recipe(pairs=self.labelled, reward_pairs=self.labelled)
        # Without added prompts the two kinds are one recipe.
        names = [[f"{kind} {n}" if n else "none" for n in self.added] for kind in self.KINDS]
        recipes = {
            name: labelled._replace(**{f"{kind}_prompts": count})
            for kind, row in zip(self.KINDS, names, strict=True)
            for name, count in zip(row, self.added, strict=True)
        }
        prepared = self.aspects.prepare(recipes)
        share = tuned(self.aspects.train("ppo", list(recipes), prepared))
        axes = {"kind": list(self.KINDS), "added": list(self.added)}
        return (
            share.sel(recipe=xr.DataArray(names, axes, list(axes)))
            .drop_vars("recipe")
            .transpose("kind", "added", "domain", "seed")
            .to_dataset(name="share")
        )

    @classmethod
    def plot(cls, dataset: xr.Dataset) -> Figure:
        """Draw a panel for each domain: what added prompts of either kind gain in true reward."""
        edges = (0.075, 0.13, 0.985, 0.91)
        figure, grid = plotting.new_grid(1, 2, 13, 5.8, edges, wspace=0.06)
        gain = dataset["share"] - dataset["share"].isel(added=0, drop=True)
        for axes, domain in zip(grid[0], dataset["domain"].values, strict=True):
            for kind, color in cls.KINDS.items():
                one = gain.sel(domain=domain, kind=kind)
                draw_mean_line(axes, one, "added", color=color, label=f"{kind} prompts added")
            axes.set(title=f"Judged on the {domain} domain", xlabel="prompts without labels")
            axes.axhline(0, color=plotting.INK, linewidth=1)
        grid[0, 0].set_ylabel("gain, in shares of the best response's")
        grid[0, 0].legend()
        return figure

    @classmethod
    def judge(cls, dataset: xr.Dataset) -> list[Claim]:
        require_no_nan(dataset)
        share, most = dataset["share"], int(dataset["added"][-1])
        gain = share.isel(added=-1) - share.isel(added=0)
        matched = gain.sel(kind="target", domain="target")
        return [
            claim(
                "Prompts of the target domain help there, though they have no labels: gain by "
                f"{most}",
                matched,
                asserted=False,
                note="More prompts do not teach the reward model.",
            ),
            claim(
                "They help there more than as many of the general domain: difference of gains, "
                f"{most}",
                matched - gain.sel(kind="general", domain="target"),
                asserted=False,
            ),
            claim(
                f"So do more prompts of the general domain, on it: gain by {most}",
                gain.sel(kind="general", domain="general"),
                asserted=False,
            ),
        ]
