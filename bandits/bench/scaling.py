"""Time what a sweep costs as it grows: in arms, in runs, in lanes, in workers."""

import contextlib
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bandits.bench.base import TIMES, Measurement, Row, interleaved, time_rows
from bandits.bench.peers import Sizes
from bandits.bench.updates import PER_ARM, PER_SAMPLE, descent, far, training
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
"""Least part of its speed alone that each of several lanes should keep."""


def against_arms(repeats: int, arms: Sequence[int] = ARMS) -> Iterator[Measurement]:
    """Yield the cost of both updates for each K; exact ones all do the same work."""
    whole = Sizes(steps=1000).in_every_lane()
    workloads, exact, sampled = {}, [], []
    for K in arms:
        sizes = replace(whole, num_arms=K, steps=max(5, whole.steps * whole.num_arms // K))
        workloads["exact", K] = descent("reverse_kl", sizes)
        name, note = f"exact update: reverse_kl, K = {K:,}", f"{sizes.runs} policies"
        exact.append(Row(name, ("exact", K), unit=PER_ARM, work=sizes.updates, note=note))

        sizes = Sizes(runs=64, num_arms=K).in_every_lane()
        workloads["sampled", K] = training("reinforce", sizes)
        name, note = f"sampled update: reinforce, K = {K:,}", f"{sizes.runs} policies"
        sampled.append(Row(name, ("sampled", K), unit=PER_SAMPLE, work=sizes.samples, note=note))
    yield from time_rows(workloads, [*exact, *sampled], repeats)


def against_runs(repeats: int, runs: Sequence[int] = RUNS) -> Iterator[Measurement]:
    """Yield the time of a sweep of exact updates a run, with compilation and results."""
    for count in runs:
        # The largest sweep takes seconds; its spread over two rounds says enough.
        rounds = min(repeats, 2) if count >= 10**6 else repeats
        seconds = interleaved({"sweep": partial(exact_sweep, count)}, rounds)
        note = f"{float(np.median(seconds['sweep'])):.2g} s in all, compilation included"
        name = f"sweep: {count:,} runs of {SWEEP_STEPS} exact updates, K = 100"
        row = Row(name, "sweep", unit="µs a run", work=count, note=note)
        yield row.summarise(seconds)


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
    for name, to, target in ((speed_up, "two", ">= 1.8"), (added, "without", "<= 1.02")):
        yield Row(name, "one", to, target=target, note=note).summarise(seconds)


def against_lanes(repeats: int, sizes: Sizes | None = None) -> Iterator[Measurement]:
    """Time the exact update in one lane, in two, in four …, in all: cores of a CPU, or devices.

    The blocks are the same for any number of lanes, as in a sweep.
    """
    devices = lanes()
    counts, blocks = _counts(len(devices)), len(devices)
    sizes = (sizes or Sizes(steps=4000)).in_every_lane()
    workloads = {n: descent("reverse_kl", sizes, devices[:n], blocks=blocks) for n in counts}
    note = f"{sizes.runs} policies in {blocks} blocks"
    rows = [
        Row(
            f"exact update: reverse_kl in {n} lane{'s' if n > 1 else ''}",
            n,
            unit=PER_ARM,
            work=sizes.updates,
            note=note,
        )
        for n in counts
    ]
    name = "exact update: speed of all lanes to one"
    if blocks > 1:
        target = f">= {SHARE_OF_LANE * blocks:g}"
        rows.append(Row(name, 1, blocks, target=target, note=f"{blocks} lanes"))
    yield from time_rows(workloads, rows, repeats)
    if blocks == 1:
        yield Measurement(name, None, TIMES, note="there is one core")


def _counts(most: int) -> list[int]:
    """Return powers of two, and all; of these, the numbers that divide ``most``."""
    counts = {*(2**i for i in range(most.bit_length())), most}
    return sorted(n for n in counts if most % n == 0)
