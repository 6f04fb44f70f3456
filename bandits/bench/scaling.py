"""What a sweep costs as it grows: against arms, against runs, against lanes."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bandits.bench.base import TIMES, Measurement, cost, interleaved, ratio
from bandits.bench.peers import Sizes
from bandits.bench.updates import PER_ARM, PER_SAMPLE, Exact, descent, far, in_every_lane, training
from bandits.descent import descend
from bandits.losses import reverse_kl
from bandits.sweeps import sweep
from bandits.sweeps.programs import lanes
from theory import distributions

ARMS = (10, 100, 1_000, 10_000)
RUNS = (10**2, 10**3, 10**4, 10**5, 10**6)
SWEEP_STEPS = 5

SHARE_OF_LANE = 0.9
"""Of its speed alone, that each of several lanes should keep."""


def against_arms(repeats: int, arms: Sequence[int] = ARMS) -> Iterator[Measurement]:
    """Cost of both updates for each K, the work of an exact one kept the same."""
    whole = in_every_lane(Exact())
    exact = {
        K: replace(whole, num_arms=K, steps=max(5, whole.steps * whole.num_arms // K)) for K in arms
    }
    sampled = in_every_lane(Sizes(runs=64))
    workloads = {f"exact {K}": descent("reverse_kl", sizes) for K, sizes in exact.items()}
    workloads |= {f"sampled {K}": training("reinforce", sampled, far(K)) for K in arms}
    seconds = interleaved(workloads, repeats)
    for K, sizes in exact.items():
        name, note = f"exact update: reverse_kl, K = {K:,}", f"{sizes.runs} policies"
        yield cost(name, seconds[f"exact {K}"], PER_ARM, sizes.work, note=note)
    for K in arms:
        name, note = f"sampled update: reinforce, K = {K:,}", f"{sampled.runs} policies"
        yield cost(name, seconds[f"sampled {K}"], PER_SAMPLE, sampled.samples, note=note)


def against_runs(repeats: int, runs: Sequence[int] = RUNS) -> Iterator[Measurement]:
    """Time of a sweep of exact updates a run, compilation and results included."""
    for count in runs:
        # The largest sweep takes seconds; its spread over two rounds says enough.
        rounds = min(repeats, 2) if count >= 10**6 else repeats
        seconds = interleaved({"sweep": functools.partial(exact_sweep, count)}, rounds)["sweep"]
        note = f"{float(np.median(seconds)):.2g} s in all, compilation included"
        name = f"sweep: {count:,} runs of {SWEEP_STEPS} exact updates, K = 100"
        yield cost(name, seconds, "µs a run", count, note=note)


def exact_sweep(runs: int) -> np.ndarray:
    """Reverse KL after a few steps, over a grid of learning rates and starts."""
    rates = 10 ** (len(str(runs)) // 2)
    bandit = far(100)

    def run(
        learning_rate: Array, shift: Array, start: Float[Array, " K"], target: Float[Array, " K"]
    ) -> dict[str, Array]:
        tilted = jax.nn.log_softmax(start + shift * jnp.arange(start.size) / start.size)
        log_probs = descend(reverse_kl, tilted, target, learning_rate, (SWEEP_STEPS,))[0]
        return {"reverse_kl": distributions.kl_divergence(log_probs, target)}

    axes = {
        "learning_rate": np.geomspace(0.01, 1.0, rates, dtype=np.float32),
        "shift": np.linspace(-1.0, 1.0, runs // rates, dtype=np.float32),
    }
    fixed = {"start": bandit.reference_log_probs, "target": bandit.target_log_probs(0.1)}
    results: np.ndarray = sweep(run, axes, fixed=fixed, progress=False)["reverse_kl"].values
    return results


def against_lanes(repeats: int, sizes: Exact | None = None) -> Iterator[Measurement]:
    """The exact update in one lane, in two, in four …, in all: cores of a CPU, or devices.

    The same blocks for any number of lanes, as in a sweep.
    """
    devices = lanes()
    counts, blocks = _counts(len(devices)), len(devices)
    sizes = in_every_lane(sizes or Exact(steps=4000))
    workloads = {str(n): descent("reverse_kl", sizes, devices[:n], blocks=blocks) for n in counts}
    seconds = interleaved(workloads, repeats)
    for n in counts:
        name = f"exact update: reverse_kl in {n} lane{'s' if n > 1 else ''}"
        yield cost(
            name,
            seconds[str(n)],
            PER_ARM,
            sizes.work,
            note=f"{sizes.runs} policies in {blocks} blocks",
        )
    count, name = len(devices), "exact update: speed of all lanes to one"
    if count == 1:
        yield Measurement(name, None, TIMES, note="there is one core")
    else:
        target = f">= {SHARE_OF_LANE * count:g}"
        yield ratio(name, "1", str(count), seconds, target, f"{count} lanes")


def _counts(most: int) -> list[int]:
    """Powers of two, and all; those that share as many blocks without one left over."""
    counts = {*(2**i for i in range(most.bit_length())), most}
    return sorted(n for n in counts if most % n == 0)
