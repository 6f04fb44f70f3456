"""Check on random instances which KL moves more mass in one step, as T24's Theorem 6.5 says.

Every instance samples K, two distributions on K categories and a step size. It sets a pair of
categories equal as its case demands, and takes one gradient step of each KL by automatic
differentiation. Which of the two moved more mass is then compared with the closed form.
"""

from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Bool, Float, Int
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure

from bandits import plotting
from bandits.losses import DIVERGENCES
from bandits.studies.intervals import share_interval
from bandits.studies.study import ALWAYS, Claim, Criterion, Study, claim
from bandits.sweeps import choices, sweep
from bandits.training.descent import descend
from theory import distributions, mass_relocation

EQUAL_POLICY, EQUAL_TARGET = CASES = ("equal policy", "equal target")
"""p(x1) = p(x2) is case 1; q(x1) = q(x2) are cases 2 and 3. x1 has more of the other."""

X_RANGE, Y_RANGE = (-2.0, 1.3), (-1.3, 1.3)
"""Of the maps of cases 1 and 2, in decades."""


class MassRelocation(Study):
    """Take one step of each KL on every instance, in float64, since thresholds are sharp."""

    source, question = "T24, Theorem 6.5", "Which KL moves more mass in one step, and exactly when?"
    quick = {"instances": 5_000}

    instances: int = 100_000  # drawn at random, for each of the two settings of the pair
    least_arms: int = 5  # K is drawn between these
    most_arms: int = 100
    least_learning_rate: float = 0.01  # the step size is drawn between these, log-uniform
    most_learning_rate: float = 100.0

    def run(self) -> xr.Dataset:
        axes = {"pair": choices(*CASES), "instance": np.arange(self.instances)}
        with jax.enable_x64(True):
            return sweep(self._compare, axes, dims=["category"], coords={"category": ["x1", "x2"]})

    def _compare(self, pair: Int[Array, ""], instance: Int[Array, ""]) -> dict[str, Array]:
        """Return which KL moved more mass, and what the theorem says of it."""
        # A sequence of seeds, so that no instance is drawn twice.
        key = jax.random.key(instance * len(CASES) + pair)
        is_equal_policy = pair == CASES.index(EQUAL_POLICY)
        p, q, learning_rate = self._draw(is_equal_policy, key)
        forward, reverse = (
            _log_change(name, p, q, learning_rate) for name in ("forward_kl", "reverse_kl")
        )
        # Categories 0 and 1 are set as the case demands, 2 and 3 are any pair.
        gap = reverse - forward
        kl = distributions.kl_divergence(jnp.log(p), jnp.log(q))
        return {
            "reverse_moved_more": gap[0] > gap[1],
            "closed_form": jnp.where(
                is_equal_policy,
                p[0] > mass_relocation.equal_policy_threshold(q, 0, 1),
                q[0] > mass_relocation.equal_target_threshold(p, q, 0, 1),
            ),
            "any_pair_moved_more": gap[2] > gap[3],
            "any_pair_closed_form": mass_relocation.reverse_moves_more(p, q, 2, 3),
            "kl": kl.astype(jnp.float32),
            "p_mean": mass_relocation.identric_mean(p[0], p[1]).astype(jnp.float32),
            "p": p[:2].astype(jnp.float32),
            "q": q[:2].astype(jnp.float32),
        }

    def _draw(
        self, is_equal_policy: Bool[Array, ""], key: Array
    ) -> tuple[Float[Array, " K"], Float[Array, " K"], Float[Array, ""]]:
        """Return p and q, flat Dirichlet on K arms but x1 = 0 and x2 = 1 set, and the step size."""
        # One draw for all, since every call of the generator costs compile time, and in float32,
        # whose 24 bits are enough for a draw; shifted by half a bit, so that no weight is zero.
        uniform = jax.random.uniform(key, (2, self.most_arms + 1), jnp.float32) + 2.0**-24
        spread = self.most_arms + 1 - self.least_arms
        num_arms = self.least_arms + jnp.floor(uniform[0, 0] * spread)
        ratio = self.most_learning_rate / self.least_learning_rate
        learning_rate = self.least_learning_rate * ratio ** uniform[1, 0]

        inside = jnp.arange(self.most_arms) < num_arms
        weights = jnp.where(inside, -jnp.log(uniform[:, 1:]), 0.0).astype(float)
        p, q = weights / weights.sum(axis=-1, keepdims=True)
        p = jnp.where(is_equal_policy, _equal_pair(p), _descending_pair(p))
        q = jnp.where(is_equal_policy, _descending_pair(q), _equal_pair(q))
        return p, q, learning_rate

    @classmethod
    def plot(cls, dataset: xr.Dataset) -> Figure:
        """Draw a map for each case, with the exact threshold on top of the instances.

        The axes are chosen so that the threshold is one curve for all instances: both means are
        homogeneous, so L(q1, q2) < p ⟺ L(q1/p, q2/p) < 1, and likewise for I.
        """
        figure = plotting.new_figure(15.5, 6.4, layout="constrained")
        panels = figure.subplots(1, 3)
        equal_policy, equal_target = dataset.sel(pair=EQUAL_POLICY), dataset.sel(pair=EQUAL_TARGET)
        ratios = equal_policy["q"] / equal_policy["p"].sel(category="x1")
        _draw_means(panels[0], equal_policy, ratios, mass_relocation.logarithmic_mean)
        scale = equal_target["q"].sel(category="x1") * np.exp(equal_target["kl"])
        ratios = equal_target["p"] / scale
        _draw_means(panels[1], equal_target, ratios, mass_relocation.identric_mean)
        _draw_unlikely(panels[2], equal_target)
        for axes, case, title, x, y in (
            (panels[0], equal_policy,
             "1  Reverse KL moves more mass\np(x₁) = p(x₂) = p,  q(x₁) > q(x₂)",
             "q(x₂) / p", "q(x₁) / p"),
            (panels[1], equal_target,
             "2  … but raises only a subset\nq(x₁) = q(x₂) = q,  p(x₁) > p(x₂)",
             "p(x₂) / (q · exp KL)", "p(x₁) / (q · exp KL)"),
            (panels[2], equal_target,
             "3  … and cuts unlikely ones harder\nq(x₁) = q(x₂) = q,  p(x₁) > p(x₂)",
             "KL(p‖q) in nats", "q / I(p(x₁), p(x₂))"),
        ):  # fmt: skip
            axes.set(title=title, xlabel=f"{x}\n{_say_agreeing(_agrees(case))}", ylabel=y)
        bar = figure.colorbar(panels[0].collections[0], ax=panels, shrink=0.7, pad=0.01)
        bar.set_ticks([0, 1], labels=["forward KL\nmoves more", "reverse KL\nmoves more"])
        return figure

    @classmethod
    def judge(cls, dataset: xr.Dataset) -> list[Claim]:
        equal_policy, equal_target = dataset.sel(pair=EQUAL_POLICY), dataset.sel(pair=EQUAL_TARGET)
        agreeing = {
            "Case 1: with p(x1) = p(x2) = p and q(x1) > q(x2), reverse KL moves more mass from x2 "
            "to x1 than forward KL iff p > L(q(x1), q(x2))": _agrees(equal_policy),
            "Case 2: with q(x1) = q(x2) = q and p(x1) > p(x2), reverse KL lowers x1 against x2 "
            "less than forward KL, or raises it, iff q > I(p(x1), p(x2)) exp(-KL(p||q))": _agrees(
                equal_target
            ),
            "Case 3: with q(x1) = q(x2) = q and p(x1) > p(x2), reverse KL lowers x1 against x2 "
            "more than forward KL iff q < I(p(x1), p(x2)) exp(-KL(p||q))": _agrees(equal_target),
            "Any pair of categories: reverse KL moves more mass from x2 to x1 than forward KL iff "
            "equation (*) of theory/mass_relocation.py is positive": (
                dataset["any_pair_moved_more"] == dataset["any_pair_closed_form"]
            ),
        }
        return [
            *(
                claim(f"{statement}: {_say_agreeing(agrees)}", share_interval(agrees), ALWAYS)
                for statement, agrees in agreeing.items()
            ),
            claim(
                "The threshold matters: with p(x1) = p(x2) and q(x1) > q(x2) alone, reverse KL "
                "moves more mass in only a part of the instances",
                share_interval(equal_policy["reverse_moved_more"]),
                Criterion(lambda share: share.high < 1, ""),
            ),
        ]


def _equal_pair(probs: Float[Array, " K"]) -> Float[Array, " K"]:
    return probs.at[:2].set(0.5 * (probs[0] + probs[1]))


def _descending_pair(probs: Float[Array, " K"]) -> Float[Array, " K"]:
    pair = probs[:2]
    return probs.at[:2].set(jnp.stack([pair.max(), pair.min()]))


def _log_change(
    method: str, p: Float[Array, " K"], q: Float[Array, " K"], learning_rate: Float[Array, ""]
) -> Float[Array, " K"]:
    """Return log p' − log p after one gradient step."""
    log_p = jnp.log(p)
    (stepped,) = descend(DIVERGENCES[method], log_p, jnp.log(q), learning_rate, steps=(1,))
    return stepped - log_p


def _agrees(instances: xr.Dataset) -> xr.DataArray:
    return instances["reverse_moved_more"] == instances["closed_form"]


def _say_agreeing(agrees: xr.DataArray) -> str:
    return f"{int(agrees.sum()):,} of {agrees.size:,} instances agree"


def _draw_means(
    axes: Axes,
    instances: xr.Dataset,
    ratios: xr.DataArray,
    mean: Callable[[float, np.ndarray], Array],
) -> None:
    """Draw instances by the ratios of x2 and x1, the curve mean(y, x) = 1, and the diagonal."""
    x, y = (np.log10(ratios.sel(category=name).values) for name in ("x2", "x1"))
    _draw_instances(axes, instances, x, y, X_RANGE, Y_RANGE)
    ratio = np.geomspace(1e-6, 1, 400)
    larger = 1.0 / np.asarray(mean(1.0, ratio))
    axes.plot(np.log10(ratio * larger), np.log10(larger), color=plotting.INK, label="threshold")
    axes.plot(X_RANGE, X_RANGE, color=plotting.INK, linewidth=1, linestyle=":")  # none lies below
    _label_decades(axes.xaxis, range(-2, 2))
    axes.legend(loc="lower right")


def _draw_unlikely(axes: Axes, instances: xr.Dataset) -> None:
    """Draw instances of case 3 by KL and by q in units of the mean, and the line q = I exp(−KL)."""
    kl = instances["kl"].values
    height = np.log10(instances["q"].sel(category="x1").values / instances["p_mean"].values)
    right = float(np.quantile(kl, 0.999))
    _draw_instances(axes, instances, kl, height, (0, right), (-1.6, 1.3))
    ends = np.array([0.0, right])
    axes.plot(ends, -ends / np.log(10), color=plotting.INK, label="threshold")
    axes.legend(loc="lower left")


def _draw_instances(
    axes: Axes,
    instances: xr.Dataset,
    x: np.ndarray,
    y: np.ndarray,
    x_range: tuple[float, float],
    y_range: tuple[float, float],
) -> None:
    """Draw in which share of the instances of a cell reverse KL moved more."""
    axes.hexbin(
        x, y, C=instances["reverse_moved_more"].values, gridsize=(44, 26),
        extent=(*x_range, *y_range), cmap=plotting.FORWARD_TO_REVERSE, vmin=0, vmax=1,
        linewidths=0.2,
    )  # fmt: skip
    axes.set(xlim=x_range, ylim=y_range)
    _label_decades(axes.yaxis, range(-1, 2))


def _label_decades(axis: Axis, decades: Iterable[int]) -> None:
    axis.set_ticks(list(decades), labels=[f"{10.0**d:g}" for d in decades])
