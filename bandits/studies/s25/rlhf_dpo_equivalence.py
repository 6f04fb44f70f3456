"""Two-stage RLHF and DPO, solved exactly: one policy in one class, two where the classes part.

Random preferences over a few responses; log-linear policies on random features φ. The reward model
is linear on features ψ that lie at a chosen distance from φ: ψ = cos(a) Q₁ + sin(a) Q₂, mixed by a
random matrix, where Q₁ spans the columns of φ and Q₂ as many directions at right angles to them, so
that sin(a) is the distance of the classes. Everything is solved in float64 to its precision.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Float, Int
from matplotlib.figure import Figure

from bandits import plotting
from bandits.studies.base import Claim, Experiment
from bandits.studies.curves import require_no_nan
from bandits.studies.intervals import exact, mean_interval
from bandits.sweeps import sweep
from theory import equivalence

SAME = 1e-8
"""Policies are called the same up to this probability."""


@dataclass(frozen=True)
class Settings:
    """The random problems.

    Attributes:
      responses: K.
      features: F, at most (K − 1)/2, so that as many directions lie at right angles.
      labels: of every pair of responses, about; each order has at least one, so that no reward is
        infinite.
      reward_scale: standard deviation of the true rewards, in nats of log-odds.
      beta: of both methods.
      distances: of the classes, from 0 to 1.
      problems: independent repeats.
    """

    responses: int = 9
    features: int = 4
    labels: int = 20
    reward_scale: float = 1.0
    beta: float = 0.5
    distances: tuple[float, ...] = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.85, 1.0)
    problems: int = 200


def run(settings: Settings) -> xr.Dataset:
    """Both policies in every problem, at every distance of the classes."""

    def solve(distance: Float[Array, ""], problem: Int[Array, ""]) -> dict[str, Array]:
        keys = jax.random.split(jax.random.key(problem), 5)
        shape = (settings.responses, settings.features)
        reward = settings.reward_scale * jax.random.normal(keys[0], shape[:1])
        odds = jax.nn.sigmoid(reward[:, None] - reward[None, :])
        wins = jax.random.binomial(keys[1], settings.labels, jnp.triu(odds, 1))
        upper = jnp.triu(jnp.ones_like(odds), 1)
        counts = upper * (1 + wins) + (upper * (1 + settings.labels - wins)).T
        reference = jax.nn.log_softmax(jax.random.normal(keys[2], shape[:1]))
        # Orthonormal, and orthogonal to the constants, which no preference sees.
        columns = jax.random.normal(keys[3], (settings.responses, 2 * settings.features))
        basis = jnp.linalg.qr(columns - columns.mean(axis=0))[0]
        policy_basis, other = jnp.split(basis, 2, axis=1)
        reward_basis = jnp.sqrt(1.0 - distance**2) * policy_basis + distance * other
        mix, constants = jnp.split(
            jax.random.normal(keys[4], (settings.features + 1, settings.features)),
            [settings.features],
        )
        dpo = equivalence.fit_dpo(policy_basis, counts, reference, settings.beta)
        rlhf = equivalence.fit_rlhf(
            policy_basis, reward_basis @ mix + constants, counts, reference, settings.beta
        )
        return {"dpo": dpo.log_probs, "rlhf": rlhf.log_probs}

    with jax.enable_x64(True):
        dataset = sweep(
            solve,
            {
                "distance": np.array(settings.distances, np.float64),
                "problem": np.arange(settings.problems),
            },
            dims=["response"],
            attributes={"distance": {"long_name": "distance of the classes", "units": "1"}},
        )
    require_no_nan(dataset)
    return dataset


def _gaps(dataset: xr.Dataset) -> xr.DataArray:
    """Total variation distance of the two policies."""
    difference = np.exp(dataset["dpo"].values) - np.exp(dataset["rlhf"].values)
    return (
        dataset["dpo"].isel(response=0, drop=True).copy(data=0.5 * np.abs(difference).sum(axis=-1))
    )


def plot(dataset: xr.Dataset) -> Figure:
    """Probabilities by either method, and the gap over the distance of the classes."""
    figure = plotting.new_figure(14.5, 5.8)
    scatter, growth = figure.subplots(1, 2)
    figure.subplots_adjust(0.06, 0.13, 0.985, 0.91, wspace=0.2)
    distances = dataset["distance"].values
    drawn = dataset.isel(problem=slice(0, 25))
    middle = int(np.abs(distances - 0.35).argmin())
    for index, color, label in (
        (middle, plotting.PUSHED, f"classes at distance {distances[middle]:g}"),
        (0, plotting.RAISED, "one class"),
    ):
        one = drawn.isel(distance=index)
        x, y = (np.exp(one[name].values).ravel() for name in ("dpo", "rlhf"))
        scatter.plot(x, y, "o", color=color, label=label, markersize=5, alpha=0.8)
    scatter.set(
        title="Each response of 25 problems",
        xlabel="its probability by DPO",
        ylabel="its probability by RLHF",
        xlim=(-0.02, 1.0),
        ylim=(-0.02, 1.0),
    )
    scatter.legend(loc="upper left")
    low, median, high = np.quantile(_gaps(dataset).values, [0.1, 0.5, 0.9], axis=1)
    growth.plot(distances, median, "o-", color=plotting.METHOD_COLORS["rlhf"], label="median")
    growth.fill_between(
        distances, low, high, color=plotting.METHOD_COLORS["rlhf"], alpha=0.2, linewidth=0,
        label="middle 80% of problems",
    )  # fmt: skip
    growth.set(
        title="The farther apart the classes, the farther the policies",
        xlabel="distance of the policy class and the reward class",
        ylabel="total variation of RLHF from DPO",
        ylim=(0, None),
    )
    growth.legend(loc="upper left")
    return figure


def judge(dataset: xr.Dataset) -> list[Claim]:
    """The gap in one class, and its growth with the distance of the classes."""
    gaps = _gaps(dataset)
    same = gaps.sel(distance=0.0)
    apart = gaps.isel(distance=slice(1, None))
    # The slope of each problem's own line through the points, by least squares.
    x = apart["distance"] - apart["distance"].mean()
    slopes = mean_interval(((apart * x).sum("distance") / (x**2).sum()).values)
    nearest = apart.isel(distance=0)
    per_distance = mean_interval((nearest / nearest["distance"]).values)
    return [
        EXPERIMENT.claim(
            "In one class RLHF and DPO, solved exactly, are one policy: largest total variation "
            f"over {same.size} random problems (holds if below 1e-8)",
            exact(same.max(skipna=False)),
            float(same.max(skipna=False)) < SAME,
        ),
        EXPERIMENT.claim(
            "They differ as soon as the classes do: total variation per unit of distance, at "
            f"distance {float(nearest['distance']):g}",
            per_distance,
            per_distance.low > 0 and float(nearest.min()) > SAME,
            note=f"The least of {nearest.size} problems: {float(nearest.min()):.2g}.",
        ),
        EXPERIMENT.claim(
            "The gap grows with the distance: slope of total variation over distance, by problem",
            slopes,
            slopes.low > 0,
            note=f"At the largest distance it is {float(apart.isel(distance=-1).mean()):.2f} on "
            "average.",
        ),
    ]


EXPERIMENT = Experiment(
    name="rlhf_dpo_equivalence",
    source="S25; arXiv:2503.01067, section 3",
    question="When are two-stage RLHF and DPO the same?",
    full=Settings(),
    quick=Settings(problems=20, distances=(0.0, 0.1, 0.35, 1.0)),
    run=run,
    plot=plot,
    judge=judge,
)
