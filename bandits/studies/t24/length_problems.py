"""Compare methods, models and renewal of samples on T24's length problems.

All methods are trained on Min, Mode or Skew, offline on pairs or against a learned reward. They are
judged by the true reward, in maximum lengths.
"""

import dataclasses
import functools
import itertools
from typing import Literal

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bandits import plotting
from bandits.studies import curves
from bandits.studies.study import Claim, Study, claim, surely_above, surely_below
from bandits.studies.t24.lengths import (
    POLICIES,
    PROBLEMS,
    REWARD_MODELS,
    Lengths,
    train_lengths,
)

TITLES = {
    "min": "Min: shorter is better",
    "mode": "Mode: the usual length is best",
    "skew": "Skew: as Min, short data only",
}
SHORTER = ["min", "skew"]
"""The problems on which shorter is better."""

ABLATIONS = "T24, section 5.1: synthetic length problems"
SMALL = Lengths(seeds=3, pairs=200)


class LengthProblems(Study):
    """Train seven methods on Min, Mode and Skew."""

    source = "T24, section 4.2: synthetic length problems"
    question = "Which method finds the best length with a learned reward?"
    quick = {"lengths": SMALL, "steps": 60, "records": 4}

    lengths: Lengths = Lengths(seeds=30)
    steps: int = 400
    records: int = 20  # how many of the steps are recorded, evenly
    passes: int = 4  # T of methods that reuse samples
    batch: int = 200  # B

    OFFLINE = ("preference_likelihood", "dpo")
    ON_POLICY = ("best_of_n", "reward_weighted", "reinforce", "ppo", "online_dpo")
    ALIKE = 0.05  # of final gold rewards, in maximum lengths

    def run(self) -> xr.Dataset:
        train = functools.partial(
            train_lengths,
            self.lengths,
            axes={"problem": PROBLEMS},
            steps=self.steps,
            record=np.linspace(0, self.steps, self.records + 1).astype(int).tolist(),
        )
        online = train(methods=self.ON_POLICY, batch=self.batch, reuse=self.passes)
        return xr.concat([train(methods=self.OFFLINE), online], "loss")

    @classmethod
    def plot(cls, dataset: xr.Dataset) -> Figure:
        """Draw a column for each problem: true and learned reward, KL and lengths, over steps."""
        figure, panels = plotting.new_grid(
            4, 3, 16, 13, (0.06, 0.085, 0.99, 0.97), 0.2, 0.45,
            sharey=False, height_ratios=[1.3, 1, 1, 1],
        )  # fmt: skip
        early, last = (int(dataset["step"][i]) for i in (1, -1))
        for (rewards, divergences, start, end), problem in zip(panels.T, PROBLEMS, strict=True):
            one = dataset.sel(problem=problem)
            for name in cls.OFFLINE + cls.ON_POLICY:
                run = one.sel(loss=name)
                curves.draw_means(rewards, run["gold"], "step", name, marker="")
                if name in cls.ON_POLICY:
                    learned, color = run["proxy"].mean("seed"), plotting.METHOD_COLORS[name]
                    rewards.plot(learned["step"], learned, ":", color=color, linewidth=1.3)
                curves.draw_means(divergences, run["reference_kl"], "step", name, marker="")
            _draw_lengths(start, one["length_probability"], early)
            _draw_lengths(end, one["length_probability"], last)
            rewards.set(title=TITLES[problem], xlabel="gradient steps")
            divergences.set_xlabel("gradient steps")
            start.set_title(f"after {early} steps")
            end.set(title="at the end", xlabel="length, in tokens")
        first = panels[0, 0]
        first.plot([], [], ":", color=plotting.INK, linewidth=1.3, label="as learned")
        labels = ("reward", "KL to reference", "probability", "probability")
        for axes, label in zip(panels[:, 0], labels, strict=True):
            axes.set_ylabel(label)
        return curves.with_legend(figure, first, ncols=8)

    @classmethod
    def judge(cls, dataset: xr.Dataset) -> list[Claim]:
        curves.require_no_nan(dataset)
        final = dataset["gold"].isel(step=-1)
        means = final.mean("seed")
        spread = means.max("loss") - means.min("loss")
        mode = means.sel(problem="mode")
        best, worst = mode.idxmax("loss").item(), mode.idxmin("loss").item()
        excess = (dataset["gold"] - dataset["proxy"]).sel(problem="skew", loss=list(cls.ON_POLICY))
        return [
            *(one for problem in SHORTER for one in cls._judge_ends(final, problem)),
            claim(
                "On Mode all are alike: true reward of the best minus that of the worst",
                (final.sel(loss=best) - final.sel(loss=worst)).sel(problem="mode"),
                surely_below(cls.ALIKE, "two tokens"),
                asserted=False,
                note=f"The best is {plotting.METHOD_LABELS[best]}, the worst "
                f"{plotting.METHOD_LABELS[worst]}. The spread on Min is "
                f"{float(spread.sel(problem='min')):.2f}, on Skew "
                f"{float(spread.sel(problem='skew')):.2f}.",
            ),
            claim(
                "On Skew the learned reward knows short responses only: true gain of on-policy "
                "methods minus the gain that it promises",
                excess.isel(step=-1) - excess.isel(step=0),
                asserted=False,
                note="Beyond the data the ridge draws the reward of long responses up to 0.",
            ),
            cls._judge_short_data(final),
        ]

    @classmethod
    def _judge_ends(cls, final: xr.DataArray, problem: str) -> list[Claim]:
        """Return the claims on the best and the worst method of a problem."""
        final = final.sel(problem=problem)
        means = final.mean("seed")
        worst = means.idxmin("loss").item()
        rival, ahead = _nearest_other(final, "online_dpo", "idxmax")
        lowest, next_worst = _nearest_other(final, "preference_likelihood", "idxmin")
        return [
            claim(
                f"On {problem.capitalize()} no method ends better than online DPO: its true reward "
                f"minus that of the best other, {rival}",
                -ahead,
                surely_above(-0.01, "less than half a token"),
                note="The best other is chosen on the seeds that judge it.",
            ),
            claim(
                f"and Pref-FT worst: true reward of the next worst, {lowest}, minus its own",
                next_worst,
                note=f"The worst is {plotting.METHOD_LABELS[worst]}, "
                f"{float(means.sel(loss=worst)):.2f}; Pref-FT ends at "
                f"{float(means.sel(loss='preference_likelihood')):.2f}.",
            ),
        ]

    @classmethod
    def _judge_short_data(cls, final: xr.DataArray) -> Claim:
        cost = final.sel(problem="min") - final.sel(problem="skew")
        by_method = {
            name: curves.over_seeds(cost.sel(loss=name)) for name in cls.OFFLINE + cls.ON_POLICY
        }
        most = max(by_method, key=lambda name: by_method[name].effect)
        listed = ", ".join(
            f"{plotting.METHOD_LABELS[name]} {interval.effect:+.3f} "
            f"[{interval.low:+.3f}, {interval.high:+.3f}]"
            for name, interval in by_method.items()
        )
        return claim(
            "Data of short responses only cost some method: true reward on Min minus that on Skew, "
            f"{plotting.METHOD_LABELS[most]}",
            by_method[most],
            asserted=False,
            note=f"By method: {listed}.",
        )


def _draw_lengths(axes: Axes, laws: xr.DataArray, step: int) -> None:
    """Draw every method's distribution of lengths after some steps, the reference's in grey."""
    for name in laws["loss"].values:
        law = laws.sel(loss=name, step=step).mean("seed")
        line, color = plotting.METHOD_LINES[name], plotting.METHOD_COLORS[name]
        axes.plot(law["length"], law, linestyle=line, color=color)
    reference = laws.isel(loss=0, step=0, seed=0)
    axes.fill_between(reference["length"], reference, color=plotting.TARGET_COLOR, linewidth=0)
    axes.set(yscale="log", ylim=(1e-3, 1.2))


def _nearest_other(
    gold: xr.DataArray, method: str, which: Literal["idxmax", "idxmin"]
) -> tuple[str, xr.DataArray]:
    """Return the label of the best or the worst other method, and its reward minus the method's."""
    others = gold.drop_sel(loss=method).mean([dim for dim in gold.dims if dim != "loss"])
    other = getattr(others, which)("loss").item()
    return plotting.METHOD_LABELS[other], gold.sel(loss=other) - gold.sel(loss=method)


class LengthModels(Study):
    """Train policies and reward models of two kinds each on Min and Skew.

    The policy is a table of hazards or a recurrent network; the reward model is a sum of bumps or a
    multilayer perceptron. Responses are half as long as in `LengthProblems`; all else is as there.
    """

    source = LengthProblems.source
    question = "Does the best method depend on the class of policy and reward model?"
    quick = {
        "lengths": Lengths(max_length=8, mode=3.0, cut=3, seeds=2, pairs=100, bumps=4, width=4),
        "steps": 20,
    }

    lengths: Lengths = Lengths(max_length=20, mode=6.0, cut=6, seeds=6)
    # Of Adam, for each of `POLICIES`: a network, whose weights serve every place, takes smaller
    # steps than a table.
    learning_rates: tuple[float, ...] = (0.03, 0.003)
    steps: int = 400
    batch: int = 200  # B
    passes: int = 4  # T of methods that reuse samples

    OFFLINE = ("preference_likelihood", "dpo")
    ON_POLICY = ("best_of_n", "ppo", "online_dpo")
    POLICY_LABELS = {"hazard_table": "table", "recurrent": "recurrent"}

    def run(self) -> xr.Dataset:
        """Return final gold rewards, and proxy rewards by the method ``trained_against`` them."""
        trained = [
            self._train(dataclasses.replace(self.lengths, policy=policy, learning_rate=rate))
            for policy, rate in zip(POLICIES, self.learning_rates, strict=True)
        ]
        return xr.concat(trained, xr.Variable("policy", list(POLICIES)))

    def _train(self, lengths: Lengths) -> xr.Dataset:
        train = functools.partial(train_lengths, lengths, steps=self.steps, record=(self.steps,))
        axes = {"problem": SHORTER, "reward_model": REWARD_MODELS}
        offline = train(self.OFFLINE, {"problem": SHORTER})["gold"]
        online = train(self.ON_POLICY, axes, batch=self.batch, reuse=self.passes)
        # Offline methods have no reward model: one run stands beside every one.
        everywhere = offline.expand_dims(reward_model=list(REWARD_MODELS))
        gold = xr.concat([everywhere, online["gold"]], "loss")
        proxy = online["proxy"].rename(loss="trained_against")
        return xr.Dataset({"gold": gold, "proxy": proxy}).isel(step=-1, drop=True)

    @classmethod
    def plot(cls, dataset: xr.Dataset) -> Figure:
        """Draw a panel for each problem: true reward of every method, by kind of models."""
        figure, panels = plotting.new_grid(1, 2, 15, 6, (0.065, 0.22, 0.99, 0.91), 0.05)
        methods = cls.OFFLINE + cls.ON_POLICY
        gold = dataset["gold"].stack(models=("policy", "reward_model"))
        labels = [f"{cls.POLICY_LABELS[p]}\n{model} reward" for p, model in gold["models"].values]
        for axes, problem in zip(panels[0], SHORTER, strict=True):
            curves.draw_bars(axes, gold.sel(problem=problem), "models", methods)
            axes.set_xticks(axes.get_xticks(), labels)
            axes.set_title(TITLES[problem])
        panels[0, 0].set_ylabel("true reward, maximum lengths")
        return curves.with_legend(figure, panels[0, 0], ncols=len(methods))

    @classmethod
    def judge(cls, dataset: xr.Dataset) -> list[Claim]:
        curves.require_no_nan(dataset)
        claims = []
        for policy, model in itertools.product(POLICIES, REWARD_MODELS):
            gold = dataset["gold"].sel(policy=policy, reward_model=model)
            what = f"{cls.POLICY_LABELS[policy]} policy, {model} reward"
            rival, ahead = _nearest_other(gold, "online_dpo", "idxmax")
            lowest, next_worst = _nearest_other(gold, "preference_likelihood", "idxmin")
            claims += [
                claim(
                    f"On average over Min and Skew Pref-FT ends worst, {what}: true reward of the "
                    f"next worst, {lowest}, minus its own",
                    next_worst,
                    asserted=False,
                ),
                claim(
                    "and no method ends better than online DPO: its reward minus that of the best "
                    f"other, {rival}",
                    -ahead,
                    surely_above(-0.025, "half a token"),
                    asserted=False,
                ),
            ]
        proxy = dataset["proxy"].rename(trained_against="loss")
        excess = (proxy - dataset["gold"].sel(loss=list(cls.ON_POLICY))).sel(problem="skew")
        return [
            *claims,
            claim(
                "On Skew a network promises more than bumps do: proxy minus true reward where "
                "on-policy methods end, difference",
                excess.sel(reward_model="network") - excess.sel(reward_model="bumps"),
                asserted=False,
            ),
        ]


class LengthBatchSize(Study):
    """Collect B responses at a time at fixed M: the larger B, the older are the samples."""

    source, question = ABLATIONS, "How often must samples be renewed, with a learned reward?"
    quick = {"lengths": SMALL, "batches": (40, 1000), "steps": 40}

    lengths: Lengths = Lengths()
    batches: tuple[int, ...] = (40, 200, 1000, 4000)  # B, in responses, multiples of M
    minibatch: int = 40  # M
    steps: int = 200  # each on new responses

    METHODS = ("best_of_n", "reinforce", "ppo", "online_dpo")

    def run(self) -> xr.Dataset:
        return train_lengths(
            self.lengths,
            self.METHODS,
            {"problem": PROBLEMS, "batch": list(self.batches)},
            steps=self.steps,
            record=(0, self.steps // 2, self.steps),
            minibatch=self.minibatch,
            most_batch=max(self.batches),
        ).drop_vars("length_probability")

    @classmethod
    def plot(cls, dataset: xr.Dataset) -> Figure:
        return _draw_over(dataset, "batch", "batch size B, responses")

    @classmethod
    def judge(cls, dataset: xr.Dataset) -> list[Claim]:
        curves.require_no_nan(dataset)
        half, last = (int(step) for step in dataset["step"].values[1:])
        lost = -curves.slope_per_decade(dataset["gold"], "batch")
        early, late = lost.sel(step=half), lost.sel(step=last)
        ends = {problem: curves.over_seeds(late.sel(problem=problem)) for problem in SHORTER}
        return [
            *(
                claim(
                    f"Smaller batches are better on {problem.capitalize()} at fixed M: true reward "
                    f"lost per tenfold B, after {half} steps",
                    early.sel(problem=problem),
                    note=f"After {last} steps {end.effect:.3f} [{end.low:.3f}, {end.high:.3f}].",
                )
                for problem, end in ends.items()
            ),
            claim(
                "more so than on Mode, where the optimum is the reference's usual length: loss per "
                f"tenfold B on Min minus that on Mode, after {half} steps",
                early.sel(problem="min") - early.sel(problem="mode"),
            ),
        ]


class LengthSampleReuse(Study):
    """Use each batch for T passes."""

    source, question = ABLATIONS, "How often may a sample be used, with a learned reward?"
    quick = {"lengths": SMALL, "passes": (1, 5, 40), "steps": 40}

    lengths: Lengths = Lengths()
    passes: tuple[int, ...] = (1, 5, 20, 100)  # T
    batch: int = 40  # B = M, in responses
    steps: int = 200

    METHODS = ("best_of_n", "reward_weighted", "ppo", "online_dpo")

    def run(self) -> xr.Dataset:
        return train_lengths(
            self.lengths,
            self.METHODS,
            {"problem": PROBLEMS, "passes": list(self.passes)},
            steps=self.steps,
            record=(0, self.steps // 2, self.steps),
            minibatch=self.batch,
        ).drop_vars("length_probability")

    @classmethod
    def plot(cls, dataset: xr.Dataset) -> Figure:
        return _draw_over(dataset, "passes", "passes T over each batch")

    @classmethod
    def judge(cls, dataset: xr.Dataset) -> list[Claim]:
        curves.require_no_nan(dataset)
        final = dataset["gold"].isel(step=-1).sel(problem="min")
        lost = final.isel(passes=0) - final
        moderate, largest = (int(dataset["passes"][i]) for i in (1, -1))
        hurts = lost.sel(passes=largest)
        return [
            claim(
                f"Moderate reuse saves samples: with T = {moderate}, true reward lost on Min",
                lost.sel(passes=moderate),
                surely_below(0.025, "a token"),
            ),
            claim(f"Large T hurts: true reward lost on Min with T = {largest}", hurts),
            claim(
                f"PPO tolerates more reuse than best-of-N: what best-of-N loses with T = {largest} "
                "minus what PPO does",
                hurts.sel(loss="best_of_n") - hurts.sel(loss="ppo"),
                asserted=False,
                note="PPO's clip holds it near old samples; best-of-N goes as far as they allow.",
            ),
        ]


def _draw_over(dataset: xr.Dataset, along: str, label: str) -> Figure:
    """Draw a panel for each problem: true reward over B or T, half-way (thin) and at the end."""
    edges = (0.066, 0.24, 0.99, 0.91)
    figure, panels = plotting.new_grid(1, len(PROBLEMS), 16, 5.8, edges, 0.2, sharey=False)
    for axes, problem in zip(panels[0], PROBLEMS, strict=True):
        gold = dataset["gold"].sel(problem=problem)
        curves.draw_half_and_end(axes, gold, along, dataset["loss"].values.tolist())
        axes.set(title=TITLES[problem], xlabel=label)
    panels[0, 0].set_ylabel("true reward")
    return curves.with_legend(figure, panels[0, 0], ncols=dataset.sizes["loss"])
