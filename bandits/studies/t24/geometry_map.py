"""Map the final reward of every method over geometry (C1) and coverage (C2) in one sweep.

The policy is a table on the one-dimensional bandit. C1 is where the reward's peak lies relative to
the reference. C2 is how far up the line the first collection reaches: with 50%, no arm from 50 on
is in it. Offline methods never see another; on-policy ones sample the next from their own policy.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int
from matplotlib.figure import Figure

from bandits import plotting
from bandits.losses import METHODS, Loss
from bandits.policies import tabular_softmax
from bandits.problems.environments import CategoricalBandit, bump_reward, tanh_cauchy_reference
from bandits.problems.metrics import ATTRIBUTES
from bandits.problems.preferences import covered_mass, truncated
from bandits.studies.curves import require_not_diverged
from bandits.studies.study import Claim, Study, claim
from bandits.sweeps import choices, sweep
from bandits.training import Schedule, on_bandit, train

SAMPLED = [name for name, method in METHODS.items() if method.one_collection]
ON_POLICY = [name for name in SAMPLED if METHODS[name].on_policy]
OFFLINE = [name for name in SAMPLED if not METHODS[name].on_policy]


class GeometryMap(Study):
    """Train every method that learns from samples, for every peak and coverage."""

    source = "T24, sections 4 and 5: conditions C1 and C2"
    question = "Which method works for which geometry and coverage?"
    quick = {"peaks": (20, 50, 80), "coverages": (0.5, 1.0), "seeds": 2, "steps": 60}

    num_arms: int = 100  # K
    width: float = 10.0  # of the reward's bump
    # C1, the arm of the reward's peak; the reference's bulk is around arm 16.
    peaks: tuple[int, ...] = (20, 30, 40, 50, 60, 70, 80, 90)
    # C2, the share of the arms, from the first, that the first collection can hold.
    coverages: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)
    seeds: int = 5  # independent repeats
    responses: int = 10  # N, to a prompt
    batch: int = 50  # B = M, responses in a collection
    passes: int = 15  # T of on-policy methods
    steps: int = 180
    learning_rate: float = 0.03  # of Adam

    def run(self) -> xr.Dataset:
        policy = tabular_softmax()

        def run_one(
            loss: tuple[Loss, Int[Array, ""]],
            peak: Int[Array, ""],
            coverage: Float[Array, ""],
            seed: Int[Array, ""],
            reference_log_probs: Float[Array, " K"],
        ) -> dict[str, Array]:
            method, passes = loss
            bandit = self._bandit(peak, reference_log_probs)
            schedule = Schedule(self.steps, self.responses, self.batch, self.batch, passes)
            return train(
                jax.random.key(seed), policy, reference_log_probs, method,
                on_bandit(policy, bandit, schedule), schedule, optax.adam(self.learning_rate),
                lambda logits: {
                    "expected_reward": jnp.exp(policy.log_probs(logits)) @ bandit.reward
                },
                record=(self.steps,),
                behaviour=self._covered(reference_log_probs, coverage),
            )  # fmt: skip

        reference = tanh_cauchy_reference(self.num_arms)
        passes = dict.fromkeys(ON_POLICY, self.passes) | dict.fromkeys(OFFLINE, self.steps)
        dataset = sweep(
            run_one,
            {
                "loss": choices({n: (METHODS[n].bind(), passes[n]) for n in SAMPLED}),
                "peak": list(self.peaks),
                "coverage": list(self.coverages),
                "seed": np.arange(self.seeds),
            },
            fixed={"reference_log_probs": reference},
            dims=["step"],
            coords={"step": [self.steps]},
            attributes=ATTRIBUTES,
        )
        require_not_diverged(dataset)
        laws = jnp.stack([self._covered(reference, coverage) for coverage in self.coverages])
        distances = [int(self._bandit(peak, reference).peak_distance()) for peak in self.peaks]
        return dataset.squeeze("step").assign_coords(
            distance=("peak", distances),
            mass=("coverage", np.asarray(covered_mass(reference, laws))),
        )

    def _bandit(self, peak: ArrayLike, reference: Float[Array, " K"]) -> CategoricalBandit:
        return CategoricalBandit(bump_reward(self.num_arms, peak, self.width), reference)

    def _covered(self, reference: Float[Array, " K"], coverage: ArrayLike) -> Float[Array, " K"]:
        return truncated(reference, last=coverage * self.num_arms - 1)

    @classmethod
    def plot(cls, dataset: xr.Dataset) -> Figure:
        """Draw a map for each method: final reward over the peak's distance and the coverage."""
        names = OFFLINE + ON_POLICY
        figure, panels = plotting.new_panels(len(names), 16, 2.55, margins=(1.2, 0.95, 1.35, 0.5))
        peaks, masses = dataset["distance"].values, dataset["mass"].values
        for axes, name in zip(panels, names, strict=True):
            mean = dataset["expected_reward"].sel(loss=name).mean("seed")
            image = axes.imshow(
                mean.transpose("coverage", "peak"), origin="lower", aspect="auto", vmin=0, vmax=1,
                cmap="cividis", interpolation="nearest",
            )  # fmt: skip
            explained = name.startswith("online") or name in OFFLINE
            label = plotting.METHOD_LABELS[name] + ("" if explained else " (on-policy)")
            axes.set_title(label, fontsize=13)
            shown = range(0, len(peaks), 2)
            axes.set_xticks(list(shown), [str(peaks[i]) for i in shown])
            axes.set_yticks(range(len(masses)), [f"{m:.1%}" for m in masses])
        figure.supxlabel(
            "C1: arms from the reference's median to the reward's peak", fontsize=14, y=0.015
        )
        figure.supylabel("C2: mass of the reference on the arms covered", fontsize=14, x=0.008)
        scale = figure.add_axes((0.93, 0.1, 0.014, 0.84))
        figure.colorbar(image, cax=scale, label="final expected reward")
        return figure

    @classmethod
    def judge(cls, dataset: xr.Dataset) -> list[Claim]:
        reward = dataset["expected_reward"]
        near, far = (int(dataset["peak"][i]) for i in (0, -1))
        little, full = (float(dataset["coverage"][i]) for i in (0, -1))
        online, offline = (
            reward.sel(loss=names).mean("loss")
            for names in (["online_dpo", "online_ipo"], ["dpo", "ipo"])
        )
        gain = online - offline
        lost = reward.sel(coverage=full) - reward.sel(coverage=little)
        means = reward.mean(("peak", "coverage", "seed"))
        best = str(means.idxmax("loss").item())
        return [
            claim(
                "The farther the peak, the more on-policy samples are worth: gain of online over "
                f"offline DPO and IPO at peak {far} minus that at peak {near}",
                gain.sel(peak=far) - gain.sel(peak=near),
            ),
            claim(
                f"Poor coverage costs offline methods more: reward lost between {full:.0%} and "
                f"{little:.0%} of the arms covered, offline minus on-policy",
                lost.sel(loss=OFFLINE).mean("loss") - lost.sel(loss=ON_POLICY).mean("loss"),
                note=f"Best over the whole grid: {plotting.METHOD_LABELS[best]}, "
                f"{float(means.max()):.2f} on average.",
            ),
        ]
