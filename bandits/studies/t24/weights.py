"""Which responses a method raises and which it pushes down: the weights of one group, side by side.

The weight of a response is minus the derivative of the loss in its log-probability; by the chain
rule a policy follows Σ weight · ∇log π. The group: a space of N responses with random rewards, seen
by a policy that has moved a little from its reference.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Float, PRNGKeyArray
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from bandits import plotting
from bandits.losses import METHODS, Responses, make_group, response_weights
from bandits.studies.base import Claim, Experiment
from bandits.studies.intervals import proportion_interval


@dataclass(frozen=True)
class Settings:
    """The groups.

    Attributes:
      responses: N.
      groups: random groups, of which the first is drawn.
      moved: standard deviation of log π/π_ref in nats.
      seed: of the groups.
    """

    responses: int = 8
    groups: int = 2000
    moved: float = 0.5
    seed: int = 0


def run(settings: Settings) -> xr.Dataset:
    """The weights of every method on every group, responses in order of their reward."""
    keys = jax.random.split(jax.random.key(settings.seed), settings.groups)
    groups = jax.vmap(lambda key: _random_group(key, settings))(keys)
    weights = _weights(groups)
    return xr.Dataset(
        {
            "weight": (
                ("loss", "group", "response"),
                np.array([weights[name] for name in METHODS]),
            ),
            "reward": (("group", "response"), np.asarray(groups.rewards)),
        },
        coords={
            "loss": list(METHODS),
            "negative_gradient": ("loss", [m.negative_gradient for m in METHODS.values()]),
        },
        attrs={"drawn_group": 0},
    )


def _random_group(key: PRNGKeyArray, settings: Settings) -> Responses:
    """The whole space of N responses, so that divergences have a place beside sampled methods."""
    reward_key, reference_key, move_key = jax.random.split(key, 3)
    rewards = jnp.sort(jax.random.uniform(reward_key, (settings.responses,)))
    reference = jax.nn.log_softmax(jax.random.normal(reference_key, rewards.shape))
    move = settings.moved * jax.random.normal(move_key, rewards.shape)
    log_probs = jax.nn.log_softmax(reference + move)
    return make_group(log_probs, rewards, reference_log_probs=reference, baseline=rewards.mean())


@jax.jit
def _weights(groups: Responses) -> dict[str, Float[Array, "groups N"]]:
    """Those of every method, in one program."""

    def of_group(group: Responses) -> dict[str, Float[Array, " N"]]:
        return {name: response_weights(m.bind(), group) for name, m in METHODS.items()}

    return jax.vmap(of_group)(groups)


def plot(dataset: xr.Dataset) -> Figure:
    """A panel a method: the weights of one group, as shares of the largest."""
    names = dataset["loss"].values
    figure, panels = plotting.new_panels(
        len(names), 16, 2.45, margins=(0.75, 0.85, 0.15, 0.4), wspace=0.07
    )
    one = dataset.isel(group=int(dataset.attrs["drawn_group"]))
    for axes, name in zip(panels, names, strict=True):
        weights = one["weight"].sel(loss=name).values
        weights = weights / np.abs(weights).max()
        colors = [plotting.RAISED if w > 0 else plotting.PUSHED for w in weights]
        axes.bar(np.arange(weights.size), weights, color=colors, width=0.8)
        axes.axhline(0, color=plotting.INK, linewidth=1)
        axes.set_title(plotting.METHOD_LABELS[str(name)], fontsize=13)
        axes.set(ylim=(-1.08, 1.08), xticks=[0, weights.size - 1], yticks=[-1, 0, 1])
        axes.set_xticklabels(["worst", "best"])
    figure.supylabel("weight, as a share of the largest", fontsize=14, x=0.004)
    legend = {"raised": plotting.RAISED, "pushed down": plotting.PUSHED}
    handles = [Patch(color=color, label=label) for label, color in legend.items()]
    figure.legend(handles=handles, loc="lower center", ncols=2, fontsize=14)
    return figure


def judge(dataset: xr.Dataset) -> list[Claim]:
    """Whether the marks of T24's table are what the gradients say."""
    some_negative = (dataset["weight"] < 0).any("response")
    marked = some_negative.sel(loss=dataset["negative_gradient"])
    rarest = marked.sum("group").idxmin("loss").item()
    pushes = marked.sel(loss=rarest).values
    never = ~some_negative.sel(loss=~dataset["negative_gradient"]).any("loss").values
    return [
        EXPERIMENT.claim(
            f"The {marked.sizes['loss']} methods marked with a negative gradient push some "
            "response down: share of groups, for the method that does it least often "
            f"({plotting.METHOD_LABELS[str(rarest)]})",
            proportion_interval(int(pushes.sum()), pushes.size),
            pushes.any(),
            note="A method may have no negative weight on a group that it is content with.",
        ),
        EXPERIMENT.claim(
            f"The {dataset.sizes['loss'] - marked.sizes['loss']} other methods push no response "
            "down: share of groups in which none of them does",
            proportion_interval(int(never.sum()), never.size),
            never.all(),
        ),
    ]


EXPERIMENT = Experiment(
    name="weights",
    source="T24, table 1 and Lemma 6.2",
    question="Which responses does each method raise, and which does it push down?",
    full=Settings(),
    quick=Settings(groups=200),
    run=run,
    plot=plot,
    judge=judge,
)
