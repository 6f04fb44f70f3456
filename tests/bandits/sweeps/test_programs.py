"""Programs run every run once, in equal blocks, whichever stretch of them is asked for."""

import math
import os
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bandits.sweeps import static, sweep
from bandits.sweeps.grid import make_grid
from bandits.sweeps.programs import (
    BLOCK_BYTES,
    BLOCK_RUNS,
    BLOCKS,
    LEAST_BLOCK,
    PROGRAMS_AHEAD,
    Compiler,
    block_size,
    lanes,
)
from theory.checks import InvalidInput

IMPORT = "from rounding import *\njax.config.update('jax_num_cpu_devices', {})\n"
IMPORT += "jax.config.update('jax_enable_compilation_cache', False)\n"


def compiler(run, axes, block_runs=BLOCK_RUNS, count=2):
    return Compiler(run, {}, make_grid(run, axes, {}), block_runs, lanes(count))


def wave(x, y):
    return {"z": jnp.sin(x) * y * jnp.ones(3)}


@given(
    st.integers(1, 10**7),
    st.integers(0, 2 * BLOCK_BYTES),
    st.integers(1, 5000),
)
def test_blocks_are_within_their_limits_and_nearly_equal(total, run_bytes, block_runs):
    block = block_size(total, run_bytes, block_runs)
    assert 1 <= block <= min(total, block_runs)
    assert block == 1 or block * run_bytes <= BLOCK_BYTES
    padding = math.ceil(total / block) * block - total
    assert padding < math.ceil(total / block)  # less than a run a block


@given(st.integers(BLOCKS * LEAST_BLOCK, 10**6))
def test_there_is_work_for_several_devices(total):
    assert math.ceil(total / block_size(total, 4, BLOCK_RUNS)) >= BLOCKS


@given(st.data())
def test_any_stretch_of_runs_has_the_bits_of_the_whole(data):
    run_all, program = stretches()
    first = data.draw(st.integers(0, 99))
    last = data.draw(st.integers(first + 1, 100))
    blocks = data.draw(st.floats(0, 9))
    limit = blocks * program.block * program.run_bytes
    parts = list(program.execute(first, last, limit))
    runs = np.concatenate([runs for runs, _ in parts])
    np.testing.assert_array_equal(runs, np.arange(first, last))
    values = np.concatenate([values["z"] for _, values in parts])
    assert values.tobytes() == run_all[first:last].tobytes()


def stretches(made=[]):  # noqa: B006 - compiled once
    if not made:
        axes = {"x": np.linspace(0, 9, 10), "y": np.linspace(1, 2, 10)}
        program = compiler(wave, axes, block_runs=7, count=3).first()
        whole = np.concatenate([values["z"] for _, values in program.execute()])
        made.extend([whole, program])
    return made


def test_a_program_knows_its_block_and_the_bytes_of_a_run():
    program = compiler(wave, {"x": np.ones(10, "f"), "y": np.ones(10, "f")}, block_runs=7).first()
    assert program.block == 7
    assert program.run_bytes == 4 + 4 + 3 * 4
    assert program.place == (None, None)


@pytest.fixture
def traced():
    """A run, and the static sizes with which it was traced."""
    sizes = []

    def run(x, size):
        sizes.append(size)
        return {"y": x * size}

    return run, sizes


def test_the_first_program_is_compiled_alone_and_once(traced):
    run, sizes = traced
    programs = compiler(run, {"size": static([1, 2]), "x": np.arange(4.0)})
    first = programs.first()
    assert set(sizes) == {1}
    sizes.clear()
    assert next(programs.programs()) is first
    assert 1 not in sizes


def test_only_wanted_programs_are_compiled_and_in_order():
    axes = {"size": static(range(1, 8)), "x": np.arange(4.0)}
    programs = compiler(lambda x, size: {"y": x * size}, axes)
    wanted = {(5, None), (1, None), (3, None)}
    assert [program.place for program in programs.programs(wanted)] == sorted(wanted)


def test_no_more_than_a_program_ahead_is_compiled(traced):
    run, sizes = traced
    programs = compiler(run, {"size": static(range(1, 8)), "x": np.arange(4.0)}).programs()
    for done, _ in enumerate(programs, start=1):
        assert max(sizes) <= done + PROGRAMS_AHEAD - 1


def test_programs_that_are_not_taken_leave_no_thread_behind():
    before = threading.active_count()
    axes = {"size": static(range(1, 8)), "x": np.arange(4.0)}
    programs = compiler(lambda x, size: {"y": x * size}, axes).programs()
    next(programs)
    programs.close()
    assert threading.active_count() <= before


def test_what_a_run_returns_is_known_without_running_it():
    def run(x, size):
        jax.debug.callback(lambda: pytest.fail("ran"))
        return {"y": x * jnp.ones((2, 3)), "n": jnp.int32(size)}

    results = compiler(run, {"size": static([1, 2]), "x": np.arange(4.0)}).results()
    assert {name: (r.shape, r.dtype) for name, r in results.items()} == {
        "y": ((2, 3), np.float32),
        "n": ((), np.int32),
    }


def test_an_error_in_a_later_program_reaches_the_caller():
    def run(x, size):
        if size == 3:
            raise ZeroDivisionError("mine")
        return {"y": x * size}

    with pytest.raises(ZeroDivisionError, match="mine"):
        sweep(run, {"size": static([1, 2, 3, 4]), "x": np.arange(4.0)})


def test_every_run_lands_in_its_place_on_eight_devices(do):
    code = IMPORT.format(8) + (
        "import numpy as np\n"
        "for count, block_runs in ((1, 1), (2, 3), (9, 2)):\n"
        "    axes = {'x': np.arange(float(count)), 'y': np.arange(5.0)}\n"
        "    found = sweep(lambda x, y: {'z': 10 * x + y}, axes, block_runs=block_runs)['z']\n"
        "    assert (found.values == 10 * np.arange(count)[:, None] + np.arange(5)).all()\n"
    )
    assert do(code) == [0, "", ""]


@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_every_run_lands_in_its_place_in_many_lanes(count):
    axes = {"x": np.arange(9.0), "y": np.arange(5.0)}
    options = {"block_runs": 2, "devices": jax.local_devices() * count}
    found = sweep(lambda x, y: {"z": 10 * x + y}, axes, **options)["z"]
    np.testing.assert_array_equal(found, 10 * np.arange(9)[:, None] + np.arange(5))


@pytest.mark.parametrize(
    ("total", "block_runs", "block", "used"), [(5, 256, 5, 1), (5, 2, 2, 3), (100, 2, 2, 8)]
)
def test_there_are_no_more_lanes_than_blocks_and_they_share_an_executable(
    total, block_runs, block, used
):
    axes = {"x": np.arange(float(total))}
    program = compiler(lambda x: {"y": 2 * x}, axes, block_runs, count=8).first()
    assert (program.block, len(program.lanes)) == (block, used)
    assert len({id(lane.call) for lane in program.lanes}) == 1


@pytest.mark.skipif(len(lanes()) < 2, reason="there is one core")
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(("block_runs", "splits"), [(4, True), (2, False)])
def test_kernels_are_split_among_cores_where_there_is_one_block_alone(count, block_runs, splits):
    def heavy(x):
        return {"y": jnp.sin(x + jnp.arange(100_000.0)) * jnp.cos(x)}

    program = compiler(heavy, {"x": np.arange(4.0)}, block_runs, count).first()
    assert ("outer_dimension_partitions" in program.lanes[0].call.as_text()) == splits


@pytest.mark.parametrize("f", [jnp.linalg.eigh, jnp.linalg.inv, jnp.linalg.svd])
def test_a_program_that_calls_linear_algebra_has_one_lane(f):
    def solve(x):
        return {"y": jax.tree.leaves(f(jnp.eye(3) + x))[0]}

    axes = {"x": np.arange(4.0)}
    assert len(compiler(solve, axes, block_runs=2, count=2).first().lanes) == 1
    assert len(compiler(lambda x: {"y": x * x}, axes, 2, count=2).first().lanes) == 2


def test_a_lane_is_a_core_of_one_cpu():
    (device,) = jax.local_devices()
    assert set(lanes()) == {device}
    assert 1 <= len(lanes()) <= os.cpu_count()
    assert lanes(1) == [device]
    assert lanes(5) == [device] * 5


@pytest.mark.parametrize("count", [0, -1, 1.5])
def test_a_number_of_lanes_that_is_none_is_refused(count):
    with pytest.raises(InvalidInput, match=rf"devices is {count}; it must be a whole number"):
        lanes(count)


def test_several_devices_are_a_lane_each_and_no_more_are_given(do):
    code = IMPORT.format(3) + (
        "from bandits.sweeps.programs import lanes\n"
        "print([[device.id for device in lanes(n)] for n in (None, 1, 2, 3)])\n"
        "lanes(4)\n"
    )
    status, out, problems = do(code)
    assert (status, out.strip()) == (70, "[[0, 1, 2], [0], [0, 1], [0, 1, 2]]")
    assert problems.splitlines()[-1].endswith("InvalidInput: devices is 4; there are 3")


def test_programs_are_compiled_in_wide_vectors(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    given, compile_ = [], jax.stages.Lowered.compile

    def record(lowered, options=None):
        given.append(options)
        return compile_(lowered, options)

    monkeypatch.setattr(jax.stages.Lowered, "compile", record)
    for runs in (1, 1000):
        next(compiler(wave, {"x": np.arange(float(runs)), "y": [1.0]}).programs())
    assert [options["xla_cpu_prefer_vector_width"] for options in given] == ["512", "512"]
    assert ["xla_disable_hlo_passes" in options for options in given] == [False, True]


def test_sums_over_products_of_large_arrays_are_right():
    # With YNNPACK jaxlib 0.10.2 leaves some rows out of the product.
    def squares(scale):
        rows = jnp.zeros((33_000, 3)).at[:, 0].set(scale * jnp.arange(33_000))
        return {"squares": jax.vmap(lambda row: jnp.sum((jnp.eye(3) @ row) ** 2))(rows)}

    found = sweep(squares, {"scale": np.float32([2.0])})["squares"].values[0]
    np.testing.assert_array_equal(found, (2 * np.arange(33_000, dtype=np.float32)) ** 2)


SAMPLES = """
import jax.numpy as jnp, numpy as np
def run(seed, rate, scale):
    noise = scale * jax.random.normal(jax.random.key(seed), (20,))
    return {'y': jax.nn.softmax(rate * noise), 's': jnp.exp(noise).std()}
axes = {'seed': range(10), 'rate': np.linspace(0.1, 3, 11)}
for block_runs in (1, 7):
    for count in %s:
        found = sweep(
            run, axes, block_runs=block_runs, devices=jax.local_devices() * count,
            fixed={'scale': np.float32(0.7)},
        )
        print(block_runs, digests(found))
"""


def test_samples_and_bits_do_not_depend_on_the_lanes_and_devices_that_share_the_blocks(do):
    printed = []
    for devices, counts in ((1, "(1, 3)"), (2, "(1,)")):
        status, out, problems = do(IMPORT.format(devices) + SAMPLES % counts)
        assert (status, problems) == (0, "")
        printed += out.splitlines()
    assert len(printed) == 2 * (2 + 1)
    assert len(set(printed)) == 2


def test_a_fixed_argument_may_be_on_any_of_several_devices(do):
    code = IMPORT.format(2) + (
        "import numpy as np\n"
        "scale = jax.device_put(np.float32(2), jax.local_devices()[1])\n"
        "axes, fixed = {'x': np.arange(100.0)}, {'scale': scale}\n"
        "print(sweep(lambda x, scale: {'y': x * scale}, axes, fixed=fixed)['y'].sum().item())\n"
    )
    assert do(code) == [0, "9900.0\n", ""]
