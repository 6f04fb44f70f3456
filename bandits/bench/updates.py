"""How fast policies are moved, beside the floor of the hardware and beside other programs."""

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int32, PRNGKeyArray, UInt32

from bandits.bench import peers
from bandits.bench.base import (
    TIMES,
    Measurement,
    cost,
    interleaved,
    prepare,
    ratio,
)
from bandits.bench.peers import Sizes
from bandits.kernels import threefry
from bandits.losses import DIVERGENCES, METHODS
from bandits.policies import tabular_softmax
from bandits.problems import sampling
from bandits.problems.environments import CategoricalBandit, bump_reward, tanh_cauchy_reference
from bandits.sweeps.programs import BLOCK_RUNS, lanes
from bandits.training import Schedule, on_bandit, train
from bandits.training.descent import descend

EXACT_FLOOR, SAMPLED_FLOOR = "one exp of JAX", "one draw and search of JAX"
OWN_EXP, OWN_DRAW = "one exp of ours", "one draw and search of ours"
PER_ARM, PER_SAMPLE = "ns per arm and step", "ns a sample"
NO_TORCH = "PyTorch is not installed"

LOSSES = ("forward_kl", "reverse_kl")
SAMPLED_METHODS = ("reinforce", "best_of_n", "dpo")
PEER_METHODS = ("reinforce", "best_of_n")
"""What peers write too."""

DISAGREEMENT = 1e-3
"""Most, in nats, that exact peers differ by: float32 in another order of summation."""

STANDARD_ERRORS = 6.0
"""Most that the mean rewards of sampled peers differ by. Chance exceeds it once in 10^8 tries of 64
runs, and once in 30,000 of 8, whose spread is itself uncertain (Student's t)."""


Draw = Callable[[PRNGKeyArray, Array, int], UInt32[Array, " N"]]
"""(key, step, count) -> random numbers."""

Search = Callable[[UInt32[Array, " K"], UInt32[Array, " N"]], Int32[Array, " N"]]
"""(running sums, numbers below the last) -> arms."""


class PeerDisagrees(RuntimeError):
    """A peer does other work than ours: its time says nothing."""


@dataclass(frozen=True)
class Exact:
    """The sizes of an exact update: one learning rate, a start for each run, one target.

    A benchmark runs so many policies in each lane, by default a block of a large sweep.
    """

    runs: int = BLOCK_RUNS
    num_arms: int = 100
    steps: int = 1000
    learning_rate: float = 1.0

    @property
    def work(self) -> int:
        """Arms of all policies, times steps."""
        return self.runs * self.num_arms * self.steps

    def start(self) -> Float[Array, "runs K"]:
        """Random policies."""
        return jax.nn.log_softmax(jax.random.normal(jax.random.key(0), (self.runs, self.num_arms)))

    def target(self) -> Float[Array, " K"]:
        """The Gibbs policy of the far bandit, with this many arms."""
        return far(self.num_arms).target_log_probs(beta=0.1)


Work = TypeVar("Work", Exact, Sizes)


def in_every_lane(sizes: Work) -> Work:
    """The sizes of a benchmark whose every lane has so many runs."""
    return replace(sizes, runs=sizes.runs * len(lanes()))


def far(num_arms: int) -> CategoricalBandit:
    """`bandits.problems.environments.far_bandit` with any number of arms."""
    reward = bump_reward(num_arms, 0.7 * num_arms, 0.1 * num_arms)
    return CategoricalBandit(reward, tanh_cauchy_reference(num_arms))


def exact_floor(repeats: int, sizes: Exact | None = None) -> Iterator[Measurement]:
    """`descend` beside one exp per arm and step, in vectors as JAX makes them, and in ours."""
    sizes = in_every_lane(sizes or Exact(steps=4000))
    start = sizes.start()
    workloads: dict[str, Callable[[], Any]] = {
        name: prepare(
            lambda x, _: exponentials(x, sizes.steps), start, as_jax_does=name == EXACT_FLOOR
        )
        for name in (EXACT_FLOOR, OWN_EXP)
    }
    workloads |= {loss: descent(loss, sizes) for loss in LOSSES}
    seconds = interleaved(workloads, repeats)
    note = f"{sizes.runs} policies of {sizes.num_arms} arms, {sizes.steps} steps"
    for name in workloads:
        yield cost(f"exact update: {name}", seconds[name], PER_ARM, sizes.work, note=note)
    for loss in LOSSES:
        for floor, target in ((EXACT_FLOOR, "<= 1.5"), (OWN_EXP, "")):
            yield ratio(f"exact update: {loss} to {floor}", loss, floor, seconds, target)


def exact_peers(repeats: int, sizes: Exact | None = None) -> Iterator[Measurement]:
    """`descend` beside NumPy and PyTorch."""
    sizes = in_every_lane(sizes or Exact())
    start, target = sizes.start(), sizes.target()
    workloads: dict[str, Callable[[], Any]] = {loss: descent(loss, sizes) for loss in LOSSES}
    arrays = np.asarray(start), np.asarray(target)
    for loss in LOSSES:
        workloads[f"NumPy {loss}"] = functools.partial(
            peers.numpy_exact, loss, *arrays, sizes.learning_rate, sizes.steps
        )
    torch = peers.find_torch()
    if torch is not None:
        start_tensor, target_tensor = (torch.tensor(array) for array in arrays)
        rest = start_tensor, target_tensor, sizes.learning_rate, sizes.steps
        for loss in LOSSES:
            run = functools.partial(peers.torch_exact, torch, loss, *rest)
            workloads |= _on_threads(torch, f" {loss}", run)
    for loss in LOSSES:
        ours = workloads[loss]()
        for peer in workloads:
            if peer.endswith(f" {loss}"):
                require_same(peer, workloads[peer](), ours)

    seconds = interleaved(workloads, repeats)
    for loss in LOSSES:
        yield from _speeds(f"exact update: {loss}", loss, seconds)


def exponentials(x: Float[Array, "runs K"], steps: int) -> Float[Array, "runs K"]:
    """One exp per arm and step, each of what the last gave, so that none can be left out.

    The −2 keeps the numbers in range; exp(−x) would too, but XLA takes twice as long for it.
    """
    return jax.lax.fori_loop(0, steps, lambda _, x: jnp.exp(x) - 2.0, x)


def descent(
    loss: str,
    sizes: Exact,
    devices: Sequence[jax.Device] | None = None,
    blocks: int | None = None,
) -> Callable[[], Any]:
    """The workload of our exact update."""

    def run(start: Float[Array, "runs K"], target: Float[Array, " K"]) -> Float[Array, "runs K"]:
        def one(start: Float[Array, " K"]) -> Float[Array, " K"]:
            rate, record = sizes.learning_rate, (sizes.steps,)
            return descend(DIVERGENCES[loss], start, target, rate, record)[0]

        return jax.vmap(one)(start)

    return prepare(run, sizes.start(), sizes.target(), devices, blocks=blocks)


def sampled_floor(
    repeats: int, sizes: Sizes | None = None, num_arms: int = 100
) -> Iterator[Measurement]:
    """`train` beside a draw of `jax.random` and a binary search a sample, and beside our own."""
    sizes = in_every_lane(sizes or Sizes())
    bandit = far(num_arms)
    workloads: dict[str, Callable[[], Any]] = {
        SAMPLED_FLOOR: draws(sizes, bandit, bits_of_jax, halving, as_jax_does=True),
        OWN_DRAW: draws(sizes, bandit, bits_of_ours, sampling.find_arms),
    }
    workloads |= {method: training(method, sizes, bandit) for method in SAMPLED_METHODS}
    seconds = interleaved(workloads, repeats)
    note = (
        f"{sizes.runs} policies of {num_arms} arms, {sizes.steps} steps of {sizes.minibatch} "
        f"samples, {sizes.group} to a prompt"
    )
    for name in workloads:
        yield cost(f"sampled update: {name}", seconds[name], PER_SAMPLE, sizes.samples, note=note)
    for method in SAMPLED_METHODS:
        name = f"sampled update: {method} to {SAMPLED_FLOOR}"
        yield ratio(name, method, SAMPLED_FLOOR, seconds, "<= 2")


def sampled_peers(
    repeats: int, sizes: Sizes | None = None, num_arms: int = 100
) -> Iterator[Measurement]:
    """`train` beside the obvious program, NumPy and PyTorch."""
    sizes = in_every_lane(sizes or Sizes())
    bandit = far(num_arms)
    keys = jax.random.split(jax.random.key(1), sizes.runs)
    workloads: dict[str, Callable[[], Any]] = {
        method: training(method, sizes, bandit) for method in PEER_METHODS
    }
    for method in PEER_METHODS:
        obvious = peers.obvious_sampled(method, sizes)
        workloads[f"obvious {method}"] = prepare(obvious, keys, bandit, as_jax_does=True)
    workloads |= _numpy_sampled(sizes, bandit)
    torch = peers.find_torch()
    if torch is not None:
        workloads |= _torch_sampled(torch, sizes, bandit)
    for method in PEER_METHODS:
        ours = workloads[method]()
        for peer in workloads:
            if peer.endswith(f" {method}"):
                require_same_in_mean(peer, workloads[peer](), ours, bandit)

    seconds = interleaved(workloads, repeats)
    for method in PEER_METHODS:
        name = f"sampled update: obvious JAX {method} to ours"
        note = "jax.random.categorical and optax, jitted, scanned and vmapped, in as many lanes"
        yield ratio(name, f"obvious {method}", method, seconds, ">= 50", note)
        yield from _speeds(f"sampled update: {method}", method, seconds)


def draws(
    sizes: Sizes,
    bandit: CategoricalBandit,
    draw: Draw,
    search: Search,
    *,
    as_jax_does: bool = False,
) -> Callable[[], Any]:
    """As many random numbers and searches as the sampled update has samples."""
    log_probs = jnp.broadcast_to(bandit.reference_log_probs, (sizes.runs, bandit.num_arms))
    masses = jnp.round(sampling.UNIT * jnp.exp(log_probs)).astype(jnp.uint32)
    edges = jnp.cumsum(masses, axis=1, dtype=jnp.uint32)

    def one(key: PRNGKeyArray, edges: UInt32[Array, " K"]) -> Array:
        def step(i: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
            # Of the step before: numbers that are searched at once would be drawn twice by XLA,
            # once for each part of the search.
            total, bits = state
            # Halved, for the edges end at 2^31; and used, lest the search be left out.
            return total + search(edges, bits >> 1), draw(key, i, sizes.minibatch)

        start = jnp.zeros(sizes.minibatch, jnp.int32), jnp.zeros(sizes.minibatch, jnp.uint32)
        return jax.lax.fori_loop(0, sizes.steps, step, start)[0]

    keys = jax.random.split(jax.random.key(1), sizes.runs)

    def run(arguments: tuple[PRNGKeyArray, Array], _: Any) -> Array:
        return jax.vmap(one)(*arguments)

    return prepare(run, (keys, edges), as_jax_does=as_jax_does)


def bits_of_jax(key: PRNGKeyArray, step: Array, count: int) -> UInt32[Array, " N"]:
    """The random numbers of a step as `jax.random` makes them."""
    return jax.random.bits(jax.random.fold_in(key, step), (count,), jnp.uint32)


def bits_of_ours(key: PRNGKeyArray, step: Array, count: int) -> UInt32[Array, " N"]:
    """The same numbers as `bandits.kernels.threefry` makes them."""
    return threefry.bits(threefry.fold_in(key, step), (count,))


def halving(edges: UInt32[Array, " K"], t: UInt32[Array, " N"]) -> Int32[Array, " N"]:
    """A binary search as it is written in textbooks; `jnp.searchsorted` takes longer."""
    halves, candidates = [], edges.size
    while candidates > 1:
        halves.append(candidates // 2)
        candidates -= candidates // 2

    def halve(arm: Int32[Array, " N"], half: Int32[Array, ""]) -> tuple[Int32[Array, " N"], None]:
        return jnp.where(edges[arm + half - 1] <= t, arm + half, arm), None

    return jax.lax.scan(halve, jnp.zeros(t.shape, jnp.int32), jnp.array(halves, jnp.int32))[0]


def training(method: str, sizes: Sizes, bandit: CategoricalBandit) -> Callable[[], Any]:
    """The workload of our sampled update: on-policy, each sample used once."""
    schedule = Schedule(sizes.steps, sizes.group, sizes.minibatch, sizes.minibatch)
    policy = tabular_softmax()

    def run(keys: PRNGKeyArray, bandit: CategoricalBandit) -> Float[Array, "runs K"]:
        def one(key: PRNGKeyArray) -> Float[Array, " K"]:
            records = train(
                key,
                policy,
                bandit.reference_log_probs,
                METHODS[method].bind(),
                on_bandit(policy, bandit, schedule),
                schedule,
                optax.sgd(sizes.learning_rate),
                lambda logits: {"log_probs": jax.nn.log_softmax(logits)},
                record=(sizes.steps,),
            )
            return records["log_probs"][0]

        return jax.vmap(one)(keys)

    return prepare(run, jax.random.split(jax.random.key(2), sizes.runs), bandit)


def _numpy_sampled(sizes: Sizes, bandit: CategoricalBandit) -> dict[str, Callable[[], Any]]:
    random = np.random.Generator(np.random.SFC64(3))
    arrays = np.asarray(bandit.reward), np.asarray(bandit.reference_log_probs)
    return {
        f"NumPy {method}": functools.partial(peers.numpy_sampled, method, random, *arrays, sizes)
        for method in PEER_METHODS
    }


def _torch_sampled(
    torch: Any, sizes: Sizes, bandit: CategoricalBandit
) -> dict[str, Callable[[], Any]]:
    reward, reference = (
        torch.tensor(np.asarray(values)) for values in (bandit.reward, bandit.reference_log_probs)
    )
    workloads: dict[str, Callable[[], Any]] = {}
    for method in PEER_METHODS:
        for name, draw in peers.torch_draws(torch).items():
            run = functools.partial(
                peers.torch_sampled, torch, method, draw, reward, reference, sizes
            )
            workloads |= _on_threads(torch, f", {name} {method}", run)
    return workloads


def _on_threads(torch: Any, name: str, run: Callable[[], Any]) -> dict[str, Callable[[], Any]]:
    """The workload on PyTorch's own number of threads, and on one, which may be faster."""

    def on(threads: int) -> Any:
        torch.set_num_threads(threads)
        try:
            return run()
        finally:
            torch.set_num_threads(default)

    default = torch.get_num_threads()
    return {
        f"PyTorch on {n} thread{'s' if n > 1 else ''}{name}": functools.partial(on, n)
        for n in sorted({1, default})
    }


def _speeds(name: str, ours: str, seconds: Mapping[str, Sequence[float]]) -> Iterator[Measurement]:
    """NumPy and PyTorch to ours; of several programs of a peer, the fastest."""
    for peer in ("NumPy", "PyTorch"):
        written = [w for w in seconds if w.startswith(f"{peer} ") and w.endswith(f" {ours}")]
        if not written:
            yield Measurement(f"{name}, {peer} to ours", None, TIMES, ">= 3", note=NO_TORCH)
            continue
        fastest = min(written, key=lambda workload: float(np.median(seconds[workload])))
        note = fastest.removesuffix(f" {ours}")
        note = f"{note} on 1 thread, ours on {len(lanes())}" if peer == "NumPy" else note
        yield ratio(f"{name}, {peer} to ours", fastest, ours, seconds, ">= 3", note)


def require_same(peer: str, theirs: Any, ours: Any) -> None:
    """Refuse a peer of an exact update whose log-probabilities are not ours."""
    difference = float(np.abs(np.asarray(theirs) - np.asarray(ours)).max())
    if not difference <= DISAGREEMENT:
        raise PeerDisagrees(f"{peer} ends {difference:.3g} nats from ours")


def require_same_in_mean(peer: str, theirs: Any, ours: Any, bandit: CategoricalBandit) -> None:
    """Refuse a peer of a sampled update whose expected reward, over its runs, is not ours.

    The runs are independent, so the difference of the means has a standard error from their spread.
    """
    reward = np.asarray(bandit.reward, np.float64)
    samples = [np.exp(np.asarray(log_probs, np.float64)) @ reward for log_probs in (theirs, ours)]
    error = math.sqrt(sum(s.var(ddof=1) / s.size for s in samples))
    difference = samples[0].mean() - samples[1].mean()
    if not abs(difference) <= STANDARD_ERRORS * error:
        raise PeerDisagrees(
            f"{peer} ends with a mean reward {difference:+.3g} from ours; "
            f"the standard error is {error:.2g}"
        )
