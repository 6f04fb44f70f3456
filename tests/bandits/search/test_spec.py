"""Searches as data: what their dimensions are, and when two of them mean the same."""

import inspect
import itertools
import json

import numpy as np
import pytest

from bandits.losses import METHODS
from bandits.problems.environments import ENVIRONMENTS
from bandits.search import Spec, parse_spec
from bandits.search.files import FILES
from bandits.search.spec import parameters_of
from theory.types import TwoOrMore

BASE = {"methods": ["dpo"], "steps": 20, "learning_rate": 0.1}


def make(environment="far", problem=None, record=None, **training):
    return parse_spec(
        {
            "problem": {"environment": environment, **(problem or {})},
            "training": BASE | training,
            "record": record or {},
        }
    )


def test_dimensions_are_what_is_listed_in_one_order_whatever_that_of_the_file():
    spec = make(
        environment=["near", "far"],
        problem={"width": [9.0, 10.0]},
        seeds=2,
        hyperparameters={"tau": [0.1, 1.0], "beta": [0.3, 0.2]},
        methods=["ipo", "dpo"],
        learning_rate={"log": [0.1, 1, 3]},
        contexts=[4, 5],
        responses=2,
    )
    assert list(spec.axes) == [
        "environment", "loss", "width", "contexts", "learning_rate", "beta", "tau", "seed",
    ]  # fmt: skip
    assert spec.axes["environment"] == ("near", "far")
    assert spec.axes["beta"] == (0.3, 0.2)
    assert spec.num_runs == 2 * 2 * 2 * 2 * 3 * 2 * 2 * 2
    assert spec.settings["responses"] == 2


@pytest.mark.parametrize(
    ("policy", "static"),
    [
        ("table", "environment loss contexts responses minibatch batch passes"),
        ("network", "contexts responses minibatch"),
    ],
)
def test_programs_are_few(policy, static):
    axes = {"contexts": [4, 8], "responses": [2, 4], "minibatch": [4, 8], "batch": [8, 16]}
    spec = make(["far", "near"], methods=["dpo", "ipo"], passes=[1, 2], policy=policy, **axes)
    assert spec.static == tuple(static.split())
    assert spec.num_programs == 2 ** len(spec.static)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({}, {"updates": "sampled", "policy": "table", "optimizer": "adam", "seeds": 1}),
        ({}, {"methods": "dpo", "hyperparameters": METHODS["dpo"].hyperparameters}),
        ({}, {"minibatch": 100, "batch": 100, "passes": 20, "least_gap": 0}),
        ({}, {"record": {"steps": [0, 20], "metrics": ["expected_reward", "reference_kl"]}}),
        ({}, {"problem": {"width": 10}}),
        ({"seeds": 3}, {"seeds": [0, 1, 2]}),
        ({"learning_rate": [1, 10, 100]}, {"learning_rate": {"log": [1.0, 100.0, 3]}}),
        ({"methods": "online_dpo"}, {"methods": "online_dpo", "passes": 1}),
    ],
)
def test_searches_that_mean_the_same_have_one_description(one, other):
    assert make(**one).describe() == make(**other).describe()


VARIANTS = [
    {},
    {"methods": ["dpo", "ipo"]},
    {"methods": ["ipo", "dpo"]},
    {"updates": "exact", "methods": "forward_kl"},
    *({"environment": value} for value in ("near", ["far"])),
    *({"problem": {"width": value}} for value in (11.0, [10.0])),
    *({"learning_rate": value} for value in (0.2, [0.1])),
    *({"contexts": value} for value in (5, [10])),
    *({key: 5} for key in ("steps", "responses", "passes")),
    {"optimizer": "sgd"},
    {"policy": "network"},
    {"seeds": [1]},
    {"minibatch": 50},
    {"batch": 200},
    {"least_gap": 0.1},
    {"hyperparameters": {"beta": 0.2}},
    {"record": {"steps": [20]}},
    {"record": {"metrics": ["entropy"]}},
]


def test_searches_that_differ_have_different_descriptions():
    described = [make(**variant).describe() for variant in VARIANTS]
    for one, other in itertools.combinations(described, 2):
        assert one != other


def test_a_description_survives_json():
    for variant in [*VARIANTS, {"methods": "best_of_n_minus_mean"}]:
        description = make(**variant).describe()
        assert json.loads(json.dumps(description, allow_nan=False)) == description


def test_no_two_dimensions_can_share_a_name():
    own = {"loss", "seed", "step", "method", "tolerance", "drop"}  # the last three are sel's
    own |= set(inspect.signature(Spec).parameters) | {FILES, "arm", "reference", "reward"}
    assert FILES not in ENVIRONMENTS
    arguments = {name for e in ENVIRONMENTS for name in parameters_of(e)}
    hyperparameters = {name for m in METHODS.values() for name in m.hyperparameters}
    assert not own & arguments
    assert not own & hyperparameters
    assert not arguments & hyperparameters


def test_every_argument_of_an_environment_is_a_size_or_a_number_with_a_default():
    for name in ENVIRONMENTS:
        for parameter in parameters_of(name).values():
            assert np.isfinite(parameter.default)
            is_size = parameter.name in ("num_arms", "max_length")
            assert (parameter.annotation is TwoOrMore) == is_size
