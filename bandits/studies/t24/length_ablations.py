"""T24's ablations on the length problems, with a learned reward: fresh samples, and reuse.

Claims are differences of the true reward, in maximum lengths, with intervals over seeds.
"""

import xarray as xr
from matplotlib.figure import Figure

from bandits.studies.base import Claim
from bandits.studies.curves import over_seeds, require_no_nan, slope_per_decade
from bandits.studies.study import Study, claim, surely_below
from bandits.studies.t24.lengths import PROBLEMS, Lengths, draw_over, train_lengths

SOURCE = "T24, section 5.1: synthetic length problems"
SMALL = Lengths(seeds=3, pairs=200)


class LengthBatchSize(Study):
    """The larger B at fixed M, the older samples."""

    source, question = SOURCE, "How often must samples be renewed, with a learned reward?"
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
            {"problem": list(PROBLEMS), "batch": list(self.batches)},
            steps=self.steps,
            record=(0, self.steps // 2, self.steps),
            minibatch=self.minibatch,
            most_batch=max(self.batches),
        ).drop_vars("length_probability")

    @classmethod
    def plot(cls, dataset: xr.Dataset) -> Figure:
        return draw_over(dataset, "batch", "batch size B, responses")

    @classmethod
    def judge(cls, dataset: xr.Dataset) -> list[Claim]:
        require_no_nan(dataset)
        half, last = (int(step) for step in dataset["step"].values[1:])
        lost = -slope_per_decade(dataset["gold"], "batch")
        early, late = lost.sel(step=half), lost.sel(step=last)
        ends = {problem: over_seeds(late.sel(problem=problem)) for problem in ("min", "skew")}
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
    """T passes over each batch before the next."""

    source, question = SOURCE, "How often may a sample be used, with a learned reward?"
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
            {"problem": list(PROBLEMS), "passes": list(self.passes)},
            steps=self.steps,
            record=(0, self.steps // 2, self.steps),
            minibatch=self.batch,
        ).drop_vars("length_probability")

    @classmethod
    def plot(cls, dataset: xr.Dataset) -> Figure:
        return draw_over(dataset, "passes", "passes T over each batch")

    @classmethod
    def judge(cls, dataset: xr.Dataset) -> list[Claim]:
        require_no_nan(dataset)
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
