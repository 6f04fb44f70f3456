import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bandits.kernels import compiler
from bandits.kernels.compiler import avoid_ynnpack, compiler_options

WIDTH, YNNPACK = "xla_cpu_prefer_vector_width", "xla_cpu_experimental_ynn_fusion_type"


def test_vectors_are_as_wide_as_the_user_says_or_as_they_can_be(monkeypatch):
    cpu = jax.local_devices(backend="cpu")[0]
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    assert compiler_options(cpu)[WIDTH] == "512"
    assert compiler_options(cpu).keys() - compiler_options(cpu, in_one_thread=False).keys()
    assert WIDTH not in compiler_options(cpu, in_wide_vectors=False)
    monkeypatch.setenv("XLA_FLAGS", f"--{WIDTH}=256")
    assert WIDTH not in compiler_options(cpu)


def test_wide_vectors_give_the_results_of_others():
    x = jnp.linspace(-20.0, 0.0, 25_600).reshape(256, 100)

    def descend(x):
        return jax.lax.fori_loop(0, 10, lambda _, x: x - jax.nn.softmax(x), x)

    for f in (jnp.exp, descend, jnp.cumsum):
        wide, narrow = (
            jax.jit(f, compiler_options=compiler_options(x.device, in_wide_vectors=w))(x)
            for w in (True, False)
        )
        np.testing.assert_allclose(wide, narrow, rtol=1e-6)


@pytest.mark.parametrize(
    ("version", "has_it"),
    [("0.8.0", False), ("0.10.1", False), ("0.10.2", True), ("0.10.2rc1", True), ("0.11", True)],
)
def test_ynnpack_is_switched_off_where_jaxlib_has_it(monkeypatch, version, has_it):
    monkeypatch.setattr(compiler.importlib.metadata, "version", lambda _: version)
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=x")
    assert (YNNPACK in compiler_options(jax.local_devices(backend="cpu")[0])) == has_it
    avoid_ynnpack()
    flags = compiler.os.environ["XLA_FLAGS"]
    assert flags == "--xla_dump_to=x" + (f" --{YNNPACK}=" if has_it else "")
    avoid_ynnpack()
    assert compiler.os.environ["XLA_FLAGS"] == flags


@pytest.mark.parametrize("flags", [f"--{YNNPACK}=individual_dot", "flags.txt"])
def test_a_users_word_on_ynnpack_and_a_file_of_flags_stay(monkeypatch, flags):
    monkeypatch.setenv("XLA_FLAGS", flags)
    avoid_ynnpack()
    assert compiler.os.environ["XLA_FLAGS"] == flags


def test_the_command_compiles_without_it(do):
    code = (
        "from bandits import cli\n"
        "cli._prepare()\n"
        "import jax, jax.numpy as jnp\n"
        "rows = jnp.zeros((33_000, 3)).at[:, 0].set(jnp.arange(33_000.0))\n"
        "f = jax.jit(jax.vmap(lambda row: jnp.sum((jnp.eye(3) @ row) ** 2)))\n"
        "print(f(rows)[-1] == jnp.float32(32_999) ** 2)"
    )
    assert do(code)[1] == "True\n"
