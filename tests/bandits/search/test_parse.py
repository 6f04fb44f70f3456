"""Files of searches: what they mean, and that each is a search or is refused in one sentence."""

import copy
import json
import re
import textwrap
import tomllib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bandits.search import Spec, parse, parse_spec, read_spec
from theory.checks import InvalidInput

EXAMPLES = Path(__file__).parents[3] / "examples"
SAMPLED = {
    "problem": {"environment": ["far", "min_length"], "width": [5.0, 10.0], "max_length": 20},
    "training": {
        "methods": ["best_of_n", "dpo", "ipo"],
        "steps": 20,
        "learning_rate": {"log": [0.01, 0.1, 3]},
        "seeds": 2,
        "responses": [2, 5],
        "contexts": 10,
        "minibatch": 10,
        "batch": [20, 40],
        "passes": [1, 5],
        "least_gap": 0.1,
        "hyperparameters": {"beta": [0.1, 1.0], "tau": 0.1},
    },
    "record": {"metrics": ["entropy"], "steps": [0, 10, 20]},
}
NETWORK = {
    "problem": {"environment": ["far", "near"]},
    "training": {
        "methods": ["dpo"],
        "policy": "network",
        "steps": 20,
        "learning_rate": 0.01,
        "batch": [100, 200],
    },
}
EXACT = {
    "problem": {"environment": "bump", "centre": [20, 70]},
    "training": {
        "methods": ["forward_kl", "reverse_kl"],
        "updates": "exact",
        "optimizer": "sgd",
        "steps": 100,
        "learning_rate": 1.0,
        "hyperparameters": {"beta": [0.1, 1.0]},
    },
    "record": {"metrics": ["reverse_kl"], "steps": {"log": [1, 100, 5]}},
}
LETTERS = {"reference": "letters_english.csv", "reward": "letters_german.csv", "normalize": True}
OF_FILES = {
    "problem": LETTERS,
    "training": {"methods": ["dpo"], "steps": 20, "learning_rate": 0.1},
}


BEYOND_COUNTING = {
    "environment": "bump",
    **{name: {"linear": [1, 9, 10**4]} for name in ("centre", "width", "location", "scale")},
}
GONE = object()


def changed(content, key, value):
    """Return a copy with the value under the dotted key, or without the key."""
    content = copy.deepcopy(content)
    *tables, last = key.split(".")
    table = content
    for name in tables:
        table = table.setdefault(name, {})
    table[last] = value
    if value is GONE:
        del table[last]
    return content


def test_the_file_that_is_documented_is_a_search():
    text = parse.__doc__.split("\n\n", 1)[1].split("\n\nA number is")[0]
    spec = parse_spec(tomllib.loads(textwrap.dedent(text)))
    assert spec.environment == ("far", "near")
    assert spec.arguments == {"width": (10.0, 20.0)}
    assert len(spec.learning_rate) == 9
    assert spec.seeds == tuple(range(16))
    assert (spec.minibatch, spec.batch, spec.passes) == (50, 100, (1, 5, 200))
    assert spec.record == (0, 50, 100, 200)


def test_what_is_not_said_has_its_default():
    training = {"methods": "dpo", "steps": 30, "learning_rate": 1}
    spec = parse_spec({"problem": {"environment": "far"}, "training": training})
    assert spec == Spec(
        environment="far",
        arguments={},
        methods=("dpo",),
        hyperparameters={},
        updates="sampled",
        policy="table",
        optimizer="adam",
        steps=30,
        learning_rate=1.0,
        seeds=(0,),
        responses=10,
        contexts=10,
        minibatch=None,
        batch=None,
        passes=None,
        least_gap=0.0,
        metrics=("expected_reward", "reference_kl"),
        record=(0, 30),
    )


def test_exact_updates_say_nothing_of_samples():
    spec = parse_spec(changed(EXACT, "training.seeds", 1))
    assert spec == parse_spec(EXACT)
    assert (spec.seeds, spec.responses, spec.least_gap) == (None, None, None)
    assert spec.record == (1, 3, 10, 32, 100)


@pytest.mark.parametrize(
    ("content", "key", "value", "says"),
    [
        (SAMPLED, "trainning", {}, "the file: unknown key 'trainning'; did you mean 'training'"),
        (SAMPLED, "problem", 3, "problem is 3; it must be a table"),
        (SAMPLED, "problem.environment", GONE, "^problem has no 'environment'; add it"),
        (SAMPLED, "training.methods", GONE, "^training has no 'methods'; add it"),
        (SAMPLED, "training.steps", GONE, "^training has no 'steps'; add it"),
        (SAMPLED, "problem.environment", "fra", "problem.environment: unknown environment 'fra'"),
        (SAMPLED, "problem.widht", 3, "problem: unknown key 'widht'; did you mean 'width'"),
        (SAMPLED, "problem.centre", 3.0, "problem: unknown key 'centre'"),
        (SAMPLED, "problem.width", [1.0, -1.0], "problem.width is -1; it must be a finite"),
        (SAMPLED, "problem.width", 1e-38, "'far' with width = 1e-38 has no finite reward"),
        (SAMPLED, "problem.mode", [2.0, 21.0], "problem.mode is 21.0; lengths go from 1 up to 20"),
        (SAMPLED, "problem.max_length", [9, 20], r"problem.max_length is \[9, 20\]; it must"),
        (SAMPLED, "problem.max_length", 10**6, "problem.max_length is 1000000; it must be"),
        (SAMPLED, "training.methods", "dppo", "training.methods: unknown method 'dppo'; did you"),
        (SAMPLED, "training.methods", ["dpo", "rlhf"], "holds 'rlhf', which needs learned rewards"),
        (SAMPLED, "training.methods", "forward_kl", "set training.updates to 'exact' or choose"),
        (EXACT, "training.methods", "dpo", "'dpo', .*set training.updates to 'sampled' or choose"),
        (SAMPLED, "training.methods", "best_of_n", "holds 'beta', but best_of_n has none"),
        (SAMPLED, "training.updates", "exakt", "training.updates is 'exakt'; it must be 'sampled'"),
        (SAMPLED, "training.optimizer", "adamw", "training.optimizer is 'adamw'; it must be"),
        (SAMPLED, "training.policy", "mlp", "training.policy is 'mlp'; it must be 'table' or"),
        (SAMPLED, "training.steps", 0, "training.steps is 0; it must be a whole number from 1"),
        (SAMPLED, "training.learning_rate", 0, "training.learning_rate is 0; it must be"),
        (SAMPLED, "training.seeds", -1, "training.seeds is -1; it must be a whole number from 1"),
        (SAMPLED, "training.responses", 1, "training.responses is 1; it must be a whole number"),
        (SAMPLED, "training.responses", 3, "training.minibatch is 10; .* training.responses, 3"),
        (SAMPLED, "training.batch", [20, 45], "training.batch is 45; .* training.minibatch, 10"),
        (NETWORK, "training.batch", [100, 150], "training.batch is 150; .* 10 · 10, 100"),
        (SAMPLED, "training.contexts", 10**7, "10000000 · 2, is 20000000; at most 10000000"),
        (SAMPLED, "training.passes", [1, 1], "training.passes holds 1 more than once"),
        (SAMPLED, "training.least_gap", -1, "training.least_gap is -1; it must be"),
        (SAMPLED, "training.hyperparameters", 3, "training.hyperparameters is 3; it must be a tab"),
        (SAMPLED, "training.hyperparameters.bta", 1, "hyperparameter 'bta'; did you mean 'beta'"),
        (SAMPLED, "training.hyperparameters.clip", 1, "hyperparameters: unknown hyperparameter"),
        (SAMPLED, "training.hyperparameters.beta", [1, -2], "hyperparameters.beta is -2; it must"),
        (EXACT, "training.hyperparameters.beta", [1, 0], "hyperparameters.beta is 0; it must"),
        (EXACT, "training.hyperparameters.beta", 1e-40, "beta is 1e-40, so that .* beyond range"),
        (EXACT, "training.seeds", 2, "training.seeds is 2, but exact updates draw no samples"),
        (EXACT, "training.seeds", True, "training.seeds is True, but exact"),
        (EXACT, "training.passes", 1, "training.passes is 1, but exact updates draw no samples"),
        (EXACT, "training.policy", "network", "training.policy is 'network', but exact updates"),
        (SAMPLED, "record.metrics", "reverse_kl", "record.metrics: unknown metric 'reverse_kl'"),
        (SAMPLED, "record.steps", [0, 21], r"record.steps\[1\] is 21; .* from 0 to 20"),
        (SAMPLED, "record.steps", [10, 5], "record.steps has 5 after 10; give increasing steps"),
        (NETWORK, "problem.environment", ["far", "min_length"], "has several on this grid"),
        (NETWORK, "problem.environment", "skew_length", "'skew_length' .* data of another law"),
        (SAMPLED, "training.passes", {"linear": [1, 5000, 5000]}, "120000 programs to compile"),
        (EXACT, "problem", BEYOND_COUNTING, "has 40000000000000000 runs, at most 9007199254740992"),
    ],
)
def test_what_is_not_allowed_is_refused_with_its_key(content, key, value, says):
    with pytest.raises(InvalidInput, match=says):
        parse_spec(changed(content, key, value))


def test_the_files_that_are_documented_are_a_problem(tmp_path):
    text = parse.__doc__.split("A bandit of your own", 1)[1].split("\n\n")[1]
    problem = tomllib.loads(textwrap.dedent(text))["problem"]
    assert set(problem) == set(parse.FILE_KEYS)
    for name in ("letters.csv", "rewards.csv"):
        (tmp_path / name).write_text("a,1\nb,3\n")
    (tmp_path / "pairs.csv").write_text("a,b\nb,a\na,b\n")
    for unused in (("reward",), ("preferences", "ridge")):
        given = {key: value for key, value in problem.items() if key not in unused}
        spec = parse_spec({**OF_FILES, "problem": given}, tmp_path)
        assert spec.files.reference == pytest.approx((0.3, 0.7))


def test_a_network_has_one_reference_on_the_whole_grid():
    content = changed(NETWORK, "problem", {"environment": "bump", "centre": [20.0, 70.0]})
    assert parse_spec(content).axes["centre"] == (20.0, 70.0)
    with pytest.raises(InvalidInput, match="'bump' has several on this grid"):
        parse_spec(changed(content, "problem.location", [-0.7, 0.0]))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"[problem]\nx = = 3\n", "is not TOML: .*line 2"),
        (b"a = 1\nb = '\xff'\n", "line 2: it is not TOML"),
        (b"a = " + b"[" * 10**5, "is not TOML"),
        (b"a = " + b"9" * 5000, "is not TOML"),
        (b"", "the file has no 'problem'; add it"),
    ],
)
def test_a_file_that_is_no_search_is_refused(tmp_path, content, says):
    path = tmp_path / "spec.toml"
    path.write_bytes(content)
    with pytest.raises(InvalidInput, match=says) as refusal:
        read_spec(path)
    assert "\n" not in str(refusal.value)


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(InvalidInput, match=f"^cannot read {re.escape(str(path))}: "):
            read_spec(path)


@pytest.mark.parametrize(
    ("name", "runs"),
    [
        ("small_sweep", 96),
        ("own_sweep", 72),
        ("mass_relocation_sweep", 10**6),
        ("t24_search", 57600),
    ],
)
@pytest.mark.filterwarnings("ignore::bandits.simulation.UndeterminedWarning")
def test_the_examples_are_searches(name, runs):
    assert read_spec(EXAMPLES / f"{name}.toml").num_runs == runs


NUMBERS = st.one_of(
    st.integers(-3, 300),
    st.integers(),
    st.floats(),
    st.floats(0, 2),
    st.builds(pow, st.just(16), st.just(9999)),
)
LEAVES = st.one_of(
    NUMBERS,
    st.booleans(),
    st.text(max_size=5),
    st.sampled_from(["dpo", "ppo", "rlhf", "forward_kl", "near", "exact", "network", "sgd"]),
    st.dates(),
)
SPACED = st.builds(
    lambda scale, first, last, count: {scale: [first, last, count]},
    st.sampled_from(["log", "linear", "cubic"]), NUMBERS, NUMBERS, st.integers(-1, 30),
)  # fmt: skip
VALUES = st.recursive(
    st.one_of(LEAVES, SPACED),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
KEYS = [
    *(f"training.{key}" for key in ("updates", "optimizer", *SAMPLED["training"], "policy")),
    *(f"training.hyperparameters.{key}" for key in ("beta", "tau", "floor", "temperature")),
    *(f"problem.{key}" for key in ("environment", "width", "max_length", "mode", "cut", "scale")),
    *(f"problem.{key}" for key in ("reference", "reward", "preferences", "ridge", "normalize")),
    *("problem", "training", "record", "record.steps", "record.metrics", "other", "training.x"),
]
WORDS = st.sampled_from(KEYS)


@settings(max_examples=300, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from([SAMPLED, NETWORK, EXACT, OF_FILES]),
    st.lists(st.tuples(WORDS, VALUES), min_size=1, max_size=3),
)
def test_whatever_stands_in_a_file_is_a_search_or_is_refused_on_one_line(content, changes):
    for key, value in changes:
        try:
            content = changed(content, key, value)
        except (AttributeError, TypeError):  # an earlier change took the table away
            continue
    refusal, spec = "", None
    try:
        spec = parse_spec(content, EXAMPLES)
    except InvalidInput as error:
        refusal = str(error)
    assert len(refusal.splitlines()) == (spec is None)
    if spec is not None:
        assert spec.num_runs >= 1
        json.dumps(spec.describe(), allow_nan=False)
