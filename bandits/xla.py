"""What XLA's compiler for CPUs is told, and why."""

import importlib.metadata
import os

import jax

Options = dict[str, str | bool]
"""Of XLA's compiler, by name."""

IN_ONE_THREAD: Options = {"xla_disable_hlo_passes": "cpu-parallel-task-assigner"}
"""Tells XLA to compile kernels that keep to the thread of their lane.

It goes before passes that ``XLA_FLAGS`` disable.
"""

VECTORS = "xla_cpu_prefer_vector_width"
IN_WIDE_VECTORS: Options = {VECTORS: "512"}
"""Tells XLA to fill the widest vectors that a CPU has; by itself it keeps to 256 bits.

A CPU without them is not slowed. The last bits of some results are others, as on another CPU.
"""

YNNPACK = "xla_cpu_experimental_ynn_fusion_type"
WITHOUT_YNNPACK: Options = {YNNPACK: ""}
"""Tells XLA to compile sums and products itself, and to leave none to YNNPACK.

With YNNPACK jaxlib 0.10.2 gives wrong sums over products of large arrays
(https://github.com/jax-ml/jax/issues/39103), and a program that trains a network, loaded from the
persistent cache, gave NaN from the start in one case of seventy. It goes before ``XLA_FLAGS``.
"""

WITH_YNNPACK = (0, 10, 2)
"""The first jaxlib with these faults; earlier ones need not know the option."""


def compiler_options(
    device: jax.Device, *, in_one_thread: bool = True, in_wide_vectors: bool = True
) -> Options | None:
    """What to compile with: for several lanes, in wide vectors unless ``XLA_FLAGS`` sets them."""
    if device.platform != "cpu":
        return None
    said = VECTORS in os.environ.get("XLA_FLAGS", "")
    options = WITHOUT_YNNPACK.copy() if _has_ynnpack() else {}
    options |= IN_WIDE_VECTORS if in_wide_vectors and not said else {}
    return options | (IN_ONE_THREAD if in_one_thread else {})


def avoid_ynnpack() -> None:
    """Have this process, and those it starts, compile everything without YNNPACK.

    It must come before JAX has compiled anything; what ``XLA_FLAGS`` say of YNNPACK stays.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if _has_ynnpack() and YNNPACK not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --{YNNPACK}=".strip()


def _has_ynnpack() -> bool:
    version = importlib.metadata.version("jaxlib")
    return tuple(int(part) for part in version.split(".")[:3]) >= WITH_YNNPACK
