"""What a type refuses, at every public function that has an argument of it."""

import importlib
import inspect
import pkgutil
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import theory
from bandits.problems import contextual, environments, metrics, preferences, reward_models
from theory import checks, generation_verification, types
from theory.checks import InvalidInput
from theory.types import Arm, Arms, LogProbs, Positive, Rewards, WithArms, checked, marks_of

MODULES = [
    *(importlib.import_module(f"theory.{m.name}") for m in pkgutil.iter_modules(theory.__path__)),
    contextual, environments, metrics, preferences, reward_models,
]  # fmt: skip

EYE, PAIRS = np.eye(3), 1 - np.eye(3)
HALVES = np.log(np.full((2, 2), 0.5))
NAN, INF = np.nan, np.inf

# A value that each check passes, and one that it refuses: test_checks holds which others it does.
GOOD_AND_BAD = {
    checks.require_distribution: ([0.2, 0.3, 0.5], [0.5, 0.6]),
    checks.require_log_distribution: (np.log([0.2, 0.3, 0.5]), [0.0, 0.0]),
    checks.require_preferences: (PAIRS, -PAIRS),
    checks.require_features: (EYE, EYE + INF),
    checks.require_index: (0, 3),
    checks.require_arms: (np.arange(3.0), [1.0]),
    checks.require_finite: (0.5, NAN),
    checks.require_positive: (0.3, 0.0),
    checks.require_nonnegative: (0.3, -1e-9),
    checks.require_probability: (0.3, 1.1),
    checks.require_whole: (2, 0),
    checks.require_integer: (4, 4.5),
    checks.require_two: (4, 1),
    checks.require_count: (2, 2.5),
    generation_verification._require_tokens: (EYE[:2, :2], [[0.0, INF]]),
}
FIVE_ARMS = {
    checks.require_distribution: np.full(5, 0.2),
    checks.require_log_distribution: np.log(np.full(5, 0.2)),
    checks.require_arms: np.arange(5.0),
    checks.require_preferences: 1 - np.eye(5),
    checks.require_features: np.eye(5),
}

CONTEXTUAL = contextual.random_contextual_bandit(jax.random.key(0))
BANDIT = environments.CategoricalBandit.from_arrays([0.0, 1.0], [0.5, 0.5])
LECTURE = np.array([[0, 1, 0], [0, 0, 0], [0, 0, 0]])
NAMED = {
    "key": jax.random.key(0), "rewards": np.arange(3.0), "loser": 1, "second": 1,
    "sequences": [[0, 1]], "table": HALVES, "other": HALVES, "token_log_probs": HALVES,
    "token_reference_log_probs": HALVES, "content_log_probs": 0.0, "margin": 1.0, "mode": 2.0,
    "bandit": CONTEXTUAL, "prompts": np.ones((1, 12)), "domain": 0, "count": 3, "arms": 1,
}  # fmt: skip
OF_A_FUNCTION = {
    "is_dpo_optimum": {"preferences": LECTURE},
    "dpo_optimum": {"preferences": LECTURE},
    "fit_tabular": {"counts": PAIRS},
    "fit_network": {"steps": 1},
    "tempered": {"log_probs": HALVES[0]},
    "shifted": {"log_probs": HALVES[0]},
    "covering_fraction": {"log_probs": HALVES[0]},
} | {name: {"loser": 0.3} for name in
     ("displaced", "peak_margin", "displacement_peak", "ipo_parking")}  # fmt: skip


def rule_of(mark):
    return mark.check if isinstance(mark, WithArms) else mark


def good_arguments(function):
    marks, own = marks_of(function), OF_A_FUNCTION.get(function.__name__, {})
    given = dict(own)
    for name, parameter in inspect.signature(function).parameters.items():
        if name in own or (name not in marks and parameter.default is not parameter.empty):
            continue
        given[name] = NAMED[name] if name in NAMED else GOOD_AND_BAD[rule_of(marks[name][0])][0]
    return given


def typed_functions():
    found = [
        function
        for module in MODULES
        for name, function in vars(module).items()
        if inspect.isfunction(function) and function.__module__ == module.__name__
        and not name.startswith("_") and marks_of(function)
    ]  # fmt: skip
    return [
        *found, environments.CategoricalBandit.from_arrays, BANDIT.target_log_probs,
        BANDIT.concentrability, CONTEXTUAL.draw_prompts,
    ]  # fmt: skip


@pytest.mark.parametrize("function", typed_functions(), ids=lambda function: function.__name__)
def test_every_function_refuses_by_name_what_the_types_of_its_arguments_do(function):
    marks, good = marks_of(function), good_arguments(function)
    function(**good)
    with_arms = [name for name, of in marks.items() if isinstance(of[-1], Arms)]
    for name, of in marks.items():
        for rule in (rule_of(mark) for mark in of if not isinstance(mark, Arms)):
            with pytest.raises(InvalidInput, match=rf"^(exp\()?{name}\b"):
                function(**good | {name: GOOD_AND_BAD[rule][1]})
        if len(with_arms) > 1 and name in with_arms:
            with pytest.raises(InvalidInput, match=r"has \d arms but .* they must match"):
                function(**good | {name: FIVE_ARMS[of[0]]})


def test_the_walk_meets_every_type():
    met = {rule_of(mark) for f in typed_functions() for of in marks_of(f).values() for mark in of}
    defined = {
        rule_of(mark) for kind in vars(types).values() for mark in getattr(kind, "__metadata__", ())
    }
    assert defined <= met
    assert len(typed_functions()) > 50


@checked
def chosen(log_probs: LogProbs, arm: Arm, reward: Rewards | None = None, *, scale: Positive = -1.0):
    """Return the log-probability of an arm."""
    return jnp.asarray(log_probs)[arm] * scale


def test_arguments_are_checked_however_they_are_passed_and_defaults_and_none_are_not():
    assert chosen(log_probs=np.log([0.5, 0.5]), arm=1) == np.log(2).astype(np.float32)
    assert chosen(np.log([0.5, 0.5]), 1, None, scale=1.0) < 0
    for arguments, options in (
        ((np.log([0.5, 0.5]), 2), {}),
        ((np.log([0.5, 0.5]),), {"arm": 2}),
        ((np.log([0.5, 0.5]), 1), {"reward": [1.0, 2.0, 3.0]}),
        ((np.log([0.5, 0.5]), 1, 1.0), {}),
        ((np.log([0.5, 0.5]), 1), {"scale": 0.0}),
    ):
        with pytest.raises(InvalidInput, match=r"^(arm|reward|scale) (is|has)"):
            chosen(*arguments, **options)


def test_missing_and_unknown_arguments_are_python_s_to_refuse():
    for call in (lambda: chosen([0.0, -INF]), lambda: chosen([0.0, -INF], 0, None, 1.0, 2.0),
                 lambda: chosen([0.0, -INF], 0, other=1.0)):  # fmt: skip
        with pytest.raises(TypeError, match="argument"):
            call()


def test_traced_values_pass_and_their_lengths_are_checked():
    sums = jax.jit(lambda x, arm, scale: chosen(x, arm, x, scale=scale))
    assert sums(jnp.array([-1.0, NAN]), 7, 0.0) is not None
    assert jax.grad(lambda x: chosen(x, 0, scale=2.0))(jnp.zeros(2)).tolist() == [2.0, 0.0]
    assert jax.vmap(chosen)(jnp.zeros((3, 2)), jnp.arange(3)).shape == (3,)
    with pytest.raises(InvalidInput, match="reward has 3 arms but log_probs has 2"):
        jax.jit(chosen)(jnp.zeros(2), 0, jnp.zeros(3))


def test_a_checked_function_keeps_its_name_its_types_and_its_text():
    assert chosen.__name__ == "chosen"
    assert chosen.__doc__.startswith("Return")
    assert list(inspect.signature(chosen).parameters) == ["log_probs", "arm", "reward", "scale"]
    assert marks_of(chosen)["reward"] == Rewards.__metadata__
    assert marks_of(chosen)["scale"] == (checks.require_positive,)
    assert marks_of(lambda x: x) == {}


def test_types_within_types_add_their_checks():
    hint = Annotated[Positive, checks.require_probability]

    @checked
    def share(value: hint):
        return value

    assert share(1.0) == 1.0
    for value in (0.0, 1.5):
        with pytest.raises(InvalidInput, match=r"^value is"):
            share(value)
