"""Follow the paths of all methods over the policies on three responses.

A labeller of the Bradley–Terry model prefers by the true reward, so that every method that learns
the KL-regularised optimum has the same end, π* ∝ π_ref exp(r/β), and its own way there. The data
of offline methods come from the reference.
"""

from typing import Any

import jax
import jax.numpy as jnp
import mpltern  # noqa: F401  registers the ternary projection
import numpy as np
import xarray as xr
from jaxtyping import Array, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bandits import plotting
from bandits.animation import Frames
from bandits.losses import METHODS
from bandits.policies import tabular_softmax
from bandits.problems.preferences import preference_probabilities
from bandits.problems.reward_models import fit_tabular
from bandits.studies import expected
from bandits.studies.curves import require_no_nan, require_not_diverged
from bandits.studies.study import Claim, Study, above, below, claim
from bandits.sweeps import choices, sweep
from bandits.training import own_pairs, train
from theory import gibbs

TO_OPTIMUM = (
    "forward_kl", "reverse_kl", "jeffreys", "jensen_shannon", "dpo", "online_dpo", "spin",
    "reinforce", "ppo", "rlhf",
)  # fmt: skip
"""Methods whose end is the KL-regularised optimum."""

MOVING = (
    "forward_kl", "reverse_kl", "best_of_n", "preference_likelihood",
    "dpo", "ipo", "online_dpo", "rlhf",
)  # fmt: skip
"""Methods in the moving figure."""

START: dict[str, Any] = {
    "marker": "o", "color": plotting.INK, "markersize": 4, "linestyle": "", "label": "reference",
}  # fmt: skip
END: dict[str, Any] = {
    "marker": "o", "color": "#888888", "markersize": 9, "linestyle": "", "label": "end",
    "clip_on": False,
}  # fmt: skip
OPTIMUM: dict[str, Any] = {
    "marker": "x", "color": plotting.INK, "markersize": 7, "linestyle": "",
    "label": "its KL-regularised optimum",
}  # fmt: skip


class SimplexPaths(Study):
    """Descend by every method in expectation, in steps of even length, from several references."""

    source = "S25: geometry of the methods"
    question = "Which way does each method take over the simplex, and where does it end?"
    quick = {"steps": 400, "step": 0.08, "batch": 80}

    reward: tuple[float, ...] = (1.0, 0.5, 0.0)  # of the three responses
    references: tuple[tuple[float, ...], ...] = (
        (0.08, 0.12, 0.8),
        (0.1, 0.8, 0.1),
        (1 / 3, 1 / 3, 1 / 3),
        (0.02, 0.49, 0.49),
    )  # where paths start
    beta: float = 0.5  # of the KL penalty, of DPO, and of all methods that have one
    kl_coefficient: float = 0.1  # λ of HyPO
    step: float = 0.03  # length of the first step in logits, falling to 0 along a cosine
    steps: int = 1200  # of normalised gradient descent
    group: int = 4  # N, of methods that choose from groups
    batch: int = 800  # responses in their minibatches

    def run(self) -> xr.Dataset:
        references = jnp.asarray(np.log(self.references))
        reward = jnp.asarray(self.reward)
        # The labels are those of many pairs of the reference, so the reward can be learned exactly.
        wins = preference_probabilities(reward, temperature=1.0)
        fitted = jnp.stack([fit_tabular(own_pairs(wins)(row), ridge=0.0) for row in references])
        problems = expected.Problem(reward, references, references, fitted, wins, self.beta)
        parts = [
            self._follow(names, problems) for names in (expected.IN_EXPECTATION, expected.IN_GROUPS)
        ]
        optimum = gibbs.gibbs_log_probs(reward, references, self.beta)
        return xr.concat(parts, "loss").assign(optimum=(("start", "response"), np.exp(optimum)))

    def _follow(self, names: tuple[str, ...], problems: expected.Problem) -> xr.Dataset:
        """Train methods that share a way of collecting, in one program."""
        policy = tabular_softmax()
        recorded = range(0, self.steps + 1, max(self.steps // 200, 1))
        descent = expected.Descent(
            self.kl_coefficient, self.step, self.steps, self.group, self.batch
        )

        def run_one(
            loss: Int[Array, ""], start: Int[Array, ""], problems: expected.Problem
        ) -> dict[str, Array]:
            reward, references, _, fitted, wins, _ = problems
            reference = references[start]
            problem = expected.Problem(reward, reference, reference, fitted[start], wins, self.beta)
            return train(
                jax.random.key(start),
                policy,
                reference,
                *expected.updates_in_expectation(names, loss, policy, problem, descent),
                expected.even_steps(descent.step, descent.steps),
                lambda logits: {"probability": jnp.exp(policy.log_probs(logits))},
                recorded,
            )

        return require_not_diverged(
            sweep(
                run_one,
                {"loss": choices(*names), "start": np.arange(len(self.references))},
                fixed={"problems": problems},
                dims=["step", "response"],
                coords={"step": list(recorded), "response": ["best", "middle", "worst"]},
                attributes={"probability": {"long_name": "probability", "units": "1"}},
            )
        )

    @classmethod
    def plot(cls, dataset: xr.Dataset) -> Figure:
        """Draw a triangle for each method: its paths, and the KL-regularised optima."""
        figure, panels = plotting.new_panels(
            len(METHODS), 16, 2.4, (0.3, 0.75, 0.3, 0.4), shared=False, projection="ternary"
        )
        for axes, name in zip(panels, METHODS, strict=True):
            _draw_paths(axes, dataset, name)
        _explain(figure, START, END, OPTIMUM)
        return figure

    @classmethod
    def animate(cls, dataset: xr.Dataset) -> Frames:
        """Move the policies of some methods along their paths, from all references at once."""
        figure, panels = plotting.new_panels(
            len(MOVING), 12, 2.75, (0.3, 0.65, 0.3, 0.75), columns=4, shared=False, hspace=0.35,
            projection="ternary",
        )  # fmt: skip
        said = figure.suptitle("", fontsize=15)
        lines = [
            line
            for axes, name in zip(panels, MOVING, strict=True)
            for line in _draw_paths(axes, dataset, name)
        ]
        # The triangle's projection has put the path where it belongs.
        moving = [(trail, head, np.array(trail.get_data())) for trail, head in lines]
        _explain(figure, START, END | {"label": "policy"}, OPTIMUM)
        steps = dataset["step"].values
        shown = range(0, len(steps), max(len(steps) // 100, 1))

        def draw(frame: int) -> None:
            at = shown[frame]
            said.set_text(f"after {steps[at]:,} steps of even length")
            for trail, head, path in moving:
                trail.set_data(*path[:, : at + 1])
                head.set_data(*path[:, at : at + 1])

        return Frames(figure, draw, len(shown))

    @classmethod
    def judge(cls, dataset: xr.Dataset) -> list[Claim]:
        require_no_nan(dataset)
        probability = dataset["probability"]
        end = probability.isel(step=-1)
        distance = _variation(end, dataset["optimum"])
        there = distance.sel(loss=list(TO_OPTIMUM)).max("start")
        others = [name for name in METHODS if name not in TO_OPTIMUM]
        nearest = distance.sel(loss=others).max("start")
        farthest, passing = (
            plotting.METHOD_LABELS[str(name.item())]
            for name in (there.idxmax("loss"), nearest.idxmin("loss"))
        )
        on_policy = ["best_of_n", "reward_weighted", "advantage_weighted"]
        collapsed = end.sel(loss=on_policy, response="best")
        moved = _variation(end, probability.isel(step=0)).sel(loss="supervised")
        return [
            claim(
                f"{len(TO_OPTIMUM)} methods end at one policy, the KL-regularised optimum: largest "
                "total variation from it",
                there.max(),
                below(0.01),
                note=f"The farthest is {farthest}.",
            ),
            claim(
                "and the others elsewhere: total variation of the nearest of them from it, from "
                "its worst start",
                nearest.min(),
                above(0.01),
                note=f"The nearest is {passing}.",
            ),
            claim(
                "On-policy likelihood (best-of-N, RWR, AWR) keeps no distance from the reference: "
                "least probability of the best response at the end",
                collapsed.min(),
                above(0.95),
            ),
            claim(
                "Likelihood of the reference's own responses goes nowhere: largest total variation",
                moved.max(),
                below(0.01),
            ),
        ]


def _variation(one: xr.DataArray, other: xr.DataArray) -> xr.DataArray:
    """Return the total variation distance of two policies."""
    return 0.5 * abs(one - other).sum("response")


def _draw_paths(axes: Axes, dataset: xr.Dataset, name: str) -> list[tuple[Line2D, Line2D]]:
    """Draw a method's paths in its triangle; return the line and the end of each."""
    color, lines = plotting.METHOD_COLORS[name], []
    for start in dataset["start"].values:
        path = dataset["probability"].sel(loss=name, start=start).values.T
        (trail,) = axes.plot(*path, color=color, linewidth=2.2)
        axes.plot(*path[:, :1], **START)
        (head,) = axes.plot(*path[:, -1:], **END | {"color": color})
        axes.plot(*dataset["optimum"].sel(start=start).values[:, None], **OPTIMUM)
        lines.append((trail, head))
    axes.set_title(plotting.METHOD_LABELS[name], fontsize=14, pad=5)
    for axis in (axes.taxis, axes.laxis, axes.raxis):  # type: ignore[attr-defined]
        axis.set_ticks([])
    return lines


def _explain(figure: Figure, *marks: dict[str, Any]) -> None:
    """Name the corners of the first triangle, and explain the marks below all triangles."""
    corners = zip(np.eye(3), ("  best", "middle", "worst"), ("left", "left", "right"), strict=True)
    for corner, label, side in corners:
        figure.axes[0].text(*corner, label, ha=side, va="top", fontsize=12)  # type: ignore[call-arg]
    handles = [Line2D([], [], **mark) for mark in marks]
    figure.legend(handles=handles, loc="lower center", ncols=3, fontsize=14)
