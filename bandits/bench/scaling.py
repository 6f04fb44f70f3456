"""What a sweep costs as it grows: against arms, against runs, against lanes, against workers."""

import contextlib
import functools
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bandits.bench.base import TIMES, Measurement, cost, interleaved, ratio
from bandits.bench.peers import Sizes
from bandits.bench.updates import PER_ARM, PER_SAMPLE, Exact, descent, far, in_every_lane, training
from bandits.losses import reverse_kl
from bandits.sweeps import sweep
from bandits.sweeps.cluster import connect
from bandits.sweeps.programs import lanes
from bandits.sweeps.stored import stored_sweep
from bandits.training.descent import descend
from theory import distributions
from theory.checks import InvalidInput

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
    """Return the reverse KL after a few steps, over a grid of learning rates and starts."""
    results: np.ndarray = sweep(**_descents(runs, SWEEP_STEPS), progress=False)["reverse_kl"].values
    return results


def _descents(runs: int, steps: int) -> dict[str, Any]:
    """Return a run, axes and fixed arguments, as `bandits.sweep` takes them."""
    rates = 10 ** (len(str(runs)) // 2)
    bandit = far(100)

    def run(
        learning_rate: Array, shift: Array, start: Float[Array, " K"], target: Float[Array, " K"]
    ) -> dict[str, Array]:
        tilted = jax.nn.log_softmax(start + shift * jnp.arange(start.size) / start.size)
        log_probs = descend(reverse_kl, tilted, target, learning_rate, (steps,))[0]
        return {"reverse_kl": distributions.kl_divergence(log_probs, target)}

    axes = {
        "learning_rate": np.geomspace(0.01, 1.0, rates, dtype=np.float32),
        "shift": np.linspace(-1.0, 1.0, runs // rates, dtype=np.float32),
    }
    fixed = {"start": bandit.reference_log_probs, "target": bandit.target_log_probs(0.1)}
    return {"run": run, "axes": axes, "fixed": fixed}


def against_workers(repeats: int, runs: int = 100_000, steps: int = 2_500) -> Iterator[Measurement]:
    """Compare two Dask workers of one core each with one, and one with the same sweep without Dask.

    Half of every sweep starts the workers and compiles; the other half is timed.
    """
    speed_up, added = "sweep: speed of two workers to one", "sweep: time with Dask to without"
    with contextlib.ExitStack() as stack:
        try:
            one, two = (stack.enter_context(connect(n)) for n in (1, 2))
        except InvalidInput as error:
            for name in (speed_up, added):
                yield Measurement(name, None, TIMES, note=str(error))
            return
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        clients = {"without": None, "one": one, "two": two}
        seconds: dict[str, list[float]] = {name: [] for name in clients}
        for i in range(repeats):
            for name, client in clients.items():
                stored = stored_sweep(
                    path=folder / f"{i}.{name}", devices=lanes(1), **_descents(runs, steps)
                )
                stored.run(client, (1, 2), progress=False)
                begin = time.perf_counter()
                stored.run(client, (2, 2), progress=False)
                seconds[name].append(time.perf_counter() - begin)
    note = f"{runs // 2:,} runs of {steps:,} exact updates, start-up left out"
    yield ratio(speed_up, "one", "two", seconds, ">= 1.8", note)
    yield ratio(added, "one", "without", seconds, "<= 1.02", note)


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
