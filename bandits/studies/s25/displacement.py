"""Where probability goes when one pair is trained: the transient of DPO, the parking place of IPO.

A tabular softmax and one pair. The winner's probability runs over three decades; the mass of all
other responses, which are in no pair, takes several values. Exact gradient descents are held to the
closed forms of `theory.partial_coverage`.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from jaxtyping import Array, Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bandits import plotting
from bandits.animation import Frames
from bandits.environments import CategoricalBandit
from bandits.losses import METHODS, switch
from bandits.policies import tabular_softmax
from bandits.studies.base import Claim, Experiment
from bandits.studies.curves import require_not_diverged
from bandits.studies.intervals import exact
from bandits.sweeps import sweep
from bandits.training import Schedule, on_whole_space, train
from theory import partial_coverage

NAMES = ("dpo", "ipo")
RESPONSES = ("winner", "loser", "uncovered")
COLORS = {"winner": plotting.RAISED, "loser": "#777777", "uncovered": plotting.PUSHED}
MASS_COLORS = ("#332288", "#CC6677", "#DDAA33")


@dataclass(frozen=True)
class Settings:
    """The pairs and the descents.

    Attributes:
      winners: how many winner's probabilities, evenly on a log scale.
      least, most: the first and the last of them.
      uncovered: masses of all other responses; a path is drawn for the first.
      beta: of DPO.
      tau: of IPO; its target is 1/(2τ) nats.
      learning_rates: of DPO and IPO, for steps of at most about 0.1 nats of margin.
      steps: of gradient descent, each recorded.
    """

    winners: int = 31
    least: float = 1e-4
    most: float = 1e-1
    uncovered: tuple[float, ...] = (0.5, 0.2, 0.05)
    beta: float = 0.1
    tau: float = 0.1
    learning_rates: tuple[float, float] = (1.0, 0.005)
    steps: int = 600


def run(settings: Settings) -> xr.Dataset:
    """The probabilities of winner, loser and the rest at each step, and their closed forms."""
    policy = tabular_softmax()
    losses = [METHODS["dpo"].bind(beta=settings.beta), METHODS["ipo"].bind(tau=settings.tau)]
    schedule = Schedule.whole_space(settings.steps, 3)

    def run_one(
        loss: Int[Array, ""],
        winner: Float[Array, ""],
        mass: Float[Array, ""],
        learning_rates: Float[Array, " 2"],
        pair: Float[Array, "3 3"],
    ) -> dict[str, Array]:
        reference = jnp.log(jnp.stack([winner, 1.0 - winner - mass, mass]))
        bandit = CategoricalBandit(jnp.zeros(3), reference)
        return train(
            jax.random.key(0),
            policy,
            reference,
            switch(loss, losses),
            on_whole_space(policy, bandit, pair),
            schedule,
            optax.sgd(learning_rates[loss]),
            lambda logits: {
                "probability": jnp.exp(policy.log_probs(logits)),
                "margin": _margin(logits) - _margin(reference),
            },
            record=range(settings.steps + 1),
        )

    winners = np.geomspace(settings.least, settings.most, settings.winners)
    dataset = sweep(
        run_one,
        {"loss": np.arange(len(NAMES)), "winner": winners, "mass": np.array(settings.uncovered)},
        fixed={"learning_rates": np.array(settings.learning_rates, np.float32), "pair": _pair()},
        dims=["step", "response"],
        coords={"step": np.arange(settings.steps + 1), "response": list(RESPONSES)},
        attributes={"winner": {"long_name": "reference probability of the winner", "units": "1"}},
    ).assign_coords(loss=list(NAMES))
    require_not_diverged(dataset)
    masses = np.array(settings.uncovered)[None, :]
    p_w = winners[:, None]
    p_l = 1.0 - p_w - masses
    with jax.enable_x64(True):
        closed = {
            "peak": partial_coverage.displacement_peak(p_w, p_l),
            "peak_margin": partial_coverage.peak_margin(p_w, p_l),
            "parked": partial_coverage.ipo_parking(p_w, p_l, settings.tau).uncovered,
        }
        tables = {name: (("winner", "mass"), np.asarray(value)) for name, value in closed.items()}
    return dataset.assign(tables)


def _margin(logits: Float[Array, " 3"]) -> Float[Array, ""]:
    return logits[0] - logits[1]


def _pair() -> np.ndarray:
    pair = np.zeros((3, 3), np.float32)
    pair[0, 1] = 1.0
    return pair


def _measure(dataset: xr.Dataset) -> xr.Dataset:
    """The peak of the uncovered mass and its margin under DPO, and where IPO ends."""
    uncovered = dataset["probability"].sel(response="uncovered", drop=True)
    of_dpo = uncovered.sel(loss="dpo", drop=True)
    margins = dataset["margin"].sel(loss="dpo", drop=True)
    return xr.Dataset(
        {
            "peak": of_dpo.max("step"),
            "peak_margin": margins.isel(step=of_dpo.argmax("step")).drop_vars("step"),
            "parked": uncovered.sel(loss="ipo", drop=True).isel(step=-1, drop=True),
        }
    )


def plot(dataset: xr.Dataset) -> Figure:
    """One path, then the peak and the parking place over the winner's probability."""
    figure = plotting.new_figure(16, 5.6)
    path, peak, parked = figure.subplots(1, 3)
    figure.subplots_adjust(0.05, 0.13, 0.99, 0.91, wspace=0.2)
    _draw_path(path, dataset)
    measured = _measure(dataset)
    _draw_over_winners(peak, dataset, measured, "peak")
    _draw_over_winners(parked, dataset, measured, "parked")
    peak.set(title="DPO: its largest mass on responses in no pair", ylabel="probability")
    parked.set_title("IPO: its mass there for ever")
    handles, labels = peak.get_legend_handles_labels()
    peak.legend(handles, labels, loc="lower left")
    return figure


def _draw_path(axes: Axes, dataset: xr.Dataset) -> None:
    one = _shown_path(dataset).sel(loss="dpo")
    for response in RESPONSES:
        axes.plot(one["step"], one.sel(response=response), color=COLORS[response], label=response)
    axes.set(
        title=f"DPO on one pair, winner at {float(one['winner']):.3g}",
        xlabel="gradient steps",
        ylabel="probability",
        ylim=(-0.02, 1.02),
    )
    axes.legend(loc="center right")


def animate(dataset: xr.Dataset) -> Frames:
    """DPO on one pair: the bars, and how they came to be; IPO beside it, which stays there."""
    one = _shown_path(dataset)
    figure = plotting.new_figure(12, 6.4)
    panels = figure.subplots(2, 2, sharey=True)
    figure.subplots_adjust(0.07, 0.1, 0.99, 0.86, wspace=0.06, hspace=0.42)
    said = figure.suptitle("", fontsize=15)
    moving = []
    for (bars, curves), name in zip(panels, NAMES, strict=True):
        path = one.sel(loss=name)
        colors = [COLORS[response] for response in RESPONSES]
        labels = ["winner", "loser", "in no pair"]
        patches = bars.bar(labels, path.isel(step=0), color=colors)
        bars.set(ylabel="probability", ylim=(0, 1.04), title=plotting.METHOD_LABELS[name])
        for response in RESPONSES:
            curves.plot(path["step"], path.sel(response=response), color=COLORS[response])
        curves.set(title="and how it came there", xlabel="gradient steps")
        now = curves.axvline(0, color=plotting.INK, linewidth=1.5)
        moving.append((patches, now, path))
    shown = range(0, dataset.sizes["step"], max(dataset.sizes["step"] // 100, 1))

    def draw(frame: int) -> None:
        step = shown[frame]
        said.set_text(f"One pair is trained, winner over loser: step {step}")
        for patches, now, path in moving:
            for patch, height in zip(patches, path.isel(step=step).values, strict=True):
                patch.set_height(height)
            now.set_xdata([step, step])

    return Frames(figure, draw, len(shown))


def _shown_path(dataset: xr.Dataset) -> xr.DataArray:
    """That of a winner of about 0.001 with the largest mass on the rest."""
    winner = dataset["winner"].values[np.abs(np.log(dataset["winner"].values / 1e-3)).argmin()]
    return dataset["probability"].sel(winner=winner, mass=dataset["mass"].values[0])


def _draw_over_winners(axes: Axes, closed: xr.Dataset, measured: xr.Dataset, quantity: str) -> None:
    for mass, color in zip(closed["mass"].values, MASS_COLORS, strict=False):
        label = f"closed form, {mass:g} at the start"
        line, dots = (data[quantity].sel(mass=mass) for data in (closed, measured))
        axes.plot(line["winner"], line, color=color, label=label)
        axes.plot(dots["winner"][::3], dots[::3], "o", color=color)
    axes.plot([], [], "o", color=plotting.INK, label="measured")
    axes.set(xscale="log", xlabel=closed["winner"].attrs["long_name"], ylim=(-0.02, 1.02))


def judge(dataset: xr.Dataset) -> list[Claim]:
    """The largest distance between the descents and the closed forms."""
    error = abs(_measure(dataset) - dataset[["peak", "peak_margin", "parked"]]).max()
    rises = dataset["peak"] / dataset["mass"]
    winner, mass = (float(rises.stack(at=rises.dims).idxmax("at").item()[i]) for i in range(2))
    pairs = f"over {dataset.sizes['winner'] * dataset.sizes['mass']} pairs and three decades"
    return [
        EXPERIMENT.claim(
            "DPO's uncovered mass peaks at u/(u + 2√(p_w p_l)): largest error of the peak "
            f"{pairs} (holds if below 0.005)",
            exact(error["peak"]),
            float(error["peak"]) < 0.005,
            note=f"With {mass:g} on uncovered responses and a winner of {winner:.2g} it peaks at "
            f"{float(dataset['peak'].sel(winner=winner, mass=mass)):.3f}.",
        ),
        EXPERIMENT.claim(
            "The peak is reached when the margin has grown by log p_l/p_w: largest error in nats "
            f"{pairs} (holds if below one step, 0.1)",
            exact(error["peak_margin"]),
            float(error["peak_margin"]) < 0.1,
        ),
        EXPERIMENT.claim(
            "IPO parks where the margin has grown by 1/(2τ): largest error of the uncovered mass "
            f"at the end {pairs} (holds if below 0.005)",
            exact(error["parked"]),
            float(error["parked"]) < 0.005,
        ),
    ]


EXPERIMENT = Experiment(
    name="displacement",
    source="S25, worked out in theory.partial_coverage",
    question="How much probability does a trained pair push onto responses in no pair?",
    full=Settings(),
    quick=Settings(winners=7),
    run=run,
    plot=plot,
    judge=judge,
    animate=animate,
)
