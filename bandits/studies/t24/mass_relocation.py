"""Theorem 6.5: which KL moves mass faster in one step, on random instances against the thresholds.

Every instance draws K, two distributions on K categories and a step size, sets the pair of
categories equal as its case demands, and takes one gradient step of each KL by automatic
differentiation. Which of the two moved more mass is then held against the closed form.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Bool, Float
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure

from bandits import plotting
from bandits.descent import descend
from bandits.losses import DIVERGENCES
from bandits.studies.base import Claim, Experiment
from bandits.studies.intervals import proportion_interval
from bandits.sweeps import sweep
from theory import distributions, mass_relocation

EQUAL_POLICY, EQUAL_TARGET = SETTINGS_OF_PAIR = ("equal policy", "equal target")
"""p(x1) = p(x2) is case 1; q(x1) = q(x2) are cases 2 and 3. x1 has more of the other."""


@dataclass(frozen=True)
class Settings:
    """What is drawn.

    Attributes:
      instances: random instances for each of the two settings of the pair.
      least_arms, most_arms: the range that K is drawn from.
      least_learning_rate, most_learning_rate: the range of the step size, log-uniform.
    """

    instances: int = 100_000
    least_arms: int = 5
    most_arms: int = 100
    least_learning_rate: float = 0.01
    most_learning_rate: float = 100.0


def run(settings: Settings) -> xr.Dataset:
    """One step of each KL on every instance, in float64: thresholds are sharp."""

    def instance(pair: Array, instance: Array) -> dict[str, Array]:
        # A sequence of seeds, so that no instance is drawn twice.
        key = jax.random.key(instance * len(SETTINGS_OF_PAIR) + pair)
        p, q, learning_rate = _draw(settings, pair, key)
        # Categories 0 and 1 are set as the case demands, 2 and 3 are any pair.
        forward, reverse = (
            _log_change(name, p, q, learning_rate) for name in ("forward_kl", "reverse_kl")
        )
        gap = reverse - forward
        kl = distributions.kl_divergence(jnp.log(p), jnp.log(q))
        return {
            "reverse_moved_more": gap[0] > gap[1],
            "closed_form": _closed_form(pair, p, q),
            "any_pair_moved_more": gap[2] > gap[3],
            "any_pair_closed_form": mass_relocation.reverse_moves_more(p, q, 2, 3),
            "kl": kl.astype(jnp.float32),
            "p_mean": mass_relocation.identric_mean(p[0], p[1]).astype(jnp.float32),
            "p": p[:2].astype(jnp.float32),
            "q": q[:2].astype(jnp.float32),
        }

    axes = {"pair": np.arange(len(SETTINGS_OF_PAIR)), "instance": np.arange(settings.instances)}
    with jax.enable_x64(True):
        dataset = sweep(instance, axes, dims=["category"], coords={"category": ["x1", "x2"]})
    return dataset.assign_coords(pair=list(SETTINGS_OF_PAIR))


def plot(dataset: xr.Dataset) -> Figure:
    """One region map a case, the exact threshold on top of the instances.

    The axes are chosen so that the threshold is one curve for all instances: both means are
    homogeneous, so L(q1, q2) < p ⟺ L(q1/p, q2/p) < 1, and likewise for I.
    """
    figure = plotting.new_figure(15.5, 6.4, layout="constrained")
    first, second, third = figure.subplots(1, 3)
    equal_policy, equal_target = dataset.sel(pair=EQUAL_POLICY), dataset.sel(pair=EQUAL_TARGET)

    _plot_means(first, equal_policy, equal_policy["q"] / equal_policy["p"].sel(category="x1"))
    _plot_threshold(first, mass_relocation.logarithmic_mean)
    first.set(
        title="1  Reverse KL moves more mass\np(x₁) = p(x₂) = p,  q(x₁) > q(x₂)",
        xlabel="q(x₂) / p",
        ylabel="q(x₁) / p",
    )
    scale = equal_target["q"].sel(category="x1") * np.exp(equal_target["kl"])
    _plot_means(second, equal_target, equal_target["p"] / scale)
    _plot_threshold(second, mass_relocation.identric_mean)
    second.set(
        title="2  … but raises only a subset\nq(x₁) = q(x₂) = q,  p(x₁) > p(x₂)",
        xlabel="p(x₂) / (q · exp KL)",
        ylabel="p(x₁) / (q · exp KL)",
    )
    _plot_unlikely(third, equal_target)
    for axes, instances in (first, equal_policy), (second, equal_target), (third, equal_target):
        agree, total = _agreement(instances)
        axes.set_xlabel(f"{axes.get_xlabel()}\n{agree:,} of {total:,} instances agree")
    bar = figure.colorbar(first.collections[0], ax=[first, second, third], shrink=0.7, pad=0.01)
    bar.set_ticks([0, 1], labels=["forward KL\nmoves more", "reverse KL\nmoves more"])
    return figure


def judge(dataset: xr.Dataset) -> list[Claim]:
    """The three cases and the general condition, each with its count of agreeing instances."""
    equal_policy, equal_target = dataset.sel(pair=EQUAL_POLICY), dataset.sel(pair=EQUAL_TARGET)
    counts = (
        (
            "Case 1: with p(x1) = p(x2) = p and q(x1) > q(x2), reverse KL moves more mass from x2 "
            "to x1 than forward KL iff p > L(q(x1), q(x2))",
            _agreement(equal_policy),
        ),
        (
            "Case 2: with q(x1) = q(x2) = q and p(x1) > p(x2), reverse KL lowers x1 against x2 "
            "less than forward KL, or raises it, iff q > I(p(x1), p(x2)) exp(-KL(p||q))",
            _agreement(equal_target),
        ),
        (
            "Case 3: with q(x1) = q(x2) = q and p(x1) > p(x2), reverse KL lowers x1 against x2 "
            "more than forward KL iff q < I(p(x1), p(x2)) exp(-KL(p||q))",
            _agreement(equal_target),
        ),
        (
            "Any pair of categories: reverse KL moves more mass from x2 to x1 than forward KL iff "
            "equation (*) of theory/mass_relocation.py is positive",
            _agreement(dataset, "any_pair_"),
        ),
    )
    claims = [
        EXPERIMENT.claim(
            f"{statement}: {agree:,} of {total:,} instances agree",
            proportion_interval(agree, total),
            agree == total,
        )
        for statement, (agree, total) in counts
    ]
    wins = equal_policy["reverse_moved_more"].values
    share = proportion_interval(int(wins.sum()), wins.size)
    claims.append(
        EXPERIMENT.claim(
            "The threshold matters: with p(x1) = p(x2) and q(x1) > q(x2) alone, reverse KL moves "
            "more mass in only a part of the instances",
            share,
            share.high < 1,
        )
    )
    return claims


def _draw(
    settings: Settings, pair: Array, key: Array
) -> tuple[Float[Array, " K"], Float[Array, " K"], Float[Array, ""]]:
    """P and q from the flat Dirichlet on K arms, with x1 = 0 and x2 = 1 set as the case demands."""
    # One draw for all, since every call of the generator costs compile time, and in float32, whose
    # 24 bits are enough for a draw; shifted by half a bit, so that no weight is exactly zero.
    uniform = jax.random.uniform(key, (2, settings.most_arms + 1), jnp.float32) + 2.0**-24
    spread = settings.most_arms + 1 - settings.least_arms
    num_arms = settings.least_arms + jnp.floor(uniform[0, 0] * spread)
    ratio = settings.most_learning_rate / settings.least_learning_rate
    learning_rate = settings.least_learning_rate * ratio ** uniform[1, 0]

    inside = jnp.arange(settings.most_arms) < num_arms
    weights = jnp.where(inside, -jnp.log(uniform[:, 1:]), 0.0).astype(float)
    p, q = weights / weights.sum(axis=-1, keepdims=True)
    equal_policy = pair == SETTINGS_OF_PAIR.index(EQUAL_POLICY)
    p = jnp.where(equal_policy, _equal_pair(p), _descending_pair(p))
    q = jnp.where(equal_policy, _descending_pair(q), _equal_pair(q))
    return p, q, learning_rate


def _equal_pair(probs: Float[Array, " K"]) -> Float[Array, " K"]:
    return probs.at[:2].set(0.5 * (probs[0] + probs[1]))


def _descending_pair(probs: Float[Array, " K"]) -> Float[Array, " K"]:
    pair = probs[:2]
    return probs.at[:2].set(jnp.stack([pair.max(), pair.min()]))


def _log_change(
    method: str, p: Float[Array, " K"], q: Float[Array, " K"], learning_rate: Float[Array, ""]
) -> Float[Array, " K"]:
    """Log p' − log p after one gradient step."""
    log_p = jnp.log(p)
    (stepped,) = descend(DIVERGENCES[method], log_p, jnp.log(q), learning_rate, steps=(1,))
    return stepped - log_p


def _closed_form(pair: Array, p: Float[Array, " K"], q: Float[Array, " K"]) -> Bool[Array, ""]:
    """Whether the closed form of the pair's setting says that reverse KL moves more."""
    return jnp.where(
        pair == SETTINGS_OF_PAIR.index(EQUAL_POLICY),
        p[0] > mass_relocation.equal_policy_threshold(q, 0, 1),
        q[0] > mass_relocation.equal_target_threshold(p, q, 0, 1),
    )


def _agreement(instances: xr.Dataset, prefix: str = "") -> tuple[int, int]:
    moved = "any_pair_moved_more" if prefix else "reverse_moved_more"
    agree = instances[moved].values == instances[f"{prefix}closed_form"].values
    return int(agree.sum()), agree.size


def _plot_means(axes: Axes, instances: xr.Dataset, ratios: xr.DataArray) -> None:
    x, y = (ratios.sel(category=name).values for name in ("x2", "x1"))
    _plot_instances(axes, instances, np.log10(x), np.log10(y), (-2, 1.3), (-1.3, 1.3))
    _label_decades(axes.xaxis, range(-2, 2))
    _label_decades(axes.yaxis, range(-1, 2))


def _plot_threshold(axes: Axes, mean: Callable[[float, np.ndarray], Array]) -> None:
    """The curve mean(y, x) = 1, and the diagonal that no instance lies below."""
    ratio = np.geomspace(1e-6, 1, 400)
    larger = 1.0 / np.asarray(mean(1.0, ratio))
    axes.plot(np.log10(ratio * larger), np.log10(larger), color=plotting.INK, label="threshold")
    axes.plot([-2, 1.3], [-2, 1.3], color=plotting.INK, linewidth=1, linestyle=":")
    axes.set(xlim=(-2, 1.3), ylim=(-1.3, 1.3))
    axes.legend(loc="lower right")


def _plot_unlikely(axes: Axes, instances: xr.Dataset) -> None:
    kl = instances["kl"].values
    height = np.log10(instances["q"].sel(category="x1").values / instances["p_mean"].values)
    right = float(np.quantile(kl, 0.999))
    _plot_instances(axes, instances, kl, height, (0, right), (-1.6, 1.3))
    ends = np.array([0.0, right])
    axes.plot(ends, -ends / np.log(10), color=plotting.INK, label="threshold")
    axes.set(
        title="3  … and cuts unlikely ones harder\nq(x₁) = q(x₂) = q,  p(x₁) > p(x₂)",
        xlabel="KL(p‖q) in nats",
        ylabel="q / I(p(x₁), p(x₂))",
        xlim=(0, right),
        ylim=(-1.6, 1.3),
    )
    _label_decades(axes.yaxis, range(-1, 2))
    axes.legend(loc="lower left")


def _plot_instances(
    axes: Axes,
    instances: xr.Dataset,
    x: np.ndarray,
    y: np.ndarray,
    x_range: tuple[float, float],
    y_range: tuple[float, float],
) -> None:
    axes.hexbin(
        x,
        y,
        C=instances["reverse_moved_more"].values,
        gridsize=(44, 26),
        extent=(*x_range, *y_range),
        cmap=plotting.FORWARD_TO_REVERSE,
        vmin=0,
        vmax=1,
        linewidths=0.2,
    )


def _label_decades(axis: Axis, decades: Iterable[int]) -> None:
    axis.set_ticks(list(decades), labels=[f"{10.0**d:g}" for d in decades])


EXPERIMENT = Experiment(
    name="mass_relocation",
    source="T24, Theorem 6.5",
    question="Which KL moves more mass in one step, and exactly when?",
    full=Settings(),
    quick=Settings(instances=5_000),
    run=run,
    plot=plot,
    judge=judge,
)
