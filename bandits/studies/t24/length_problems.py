"""T24's length problems: seven methods on Min, Mode and Skew, against a learned reward."""

from dataclasses import dataclass, field

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bandits import plotting
from bandits.studies.base import Claim, Experiment
from bandits.studies.curves import draw_means, over_seeds, require_no_nan, with_legend
from bandits.studies.t24.lengths import (
    PROBLEMS,
    TITLES,
    Lengths,
    ahead_of_others,
    behind_others,
    train_lengths,
)

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

    lengths: Lengths = field(default_factory=lambda: Lengths(seeds=30))
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
    """A column a problem: true and learned reward, KL and lengths, over training."""
    figure = plotting.new_figure(16, 13)
    panels = figure.subplots(4, 3, height_ratios=[1.3, 1, 1, 1])
    figure.subplots_adjust(0.06, 0.085, 0.99, 0.97, wspace=0.2, hspace=0.45)
    for column, problem in enumerate(PROBLEMS):
        rewards, divergences, start, end = panels[:, column]
        one = dataset.sel(problem=problem)
        for name in NAMES:
            draw_means(rewards, one["gold"].sel(loss=name), "step", name, marker="")
            if name not in OFFLINE:
                learned = one["proxy"].sel(loss=name).mean("seed")
                color = plotting.METHOD_COLORS[name]
                rewards.plot(learned["step"], learned, ":", color=color, linewidth=1.3)
            draw_means(divergences, one["reference_kl"].sel(loss=name), "step", name, marker="")
        early = int(dataset["step"][1])
        for axes, step, when in (
            (start, early, f"after {early} steps"),
            (end, int(dataset["step"][-1]), "at the end"),
        ):
            _draw_lengths(axes, one["length_probability"], step)
            axes.set_title(when)
        rewards.set(title=TITLES[problem], xlabel="gradient steps")
        divergences.set_xlabel("gradient steps")
        end.set_xlabel("length, in tokens")
    panels[0, 0].plot([], [], ":", color=plotting.INK, linewidth=1.3, label="as learned")
    for axes, label in zip(
        panels[:, 0], ("reward", "KL to reference", *["probability"] * 2), strict=True
    ):
        axes.set_ylabel(label)
    return with_legend(figure, panels[0, 0], ncols=8)


def _draw_lengths(axes: Axes, laws: xr.DataArray, step: int) -> None:
    """The law of the length of every method after so many steps, the reference's in grey."""
    for name in NAMES:
        law = laws.sel(loss=name, step=step).mean("seed")
        line, color = plotting.METHOD_LINES[name], plotting.METHOD_COLORS[name]
        axes.plot(law["length"], law, linestyle=line, color=color)
    reference = laws.isel(loss=0, step=0, seed=0)
    axes.fill_between(reference["length"], reference, color=plotting.TARGET_COLOR, linewidth=0)
    axes.set(yscale="log", ylim=(1e-3, 1.2))


def judge(dataset: xr.Dataset) -> list[Claim]:
    """On Min and Skew the best and the worst; on Mode the spread; what skewed data cost whom."""
    require_no_nan(dataset)
    final = dataset["gold"].isel(step=-1)
    claims = []
    for problem in ("min", "skew"):
        one = final.sel(problem=problem)
        means = one.mean("seed")
        worst = str(means.idxmin("loss").item())
        rival, ahead = ahead_of_others(one, "online_dpo")
        lowest, behind = behind_others(one, "preference_likelihood")
        claims += [
            EXPERIMENT.claim(
                f"On {problem.capitalize()} no method ends better than online DPO: its true reward "
                f"minus that of the best other, {plotting.METHOD_LABELS[rival]} (holds if surely "
                "above -0.01, less than half a token)",
                ahead,
                ahead.low > -0.01,
                note="The best other is chosen on the seeds that judge it.",
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
    excess = (dataset["gold"] - dataset["proxy"]).sel(problem="skew", loss=list(ON_POLICY))
    shortfall = over_seeds(excess.isel(step=-1) - excess.isel(step=0))
    return [
        *claims,
        EXPERIMENT.claim(
            "On Skew the learned reward knows short responses only: true gain of on-policy methods "
            "minus the gain that it promises",
            shortfall,
            shortfall.low > 0,
            asserted=False,
            note="Beyond the data the ridge draws the reward of long responses up to 0.",
        ),
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
