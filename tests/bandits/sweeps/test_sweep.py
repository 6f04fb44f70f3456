"""A sweep equals a plain loop, to the bit whatever the memory, and labels what it returns."""

import dataclasses
import doctest
import importlib
import itertools
import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rich.progress

from bandits.losses import reverse_kl
from bandits.problems.environments import CategoricalBandit
from bandits.sweeps import DivergenceWarning, programs, static, sweep
from bandits.sweeps.programs import BLOCK_RUNS, BLOCKS_AHEAD
from bandits.training.descent import descend
from theory.checks import InvalidInput


def double(x):
    return {"y": 2 * x}


def test_equals_a_plain_loop_over_a_grid_with_a_static_axis_in_the_middle():
    bandit = CategoricalBandit.from_arrays([1.0, 2.0, 4.0], [0.2, 0.3, 0.5])

    def run(rate, power, seed, vector, shared):
        noise = jax.random.normal(jax.random.key(seed), (3,))
        change = shared["bandit"].reward * vector[0] + vector[1] * shared["offset"]
        return {"a": rate**power * noise + change, "b": seed * power, "c": rate + vector.sum()}

    axes = {
        "rate": [0.5, 1.5],
        "power": static([1, 2, 3]),
        "seed": range(2),
        "vector": np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]),
    }
    shared = {"bandit": bandit, "offset": 0.25}
    dataset = sweep(run, axes, fixed={"shared": shared}, dims=["arm"])

    outer = tuple(axes)
    assert {name: v.dims for name, v in dataset.data_vars.items()} == {
        "a": (*outer, "arm"),
        "b": outer,
        "c": outer,
    }
    compared = 0
    for place in itertools.product(range(2), range(3), range(2), range(3)):
        values = [list(axes["rate"]), axes["power"].values, list(axes["seed"]), axes["vector"]]
        point = [value[i] for value, i in zip(values, place, strict=True)]
        expected = run(*point, shared)
        for name, value in expected.items():
            np.testing.assert_allclose(dataset[name].values[place], value, rtol=1e-5, atol=1e-6)
            compared += 1
    assert compared == 36 * 3


@pytest.fixture(scope="module")
def rounding_sweep():
    """A sweep of 1,100 descents, whose last bits depend on the batch size."""
    target = jax.nn.log_softmax(jnp.sin(jnp.arange(37.0) * 2))
    start = jax.nn.log_softmax(jnp.cos(jnp.arange(37.0)))

    def run(rate, tilt, target):
        log_probs = descend(reverse_kl, start, target, rate, (3, 20))
        return {"log_probs": log_probs * jnp.exp(tilt), "entropy": jnp.exp(log_probs).std(axis=-1)}

    axes = {
        "rate": np.geomspace(0.01, 3, 55),
        "tilt": np.linspace(-1, 1, 20),
    }
    return lambda **options: sweep(run, axes, fixed={"target": target}, **options)


def test_results_are_equal_to_the_bit_whatever_the_memory_and_the_number_of_lanes(rounding_sweep):
    expected = rounding_sweep()
    assert expected["log_probs"].shape == (55, 20, 2, 37)
    options = [{"memory_limit": 1}, {"memory_limit": 2**19}]
    options += [{"devices": jax.local_devices() * count} for count in (1, 2, 3)]
    for option in options:
        found = rounding_sweep(**option)
        for name in expected:
            assert found[name].values.tobytes() == expected[name].values.tobytes(), (name, option)


def test_the_memory_limit_bounds_the_blocks_in_flight(monkeypatch):
    begun, call = [], programs._call
    monkeypatch.setattr(programs, "_call", lambda *held: (begun.append(0), call(*held))[1])

    def peak(count, **options):
        begun.clear()
        seen = []

        def advance(self, task, runs):
            time.sleep(0.01)  # so that lanes get ahead
            seen.append(len(begun) - len(seen))

        monkeypatch.setattr(rich.progress.Progress, "advance", advance)
        devices = jax.local_devices() * count
        axes = {"x": np.ones(24 * BLOCK_RUNS)}
        sweep(lambda x: {"y": x * jnp.ones(1000)}, axes, devices=devices, **options)
        assert len(begun) == len(seen) == 24
        return max(seen)

    block = 4004 * BLOCK_RUNS
    for count in (1, 3):
        # All of a large sweep is never held at once, and no lane waits for the next.
        assert count < peak(count) <= BLOCKS_AHEAD * count
    assert peak(3, memory_limit=2.5 * block) == 2
    assert peak(3, memory_limit=1) == 1


@pytest.mark.parametrize("count", [1, 2, BLOCK_RUNS, BLOCK_RUNS + 1, 2 * BLOCK_RUNS + 1])
@pytest.mark.parametrize("memory_limit", [2**30, 1, 1e9])
def test_no_run_is_lost_or_repeated_where_blocks_do_not_divide_the_grid(count, memory_limit):
    dataset = sweep(double, {"x": np.arange(count)}, memory_limit=memory_limit)
    np.testing.assert_array_equal(dataset["y"], 2 * np.arange(count))


def test_each_static_choice_is_compiled_once_and_nothing_else_is():
    traced = []

    def run(x, size, name):
        traced.append((size, name))
        return {"y": x * size + len(name)}

    axes = {"size": static([1, 2]), "x": np.arange(3 * BLOCK_RUNS + 5.0), "name": ["a", "bb"]}
    sweep(run, axes, memory_limit=1)
    choices = set(itertools.product([1, 2], ["a", "bb"]))
    assert set(traced) == choices
    # Once for the shapes and once for the program, however many blocks there are.
    assert all(traced.count(choice) <= 2 for choice in choices)


@pytest.mark.parametrize("arms", [(), (3,)])
def test_a_grid_may_have_static_axes_alone(arms):
    dataset = sweep(
        lambda name, size: {"y": jnp.full(arms, len(name) * size)},
        {"name": ["a", "bb"], "size": static([1, 10])},
        dims=["arm"],
    )
    expected = np.array([[1, 10], [2, 20]]).reshape(2, 2, *[1 for _ in arms])
    np.testing.assert_array_equal(dataset["y"], np.broadcast_to(expected, (2, 2, *arms)))


def test_programs_that_return_different_number_types_lose_no_digits():
    dataset = sweep(
        lambda x, exact: {"y": jnp.int32(x) if exact else x + 0.5},
        {"x": [1.0, 2.0], "exact": static([True, False])},
    )
    np.testing.assert_array_equal(dataset["y"], [[1, 1.5], [2, 2.5]])


@pytest.mark.parametrize("seed", [2**31, 2**40])
def test_a_whole_number_beyond_32_bits_is_refused(seed):
    with pytest.raises(InvalidInput, match=rf"'seed' holds {seed}, beyond 32 bits"):
        sweep(lambda seed: {"y": seed}, {"seed": [seed]})


def test_coordinates_units_and_labels_are_placed():
    dataset = sweep(
        lambda rate, vector: {"kl": rate * jnp.ones((2, 3)), "time": vector.sum()},
        {"rate": [0.1, 0.2, 0.3, 0.4], "vector": np.ones((5, 2))},
        dims={"kl": ["step", "arm"]},
        coords={"step": [1, 10], "arm": ["a", "b", "c"]},
        attributes={"kl": {"units": "nats"}, "rate": {"long_name": "step size"}, "other": {"a": 1}},
    )
    assert dataset["kl"].dims == ("rate", "vector", "step", "arm")
    assert dataset["time"].dims == ("rate", "vector")
    np.testing.assert_array_equal(dataset["rate"], [0.1, 0.2, 0.3, 0.4])
    np.testing.assert_array_equal(dataset["vector"], range(5))
    np.testing.assert_array_equal(dataset["step"], [1, 10])
    assert dataset["arm"].values.tolist() == ["a", "b", "c"]
    assert dataset["kl"].attrs == {"units": "nats"}
    assert dataset["rate"].attrs == {"long_name": "step size"}
    assert dataset["time"].attrs == {}


def test_dimensions_without_a_name_get_one_that_does_not_clash():
    dataset = sweep(
        lambda x: {"a": x * jnp.ones((2, 3)), "b": x * jnp.ones(4)}, {"x": [1.0]}, dims={"a": "pq"}
    )
    assert dataset["a"].dims == ("x", "p", "q")
    assert dataset["b"].dims == ("x", "b_dim_0")


@pytest.mark.parametrize("dims", [{"yy": ["arm"]}, {"y": ["step", "arm"]}])
def test_dims_that_no_result_has_are_refused(dims):
    with pytest.raises(InvalidInput, match=r"'y'|of y"):
        sweep(lambda x: {"y": x * jnp.ones(3)}, {"x": [1.0]}, dims=dims)


def test_a_run_may_return_a_dataclass_and_nothing_but_named_arrays():
    @dataclasses.dataclass
    class Result:
        y: jax.Array

    np.testing.assert_array_equal(sweep(lambda x: Result(3 * x), {"x": [1.0, 2.0]})["y"], [3, 6])
    with pytest.raises(InvalidInput, match="must return a mapping of names to arrays"):
        sweep(lambda x: x, {"x": [1.0]})


def test_a_divergence_is_kept_and_the_warning_names_the_first_run():
    def run(rate, name, seed):
        diverges = (rate > 1) & (seed == 7) if name == "b" else False
        return {"y": jnp.where(diverges, jnp.nan, rate) * jnp.ones(2), "z": -jnp.inf + rate}

    axes = {"rate": [1.0, 2.0, 3.0], "name": ["a", "b"], "seed": [6, 7]}
    with pytest.warns(DivergenceWarning) as caught:
        dataset = sweep(run, axes, dims=["arm"])
    (warning,) = caught
    assert str(warning.message) == (
        "2 of 12 runs gave NaN in y, the first at rate=2.0, name=b, seed=7"
    )
    assert warning.filename == __file__
    missing = dataset["y"].isnull().values
    assert np.argwhere(missing[..., 0]).tolist() == [[1, 1, 1], [2, 1, 1]]
    assert missing.sum() == 4


def test_an_infinite_result_is_no_divergence():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset = sweep(lambda x: {"y": jnp.log(x)}, {"x": [1.0, 0.0]})
    assert dataset["y"].values.tolist() == [0.0, -np.inf]


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda x, size: {"y": x * jnp.ones(size)}, r"y has shape \(3,\) for size=3 but \(2,\) be"),
        (lambda x, size: {f"y{size}": x}, r"\['y3'\] for size=3 but \['y2'\] before"),
    ],
)
def test_programs_that_return_different_names_or_shapes_are_refused(result, message):
    with pytest.raises(InvalidInput, match=message):
        sweep(result, {"x": [1.0, 2.0], "size": static([2, 3])})


def test_a_bad_axis_is_refused_before_the_first_run():
    def run(learning_rate):
        raise AssertionError

    with pytest.raises(InvalidInput, match="did you mean 'learning_rate'"):
        sweep(run, {"learning_rte": [1.0]})


@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_a_limit_that_is_not_positive_is_refused(value):
    with pytest.raises(InvalidInput, match="memory_limit is"):
        sweep(double, {"x": [1.0]}, memory_limit=value)


@pytest.mark.parametrize("block_runs", [0, -1, 1.5, float("nan")])
def test_blocks_of_less_than_a_run_are_refused(block_runs):
    with pytest.raises(InvalidInput, match=r"block_runs is .*; it must be a whole number"):
        sweep(double, {"x": [1.0]}, block_runs=block_runs)


@pytest.mark.parametrize("block_runs", [1, 2, 256])
def test_results_do_not_depend_on_the_size_of_a_block(block_runs):
    def run(seed, power, rate):
        noise = jax.random.normal(jax.random.key(seed), (20,))
        return {"y": jax.nn.softmax(rate * noise) ** power, "seed_again": seed}

    axes = {"seed": range(5), "power": static([1, 3]), "rate": [0.5, 1.0, 2.0]}
    dataset = sweep(run, axes, block_runs=block_runs)
    for place in itertools.product(range(5), range(2), range(3)):
        expected = run(place[0], [1, 3][place[1]], [0.5, 1.0, 2.0][place[2]])["y"]
        np.testing.assert_allclose(dataset["y"].values[place], expected, rtol=1e-5, atol=1e-12)
    assert (dataset["seed_again"] == dataset["seed"]).all()


def test_programs_run_in_order_and_land_in_their_places_however_long_each_compiles():
    ran = []

    def run(x, size):
        for _ in range(size):  # unrolled: the first program compiles last
            x = jnp.sin(x)
        jax.debug.callback(lambda: ran.append(size))
        return {"y": x}

    sizes = [150, 1, 20, 2]
    dataset = sweep(run, {"size": static(sizes), "x": [0.5]})
    expected = []
    for size in sizes:
        value = 0.5
        for _ in range(size):
            value = np.sin(value)
        expected.append([value])
    np.testing.assert_allclose(dataset["y"], expected, rtol=1e-4)
    assert dataset["size"].values.tolist() == sizes
    jax.effects_barrier()
    assert ran == sizes


def test_the_callers_number_types_hold_in_programs_that_compile_ahead(float64):
    dataset = sweep(lambda x, size: {"y": x / size}, {"x": [1.0, 2.0], "size": static([3, 7])})
    assert dataset["y"].dtype == np.float64
    np.testing.assert_allclose(dataset["y"], [[1 / 3, 1 / 7], [2 / 3, 2 / 7]], rtol=1e-15)


@pytest.mark.parametrize("progress", [True, False, None])
def test_progress_never_writes_to_stdout_and_appears_only_where_wanted(
    capfd, monkeypatch, progress
):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes stderr for a terminal
    sweep(double, {"x": np.arange(3 * BLOCK_RUNS)}, progress=progress)
    out, err = capfd.readouterr()
    assert out == ""
    assert ("768 of 768 runs" in err) == (progress is True)


@pytest.mark.parametrize("terminal", [True, False])
def test_long_work_shows_progress_on_a_terminal_and_only_there(capfd, monkeypatch, terminal):
    clock = itertools.count(0, 10)
    monkeypatch.setattr("bandits.sweeps.progress.monotonic", lambda: float(next(clock)))
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
    sweep(double, {"x": np.arange(3 * BLOCK_RUNS)})
    out, err = capfd.readouterr()
    assert out == ""
    assert ("768 of 768 runs" in err) == terminal


@pytest.mark.parametrize("name", ["grid", "sweep", "stored"])
def test_the_examples_in_the_documentation_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tested = doctest.testmod(importlib.import_module(f"bandits.sweeps.{name}"))
    assert (tested.failed, tested.attempted > 0) == (0, True)


def test_an_error_inside_a_run_reaches_the_caller():
    def run(x):
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        sweep(run, {"x": [1.0]}, progress=True)
