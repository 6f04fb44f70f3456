"""Solve two-stage RLHF and DPO exactly: one policy in one class, two where the classes part.

Preferences over a few responses are random; policies are log-linear on random features φ. The
reward model is linear on features ψ at a chosen distance from φ: ψ = cos(a) Q₁ + sin(a) Q₂, mixed
by a random matrix, where Q₁ spans the columns of φ and Q₂ as many directions at right angles to
them, so that sin(a) is the distance of the classes. All is solved in float64, to its precision.
"""

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Float, Int
from matplotlib.figure import Figure

from bandits import plotting
from bandits.studies.curves import require_no_nan
from bandits.studies.intervals import mean_interval
from bandits.studies.study import Claim, Criterion, Study, claim
from bandits.sweeps import sweep
from theory import equivalence

SAME = 1e-8
"""Total variation up to which two policies count as the same."""


class RlhfDpoEquivalence(Study):
    """Solve random problems by both methods, as the classes of policy and reward part."""

    source = "S25; arXiv:2503.01067, section 3"
    question = "When are two-stage RLHF and DPO the same?"
    quick = {"problems": 20, "distances": (0.0, 0.1, 0.35, 1.0)}

    responses: int = 9  # K
    features: int = 4  # F, at most (K − 1)/2, so that as many directions lie at right angles
    labels: int = 20  # of every pair, about; each order has at least one: no reward is infinite
    reward_scale: float = 1.0  # standard deviation of the true rewards, in nats of log-odds
    beta: float = 0.5  # of both methods
    # Of the classes, from 0 to 1.
    distances: tuple[float, ...] = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.85, 1.0)
    problems: int = 200  # independent repeats

    def run(self) -> xr.Dataset:
        axes = {"distance": list(self.distances), "problem": np.arange(self.problems)}
        units = {"distance": {"long_name": "distance of the classes", "units": "1"}}
        with jax.enable_x64(True):
            return require_no_nan(sweep(self._solve, axes, dims=["response"], attributes=units))

    def _solve(self, distance: Float[Array, ""], problem: Int[Array, ""]) -> dict[str, Array]:
        """Draw a problem; return the log-probabilities of both policies."""
        keys = jax.random.split(jax.random.key(problem), 5)
        size, columns = self.responses, self.features
        reward = self.reward_scale * jax.random.normal(keys[0], (size,))
        odds = jax.nn.sigmoid(reward[:, None] - reward[None, :])
        wins = jax.random.binomial(keys[1], self.labels, jnp.triu(odds, 1))
        upper = jnp.triu(jnp.ones_like(odds), 1)
        counts = upper * (1 + wins) + (upper * (1 + self.labels - wins)).T
        reference = jax.nn.log_softmax(jax.random.normal(keys[2], (size,)))
        # Orthonormal, and orthogonal to the constants, which no preference sees.
        directions = jax.random.normal(keys[3], (size, 2 * columns))
        basis = jnp.linalg.qr(directions - directions.mean(axis=0))[0]
        policy_basis, other = jnp.split(basis, 2, axis=1)
        reward_basis = jnp.sqrt(1.0 - distance**2) * policy_basis + distance * other
        *mix, constants = jax.random.normal(keys[4], (columns + 1, columns))
        features = reward_basis @ jnp.stack(mix) + constants
        dpo = equivalence.fit_dpo(policy_basis, counts, reference, self.beta)
        rlhf = equivalence.fit_rlhf(policy_basis, features, counts, reference, self.beta)
        return {"dpo": dpo.log_probs, "rlhf": rlhf.log_probs}

    @classmethod
    def plot(cls, dataset: xr.Dataset) -> Figure:
        """Draw probabilities by one method against the other, and how the gap grows."""
        figure = plotting.new_figure(14.5, 5.8)
        scatter, growth = figure.subplots(1, 2)
        figure.subplots_adjust(0.06, 0.13, 0.985, 0.91, wspace=0.2)
        distances = dataset["distance"].values
        drawn = dataset.isel(problem=slice(0, 25))
        middle = distances[np.abs(distances - 0.35).argmin()]
        for distance, color, label in (
            (middle, plotting.PUSHED, f"classes at distance {middle:g}"),
            (0.0, plotting.RAISED, "one class"),
        ):
            one = drawn.sel(distance=distance)
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
        color, label = plotting.METHOD_COLORS["rlhf"], "middle 80% of problems"
        growth.plot(distances, median, "o-", color=color, label="median")
        growth.fill_between(distances, low, high, color=color, alpha=0.2, linewidth=0, label=label)
        growth.set(
            title="The farther apart the classes, the farther the policies",
            xlabel="distance of the policy class and the reward class",
            ylabel="total variation of RLHF from DPO",
            ylim=(0, None),
        )
        growth.legend(loc="upper left")
        return figure

    @classmethod
    def judge(cls, dataset: xr.Dataset) -> list[Claim]:
        gaps = _gaps(dataset)
        same, apart = gaps.sel(distance=0.0), gaps.isel(distance=slice(1, None))
        # The slope of each problem's own line through the points, by least squares.
        x = apart["distance"] - apart["distance"].mean()
        slopes = (apart * x).sum("distance") / (x**2).sum()
        nearest, least = apart.isel(distance=0), float(apart.isel(distance=0).min())
        return [
            claim(
                "In one class RLHF and DPO, solved exactly, are one policy: largest total "
                f"variation over {same.size} random problems",
                same.max(skipna=False),
                Criterion(lambda interval: interval.effect < SAME, "below 1e-8"),
            ),
            claim(
                "They differ as soon as the classes do: total variation per unit of distance, at "
                f"distance {float(nearest['distance']):g}",
                mean_interval((nearest / nearest["distance"]).values),
                Criterion(lambda interval: interval.low > 0 and least > SAME, ""),
                note=f"The least of {nearest.size} problems: {least:.2g}.",
            ),
            claim(
                "The gap grows with the distance: slope of total variation over distance, by "
                "problem",
                mean_interval(slopes.values),
                note="At the largest distance it is "
                f"{float(apart.isel(distance=-1).mean()):.2f} on average.",
            ),
        ]


def _gaps(dataset: xr.Dataset) -> xr.DataArray:
    """Return the total variation distance of the two policies."""
    dpo, rlhf = (dataset[name].copy(data=np.exp(dataset[name])) for name in ("dpo", "rlhf"))
    return 0.5 * abs(dpo - rlhf).sum("response", skipna=False)
