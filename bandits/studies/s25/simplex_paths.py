"""The paths of all methods over the policies on three responses, from several references.

A labeller of the Bradley–Terry model prefers by the true reward, so that every method that learns
the KL-regularised optimum has the same end, π* ∝ π_ref exp(r/β), and its own way there. The data
of offline methods come from the reference.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import mpltern  # noqa: F401  registers the ternary projection
import numpy as np
import xarray as xr
from jaxtyping import Array, Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bandits import plotting
from bandits.animation import Frames
from bandits.losses import METHODS
from bandits.policies import tabular_softmax
from bandits.preferences import preference_probabilities
from bandits.reward_models import fit_tabular
from bandits.studies.base import Claim, Experiment
from bandits.studies.curves import require_no_nan, require_not_diverged
from bandits.studies.expected import (
    IN_EXPECTATION,
    IN_GROUPS,
    Descent,
    Problem,
    even_steps,
    train_in_expectation,
)
from bandits.studies.intervals import exact
from bandits.sweeps import sweep
from bandits.training import own_pairs
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


@dataclass(frozen=True)
class Settings:
    """The bandit and the descents.

    Attributes:
      reward: of the three responses.
      references: where paths start.
      beta: of the KL penalty, of DPO, and of all methods that have one.
      kl_coefficient: λ of HyPO.
      step: length of the first step in logits, falling to 0 along a cosine.
      steps: of normalised gradient descent.
      group: N, of methods that choose from groups.
      batch: responses in their minibatches.
    """

    reward: tuple[float, ...] = (1.0, 0.5, 0.0)
    references: tuple[tuple[float, ...], ...] = (
        (0.08, 0.12, 0.8),
        (0.1, 0.8, 0.1),
        (1 / 3, 1 / 3, 1 / 3),
        (0.02, 0.49, 0.49),
    )
    beta: float = 0.5
    kl_coefficient: float = 0.1
    step: float = 0.03
    steps: int = 1200
    group: int = 4
    batch: int = 800


def run(settings: Settings) -> xr.Dataset:
    """The path of every method from every reference, and the optimum."""
    references = np.log(np.array(settings.references)).astype(np.float32)
    reward = np.array(settings.reward, np.float32)
    # The labels are those of many pairs of the reference, so the reward can be learned exactly.
    wins = preference_probabilities(jnp.asarray(reward), temperature=1.0)
    fitted = [fit_tabular(own_pairs(wins)(row), ridge=0.0) for row in jnp.asarray(references)]
    arrays = {
        "references": references,
        "reward": reward,
        "fitted": np.array(fitted),
        "wins": np.asarray(wins),
    }
    parts = [_follow(settings, names, arrays) for names in (IN_EXPECTATION, IN_GROUPS)]
    optimum = gibbs.gibbs_log_probs(reward, references, settings.beta)
    return xr.concat(parts, "loss").assign(optimum=(("start", "response"), np.exp(optimum)))


def _follow(
    settings: Settings, names: tuple[str, ...], arrays: dict[str, np.ndarray]
) -> xr.Dataset:
    """Methods that share a way of collecting: one program."""
    policy = tabular_softmax()
    recorded = tuple(range(0, settings.steps + 1, max(settings.steps // 200, 1)))
    descent = Descent(
        beta=settings.beta,
        kl_coefficient=settings.kl_coefficient,
        optimizer=even_steps(settings.step, settings.steps),
        steps=settings.steps,
        record=recorded,
        group=settings.group,
        batch=settings.batch,
    )

    def run_one(
        loss: Int[Array, ""],
        start: Int[Array, ""],
        references: Float[Array, "n 3"],
        reward: Float[Array, " 3"],
        fitted: Float[Array, "n 3"],
        wins: Float[Array, "3 3"],
    ) -> dict[str, Array]:
        reference = references[start]
        return train_in_expectation(
            names,
            loss,
            jax.random.key(start),
            policy,
            reference,
            Problem(reward, reference, reference, fitted[start], wins),
            descent,
            lambda logits: {"probability": jnp.exp(policy.log_probs(logits))},
        )

    dataset = sweep(
        run_one,
        {"loss": np.arange(len(names)), "start": np.arange(len(settings.references))},
        fixed=arrays,
        dims=["step", "response"],
        coords={"step": list(recorded), "response": ["best", "middle", "worst"]},
        attributes={"probability": {"long_name": "probability", "units": "1"}},
    ).assign_coords(loss=list(names))
    require_not_diverged(dataset)
    return dataset


def plot(dataset: xr.Dataset) -> Figure:
    """A triangle a method: its paths, and the KL-regularised optima they could end at."""
    figure, panels = plotting.new_panels(
        len(METHODS), 16, 2.4, (0.3, 0.75, 0.3, 0.4), shared=False, projection="ternary"
    )
    for axes, name in zip(panels, METHODS, strict=True):
        color = plotting.METHOD_COLORS[name]
        for start in dataset["start"].values:
            path = dataset["probability"].sel(loss=name, start=start).values.T
            axes.plot(*path, color=color, linewidth=2.2)
            axes.plot(*path[:, :1], **START)
            axes.plot(*path[:, -1:], **END | {"color": color})
            axes.plot(*dataset["optimum"].sel(start=start).values[:, None], **OPTIMUM)
        _label_triangle(axes, name)
    _label_corners(panels[0])
    _explain_marks(figure, START, END, OPTIMUM)
    return figure


def animate(dataset: xr.Dataset) -> Frames:
    """Some methods on their ways, from all references at once."""
    figure, panels = plotting.new_panels(
        len(MOVING), 12, 2.75, (0.3, 0.65, 0.3, 0.75), columns=4, shared=False, hspace=0.35,
        projection="ternary",
    )  # fmt: skip
    said = figure.suptitle("", fontsize=15)
    moving = []
    for axes, name in zip(panels, MOVING, strict=True):
        color = plotting.METHOD_COLORS[name]
        for start in dataset["start"].values:
            path = dataset["probability"].sel(loss=name, start=start).values.T
            axes.plot(*path[:, :1], **START)
            axes.plot(*dataset["optimum"].sel(start=start).values[:, None], **OPTIMUM)
            trail = axes.plot(*path, color=color, linewidth=2.2)[0]
            head = axes.plot(*path[:, :1], **END | {"color": color})[0]
            # Where the triangle's projection puts the path, known once it is drawn.
            moving.append((trail, head, np.array(trail.get_data())))
        _label_triangle(axes, name)
    _label_corners(panels[0])
    _explain_marks(figure, START, END | {"label": "policy"}, OPTIMUM)
    steps = dataset["step"].values

    def draw(frame: int) -> None:
        said.set_text(f"after {steps[frame]:,} steps of even length")
        for trail, head, path in moving:
            trail.set_data(*path[:, : frame + 1])
            head.set_data(*path[:, frame : frame + 1])

    shown = range(0, len(steps), max(len(steps) // 100, 1))
    return Frames(figure, lambda i: draw(shown[i]), len(shown))


def _label_triangle(axes: Axes, name: str) -> None:
    axes.set_title(plotting.METHOD_LABELS[name], fontsize=14, pad=5)
    for axis in (axes.taxis, axes.laxis, axes.raxis):  # type: ignore[attr-defined]
        axis.set_ticks([])


def _label_corners(axes: Axes) -> None:
    for corner, label, ha, va in zip(
        np.eye(3), ("  best", "middle", "worst"), ("left", "left", "right"), ("top", "top", "top"),
        strict=True,
    ):  # fmt: skip
        axes.text(*corner, label, ha=ha, va=va, fontsize=12)  # type: ignore[call-arg]


def _explain_marks(figure: Figure, *styles: dict[str, Any]) -> None:
    handles = [Line2D([], [], **style) for style in styles]
    figure.legend(handles=handles, loc="lower center", ncols=3, fontsize=14)


def judge(dataset: xr.Dataset) -> list[Claim]:
    """Who ends at the optimum, by which length of way, and who ends elsewhere."""
    require_no_nan(dataset)
    end = dataset["probability"].isel(step=-1)
    distance = 0.5 * abs(end - dataset["optimum"]).sum("response")
    there = distance.sel(loss=list(TO_OPTIMUM)).max("start")
    farthest = str(there.idxmax("loss").item())
    others = [n for n in METHODS if n not in TO_OPTIMUM]
    nearest = distance.sel(loss=others).max("start")
    passing = str(nearest.idxmin("loss").item())
    probability = dataset["probability"]
    on_policy = ["best_of_n", "reward_weighted", "advantage_weighted"]
    collapsed = end.sel(loss=on_policy, response="best").min()
    imitation = 0.5 * abs(
        end.sel(loss="supervised") - probability.sel(loss="supervised").isel(step=0)
    ).sum("response")
    return [
        EXPERIMENT.claim(
            f"{len(TO_OPTIMUM)} methods end at one policy, the KL-regularised optimum: largest "
            "total variation from it (holds if below 0.01)",
            exact(there.max()),
            float(there.max()) < 0.01,
            note=f"The farthest is {plotting.METHOD_LABELS[farthest]}.",
        ),
        EXPERIMENT.claim(
            "and the others elsewhere: total variation of the nearest of them from it, from its "
            "worst start (holds if above 0.01)",
            exact(nearest.min()),
            float(nearest.min()) > 0.01,
            note=f"The nearest is {plotting.METHOD_LABELS[passing]}.",
        ),
        EXPERIMENT.claim(
            "On-policy likelihood (best-of-N, RWR, AWR) keeps no distance from the reference: "
            "least probability of the best response at the end (holds if above 0.95)",
            exact(collapsed),
            float(collapsed) > 0.95,
        ),
        EXPERIMENT.claim(
            "Likelihood of the reference's own responses goes nowhere: largest total variation "
            "(holds if below 0.01)",
            exact(imitation.max()),
            float(imitation.max()) < 0.01,
        ),
    ]


EXPERIMENT = Experiment(
    name="simplex_paths",
    source="S25: geometry of the methods",
    question="Which way does each method take over the simplex, and where does it end?",
    full=Settings(),
    quick=Settings(steps=400, step=0.08, batch=80),
    run=run,
    plot=plot,
    judge=judge,
    animate=animate,
)
