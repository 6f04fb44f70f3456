"""The same updates as others would write them: NumPy and PyTorch experts, and the obvious JAX.

Experts know the closed forms of the gradients in the logits θ of a softmax p, update in place, and
draw all policies' samples at once. The obvious program differentiates the loss and draws with
`jax.random.categorical`, as a user without this library would.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from bandits.problems.environments import CategoricalBandit
from bandits.sweeps.programs import BLOCK_RUNS, lanes
from bandits.training import BASELINE_DECAY

BETA = 0.05
"""Coefficient of REINFORCE's KL penalty, the library's default."""


@dataclass(frozen=True)
class Sizes:
    """How much an update works. An exact one has a start for each run, and draws nothing.

    Attributes:
      runs: Policies trained at once: by default a block of a large sweep.
      num_arms: K.
      steps: Gradient steps.
      group: C, samples to a prompt.
      minibatch: M = B, samples in a step.
      learning_rate: Learning rate of SGD.
    """

    runs: int = BLOCK_RUNS
    num_arms: int = 100
    steps: int = 100
    group: int = 10
    minibatch: int = 100
    learning_rate: float = 1.0

    @property
    def updates(self) -> int:
        """Arms of all policies, times steps."""
        return self.runs * self.num_arms * self.steps

    @property
    def samples(self) -> int:
        """Samples drawn by all runs in all steps."""
        return self.runs * self.steps * self.minibatch

    def in_every_lane(self) -> "Sizes":
        """Return the sizes of a benchmark whose every lane has so many runs."""
        return replace(self, runs=self.runs * len(lanes()))


def find_torch() -> Any:
    """Return PyTorch, or None where it is not installed."""
    try:
        return importlib.import_module("torch")
    except ImportError:
        return None


def numpy_exact(
    loss: str,
    log_probs: Float[np.ndarray, "runs K"],
    target_log_probs: Float[np.ndarray, " K"],
    sizes: Sizes,
) -> Float[np.ndarray, "runs K"]:
    """Return the log-probabilities after exact steps of forward or reverse KL."""
    logits, target = log_probs.copy(), np.exp(target_log_probs)
    p, gradient = np.empty_like(logits), np.empty_like(logits)
    for _ in range(sizes.steps):
        logits -= logits.max(axis=1, keepdims=True)
        np.exp(logits, out=p)
        total = p.sum(axis=1, keepdims=True)
        p /= total
        if loss == "forward_kl":
            np.subtract(p, target, out=gradient)
        else:  # p ∘ (log(p/q) − KL(p‖q))
            logits -= np.log(total)
            np.subtract(logits, target_log_probs, out=gradient)
            gradient -= np.einsum("rk,rk->r", p, gradient)[:, None]
            gradient *= p
        gradient *= sizes.learning_rate
        logits -= gradient
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def torch_exact(torch: Any, loss: str, log_probs: Any, target_log_probs: Any, sizes: Sizes) -> Any:
    """Do the same on tensors."""
    with torch.inference_mode():
        logits, target = log_probs.clone(), target_log_probs.exp()
        for _ in range(sizes.steps):
            if loss == "forward_kl":
                gradient = torch.softmax(logits, 1).sub_(target)
            else:
                log_p = torch.log_softmax(logits, 1)
                p = log_p.exp()
                ratios = log_p.sub_(target_log_probs)
                divergence = torch.linalg.vecdot(p, ratios).unsqueeze(1)
                gradient = ratios.sub_(divergence).mul_(p)
            logits.sub_(gradient, alpha=sizes.learning_rate)
        return torch.log_softmax(logits, 1)


def numpy_sampled(
    method: str,
    random: np.random.Generator,
    reward: Float[np.ndarray, " K"],
    reference_log_probs: Float[np.ndarray, " K"],
    sizes: Sizes,
) -> Float[np.ndarray, "runs K"]:
    """Return the log-probabilities after sampled steps of reinforce or best_of_n.

    Both need only how often each arm counts: samples for the one, winners of groups for the other.
    """
    num_arms, runs = reward.size, sizes.runs
    logits = np.tile(reference_log_probs, (runs, 1))
    rows = (np.arange(runs) * num_arms)[:, None]
    baseline = None
    for _ in range(sizes.steps):
        logits -= logits.max(axis=1, keepdims=True)
        p = np.exp(logits)
        total = p.sum(axis=1, keepdims=True)
        p /= total
        arms = _numpy_draw(random, p, rows, sizes.minibatch)
        if method == "best_of_n":
            weights = _numpy_winners(arms, rows, reward, sizes.group)
        else:
            counts = np.bincount(arms.ravel(), minlength=runs * num_arms).reshape(runs, num_arms)
            weights = counts.astype(np.float32) / np.float32(sizes.minibatch)
            mean_reward = (weights @ reward)[:, None]
            baseline = mean_reward if baseline is None else baseline
            logits -= np.log(total)
            weights *= reward - BETA * (logits - reference_log_probs) - baseline
            baseline = BASELINE_DECAY * baseline + (1 - BASELINE_DECAY) * mean_reward
        p *= weights.sum(axis=1, keepdims=True)
        weights -= p
        weights *= sizes.learning_rate
        logits += weights
    logits -= logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def _numpy_draw(
    random: np.random.Generator, p: np.ndarray, rows: np.ndarray, count: int
) -> np.ndarray:
    """Return the positions of the drawn arms in the table of all policies.

    This halves all ranges at once, as the library does. On [64, 100] it takes 19 ns a sample, where
    one `searchsorted` over the shifted rows takes 50, over sorted numbers 27, and `multinomial` 37.
    """
    edges = np.cumsum(p, axis=1)
    t = random.random((len(p), count), dtype=np.float32)
    t *= edges[:, -1:]
    # Rounding can make t the last edge, or leave arms of no mass beyond it: stay in the bracket.
    np.minimum(t, np.nextafter(edges[:, -1:], np.float32(0)), out=t)
    places, flat, candidates = np.repeat(rows, count, axis=1), edges.ravel(), p.shape[1]
    while candidates > 1:
        half = candidates // 2
        places += half * (flat.take(places + (half - 1)) <= t)
        candidates -= half
    return places


def _numpy_winners(
    arms: np.ndarray, rows: np.ndarray, reward: np.ndarray, group: int
) -> np.ndarray:
    runs, minibatch = arms.shape
    rewards = reward.take(arms - rows).reshape(-1, group)
    best = rewards.argmax(axis=1) + np.arange(len(rewards)) * group
    counts = np.bincount(arms.ravel()[best], minlength=runs * reward.size)
    return counts.reshape(runs, -1).astype(np.float32) / np.float32(minibatch // group)


def torch_sampled(
    torch: Any,
    method: str,
    draw: Callable[[Any, int], Any],
    reward: Any,
    reference_log_probs: Any,
    sizes: Sizes,
) -> Any:
    """Do the same on tensors; ``draw`` is one of `torch_draws`."""
    with torch.inference_mode():
        logits = reference_log_probs.repeat(sizes.runs, 1)
        baseline = None
        for _ in range(sizes.steps):
            log_p = torch.log_softmax(logits, 1)
            p = log_p.exp()
            arms = draw(p, sizes.minibatch)
            if method == "best_of_n":
                groups = arms.view(sizes.runs, -1, sizes.group)
                best = reward[groups].argmax(2, keepdim=True)
                arms = groups.gather(2, best).squeeze(2)
            share = torch.full((1, 1), 1.0 / arms.shape[1]).expand(arms.shape)
            weights = torch.zeros_like(p).scatter_add_(1, arms, share)
            if method == "reinforce":
                mean_reward = (weights @ reward).unsqueeze(1)
                baseline = mean_reward if baseline is None else baseline
                penalized = reward - BETA * log_p.sub_(reference_log_probs)
                weights.mul_(penalized.sub_(baseline))
                baseline = torch.lerp(mean_reward, baseline, BASELINE_DECAY)
            weights.sub_(p.mul_(weights.sum(1, keepdim=True)))
            logits.add_(weights, alpha=sizes.learning_rate)
        return torch.log_softmax(logits, 1)


def torch_draws(torch: Any) -> dict[str, Callable[[Any, int], Any]]:
    """Return two ways to draw, (probabilities ``[runs, K]``, count) -> arms.

    Which is faster depends on the machine.
    """

    def search(p: Any, count: int) -> Any:
        edges = torch.cumsum(p, 1)
        t = torch.rand((len(p), count)).mul_(edges[:, -1:])
        return torch.searchsorted(edges, t, right=True).clamp_(max=p.shape[1] - 1)

    return {
        "torch.searchsorted": search,
        "torch.multinomial": lambda p, count: torch.multinomial(p, count, replacement=True),
    }


def obvious_sampled(
    method: str, sizes: Sizes
) -> Callable[[PRNGKeyArray, CategoricalBandit], Float[Array, "runs K"]]:
    """Return (keys, bandit) -> log-probabilities in plain JAX and optax, for all runs at once."""
    optimizer = optax.sgd(sizes.learning_rate)
    shape = (sizes.minibatch // sizes.group, sizes.group)

    def train(key: PRNGKeyArray, bandit: CategoricalBandit) -> Float[Array, " K"]:
        def loss(logits: Array, arms: Array, baseline: Array) -> Array:
            log_probs = jax.nn.log_softmax(logits)[arms]
            rewards = bandit.reward[arms]
            if method == "best_of_n":
                best = jnp.argmax(rewards, axis=1, keepdims=True)
                return -jnp.mean(jnp.take_along_axis(log_probs, best, axis=1))
            penalty = BETA * (log_probs - bandit.reference_log_probs[arms])
            advantages = jax.lax.stop_gradient(rewards - penalty - baseline)
            return -jnp.mean(advantages * log_probs)

        def step(carry: tuple[Any, ...], step_key: Any) -> tuple[tuple[Any, ...], None]:
            logits, state, baseline = carry
            arms = jax.random.categorical(step_key, logits, shape=shape)
            mean_reward = jnp.mean(bandit.reward[arms])
            baseline = jnp.where(jnp.isnan(baseline), mean_reward, baseline)
            gradient = jax.grad(loss)(logits, arms, baseline)
            updates, state = optimizer.update(gradient, state)
            baseline = BASELINE_DECAY * baseline + (1 - BASELINE_DECAY) * mean_reward
            return (optax.apply_updates(logits, updates), state, baseline), None

        logits = bandit.reference_log_probs
        start: tuple[Any, ...] = (logits, optimizer.init(logits), jnp.float32(jnp.nan))
        end, _ = jax.lax.scan(step, start, jax.random.split(key, sizes.steps))
        return jax.nn.log_softmax(end[0])

    return jax.vmap(train, in_axes=(0, None))
