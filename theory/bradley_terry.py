"""Bradley–Terry rewards by maximum likelihood, exactly: a convex problem.

P(a ≻ b) = σ(r_a − r_b). With n_ab the number of times a was preferred to b and r = φ w (r = w for
a table), a fit minimises

    L(w) = −Σ_ab n_ab log σ(r_a − r_b) + (ridge/2) ‖w‖².

The ridge is a Gaussian prior on w of mean 0 and standard deviation s = 1/√ridge: in nats of
log-odds for a table, and in those for a unit of the feature else. It is not relative to the number
of labels, so it fades as labels are added, and what it does to one pair does not depend on how many
others there are. A ridge ρ relative to the mean loss of a label is ridge = ρ Σ n.

Without a ridge the minimum is at infinity where the data are separable: some set of arms never lost
to the others. The fits refuse such data, unless they are traced. Source: Bradley and Terry 1952.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import scipy
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int
from scipy import sparse, special
from scipy.sparse import csgraph

from theory import checks, convex, laplacian
from theory.checks import InvalidInput
from theory.comparison_graph import undetermined
from theory.pairs import Pairs, require_pairs
from theory.types import Features, FiniteNonNegative, Preferences, checked

RIDGE = 0.01
"""Default ridge: a prior of standard deviation 10."""

MOST_STEPS = 500
"""Most Newton steps on a list of pairs: 10 are usual, 60 occur for counts from 1e-3 to 1e9."""

HIGHEST_RISE = 30.0
"""Most that one Newton step may raise the loss of a single label, in nats."""

SEPARABLE = "the preferences are separable, so the maximum-likelihood reward is infinite; "


def bradley_terry_loss(
    rewards: Float[Array, " K"], counts: Float[Array, "K K"]
) -> Float[Array, ""]:
    """Return −Σ n_ab log σ(r_a − r_b) / Σ n: the mean cross-entropy of the labels in nats."""
    chex.assert_shape(counts, (rewards.shape[0],) * 2)
    margins = rewards[:, None] - rewards[None, :]
    return -jnp.sum(counts * jax.nn.log_sigmoid(margins)) / jnp.sum(counts)


@checked
def fit_tabular(
    counts: Float[ArrayLike, "K K"] | Pairs,
    ridge: FiniteNonNegative = RIDGE,
    *,
    num_arms: int | None = None,
) -> Float[Array, " K"]:
    """Return one reward for each arm, by maximum likelihood; their mean is 0.

    Rewards are in nats of log-odds. The mean of every group of arms that the pairs connect is 0 as
    well, and arms without data get the mean. SciPy fits in float64, in time that grows with the
    compared pairs, not with K². Where the counts or the ridge are traced, JAX fits a table.

    >>> print(np.asarray(fit_tabular([[0, 3], [1, 0]], ridge=0.0)).round(3))  # ± log(3)/2
    [ 0.549 -0.549]

    Args:
      counts: Table ``[K, K]``, [a, b] how often a was preferred to b, or a list of pairs.
      ridge: Coefficient of ‖r‖²/2.
      num_arms: K, for a list of pairs; for a table it is not needed.

    Raises:
      InvalidInput: What no preferences can be, or separable data without a ridge.
    """
    if not isinstance(counts, Pairs):
        checks.require_preferences("counts", counts)
        num_arms = np.shape(counts)[0]
    elif num_arms is None:
        raise InvalidInput("num_arms is missing; a list of pairs needs it")
    else:
        require_pairs("counts", counts, num_arms)
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((counts, ridge))):
        table = counts.to_table(num_arms) if isinstance(counts, Pairs) else counts
        rewards = _newton(None, jnp.asarray(table, float), jnp.asarray(ridge, float))
        return rewards - rewards.mean()
    pairs = counts if isinstance(counts, Pairs) else Pairs.from_table(counts)
    if not np.any(ridge) and any(f.kind == "separable" for f in undetermined(pairs, num_arms)):
        raise InvalidInput(SEPARABLE + "ridge is 0; choose one > 0")
    return jnp.asarray(_fit_pairs(pairs, num_arms, float(np.asarray(ridge))), float)


@checked
def fit_linear(
    features: Features, counts: Preferences, ridge: FiniteNonNegative = RIDGE
) -> Float[Array, " F"]:
    """Return the weights w of the rewards r = φ w, to the precision of the numbers.

    JAX takes Newton steps. Where the data leave w open, the result is the one of least norm; for
    traced data without a finite optimum, it is where the steps end.

    >>> print(np.asarray(fit_linear([[1.0], [0.0]], [[0, 3], [1, 0]], ridge=0.0)).round(3))  # log 3
    [1.099]

    Args:
      features: φ, a row for each arm.
      counts: [a, b] how often a was preferred to b.
      ridge: Coefficient of ‖w‖²/2.

    Raises:
      InvalidInput: What the types refuse, or separable data without a ridge.
    """
    features, counts = jnp.asarray(features, float), jnp.asarray(counts, float)
    require_finite_optimum(features, counts, ridge)
    return _newton(features, counts, jnp.asarray(ridge, features.dtype))


def require_finite_optimum(
    features: Float[ArrayLike, "K F"],
    counts: Float[ArrayLike, "K K"],
    ridge: ArrayLike = 0.0,
    remedy: str = "ridge is 0; choose one > 0",
) -> None:
    """Refuse separable data without a ridge: some w ranks every pair right, and one strictly."""
    rows, table, strength = (checks.concrete(x) for x in (features, counts, ridge))
    if rows is None or table is None or strength is None or strength.max() > 0:
        return
    winners, losers = np.nonzero(table)
    differences = rows.astype(np.float64)[winners] - rows[losers]
    # So that the tolerance below does not depend on the features' units.
    differences = differences / max(np.abs(differences).max(), np.finfo(np.float64).tiny)
    # max Σ (φ_w − φ_l) w over the box, with every term >= 0: positive if and only if separable.
    result = scipy.optimize.linprog(  # SciPy imports it here, when it is needed
        -differences.sum(axis=0), A_ub=-differences, b_ub=np.zeros(len(differences)), bounds=(-1, 1)
    )
    if -result.fun > 1e-9:
        raise InvalidInput(SEPARABLE + remedy)


@jax.jit
def _newton(
    features: Float[Array, "K F"] | None, counts: Float[Array, "K K"], ridge: Float[Array, ""]
) -> Float[Array, " F"]:
    """Minimise L/Σn, which has the same minimum, over w; without features w is the rewards."""
    total = counts.sum()
    pairs, ridge = (counts + counts.T) / total, ridge / total
    size = len(counts) if features is None else features.shape[1]

    def to_rewards(weights: Float[Array, " F"]) -> Float[Array, " K"]:
        return weights if features is None else features @ weights

    def loss(weights: Float[Array, " F"]) -> Float[Array, ""]:
        return bradley_terry_loss(to_rewards(weights), counts) + ridge / 2 * weights @ weights

    def hessian(weights: Float[Array, " F"]) -> Float[Array, "F F"]:
        rewards = to_rewards(weights)
        odds = jax.nn.sigmoid(rewards[:, None] - rewards[None, :])
        curvature = pairs * odds * (1 - odds)
        laplacian = jnp.diag(curvature.sum(axis=1)) - curvature
        if features is not None:
            laplacian = features.T @ laplacian @ features
        return laplacian + ridge * jnp.eye(size, dtype=laplacian.dtype)

    return convex.minimize(loss, jnp.zeros(size, counts.dtype), curvature=hessian)


class _Edges(NamedTuple):
    """The E pairs of arms that were compared, each once; the first won as often or more."""

    first: Int[np.ndarray, " E"]
    second: Int[np.ndarray, " E"]
    wins: Float[np.ndarray, " E"]
    losses: Float[np.ndarray, " E"]


def _merge(pairs: Pairs, num_arms: int) -> _Edges:
    winners, losers = np.asarray(pairs.winners), np.asarray(pairs.losers)
    ordered = winners < losers
    # Converting adds up what is listed twice: wins in the real part, losses in the imaginary one.
    weights = np.where(ordered, 1, 1j) * np.asarray(pairs.weights, np.float64)
    ends = np.where(ordered, (winners, losers), (losers, winners))
    merged = sparse.coo_array((weights, tuple(ends)), (num_arms, num_arms)).tocsr().tocoo()
    wins, losses = merged.data.real, merged.data.imag
    first, second = np.where(wins >= losses, merged.coords, merged.coords[::-1])
    return _Edges(first, second, np.maximum(wins, losses), np.minimum(wins, losses))


def _fit_pairs(pairs: Pairs, num_arms: int, ridge: float) -> Float[np.ndarray, " K"]:
    """Minimise L over the rewards in float64, by damped Newton steps along the compared pairs."""
    first, second, wins, losses = _merge(pairs, num_arms)
    labels = wins + losses
    graph = sparse.coo_array((labels, (first, second)), (num_arms, num_arms))
    _, group = csgraph.connected_components(graph, directed=False)
    sizes = np.bincount(group)

    def centre(values: Float[np.ndarray, " K"]) -> Float[np.ndarray, " K"]:
        return values - (np.bincount(group, values) / sizes)[group]

    rewards, smallest, untried = np.zeros(num_arms), np.inf, list(laplacian.PRECONDITIONERS)
    for _ in range(MOST_STEPS):
        margins = rewards[first] - rewards[second]
        won, lost = special.expit(margins), special.expit(-margins)
        pull = laplacian.gather(first, second, losses * won - wins * lost, num_arms)
        slope = centre(pull + ridge * rewards)
        step = -centre(laplacian.solve(first, second, labels * won * lost, ridge, slope, untried))
        decrement, changes, size = -slope @ step, step[first] - step[second], 1.0
        while size > 1e-12:
            # Label by label, as the loss itself does not resolve light pairs beside heavy ones.
            of_wins = _loss_rises(margins, lost, size * changes)
            of_losses = np.where(losses > 0, of_wins + size * changes, 0.0)
            of_ridge = ridge * size * (step @ (rewards + size / 2 * step))
            lower = wins @ of_wins + losses @ of_losses + of_ridge <= -size * decrement / 4
            # Rounding on heavy pairs must not throw a light one to where it has no curvature.
            if lower and max(of_wins.max(), of_losses.max()) < HIGHEST_RISE:
                break
            size /= 2
        rewards = rewards + size * step
        # The decrement is the squared distance to the minimum before the step, in the metric of
        # the Hessian, and a step squares it; or else it is of the size of rounding.
        if decrement <= 1e-24 * labels.sum() or 1e-12 * labels.sum() > decrement > smallest / 10:
            break
        smallest = min(smallest, decrement)
    return centre(rewards)


def _loss_rises(
    margins: Float[np.ndarray, " E"],
    lost: Float[np.ndarray, " E"],
    changes: Float[np.ndarray, " E"],
) -> Float[np.ndarray, " E"]:
    """Return log σ(m) − log σ(m + d) to the last bit, ``lost`` being σ(−m)."""
    # Where d is small the difference would cancel; elsewhere exp(−d) could overflow.
    small = np.abs(changes) < 1
    rises = np.log1p(lost * np.expm1(-changes, where=small, out=np.zeros_like(changes)))
    far = margins[~small]
    rises[~small] = special.log_expit(far) - special.log_expit(far + changes[~small])
    return rises
