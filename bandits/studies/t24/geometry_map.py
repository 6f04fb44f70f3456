"""The final reward of every method over geometry (C1) and coverage (C2): one vmapped sweep.

A table on the one-dimensional bandit. C1 is where the reward's peak lies relative to the reference;
C2 is how far up the line the first collection reaches: with 50%, no arm from 50 on is in it.
Offline methods never see another; on-policy ones draw the next from their own policy.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int
from matplotlib.figure import Figure

from bandits import plotting
from bandits.environments import CategoricalBandit, bump_reward, tanh_cauchy_reference
from bandits.losses import METHODS, switch
from bandits.metrics import ATTRIBUTES
from bandits.policies import tabular_softmax
from bandits.preferences import covered_mass, truncated
from bandits.studies.base import Claim, Experiment
from bandits.studies.curves import over_seeds, require_not_diverged
from bandits.sweeps import sweep
from bandits.training import Schedule, on_bandit, train

NAMES = tuple(name for name, method in METHODS.items() if method.one_collection)
ON_POLICY = tuple(name for name in NAMES if METHODS[name].on_policy)
OFFLINE = tuple(name for name in NAMES if not METHODS[name].on_policy)


@dataclass(frozen=True)
class Settings:
    """The grid and the training.

    Attributes:
      num_arms: K.
      width: of the reward's bump.
      peaks: C1, the arm of the reward's peak; the reference's bulk is around arm 16.
      coverages: C2, the share of the arms, from the first, that the first collection can hold.
      seeds: independent repeats.
      responses: N, to a prompt.
      batch: B = M, responses in a collection.
      passes: T of on-policy methods.
      steps: gradient steps.
      learning_rate: of Adam.
    """

    num_arms: int = 100
    width: float = 10.0
    peaks: tuple[int, ...] = (20, 30, 40, 50, 60, 70, 80, 90)
    coverages: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)
    seeds: int = 5
    responses: int = 10
    batch: int = 50
    passes: int = 15
    steps: int = 180
    learning_rate: float = 0.03


def run(settings: Settings) -> xr.Dataset:
    """Every method, peak and coverage."""
    policy = tabular_softmax()
    losses = [METHODS[name].bind() for name in NAMES]

    def run_one(
        loss: Int[Array, ""],
        peak: Float[Array, ""],
        coverage: Float[Array, ""],
        seed: Int[Array, ""],
        reference_log_probs: Float[Array, " K"],
        passes: Int[Array, " n"],
    ) -> dict[str, Array]:
        bandit = _bandit(settings, peak, reference_log_probs)
        schedule = Schedule(
            steps=settings.steps,
            group=settings.responses,
            minibatch=settings.batch,
            batch=settings.batch,
            passes=passes[loss],
        )
        return train(
            jax.random.key(seed),
            policy,
            reference_log_probs,
            switch(loss, losses),
            on_bandit(policy, bandit, schedule),
            schedule,
            optax.adam(settings.learning_rate),
            lambda logits: {"expected_reward": jnp.exp(policy.log_probs(logits)) @ bandit.reward},
            record=(settings.steps,),
            behaviour=truncated(reference_log_probs, last=coverage * settings.num_arms - 1),
        )

    reference = tanh_cauchy_reference(settings.num_arms)
    passes = [settings.passes if name in ON_POLICY else settings.steps for name in NAMES]
    dataset = sweep(
        run_one,
        {
            "loss": np.arange(len(NAMES)),
            "peak": np.array(settings.peaks, np.float32),
            "coverage": np.array(settings.coverages, np.float32),
            "seed": np.arange(settings.seeds),
        },
        fixed={"reference_log_probs": reference, "passes": np.array(passes)},
        dims=["step"],
        coords={"step": [settings.steps]},
        attributes=ATTRIBUTES,
    ).assign_coords(loss=list(NAMES), peak=list(settings.peaks), coverage=list(settings.coverages))
    require_not_diverged(dataset)
    laws = [truncated(reference, last=c * settings.num_arms - 1) for c in settings.coverages]
    mass = np.asarray(covered_mass(reference, jnp.stack(laws)))
    distances = [int(_bandit(settings, peak, reference).peak_distance()) for peak in settings.peaks]
    return dataset.squeeze("step").assign_coords(
        distance=("peak", distances), mass=("coverage", mass)
    )


def _bandit(
    settings: Settings, peak: ArrayLike, reference: Float[Array, " K"]
) -> CategoricalBandit:
    return CategoricalBandit(bump_reward(settings.num_arms, peak, settings.width), reference)


def plot(dataset: xr.Dataset) -> Figure:
    """A map a method: final reward over the peak's distance and the coverage, offline first."""
    names = [*OFFLINE, *ON_POLICY]
    figure, panels = plotting.new_panels(len(names), 16, 2.55, margins=(1.2, 0.95, 1.35, 0.5))
    peaks, masses = dataset["distance"].values, dataset["mass"].values
    image = None
    for axes, name in zip(panels, names, strict=True):
        mean = dataset["expected_reward"].sel(loss=name).mean("seed").transpose("coverage", "peak")
        image = axes.imshow(
            mean, origin="lower", aspect="auto", vmin=0, vmax=1, cmap="cividis",
            interpolation="nearest",
        )  # fmt: skip
        axes.set_title(plotting.METHOD_LABELS[name] + _suffix(name), fontsize=13)
        shown = range(0, len(peaks), 2)
        axes.set_xticks(list(shown), [str(peaks[i]) for i in shown])
        axes.set_yticks(range(len(masses)), [f"{m:.1%}" for m in masses])
    figure.supxlabel(
        "C1: arms from the reference's median to the reward's peak", fontsize=14, y=0.015
    )
    figure.supylabel("C2: mass of the reference on the arms covered", fontsize=14, x=0.008)
    assert image is not None
    scale = figure.add_axes((0.93, 0.1, 0.014, 0.84))
    figure.colorbar(image, cax=scale, label="final expected reward")
    return figure


def _suffix(name: str) -> str:
    explained = name.startswith("online") or name not in ON_POLICY
    return "" if explained else " (on-policy)"


def judge(dataset: xr.Dataset) -> list[Claim]:
    """On-policy against offline over the whole grid, and where each loses; by seed."""
    reward = dataset["expected_reward"]
    near, far = int(dataset["peak"][0]), int(dataset["peak"][-1])
    little, full = float(dataset["coverage"][0]), float(dataset["coverage"][-1])
    contrastive = reward.sel(loss=["dpo", "ipo"])
    online = reward.sel(loss=["online_dpo", "online_ipo"])
    gain = online.mean("loss") - contrastive.mean("loss")
    geometry = over_seeds(gain.sel(peak=far) - gain.sel(peak=near))
    offline_loss = reward.sel(loss=list(OFFLINE), coverage=full) - reward.sel(
        loss=list(OFFLINE), coverage=little
    )
    on_policy_loss = reward.sel(loss=list(ON_POLICY), coverage=full) - reward.sel(
        loss=list(ON_POLICY), coverage=little
    )
    coverage = over_seeds(offline_loss.mean("loss") - on_policy_loss.mean("loss"))
    means = reward.mean(("peak", "coverage", "seed"))
    best = str(means["loss"].values[int(means.argmax("loss"))])
    return [
        EXPERIMENT.claim(
            "The farther the peak, the more on-policy samples are worth: gain of online over "
            f"offline DPO and IPO at peak {far} minus that at peak {near}",
            geometry,
            geometry.low > 0,
        ),
        EXPERIMENT.claim(
            f"Poor coverage costs offline methods more: reward lost between {full:.0%} and "
            f"{little:.0%} of the arms covered, offline minus on-policy",
            coverage,
            coverage.low > 0,
            note=f"Best over the whole grid: {plotting.METHOD_LABELS[best]}, "
            f"{float(means.max()):.2f} on average.",
        ),
    ]


EXPERIMENT = Experiment(
    name="geometry_map",
    source="T24, sections 4 and 5: conditions C1 and C2",
    question="Which method works for which geometry and coverage?",
    full=Settings(),
    quick=Settings(peaks=(20, 50, 80), coverages=(0.5, 1.0), seeds=2, steps=60),
    run=run,
    plot=plot,
    judge=judge,
)
