"""T24's length problems: seven methods on Min, Mode and Skew, against a learned reward."""

from dataclasses import dataclass, field

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from bandits import plotting
from bandits.experiments.base import Claim, Experiment
from bandits.experiments.curves import draw_mean_line, over_seeds, require_no_nan
from bandits.experiments.lengths import PROBLEMS, TITLES, Lengths, train_lengths

OFFLINE = ("preference_likelihood", "dpo")
ON_POLICY = ("best_of_n", "reward_weighted", "reinforce", "ppo", "online_dpo")
NAMES = OFFLINE + ON_POLICY
ALIKE = 0.05
"""Final gold rewards within this of each other, in maximum lengths, are called alike: 2 tokens."""


@dataclass(frozen=True)
class Settings:
    """What is trained.

    Attributes:
      lengths: the problems.
      steps: gradient steps.
      records: how many of them are recorded, evenly.
      passes: T of methods that reuse samples.
      batch: B.
    """

    lengths: Lengths = field(default_factory=Lengths)
    steps: int = 400
    records: int = 20
    batch: int = 200
    passes: int = 4


def run(settings: Settings) -> xr.Dataset:
    """Gold and proxy reward, KL and lengths over training, for every problem and method."""
    record = np.linspace(0, settings.steps, settings.records + 1).astype(int).tolist()
    common = {"steps": settings.steps, "record": record}
    problems = {"problem": list(PROBLEMS)}
    offline = train_lengths(settings.lengths, OFFLINE, problems, **common)
    online = train_lengths(
        settings.lengths,
        ON_POLICY,
        problems,
        batch=settings.batch,
        reuse=settings.passes,
        **common,
    )
    return xr.concat([offline, online], "loss").sel(loss=list(NAMES))


def plot(dataset: xr.Dataset) -> Figure:
    """A column a problem: gold reward over training; the reference's lengths and the ends'."""
    figure = plotting.new_figure(16, 8.2)
    panels = figure.subplots(2, 3, height_ratios=[1.25, 1])
    figure.subplots_adjust(0.055, 0.145, 0.99, 0.95, wspace=0.2, hspace=0.3)
    for column, problem in enumerate(PROBLEMS):
        over_training, laws = panels[:, column]
        one = dataset.sel(problem=problem)
        for name in NAMES:
            draw_mean_line(
                over_training,
                one["gold"].sel(loss=name),
                "step",
                color=plotting.METHOD_COLORS[name],
                linestyle=plotting.METHOD_LINES[name],
                label=plotting.METHOD_LABELS[name],
                marker="",
            )
            law = one["length_probability"].sel(loss=name).isel(step=-1).mean("seed")
            laws.plot(
                law["length"],
                law,
                plotting.METHOD_LINES[name],
                color=plotting.METHOD_COLORS[name],
            )
        start = one["length_probability"].isel(loss=0, step=0, seed=0)
        laws.fill_between(start["length"], start, color=plotting.TARGET_COLOR, linewidth=0)
        over_training.set(title=TITLES[problem], xlabel="gradient steps")
        laws.set(xlabel="length, in tokens", yscale="log", ylim=(1e-3, 1.2))
    panels[0, 0].set_ylabel("true reward")
    panels[1, 0].set_ylabel("probability (reference in grey)")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="lower center", ncols=len(NAMES))
    return figure


def judge(dataset: xr.Dataset) -> list[Claim]:
    """On Min and Skew the best and the worst; on Mode the spread; what skewed data cost whom."""
    require_no_nan(dataset)
    final = dataset["gold"].isel(step=-1)
    claims = []
    for problem in ("min", "skew"):
        one = final.sel(problem=problem)
        means = one.mean("seed")
        rivals = [n for n in NAMES if n != "online_dpo"]
        rival = str(means.sel(loss=rivals).idxmax("loss").item())
        worst = str(means.idxmin("loss").item())
        ahead = over_seeds(one.sel(loss="online_dpo") - one.sel(loss=rival))
        others = [n for n in NAMES if n != "preference_likelihood"]
        lowest = str(means.sel(loss=others).idxmin("loss").item())
        behind = over_seeds(one.sel(loss=lowest) - one.sel(loss="preference_likelihood"))
        claims += [
            EXPERIMENT.claim(
                f"On {problem.capitalize()} no method ends better than online DPO: its true reward "
                f"minus that of the best other, {plotting.METHOD_LABELS[rival]} (holds if surely "
                "above -0.01, less than half a token)",
                ahead,
                ahead.low > -0.01,
            ),
            EXPERIMENT.claim(
                f"and Pref-FT worst: true reward of the next worst, "
                f"{plotting.METHOD_LABELS[lowest]}, minus its own",
                behind,
                behind.low > 0,
                note=f"The worst is {plotting.METHOD_LABELS[worst]}, "
                f"{float(means.sel(loss=worst)):.2f}; Pref-FT ends at "
                f"{float(means.sel(loss='preference_likelihood')):.2f}.",
            ),
        ]
    mode = final.sel(problem="mode")
    means = mode.mean("seed")
    best, worst = (str(m.item()) for m in (means.idxmax("loss"), means.idxmin("loss")))
    apart = over_seeds(mode.sel(loss=best) - mode.sel(loss=worst))
    spread = {
        problem: float(
            final.sel(problem=problem).mean("seed").max()
            - final.sel(problem=problem).mean("seed").min()
        )
        for problem in PROBLEMS
    }
    claims.append(
        EXPERIMENT.claim(
            "On Mode all are alike: true reward of the best minus that of the worst (holds if "
            f"surely below {ALIKE:g}, two tokens)",
            apart,
            apart.high < ALIKE,
            asserted=False,
            note=f"The best is {plotting.METHOD_LABELS[best]}, the worst "
            f"{plotting.METHOD_LABELS[worst]}. The spread on Min is {spread['min']:.2f}, on Skew "
            f"{spread['skew']:.2f}.",
        )
    )
    cost = final.sel(problem="min") - final.sel(problem="skew")
    by_method = {name: over_seeds(cost.sel(loss=name)) for name in NAMES}
    most = max(by_method, key=lambda name: by_method[name].effect)
    listed = ", ".join(
        f"{plotting.METHOD_LABELS[name]} {interval.effect:+.3f} "
        f"[{interval.low:+.3f}, {interval.high:+.3f}]"
        for name, interval in by_method.items()
    )
    return [
        *claims,
        EXPERIMENT.claim(
            "Data of short responses only cost some method: true reward on Min minus that on Skew, "
            f"{plotting.METHOD_LABELS[most]}",
            by_method[most],
            by_method[most].low > 0,
            asserted=False,
            note=f"By method: {listed}.",
        ),
    ]


EXPERIMENT = Experiment(
    name="length_problems",
    source="T24, section 4.2: synthetic length problems",
    question="Which method finds the best length with a learned reward?",
    full=Settings(),
    quick=Settings(lengths=Lengths(seeds=3, pairs=200), steps=60, records=4),
    run=run,
    plot=plot,
    judge=judge,
)
