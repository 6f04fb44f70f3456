"""Time how fast policies are moved, beside the floor of the hardware and beside other programs."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int32, PRNGKeyArray, UInt32

from bandits.bench import peers
from bandits.bench.base import TIMES, Measurement, Row, Workload, interleaved, prepare, time_rows
from bandits.bench.peers import Sizes
from bandits.kernels import threefry
from bandits.losses import DIVERGENCES, METHODS
from bandits.policies import sampling, tabular_softmax
from bandits.problems.environments import CategoricalBandit, bump_reward, tanh_cauchy_reference
from bandits.sweeps.programs import lanes
from bandits.training import Schedule, on_bandit, train
from bandits.training.descent import descend

EXACT_FLOOR, SAMPLED_FLOOR = "one exp of JAX", "one draw and search of JAX"
OWN_EXP, OWN_DRAW = "one exp of ours", "one draw and search of ours"
PER_ARM, PER_SAMPLE = "ns per arm and step", "ns a sample"
NO_TORCH = "PyTorch is not installed"
AS_USERS = "jax.random.categorical and optax, jitted, scanned and vmapped, in as many lanes"

LOSSES = ("forward_kl", "reverse_kl")
SAMPLED_METHODS = ("reinforce", "best_of_n", "dpo")
PEER_METHODS = ("reinforce", "best_of_n")
"""Sampled methods that peers write too."""

PEERS = {
    "obvious": ("obvious JAX {} to ours", ">= 50"),
    "NumPy": ("{}, NumPy to ours", ">= 3"),
    "PyTorch": ("{}, PyTorch to ours", ">= 3"),
}
"""What is said of a method beside each peer, and the target."""

DISAGREEMENT = 1e-3
"""Most nats that exact peers may differ by: float32 in another order of summation."""

STANDARD_ERRORS = 6.0
"""Most standard errors that mean rewards of sampled peers may differ by. Chance exceeds it once in
10^8 tries of 64 runs, and once in 30,000 of 8, whose spread is itself uncertain (Student's t)."""

Draw = Callable[[PRNGKeyArray, Array, int], UInt32[Array, " N"]]
"""(key, step, count) -> random numbers."""

Search = Callable[[UInt32[Array, " K"], UInt32[Array, " N"]], Int32[Array, " N"]]
"""(running sums, numbers below the last) -> arms."""

Programs = Mapping[tuple[str, str, str], Workload]
"""Peers' programs: (method, peer, note) -> workload."""


class PeerDisagrees(RuntimeError):
    """A peer does other work than ours: its time says nothing."""


def far(num_arms: int) -> CategoricalBandit:
    """Return `bandits.problems.environments.far_bandit` with any number of arms."""
    reward = bump_reward(num_arms, 0.7 * num_arms, 0.1 * num_arms)
    return CategoricalBandit(reward, tanh_cauchy_reference(num_arms))


def exact_start(sizes: Sizes) -> Float[Array, "runs K"]:
    """Return the log-probabilities of random policies."""
    return jax.nn.log_softmax(jax.random.normal(jax.random.key(0), (sizes.runs, sizes.num_arms)))


def exact_target(sizes: Sizes) -> Float[Array, " K"]:
    """Return the Gibbs policy of the far bandit."""
    return far(sizes.num_arms).target_log_probs(beta=0.1)


def exact_floor(repeats: int, sizes: Sizes | None = None) -> Iterator[Measurement]:
    """Time `descend` beside one exp per arm and step, in vectors as JAX makes them, and in ours."""
    sizes = (sizes or Sizes(steps=4000)).in_every_lane()

    def floor(x: Float[Array, "runs K"], _: Any) -> Float[Array, "runs K"]:
        return exponentials(x, sizes.steps)

    start = exact_start(sizes)
    workloads = {
        EXACT_FLOOR: prepare(floor, start, as_jax_does=True),
        OWN_EXP: prepare(floor, start),
        **{loss: descent(loss, sizes) for loss in LOSSES},
    }
    note = f"{sizes.runs} policies of {sizes.num_arms} arms, {sizes.steps} steps"
    rows = [
        Row(f"exact update: {name}", name, unit=PER_ARM, work=sizes.updates, note=note)
        for name in workloads
    ]
    rows += [
        Row(f"exact update: {loss} to {name}", loss, name, target=target)
        for loss in LOSSES
        for name, target in ((EXACT_FLOOR, "<= 1.5"), (OWN_EXP, ""))
    ]
    yield from time_rows(workloads, rows, repeats)


def exact_peers(repeats: int, sizes: Sizes | None = None) -> Iterator[Measurement]:
    """Time `descend` beside NumPy and PyTorch."""
    sizes = (sizes or Sizes(steps=1000)).in_every_lane()
    arrays = np.asarray(exact_start(sizes)), np.asarray(exact_target(sizes))
    torch, theirs = peers.find_torch(), {}
    for loss in LOSSES:
        theirs[loss, "NumPy", numpy_note()] = partial(peers.numpy_exact, loss, *arrays, sizes)
        if torch is not None:
            start, target = (torch.tensor(array) for array in arrays)
            run = partial(peers.torch_exact, torch, loss, start, target, sizes)
            theirs |= _on_threads(torch, loss, "", run)
    ours = {loss: descent(loss, sizes) for loss in LOSSES}
    yield from _against_peers("exact update", ours, theirs, require_same, repeats)


def exponentials(x: Float[Array, "runs K"], steps: int) -> Float[Array, "runs K"]:
    """Take one exp per arm and step, each of what the last gave, so that none can be left out.

    The −2 keeps the numbers in range; exp(−x) would too, but XLA takes twice as long for it.
    """
    return jax.lax.fori_loop(0, steps, lambda _, x: jnp.exp(x) - 2.0, x)


def descent(
    loss: str,
    sizes: Sizes,
    devices: Sequence[jax.Device] | None = None,
    blocks: int | None = None,
) -> Workload:
    """Return the workload of our exact update."""

    def run(start: Float[Array, "runs K"], target: Float[Array, " K"]) -> Float[Array, "runs K"]:
        def one(start: Float[Array, " K"]) -> Float[Array, " K"]:
            rate, record = sizes.learning_rate, (sizes.steps,)
            return descend(DIVERGENCES[loss], start, target, rate, record)[0]

        return jax.vmap(one)(start)

    return prepare(run, exact_start(sizes), exact_target(sizes), devices, blocks=blocks)


def sampled_floor(repeats: int, sizes: Sizes | None = None) -> Iterator[Measurement]:
    """Time `train` beside a draw and a binary search a sample, JAX's and our own."""
    sizes = (sizes or Sizes()).in_every_lane()
    workloads = {
        SAMPLED_FLOOR: draws(sizes, bits_of_jax, halving, as_jax_does=True),
        OWN_DRAW: draws(sizes, bits_of_ours, sampling.find_arms),
        **{method: training(method, sizes) for method in SAMPLED_METHODS},
    }
    note = (
        f"{sizes.runs} policies of {sizes.num_arms} arms, {sizes.steps} steps of {sizes.minibatch} "
        f"samples, {sizes.group} to a prompt"
    )
    rows = [
        Row(f"sampled update: {name}", name, unit=PER_SAMPLE, work=sizes.samples, note=note)
        for name in workloads
    ]
    rows += [
        Row(f"sampled update: {method} to {SAMPLED_FLOOR}", method, SAMPLED_FLOOR, target="<= 2")
        for method in SAMPLED_METHODS
    ]
    yield from time_rows(workloads, rows, repeats)


def sampled_peers(repeats: int, sizes: Sizes | None = None) -> Iterator[Measurement]:
    """Time `train` beside the obvious program, NumPy and PyTorch."""
    sizes = (sizes or Sizes()).in_every_lane()
    bandit = far(sizes.num_arms)
    arrays = np.asarray(bandit.reward), np.asarray(bandit.reference_log_probs)
    keys = jax.random.split(jax.random.key(1), sizes.runs)
    random = np.random.Generator(np.random.SFC64(3))
    torch, theirs = peers.find_torch(), {}
    for method in PEER_METHODS:
        obvious = peers.obvious_sampled(method, sizes)
        theirs[method, "obvious", AS_USERS] = prepare(obvious, keys, bandit, as_jax_does=True)
        run = partial(peers.numpy_sampled, method, random, *arrays, sizes)
        theirs[method, "NumPy", numpy_note()] = run
        for name, draw in peers.torch_draws(torch).items() if torch is not None else ():
            reward, reference = (torch.tensor(array) for array in arrays)
            run = partial(peers.torch_sampled, torch, method, draw, reward, reference, sizes)
            theirs |= _on_threads(torch, method, f", {name}", run)
    ours = {method: training(method, sizes) for method in PEER_METHODS}

    def require(peer: str, found: Any, expected: Any) -> None:
        require_same_in_mean(peer, found, expected, bandit)

    yield from _against_peers("sampled update", ours, theirs, require, repeats)


def draws(sizes: Sizes, draw: Draw, search: Search, *, as_jax_does: bool = False) -> Workload:
    """Return a workload of as many random numbers and searches as the update has samples."""
    reference = far(sizes.num_arms).reference_log_probs
    log_probs = jnp.broadcast_to(reference, (sizes.runs, sizes.num_arms))
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
    """Return the random numbers of a step as `jax.random` makes them."""
    return jax.random.bits(jax.random.fold_in(key, step), (count,), jnp.uint32)


def bits_of_ours(key: PRNGKeyArray, step: Array, count: int) -> UInt32[Array, " N"]:
    """Return the same numbers as `bandits.kernels.threefry` makes them."""
    return threefry.bits(threefry.fold_in(key, step), (count,))


def halving(edges: UInt32[Array, " K"], t: UInt32[Array, " N"]) -> Int32[Array, " N"]:
    """Search as textbooks do, by halving the range; `jnp.searchsorted` takes longer."""
    halves, candidates = [], edges.size
    while candidates > 1:
        halves.append(candidates // 2)
        candidates -= candidates // 2

    def halve(arm: Int32[Array, " N"], half: Int32[Array, ""]) -> tuple[Int32[Array, " N"], None]:
        return jnp.where(edges[arm + half - 1] <= t, arm + half, arm), None

    return jax.lax.scan(halve, jnp.zeros(t.shape, jnp.int32), jnp.array(halves, jnp.int32))[0]


def training(method: str, sizes: Sizes) -> Workload:
    """Return the workload of our sampled update: on-policy, each sample used once."""
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

    return prepare(run, jax.random.split(jax.random.key(2), sizes.runs), far(sizes.num_arms))


def numpy_note() -> str:
    """Return what to know beside NumPy's times."""
    return f"NumPy on 1 thread, ours on {len(lanes())}"


def _on_threads(torch: Any, method: str, how: str, run: Workload) -> dict[Any, Workload]:
    """Return a program on PyTorch's own number of threads, and on one, which may be faster."""
    default = torch.get_num_threads()

    def on(threads: int) -> Any:
        torch.set_num_threads(threads)
        try:
            return run()
        finally:
            torch.set_num_threads(default)

    return {
        (method, "PyTorch", f"PyTorch on {n} thread{'s' if n > 1 else ''}{how}"): partial(on, n)
        for n in sorted({1, default})
    }


def _against_peers(
    kind: str,
    ours: Mapping[str, Workload],
    theirs: Programs,
    require: Callable[[str, Any, Any], None],
    repeats: int,
) -> Iterator[Measurement]:
    """Yield the ratios of peers to ours; of several programs of a peer, the fastest counts.

    ``require`` refuses a peer that does not end where ours does.
    """
    ends = {method: run() for method, run in ours.items()}
    for (method, peer, note), run in theirs.items():
        require(f"{peer} {method} ({note})", run(), ends[method])
    seconds = interleaved({**ours, **theirs}, repeats)
    for method in ours:
        for peer, (words, target) in PEERS.items():
            programs = [key for key in theirs if key[:2] == (method, peer)]
            name = f"{kind}: {words.format(method)}"
            if programs:
                fastest = min(programs, key=lambda program: float(np.median(seconds[program])))
                row = Row(name, fastest, method, target=target, note=fastest[2])
                yield row.summarise(seconds)
            elif peer == "PyTorch":
                yield Measurement(name, None, TIMES, target, note=NO_TORCH)


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
