"""No random number serves twice: every use of every key is recorded, and a key has but one.

A use is a place in the code: to draw from a key, to split it, or to fold numbers into it. The same
place may come upon a key again: methods are compared on the same samples, and batches that are kept
are drawn at one step as at the next.
"""

import dataclasses
import functools
import re
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

import bandits
from bandits import keys
from bandits.bench import peers, updates
from bandits.explorer import runs as explorer
from bandits.kernels import threefry
from bandits.losses import METHODS
from bandits.policies import pretraining, tabular_softmax
from bandits.problems.preferences import covering_fraction, label_pairs
from bandits.search import parse_spec, plan
from bandits.simulation import simulate
from bandits.studies import STUDIES, expected
from bandits.studies.i24 import aspects
from bandits.studies.s25.generation_verification_gap import GenerationVerificationGap
from bandits.studies.t24.lengths import Lengths, train_lengths
from bandits.studies.t24.preference_log_probs import PreferenceLogProbs
from bandits.studies.t24.published import LEARNING_RATES, LEAST_GAP, Bandit, run_methods
from bandits.sweeps import programs, sweep

ROOT = f"{Path(bandits.__file__).parent}/"
DERIVING = ("split", "fold_in")
DRAWING = (
    "bits", "uniform", "normal", "randint", "choice", "gumbel", "binomial", "dirichlet",
    "categorical", "exponential", "permutation", "bernoulli", "multinomial", "laplace",
)  # fmt: skip


class Uses:
    """The places that use each key, by the words of the key."""

    def __init__(self):
        self.places = defaultdict(set)

    def recording(self, operation, function):
        @functools.wraps(function)
        def recorded(key, *args, **kwargs):
            if frames := frames_of_the_run():
                # Of a split the statement counts, of a draw all that led to it: a key that is
                # handed to one function by two callers is then found when its numbers are drawn.
                where = frames[:1] if operation in DERIVING else frames
                self.note(jax.random.key_data(key), (operation, *where))
            return function(key, *args, **kwargs)

        return recorded

    def note(self, words, place):
        def add(words):
            for row in np.asarray(words).reshape(-1, 2).tolist():
                self.places[tuple(row)].add(place)

        # A callback of its own would be called, and compiled, once for each row of a batch.
        @jax.custom_batching.custom_vmap
        def call(words):
            jax.debug.callback(add, words)
            return jnp.zeros(())

        call.def_vmap(lambda size, batched, words: (call(words), False))
        call(words)

    def shared(self):
        """Places that use a key of one another."""
        return {places for places in map(frozenset, self.places.values()) if len(places) > 1}


def frames_of_the_run():
    """Functions and lines of the package, innermost first, in the outermost program.

    They end with a function that has the keys of a seed: what it draws, such as a problem, may be
    wanted in several places.
    """
    frames, program, frame = [], None, sys._getframe(2)
    while frame:
        file = frame.f_code.co_filename
        if file.startswith(ROOT):
            frames.append((file.removeprefix(ROOT), frame.f_code.co_name, frame.f_lineno))
            if isinstance(frame.f_locals.get("keys"), tuple):
                program = len(frames)
                break
        elif "/jax/_src/" in file:
            program = len(frames)
        frame = frame.f_back
    # Of `train` only what makes keys: it does so in its scan, and once before.
    return [
        (file, function, line)
        for file, function, line in frames[:program]
        if file not in ("kernels/threefry.py", "scan.py")
        and (file != "training/loop.py" or function == "key_of")
    ]


@pytest.fixture
def uses(monkeypatch):
    """What keys are used for from now on; only keys are computed, for what is learned has none."""
    found = Uses()
    for name in DERIVING + DRAWING:
        monkeypatch.setattr(jax.random, name, found.recording(name, getattr(jax.random, name)))
    for name in ("bits", *DERIVING):
        monkeypatch.setattr(threefry, name, found.recording(name, getattr(threefry, name)))
    as_mapping = programs._as_mapping
    monkeypatch.setattr(programs, "_as_mapping", lambda results: blank(as_mapping(results)))
    monkeypatch.setattr(programs, "block_size", few_alone)
    monkeypatch.setattr(pretraining, "distill", lambda policy, params, *data: params)
    monkeypatch.setattr(jax, "grad", no_gradient)
    # Updates in expectation draw nothing: one method stands for all of them.
    monkeypatch.setattr(expected, "updates_in_expectation", of_first(expected.IN_EXPECTATION))
    forget_programs()
    yield found
    jax.effects_barrier()
    forget_programs()


def few_alone(total, *sizes, block_size=programs.block_size):
    """A block of several runs would be traced once more, and makes the same keys."""
    return 1 if total <= 64 else block_size(total, *sizes)


def blank(results):
    """The same shapes: what is compiled is then what makes keys. -1 is a run that converged."""
    return {name: jnp.full_like(value, -1) for name, value in results.items()}


def no_gradient(function, argnums=0, has_aux=False, **_):
    def zeros(*args):
        gradient = jax.tree.map(jnp.zeros_like, args[argnums])
        return (gradient, jnp.zeros(())) if has_aux else gradient

    return zeros


def of_first(alike, updates=expected.updates_in_expectation):
    def of_one(names, index, *others):
        return updates(names[:1] if names[0] in alike else names, index, *others)

    return of_one


def forget_programs():
    """Those that were compiled with other recorders, or without."""
    pretraining._compiled.cache_clear()
    for name, module in list(sys.modules.items()):
        if name.startswith("bandits."):
            for value in vars(module).values():
                if hasattr(value, "clear_cache"):
                    value.clear_cache()


TINY = Bandit(context_size=4, seeds=2, most_contexts=6, fresh_contexts=4)
LENGTHS = Lengths(max_length=4, mode=2.0, cut=2, pairs=8, policy="recurrent", seeds=2, widths=(2,))
ASPECTS = dataclasses.replace(
    aspects.QUICK, most_pairs=8, most_prompts=8, minibatch=4, steps=4, reward_steps=2, fresh=4
)
SMALL = {"steps": 4, "seeds": 4, "groups": 3, "instances": 3, "problems": 2, "judged": 4}


def quick(name):
    """Run a study at quick settings, and less of them still where that uses as many keys."""
    study = STUDIES[name]
    fields = dataclasses.fields(study)
    changes = {field.name: SMALL[field.name] for field in fields if field.name in SMALL}
    study(**(study.quick | changes)).run()


def module_of(name):
    """The module of a study, or of what studies share."""
    return STUDIES[name].run.__module__.rpartition(".")[2] if name in STUDIES else name


def with_own_keys():
    """The modules of studies that mention keys; all others hand seeds on to one of `RUNS`."""
    folder = Path(bandits.__file__).parent / "studies"
    found = {
        path.stem
        for path in folder.rglob("*.py")
        if re.search("jax.random|split_", path.read_text())
    }
    return found - {"partial_coverage", "displacement"}  # expected updates: nothing is drawn


def run_published():
    run_methods(TINY, ["ppo"], {"passes": [1, 4]}, steps=4, contexts=3, minibatch=10)


def run_log_probs():
    PreferenceLogProbs(bandit=TINY, contexts=(3,), steps=4, records=2).run()


def run_lengths():
    for methods in (["dpo"], ["ppo"]):
        models = {"reward_model": ["bumps", "network"]}
        train_lengths(LENGTHS, methods, models, steps=4, record=(4,), minibatch=4, batch=8, group=2)


def run_aspects():
    prepared = ASPECTS.prepare({"one": aspects.Recipe(8, reward_pairs=8, target_prompts=4)})
    for method in ("dpo", "ppo"):
        ASPECTS.train(method, ["one"], prepared, policy="network")


def run_hypotheses():
    # Half its panels are those of another study, whose problems have seeds of their own.
    nothing = ("pairs", "seed", "learner"), np.zeros((1, 1, 1))
    found = xr.Dataset({"accuracy": nothing, "share": nothing})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GenerationVerificationGap, "run", lambda self: found)
        quick("online_offline_hypotheses")


STUDY_RUNS = {
    "published": run_published,
    "online_offline_hypotheses": run_hypotheses,
    "preference_log_probs": run_log_probs,
    "lengths": run_lengths,
    "aspects": run_aspects,
    **{
        name: functools.partial(quick, name)
        for name in (
            "combinatorial", "coverage_sweep", "generation_verification_gap", "geometry_map",
            "kl_projections", "lemmas", "mass_relocation", "overoptimisation",
            "rlhf_dpo_equivalence", "simplex_paths", "weights",
        )
    },
}  # fmt: skip


def sampled(policy):
    return parse_spec(
        {
            "problem": {"environment": "far"},
            "training": {
                "methods": ["best_of_n"],
                "policy": policy,
                "optimizer": "adam",
                "learning_rate": LEARNING_RATES[METHODS["best_of_n"].family],
                "steps": 4,
                "contexts": 3,
                "passes": 4,
                "responses": 10,
                "least_gap": LEAST_GAP,
                "seeds": [0, 1],
            },
            "record": {"steps": [0, 4], "metrics": ["expected_reward"]},
        }
    )


def perform(spec):
    planned = plan(spec)
    names = ("fixed", "dims", "coords", "attributes", "block_runs")
    return sweep(planned.run, planned.axes, **{name: getattr(planned, name) for name in names})


def run_bandit(method):
    start, reward = np.full(4, 0.25), np.arange(4.0)
    simulate(start, reward=reward, methods=[method], steps=4, responses=4, batch=8)


def run_page():
    small = {"centres": (8,), "coverages": (1.0,), "step_sizes": (1.0,), "last_step": 4}
    methods = ("best_of_n", "best_of_n_minus_worst")
    explorer.run(dataclasses.replace(explorer.QUICK, **small, methods=methods))


def run_benchmark():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(updates, "require_same_in_mean", lambda *_: None)  # nothing is learned
        patch.setattr(peers, "find_torch", lambda: None)
        list(updates.sampled_peers(1, peers.Sizes(runs=2, steps=3, group=2, minibatch=4)))


RUNS = STUDY_RUNS | {
    "a sweep of tables": lambda: perform(sampled("table")),
    "a sweep of networks": lambda: perform(sampled("network")),
    **{f"simulate {name}": functools.partial(run_bandit, name) for name in ("hypo", "dpo", "ppo")},
    "the page": run_page,
    "the benchmark": run_benchmark,
}


def test_every_study_with_keys_of_its_own_is_run_here():
    assert with_own_keys() == set(map(module_of, STUDY_RUNS))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", RUNS)
def test_no_key_serves_twice(uses, name):
    RUNS[name]()
    jax.effects_barrier()
    assert uses.places
    assert not uses.shared()


@pytest.mark.parametrize(
    "serve_twice",
    [
        lambda key: (keys.split_into(keys.SeedKeys, key), draw_arms(key)),
        lambda key: (label_pairs(key, jnp.arange(3.0)), keys.split_into(keys.SeedKeys, key)),
        lambda key: (draw_arms(key), covering_fraction(key, jnp.zeros(3), 0.5)),
    ],
    ids=["split and drawn from", "split in two places", "drawn from in two places"],
)
def test_a_key_that_serves_twice_is_found(uses, serve_twice):
    serve_twice(jax.random.key(0))
    jax.effects_barrier()
    assert len(uses.shared()) == 1


def draw_arms(key):
    return tabular_softmax().sample(jnp.log(jnp.full(3, 1 / 3)), key, None, 2)


def test_a_seed_means_the_same_in_figures_and_in_sweeps(monkeypatch):
    """Contexts, first network and samples; no more is needed than networks at random."""
    monkeypatch.setattr(pretraining, "distill", lambda policy, params, *data: params)
    monkeypatch.setattr(programs, "block_size", few_alone)
    forget_programs()
    figure = run_methods(Bandit(seeds=2), ["best_of_n"], {}, steps=4, contexts=3)
    searched = perform(sampled("network"))
    forget_programs()
    for rewards in (figure["expected_reward"], searched["expected_reward"]):
        assert len(np.unique(rewards)) == 4
    np.testing.assert_allclose(
        figure["expected_reward"].squeeze(), searched["expected_reward"].squeeze(), rtol=1e-3
    )


@pytest.mark.parametrize("seed", [0, 7, np.uint32(2**32 - 1)])
def test_a_seed_has_a_key_for_each_purpose(seed):
    found = [tuple(jax.random.key_data(key).tolist()) for key in keys.split_seed(seed)]
    assert len(set(found)) == len(keys.SeedKeys._fields)
    again = [tuple(jax.random.key_data(key).tolist()) for key in keys.split_seed(seed)]
    assert found == again


def test_a_new_purpose_leaves_the_keys_of_others_as_they_are():
    few, more = NamedTuple("Few", [("a", Any)]), NamedTuple("More", [("a", Any), ("b", Any)])
    a = keys.split_into(few, jax.random.key(3)).a
    assert jnp.all(
        jax.random.key_data(a) == jax.random.key_data(keys.split_into(more, jax.random.key(3)).a)
    )
