"""Measure what fresh samples, reuse and negative gradients do on T24's one-dimensional bandit.

Every study trains the published network on R1, whose peak is far from the reference's bulk, and on
R2, whose peak lies in it. Claims are differences of the final reward, with intervals over seeds.
"""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from bandits import plotting
from bandits.studies import curves
from bandits.studies.study import Claim, Study, claim, surely_below
from bandits.studies.t24.published import PEAKS, Bandit, make_learner, run_methods
from bandits.sweeps import choices, static

FAR_AND_NEAR = choices(PEAKS)


class DataDistribution(Study):
    """Compare on-policy samples with a fixed dataset of the reference or of a flatter reference."""

    source, question = "T24, section 5.1", "When do on-policy samples help?"
    quick = {"bandit": Bandit(seeds=3), "steps": 60}

    bandit: Bandit = Bandit()
    temperature: float = 4.0  # of the flatter reference, π_ref^(1/τ)/Z
    contexts: int = 10  # training prompts
    steps: int = 240
    passes: int = 15  # T on-policy

    METHODS = ("best_of_n", "reward_weighted", "ipo")
    OFFLINE, WIDE, ON_POLICY = "reference", "flat reference", "on-policy"

    def run(self) -> xr.Dataset:
        axes = {
            "reward": FAR_AND_NEAR,
            "temperature": [1.0, self.temperature],
            "passes": static([self.steps, self.passes]),
        }
        results = run_methods(
            self.bandit, self.METHODS, axes, contexts=self.contexts, steps=self.steps
        )
        sources = {
            self.OFFLINE: results.sel(passes=self.steps, temperature=1.0, drop=True),
            self.WIDE: results.sel(passes=self.steps, temperature=self.temperature, drop=True),
            self.ON_POLICY: results.sel(passes=self.passes, temperature=1.0, drop=True),
        }
        return xr.concat(sources.values(), xr.Variable("data", list(sources)))

    @classmethod
    def plot(cls, dataset: xr.Dataset) -> Figure:
        """Draw a panel for each reward: the final reward of every method on each source of data."""
        figure, panels = curves.new_reward_panels(bottom=0.17, height=6)
        for reward, axes in panels.items():
            results = dataset["expected_reward"].sel(reward=reward)
            curves.draw_bars(axes, results.isel(step=-1), "data", cls.METHODS)
            curves.draw_start(axes, results)
        return curves.with_legend(figure, panels["R1"], ncols=4)

    @classmethod
    def judge(cls, dataset: xr.Dataset) -> list[Claim]:
        gain = dataset["expected_reward"].isel(step=-1)
        gain = gain - gain.sel(data=cls.OFFLINE)
        on_policy, wide = gain.sel(data=cls.ON_POLICY), gain.sel(data=cls.WIDE)
        far, near = on_policy.sel(reward="R1"), on_policy.sel(reward="R2")
        return [
            claim(
                "On-policy samples raise the final reward on R1 by this much over offline samples "
                "of the reference",
                far,
            ),
            claim(
                "On-policy sampling helps more where the peak is far: its gain on R1 minus that on "
                "R2",
                far - near,
            ),
            claim(
                "Coverage is part of it: offline samples of a flatter reference raise the final "
                "reward on R1 by this much",
                wide.sel(reward="R1"),
            ),
        ]


class OnPolicyBatchSize(Study):
    """Collect B responses at a time and use each once, M in a step: small B is on-policy."""

    source, question = "T24, section 5.1", "How often must samples be renewed?"
    quick = {"bandit": Bandit(seeds=3), "batches": (50, 1000), "steps": 40}

    bandit: Bandit = Bandit()
    contexts: int = 10
    batches: tuple[int, ...] = (50, 200, 1000, 5000)  # B, in responses
    minibatch: int = 50  # M
    steps: int = 200  # each on new responses

    METHODS = ("best_of_n", "reward_weighted", "reinforce", "ppo")

    def run(self) -> xr.Dataset:
        return run_methods(
            self.bandit,
            self.METHODS,
            {"reward": FAR_AND_NEAR, "batch": list(self.batches), "passes": static([1])},
            contexts=self.contexts,
            steps=self.steps,
            record=(0, self.steps // 2, self.steps),
            minibatch=self.minibatch,
            most_batch=max(self.batches),
        ).squeeze("passes")

    @classmethod
    def plot(cls, dataset: xr.Dataset) -> Figure:
        """Draw a panel for each reward: results against batch size, half-way and at the end."""
        figure, panels = curves.new_reward_panels(bottom=0.22, height=6.2)
        for reward, axes in panels.items():
            results = dataset["expected_reward"].sel(reward=reward)
            curves.draw_half_and_end(axes, results, "batch", cls.METHODS)
            axes.set_xlabel("batch size B, responses")
        return curves.with_legend(figure, panels["R1"], ncols=4)

    @classmethod
    def judge(cls, dataset: xr.Dataset) -> list[Claim]:
        claims = []
        for step in dataset["step"].values[1:]:
            reward = dataset["expected_reward"].sel(step=step)
            lost = -curves.slope_per_decade(reward, "batch")
            claims += [
                claim(
                    "Smaller batches are better at fixed M: reward lost on R1 per tenfold B, after "
                    f"{step} steps",
                    lost.sel(reward="R1"),
                    note=_smallest_against_best(reward.sel(reward="R1")),
                ),
                claim(
                    "The batch matters mostly where the peak is far: the loss per tenfold B on R1 "
                    f"minus that on R2, after {step} steps",
                    lost.sel(reward="R1") - lost.sel(reward="R2"),
                ),
            ]
        return claims


def _smallest_against_best(reward: xr.DataArray) -> str:
    means = reward.mean(("loss", "seed"))
    first, best = means.isel(batch=0), means.isel(batch=int(means.argmax("batch")))
    if best["batch"] == first["batch"]:
        return "The smallest batch is the best."
    return (
        f"The smallest batch is not the best: B = {int(first['batch'])} gives {float(first):.3f}, "
        f"B = {int(best['batch'])} {float(best):.3f} (means over methods and seeds)."
    )


class SampleReuse(Study):
    """Use each collection for T passes, at equal gradient steps: a run draws 1/T of the samples."""

    source, question = "T24, section 5.1", "How often may a sample be used?"
    quick = {"bandit": Bandit(seeds=3), "passes": (1, 5, 60), "steps": 60}

    # More seeds than published: of five, the interval of what PPO tolerates touches 0.
    bandit: Bandit = Bandit(seeds=8)
    contexts: int = 10  # all of them in every batch
    passes: tuple[int, ...] = (1, 5, 20, 100)  # T
    steps: int = 240

    METHODS = ("best_of_n", "reward_weighted", "ppo")

    def run(self) -> xr.Dataset:
        dataset = run_methods(
            self.bandit,
            self.METHODS,
            {"reward": FAR_AND_NEAR, "passes": list(self.passes)},
            contexts=self.contexts,
            steps=self.steps,
            record=np.linspace(0, self.steps, 7).round().astype(int).tolist(),
        )
        responses = self.contexts * self.bandit.responses
        samples = responses * -(-dataset["step"] // dataset["passes"])
        return dataset.assign(samples=samples.assign_attrs(long_name="responses drawn", units="1"))

    @classmethod
    def plot(cls, dataset: xr.Dataset) -> Figure:
        """Draw reward after all steps against T, and on R1 also against the samples so far."""
        figure, panels = plotting.new_grid(2, 2, 13, 10, (0.07, 0.07, 0.985, 0.96), 0.06, 0.3)
        steps = int(dataset["step"][-1])
        for axes, reward in zip(panels[0], PEAKS, strict=True):
            for method in cls.METHODS:
                one = dataset["expected_reward"].sel(loss=method, reward=reward, step=steps)
                curves.draw_means(axes, one, "passes", method)
            curves.log_axis(axes, dataset["passes"].values)
            axes.set(xlabel="passes T over each batch", ylim=(0, 1.04))
            axes.set_title(f"{reward}, after {steps} steps")
        widths = np.linspace(1.2, 4.2, dataset.sizes["passes"])
        for axes, method in zip(panels[1], ("best_of_n", "ppo"), strict=True):
            for passes, width in zip(dataset["passes"].values, widths, strict=True):
                way = dataset.sel(loss=method, reward="R1", passes=passes).isel(step=slice(1, None))
                style = {"color": plotting.METHOD_COLORS[method], "linewidth": width, "marker": "o"}
                rewards = way["expected_reward"].mean("seed")
                axes.plot(way["samples"], rewards, label=f"T = {passes}", **style)
            axes.set(xscale="log", xlabel="responses drawn")
            axes.set_title(f"R1, {plotting.METHOD_LABELS[method]}")
            axes.legend(loc="lower right")
        for axes in panels[:, 0]:
            axes.set_ylabel("expected reward")
        panels[0, 0].legend(loc="lower left")
        return figure

    @classmethod
    def judge(cls, dataset: xr.Dataset) -> list[Claim]:
        final = dataset["expected_reward"].sel(reward="R1").isel(step=-1)
        lost = final.isel(passes=0) - final
        once, moderate, *_, largest = dataset["passes"].values
        tolerance = lost.sel(loss="best_of_n") - lost.sel(loss="ppo")
        between = ", ".join(
            f"T = {t}: {float(tolerance.sel(passes=t).mean()):+.2f}"
            for t in dataset["passes"].values[1:-1]
        )
        return [
            claim(
                f"Moderate reuse saves samples: T = {moderate} draws {moderate // once} times "
                "fewer and loses this much reward on R1",
                lost.sel(passes=moderate),
                surely_below(0.1),
            ),
            claim(f"Large T hurts: reward lost on R1 with T = {largest}", lost.sel(passes=largest)),
            claim(
                f"PPO tolerates more reuse than best-of-N: what best-of-N loses with T = {largest} "
                "minus what PPO does",
                tolerance.sel(passes=largest),
                note=f"In between: {between}." if between else "",
            ),
        ]


ALL_PAIRS = ", all pairs"


class NegativeGradient(Study):
    """Compare likelihood with contrastive methods on the same offline responses.

    The published pairs of IPO differ by at least 0.2 in reward; on R1 few prompts have one, and
    that choice alone tells good responses from bad. So Pref-FT and IPO are both run on those pairs
    and on all, to tell the negative gradient from the choice of pairs. Best-of-N has no pairs.
    """

    source, question = "T24, section 5.2", "Does pushing responses down help offline?"
    quick = {"bandit": Bandit(seeds=3), "contexts": (5,), "steps": 60}

    bandit: Bandit = Bandit()
    contexts: tuple[int, ...] = (5, 30)  # numbers of training prompts
    steps: int = 200  # full batch

    METHODS = ("best_of_n", "preference_likelihood", "dpo", "ipo")
    ON_ALL_PAIRS = ("preference_likelihood", "ipo")

    def run(self) -> xr.Dataset:
        learners = {name: make_learner(name) for name in self.METHODS}
        learners |= {name + ALL_PAIRS: make_learner(name, 0.0) for name in self.ON_ALL_PAIRS}
        axes = {"reward": FAR_AND_NEAR, "contexts": static(self.contexts)}
        return run_methods(self.bandit, learners, axes, steps=self.steps)

    @classmethod
    def plot(cls, dataset: xr.Dataset) -> Figure:
        """Draw a panel for each reward: final reward against the number of training prompts."""
        figure, panels = curves.new_reward_panels(bottom=0.22, height=6.2)
        final = dataset["expected_reward"].isel(step=-1)
        for reward, axes in panels.items():
            for i, name in enumerate(final["loss"].values):
                method, marker = name.removesuffix(ALL_PAIRS), "s" if ALL_PAIRS in name else "o"
                label = name.replace(method, plotting.METHOD_LABELS[method])
                one, shift = final.sel(loss=name, reward=reward), 1.06 ** (i - 2.5)  # side by side
                style = {"label": label, "marker": marker}
                curves.draw_points(axes, one, "contexts", method, shift, **style)
            curves.log_axis(axes, final["contexts"].values)
            axes.set_xlabel("training prompts")
        return curves.with_legend(figure, panels["R1"], ncols=6)

    @classmethod
    def judge(cls, dataset: xr.Dataset) -> list[Claim]:
        final = dataset["expected_reward"].isel(step=-1)
        contrastive = final.sel(loss=["dpo", "ipo"]).mean("loss")
        over_best = contrastive - final.sel(loss="best_of_n")
        filtered = contrastive - final.sel(loss="preference_likelihood")
        likelihood, ipo = (final.sel(loss=name + ALL_PAIRS) for name in cls.ON_ALL_PAIRS)
        unfiltered = ipo - likelihood
        far = over_best.sel(reward="R1")
        return [
            claim(
                "As published, DPO and IPO on pairs with a gap of 0.2 beat best-of-N offline on R1 "
                "by",
                far,
                note=_by_prompts(over_best),
            ),
            claim(
                "On all pairs the negative gradient helps where the peak is far: IPO minus Pref-FT "
                "on R1",
                unfiltered.sel(reward="R1"),
                note=_by_prompts(unfiltered),
            ),
            claim(
                "On pairs with a gap of 0.2 it helps too: DPO and IPO minus Pref-FT on R1",
                filtered.sel(reward="R1"),
                asserted=False,
                note=f"{_by_prompts(filtered)} Those winners are good responses already, so "
                "raising them alone goes far.",
            ),
            claim(
                "It gains little where the peak is near: DPO and IPO minus best-of-N on R2",
                over_best.sel(reward="R2"),
                surely_below(far, "that of R1"),
            ),
        ]


def _by_prompts(gain: xr.DataArray) -> str:
    means = gain.sel(reward="R1").mean("seed")
    parts = [f"{float(means.sel(contexts=n)):+.2f} with {n}" for n in means["contexts"].values]
    return f"By the number of prompts: {', '.join(parts)}."


class Complementarity(Study):
    """Compare best-of-N, without a negative gradient, with DPO and IPO, offline and on-policy."""

    source, question = "T24, section 5.3", "Do on-policy samples and negative gradients add up?"
    quick = {"bandit": Bandit(seeds=3), "steps": 60, "passes": (20, 5)}

    bandit: Bandit = Bandit()
    contexts: int = 10
    steps: int = 300
    passes: tuple[int, ...] = (100, 15)  # T on-policy, falling; offline it is all steps

    LIKELIHOOD, CONTRASTIVE = "best_of_n", ("dpo", "ipo")
    ALIKE = 0.1  # of final rewards

    def run(self) -> xr.Dataset:
        dataset = run_methods(
            self.bandit,
            (self.LIKELIHOOD, *self.CONTRASTIVE),
            {"reward": FAR_AND_NEAR, "passes": [self.steps, *self.passes]},
            contexts=self.contexts,
            steps=self.steps,
        )
        collections = [-(-self.steps // passes) for passes in dataset["passes"].values]
        return dataset.rename(passes="collections").assign_coords(collections=collections)

    @classmethod
    def plot(cls, dataset: xr.Dataset) -> Figure:
        """Draw a panel for each reward: final reward of every method, by number of collections."""
        figure, panels = curves.new_reward_panels(bottom=0.22, height=6)
        final = dataset["expected_reward"].isel(step=-1)
        for reward, axes in panels.items():
            methods = (cls.LIKELIHOOD, *cls.CONTRASTIVE)
            curves.draw_bars(axes, final.sel(reward=reward), "collections", methods)
            axes.set_xticks(axes.get_xticks(), map(_name, final["collections"].values))
            axes.set_xlabel("collections of samples")
        return curves.with_legend(figure, panels["R1"], ncols=4)

    @classmethod
    def judge(cls, dataset: xr.Dataset) -> list[Claim]:
        final = dataset["expected_reward"].isel(step=-1)
        contrastive = final.sel(loss=list(cls.CONTRASTIVE)).mean("loss").sel(reward="R1")
        likelihood = final.sel(loss=cls.LIKELIHOOD, reward="R1")
        claims = []
        for n in dataset["collections"].values[1:]:
            both, alone = contrastive.sel(collections=n), likelihood.sel(collections=n)
            singles = {
                "on-policy best-of-N": alone,
                "offline DPO and IPO": contrastive.sel(collections=1),
            }
            claims += [
                claim(
                    f"With {n} collections, online DPO and IPO are better on R1 than {name} by",
                    both - single,
                    # Where samples are renewed often, on-policy likelihood may be enough.
                    asserted=bool(n == dataset["collections"].values[1]),
                    note=f"On-policy best-of-N ends at {float(alone.mean()):.2f}, online DPO and "
                    f"IPO at {float(both.mean()):.2f}.",
                )
                for name, single in singles.items()
            ]
        near = final.sel(reward="R2").stack(way=("loss", "collections"))
        means = near.mean("seed")
        best, worst = int(means.argmax("way")), int(means.argmin("way"))
        names = [
            f"{plotting.METHOD_LABELS[loss]} with {_name(n)}"
            for loss, n in means["way"].values[[best, worst]]
        ]
        apart = near.isel(way=best, drop=True) - near.isel(way=worst, drop=True)
        return [
            *claims,
            claim(
                "All are alike on R2: final reward of the best method and number of collections "
                "minus that of the worst",
                apart,
                surely_below(cls.ALIKE),
                asserted=False,
                note=f"The best is {names[0]}, the worst {names[1]}.",
            ),
        ]


def _name(collections: int) -> str:
    return "1 (offline)" if collections == 1 else f"{collections}"
