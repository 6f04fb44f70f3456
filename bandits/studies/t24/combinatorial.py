"""Train a small causal transformer on T24's combinatorial bandit: ten tokens of a hundred values.

The first token is the prompt. The reward is the mean over all tokens of the bump of the
one-dimensional bandit, far (R1) or near (R2). The transformer starts exactly at the same reference
for every token. There are ten prompts (published: 10 to 100). The learning rate is 1e-3: the
published ones, 1e-4 and 3e-5 on-policy, need more than the hundred steps that are taken here.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from jaxtyping import Array, Float, Int, PRNGKeyArray
from matplotlib.figure import Figure

from bandits import plotting
from bandits.keys import split_into
from bandits.losses import METHODS, Loss
from bandits.policies import Params, causal_transformer
from bandits.problems.environments import bump_reward, tanh_cauchy_reference
from bandits.problems.metrics import ATTRIBUTES
from bandits.studies import curves
from bandits.studies.study import Claim, Criterion, Study, claim
from bandits.studies.t24.published import PEAKS
from bandits.sweeps import choices, sweep
from bandits.training import Schedule, on_policy, train


class _Keys(NamedTuple):
    """Name what one seed decides."""

    prompts: PRNGKeyArray
    fresh: PRNGKeyArray
    judging: PRNGKeyArray
    training: PRNGKeyArray
    policy: PRNGKeyArray


class Combinatorial(Study):
    """Compare best-of-N and IPO, offline and on-policy, on both rewards."""

    source = "T24, section 5, combinatorial bandit"
    question = "Does the same hold for sequences and a transformer?"
    quick = {
        "num_values": 20, "length": 4, "layers": 1, "heads": 2, "model_width": 16, "steps": 30,
        "passes": 5, "seeds": 2,
    }  # fmt: skip

    num_values: int = 100  # V, of a token
    length: int = 9  # tokens of a response, after the prompt
    width: float = 10.0  # of the reward's bump
    layers: int = 3  # of the transformer, as the next two
    heads: int = 3
    model_width: int = 48
    prompts: int = 10  # training prompts
    responses: int = 10  # N, to a prompt
    steps: int = 100  # full batch
    passes: int = 10  # T on-policy; offline it is all steps
    learning_rates: tuple[float, float] = (1e-3, 1e-3)  # of Adam, for `METHODS` in turn
    judged: int = 100  # fresh prompts, with one response each, that the reward is estimated from
    records: int = 2  # how often
    seeds: int = 5  # independent repeats

    METHODS = ("best_of_n", "ipo")

    def run(self) -> xr.Dataset:
        policy = causal_transformer(
            self.num_values, self.length, self.layers, self.heads, self.model_width
        )
        everything = self.prompts * self.responses
        record = tuple(np.linspace(0, self.steps, self.records + 1).round().astype(int))

        def run_one(
            loss: tuple[Loss, Float[Array, ""]],
            reward: Int[Array, ""],
            data: Int[Array, ""],
            seed: Int[Array, ""],
            reference_log_probs: Float[Array, " V"],
        ) -> dict[str, Array]:
            method, learning_rate = loss
            table = bump_reward(self.num_values, reward, self.width)
            keys = split_into(_Keys, jax.random.key(seed))
            prompts = jax.random.randint(keys.prompts, (self.prompts,), 0, self.num_values)
            fresh = jax.random.randint(keys.fresh, (self.judged,), 0, self.num_values)

            def mean_reward(prompt: Array, responses: Int[Array, "C L"]) -> Float[Array, " C"]:
                return (table[prompt] + table[responses].sum(axis=-1)) / (self.length + 1)

            def judge_policy(params: Params) -> dict[str, Array]:
                sample_keys = jax.random.split(keys.judging, self.judged)
                responses = jax.vmap(lambda k, prompt: policy.sample(params, k, prompt, 1))(
                    sample_keys, fresh
                )
                return {"expected_reward": jnp.mean(jax.vmap(mean_reward)(fresh, responses))}

            schedule = Schedule(self.steps, self.responses, everything, everything, passes=data)
            collect = on_policy(
                policy, prompts, mean_reward, schedule,
                reference_log_prob=lambda _, tokens: reference_log_probs[tokens].sum(axis=-1),
            )  # fmt: skip
            start = policy.init(reference_log_probs, keys.policy)
            return train(
                keys.training, policy, start, method, collect, schedule,
                optax.adam(learning_rate), judge_policy, record,
            )  # fmt: skip

        rates = zip(self.METHODS, self.learning_rates, strict=True)
        dataset = sweep(
            run_one,
            {
                "loss": choices({name: (METHODS[name].bind(), rate) for name, rate in rates}),
                "reward": choices(PEAKS),
                "data": choices({"offline": self.steps, "on-policy": self.passes}),
                "seed": np.arange(self.seeds),
            },
            fixed={"reference_log_probs": tanh_cauchy_reference(self.num_values)},
            dims=["step"],
            coords={"step": list(record)},
            attributes=ATTRIBUTES,
            block_runs=1,  # a run fills both cores, and alone draws samples only when they are due
        )
        curves.require_not_diverged(dataset)
        return dataset

    @classmethod
    def plot(cls, dataset: xr.Dataset) -> Figure:
        """Draw a panel for each reward: results over steps, offline thin, on-policy bold."""
        figure, panels = curves.new_reward_panels()
        for reward, axes in panels.items():
            for name in cls.METHODS:
                for data, width, marker in (("offline", 1.4, "o"), ("on-policy", 3.0, "s")):
                    one = dataset["expected_reward"].sel(loss=name, reward=reward, data=data)
                    label = f"{plotting.METHOD_LABELS[name]}, {data}"
                    line = {"label": label, "linewidth": width, "marker": marker}
                    curves.draw_means(axes, one, "step", name, **line)
            axes.set_xlabel("gradient steps")
        panels["R1"].legend(loc="upper left")
        return figure

    @classmethod
    def judge(cls, dataset: xr.Dataset) -> list[Claim]:
        final = dataset["expected_reward"].isel(step=-1)
        gain = final - dataset["expected_reward"].isel(step=0)
        contrastive = (final.sel(loss="ipo") - final.sel(loss="best_of_n")).sel(reward="R1")
        on_policy_gain = (final.sel(data="on-policy") - final.sel(data="offline")).sel(reward="R1")
        kept = gain.sel(data="offline") / gain.sel(data="on-policy")
        far = gain.sel(reward="R1", data="offline").mean("seed")
        gains = ", ".join(
            f"{plotting.METHOD_LABELS[name]} gains {float(far.sel(loss=name)):+.3f}"
            for name in cls.METHODS
        )
        return [
            claim("On-policy samples raise the final reward on R1 by this much", on_policy_gain),
            claim(
                "They matter more where the peak is far: the share of the on-policy improvement "
                "that offline data reach, R1 minus R2",
                kept.sel(reward="R1") - kept.sel(reward="R2"),
                Criterion(lambda interval: interval.high < 0, ""),
            ),
            claim(
                "A negative gradient helps offline on R1: IPO minus best-of-N",
                contrastive.sel(data="offline"),
                asserted=False,
                note=f"Offline neither leaves the start by much: {gains}.",
            ),
            claim(
                "A negative gradient adds to on-policy samples on R1: online IPO minus best-of-N",
                contrastive.sel(data="on-policy"),
                asserted=False,
            ),
        ]
