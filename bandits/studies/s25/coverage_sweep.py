"""Measure what each method does as the preference data cover less of the reference.

A small bandit has the far reward. The data hold a random part of the responses. The labeller is a
Bradley–Terry model of the true reward and is asked without end, so that coverage is all that is
missing. Policies are tables; or they share features, so that responses out of the data move with
those in it. DPO, and RLHF with a reward of the same class, are solved exactly, with the parameters
of least norm where the data leave them open; all others descend. On-policy methods ask the true
reward about their own responses, and divergences know the optimum: the data make no difference to
them, and the figure shows one for all.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bandits import plotting
from bandits.keys import split_seed
from bandits.losses import METHODS
from bandits.policies import log_linear
from bandits.problems.environments import bump_reward, tanh_cauchy_reference
from bandits.problems.metrics import DIVERGED_AT
from bandits.problems.preferences import covering_fraction, preference_probabilities
from bandits.studies import expected
from bandits.studies.curves import require_no_nan, require_not_diverged
from bandits.studies.study import Claim, Criterion, Study, below, claim
from bandits.sweeps import choices, sweep
from bandits.training import own_pairs, train
from theory import equivalence, gibbs

CLASSES = ("table", "shared features")
SOLVED = ("dpo", "rlhf")
USE_DATA = tuple(n for n, m in METHODS.items() if not (m.on_policy or m.whole_space))
"""The offline methods; RLHF and HyPO use the data too, beside responses of the policy."""

SHOWN = (*USE_DATA[:3], "rlhf", *USE_DATA[3:4], "hypo", *USE_DATA[4:], "online_dpo")
NEAR = 0.85
"""Least share of the optimum's reward for a method to count as near it."""


class CoverageSweep(Study):
    """Run every method with both classes of policies, as the data hold less."""

    source = "S25: coverage; arXiv:2406.01462"
    question = "What does each method do as the data cover less of the reference?"
    quick = {"fractions": (0.4, 1.0), "seeds": 2, "steps": 150, "step": 0.2}

    num_arms: int = 20  # K
    peak: float = 13.0  # the arm of the reward's peak
    width: float = 3.0  # of its bump, in arms
    height: float = 5.0  # of it, in nats of log-odds
    features: int = 6  # bumps that the sharing policy adds up, evenly spread
    fractions: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8, 1.0)  # of responses that the data hold
    seeds: int = 5  # random parts of that size
    beta: float = 0.5  # of every method that has one
    kl_coefficient: float = 0.01  # λ of HyPO
    step: float = 0.1  # length of the first step, falling to 0 along a cosine
    steps: int = 500  # of normalised gradient descent
    group: int = 4  # N, where groups are sampled
    batch: int = 200  # responses in a sampled minibatch

    def run(self) -> xr.Dataset:
        reference = tanh_cauchy_reference(self.num_arms)
        reward = bump_reward(self.num_arms, self.peak, self.width, self.height)
        of_seeds = jax.vmap(draw_data, in_axes=(0, None, None))
        laws = jax.vmap(of_seeds, in_axes=(None, 0, None))(
            jnp.arange(self.seeds), jnp.array(self.fractions), reference
        )
        wins = preference_probabilities(reward, temperature=1.0)
        problems = expected.Problem(reward, reference, laws, reward, wins, self.beta)
        descended = tuple(name for name in expected.IN_EXPECTATION if name not in SOLVED)
        parts = [self._train(names, problems) for names in (descended, expected.IN_GROUPS)]
        dataset = xr.concat([*parts, self._solve(problems)], "loss").sel(loss=list(METHODS))
        optimum = jnp.exp(gibbs.gibbs_log_probs(reward, reference, self.beta))
        out, dims = jnp.isneginf(laws), ("fraction", "seed")
        return dataset.assign(
            reward_share=dataset["expected_reward"] / float(optimum @ reward),
            reference_mass=(dims, np.asarray((jnp.exp(reference) * out).sum(-1))),
            optimum_mass=(dims, np.asarray((optimum * out).sum(-1))),
            reference_share=float(jnp.exp(reference) @ reward) / float(optimum @ reward),
        )

    def classes(self) -> dict[str, Float[Array, "K K"]]:
        """Return the features of both classes; columns that the bumps do not need are zero."""
        arms = jnp.arange(self.num_arms)[:, None]
        centres = jnp.linspace(0, self.num_arms - 1, self.features)
        width = self.num_arms / (self.features - 1)
        bumps = jnp.exp(-(((arms - centres) / width) ** 2))
        table = jnp.eye(self.num_arms)
        shared = jnp.zeros_like(table).at[:, : self.features].set(bumps)
        return dict(zip(CLASSES, (table, shared), strict=True))

    def _train(self, names: tuple[str, ...], problems: expected.Problem) -> xr.Dataset:
        """Train methods that share a way of collecting, in one program."""
        descent = expected.Descent(
            self.kl_coefficient, self.step, self.steps, self.group, self.batch
        )

        def run_one(
            loss: Int[Array, ""],
            policy: Float[Array, "K K"],
            fraction: Int[Array, ""],
            seed: Int[Array, ""],
            problems: expected.Problem,
        ) -> dict[str, Array]:
            reward, reference, laws, _, wins, _ = problems
            model, data = log_linear(policy, reference), laws[fraction, seed]
            problem = expected.Problem(reward, reference, data, reward, wins, self.beta)
            return train(
                split_seed(seed).training,
                model,
                jnp.zeros_like(reference),
                *expected.updates_in_expectation(names, loss, model, problem, descent),
                expected.even_steps(descent.step, descent.steps),
                lambda theta: measure(jnp.exp(model.log_probs(theta)), data, reward),
                record=(self.steps,),
            )

        axes = {
            "loss": choices(*names),
            "policy": choices(self.classes()),
            "fraction": np.arange(len(self.fractions)),
            "seed": np.arange(self.seeds),
        }
        fixed = {"problems": problems}
        dataset = sweep(run_one, axes, fixed=fixed, dims=["step"], block_runs=64)
        dataset = require_not_diverged(dataset).squeeze("step").drop_vars(DIVERGED_AT)
        return dataset.assign_coords(fraction=list(self.fractions))

    def _solve(self, problems: expected.Problem) -> xr.Dataset:
        """Solve DPO and RLHF to the precision of the numbers, in float64."""
        reward, reference, laws, _, wins, _ = problems

        def solve(
            features: Float[Array, "K K"], data: Float[Array, " K"]
        ) -> dict[str, Float[Array, " 2"]]:
            counts = own_pairs(wins.astype(float))(data)
            base = reference.astype(float)
            dpo = equivalence.fit_dpo(features, counts, base, self.beta)
            rlhf = equivalence.fit_rlhf(features, features, counts, base, self.beta)
            return measure(jnp.exp(jnp.stack([dpo.log_probs, rlhf.log_probs])), data, reward)

        over_laws = jax.vmap(jax.vmap(solve, in_axes=(None, 0)), in_axes=(None, 0))
        features = jnp.stack(list(self.classes().values()))
        with jax.enable_x64(True):
            solved = jax.jit(jax.vmap(over_laws, in_axes=(0, None)))(
                features.astype(float), laws.astype(float)
            )
        dims = ("policy", "fraction", "seed", "loss")
        labels = (list(CLASSES), list(self.fractions), np.arange(self.seeds), list(SOLVED))
        return xr.Dataset(
            {name: (dims, np.asarray(values)) for name, values in solved.items()},
            dict(zip(dims, labels, strict=True)),
        )

    @classmethod
    def plot(cls, dataset: xr.Dataset) -> Figure:
        """Draw mass out of the data, and reward, for both classes; a row for each method."""
        figure, grid = plotting.new_grid(1, 4, 16, 8.6, (0.125, 0.085, 0.99, 0.915), 0.06)
        mean = dataset.sel(loss=list(SHOWN)).mean("seed")
        ones = xr.ones_like(mean["optimum_mass"])
        mass, share = "Mass out of the data", "Share of the optimum's reward"
        quantities = {
            mass: ("uncovered_mass", mean["reference_mass"], mean["optimum_mass"]),
            share: ("reward_share", mean["reference_share"] * ones, ones),
        }
        fractions = [f"{fraction:.0%}" for fraction in dataset["fraction"].values]
        cuts = itertools.product(CLASSES, quantities.items())
        for axes, (policy, (title, (quantity, start, best))) in zip(grid[0], cuts, strict=True):
            of_methods = mean[quantity].sel(policy=policy).transpose("loss", "fraction")
            _draw_table(axes, np.vstack([start, best, of_methods]))
            axes.axhline(1.5, color="white", linewidth=4)
            axes.set_title(f"{policy.capitalize()}\n{title}")
            axes.set_xticks(range(len(fractions)), fractions)
        labels = [plotting.METHOD_LABELS[name] for name in SHOWN]
        grid[0, 0].set_yticks(range(len(SHOWN) + 2), ["reference", "optimum", *labels])
        figure.supxlabel("share of the responses that the data hold", fontsize=14, y=0.01)
        return figure

    @classmethod
    def judge(cls, dataset: xr.Dataset) -> list[Claim]:
        require_no_nan(dataset)
        reward, mass = dataset["reward_share"], dataset["uncovered_mass"]
        least, full = float(dataset["fraction"][0]), float(dataset["fraction"][-1])
        lost = reward.sel(fraction=full) - reward.sel(fraction=least)
        at_full = reward.sel(fraction=full).mean(("policy", "seed"))
        offline = [*USE_DATA, "rlhf"]
        near = [name for name in offline if float(at_full.sel(loss=name)) > NEAR]
        changes = ", ".join(
            f"{plotting.METHOD_LABELS[n]} {-float(lost.sel(loss=n).mean()):+.2f}"
            for n in offline
            if n not in near
        )
        partial = mass.isel(fraction=slice(0, -1))
        tables, shared = (partial.sel(policy=policy) for policy in CLASSES)
        apart = abs(reward.sel(loss="dpo") - reward.sel(loss="rlhf"))
        imitated = tables.sel(loss=["supervised", "preference_likelihood"])
        price = reward.sel(loss="preference_likelihood", policy=CLASSES[0]).mean()
        optimum = float(dataset["optimum_mass"].isel(fraction=slice(0, -1)).mean())
        return [
            claim(
                "Partial coverage costs the offline methods that full coverage brings near the "
                f"optimum ({', '.join(plotting.METHOD_LABELS[n] for n in near)}): share of its "
                f"reward lost between {full:.0%} and {least:.0%} of the responses",
                lost.sel(loss=near) if near else np.nan,
                note=f"The others are never near it; {least:.0%} instead of {full:.0%} changes "
                f"their share by: {changes}.",
            ),
            claim(
                "Coverage alone does not part DPO from RLHF of the same class, where both are "
                "solved exactly from labels without end: largest difference of their rewards",
                apart.max(),
                Criterion(lambda interval: interval.effect < 1e-6, "below 1e-6"),
            ),
            claim(
                "Shared features move DPO out of the data: its mass there, minus that of a table",
                shared.sel(loss="dpo") - tables.sel(loss="dpo"),
                note=f"Whether that is good depends on what is there: the optimum has "
                f"{optimum:.2f} of its mass there on average, DPO "
                f"{float(shared.sel(loss='dpo').mean()):.2f} with shared features and "
                f"{float(tables.sel(loss='dpo').mean()):.2f} in a table.",
            ),
            claim(
                "Likelihood of the data keeps to the data in a table: largest mass of SFT and "
                "Pref-FT out of it",
                imitated.max(),
                below(0.01),
                note=f"At a price: there Pref-FT has {float(price):.2f} of the optimum's reward.",
            ),
            claim(
                "HyPO has less mass out of the data than DPO in a table: difference",
                tables.sel(loss="dpo") - tables.sel(loss="hypo"),
                asserted=False,
                note="The KL weighs the covered part as a whole: what DPO tilts is far from the "
                "reference, so the KL moves mass out of it.",
            ),
        ]


def draw_data(
    seed: Int[Array, ""], fraction: Float[Array, ""], reference: Float[Array, " K"]
) -> Float[Array, " K"]:
    """Return log-probabilities of the data: the reference on a random part of its responses."""
    return covering_fraction(split_seed(seed).data, reference, fraction)


def measure(
    probs: Float[Array, "*n K"], data: Float[Array, " K"], reward: Float[Array, " K"]
) -> dict[str, Float[Array, "*n"]]:
    """Return the mass of policies out of the data, and their expected reward."""
    return {
        "uncovered_mass": jnp.sum(jnp.where(jnp.isneginf(data), probs, 0.0), axis=-1),
        "expected_reward": probs @ reward,
    }


def _draw_table(axes: Axes, values: np.ndarray) -> None:
    """Draw a table of shares as numbers on their colours."""
    axes.imshow(values, aspect="auto", vmin=0, vmax=1, cmap="cividis", interpolation="nearest")
    for (row, column), value in np.ndenumerate(values):
        ink = "white" if value < 0.55 else "black"
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=ink, fontsize=13)
    axes.tick_params(length=0)
