"""Measure where probability goes when one pair is trained: it passes in DPO, and parks in IPO.

A tabular softmax learns from one pair. The winner's probability runs over three decades; the mass
of all other responses, which are in no pair, takes several values. Exact gradient descents are
compared with the closed forms of `theory.partial_coverage`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from jaxtyping import Array, Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bandits import plotting
from bandits.animation import Frames
from bandits.losses import METHODS, Loss
from bandits.policies import tabular_softmax
from bandits.problems.environments import CategoricalBandit
from bandits.studies.curves import require_not_diverged
from bandits.studies.study import Claim, Criterion, Study, below, claim
from bandits.sweeps import choices, sweep
from bandits.training import Schedule, on_whole_space, train
from theory import partial_coverage

COLORS = {"winner": plotting.RAISED, "loser": "#777777", "uncovered": plotting.PUSHED}
MASS_COLORS = ("#332288", "#CC6677", "#DDAA33")


class Learner(NamedTuple):
    """Hold a method with its hyperparameters set, and its learning rate."""

    loss: Loss
    learning_rate: float


class Displacement(Study):
    """Compare gradient descents of DPO and IPO on one pair with their closed forms."""

    source = "S25, worked out in theory.partial_coverage"
    question = "How much probability does a trained pair push onto responses in no pair?"
    quick = {"winners": 7}

    winners: int = 31  # how many winner's probabilities, evenly on a log scale
    least: float = 1e-4  # the first of them
    most: float = 1e-1  # the last of them
    uncovered: tuple[float, ...] = (0.5, 0.2, 0.05)  # masses; a path is drawn for the first
    beta: float = 0.1  # of DPO
    tau: float = 0.1  # of IPO; its target is 1/(2τ) nats
    # Of DPO and IPO, for steps of at most about 0.1 nats of margin.
    learning_rates: tuple[float, float] = (1.0, 0.005)
    steps: int = 600  # of gradient descent, each recorded

    def run(self) -> xr.Dataset:
        of_dpo, of_ipo = self.learning_rates
        learners = {
            "dpo": Learner(METHODS["dpo"].bind(beta=self.beta), of_dpo),
            "ipo": Learner(METHODS["ipo"].bind(tau=self.tau), of_ipo),
        }
        winners = np.geomspace(self.least, self.most, self.winners)
        dataset = sweep(
            self._descend,
            {"loss": choices(learners), "winner": winners, "mass": list(self.uncovered)},
            dims=["step", "response"],
            coords={"step": np.arange(self.steps + 1), "response": list(COLORS)},
            attributes={
                "winner": {"long_name": "reference probability of the winner", "units": "1"}
            },
        )
        p_w = winners[:, None]
        p_l = 1.0 - p_w - np.array(self.uncovered)
        with jax.enable_x64(True):
            closed = {
                "peak": partial_coverage.displacement_peak(p_w, p_l),
                "peak_margin": partial_coverage.peak_margin(p_w, p_l),
                "parked": partial_coverage.ipo_parking(p_w, p_l, self.tau).uncovered,
            }
            over_pairs = {n: (("winner", "mass"), np.asarray(v)) for n, v in closed.items()}
        return require_not_diverged(dataset).assign(over_pairs)

    def _descend(
        self, loss: Learner, winner: Float[Array, ""], mass: Float[Array, ""]
    ) -> dict[str, Array]:
        """Train on the pair; return the policy and the growth of the margin at every step."""
        policy = tabular_softmax()
        reference = jnp.log(jnp.stack([winner, 1.0 - winner - mass, mass]))
        pair = jnp.zeros((3, 3)).at[0, 1].set(1.0)
        return train(
            jax.random.key(0),
            policy,
            reference,
            loss.loss,
            on_whole_space(policy, CategoricalBandit(jnp.zeros(3), reference), pair),
            Schedule.whole_space(self.steps, 3),
            optax.sgd(loss.learning_rate),
            lambda logits: {
                "probability": jnp.exp(policy.log_probs(logits)),
                "margin": (logits[0] - logits[1]) - (reference[0] - reference[1]),
            },
            record=range(self.steps + 1),
        )

    @classmethod
    def plot(cls, dataset: xr.Dataset) -> Figure:
        """Draw one path; then the peak and the parking place against the winner's probability."""
        figure = plotting.new_figure(16, 5.6)
        path, peak, parked = figure.subplots(1, 3)
        figure.subplots_adjust(0.05, 0.13, 0.99, 0.91, wspace=0.2)
        one = _shown_path(dataset).sel(loss="dpo")
        _draw_path(path, one)
        path.set(
            title=f"DPO on one pair, winner at {float(one['winner']):.3g}",
            ylabel="probability",
            ylim=(-0.02, 1.02),
        )
        path.legend(loc="center right")
        measured = _measure(dataset)
        for axes, name in ((peak, "peak"), (parked, "parked")):
            for mass, color in zip(dataset["mass"].values, MASS_COLORS, strict=False):
                line, dots = (values[name].sel(mass=mass) for values in (dataset, measured))
                label = f"closed form, {mass:g} at the start"
                axes.plot(line["winner"], line, color=color, label=label)
                axes.plot(dots["winner"][::3], dots[::3], "o", color=color)
            axes.plot([], [], "o", color=plotting.INK, label="measured")
            x_label = dataset["winner"].attrs["long_name"]
            axes.set(xscale="log", xlabel=x_label, ylim=(-0.02, 1.02))
        peak.set(title="DPO: its largest mass on responses in no pair", ylabel="probability")
        parked.set_title("IPO: its mass there for ever")
        peak.legend(loc="lower left")
        return figure

    @classmethod
    def animate(cls, dataset: xr.Dataset) -> Frames:
        """Move the bars of DPO on one pair beside the path that made them; below, those of IPO."""
        one = _shown_path(dataset)
        figure, panels = plotting.new_grid(2, 2, 12, 6.4, (0.07, 0.1, 0.99, 0.86), 0.06, 0.42)
        said = figure.suptitle("", fontsize=15)
        moving = []
        for (bars, curves), name in zip(panels, one["loss"].values, strict=True):
            path = one.sel(loss=name)
            labels = ["winner", "loser", "in no pair"]
            patches = bars.bar(labels, path.isel(step=0), color=list(COLORS.values()))
            bars.set(ylabel="probability", ylim=(0, 1.04), title=plotting.METHOD_LABELS[name])
            _draw_path(curves, path)
            curves.set_title("and how it came there")
            moving.append((patches, curves.axvline(0, color=plotting.INK, linewidth=1.5), path))
        shown = range(0, dataset.sizes["step"], max(dataset.sizes["step"] // 100, 1))

        def draw(frame: int) -> None:
            step = shown[frame]
            said.set_text(f"One pair is trained, winner over loser: step {step}")
            for patches, now, path in moving:
                for patch, height in zip(patches, path.isel(step=step).values, strict=True):
                    patch.set_height(height)
                now.set_xdata([step, step])

        return Frames(figure, draw, len(shown))

    @classmethod
    def judge(cls, dataset: xr.Dataset) -> list[Claim]:
        error = abs(_measure(dataset) - dataset[["peak", "peak_margin", "parked"]]).max()
        rises = (dataset["peak"] / dataset["mass"]).stack(at=("winner", "mass"))
        winner, mass = rises.idxmax("at").item()
        most = float(dataset["peak"].sel(winner=winner, mass=mass))
        pairs = f"over {rises.size} pairs and three decades"
        return [
            claim(
                "DPO's uncovered mass peaks at u/(u + 2√(p_w p_l)): largest error of the peak "
                f"{pairs}",
                error["peak"],
                below(0.005),
                note=f"With {mass:g} on uncovered responses and a winner of {winner:.2g} it peaks "
                f"at {most:.3f}.",
            ),
            claim(
                "The peak is reached when the margin has grown by log p_l/p_w: largest error in "
                f"nats {pairs}",
                error["peak_margin"],
                Criterion(lambda error: error.effect < 0.1, "below one step, 0.1"),
            ),
            claim(
                "IPO parks where the margin has grown by 1/(2τ): largest error of the uncovered "
                f"mass at the end {pairs}",
                error["parked"],
                below(0.005),
            ),
        ]


def _measure(dataset: xr.Dataset) -> xr.Dataset:
    """Return the peak of the uncovered mass and its margin under DPO, and where IPO ends."""
    dpo, ipo = (dataset.sel(loss=name, response="uncovered", drop=True) for name in ("dpo", "ipo"))
    at = dpo["probability"].argmax("step")
    return xr.Dataset(
        {
            "peak": dpo["probability"].max("step"),
            "peak_margin": dpo["margin"].isel(step=at, drop=True),
            "parked": ipo["probability"].isel(step=-1, drop=True),
        }
    )


def _shown_path(dataset: xr.Dataset) -> xr.DataArray:
    """Return the path of a winner of about 0.001 with the largest mass on the rest."""
    nearest = np.abs(np.log(dataset["winner"].values / 1e-3)).argmin()
    return dataset["probability"].isel(winner=int(nearest), mass=0)


def _draw_path(axes: Axes, path: xr.DataArray) -> None:
    for response, color in COLORS.items():
        axes.plot(path["step"], path.sel(response=response), color=color, label=response)
    axes.set_xlabel("gradient steps")
